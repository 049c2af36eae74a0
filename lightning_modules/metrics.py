"""Ranking quality with a standard error that knows that rows of one question belong together: pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dps.analysis.replay.reliability import quantile_bins


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


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A number with its bootstrap over questions."""

    value: float
    """On the questions themselves; NaN where it is not defined, as a ranking of one class."""
    draws: np.ndarray
    """On each draw: shape (D,)."""

    @property
    def stderr(self) -> float:
        """Standard deviation over the draws where it is defined; NaN where fewer than two are."""
        finite = self.draws[np.isfinite(self.draws)]
        return float(finite.std(ddof=1)) if len(finite) > 1 else float("nan")

    def interval(self) -> tuple[float, float]:
        """Return the middle 95 % of the draws where it is defined."""
        finite = self.draws[np.isfinite(self.draws)]
        low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
        return float(low), float(high)

    def minus(self, other: Measured) -> Measured:
        """Return the difference, paired draw by draw."""
        return Measured(self.value - other.value, self.draws - other.draws)


def question_draws(num_questions: int, num_draws: int, seed: int) -> np.ndarray:
    """Return how often each draw of a bootstrap over questions takes each question: shape (D, Q), float64."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_questions, np.full(num_questions, 1 / num_questions), size=num_draws).astype(np.float64)


def measure_probabilities(p: np.ndarray, labels: np.ndarray, draws: np.ndarray) -> dict[str, Measured]:
    """Measure probabilities of rows, with a bootstrap over questions.

    Args:
        p: Shape (Q, R): R rows of each question.
        labels: Shape (Q, R), bool.
        draws: Shape (D, Q), see :func:`question_draws`.

    Returns:
        ``auroc``; ``average_precision``, the step-wise area under precision over recall; ``brier``, the mean of
        ``(p - label)^2``; ``brier_skill``, the share of the Brier score of always saying the label's share that is
        taken away, NaN where the label does not vary; ``calibration_error``, over ten bins of equally many rows the
        mean of ``|mean p - share|`` weighted by rows; ``log_loss`` in nats, with p kept 1e-6 away from 0 and 1.
    """
    num_rows = p.shape[1]
    flat, truth = p.reshape(-1), labels.reshape(-1)
    order, starts = _groups(flat)
    owner = np.repeat(np.arange(len(p)), num_rows)[order]
    sorted_truth = truth[order]

    def ranking(weights: np.ndarray) -> tuple[float, float]:
        weight = weights[owner]
        positive = np.add.reduceat(weight * sorted_truth, starts)
        negative = np.add.reduceat(weight * ~sorted_truth, starts)
        return _area(positive, negative), _precision(positive, negative)

    ones = np.ones(len(p))
    ranked = np.array([ranking(weights) for weights in draws]).reshape(-1, 2)
    whole = ranking(ones)
    found = {name: Measured(whole[i], ranked[:, i]) for i, name in enumerate(("auroc", "average_precision"))}

    clipped = p.clip(1e-6, 1 - 1e-6)
    sums = {
        "brier": ((p - labels) ** 2).sum(axis=1),
        "log_loss": -np.log(np.where(labels, clipped, 1 - clipped)).sum(axis=1),
    }
    total = draws.sum(axis=1) * num_rows
    for name, each in sums.items():
        found[name] = Measured(float(each.sum() / p.size), draws @ each / total)

    positive = labels.sum(axis=1)
    share, drawn = positive.sum() / p.size, draws @ positive / total
    with np.errstate(divide="ignore", invalid="ignore"):
        found["brier_skill"] = Measured(
            float(1 - found["brier"].value / (share * (1 - share))) if 0 < share < 1 else float("nan"),
            np.where((drawn > 0) & (drawn < 1), 1 - found["brier"].draws / (drawn * (1 - drawn)), np.nan),
        )

    which = quantile_bins(flat)
    num_bins = int(which.max()) + 1
    cell = which + num_bins * np.repeat(np.arange(len(p)), num_rows)
    gaps = np.bincount(cell, flat - truth, num_bins * len(p)).reshape(-1, num_bins)
    error = np.abs(draws @ gaps).sum(axis=1) / total
    found["calibration_error"] = Measured(float(np.abs(gaps.sum(axis=0)).sum() / p.size), error)
    return found


def calibration_error(p: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of ``|mean p - share|`` over ten bins of equally many rows: both arguments of shape (N,).

    Values crowd together where thresholds lie, so bins of equal width would have all of them in one.
    """
    which = quantile_bins(p)
    return float(np.abs(np.bincount(which, p - labels)).sum() / len(p))


def fit_length(lengths: np.ndarray, shares: np.ndarray) -> tuple[float, float, float, float]:
    """Fit a logistic regression of the label on the question's length alone.

    Args:
        lengths: Shape (Q,).
        shares: Share of each question's rows with the label, shape (Q,), in [0, 1].

    Returns:
        Mean and scale of the lengths, intercept and slope, for :func:`length_probabilities`.

    Note:
        Newton's method on the mean cross-entropy plus a ridge of 1e-4, which keeps it finite where one class is absent.
    """
    mean, scale = float(lengths.mean()), float(lengths.std()) or 1.0
    design = np.stack([np.ones(len(lengths)), (lengths - mean) / scale], axis=1)
    weights = np.zeros(2)
    for _ in range(50):
        p = _sigmoid(design @ weights)
        gradient = design.T @ (p - shares) / len(shares) + 1e-4 * weights
        curvature = (design * (p * (1 - p))[:, None]).T @ design / len(shares) + 1e-4 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step.clip(-2, 2)
        if np.abs(step).max() < 1e-10:
            break
    return mean, scale, float(weights[0]), float(weights[1])


def length_probabilities(fitted: tuple[float, float, float, float], lengths: np.ndarray) -> np.ndarray:
    """Return the probability of the label by question length alone: shape (Q,)."""
    mean, scale, intercept, slope = fitted
    return _sigmoid(intercept + slope * (lengths - mean) / scale)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits))


def _groups(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the order that sorts the scores, and where each group of equal scores starts in it."""
    order = np.argsort(scores, kind="stable")
    return order, np.flatnonzero(np.diff(scores[order], prepend=-np.inf))


def _auroc(order: np.ndarray, starts: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    weight, label = weights[order], labels[order]
    return _area(np.add.reduceat(weight * label, starts), np.add.reduceat(weight * ~label, starts))


def _area(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the AUROC of groups of equal scores in increasing order, from the weights of each class in them."""
    pairs = positive.sum() * negative.sum()
    if pairs == 0:
        return float("nan")
    return float((positive * (np.cumsum(negative) - negative / 2)).sum() / pairs)


def _precision(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the average precision of the same groups."""
    if positive.sum() == 0 or negative.sum() == 0:
        return float("nan")
    found, taken = np.cumsum(positive[::-1]), np.cumsum((positive + negative)[::-1])
    # Groups of weight 0 at the top have found nothing and taken nothing.
    return float((positive[::-1] * found / np.maximum(taken, 1e-300)).sum() / positive.sum())
