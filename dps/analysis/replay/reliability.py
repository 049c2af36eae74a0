"""Whether a policy's ``p_enough`` is what it says: its values in bins, beside how often k was enough. Pure NumPy.

Bins have equally many rows, not equal width: the values of ``p_enough`` crowd together where decisions fall, above 0.9
most of all, and bins of equal width would put all of them into one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dps.estimates import ratio

BINS = 10
"""Most bins; equal values share one."""


def quantile_bins(values: np.ndarray) -> np.ndarray:
    """Return the bin of each value: shape (N,), int64, from 0 without gaps.

    The edges are the deciles, so bins have equally many values but where many are the same.

    Args:
        values: Shape (N,).
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1], method="higher"))
    return np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)[1].reshape(-1)


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
    found: dict[str, Any] = {
        "bins": [
            {
                "low": float(flat[which == i].min()),
                "high": float(flat[which == i].max()),
                "count": int(rows[i]),
                "p_enough": float(mean[i]),
            }
            for i in range(num_bins)
        ]
    }
    drawn = weights @ count
    for name, label in labels_of(correct).items():
        truth = label.reshape(num_questions, -1)
        right = summed(truth)
        share = right.sum(axis=0) / rows
        # A resample without any question of a bin says nothing of it.
        replicates = np.divide(weights @ right, drawn, out=np.tile(share, (len(weights), 1)), where=drawn > 0)
        low, high = np.percentile(replicates, [2.5, 97.5], axis=0)
        for entry, *values in zip(found["bins"], share, low, high, strict=True):
            entry[name] = dict(zip(("value", "low", "high"), map(float, values), strict=True))
        found[name] = {
            "brier": float(((probability - truth) ** 2).mean()),
            "skill": brier_skill(probability, truth, np.full_like(probability, truth.mean())),
            "error": float((rows * np.abs(share - mean)).sum() / rows.sum()),
        }
    return found


def brier_skill(probability: np.ndarray, truth: np.ndarray, baseline: np.ndarray) -> dict[str, float] | None:
    """Return the share of a baseline's Brier score that probabilities take away, with an interval over questions.

    Args:
        probability: Shape (Q, R): R rows of each question.
        truth: Whether the label holds, shape (Q, R), bool.
        baseline: The probabilities of the baseline, shape (Q, R).

    Returns:
        ``value`` (1 is perfect, 0 no better than the baseline), ``stderr``, ``low`` and ``high``; None where the
        baseline makes no error or there are fewer than two questions.
    """
    ours, theirs = (((p - truth) ** 2).mean(axis=1) for p in (probability, baseline))
    if len(ours) < 2 or theirs.mean() <= 1e-12:
        return None
    if np.allclose(ours, theirs, rtol=1e-12, atol=1e-12):  # the baseline itself
        return dict.fromkeys(("value", "stderr", "low", "high"), 0.0)
    found = ratio(theirs - ours, theirs)
    return {"value": found.value, "stderr": found.stderr, "low": found.low, "high": found.high}
