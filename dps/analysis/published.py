"""What metrics say of questions and trajectories: the metrics of a response, samples to success, pass@k.

The trajectories of all runs are put one after another, run by run and by index, as the published code does with seeds.
Entropy, perplexity and self-confidence are of the base model, whatever drew the response (METHOD section 3); the
published code takes them from the tempered probabilities of the sampled tokens alone, which is a different quantity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Any

import numpy as np

from dps.analysis.words import json_number
from dps.errors import InputError
from dps.estimates import estimate
from feature_store import Question, Trajectory

SIDES = ("naive", "std", "mcmc")
"""The published names of three policies: sampling at a low temperature, plain sampling, power sampling."""
METRICS = ("entropy", "perplexity", "self_confidence")
"""The published names of the metrics of a response."""
FEATURES = tuple(f"{side}_{metric}" for side in SIDES for metric in METRICS)
"""The nine metrics of a question, in the published order."""
COLUMNS = (
    *("question", "correct_answer", *FEATURES, "samples_to_success", "total_samples"),
    *("dynamic_metric", "dynamic_stop_triggered"),
    *("question_id", "num_right", "num_ungradable", "censored", "expected_samples_to_success"),
)
"""The published columns of the table of questions, then ours."""
PASS_COLUMNS = ("policy", "k", "pass_at_k", "stderr", "num_questions", "num_trajectories", "num_ungradable")
"""Columns of the table of pass@k."""


def side_policies(mcmc_policy: str) -> dict[str, str]:
    """Return the policy of each of :data:`SIDES`."""
    return dict(zip(SIDES, ("lowtemp", "plain", mcmc_policy), strict=True))


def measure(trajectory: Trajectory | None) -> dict[str, float]:
    """Return the :data:`METRICS` of a response over its accepted tokens, EOS included; NaN where there are none."""
    count = 0 if trajectory is None else int(trajectory.block_num_tokens.sum())
    if trajectory is None or count == 0:
        return dict.fromkeys(METRICS, float("nan"))
    sums = (trajectory.block_entropy.sum(), -trajectory.block_logprob.sum(), trajectory.block_top1.sum())
    entropy, surprisal, top1 = (float(total) / count for total in sums)
    return dict(zip(METRICS, (entropy, float(np.exp(surprisal)), top1), strict=True))


@dataclass(slots=True)
class Pooled:
    """What the runs say of one question."""

    question: str
    """As the benchmark states it."""
    gold: str | None
    """The gold answer."""
    correct: dict[str, list[bool | None]] = field(default_factory=dict)
    """By policy, whether each trajectory is right, in order of run and index; None where it could not be graded."""
    measures: dict[str, dict[str, float]] = field(default_factory=dict)
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
    """Return the mean of the first right trajectory's number over all orders of n, c of them right.

    ``(n + 1) / (c + 1)``; with c = 0 this is n + 1, the least that it can be.
    """
    return (num_samples + 1) / (num_right + 1)


def question_rows(pooled: Mapping[str, Pooled], mcmc_policy: str, dynamic_metric: str) -> list[dict[str, Any]]:
    """Return one row per question that the counted policy has and that has a gold answer, in order of id."""
    rows = []
    for question_id, entry in sorted(pooled.items()):
        if not entry.counts(mcmc_policy):
            continue
        correct = entry.correct[mcmc_policy]
        sides = {side: entry.measures.get(name, measure(None)) for side, name in side_policies(mcmc_policy).items()}
        right = sum(map(bool, correct))
        rows.append(
            {
                "question": entry.question,
                "correct_answer": entry.gold,
                **{f"{side}_{name}": value for side, values in sides.items() for name, value in values.items()},
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
    return rows


def slice_columns(metric: str) -> list[str]:
    """Return the columns of the table of one metric: the published ones and the question's id."""
    return ["question", *(f"{side}_{metric}" for side in SIDES), "samples_to_success", "question_id"]


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Return ``1 - C(n - c, k) / C(n, k)``, the share of subsets of k of n trajectories, c right, with a right one.

    Raises:
        ValueError: Unless ``0 <= c <= n`` and ``1 <= k <= n``.

    Source:
        Chen et al. 2021, "Evaluating Large Language Models Trained on Code", section 2.1.
    """
    if not (0 <= num_right <= num_samples and 1 <= k <= num_samples):
        raise ValueError(f"expected 0 <= c <= n and 1 <= k <= n, got n {num_samples}, c {num_right}, k {k}")
    total = comb(num_samples, k)
    return (total - comb(num_samples - num_right, k)) / total  # whole numbers, so the only rounding is the last


def pass_curves(pooled: Mapping[str, Pooled], policies: Sequence[str]) -> list[dict[str, Any]]:
    """Return pass@k of every policy for every k up to the fewest trajectories that a question has.

    The mean is over the questions that all policies have and that have a gold answer, its standard error over
    questions. A trajectory that could not be graded counts as not right. No rows if there is no such question.
    """
    entries = [entry for _, entry in sorted(pooled.items()) if all(map(entry.counts, policies))]
    rows = []
    for policy in policies if entries else ():
        counts = [(len(entry.correct[policy]), sum(map(bool, entry.correct[policy]))) for entry in entries]
        fewest = min(n for n, _ in counts)
        ungradable = sum(entry.correct[policy].count(None) for entry in entries)
        for k in range(1, fewest + 1):
            mean = estimate(np.array([pass_at_k(n, c, k) for n, c in counts]))
            values = (policy, k, mean.value, json_number(mean.stderr), mean.num_questions, fewest, ungradable)
            rows.append(dict(zip(PASS_COLUMNS, values, strict=True)))
    return rows


def shown_ks(largest: int) -> list[int]:
    """Return the k's of a short table: powers of two, and the largest."""
    return sorted({*(1 << i for i in range(largest.bit_length())), largest})
