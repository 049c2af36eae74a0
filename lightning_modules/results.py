"""What a test of a controller finds, as numbers and as a table to read.

``controllers.base`` calls :func:`measure` at the end of a test; ``trainer_cli`` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lightning_modules.metrics import auroc, auroc_stderr, length_scores
from lightning_modules.replay import Replay, replay, stops
from lightning_modules.table import Table, going_on


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
    policies[name] = chosen
    longest = policies[f"fixed-k{table.ks[-1]}"]
    values |= {
        "threshold": threshold,
        "accuracy": chosen.accuracy,
        "accuracy_maximum": longest.accuracy,
        "tokens": chosen.tokens,
        "tokens_share": chosen.tokens / longest.tokens,
        "mean_k": chosen.mean_k,
    }
    return TestResult(name, label, threshold, values, policies)


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
