"""Numbers of a report: pure functions from a run's records to accuracies, costs and paired comparisons.

``write`` reads the stores, this module turns each into :class:`Outcomes` (one number per question and quantity) and
compares them; ``findings`` says in words what came out, ``figures`` and ``page`` show it. Every standard error is over
questions: the trajectories of one question are not independent of one another, questions are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dps.aggregate import answer_of
from dps.errors import InputError
from dps.features import calibrated_seconds
from feature_store.records import Manifest, Question

SURE = 2.0
"""A difference counts as decided beyond this many standard errors."""

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
    """1 where the answer is right, 0 where it is wrong or cannot be graded, NaN without a gold answer; float64."""
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
    """Whether there is a gold answer, but the grader could not decide; bool."""

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
class Estimate:
    """A mean over questions with its standard error."""

    value: float
    """The mean; NaN over no question."""
    stderr: float
    """Its standard error; NaN for fewer than two questions."""
    num_questions: int
    """How many questions it is over."""

    @property
    def sign(self) -> int:
        """1 or -1 where the value is more than two standard errors above or below 0, else 0."""
        if not abs(self.value) > SURE * self.stderr + _TINY:  # also for NaN
            return 0
        return 1 if self.value > 0 else -1

    def at_least(self, stderrs: float) -> bool:
        """Whether the value is no further below 0 than that many standard errors."""
        return bool(self.value >= -stderrs * self.stderr - _TINY)


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

    A ``fixed`` store gives one policy for each k: the first k trajectories, their answer by the store's aggregator, and
    what they cost: the sum of their tokens; the sum of their compute seconds and the question's one prefill; the time
    until the last of them ended. A ``dynamic`` store gives one policy with the recorded answer and latency; its compute
    seconds also count the question's embedding and the controller, which fixed k does not need.

    Args:
        manifest: The store's manifest.
        questions: Its complete questions, in any order; read once.
        calibration: The clock of ``calibrated_s``, one for all stores that are compared; None for none.

    Raises:
        InputError: If a question has fewer trajectories than the store's policy says.

    Source:
        METHOD sections 2 and 5.
    """
    name, dynamic = str(manifest.policy["name"]), manifest.policy.get("family") == "dynamic"
    ks: tuple[int | None, ...] = (None,) if dynamic else fixed_ks(manifest.policy)
    rows: dict[int | None, list[tuple[float, ...]]] = {k: [] for k in ks}
    question_ids: list[str] = []
    for question in questions:
        if not dynamic and question.k < ks[-1]:
            raise InputError(
                f"Question {question.question_id} of the policy {name} has {question.k} trajectories where its "
                f"manifest says {ks[-1]}: evaluate it again into another folder."
            )
        question_ids.append(question.question_id)
        for k in ks:
            rows[k].append(_outcome(question, k, manifest.aggregator, calibration))
    order = sorted(range(len(question_ids)), key=question_ids.__getitem__)
    result = []
    for k in ks:
        columns = np.array([rows[k][i] for i in order], dtype=np.float64).reshape(len(order), 7).T
        result.append(
            Outcomes(
                policy=policy_name(name, k),
                series=name,
                family="dynamic" if dynamic else "fixed",
                k=k,
                question_ids=tuple(question_ids[i] for i in order),
                correct=columns[0],
                tokens=columns[1],
                compute_s=columns[2],
                latency_s=columns[3],
                calibrated_s=columns[4],
                num_trajectories=columns[5].astype(np.int64),
                ungradable=columns[6].astype(bool),
            )
        )
    return result


def policy_name(series: str, k: int | None) -> str:
    """Return a policy's name in reports: ``fixed-k8`` for power sampling, ``plain-k8``, or the controller's name."""
    if k is None:
        return series
    return f"fixed-k{k}" if series == "power" else f"{series}-k{k}"


def _outcome(
    question: Question, k: int | None, aggregator: str, calibration: Mapping[str, float] | None
) -> tuple[float, ...]:
    """Return one question's numbers under one policy, in the order of the columns of :func:`outcomes_of`.

    They are correct, tokens, compute, latency and calibrated seconds, k, and whether the answer could not be graded.
    """
    used = question.trajectories[:k]
    tokens = sum(t.num_generated_tokens for t in used)
    compute_s = sum(t.compute_s for t in used) + question.prefill_s
    if k is None:
        correct, latency_s = question.correct, question.latency_s
        compute_s += question.embedding_s + question.controller_s
    else:
        correct = answer_of(used, aggregator)[1]
        latency_s = max(t.finished_s for t in used)
    clock = np.nan if calibration is None else calibrated_seconds(tokens, question.num_prompt_tokens, calibration)
    ungradable = correct is None and question.gold is not None
    grade = 0.0 if ungradable else np.nan if correct is None else float(correct)
    return (grade, tokens, compute_s, latency_s, clock, len(used), ungradable)


def estimate(values: np.ndarray) -> Estimate:
    """Return the mean and its standard error ``std(values, ddof=1) / sqrt(N)``, leaving NaN out.

    Args:
        values: One value per question, shape (N,); NaN where it is not known.
    """
    known = values[~np.isnan(values)]
    count = len(known)
    if count == 0:
        return Estimate(np.nan, np.nan, 0)
    stderr = float(np.std(known, ddof=1) / np.sqrt(count)) if count > 1 else np.nan
    return Estimate(float(known.mean()), stderr, count)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> Estimate:
    """Return the ratio of two means over the same questions, its standard error by the delta method.

    ``r = mean(a) / mean(b)``; the standard error is that of the mean of ``(a - r b) / mean(b)``.

    Args:
        numerator: a, one value per question, shape (N,).
        denominator: b on the same questions, shape (N,), of positive mean.
    """
    scale = float(denominator.mean())
    value = float(numerator.mean()) / scale
    return Estimate(value, estimate((numerator - value * denominator) / scale).stderr, len(numerator))


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
        difference=estimate((policy.correct - mixed)[both]),
    )


def _mix(below: np.ndarray, above: np.ndarray, weight: float) -> np.ndarray:
    return (1 - weight) * below + weight * above


def share_at_k(outcomes: Outcomes) -> dict[int, float]:
    """Return the share of questions that ended with each k, over the k's that occur."""
    ks, counts = np.unique(outcomes.num_trajectories, return_counts=True)
    return {int(k): int(n) / len(outcomes.question_ids) for k, n in zip(ks, counts, strict=True)}
