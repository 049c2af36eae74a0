"""Features of a checkpoint (METHOD section 3): pure functions of finished trajectories.

Training reads these from a store, a live run has just finished them; a controller sees the same numbers in both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

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

SCALARS, HIDDEN, EMBEDDING = "scalars", "hidden", "embedding"
PARTS: frozenset[str] = frozenset({SCALARS, HIDDEN, EMBEDDING})
"""The parts of :class:`CheckpointFeatures`; a controller says which of them it looks at."""

FeatureSet = Literal["published", "extended"]
FEATURE_SETS: dict[str, tuple[str, ...]] = {
    "published": SCALAR_FEATURES,
    "extended": SCALAR_FEATURES + EXTENDED_FEATURES,
}
"""The scalars that a controller may be trained on."""


@dataclass(frozen=True, slots=True, eq=False)
class CheckpointFeatures:
    """What a controller sees of one question at one checkpoint."""

    scalars: np.ndarray
    """The :data:`SCALAR_FEATURES`: shape (6,), float64."""
    hidden: np.ndarray
    """Hidden state, the mean over the k trajectories of :func:`pool_hidden`: shape (D,), float32."""
    embedding: np.ndarray
    """Question embedding: shape (E,), float32."""
    extended: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """The :data:`EXTENDED_FEATURES`: shape (17,), float64."""

    def scalars_of(self, feature_set: str) -> np.ndarray:
        """Return the scalars of a feature set, a key of :data:`FEATURE_SETS`: shape (F,), float64."""
        return np.concatenate([self.scalars, self.extended]) if feature_set == "extended" else self.scalars


@dataclass(frozen=True, slots=True)
class TrajectorySums:
    """What the scalars need of one trajectory; a table reads each trajectory once and uses it in many rows."""

    tokens: int
    """Accepted tokens."""
    logprob: float
    """Sum of log p over them, nats."""
    entropy: float
    """Sum of the entropies they were drawn under, nats."""
    top1: float
    """Sum of the top-1 probabilities."""
    accepted: int
    """Accepted MH steps."""
    proposed: int
    """MH steps."""
    generated: int
    """Generated tokens, rejected ones included."""
    answer_class: int
    """Class of the answer, -1 for none."""
    base_logprob: float
    """Log p of the response, by which a vote breaks ties, nats."""
    cut: bool
    """Whether the response was cut at T_max."""


def sums_of(trajectory: Trajectory) -> TrajectorySums:
    """Return what the scalars need of a trajectory."""
    return TrajectorySums(
        tokens=int(trajectory.block_num_tokens.sum()),
        logprob=float(trajectory.block_logprob.sum()),
        entropy=float(trajectory.block_entropy.sum()),
        top1=float(trajectory.block_top1.sum()),
        accepted=trajectory.mh_accepted,
        proposed=trajectory.mh_proposed,
        generated=trajectory.num_generated_tokens,
        answer_class=trajectory.answer_class,
        base_logprob=trajectory.base_logprob,
        cut=trajectory.ending == "length",
    )


def calibrated_seconds(num_tokens: int, num_prompt_tokens: int, calibration: Mapping[str, float]) -> float:
    """Return the time of generated tokens (rejected ones included) and one prefill, seconds (METHOD section 5)."""
    return num_tokens * calibration["seconds_per_token"] + num_prompt_tokens * calibration["prefill_seconds_per_token"]


def pool_hidden(trajectory: Trajectory) -> np.ndarray:
    """Return the mean over tokens of a trajectory's hidden states, from its block averages: shape (D,), float32."""
    if len(trajectory.hidden) == 1:
        return trajectory.hidden[-1]
    weights = trajectory.block_num_tokens / trajectory.block_num_tokens.sum()
    return (weights[:, None] * trajectory.hidden).sum(axis=0).astype(np.float32)


def scalar_features(
    sums: Sequence[TrajectorySums], num_prompt_tokens: int, calibration: Mapping[str, float]
) -> list[float]:
    """Return the published six of k >= 1 trajectories, in the order of :data:`SCALAR_FEATURES`.

    With the accepted tokens of all k trajectories pooled (each token counts once, N of them): perplexity
    ``exp(-sum log p / N)``, mean entropy, mean top-1 probability; acceptance ratio ``accepted / proposed`` with 0 of 0
    counted as 1; the calibrated time of all generated tokens and one prefill; k.
    """
    num_tokens = sum(s.tokens for s in sums)
    proposed = sum(s.proposed for s in sums)
    values = {
        "mcmc_perplexity": float(np.exp(-sum(s.logprob for s in sums) / num_tokens)),
        "mcmc_entropy": sum(s.entropy for s in sums) / num_tokens,
        "mcmc_self_confidence": sum(s.top1 for s in sums) / num_tokens,
        "acceptance_ratio": sum(s.accepted for s in sums) / proposed if proposed else 1.0,
        "question_time_sec": calibrated_seconds(sum(s.generated for s in sums), num_prompt_tokens, calibration),
        "current_k": float(len(sums)),
    }
    return [values[name] for name in SCALAR_FEATURES]


def extended_features(sums: Sequence[TrajectorySums], num_prompt_tokens: int) -> list[float]:
    """Return the extended features of k >= 1 trajectories, in the order of :data:`EXTENDED_FEATURES`; always finite.

    Spreads are over the trajectories (0 for one), log p and entropy means per token in nats, ``vote_entropy`` that of
    the classes' shares among the answered, ``answer_logprob_gap`` the best log p in the majority's class minus the best
    in any other (0 where there is no other). Classes enter by their sizes only, so their numbering changes nothing.
    """
    k = len(sums)
    sizes = Counter(s.answer_class for s in sums if s.answer_class >= 0)
    counts = sorted(sizes.values(), reverse=True)
    answered = sum(counts)
    largest, second = [*counts, 0, 0][:2]
    best = {c: max(s.base_logprob for s in sums if s.answer_class == c) for c in sizes}
    gap = 0.0
    if len(best) > 1:
        winner = max(best, key=lambda c: (sizes[c], best[c]))
        gap = best[winner] - max(logprob for c, logprob in best.items() if c != winner)
    lengths = [float(s.tokens) for s in sums]
    logprobs = [s.logprob / s.tokens for s in sums]
    values = {
        "answer_agreement": largest / k,
        "vote_margin": (largest - second) / k,
        "num_distinct_answers": float(len(counts)),
        "unanswered_share": (k - answered) / k,
        "vote_entropy": sum(n / answered * math.log(answered / n) for n in counts),
        "answer_logprob_gap": gap,
        "length_mean": sum(lengths) / k,
        "length_std": _spread(lengths),
        "length_max": max(lengths),
        "cut_share": sum(s.cut for s in sums) / k,
        "logprob_mean": sum(logprobs) / k,
        "logprob_std": _spread(logprobs),
        "logprob_min": min(logprobs),
        "logprob_max": max(logprobs),
        "entropy_std": _spread([s.entropy / s.tokens for s in sums]),
        "top1_std": _spread([s.top1 / s.tokens for s in sums]),
        "num_prompt_tokens": float(num_prompt_tokens),
    }
    return [values[name] for name in EXTENDED_FEATURES]


def _spread(values: Sequence[float]) -> float:
    """Return the standard deviation over these values themselves (not of a sample): 0 for one."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def checkpoint_features(
    trajectories: Sequence[Trajectory],
    *,
    num_prompt_tokens: int,
    embedding: np.ndarray,
    calibration: Mapping[str, float],
) -> CheckpointFeatures:
    """Return the features of one question from its k >= 1 trajectories so far (METHOD section 3).

    ``embedding`` is the question's, shape (E,); ``calibration`` the clock of the run that trained the controller.
    """
    sums = [sums_of(t) for t in trajectories]
    vectors = np.stack([pool_hidden(t) for t in trajectories]).astype(np.float64)
    return CheckpointFeatures(
        scalars=np.array(scalar_features(sums, num_prompt_tokens, calibration)),
        hidden=vectors.mean(axis=0).astype(np.float32),
        embedding=np.asarray(embedding, dtype=np.float32),
        extended=np.array(extended_features(sums, num_prompt_tokens)),
    )
