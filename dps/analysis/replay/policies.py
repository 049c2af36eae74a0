"""Every policy over the walked trajectories: its curve over all thresholds, and its honest operating point.

A policy that asks at checkpoints is an array of scores ``p_inc`` (Q, O, C), whoever made them: a trained controller, a
rule, the oracle. The threshold of the operating point is chosen for each question on the other folds' questions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dps.analysis.replay.samples import Walk
from dps.decide.thresholds import cheapest_without_loss, effective_margin, stops, sweep

CURVE_POINTS = 61
"""Most thresholds of a curve; they are spread evenly over its tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """What a policy gives on each of Q questions, averaged over their orders. All arrays have shape (Q,), float64."""

    correct: np.ndarray
    """Share of the orders whose answer is right."""
    tokens: np.ndarray
    """Tokens sampled."""
    accepted: np.ndarray
    """How many of them are in the responses."""
    k: np.ndarray
    """Trajectories."""


@dataclass(frozen=True, slots=True, eq=False)
class Ran:
    """One policy on one source of trajectories."""

    name: str
    """``fixed``, ``gbdt``, ``adaptive-consistency``, ..."""
    kind: str
    """``fixed``, ``controller``, ``rule``, ``chance`` or ``oracle``."""
    series: str
    """The source: ``power``, ``plain`` or ``lowtemp``."""
    thresholds: np.ndarray
    """Threshold (or k, of a fixed policy) of each point of the curve, in increasing order of tokens: shape (M,)."""
    curve: tuple[Point, ...]
    """M points."""
    chosen: Point | None
    """The operating point; None where nothing is chosen (fixed k, oracle)."""
    chosen_thresholds: np.ndarray
    """The threshold that each question was given at the operating point: shape (Q,), or (0,)."""
    natural_k: np.ndarray
    """k of each question at the operating point in the natural order: shape (Q,), int64, or (0,)."""
    natural_correct: np.ndarray
    """Whether its answer is right there: shape (Q,), bool, or (0,)."""
    p_enough: np.ndarray | None = None
    """How sure it was at each checkpoint, shape (Q, O, C), float64; None where it is not asked."""
    own: Point | None = None
    """What a trained controller gives at the threshold that it came with; None for all others."""
    own_threshold: float | np.ndarray | None = None
    """That threshold; of the controllers of a cross-validation, that of each question's fold: shape (Q,)."""

    @property
    def label(self) -> str:
        """Name and source, as a reader sees them."""
        return self.name if self.series == "power" else f"{self.name} ({self.series})"


def point(walked: Walk, stop: np.ndarray) -> Point:
    """Return what stopping at these indices into ``walked.ks`` gives: ``stop`` has shape (Q, O)."""
    chosen = stop[..., None]
    return Point(
        np.take_along_axis(walked.correct, chosen, axis=-1)[..., 0].mean(axis=1),
        np.take_along_axis(walked.tokens, chosen, axis=-1)[..., 0].mean(axis=1),
        np.take_along_axis(walked.accepted, chosen, axis=-1)[..., 0].mean(axis=1),
        np.asarray(walked.ks, dtype=np.float64)[stop].mean(axis=1),
    )


def fixed(series: str, walked: Walk) -> Ran:
    """Return fixed k for every k of the walk."""
    shape = walked.correct.shape[:2]
    points = tuple(point(walked, np.full(shape, i)) for i in range(len(walked.ks)))
    nothing = np.zeros(0)
    return Ran(
        "fixed", "fixed", series, np.asarray(walked.ks, float), points, None, nothing,
        nothing.astype(np.int64), nothing.astype(bool),
    )  # fmt: skip


def dynamic(
    name: str,
    kind: str,
    series: str,
    walked: Walk,
    p_inc: np.ndarray,
    folds: np.ndarray,
    margin: float,
    own_threshold: float | np.ndarray | None = None,
) -> Ran:
    """Return a policy that goes on while ``p_inc`` is above a threshold.

    Args:
        name: The policy.
        kind: See :class:`Ran`.
        series: The source.
        walked: Q questions in O orders.
        p_inc: Shape (Q, O, C).
        folds: Fold of each question, shape (Q,), from 0.
        margin: See :func:`cross_fitted`.
        own_threshold: The threshold that a trained controller came with; of several, of each question: shape (Q,).
    """
    thresholds = candidates(p_inc, walked)
    curve = tuple(point(walked, stops(p_inc, float(threshold))) for threshold in thresholds)
    chosen = cross_fitted(thresholds, curve, walked, folds, margin)
    stop = stops(p_inc, chosen[:, None, None])
    natural = stop[:, 0]
    return Ran(
        name,
        kind,
        series,
        thresholds,
        curve,
        point(walked, stop),
        chosen,
        np.asarray(walked.ks)[natural],
        np.take_along_axis(walked.correct[:, 0], natural[:, None], axis=-1)[:, 0],
        1.0 - p_inc,
        point(walked, stops(p_inc, np.reshape(own_threshold, (-1, 1, 1)))) if own_threshold is not None else None,
        own_threshold,
    )


def candidates(p_inc: np.ndarray, walked: Walk) -> np.ndarray:
    """Return the thresholds of a curve, spread evenly over its tokens, in increasing order of tokens."""
    every, _, tokens = sweep(p_inc, walked.correct, walked.tokens)
    wanted = np.linspace(tokens.min(), tokens.max(), CURVE_POINTS)
    used = np.unique([int(np.abs(tokens - value).argmin()) for value in wanted])
    return every[used[np.argsort(tokens[used], kind="stable")]]


def cross_fitted(
    thresholds: np.ndarray, curve: Sequence[Point], walked: Walk, folds: np.ndarray, margin: float
) -> np.ndarray:
    """Choose a threshold for each question on the questions of the other folds.

    The choice is the cheapest threshold at which those questions show no loss against k = maximum, with a bound that
    holds for all thresholds together, see :func:`dps.decide.thresholds.cheapest_without_loss`.

    Args:
        thresholds: Of the curve, shape (M,), in increasing order of tokens.
        curve: What each gives on Q questions.
        walked: The same questions; the last k is the maximum.
        folds: Fold of each question, shape (Q,). With one fold only, there is nothing else to choose on, and its own
            questions are taken.
        margin: Accuracy that counts as no loss, for instance 0.01; where there are too few questions for it, see
            :func:`dps.decide.thresholds.effective_margin`.

    Returns:
        Shape (Q,).
    """
    maximum = walked.correct[..., -1].mean(axis=1)
    losses = np.stack([p.correct for p in curve]) - maximum
    tokens = np.stack([p.tokens for p in curve])
    chosen = np.empty(len(folds))
    names = np.unique(folds)
    for fold in names:
        others = folds != fold if len(names) > 1 else folds == fold
        excluded = effective_margin(int(others.sum()), margin)
        cheapest = cheapest_without_loss(losses[:, others], tokens[:, others], excluded)
        # The last point is k = maximum for every question, which loses nothing.
        chosen[folds == fold] = thresholds[-1 if cheapest is None else cheapest]
    return chosen


def oracle(series: str, walked: Walk) -> Ran:
    """Return the bound: the smallest k that is right, the first k where none is."""
    any_right = walked.correct.any(axis=-1)
    stop = np.where(any_right, walked.correct.argmax(axis=-1), 0)
    found = point(walked, stop)
    natural = stop[:, 0]
    return Ran(
        "oracle", "oracle", series, np.zeros(1), (found,), None, np.zeros(0),
        np.asarray(walked.ks)[natural], any_right[:, 0],
    )  # fmt: skip


def folds_of(question_ids: Sequence[str], num_folds: int, seed: int) -> np.ndarray:
    """Return the fold of each question, by a hash of its id: shape (Q,), int64, balanced to one question.

    An id that is given several times, because questions are the same, has one fold.
    """
    ordered = sorted(set(question_ids), key=lambda name: hashlib.sha256(f"fold\0{seed}\0{name}".encode()).digest())
    rank = {name: place for place, name in enumerate(ordered)}
    return np.array([rank[name] for name in question_ids], dtype=np.int64) % num_folds
