"""What a test of a controller finds, as numbers and as a table to read.

``controllers.base`` calls :func:`measure` at the end of a test; ``trainer_cli`` prints it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from dps.analysis.replay.reliability import brier_skill
from dps.decide.table import Table, going_on
from dps.decide.thresholds import Replay, replay, stops
from dps.estimates import bounded
from lightning_modules.metrics import auroc, auroc_stderr, fit_length, length_probabilities, length_scores

_AGAINST = {"k": "k alone", "length": "k and the length of the question"}
"""What a controller has to be better than, in words; see :func:`skills`."""


@dataclass(frozen=True, slots=True)
class TestResult:
    """A controller measured on questions that it has not seen."""

    __test__ = False  # the name begins with Test, but pytest has nothing to collect here

    name: str
    """The controller."""
    label: str
    """What it predicts."""
    threshold: float
    """Where it stops."""
    metrics: dict[str, float]
    """Everything that is logged as ``test/...``."""
    policies: dict[str, Replay] = field(default_factory=dict)
    """Fixed k's and the controller, replayed on the same questions."""


def measure(
    name: str,
    p_enough: np.ndarray,
    threshold: float,
    *,
    table: Table,
    train: Table,
    label: str,
    metrics: dict[str, float],
    seed: int = 0,
) -> TestResult:
    """Measure a controller on a test table.

    Args:
        name: The controller.
        p_enough: Its probabilities, shape (Q, O, C).
        threshold: Its threshold.
        table: The test split.
        train: The training split: decides the direction in which question length is taken.
        label: Which label.
        metrics: Metrics of the rows that were computed already; no ``auroc`` there means a split of one class.
        seed: Of the bootstrap.

    Returns:
        Metrics ``auroc`` with ``auroc_stderr`` (bootstrap over questions), ``auroc_k2``, ... (rows of one k only, where
        knowing k does not help), ``auroc_length`` (question length alone), the replayed policy, and counts.
    """
    labels = table.labels(label)
    values = {"num_questions": float(table.num_questions), "num_rows": float(table.num_rows)}
    values["label_share"] = float(labels.mean())
    values |= metrics
    if "auroc" in metrics:
        questions = np.repeat(np.arange(table.num_questions), table.num_rows // table.num_questions)
        flat = labels.reshape(-1)
        values["auroc_stderr"] = auroc_stderr(p_enough.reshape(-1), flat, questions, seed=seed)
        train_labels = train.labels(label)
        train_lengths = np.broadcast_to(train.lengths[:, None, None], train_labels.shape)
        lengths = np.broadcast_to(table.lengths[:, None, None], labels.shape)
        scores = length_scores(train_lengths.reshape(-1), train_labels.reshape(-1), lengths.reshape(-1))
        values["auroc_length"] = auroc(scores, flat)
        for c, k in enumerate(table.ks[:-1]):
            at_k = auroc(p_enough[..., c].reshape(-1), labels[..., c].reshape(-1))
            if np.isfinite(at_k):
                values[f"auroc_k{k}"] = at_k
    policies = {
        f"fixed-k{k}": replay(np.full(labels.shape[:2], c), table.correct, table.tokens, table.ks)
        for c, k in enumerate(table.ks)
    }
    stop = stops(going_on(p_enough, label), threshold)
    chosen = replay(stop, table.outcomes(label), table.tokens, table.ks)
    right = np.take_along_axis(table.outcomes(label), stop[..., None], axis=-1)[..., 0].mean(axis=1)
    loss = bounded(right - table.correct[..., -1].mean(axis=1))
    for against, found in skills(p_enough, table, train, label).items():
        for part in ("value", "low", "high") if found is not None else ():
            values[f"skill_{against}" + ("" if part == "value" else f"_{part}")] = found[part]
    policies[name] = chosen
    longest = policies[f"fixed-k{table.ks[-1]}"]
    values |= {
        "threshold": threshold,
        "accuracy": chosen.accuracy,
        "accuracy_maximum": longest.accuracy,
        "tokens": chosen.tokens,
        "tokens_share": chosen.tokens / longest.tokens,
        "mean_k": chosen.mean_k,
        "accuracy_difference": loss.value,
        "accuracy_difference_low": loss.low,
        "accuracy_difference_high": loss.high,
    }
    return TestResult(name, label, threshold, values, policies)


def skills(p: np.ndarray, table: Table, train: Table, label: str) -> dict[str, dict[str, float] | None]:
    """Return how much better probabilities are than two that look at no feature of a trajectory.

    Args:
        p: The probability of the label on a table's rows, shape (Q, O, C).
        table: Questions that trained nothing.
        train: The training split, on which the two are fitted.
        label: Which label.

    Returns:
        Brier skill with its interval against the label's share at each k (``k``) and against a logistic regression on
        the question's length at each k (``length``), see :func:`dps.analysis.replay.reliability.brier_skill`.
    """
    return skills_against(p, table.labels(label), baselines(train.labels(label), train.lengths, table.lengths))


def baselines(labels: np.ndarray, lengths: np.ndarray, others: np.ndarray) -> dict[str, np.ndarray]:
    """Return the probability of the label by k alone, and by k and question length, fitted on some questions.

    Args:
        labels: Of the questions to fit on, shape (M, O, C), bool.
        lengths: Their lengths, shape (M,).
        others: Lengths of the questions to predict, shape (Q,).

    Returns:
        ``k`` and ``length``, shape (Q, C) each.
    """
    shares = labels.mean(axis=1)
    fits = [fit_length(lengths.astype(np.float64), column) for column in shares.T]
    return {
        "k": np.repeat(shares.mean(axis=0)[None], len(others), axis=0),
        "length": np.stack([length_probabilities(fit, others.astype(np.float64)) for fit in fits], axis=1),
    }


def skills_against(
    p: np.ndarray, labels: np.ndarray, others: dict[str, np.ndarray]
) -> dict[str, dict[str, float] | None]:
    """Return the skill of probabilities (Q, O, C) against baselines (Q, C) each."""
    flat = [values.reshape(len(p), -1) for values in (p, labels)]
    return {
        name: brier_skill(*flat, np.broadcast_to(baseline[:, None], p.shape).reshape(len(p), -1))
        for name, baseline in others.items()
    }


def nothing_learnt(skill: dict[str, dict[str, float] | None] | None, num_questions: int) -> str | None:
    """Return a sentence where held-out questions do not show that a controller has learnt anything, else None.

    It has to be better than what k says by itself, and than k and the question's length together: each Brier skill with
    its 95 % interval above 0.

    Args:
        skill: See :func:`skills`; None where it was not measured.
        num_questions: Questions that it was measured on.
    """
    for name, found in (skill or {}).items():
        if found is None:
            return (
                f"Whether it has learnt anything cannot be said: the label does not vary on {num_questions:,} held-out "
                "questions."
            )
        if math.isnan(found["low"]):
            return (
                f"Whether it has learnt anything cannot be said: {num_questions:,} held-out questions are too few "
                "for an interval."
            )
        if not found["low"] > 0:
            return (
                f"It may have learnt nothing: {num_questions:,} held-out questions do not show that its probabilities "
                f"are better than those by {_AGAINST[name]} (Brier skill {found['value']:.3f} [{found['low']:.3f}, "
                f"{found['high']:.3f}]). A rule that needs no training may do as well."
            )
    return None


def show(result: TestResult, source: str) -> None:
    """Print a result as tables.

    Args:
        result: What was measured.
        source: Where the questions come from.
    """
    from rich.console import Console
    from rich.table import Table as Grid

    values = result.metrics
    console = Console(highlight=False)
    questions, rows = int(values["num_questions"]), int(values["num_rows"])
    console.print(
        f"{result.name} on the test questions of {source}: {questions} questions, {rows} rows",
        markup=False,
        soft_wrap=True,
    )

    ranking = Grid(box=None, pad_edge=False, show_header=False)
    ranking.add_column()
    ranking.add_column(justify="right")
    ranking.add_column()
    share = f"{values['label_share']:.1%} of the rows"
    if "auroc" in values:
        by_k = ", ".join(f"k = {n[7:]}: {v:.3f}" for n, v in values.items() if n.startswith("auroc_k"))
        ranking.add_row("AUROC", f"{values['auroc']:.3f}", f"± {values['auroc_stderr']:.3f}, clustered by question")
        if by_k:
            ranking.add_row("  at one k", "", by_k)
        ranking.add_row("  question length alone", f"{values['auroc_length']:.3f}", "")
        ranking.add_row("average precision", f"{values['average_precision']:.3f}", f"{result.label} holds in {share}")
    else:
        ranking.add_row("AUROC", "–", f"one class only: {result.label} holds in {share}")
    ranking.add_row("Brier score", f"{values['brier']:.3f}", "")
    for against, words in _AGAINST.items():
        if f"skill_{against}" in values:
            low, high = values[f"skill_{against}_low"], values[f"skill_{against}_high"]
            ranking.add_row(f"  skill against {words}", f"{values[f'skill_{against}']:.3f}", f"[{low:.3f}, {high:.3f}]")
    ranking.add_row("calibration error", f"{values['calibration_error']:.3f}", "")
    console.print(ranking)

    policies = Grid(box=None, pad_edge=False)
    for heading in ("policy (replayed)", "accuracy", "±", "tokens / question", "mean k"):
        policies.add_column(heading, justify="left" if heading.startswith("policy") else "right")
    for name, policy in result.policies.items():
        label = f"{name}, threshold {result.threshold:.3f}" if name == result.name else name
        numbers = (
            f"{policy.accuracy:.1%}",
            f"{policy.accuracy_stderr:.1%}",
            f"{policy.tokens:,.0f}",
            f"{policy.mean_k:.2f}",
        )
        policies.add_row(label, *numbers)
    console.print(policies)
    console.print(
        f"{result.name} minus k = {max(int(name[7:]) for name in result.policies if name.startswith('fixed-k'))}: "
        f"{100 * values['accuracy_difference']:+.1f} points [{100 * values['accuracy_difference_low']:+.1f}, "
        f"{100 * values['accuracy_difference_high']:+.1f}], paired by question",
        markup=False,
        soft_wrap=True,
    )
