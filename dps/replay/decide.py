"""Dynamic policies replayed over a table, and the threshold that follows: pure NumPy.

The policy starts at the first checkpoint and adds trajectories while ``p_inc = 1 - p_enough`` is above a threshold
(METHOD section 4). A row of the arrays here is one question in one order; ``p_inc`` has shape (..., C), ``correct`` and
``tokens`` have shape (..., C + 1) with k = maximum last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NEVER_STOP = -1.0
"""A threshold that every p_inc is above, so that every question gets the maximum."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What a policy gives on some questions; means over questions and orders."""

    accuracy: float
    """Share of right answers."""
    accuracy_stderr: float
    """Its standard error, clustered by question; NaN for one question."""
    tokens: float
    """Generated tokens of a question, rejected ones included."""
    mean_k: float
    """Trajectories of a question."""


def stops(p_inc: np.ndarray, threshold: float) -> np.ndarray:
    """Return where the policy stops: the first checkpoint with ``p_inc <= threshold``, C if there is none.

    Args:
        p_inc: Probability that more trajectories help, shape (..., C).
        threshold: More are added while p_inc is above it.

    Returns:
        Indices into the C + 1 values of k, shape (...).
    """
    enough = p_inc <= threshold
    return np.where(enough.any(axis=-1), enough.argmax(axis=-1), p_inc.shape[-1])


def replay(stop: np.ndarray, correct: np.ndarray, tokens: np.ndarray, ks: Sequence[int]) -> Replay:
    """Return what stopping there gives.

    Args:
        stop: Where each order of each question stops, shape (Q, O), see :func:`stops`.
        correct: Shape (Q, O, C + 1).
        tokens: Shape (Q, O, C + 1).
        ks: The C + 1 values of k.
    """
    right = np.take_along_axis(correct, stop[..., None], axis=-1)[..., 0].mean(axis=1)
    spent = np.take_along_axis(tokens, stop[..., None], axis=-1)[..., 0]
    stderr = right.std(ddof=1) / np.sqrt(len(right)) if len(right) > 1 else np.nan
    return Replay(float(right.mean()), float(stderr), float(spent.mean()), float(np.asarray(ks)[stop].mean()))


def sweep(p_inc: np.ndarray, correct: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Replay the policy at every threshold that makes a difference, in O(n log n).

    A row leaves checkpoint c as soon as the threshold falls below ``min(p_inc[:c + 1])``. So with the thresholds going
    down, accuracy and tokens change by ``value[c + 1] - value[c]`` at each of these minima, and one sort does it.

    Args:
        p_inc: Shape (..., C).
        correct: Shape (..., C + 1).
        tokens: Shape (..., C + 1).

    Returns:
        Thresholds in increasing order, and the mean accuracy and the mean tokens at each: three arrays of shape (M,).
        They lie midway between the values of p_inc, so that rounding elsewhere cannot flip a decision; the first is
        :data:`NEVER_STOP`, the last 1, where no question gets more than the first k.
    """
    leaves = np.minimum.accumulate(p_inc.reshape(-1, p_inc.shape[-1]), axis=1)
    order = np.argsort(leaves, axis=None)
    sorted_leaves = leaves.ravel()[order]
    values = np.unique(leaves)
    # 0 stands for "only where more cannot help at all" and is left out where p_inc reaches it.
    middles = (values[:-1] + values[1:]) / 2
    thresholds = np.unique(np.concatenate([[NEVER_STOP], [0.0] if values[0] > 0 else [], middles, [1.0]]))

    def means(of: np.ndarray) -> np.ndarray:
        flat = of.reshape(-1, of.shape[-1]).astype(np.int64)
        changes = np.diff(flat, axis=1).ravel()[order]
        above = np.concatenate([np.cumsum(changes[::-1])[::-1], [0]])
        left = np.searchsorted(sorted_leaves, thresholds, side="right")
        return (flat[:, 0].sum() + above[left]) / len(flat)

    return thresholds, means(correct), means(tokens)


def choose_threshold(p_inc: np.ndarray, correct: np.ndarray, tokens: np.ndarray, tolerance: float) -> float:
    """Return the cheapest threshold whose accuracy is at most ``tolerance`` below that of k = maximum.

    Args:
        p_inc: Shape (..., C), of validation questions.
        correct: Shape (..., C + 1).
        tokens: Shape (..., C + 1).
        tolerance: Accuracy that may be given up, at least 0.

    Returns:
        A threshold; of equally cheap ones the most accurate, then the largest. :data:`NEVER_STOP` always qualifies.
    """
    thresholds, accuracies, costs = sweep(p_inc, correct, tokens)
    # The accuracies are counts over one total: 1e-9 separates rounding from a real difference.
    allowed = np.flatnonzero(accuracies >= correct[..., -1].mean() - tolerance - 1e-9)
    best = max(allowed, key=lambda i: (-costs[i], accuracies[i], thresholds[i]))
    return float(thresholds[best])


def cheapest_without_loss(losses: np.ndarray, tokens: np.ndarray, margin: float) -> int | None:
    """Return which of M thresholds is the cheapest that shows no loss; None if none does.

    No loss is shown where the lower end of the paired 95 % interval of the accuracy difference (1.96 standard errors,
    clustered by question) is at least ``-margin``.

    Args:
        losses: Accuracy of each question minus that of k = maximum, averaged over orders: shape (M, Q).
        tokens: Its tokens, likewise: shape (M, Q).
        margin: Accuracy that counts as no loss, for instance 0.01.
    """
    lower = losses.mean(axis=1)
    if losses.shape[1] > 1:
        lower = lower - 1.96 * losses.std(axis=1, ddof=1) / np.sqrt(losses.shape[1])
    allowed = np.flatnonzero(lower >= -margin - 1e-12)
    return min(allowed.tolist(), key=lambda i: tokens[i].mean(), default=None)


def no_loss_threshold(
    p_inc: np.ndarray, correct: np.ndarray, tokens: np.ndarray, margin: float, candidates: int = 256
) -> float:
    """Return the cheapest threshold that shows no loss against k = maximum, see :func:`cheapest_without_loss`.

    Args:
        p_inc: Shape (Q, O, C); out of fold, or the threshold flatters itself.
        correct: Shape (Q, O, C + 1).
        tokens: Shape (Q, O, C + 1).
        margin: Accuracy that counts as no loss.
        candidates: Thresholds that are tried, spread evenly over their tokens.

    Returns:
        A threshold; :data:`NEVER_STOP` if nothing cheaper than k = maximum shows no loss.
    """
    every, _, costs = sweep(p_inc, correct, tokens)
    wanted = np.linspace(costs.min(), costs.max(), candidates)
    thresholds = every[np.unique([int(np.abs(costs - cost).argmin()) for cost in wanted])]

    def means(of: np.ndarray, stop: np.ndarray) -> np.ndarray:
        return np.take_along_axis(of, stop[..., None], axis=-1)[..., 0].mean(axis=1)

    stop = [stops(p_inc, float(threshold)) for threshold in thresholds]
    losses = np.stack([means(correct, at) for at in stop]) - correct[..., -1].mean(axis=1)
    best = cheapest_without_loss(losses, np.stack([means(tokens, at) for at in stop]), margin)
    return NEVER_STOP if best is None else float(thresholds[best])
