"""Dynamic policies replayed over arrays, and the threshold that follows: pure NumPy.

The policy adds trajectories while ``p_inc = 1 - p_enough`` is above a threshold (METHOD section 4). A row of the arrays
is one question in one order; ``p_inc`` is (..., C), ``correct`` and ``tokens`` (..., C + 1) with k = maximum last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dps.decide.orders import at_stop
from dps.decide.splits import other_folds
from dps.estimates import ERROR, loss_is_below, smallest_margin

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


def stops(p_inc: np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
    """Return where the policy stops: the first checkpoint with ``p_inc <= threshold``, C if there is none.

    ``threshold`` is one number, or an array that broadcasts against p_inc (..., C); the indices have shape (...).
    """
    enough = p_inc <= threshold
    return np.where(enough.any(axis=-1), enough.argmax(axis=-1), p_inc.shape[-1])


def replay(stop: np.ndarray, correct: np.ndarray, tokens: np.ndarray, ks: Sequence[int]) -> Replay:
    """Return what stopping at ``stop`` (Q, O) gives; ``correct`` and ``tokens`` have shape (Q, O, C + 1)."""
    right, spent = at_stop(correct, stop).mean(axis=1), at_stop(tokens, stop)
    stderr = right.std(ddof=1) / np.sqrt(len(right)) if len(right) > 1 else np.nan
    return Replay(float(right.mean()), float(stderr), float(spent.mean()), float(np.asarray(ks)[stop].mean()))


def sweep(p_inc: np.ndarray, correct: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every threshold that makes a difference, and the mean accuracy and mean tokens at each: shape (M,) each.

    The thresholds increase and lie midway between the values of p_inc, so that rounding elsewhere cannot flip a
    decision; the first is :data:`NEVER_STOP`, the last 1, where no question gets more than the first k.
    """
    leaves = np.minimum.accumulate(p_inc.reshape(-1, p_inc.shape[-1]), axis=1)
    order = np.argsort(leaves, axis=None)
    sorted_leaves = leaves.ravel()[order]
    values = sorted_leaves[np.diff(sorted_leaves, prepend=-np.inf) > 0]
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


def spread_thresholds(p_inc: np.ndarray, correct: np.ndarray, tokens: np.ndarray, count: int) -> np.ndarray:
    """Return at most ``count`` thresholds of :func:`sweep`, spread evenly over their tokens, in increasing order."""
    every, _, costs = sweep(p_inc, correct, tokens)
    wanted = np.linspace(costs.min(), costs.max(), count)
    return every[np.unique([int(np.abs(costs - cost).argmin()) for cost in wanted])]


def cheapest_without_loss(losses: np.ndarray, tokens: np.ndarray, margin: float, error: float = ERROR) -> int | None:
    """Return which of M policies is the cheapest that shows no loss; None if none does.

    The policies are tried from the most expensive one down, until one does not show that less than ``margin`` is lost.
    Outcomes do not decide the order, so all tests together have the ``error`` of one, however many policies are tried.
    (The cheapest of all that pass would be the one that was lucky.) Who takes the best of several such sequences gives
    each its part of the error.

    ``losses`` (M, Q) are each question's accuracy minus that of k = maximum, ``tokens`` (M, Q) its tokens, both means
    over orders; ``margin`` is the accuracy that counts as no loss, for instance 0.01.

    Source:
        Angelopoulos et al. 2021, "Learn then Test", arXiv 2110.01052 (fixed-sequence testing).
    """
    chosen = None
    for i in np.argsort(-tokens.mean(axis=1), kind="stable").tolist():
        if not loss_is_below(losses[i], margin, error):
            break
        chosen = i
    return chosen


def effective_margin(num_questions: int, margin: float, error: float = ERROR) -> float:
    """Return the loss that a choice of a threshold excludes: ``margin``, or the smallest that so many questions can.

    Fewer than 368 questions cannot show that less than one point is lost, even where none of them loses. The choice is
    then the cheapest threshold at which about none loses anything; nothing shows that the margin is kept. ``error`` is
    that of :func:`cheapest_without_loss`.
    """
    return max(margin, smallest_margin(num_questions, error))


def choose_threshold(
    p_inc: np.ndarray,
    correct: np.ndarray,
    tokens: np.ndarray,
    margin: float,
    candidates: int = 128,
    reference: np.ndarray | None = None,
) -> float:
    """Return the cheapest threshold that shows no loss against k = maximum, :data:`NEVER_STOP` if none cheaper does.

    As :func:`cheapest_without_loss`, with :func:`effective_margin`, over so many candidates of
    :func:`spread_thresholds`. The arrays are of questions that trained nothing, or the threshold flatters itself:
    ``p_inc`` of shape (Q, O, C), or (Q, C) for one order, ``correct`` and ``tokens`` with C + 1 in place of C.

    ``reference`` (Q,) is each question's accuracy under another policy that nothing may be lost against, in place of k
    = maximum. The end of this ladder is then a candidate like the others: where it shows a loss, the choice is
    :data:`NEVER_STOP`, too.
    """
    if p_inc.ndim == 2:
        p_inc, correct, tokens = p_inc[:, None], correct[:, None], tokens[:, None]
    lossless = NEVER_STOP if reference is None else None  # what need not be tested
    maximum = correct[..., -1].mean(axis=1) if reference is None else reference
    margin, chosen = effective_margin(len(correct), margin), NEVER_STOP
    for threshold in spread_thresholds(p_inc, correct, tokens, candidates).tolist():  # the higher, the cheaper
        right = at_stop(correct, stops(p_inc, threshold)).mean(axis=1)
        if threshold != lossless and not loss_is_below(right - maximum, margin):
            break
        chosen = threshold
    return chosen


def cross_fitted(
    p_inc: np.ndarray,
    correct: np.ndarray,
    tokens: np.ndarray,
    folds: np.ndarray,
    margin: float,
    reference: np.ndarray | None = None,
) -> np.ndarray:
    """Return for each question the threshold that the questions of the other ``folds`` (Q,) choose: shape (Q,)."""
    chosen = np.empty(len(folds))
    for mine, others in other_folds(folds):
        against = None if reference is None else reference[others]
        chosen[mine] = choose_threshold(p_inc[others], correct[others], tokens[others], margin, reference=against)
    return chosen
