"""Every operating point of a replay beside every rival's curve at the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dps.analysis.replay import compare
from dps.analysis.replay.compare import Curve, Interval
from dps.analysis.replay.policies import Point, Ran
from dps.estimates import needed, simultaneous

_RULES = ("rule", "chance")
"""Kinds of policies that need no training."""


def verdict_of(difference: Interval) -> str:
    """Return ``above``, ``below`` or ``undecided``: whether an interval leaves 0 out."""
    return {1: "above", -1: "below", 0: "undecided"}[difference.sign]


def matched_tokens(ran: Sequence[Ran], curves: Mapping[str, Curve], weights: np.ndarray) -> list[dict[str, Any]]:
    """Compare every operating point, and k = maximum, with every other policy's curve at the same tokens.

    The strongest of several rivals must not be picked out with the interval of one. So every comparison with cheap
    samples has, as ``together``, the interval that holds for all of these; and every one with a rule over the same
    trajectories.

    Args:
        ran: All policies.
        curves: The curve of each, by label.
        weights: Resamples of the questions, shape (R, Q).

    Returns:
        The entries of ``matched_tokens`` in ``replay.json``.
    """
    found = []
    for one in ran:
        if one.kind in ("oracle", "chance") or one.series != "power":
            continue
        at = one.chosen or one.curve[-1]
        compared = [
            entry
            for other in ran
            if other is not one and other.kind != "oracle"
            if (entry := _beside(one, at, other, curves[other.label], weights)) is not None
        ]
        _together([pair for pair in compared if pair[0]["rival_series"] != "power"])
        _together([pair for pair in compared if pair[0]["rival_series"] == "power" and pair[0]["rival_kind"] in _RULES])
        found += [entry for entry, _ in compared]
    return found


def _beside(
    one: Ran, at: Point, other: Ran, curve: Curve, weights: np.ndarray
) -> tuple[dict[str, Any], np.ndarray] | None:
    """Compare a policy's point with a rival's curve at its tokens; also return the difference on every resample."""
    tokens, accuracy = float(at.tokens.mean()), float(at.correct.mean())
    rival = compare.accuracy_at(curve, tokens, weights @ at.tokens)
    if rival is None:
        return None
    value, replicates = accuracy - rival[0], weights @ at.correct - rival[1]
    if other.series == one.series and tokens >= curve.tokens[-1] * (1 - 1e-9):  # both are k = maximum
        difference, questions = Interval(0.0, 0.0, 0.0), None
    else:
        difference = compare.widened(value, replicates, len(at.correct))
        questions = needed(value, float(replicates.std(ddof=1)), len(at.correct))
    entry = {
        "policy": one.label if one.chosen is not None else f"fixed-k{int(one.thresholds[-1])}",
        "kind": one.kind,
        "rival": other.label,
        "rival_kind": other.kind,
        "rival_series": other.series,
        "tokens": tokens,
        "rival_tokens": min(tokens, float(curve.tokens[-1])),
        "accuracy": accuracy,
        "rival_accuracy": rival[0],
        "difference": difference.plain(),
        "verdict": verdict_of(difference),
        "questions_needed": questions,
    }
    return entry, replicates


def _together(compared: Sequence[tuple[dict[str, Any], np.ndarray]]) -> None:
    """Give every comparison the interval that holds for all of these together, so that the worst may be picked out."""
    if not compared:
        return
    values = [entry["difference"]["value"] for entry, _ in compared]
    ends = simultaneous(values, np.stack([replicates for _, replicates in compared], axis=1))
    for (entry, _), (low, high) in zip(compared, ends, strict=True):
        alone = entry["difference"]
        together = Interval(alone["value"], min(low, alone["low"]), max(high, alone["high"]))
        entry["together"] = {**together.plain(), "rivals": len(compared), "verdict": verdict_of(together)}
