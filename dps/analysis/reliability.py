"""Whether a policy's ``p_enough`` is what it says: its values in bins, beside how often k was enough.

Bins have equally many rows, not equal width: the values of ``p_enough`` crowd together where decisions fall, above 0.9
most of all, and bins of equal width would put all of them into one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dps.analysis.compare import percentiles
from dps.analysis.words import plain
from dps.decide.labels import LABELS, labels_of
from dps.estimates import brier_skill, quantile_bins


def reliability(p_enough: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Return the reliability of probabilities against both labels.

    Every checkpoint of every order counts, whether or not a policy would have come there, so that all policies are
    judged on the same rows.

    Args:
        p_enough: Shape (Q, O, C).
        correct: Shape (Q, O, C + 1), k = maximum last.
        weights: Resamples of the questions, shape (R, Q); a question's rows stay together.

    Returns:
        ``bins``, with ``low`` and ``high`` (the smallest and the largest ``p_enough`` in it), ``count``, mean
        ``p_enough`` and each label's share with its 95 % interval; and for each label ``brier``, ``skill`` (the Brier
        score that always saying the label's share would have, minus this, over the former: 0 is no better than the base
        rate; None where the label does not vary) with its interval, and ``error``, the mean distance between p_enough
        and share over the bins.
    """
    num_questions = len(p_enough)
    probability = p_enough.reshape(num_questions, -1)
    flat = probability.reshape(-1)
    which = quantile_bins(flat)
    num_bins = int(which.max()) + 1
    cell = np.repeat(np.arange(num_questions) * num_bins, probability.shape[1]) + which

    def summed(values: np.ndarray) -> np.ndarray:
        """Sum (Q, O * C) values by question and bin: shape (Q, bins)."""
        sums = np.bincount(cell, values.reshape(-1).astype(np.float64), minlength=num_questions * num_bins)
        return sums.reshape(num_questions, num_bins)

    count, total = summed(np.ones_like(probability)), summed(probability)
    rows = count.sum(axis=0)
    mean = total.sum(axis=0) / rows
    bins: list[dict[str, Any]] = [
        {
            "low": float(flat[which == i].min()),
            "high": float(flat[which == i].max()),
            "count": int(rows[i]),
            "p_enough": float(mean[i]),
        }
        for i in range(num_bins)
    ]
    result: dict[str, Any] = {"bins": bins}
    drawn = weights @ count
    for name in LABELS:
        truth = labels_of(correct, name).reshape(num_questions, -1)
        right = summed(truth)
        share = right.sum(axis=0) / rows
        # A resample without any question of a bin says nothing of it.
        replicates = np.divide(weights @ right, drawn, out=np.tile(share, (len(weights), 1)), where=drawn > 0)
        for entry, *values in zip(bins, share, *percentiles(replicates), strict=True):
            entry[name] = dict(zip(("value", "low", "high"), map(float, values), strict=True))
        skill = brier_skill(probability, truth, np.full_like(probability, truth.mean()))
        result[name] = {
            "brier": float(((probability - truth) ** 2).mean()),
            "skill": None if skill is None else plain(skill),
            "error": float((rows * np.abs(share - mean)).sum() / rows.sum()),
        }
    return result
