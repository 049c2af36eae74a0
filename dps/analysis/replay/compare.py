"""Comparisons of curves by resampling questions, all in pairs: pure NumPy.

A policy is one value per question (already averaged over orders), so a resample is a vector of weights over questions
and a mean is a product with it. The same resamples serve every policy, which makes every difference a paired one. Where
a plain mean is compared there is no need to resample: ``dps.estimates`` has its interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dps.analysis.replay.policies import Point
from dps.estimates import LEVEL, mcnemar, questions_needed

__all__ = [
    "Curve",
    "Interval",
    "accuracy_at",
    "area_between",
    "curve_of",
    "interval",
    "mcnemar",
    "questions_needed",
    "ratio",
    "resamples",
    "widened",
]


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its interval."""

    value: float
    """On the questions as they are."""
    low: float
    """Lower end of the 95 % bootstrap interval over questions."""
    high: float
    """Upper end."""

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies above or below 0, else 0."""
        # A difference of two equal means is not always 0 in floating point.
        return 1 if self.low > 1e-12 else -1 if self.high < -1e-12 else 0

    def plain(self) -> dict[str, float]:
        """Return it as JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}


def resamples(num_questions: int, count: int, seed: int) -> np.ndarray:
    """Return bootstrap weights over questions, each row a resample: shape (count, num_questions), rows sum to 1."""
    rng = np.random.default_rng([seed, 1])
    return rng.multinomial(num_questions, np.full(num_questions, 1 / num_questions), size=count) / num_questions


def interval(value: float, replicates: np.ndarray) -> Interval:
    """Return a value with the percentile interval of its replicates."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(replicates, [tail, 100 - tail])
    return Interval(float(value), float(low), float(high))


def ratio(numerator: np.ndarray, denominator: np.ndarray, weights: np.ndarray) -> Interval:
    """Return the ratio of two means over the same questions."""
    return interval(numerator.mean() / denominator.mean(), (weights @ numerator) / (weights @ denominator))


def widened(value: float, replicates: np.ndarray, num_questions: int) -> Interval:
    """Return an accuracy difference with the interval of its replicates, kept from collapsing.

    Every replicate is a mean over the questions and, with the weight of one among N + 1, of the least difference that
    there can be for the lower end, and of the largest for the upper end. So a few questions that agree decide nothing;
    :func:`dps.estimates.bounded` is the same where no curve has to be drawn through the replicates.

    Args:
        value: The difference.
        replicates: On every resample, shape (R,).
        num_questions: N.
    """
    # The weight of the added question in each resample: the same law as that of any of N + 1.
    levels = (np.arange(len(replicates)) + 0.5) / len(replicates)
    weight = 1 - (1 - np.random.default_rng(0).permutation(levels)) ** (1 / num_questions)
    low, high = (interval(value, (1 - weight) * replicates + weight * end) for end in (-1.0, 1.0))
    return Interval(float(value), low.low, high.high)


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Accuracy over tokens as a broken line, on the questions and on every resample."""

    tokens: np.ndarray
    """Mean tokens of each point, increasing: shape (M,)."""
    accuracy: np.ndarray
    """Shape (M,)."""
    resampled_tokens: np.ndarray
    """Shape (R, M)."""
    resampled_accuracy: np.ndarray
    """Shape (R, M)."""


def curve_of(points: Sequence[Point], weights: np.ndarray) -> Curve:
    """Return the curve through M points of Q questions."""
    tokens, accuracy = np.stack([p.tokens for p in points]), np.stack([p.correct for p in points])
    return Curve(tokens.mean(axis=1), accuracy.mean(axis=1), weights @ tokens.T, weights @ accuracy.T)


def accuracy_at(curve: Curve, tokens: float, resampled: np.ndarray) -> tuple[float, np.ndarray] | None:
    """Return the accuracy that a curve has at a number of tokens, on the questions and on every resample.

    Between two points the line is a policy that one could run: some questions with one threshold, some with the other.
    Beyond the curve's most tokens its last point counts, which spends fewer.

    Args:
        curve: The curve.
        tokens: Tokens on the questions.
        resampled: Tokens on every resample, shape (R,).

    Returns:
        None where the curve's cheapest point spends more.
    """
    if tokens < curve.tokens[0] * (1 - 1e-9):
        return None
    value = float(np.interp(tokens, curve.tokens, curve.accuracy))
    # Every resample has its own curve; the places are found for all at once.
    at = np.array(
        [
            np.interp(t, row, values)
            for t, row, values in zip(resampled, curve.resampled_tokens, curve.resampled_accuracy, strict=True)
        ]
    )
    return value, at


def area_between(one: Curve, other: Curve, points: int = 33) -> Interval | None:
    """Return the mean accuracy difference ``one - other`` over the range of log tokens that both curves span.

    Returns:
        None where they span no common range.
    """
    low, high = max(one.tokens[0], other.tokens[0]), min(one.tokens[-1], other.tokens[-1])
    if high <= low * (1 + 1e-9):
        return None
    grid = np.exp(np.linspace(np.log(low), np.log(high), points))

    def difference(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
        gap = np.interp(grid, *a) - np.interp(grid, *b)
        return float((gap[:-1] + gap[1:]).mean() / 2)

    replicates = np.array(
        [
            difference((one.resampled_tokens[r], one.resampled_accuracy[r]),
                       (other.resampled_tokens[r], other.resampled_accuracy[r]))
            for r in range(len(one.resampled_tokens))
        ]
    )  # fmt: skip
    return interval(difference((one.tokens, one.accuracy), (other.tokens, other.accuracy)), replicates)
