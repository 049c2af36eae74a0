"""Labels of checkpoints (METHOD section 4): what a controller learns of the moment after each rung."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Label = Literal["no_gain", "correct", "end", "value"]
LABELS: tuple[str, ...] = get_args(Label)
VALUE = "value"
"""The label that is no probability: its score is a rate of gain, see :func:`score_of_rate`."""


def labels_of(correct: np.ndarray, label: str, later: np.ndarray | None = None) -> np.ndarray:
    """Return the label of every checkpoint (..., C) from whether the answer of each k is right (..., C + 1).

    ``correct``: the answer of this k is right. ``no_gain``: no larger k up to the maximum turns a wrong answer right,
    so a hopeless question is also enough. ``end``: the answer of the maximum is right, the same at every checkpoint.
    ``value``: stopping is no worse than going on to ``later`` (..., C), the maximum where not given: the sign of what
    :func:`value_of` returns, by which a value's score is ranked. A ValueError for any other label.
    """
    if label not in LABELS:
        raise ValueError(f"expected a label among {', '.join(LABELS)}, got {label!r}")
    now = correct[..., :-1]
    if label == "correct":
        return now
    if label == "end":
        return np.broadcast_to(correct[..., -1:], now.shape)
    if label == VALUE:
        return now >= np.take_along_axis(correct, _to_the_end(now) if later is None else later, axis=-1)
    later_right = np.logical_or.accumulate(correct[..., :0:-1], axis=-1)[..., ::-1]
    return now | ~later_right


def value_of(correct: np.ndarray, tokens: np.ndarray, later: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return what going on gains and costs at every checkpoint: shape (..., C) each, int64.

    Args:
        correct: Whether the answer after each rung is right, shape (..., C + 1), bool.
        tokens: Tokens until then, shape (..., C + 1), int64.
        later: Where a question stops that goes on from a checkpoint, beyond it, shape (..., C); see
            :func:`later_stops`. The end of the ladder where not given.

    Returns:
        The gain, right there minus right now: -1, 0 or 1; and the tokens to get there.
    """
    now = correct[..., :-1]
    later = _to_the_end(now) if later is None else later
    gain, cost = (
        np.take_along_axis(of.astype(np.int64), later, axis=-1) - of[..., :-1].astype(np.int64)
        for of in (correct, tokens)
    )
    return gain, cost


def _to_the_end(now: np.ndarray) -> np.ndarray:
    return np.full(now.shape, now.shape[-1])


def later_stops(p_inc: np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
    """Return where a policy stops that goes on from each checkpoint c: the first c' > c with ``p_inc <= threshold``.

    C where there is none. Shapes (..., C), int64; ``threshold`` broadcasts against p_inc.
    """
    count = p_inc.shape[-1]
    stops_at = np.where(p_inc <= threshold, np.arange(count), count)[..., 1:]
    later = np.minimum.accumulate(stops_at[..., ::-1], axis=-1)[..., ::-1]
    return np.concatenate([later, np.full((*p_inc.shape[:-1], 1), count)], axis=-1)


def score_of_rate(rate: np.ndarray | float) -> np.ndarray:
    """Return ``1 / 2 + arctan(rate) / pi`` of a rate of gain, points of accuracy per 1,000 tokens: p_inc of ``value``.

    One to one and increasing from (-inf, inf) to (0, 1), so one multiplier for all rungs is one threshold.
    """
    return 0.5 + np.arctan(rate) / np.pi


def rate_of_score(p_inc: np.ndarray | float) -> np.ndarray:
    """Return the rate, points per 1,000 tokens, that has this score; infinite outside (0, 1), as thresholds may be."""
    inside = np.clip(p_inc, 0.0, 1.0)
    rate = np.tan(np.pi * (inside - 0.5))
    return np.where(inside <= 0, -np.inf, np.where(inside >= 1, np.inf, rate))


def continue_score(p_enough: np.ndarray) -> np.ndarray:
    """Return ``p_inc = 1 - p_enough``, which must be above the threshold for a question to continue."""
    return 1.0 - p_enough
