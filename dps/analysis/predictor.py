"""The linear predictor of samples to success from the nine metrics of a question's first trajectories.

Two targets. ``samples_to_success`` is the published one: the number of the first right trajectory, on the questions
that have one, so the hardest questions are left out. ``expected_samples_to_success`` is its mean over all orders of the
trajectories, on all questions; one that is censored counts with the least that it can be, n + 1.

The first trajectory of the counted policy is in the metrics and in the label: the published target is 1 exactly where
that trajectory is right. So a good fit of it may say little of how many more trajectories a question needs; in the
second target that trajectory is one of n.

Every question is predicted from the others: in each of several random splits into folds, least squares is fitted on the
other folds. Beside it stands the constant predictor, the other folds' mean. Standard errors are over questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dps.analysis.metrics.samples import FEATURES
from dps.analysis.report.words import json_number

TARGETS = ("samples_to_success", "expected_samples_to_success")
"""What is predicted."""
COLUMNS = ("question_id", "target", "ground_truth", "prediction", "constant_prediction")
"""Columns of the table of predictions."""


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A fitted predictor ``bias + sum_j weight_j (x_j - mean_j) / scale_j``; F features."""

    mean: np.ndarray
    """Training mean of each feature, which also stands for missing values; 0 where all are missing: shape (F,)."""
    scale: np.ndarray
    """Training standard deviation, 1 where that is 0: shape (F,)."""
    weight: np.ndarray
    """Shape (F,)."""
    bias: float
    """The training mean of the target."""

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the predictions, shape (N,), for features of shape (N, F), NaN where missing."""
        return self.bias + _standardized(features, self.mean, self.scale) @ self.weight


def fit_linear(features: np.ndarray, target: np.ndarray) -> Linear:
    """Fit least squares with an intercept; of several best solutions the one with the smallest weights.

    Args:
        features: Shape (N, F), NaN where missing.
        target: Shape (N,), finite.
    """
    known = ~np.isnan(features)
    count = known.sum(axis=0)
    mean = np.where(known, features, 0).sum(axis=0) / np.maximum(count, 1)
    spread = np.where(known, features, mean).std(axis=0)
    # What rounding leaves of a constant column must not be blown up to a feature.
    scale = np.where(spread > 1e-12 * np.maximum(np.abs(mean), 1e-300), spread, 1.0)
    bias = float(target.mean())
    weight = np.linalg.lstsq(_standardized(features, mean, scale), target - bias, rcond=1e-10)[0]
    return Linear(mean, scale, weight, bias)


def _standardized(features: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return (np.where(np.isnan(features), mean, features) - mean) / scale


def held_out(
    features: np.ndarray, target: np.ndarray, folds: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Predict every question from the folds that it is not in.

    Args:
        features: One row per question, shape (N, F).
        target: Shape (N,).
        folds: 2 to N; their sizes differ by at most one.
        rng: Draws the split.

    Returns:
        The linear and the constant predictions, shape (N,) each.
    """
    part = rng.permutation(np.arange(len(target)) % folds)
    linear, constant = np.empty(len(target)), np.empty(len(target))
    for fold in range(folds):
        out = part == fold
        linear[out] = fit_linear(features[~out], target[~out]).predict(features[out])
        constant[out] = target[~out].mean()
    return linear, constant


def errors(target: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """Return RMSE, MAE and Spearman's correlation, each the mean over repeats.

    Args:
        target: Shape (N,).
        predictions: Held-out predictions of R repeats, shape (R, N).
        weights: How often each question counts, shape (N,).
    """
    residuals = predictions - target
    squared = (residuals**2 @ weights) / weights.sum()
    absolute = (np.abs(residuals) @ weights) / weights.sum()
    ranks = _ranks(target, weights)
    spearman = [_correlation(ranks, _ranks(line, weights), weights) for line in predictions]
    return float(np.sqrt(squared).mean()), float(absolute.mean()), float(np.mean(spearman))


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean rank of each value among all, each counted so often; equal values share their mean rank."""
    _, group = np.unique(values, return_inverse=True)
    size = np.bincount(group, weights=weights)
    return (np.cumsum(size) - (size - 1) / 2)[group]


def _correlation(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> float:
    """Return Pearson's correlation, NaN where one of them is constant."""
    a, b = (values - np.average(values, weights=weights) for values in (a, b))
    scale = np.sqrt((weights * a * a).sum() * (weights * b * b).sum())
    return float((weights * a * b).sum() / scale) if scale > 0 else np.nan


def judge(
    features: np.ndarray, target: np.ndarray, *, folds: int, repeats: int, bootstrap: int, rng: np.random.Generator
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Measure the linear predictor beside the constant one on held-out questions.

    Args:
        features: Shape (N, F), NaN where missing.
        target: Shape (N,), N at least ``folds``.
        folds: Parts of a split.
        repeats: R, random splits.
        bootstrap: Resamples of the questions behind the standard errors. The predictions stay those of the fits, so
            what the fits themselves would change with other questions is not in the errors.
        rng: Draws splits and resamples.

    Returns:
        RMSE, MAE and Spearman's correlation with their standard errors, for the linear predictor, the constant one and
        (but for the correlation, which a constant does not have) their difference; and the held-out predictions of
        both, averaged over repeats, shape (N,) each.
    """
    found = [held_out(features, target, folds, rng) for _ in range(repeats)]
    linear, constant = (np.stack(predictions) for predictions in zip(*found, strict=True))
    count = len(target)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=bootstrap).astype(np.float64)
    table = np.array([_row(target, linear, constant, weights) for weights in (np.ones(count), *draws)])
    values = table[0].tolist()
    # A resample may hold one question only, which has no correlation.
    spread = [
        float(np.std(column[~np.isnan(column)], ddof=1)) if column[0] == column[0] else np.nan for column in table.T
    ]
    names = ("rmse", "mae", "spearman")
    pairs = [{"value": json_number(v), "stderr": json_number(s)} for v, s in zip(values, spread, strict=True)]
    result = {
        "linear": dict(zip(names, pairs[:3], strict=True)),
        "constant": dict(zip(names[:2], pairs[3:5], strict=True)),
        "linear_minus_constant": dict(zip(names[:2], pairs[5:], strict=True)),
    }
    return result, linear.mean(axis=0), constant.mean(axis=0)


def _row(target: np.ndarray, linear: np.ndarray, constant: np.ndarray, weights: np.ndarray) -> tuple[float, ...]:
    ours, theirs = errors(target, linear, weights), errors(target, constant, weights)[:2]
    return (*ours, *theirs, ours[0] - theirs[0], ours[1] - theirs[1])


def predict(
    rows: Sequence[Mapping[str, Any]], *, folds: int, repeats: int, bootstrap: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Predict both targets from the nine metrics.

    Args:
        rows: The table of questions, see :func:`dps.analysis.metrics.samples.question_rows`.
        folds: Parts of a split.
        repeats: Random splits.
        bootstrap: Resamples of the questions.
        seed: Decides splits and resamples.

    Returns:
        One result per target: ``target``, ``num_questions``, ``num_censored``, ``num_left_out``, ``missing`` (features
        that no question has), the errors of :func:`judge` and the weights of a fit on all of the questions (change of
        the target per standard deviation of each feature); with ``reason`` in place of errors and weights where there
        are too few questions. And the rows of the table of predictions.
    """
    results, predictions = [], []
    num_censored = sum(bool(row["censored"]) for row in rows)
    for number, target_name in enumerate(TARGETS):
        used = [row for row in rows if row[target_name] is not None]
        result: dict[str, Any] = {
            "target": target_name,
            "num_questions": len(used),
            "num_censored": num_censored,
            "num_left_out": len(rows) - len(used),
        }
        results.append(result)
        if len(used) < 2 * folds:
            result["reason"] = f"{len(used)} questions are too few for {folds} folds, which need at least {2 * folds}"
            continue
        features = np.array([[row[name] for name in FEATURES] for row in used], dtype=np.float64)
        target = np.array([row[target_name] for row in used], dtype=np.float64)
        rng = np.random.default_rng([seed, number])
        found, linear, constant = judge(features, target, folds=folds, repeats=repeats, bootstrap=bootstrap, rng=rng)
        fitted = fit_linear(features, target)
        absent = np.isnan(features).all(axis=0)
        result["missing"] = [name for name, none in zip(FEATURES, absent, strict=True) if none]
        result |= found
        result["weights"] = {
            name: float(weight) for name, weight, none in zip(FEATURES, fitted.weight, absent, strict=True) if not none
        }
        predictions += [
            dict(zip(COLUMNS, (row["question_id"], target_name, *values), strict=True))
            for row, *values in zip(used, target.tolist(), linear.tolist(), constant.tolist(), strict=True)
        ]
    return results, predictions
