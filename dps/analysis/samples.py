"""Samples to success: how many trajectories of a question it takes until one is right, from finished runs.

The trajectories of all runs are put one after another, run by run and by index, as the published code does with seeds.
A question of which none is right is *censored*: it takes more than there are. The trajectories are exchangeable, so the
number's mean over all orders of them says the same with less noise: (n + 1) / (c + 1) with c right of n.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dps.analysis.metrics.export import SIDES, side_policies
from dps.analysis.metrics.measures import METRICS, Measures, measure
from dps.errors import InputError
from feature_store import Question

NO_MEASURES = Measures(float("nan"), float("nan"), float("nan"))

FEATURES = tuple(f"{side}_{metric}" for side in SIDES for metric in METRICS)
"""The nine metrics of a question, in the published order."""
COLUMNS = (
    *("question", "correct_answer", *FEATURES, "samples_to_success", "total_samples"),
    *("dynamic_metric", "dynamic_stop_triggered"),
    *("question_id", "num_right", "num_ungradable", "censored", "expected_samples_to_success"),
)
"""The published columns of the table of questions, then ours."""


@dataclass(slots=True)
class Pooled:
    """What the runs say of one question."""

    question: str
    """As the benchmark states it."""
    gold: str | None
    """The gold answer."""
    correct: dict[str, list[bool | None]] = field(default_factory=dict)
    """By policy, whether each trajectory is right, in order of run and index; None where it could not be graded."""
    measures: dict[str, Measures] = field(default_factory=dict)
    """By policy, the metrics of the first trajectory: what is known after one sample."""
    stopped_early: bool | None = None
    """Whether an early-stop rule ended the first trajectory of the policy that is counted."""

    def counts(self, policy: str) -> bool:
        """Whether the policy has trajectories of it that are right or not: with a gold answer, or graded without."""
        correct = self.correct.get(policy, [])
        return bool(correct) and (self.gold is not None or any(right is not None for right in correct))


def pool(pooled: dict[str, Pooled], questions: Mapping[str, Question], mcmc_policy: str) -> None:
    """Add one run's records of a question, by policy, to what earlier runs said.

    Raises:
        InputError: If an earlier run asked something else under the same id.
    """
    for policy, question in questions.items():
        entry = pooled.setdefault(question.question_id, Pooled(question.question, question.gold))
        if (entry.question, entry.gold) != (question.question, question.gold):
            raise InputError(
                f"Expected runs of one benchmark, but question {question.question_id} is not the same in all of them: "
                "read them apart."
            )
        entry.correct.setdefault(policy, []).extend(t.correct for t in question.trajectories)
        if question.trajectories and policy not in entry.measures:
            first = question.trajectories[0]
            entry.measures[policy] = measure(first)
            if policy == mcmc_policy:
                entry.stopped_early = first.ending == "early"


def samples_to_success(correct: Sequence[bool | None]) -> int | None:
    """Return the number of the first right trajectory, from 1; None where there is none (censored)."""
    return next((number for number, right in enumerate(correct, start=1) if right), None)


def expected_samples_to_success(num_samples: int, num_right: int) -> float:
    """Return the mean of the first right trajectory's number over all orders: ``(n + 1) / (c + 1)``.

    With c = 0 this is n + 1, the least that it can be.

    Args:
        num_samples: n.
        num_right: c, at most n.
    """
    return (num_samples + 1) / (num_right + 1)


def question_rows(pooled: Mapping[str, Pooled], mcmc_policy: str, dynamic_metric: str) -> list[dict[str, Any]]:
    """Return one row per question that the counted policy has and that has a gold answer, in order of id."""
    result = []
    for question_id, entry in sorted(pooled.items()):
        if not entry.counts(mcmc_policy):
            continue
        correct = entry.correct[mcmc_policy]
        measures = {side: entry.measures.get(name, NO_MEASURES) for side, name in side_policies(mcmc_policy).items()}
        right = sum(map(bool, correct))
        result.append(
            {
                "question": entry.question,
                "correct_answer": entry.gold,
                **{f"{side}_{name}": value for side, of in measures.items() for name, value in of._asdict().items()},
                "samples_to_success": samples_to_success(correct),
                "total_samples": len(correct),
                "dynamic_metric": dynamic_metric,
                "dynamic_stop_triggered": entry.stopped_early,
                "question_id": question_id,
                "num_right": right,
                "num_ungradable": correct.count(None),
                "censored": right == 0,
                "expected_samples_to_success": expected_samples_to_success(len(correct), right),
            }
        )
    return result


def slice_columns(metric: str) -> list[str]:
    """Return the columns of the table of one metric: the published ones and the question's id."""
    return ["question", *(f"{side}_{metric}" for side in SIDES), "samples_to_success", "question_id"]


def counted(pooled: Iterable[Pooled], policy: str) -> int:
    """Return the most trajectories that a question has of a policy."""
    return max((len(entry.correct.get(policy, ())) for entry in pooled), default=0)
