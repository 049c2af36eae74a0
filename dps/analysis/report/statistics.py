"""Numbers of a report: pure functions from a run's records to accuracies, costs and paired comparisons.

``write`` reads the stores, this module turns each into :class:`Outcomes` (one number per question and quantity) and
compares them at matched tokens; ``dps.estimates`` has the intervals, ``findings`` says in words what came out,
``figures`` and ``page`` show it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dps.analysis.replay.samples import orders_of
from dps.decide.aggregate import has_grade
from dps.decide.features import calibrated_seconds
from dps.decide.seen import Tally
from dps.errors import InputError
from dps.estimates import Estimate, bounded, estimate, ratio
from feature_store.records import Manifest, Question

__all__ = [
    "ORDERS",
    "Estimate",
    "Match",
    "Outcomes",
    "common_questions",
    "estimate",
    "fixed_ks",
    "match_tokens",
    "outcomes_of",
    "policy_name",
    "ratio",
    "share_at_k",
]

ORDERS = 32
"""Orders of a question's trajectories that a fixed k is averaged over; the same as those of a replay by default."""

_TINY = 1e-12  # rounding of means that are exactly equal on paper, e.g. one question of difference among 240


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """What one policy did on every question of its store; all arrays have shape (N,), in order of question id."""

    policy: str
    """``fixed-k4``, ``gbdt``, ``plain-k8``, ..."""
    series: str
    """Name of the store's policy: ``power``, ``plain``, ``lowtemp`` or the controller's; its k's are one curve."""
    family: str
    """``fixed`` or ``dynamic``."""
    k: int | None
    """Trajectories per question of a fixed policy; None where the controller decides."""
    question_ids: tuple[str, ...]
    """Sorted and unique."""
    correct: np.ndarray
    """1 where the answer is right, 0 where it is wrong or cannot be graded, NaN where the question has no grade; of a
    fixed k the mean over orders of the trajectories; float64."""
    tokens: np.ndarray
    """Generated tokens, rejected ones included; float64."""
    compute_s: np.ndarray
    """Measured compute seconds; float64."""
    latency_s: np.ndarray
    """Wall-clock seconds from admission to answer; float64."""
    calibrated_s: np.ndarray
    """Seconds on the calibrated clock; float64, NaN without a clock."""
    num_trajectories: np.ndarray
    """k of each question; int64."""
    ungradable: np.ndarray
    """Whether the question has a grade, but the grader could not decide on the answer (in some order); bool."""
    listed: bool = True
    """Whether the run names this k. The k's between serve comparisons at equal tokens and have no row of their own."""

    def on(self, question_ids: Iterable[str]) -> Outcomes:
        """Return the outcomes on these questions only, all of which must be there; ids are sorted."""
        wanted = sorted(question_ids)
        position = {name: i for i, name in enumerate(self.question_ids)}
        rows = np.array([position[name] for name in wanted], dtype=np.int64)
        return replace(
            self,
            question_ids=tuple(wanted),
            correct=self.correct[rows],
            ungradable=self.ungradable[rows],
            tokens=self.tokens[rows],
            compute_s=self.compute_s[rows],
            latency_s=self.latency_s[rows],
            calibrated_s=self.calibrated_s[rows],
            num_trajectories=self.num_trajectories[rows],
        )


@dataclass(frozen=True, slots=True)
class Match:
    """A policy beside a rival curve that spends the same tokens."""

    policy: str
    """The policy."""
    rival: str
    """Series of the rival curve."""
    k_below: int
    """The rival's k with at most the policy's tokens."""
    k_above: int
    """The rival's next k, with more; equal to ``k_below`` where that is the largest that was run."""
    weight_above: float
    """Share of questions that the mixture answers with ``k_above``, in [0, 1)."""
    tokens: float
    """Mean tokens of the policy."""
    accuracy: float
    """Accuracy of the policy."""
    rival_tokens: float
    """Mean tokens of the mixture: the same, or fewer where the rival's largest k spends less."""
    rival_accuracy: float
    """Accuracy of the mixture."""
    difference: Estimate
    """Policy minus rival, paired by question."""

    @property
    def exhausted(self) -> bool:
        """Whether the rival was not run with as many tokens as the policy spends."""
        return self.rival_tokens < self.tokens * (1 - 1e-9)


def fixed_ks(policy: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the prefixes of a fixed store that are policies: its ``ks``, else start, start + step, ..., maximum."""
    if policy.get("ks") is not None:
        return tuple(sorted(int(k) for k in policy["ks"]))
    return tuple(range(int(policy["start"]), int(policy["maximum"]) + 1, int(policy["step"])))


def outcomes_of(
    manifest: Manifest, questions: Iterable[Question], calibration: Mapping[str, float] | None
) -> list[Outcomes]:
    """Reduce a store's records to one :class:`Outcomes` per policy.

    A ``fixed`` store gives one policy for every k up to its largest, ``listed`` those that it was run for. The
    trajectories are exchangeable, so each is the mean over :data:`ORDERS` orders of them of what the first k of an
    order give: their answer by the store's aggregator, the sum of their tokens, the sum of their compute seconds with
    the question's one prefill, and the time until the last of them ended. A ``dynamic`` store gives one policy with the
    recorded answer and latency; its compute seconds also count the question's embedding and the controller, which fixed
    k does not need.

    Args:
        manifest: The store's manifest.
        questions: Its complete questions, in any order; read once.
        calibration: The clock of ``calibrated_s``, one for all stores that are compared; None for none.

    Raises:
        InputError: If a question has fewer trajectories than the store's policy says.

    Source:
        METHOD sections 2, 4 and 5.
    """
    name = str(manifest.policy["name"])
    if manifest.policy.get("family") == "dynamic":
        rows = sorted(((q.question_id, _recorded(q)) for q in questions), key=lambda row: row[0])
        columns = np.array([values for _, values in rows], dtype=np.float64).reshape(len(rows), _COLUMNS).T
        return [_outcomes(name, None, [i for i, _ in rows], columns, calibration, listed=True)]
    ks = fixed_ks(manifest.policy)
    kept: list[tuple[str, np.ndarray, np.ndarray]] = []
    for question in questions:
        if question.k < ks[-1]:
            raise InputError(
                f"Question {question.question_id} of the policy {name} has {question.k} trajectories where its "
                f"manifest says {ks[-1]}: evaluate it again into another folder."
            )
        about = np.array([question.prefill_s, question.num_prompt_tokens, has_grade(question)], dtype=np.float64)
        kept.append((question.question_id, about, _trajectories(question, ks[-1])))
    kept.sort(key=lambda one: one[0])
    ids = [one[0] for one in kept]
    every = _every_k(kept, ks[-1], manifest.aggregator)
    return [_outcomes(name, k, ids, every[k], calibration, listed=k in ks) for k in range(1, ks[-1] + 1)]


def policy_name(series: str, k: int | None) -> str:
    """Return a policy's name in reports: ``fixed-k8`` for power sampling, ``plain-k8``, or the controller's name."""
    if k is None:
        return series
    return f"fixed-k{k}" if series == "power" else f"{series}-k{k}"


_QUESTIONS = 256
"""Questions that are averaged over orders at a time: bounds the memory, changes no result."""
_COLUMNS = 7
"""Correct, tokens, compute seconds, latency, k, whether the answer could not be graded, prompt tokens."""


def _outcomes(
    series: str,
    k: int | None,
    question_ids: Sequence[str],
    columns: np.ndarray,
    calibration: Mapping[str, float] | None,
    *,
    listed: bool,
) -> Outcomes:
    """Return one policy of columns of shape (7, N), see :data:`_COLUMNS`."""
    correct, tokens, compute_s, latency_s, num_trajectories, ungradable, prompt = columns
    clock = np.full(len(tokens), np.nan) if calibration is None else calibrated_seconds(tokens, prompt, calibration)
    return Outcomes(
        policy=policy_name(series, k),
        series=series,
        family="dynamic" if k is None else "fixed",
        k=k,
        question_ids=tuple(question_ids),
        correct=correct,
        tokens=tokens,
        compute_s=compute_s,
        latency_s=latency_s,
        calibrated_s=np.asarray(clock, dtype=np.float64),
        num_trajectories=num_trajectories.astype(np.int64),
        ungradable=ungradable > 0,
        listed=listed,
    )


def _recorded(question: Question) -> tuple[float, ...]:
    """Return one question's columns under the policy that ran it."""
    used, graded = question.trajectories, has_grade(question)
    return (
        float(bool(question.correct)) if graded else np.nan,
        sum(t.num_generated_tokens for t in used),
        sum(t.compute_s for t in used) + question.prefill_s + question.embedding_s + question.controller_s,
        question.latency_s,
        len(used),
        graded and question.correct is None,
        question.num_prompt_tokens,
    )


def _trajectories(question: Question, count: int) -> np.ndarray:
    """Return class, log p, grade (NaN where there is none), tokens, compute and end of trajectories: shape (6, K)."""
    return np.array(
        [
            (
                t.answer_class,
                t.base_logprob,
                np.nan if t.correct is None else float(t.correct),
                t.num_generated_tokens,
                t.compute_s,
                t.finished_s,
            )
            for t in question.trajectories[:count]
        ],
        dtype=np.float64,
    ).T


def _every_k(
    kept: Sequence[tuple[str, np.ndarray, np.ndarray]], maximum: int, aggregator: str
) -> dict[int, np.ndarray]:
    """Return the columns of every k, averaged over orders: shape (7, N) each.

    Args:
        kept: Id of each question; its prefill seconds, prompt tokens and whether it has a grade; its trajectories.
        maximum: K.
        aggregator: How k answers become one.
    """
    parts = [_averaged(kept[at : at + _QUESTIONS], maximum, aggregator) for at in range(0, len(kept), _QUESTIONS)]
    nothing = np.zeros((_COLUMNS, 0))
    return {k: np.concatenate([nothing, *(part[k - 1] for part in parts)], axis=1) for k in range(1, maximum + 1)}


def _averaged(kept: Sequence[tuple[str, np.ndarray, np.ndarray]], maximum: int, aggregator: str) -> list[np.ndarray]:
    """Return the same of some questions: shape (7, N) for each k from 1."""
    count = len(kept)
    prefill_s, prompt, graded = np.stack([about for _, about, _ in kept]).T
    orders = np.stack([orders_of(name, maximum, ORDERS, 0) for name, _, _ in kept])
    table = np.stack([columns for _, _, columns in kept])  # (N, 6, K)
    ordered = np.take_along_axis(table[:, None], orders[:, :, None], axis=3).reshape(count * ORDERS, 6, maximum)
    classes, logprobs, grades, generated, compute_s, finished_s = ordered.transpose(1, 2, 0)
    tally = Tally(count * ORDERS, int(classes.max()) + 1)
    latest, unseen = np.zeros(count * ORDERS), np.ones((3, count * ORDERS))  # no rule looks at these sums
    spent = np.cumsum(np.stack([generated, compute_s]), axis=1)
    found = []
    for k in range(1, maximum + 1):
        tally.add(classes[k - 1].astype(np.int64), logprobs[k - 1], unseen)
        latest = np.maximum(latest, finished_s[k - 1])
        winners = tally.winners(aggregator)
        # Without any answer the question is answered wrongly; an answer that nobody could grade is not right either.
        grade = np.where(winners >= 0, grades[winners, np.arange(len(winners))], 0.0)
        rows = np.stack([np.nan_to_num(grade), *spent[:, k - 1], latest, np.full(len(latest), k), np.isnan(grade)])
        columns = rows.reshape(len(rows), count, ORDERS).mean(axis=2)
        columns[0] = np.where(graded > 0, columns[0], np.nan)
        columns[2] += prefill_s
        columns[5] *= graded
        found.append(np.concatenate([columns, prompt[None]]))
    return found


def common_questions(outcomes: Sequence[Outcomes]) -> tuple[str, ...]:
    """Return the ids of the questions that all policies have, sorted."""
    return tuple(sorted(set.intersection(*(set(o.question_ids) for o in outcomes)))) if outcomes else ()


def match_tokens(policy: Outcomes, curve: Sequence[Outcomes]) -> Match | None:
    """Compare a policy with a rival's curve at the policy's mean tokens, on the same questions.

    Between two k's of the rival, the mixture that answers a share ``w`` of the questions with the larger k spends
    ``(1 - w) t_below + w t_above`` tokens; ``w`` is chosen to spend what the policy spends. Its expected accuracy is
    the same mixture of the two, so this is a policy that one could run, not only a line in a figure. Beyond the rival's
    largest k, that k is taken: it spends fewer tokens, and more of it was not measured.

    Args:
        policy: The policy, on N questions.
        curve: The rival's k's on the same questions.

    Returns:
        None if even the rival's smallest k spends more than the policy.

    Note:
        ``w`` is taken as known, so the standard error is that of the accuracies at given tokens.

    Source:
        METHOD section 6.
    """
    spent = float(policy.tokens.mean())
    ordered = sorted(curve, key=lambda o: float(o.tokens.mean()))
    means = [float(o.tokens.mean()) for o in ordered]
    below = int(np.searchsorted(means, spent * (1 + _TINY), side="right")) - 1
    if below < 0:
        return None
    above = min(below + 1, len(ordered) - 1)
    weight = (spent - means[below]) / (means[above] - means[below]) if above > below else 0.0
    weight = weight if weight > _TINY else 0.0
    mixed = ordered[below].correct if weight == 0 else _mix(ordered[below].correct, ordered[above].correct, weight)
    both = ~np.isnan(mixed) & ~np.isnan(policy.correct)
    lower, upper = ordered[below], ordered[above if weight > 0 else below]
    return Match(
        policy=policy.policy,
        rival=lower.series,
        k_below=int(lower.num_trajectories.max()),
        k_above=int(upper.num_trajectories.max()),
        weight_above=weight,
        tokens=spent,
        accuracy=float(policy.correct[both].mean()) if both.any() else np.nan,
        rival_tokens=(1 - weight) * means[below] + weight * means[above],
        rival_accuracy=float(mixed[both].mean()) if both.any() else np.nan,
        difference=bounded((policy.correct - mixed)[both]),
    )


def _mix(below: np.ndarray, above: np.ndarray, weight: float) -> np.ndarray:
    return (1 - weight) * below + weight * above


def share_at_k(outcomes: Outcomes) -> dict[int, float]:
    """Return the share of questions that ended with each k, over the k's that occur."""
    ks, counts = np.unique(outcomes.num_trajectories, return_counts=True)
    return {int(k): int(n) / len(outcomes.question_ids) for k, n in zip(ks, counts, strict=True)}
