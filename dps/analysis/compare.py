"""Comparisons in pairs: a policy beside the reference, and beside a rival's curve at the same tokens.

A policy is one value per question (already averaged over orders). Plain means and their differences have the exact
intervals of ``dps.estimates``; a mean along a curve is a mixture of two points, and its interval is a bootstrap over
questions with the same resamples for all, so that the strongest of several rivals can be judged, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dps.analysis.policies import ReplayedPolicy
from dps.analysis.table import Outcome
from dps.analysis.words import json_number, plain
from dps.estimates import (
    LEVEL,
    Estimate,
    loss_is_below,
    needed,
    paired,
    ratio,
    resampled,
    simultaneous,
    widened,
)

_TRAINED_BY_NOBODY = ("rule", "chance")


def verdict_of(difference: Estimate) -> str:
    """Return ``above``, ``below`` or ``undecided``: whether an interval leaves 0 out."""
    return {1: "above", -1: "below", 0: "undecided"}[difference.sign]


def percentiles(replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the 95 % intervals of several numbers over resamples: shape (R, ...) each."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(replicates, [tail, 100 - tail], axis=0)
    return low, high


def against(point: Outcome, reference: Outcome, seconds: np.ndarray | None, margin: float) -> dict[str, Any]:
    """Return a point's difference from the reference and its share of the costs, paired.

    ``seconds`` are seconds per token and each question's prefill seconds on the calibrated clock, shape (1 + Q,).
    """
    difference = point.correct - reference.correct
    known = difference[~np.isnan(difference)]
    estimated = _nothing(len(known)) if _are_one(point, reference) else paired(point.correct, reference.correct)
    time = None
    if seconds is not None:
        time = plain(ratio(*(one.tokens * seconds[0] + seconds[1:] for one in (point, reference))))
    return {
        "accuracy_difference": plain(estimated),
        "tokens_ratio": plain(ratio(point.tokens, reference.tokens)),
        "time_ratio": time,
        "questions_needed": needed(estimated.value, estimated.stderr, estimated.num_questions),
        "no_loss": bool(len(known)) and loss_is_below(known, margin),
    }


def _are_one(point: Outcome, other: Outcome) -> bool:
    """Whether two points are the same on every graded question, as where both are k = maximum: nothing is uncertain."""
    graded = ~np.isnan(point.correct)
    return bool(
        graded.any()
        and np.array_equal(point.tokens, other.tokens)
        and np.array_equal(point.correct[graded], other.correct[graded])
    )


def _nothing(count: int) -> Estimate:
    return Estimate(0.0, 0.0, count, 0.0, 0.0)


def accuracy_at(curve: Sequence[Outcome], tokens: np.ndarray) -> tuple[np.ndarray, int, int, float] | None:
    """Return the accuracy that a curve has where it spends as many tokens as something else, question by question.

    Between two points the curve is a policy that one could run: a share ``w`` of the questions with the dearer one, the
    others with the cheaper. Beyond the dearest point that one counts, which spends fewer. With s the accuracy gained
    per token between the two points, the values are ``(1 - w) c_below + w c_above - s ((1 - w) t_below + w t_above -
    t)``: their mean is the curve's accuracy, and their spread has that of the tokens in it, too.

    Args:
        curve: Points in increasing order of mean tokens.
        tokens: What is spent on each question: shape (Q,).

    Returns:
        The values, the two points, and w; None where the cheapest point spends more.

    Source:
        METHOD section 6.
    """
    means = np.array([point.tokens.mean() for point in curve])
    spent = float(tokens.mean())
    below = int(np.searchsorted(means, spent * (1 + 1e-9), side="right")) - 1
    if below < 0:
        return None
    above = min(below + 1, len(curve) - 1)
    gap = means[above] - means[below]
    weight = max((spent - means[below]) / gap, 0.0) if gap > 0 else 0.0
    if weight < 1e-12:
        return curve[below].correct, below, below, 0.0
    one, other = curve[below], curve[above]
    slope = float((other.correct.mean() - one.correct.mean()) / gap)
    mixed = (1 - weight) * one.correct + weight * other.correct
    return mixed - slope * ((1 - weight) * one.tokens + weight * other.tokens - tokens), below, above, weight


def matched_tokens(policies: Sequence[ReplayedPolicy], weights: np.ndarray) -> list[dict[str, Any]]:
    """Compare rows of the table, those of the main ladder and of controllers, with other curves at the same tokens.

    The strongest of several rivals must not be picked out with the interval of one. So every comparison with another
    arm or ladder has, as ``together``, the interval that holds for all of these; and every one with a rule over the
    same responses. ``weights`` are resamples of the questions, shape (R, Q).
    """
    entries = []
    for policy in policies:
        if policy.family in ("oracle", "chance") or not (policy.is_main or policy.family == "controller"):
            continue
        for name, point in listed_points(policy):
            compared = [
                entry
                for rival in policies
                if rival is not policy
                and rival.family != "oracle"
                and (rival.family == "fixed" or len(rival.curve) > 1)
                if (entry := _beside(policy, name, point, rival, weights)) is not None
            ]
            _together([c for c in compared if c[0]["rival_series"] != policy.series], weights)
            rules = [c for c in compared if c[0]["rival_series"] == policy.series]
            _together([c for c in rules if c[0]["rival_family"] in _TRAINED_BY_NOBODY], weights)
            entries += [entry for entry, _ in compared]
    return entries


def listed_points(policy: ReplayedPolicy) -> list[tuple[str, Outcome]]:
    """Return the rows of a policy: its name in the table and what it gives."""
    if policy.chosen is not None:
        return [(policy.label, policy.chosen)]
    names = map(policy.row_name, policy.thresholds)
    return [(name, point) for name, point, shown in zip(names, policy.curve, policy.listed, strict=True) if shown]


def _beside(
    policy: ReplayedPolicy, name: str, point: Outcome, rival: ReplayedPolicy, weights: np.ndarray
) -> tuple[dict[str, Any], np.ndarray] | None:
    """Compare a point with a rival's curve at its tokens; also return the difference by question."""
    at_tokens = accuracy_at(rival.curve, point.tokens)
    if at_tokens is None:
        return None
    mixed, below, above, weight = at_tokens
    tokens, most = float(point.tokens.mean()), float(rival.curve[-1].tokens.mean())
    values = point.correct - mixed
    if rival.series == policy.series and _are_one(point, rival.curve[-1]):
        difference, questions = _nothing(len(values)), None
        values = np.zeros(len(values))
    else:
        difference = widened(float(values.mean()), weights @ values, len(values))
        questions = needed(difference.value, difference.stderr, len(values))
    entry = {
        "policy": name,
        "family": policy.family,
        "series": policy.series,
        "rival": rival.label,
        "rival_family": rival.family,
        "rival_series": rival.series,
        "between": [json_number(rival.thresholds[below]), json_number(rival.thresholds[above])],
        "weight_above": weight,
        "tokens": tokens,
        "rival_tokens": min(tokens, most),
        "rival_exhausted": most < tokens * (1 - 1e-9),
        "accuracy": float(point.correct.mean()),
        "rival_accuracy": float(mixed.mean()),
        "num_questions": len(values),
        "difference": plain(difference),
        "verdict": verdict_of(difference),
        "questions_needed": questions,
    }
    return entry, values


def left(policies: Sequence[ReplayedPolicy], rules: Sequence[str], weights: np.ndarray) -> list[dict[str, Any]]:
    """Return what is left to save at the accuracies of rules, by label, and how much of that votes could save.

    ``share`` is how far the best rule on votes goes from the rule's tokens to those of perfect knowledge; its interval
    is over the questions, with the fit of the rule on votes as it is. ``held_out`` compares ``votes-dp`` with the rule
    at the rule's tokens.
    """
    entries = []
    for rule in (one for one in policies if one.label in rules):
        bound = {one.name: one for one in policies if one.family == "oracle" and one.series == rule.series}
        if rule.chosen is None or not bound:
            continue
        every = np.concatenate([np.full((1, weights.shape[1]), 1 / weights.shape[1]), weights])
        accuracy, tokens = every @ rule.chosen.correct, every @ rule.chosen.tokens
        known, votes = (_tokens_at(bound[name].curve, accuracy, every) for name in ("oracle", "votes-bound"))
        if known[0] >= tokens[0]:
            continue
        left = np.where(tokens > known, tokens - known, np.nan)
        share = np.maximum((tokens - votes) / left, 0.0)
        of_others = _beside(rule, rule.label, rule.chosen, bound["votes-dp"], weights)
        entries.append(
            {
                "policy": rule.label,
                "accuracy": float(accuracy[0]),
                "tokens": float(tokens[0]),
                "oracle_tokens": float(known[0]),
                "votes_tokens": json_number(votes[0]),
                "share": plain(resampled(float(share[0]), share[1:], weights.shape[1])),
                "held_out": None if of_others is None else of_others[0],
            }
        )
    return entries


def _tokens_at(curve: Sequence[Outcome], accuracy: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the fewest tokens that mixtures of two points need for an accuracy, (R,), on each resample: (R,).

    Infinite where no point reaches the accuracy. ``weights`` has shape (R, Q).
    """
    tokens, right = (weights @ np.stack([getattr(one, name) for one in curve]).T for name in ("tokens", "correct"))
    reached = right >= accuracy[:, None] - 1e-12
    fewest = np.where(reached, tokens, np.inf).min(axis=1)
    for i in range(len(curve)):  # a share of the questions with this point, which is below, the others with one above
        rise = right - right[:, i : i + 1]
        mixes = reached & ~reached[:, i : i + 1]
        part = (accuracy - right[:, i])[:, None] / np.where(mixes, rise, 1.0)
        mixed = tokens[:, i : i + 1] + part * (tokens - tokens[:, i : i + 1])
        fewest = np.minimum(fewest, np.where(mixes, mixed, np.inf).min(axis=1))
    return fewest


def _together(compared: Sequence[tuple[dict[str, Any], np.ndarray]], weights: np.ndarray) -> None:
    """Give every comparison the interval that holds for all of these together, so that the worst may be picked out."""
    if not compared:
        return
    values = [entry["difference"]["value"] for entry, _ in compared]
    ends = simultaneous(values, weights @ np.stack([difference for _, difference in compared], axis=1))
    for (entry, differences), (low, high) in zip(compared, ends, strict=True):
        alone = entry["difference"]
        wide = Estimate(
            alone["value"], alone["stderr"], len(differences), min(low, alone["low"]), max(high, alone["high"])
        )
        entry["together"] = {**plain(wide), "rivals": len(compared), "verdict": verdict_of(wide)}


def difficulty(
    groups: np.ndarray, names: Sequence[str], ks: Sequence[int], policies: Sequence[ReplayedPolicy]
) -> dict[str, Any]:
    """Return how many trajectories questions got, by the group of each, shape (Q,); -1 of those that do not count."""
    rows = []
    for one in policies:
        if one.chosen is None or not one.is_main:
            continue
        members = [groups == group for group in range(len(names))]
        rows.append(
            {
                "policy": one.label,
                "mean_k": [float(one.chosen.k[rows_].mean()) if rows_.any() else None for rows_ in members],
                "share_at_k": [shares_at(one.natural_k[rows_]) for rows_ in members],  # type: ignore[index]
            }
        )
    counts = [int((groups == group).sum()) for group in range(len(names))]
    return {"groups": list(names), "questions": counts, "ks": list(ks), "policies": rows}


def shares_at(natural_k: np.ndarray) -> dict[str, float]:
    """Return the share of questions that ended with each k, over the k's that occur."""
    ks, counts = np.unique(natural_k, return_counts=True)
    return {str(int(k)): int(count) / len(natural_k) for k, count in zip(ks, counts, strict=True)}
