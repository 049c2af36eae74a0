"""Whether a policy's ``p_enough`` is what it says: its values in bins, beside how often k was enough. Pure NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 10
"""Of equal width over [0, 1]."""


def labels_of(correct: np.ndarray) -> dict[str, np.ndarray]:
    """Return what ``p_enough`` may be the probability of, at every checkpoint.

    Args:
        correct: Whether the answer of the first k is right, shape (Q, O, C + 1), k = maximum last.

    Returns:
        ``no_gain`` (no larger k turns a wrong answer right) and ``correct``, each of shape (Q, O, C), bool.
    """
    now = correct[..., :-1]
    later = np.logical_or.accumulate(correct[..., :0:-1], axis=-1)[..., ::-1]
    return {"no_gain": now | ~later, "correct": now}


def reliability(p_enough: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Return the reliability of probabilities against both labels.

    Every checkpoint of every order counts, whether or not a policy would have come there, so that all policies are
    judged on the same rows.

    Args:
        p_enough: Shape (Q, O, C).
        correct: Shape (Q, O, C + 1).
        weights: Resamples of the questions, shape (R, Q); a question's rows stay together.

    Returns:
        ``bins``, of those that are not empty, with ``low`` and ``high`` edge, ``count``, mean ``p_enough`` and each
        label's share with its 95 % interval; and for each label ``brier`` and ``error``, the mean distance between
        p_enough and share over the bins.
    """
    num_questions = len(p_enough)
    probability = p_enough.reshape(num_questions, -1)
    which = np.clip((probability * BINS).astype(np.int64), 0, BINS - 1)
    cell = (np.arange(num_questions)[:, None] * BINS + which).ravel()

    def summed(values: np.ndarray) -> np.ndarray:
        """Sum (Q, O * C) values by question and bin: shape (Q, BINS)."""
        sums = np.bincount(cell, values.reshape(-1).astype(np.float64), minlength=num_questions * BINS)
        return sums.reshape(num_questions, BINS)

    count, total = summed(np.ones_like(probability)), summed(probability)
    filled = np.flatnonzero(count.sum(axis=0))
    rows = count.sum(axis=0)[filled]
    mean = total.sum(axis=0)[filled] / rows
    found: dict[str, Any] = {
        "bins": [
            {"low": int(i) / BINS, "high": (int(i) + 1) / BINS, "count": int(n), "p_enough": float(p)}
            for i, n, p in zip(filled, rows, mean, strict=True)
        ]
    }
    drawn = weights @ count[:, filled]
    for name, label in labels_of(correct).items():
        truth = label.reshape(num_questions, -1)
        right = summed(truth)[:, filled]
        share = right.sum(axis=0) / rows
        # A resample without any question of a bin says nothing of it.
        replicates = np.divide(weights @ right, drawn, out=np.tile(share, (len(weights), 1)), where=drawn > 0)
        low, high = np.percentile(replicates, [2.5, 97.5], axis=0)
        for entry, *values in zip(found["bins"], share, low, high, strict=True):
            entry[name] = dict(zip(("value", "low", "high"), map(float, values), strict=True))
        found[name] = {
            "brier": float(((probability - truth) ** 2).mean()),
            "error": float((rows * np.abs(share - mean)).sum() / rows.sum()),
        }
    return found
