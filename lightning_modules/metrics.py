"""Ranking quality with a standard error that knows that rows of one question belong together: pure NumPy."""

from __future__ import annotations

import numpy as np


def auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the area under the ROC curve, ties counted half: the chance that a positive row outranks a negative one.

    Args:
        scores: Shape (N,).
        labels: Shape (N,), bool.
        weights: Weight of each row, shape (N,); all 1 if not given.

    Returns:
        In [0, 1]; NaN if there is one class only.
    """
    return float(_auroc(*_groups(scores), labels, np.ones(len(scores)) if weights is None else weights))


def auroc_stderr(
    scores: np.ndarray, labels: np.ndarray, questions: np.ndarray, *, num_draws: int = 1000, seed: int = 0
) -> float:
    """Return the standard error of the AUROC, clustered by question: bootstrap over questions.

    Args:
        scores: Shape (N,).
        labels: Shape (N,), bool.
        questions: Number of each row's question, from 0: shape (N,), int.
        num_draws: Bootstrap draws.
        seed: Of the draws.

    Returns:
        The standard deviation over the draws that have both classes; NaN where fewer than two have.

    Note:
        Questions are drawn with replacement, each with all its rows.
    """
    rng = np.random.default_rng(seed)
    num_questions = int(questions.max()) + 1
    order, starts = _groups(scores)
    draws = np.array(
        [
            _auroc(
                order,
                starts,
                labels,
                np.bincount(rng.integers(num_questions, size=num_questions), None, num_questions)[questions],
            )
            for _ in range(num_draws)
        ]
    )
    draws = draws[np.isfinite(draws)]
    return float(draws.std(ddof=1)) if len(draws) > 1 else float("nan")


def length_scores(train_lengths: np.ndarray, train_labels: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Score rows by question length alone, as a logistic fit on the training rows would rank them.

    A logistic fit in one variable is monotone, and AUROC looks at ranks only; so the fit comes down to its direction.

    Args:
        train_lengths: Length of each training row's question, shape (M,).
        train_labels: Shape (M,), bool.
        lengths: Length of each row's question, shape (N,).

    Returns:
        Scores, shape (N,).
    """
    rising = auroc(train_lengths, train_labels)
    return -lengths if rising < 0.5 else lengths


def _groups(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the order that sorts the scores, and where each group of equal scores starts in it."""
    order = np.argsort(scores, kind="stable")
    return order, np.flatnonzero(np.diff(scores[order], prepend=-np.inf))


def _auroc(order: np.ndarray, starts: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    weight, label = weights[order], labels[order]
    positive = np.add.reduceat(weight * label, starts)
    negative = np.add.reduceat(weight * ~label, starts)
    pairs = positive.sum() * negative.sum()
    if pairs == 0:
        return float("nan")
    return float((positive * (np.cumsum(negative) - negative / 2)).sum() / pairs)
