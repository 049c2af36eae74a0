"""Features of a checkpoint (METHOD section 3): pure functions of finished trajectories.

Training reads these from a store, a live run has just finished them; a controller sees the same numbers in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np

from dps.decide.ladder import Ladder, from_ks
from dps.decide.seen import SHOWN, Tally, columns_of, numbered
from feature_store.records import Trajectory

SCALAR_FEATURES: tuple[str, ...] = (
    "mcmc_perplexity",
    "mcmc_entropy",
    "mcmc_self_confidence",
    "acceptance_ratio",
    "question_time_sec",
    "current_k",
)
"""The published six, in the order of the arrays; see :func:`scalar_features`."""

EXTENDED_FEATURES: tuple[str, ...] = (
    "answer_agreement",
    "vote_margin",
    "num_distinct_answers",
    "unanswered_share",
    "vote_entropy",
    "answer_logprob_gap",
    "length_mean",
    "length_std",
    "length_max",
    "cut_share",
    "logprob_mean",
    "logprob_std",
    "logprob_min",
    "logprob_max",
    "entropy_std",
    "top1_std",
    "num_prompt_tokens",
)
"""What the same trajectories tell besides the six, in the order of the arrays; see :func:`extended_features`."""

SCALARS, HIDDEN, EMBEDDING, PROMPT = "scalars", "hidden", "embedding", "prompt"
PARTS: frozenset[str] = frozenset({SCALARS, HIDDEN, EMBEDDING, PROMPT})
"""The parts of :class:`CheckpointFeatures`; a controller says which of them it looks at."""

FeatureSet = Literal["published", "extended", "ladder", "recorded"]
FEATURE_SETS: dict[str, tuple[str, ...]] = {
    "published": SCALAR_FEATURES,
    "extended": SCALAR_FEATURES + EXTENDED_FEATURES,
}
"""The names of the sets that no ladder changes, see :func:`feature_names`."""
_UNRECORDED = ("mcmc_entropy", "mcmc_self_confidence", "question_time_sec", "entropy_std", "top1_std")
"""What needs entropies, top-1 probabilities or a clock."""
CLOCK = frozenset({"seconds_per_token", "prefill_seconds_per_token"})
"""What a calibrated clock has, see :func:`calibrated_seconds`."""
VOTE_VALUE, END_LOGIT = LEARNT = ("vote_value", "end_logit")
"""The scalars that an estimator fills in, see :func:`feature_names`."""


def feature_names(feature_set: str, ladder: Ladder) -> tuple[str, ...]:
    """Return the names of the scalars of a feature set, in the order of the arrays; only the last two need the ladder.

    ``published`` is the seed's six, ``extended`` adds what the same trajectories tell besides. ``ladder`` adds where on
    the ladder a question stands, what each of its arms a says, see :meth:`Rows.scalars`, and :data:`LEARNT`;
    ``recorded`` is ``ladder`` without what needs entropies, top-1 probabilities or a clock, which not all records have.

    :data:`LEARNT` are columns whose values have to be learnt on some questions first. They come last and are 0 in
    tables and features alike, until whoever learns fills them in before anything looks at the scalars:
    ``scalars[..., names.index(VOTE_VALUE)]`` from the vote states (``Table.votes``, :attr:`CheckpointFeatures.votes`)
    by :meth:`dps.decide.bounds.VoteTable.gain`, that of :data:`END_LOGIT` from what is known of the question before it
    is answered (``prompt``, ``embedding``, the prompt's length). A column that nobody fills in is a constant.

    Raises:
        ValueError: For any other set.
    """
    if feature_set not in get_args(FeatureSet):
        raise ValueError(f"expected a feature set among {', '.join(get_args(FeatureSet))}, got {feature_set!r}")
    if feature_set in FEATURE_SETS:
        return FEATURE_SETS[feature_set]
    names, arms = FEATURE_SETS["extended"], ladder.arms
    names += ("rung", "next_count", *(f"next_is_{arm}" for arm in arms), "tokens_so_far", "arms_agree", *_ROOTS)
    names += tuple(f"{what}_{arm}" for what in _PER_ARM for arm in arms) + LEARNT
    return names if feature_set == "ladder" else tuple(name for name in names if name not in _UNRECORDED)


_ROOTS = ("root_k", "lead_by_root_k")
_PER_ARM = ("n", "agreement", "own_share", "logprob", "length")


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What the first n trajectories of N rows show, all rows on the same ladder.

    A row is a question in one order of its trajectories. A live question is a row and a table is many; what is said of
    a row depends on no other, bit for bit: sums are taken one trajectory after the other.
    """

    shown: np.ndarray
    """What :data:`dps.decide.seen.SHOWN` names, in order of coming: shape (S, n, N), float64."""
    arms: tuple[str, ...]
    """The arm of each of the n trajectories."""
    num_prompt_tokens: np.ndarray
    """Of each row's question: shape (N,)."""
    calibration: Mapping[str, float]
    """The clock of ``question_time_sec``: that of the run which trained the controller; NaN where it had none."""

    def of(self, name: str) -> np.ndarray:
        """Return one of the things shown: shape (n, N)."""
        return self.shown[list(SHOWN).index(name)]

    def scalars(self, feature_set: str, ks: Sequence[int], ladder: Ladder) -> np.ndarray:
        """Return the scalars of the first k trajectories, in the order of :func:`feature_names`: shape (N, C, F).

        Published, with the accepted tokens of all k trajectories pooled (each token counts once, n of them):
        perplexity ``exp(-sum log p / n)``, mean entropy, mean top-1 probability; acceptance ratio ``accepted /
        proposed`` with 0 of 0 counted as 1; the calibrated time of all generated tokens and one prefill; k.

        Extended, always finite: spreads are over the trajectories (0 for one), log p and entropy means per token in
        nats, ``vote_entropy`` that of the classes' shares among the answered, ``answer_logprob_gap`` the best log p in
        the majority's class minus the best in any other (0 where there is no other).

        Of the ladder: ``rung``, from 0, the last that was climbed; ``next_count`` and ``next_is_<arm>``, the rung that
        comes (0 at the end); ``tokens_so_far``, rejected ones included; ``arms_agree``, the share of pairs of arms,
        both with an answer, whose majorities give the same one (1 where there is no pair); ``root_k``, and by that root
        the lead in votes, which is about its standard error: ``lead_by_root_k``. Of each arm: its responses
        ``n_``, the share ``agreement_`` of its answers that are the majority's of all arms, the share ``own_share_`` of
        its responses in its own largest class, log p a token of its responses ``logprob_`` and their mean of tokens
        ``length_``; 0 where there is none. Classes enter by their sizes only, so their numbering changes nothing.
        """
        names = feature_names(feature_set, ladder)
        values = self._pooled(ks, clock="question_time_sec" in names)
        if feature_set != "published":
            values |= self._spreads(ks) | self._votes(ks, ladder, by_arm=feature_set != "extended")
            values |= dict.fromkeys(LEARNT, np.zeros(1))
        shape = (len(ks), self.shown.shape[2])
        return np.stack([np.broadcast_to(values[name], shape) for name in names], axis=-1).swapaxes(0, 1)

    def votes(self, ks: Sequence[int]) -> np.ndarray:
        """Return what names the votes of the first k trajectories, see :attr:`dps.decide.seen.Seen.votes`.

        Shape (N, C, 2), int64.
        """
        keys = np.zeros(self.shown.shape[2], np.uint64)
        return np.stack([pooled.seen(keys).votes for _, pooled, _ in self._tallies(ks, ())], axis=1)

    def _totals(self, name: str, ks: Sequence[int]) -> np.ndarray:
        """Return sums over the first k trajectories, one after the other: shape (C, N)."""
        return np.cumsum(self.of(name), axis=0)[np.asarray(ks) - 1]

    def _pooled(self, ks: Sequence[int], clock: bool) -> dict[str, np.ndarray]:
        """Return the published features, without the time if there is no clock."""
        tokens, proposed, generated = (self._totals(name, ks) for name in ("kept", "proposed", "generated"))
        accepted = self._totals("accepted", ks)
        values = {
            "mcmc_perplexity": np.exp(-self._totals("token_logprobs", ks) / tokens),
            "mcmc_entropy": self._totals("entropies", ks) / tokens,
            "mcmc_self_confidence": self._totals("top1", ks) / tokens,
            "acceptance_ratio": np.where(proposed > 0, accepted / np.maximum(proposed, 1), 1.0),
            "current_k": np.array(ks, np.float64)[:, None],
            "tokens_so_far": generated,
        }
        if clock:
            known = self.calibration or dict.fromkeys(CLOCK, np.nan)
            values["question_time_sec"] = calibrated_seconds(generated, self.num_prompt_tokens, known)
        return values

    def _spreads(self, ks: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the extended features that have nothing to do with votes."""
        kept, number = self.of("kept"), np.asarray(ks)[:, None]
        values = {"num_prompt_tokens": self.num_prompt_tokens, "cut_share": self._totals("cut", ks) / number}
        for name, each in (
            ("length", kept),
            ("logprob", self.of("token_logprobs") / kept),
            ("entropy", self.of("entropies") / kept),
            ("top1", self.of("top1") / kept),
        ):
            means = np.cumsum(each, axis=0)[number[:, 0] - 1] / number
            squares = [np.cumsum((each[:k] - mean) ** 2, axis=0)[-1] for k, mean in zip(ks, means, strict=True)]
            values |= {f"{name}_mean": means, f"{name}_std": np.sqrt(squares / number)}
            values[f"{name}_max"] = np.maximum.accumulate(each, axis=0)[number[:, 0] - 1]
            values[f"{name}_min"] = np.minimum.accumulate(each, axis=0)[number[:, 0] - 1]
        return values

    def _tallies(self, ks: Sequence[int], arms: Sequence[str]) -> Iterator[tuple[int, Tally, dict[str, Tally]]]:
        """Yield each k with the votes of all trajectories so far, and with those of each of these arms."""
        classes, num_rows = self.of("classes").astype(np.int64), self.shown.shape[2]
        num_classes = int(classes.max(initial=0)) + 1
        pooled, own = Tally(num_rows, num_classes), {arm: Tally(num_rows, num_classes) for arm in arms}
        numbers, logprobs = numbered(self.arms), self.of("logprobs")
        sums = np.stack([self.of(name) for name in ("kept", "entropies", "top1")], axis=1)
        for i, arm in enumerate(self.arms[: ks[-1]]):
            pooled.add(classes[i], logprobs[i], sums[i], numbers[i])
            if own:
                own[arm].add(classes[i], logprobs[i], sums[i])
            if i + 1 in ks:
                yield i + 1, pooled, own

    def _votes(self, ks: Sequence[int], ladder: Ladder, by_arm: bool) -> dict[str, np.ndarray]:
        """Return the features of votes, and those of the ladder where these are asked for."""
        made = []
        for k, pooled, own in self._tallies(ks, ladder.arms if by_arm else ()):
            made.append(_vote_features(pooled))
            if by_arm:
                coming = ladder.rung_after(k)
                root = math.sqrt(k)
                made[-1] |= _arm_features(pooled, own) | {
                    "root_k": np.array(root),
                    "lead_by_root_k": made[-1]["vote_margin"] * root,
                    "rung": np.array(ladder.ks.index(k)),
                    "next_count": np.array(coming.count if coming else 0),
                    **{f"next_is_{arm}": np.array(coming is not None and coming.arm == arm) for arm in own},
                }
        shape = self.shown.shape[2:]
        return {name: np.stack([np.broadcast_to(of[name], shape) for of in made]) for name in made[0]}


def _vote_features(tally: Tally) -> dict[str, np.ndarray]:
    """Return the extended features of the votes so far: shape (N,) each."""
    sizes = -np.sort(-tally.counts, axis=1)
    answered, distinct = sizes.sum(axis=1), (sizes > 0).sum(axis=1)
    shares = sizes / np.maximum(answered, 1)[:, None]
    ratios = np.where(sizes > 0, answered[:, None] / np.maximum(sizes, 1), 1.0)
    each, where = np.unique(ratios, return_inverse=True)
    logs = np.array([math.log(ratio) for ratio in each.tolist()])[where].reshape(sizes.shape)
    leads = np.arange(tally.counts.shape[1]) == tally.leaders()[:, None]
    best, other = (np.where(mask, tally.best, -np.inf).max(axis=1) for mask in (leads, ~leads))
    several = distinct > 1
    return {
        "answer_agreement": sizes[:, 0] / tally.k,
        "vote_margin": (sizes[:, 0] - sizes[:, 1]) / tally.k,
        "num_distinct_answers": distinct,
        "unanswered_share": (tally.k - answered) / tally.k,
        "vote_entropy": np.cumsum(shares * logs, axis=1)[:, -1],
        "answer_logprob_gap": np.where(several, best, 0.0) - np.where(several, other, 0.0),
    }


def _arm_features(pooled: Tally, own: Mapping[str, Tally]) -> dict[str, np.ndarray]:
    """Return what arms say each, and whether they agree: shape (N,) each."""
    leader, rows, none = pooled.leaders(), np.arange(len(pooled.counts)), np.zeros(len(pooled.counts))
    leaders = {arm: tally.leaders() for arm, tally in own.items()}
    pairs = [(leaders[a] == leaders[b], (leaders[a] >= 0) & (leaders[b] >= 0)) for a, b in combinations(own, 2)]
    number, same = sum((both for _, both in pairs), none), sum((alike & both for alike, both in pairs), none)
    values = {"arms_agree": np.where(number > 0, same / np.maximum(number, 1), 1.0)}
    for arm, tally in own.items():
        answers, k = tally.counts.sum(axis=1), max(tally.k, 1)
        tokens, logprob = tally.sums[:2]
        values |= {
            f"n_{arm}": none + tally.k,
            f"agreement_{arm}": np.where(leader >= 0, tally.counts[rows, leader], 0) / np.maximum(answers, 1),
            f"own_share_{arm}": tally.counts.max(axis=1) / k,
            f"logprob_{arm}": logprob / np.maximum(tokens, 1),
            f"length_{arm}": tokens / k,
        }
    return values


@dataclass(frozen=True, slots=True, eq=False)
class CheckpointFeatures:
    """What a controller sees of one question at one checkpoint."""

    rows: Rows
    """The one row of what the k trajectories show."""
    ladder: Ladder
    """The ladder that is climbed."""
    hidden: np.ndarray
    """Hidden state, the mean over the k trajectories of :func:`pool_hidden`: shape (D,), float32."""
    embedding: np.ndarray
    """Question embedding: shape (E,), float32."""
    prompt: np.ndarray
    """Hidden states of the prompt, see :attr:`feature_store.records.Question.prompt_hidden`: shape (P,), float32."""

    @property
    def scalars(self) -> np.ndarray:
        """The :data:`SCALAR_FEATURES`: shape (6,), float64."""
        return scalars_of([self], "published")[0]

    @property
    def votes(self) -> np.ndarray:
        """What names the votes so far, see :attr:`dps.decide.seen.Seen.votes`: shape (2,), int64."""
        return self.rows.votes((len(self.rows.arms),))[0, 0]


def scalars_of(features: Sequence[CheckpointFeatures], feature_set: str) -> np.ndarray:
    """Return the scalars of N >= 1 questions at once, in the order of :func:`feature_names`: shape (N, F), float64.

    Questions with the same trajectories behind them, as arms go, cost little more than one.
    """
    made: dict[int, np.ndarray] = {}
    alike: dict[Any, list[int]] = {}
    for i, each in enumerate(features):
        key = each.rows.arms, each.ladder, tuple(each.rows.calibration.items())
        alike.setdefault(key, []).append(i)
    for (arms, ladder, _), places in alike.items():
        rows = [features[i].rows for i in places]
        shown, lengths = (
            np.concatenate([getattr(row, name) for row in rows], axis=-1) for name in ("shown", "num_prompt_tokens")
        )
        joined = Rows(shown, arms, lengths, rows[0].calibration)
        made |= zip(places, joined.scalars(feature_set, (len(arms),), ladder)[:, 0], strict=True)
    return np.stack([made[i] for i in range(len(features))])


def calibrated_seconds(
    num_tokens: np.ndarray, num_prompt_tokens: np.ndarray, calibration: Mapping[str, float]
) -> np.ndarray:
    """Return the time of generated tokens (rejected ones included) and one prefill, seconds (METHOD section 5)."""
    return num_tokens * calibration["seconds_per_token"] + num_prompt_tokens * calibration["prefill_seconds_per_token"]


def pool_hidden(trajectory: Trajectory) -> np.ndarray:
    """Return the mean over tokens of a trajectory's hidden states, from its block averages: shape (D,), float32."""
    if len(trajectory.hidden) == 1:
        return trajectory.hidden[-1]
    weights = trajectory.block_num_tokens / trajectory.block_num_tokens.sum()
    return (weights[:, None] * trajectory.hidden).sum(axis=0).astype(np.float32)


def checkpoint_features(
    trajectories: Sequence[Trajectory],
    *,
    num_prompt_tokens: int,
    embedding: np.ndarray,
    calibration: Mapping[str, float],
    prompt_hidden: np.ndarray | None = None,
    ladder: Ladder | None = None,
) -> CheckpointFeatures:
    """Return the features of one question from its k >= 1 trajectories so far (METHOD section 3).

    Args:
        trajectories: In the order of the ladder.
        num_prompt_tokens: Of the question.
        embedding: The question's: shape (E,).
        calibration: The clock of the run that trained the controller.
        prompt_hidden: Hidden states of the prompt, shape (P,); none where not given.
        ladder: The controller's, a rung of which ends at k; the first rung is the only one where not given.
    """
    shown = np.array([columns_of(t) for t in trajectories], dtype=np.float64).T[..., None]
    arms = tuple(t.arm for t in trajectories)
    rows = Rows(shown, arms, np.array([num_prompt_tokens]), calibration)
    vectors = np.stack([pool_hidden(t) for t in trajectories]).astype(np.float64)
    return CheckpointFeatures(
        rows=rows,
        ladder=ladder or from_ks(arms[0], [len(arms)]),
        hidden=vectors.mean(axis=0).astype(np.float32),
        embedding=np.asarray(embedding, dtype=np.float32),
        prompt=np.asarray([] if prompt_hidden is None else prompt_hidden, dtype=np.float32),
    )
