"""The linear predictor of samples to success from the nine metrics of a question's first trajectories.

Two targets. ``samples_to_success`` is the published one: the number of the first right trajectory, on the questions
that have one, so the hardest questions are left out. ``expected_samples_to_success`` is its mean over all orders of the
trajectories, on all questions; one that is censored counts with the least that it can be, n + 1. The counted policy's
first trajectory is in the metrics and in the published label, so a good fit of that may say little of how many more
trajectories a question needs.

Every question is predicted from the others: in each of several random splits into folds, least squares is fitted on the
other folds; questions of one text are in one fold. Beside it stands the constant predictor, the other folds' mean.
Standard errors are over questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dps.analysis.published import FEATURES
from dps.analysis.words import json_number
from feature_store.records import content_of

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

TARGETS = ("samples_to_success", "expected_samples_to_success")
"""What is predicted."""
COLUMNS = ("question_id", "target", "ground_truth", "prediction", "constant_prediction")
"""Columns of the table of predictions."""


def linear_model() -> Pipeline:
    """Return least squares with an intercept on standardized features; missing values are the training mean."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler(), LinearRegression())


def held_out(
    features: np.ndarray, target: np.ndarray, groups: np.ndarray, folds: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Predict every question from the folds that it is not in: the linear and the constant predictions, shape (N,).

    Args:
        features: One row per question, shape (N, F).
        target: Shape (N,).
        groups: Which text each question has, from 0 without gaps: shape (N,). A text is in one fold.
        folds: 2 to the number of texts; their numbers of texts differ by at most one.
        rng: Draws the split.
    """
    from sklearn.dummy import DummyRegressor
    from sklearn.model_selection import PredefinedSplit, cross_val_predict

    split = PredefinedSplit(rng.permutation(np.arange(groups.max() + 1) % folds)[groups])
    linear, constant = (cross_val_predict(m, features, target, cv=split) for m in (linear_model(), DummyRegressor()))
    return linear, constant


def errors(target: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Return RMSE, MAE and Spearman's correlation (NaN where there is none) of R repeats (R, N), means over repeats."""
    from scipy.stats import rankdata

    residuals = predictions - target
    ranks = rankdata(np.vstack([target, predictions]), axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    scale = np.sqrt((ranks[0] ** 2).sum() * (ranks[1:] ** 2).sum(axis=1))
    spearman = np.divide(ranks[1:] @ ranks[0], scale, out=np.full(len(predictions), np.nan), where=scale > 0)
    return np.array([np.sqrt((residuals**2).mean(axis=1)).mean(), np.abs(residuals).mean(), spearman.mean()])


def judge(
    features: np.ndarray,
    target: np.ndarray,
    groups: np.ndarray,
    *,
    folds: int,
    repeats: int,
    bootstrap: int,
    rng: np.random.Generator,
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Measure the linear predictor beside the constant one on held-out questions.

    The standard errors are from resamples of the questions. The predictions stay those of the fits, so what the fits
    themselves would change with other questions is not in the errors.

    Returns:
        RMSE, MAE and Spearman's correlation with their standard errors, for the linear predictor, the constant one and
        (but for the correlation, which a constant does not have) their difference; and the held-out predictions of
        both, averaged over repeats, shape (N,) each.
    """
    each = [held_out(features, target, groups, folds, rng) for _ in range(repeats)]
    linear, constant = (np.stack(predictions) for predictions in zip(*each, strict=True))
    count = len(target)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=bootstrap)
    rows = []
    for times in (np.ones(count, int), *draws):
        drawn = np.repeat(np.arange(count), times)
        ours, theirs = (errors(target[drawn], one[:, drawn]) for one in (linear, constant))
        rows.append([*ours, *theirs[:2], *(ours - theirs)[:2]])
    table = np.array(rows)
    # A resample may hold one question only, which has no correlation.
    spread = [np.nan if np.isnan(column[0]) else np.std(column[~np.isnan(column)], ddof=1) for column in table.T]
    pairs = [{"value": json_number(v), "stderr": json_number(s)} for v, s in zip(table[0], spread, strict=True)]
    names = ("rmse", "mae", "spearman")
    result = {
        "linear": dict(zip(names, pairs[:3], strict=True)),
        "constant": dict(zip(names[:2], pairs[3:5], strict=True)),
        "linear_minus_constant": dict(zip(names[:2], pairs[5:], strict=True)),
    }
    return result, linear.mean(axis=0), constant.mean(axis=0)


def predict(
    rows: Sequence[Mapping[str, Any]], *, folds: int, repeats: int, bootstrap: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Predict both targets from the nine metrics in the table of questions.

    Returns:
        One result per target: ``target``, ``num_questions``, ``num_censored``, ``num_left_out``, ``missing`` (features
        that no question has), the errors of :func:`judge` and the weights of a fit on all of the questions (change of
        the target per standard deviation of each feature); with ``reason`` in place of errors and weights where there
        are too few questions. And the rows of the table of predictions.
    """
    results, predictions = [], []
    for number, target_name in enumerate(TARGETS):
        used = [row for row in rows if row[target_name] is not None]
        result: dict[str, Any] = {
            "target": target_name,
            "num_questions": len(used),
            "num_censored": sum(bool(row["censored"]) for row in rows),
            "num_left_out": len(rows) - len(used),
        }
        results.append(result)
        texts = {text: i for i, text in enumerate(dict.fromkeys(content_of(row["question"]) for row in used))}
        if len(texts) < 2 * folds:
            result["reason"] = f"{len(texts)} questions are too few for {folds} folds, which need at least {2 * folds}"
            continue
        groups = np.array([texts[content_of(row["question"])] for row in used])
        features = np.array([[row[name] for name in FEATURES] for row in used], dtype=np.float64)
        target = np.array([row[target_name] for row in used], dtype=np.float64)
        settings = {"folds": folds, "repeats": repeats, "bootstrap": bootstrap}
        rng = np.random.default_rng([seed, number])
        measured, linear, constant = judge(features, target, groups, **settings, rng=rng)
        absent = np.isnan(features).all(axis=0)
        result["missing"] = [name for name, none in zip(FEATURES, absent, strict=True) if none]
        weights = linear_model().fit(features, target)[-1].coef_
        result |= measured
        result["weights"] = {n: float(w) for n, w, none in zip(FEATURES, weights, absent, strict=True) if not none}
        predictions += [
            dict(zip(COLUMNS, (row["question_id"], target_name, *values), strict=True))
            for row, *values in zip(used, target.tolist(), linear.tolist(), constant.tolist(), strict=True)
        ]
    return results, predictions
