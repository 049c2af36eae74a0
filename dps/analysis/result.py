"""The result of an analysis as one plain dictionary, of the same schema for evaluations, harvests and replays.

It holds all that pages, figures and tables show, so it can be kept when the stores are not. ``report`` and
``replay`` say which policies are compared; :func:`result_of` compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dps.analysis import compare
from dps.analysis.findings import best_rule, findings
from dps.analysis.policies import ReplayedPolicy, graded_alike, restricted
from dps.analysis.questions import GROUPS, difficulty_of
from dps.analysis.reliability import reliability
from dps.analysis.table import Outcome, StoreTable, common_questions, describe_readings, describe_source
from dps.analysis.words import json_number, listing, plain, points_of, questions
from dps.decide.thresholds import effective_margin
from dps.estimates import FEWEST, MARGIN, Estimate, bounded, estimate, fewest_questions, needed, paired, resamples

SCHEMA_VERSION = 3
"""Of ``report.json`` and ``replay.json``."""
RESAMPLES = 2000
"""Bootstrap resamples of questions, if nothing else is set."""
COSTS = ("tokens", "compute_s", "latency_s", "calibrated_s")
"""What a point of a policy costs, means over questions."""


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """What a result is made from."""

    kind: str
    """``evaluation``, ``harvest`` or ``replay``."""
    title: str
    """Title of the page."""
    tables: Sequence[StoreTable]
    """The stores, on the questions that are compared."""
    whole: Sequence[StoreTable]
    """The same stores with all of their questions."""
    policies: Sequence[ReplayedPolicy]
    """All policies, power sampling's fixed k first where there is one."""
    ks: tuple[int, ...]
    """The k's of power sampling."""
    num_orders: int
    """Orders that everything is averaged over."""
    clock: tuple[str, dict[str, float]] | None
    """The calibrated clock and the store it is of."""
    notes: Sequence[str]
    """What readers of the stores have to say."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of a replay."""
    controllers: dict[str, str] = field(default_factory=dict)
    """Where a replay's controllers are from."""
    margin: float = MARGIN
    """Accuracy that counts as no loss."""
    folds: int | None = None
    """Folds in which a replay's thresholds were chosen."""
    resamples: int = RESAMPLES
    """Bootstrap resamples of questions."""
    seed: int = 0
    """Of the resamples."""
    mixing: Sequence[dict[str, Any]] = ()
    """Diagnostics of stores with recorded steps."""
    questions: dict[str, Any] | None = None
    """Questions to read."""
    correct: np.ndarray | None = None
    """Whether power sampling is right at every k of a replay: shape (Q, O, C + 1), bool."""


def result_of(analysis: Analysis) -> dict[str, Any]:
    """Return everything that is shown, as JSON values; a number that does not exist is None."""
    tables, first = analysis.tables, analysis.tables[0]
    ids = first.question_ids
    graded = np.isin(ids, common_questions(tables, graded=True))
    policies = [graded_alike(policy, graded) for policy in analysis.policies]
    weights = resamples(int(graded.sum()), analysis.resamples, [analysis.seed, 1]) if graded.any() else None
    reference = policies[0] if policies[0].family == "fixed" and policies[0].series == "power" else None
    judged = [restricted(policy, graded) for policy in policies]
    seconds, clock = _clock(analysis)
    sources = [describe_source(*pair) for pair in zip(tables, analysis.whole, strict=True)]
    entries = [
        _policy(policy, one, reference, weights, seconds, analysis.margin)
        for policy, one in zip(policies, judged, strict=True)
    ]
    power = next((table.samples for table in tables if table.series == "power"), None)
    enough = [one for one in policies if one.p_enough is not None and one.series == "power" and one.family != "chance"]
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": analysis.kind,
        "title": analysis.title,
        "num_questions": len(ids),
        "num_graded": int(graded.sum()),
        "num_orders": analysis.num_orders,
        "ks": list(analysis.ks),
        "margin": analysis.margin,
        "reference": None if reference is None else f"fixed-k{reference.thresholds[-1]:g}",
        "notes": [*analysis.notes, *_notes(analysis, entries, sources)],
        "sources": sources,
        "policies": entries,
        "gain": _gain(reference, analysis.ks),
        "matched_tokens": [] if weights is None else compare.matched_tokens(judged, weights),
        "left": []
        if weights is None or analysis.kind != "replay"
        else compare.left(
            judged, [best_rule(entries, name) for name in dict.fromkeys(p.series for p in judged)], weights
        ),
        "areas": [] if weights is None else compare.areas(judged, weights),
        "mcnemar": _mcnemar(analysis, judged, graded),
        "difficulty": None
        if power is None or not graded.any()
        else compare.difficulty(difficulty_of(power)[graded], GROUPS, analysis.ks, judged),
        "calibration": [
            {"policy": one.label, "family": one.family, **reliability(one.p_enough, analysis.correct, weights)}  # type: ignore
            for one in enough
        ],
        "mixing": list(analysis.mixing),
        "readings": [entry for table in tables if (entry := describe_readings(table)) is not None],
        "clock": clock,
        "provenance": {
            "model": first.manifest.model,
            "benchmark": first.manifest.benchmark,
            "software": first.manifest.software,
            "stores": [_store(*pair) for pair in zip(tables, analysis.whole, strict=True)],
            "controllers": analysis.controllers,
            "settings": analysis.settings,
        },
    }
    return {**result, "findings": findings(result), "questions": analysis.questions}


# -- policies ----------------------------------------------------------------------------------------------------------


def _clock(analysis: Analysis) -> tuple[np.ndarray | None, dict[str, Any] | None]:
    """Return seconds per token with each question's prefill, shape (1 + Q,), and what the result says of the clock."""
    if analysis.clock is None:
        return None, None
    store, clock = analysis.clock
    table = analysis.tables[0]
    prompt = np.asarray((table.samples or table.live).prompt_tokens, dtype=np.float64)  # type: ignore[union-attr]
    prefill = prompt * clock["prefill_seconds_per_token"]
    means = {"prompt_tokens": float(prompt.mean()), "prefill_s": float(prefill.mean())}
    return np.append(clock["seconds_per_token"], prefill), {"store": store, **clock, **means}


def _policy(
    policy: ReplayedPolicy,
    judged: ReplayedPolicy,
    reference: ReplayedPolicy | None,
    weights: np.ndarray | None,
    seconds: np.ndarray | None,
    margin: float,
) -> dict[str, Any]:
    """Return one policy: its curve, and its operating point beside the largest fixed k."""
    bands: tuple[Any, Any] = [None] * len(policy.curve), [None] * len(policy.curve)
    if weights is not None:
        bands = compare.percentiles(weights @ np.stack([point.correct for point in judged.curve]).T)
    largest = None if reference is None else reference.curve[-1]

    def beside(point: Outcome) -> dict[str, Any]:
        return {} if largest is None else compare.against(point, largest, seconds, margin)

    curve = []
    for i, (threshold, point) in enumerate(zip(policy.thresholds, policy.curve, strict=True)):
        listed = bool(policy.listed[i])
        row = {
            "name": compare.row_name(policy.family, policy.label, policy.series, threshold) if listed else None,
            "threshold": json_number(threshold),
            **_point(point, seconds),
        }
        row |= {
            name: None if band[i] is None else float(band[i]) for name, band in zip(("low", "high"), bands, strict=True)
        }
        curve.append({**row, **beside(point)} if listed and policy.chosen is None else row)
    entry: dict[str, Any] = {
        "policy": policy.label,
        "name": policy.name,
        "family": policy.family,
        "series": policy.series,
        "p_inc": None if policy.p_inc is None else {str(k): json_number(value) for k, value in policy.p_inc.items()},
        "curve": curve,
        "operating_point": None,
        "own_threshold": None,
    }
    if policy.chosen is not None:
        accuracy = bounded(policy.chosen.correct, 0.0, 1.0)
        entry["operating_point"] = {
            "name": policy.label,
            "thresholds": sorted({float(t) for t in policy.chosen_thresholds}),  # type: ignore[union-attr]
            **_point(policy.chosen, seconds),
            **{name: json_number(getattr(accuracy, name)) for name in ("low", "high")},
            "share_at_k": compare.shares_at(policy.natural_k),  # type: ignore[arg-type]
            **beside(policy.chosen),
        }
    if policy.own is not None:
        # Of the controllers of a cross-validation, the threshold in the middle.
        threshold = float(np.median(policy.own_threshold))  # type: ignore[arg-type]
        entry["own_threshold"] = {"threshold": threshold, **_point(policy.own, seconds), **beside(policy.own)}
    return entry


def _point(point: Outcome, seconds: np.ndarray | None) -> dict[str, Any]:
    """Return what a point gives and costs: means over questions, with standard errors."""
    accuracy = estimate(point.correct)
    row: dict[str, Any] = {"accuracy": json_number(accuracy.value), "stderr": json_number(accuracy.stderr)}
    calibrated = None if seconds is None else point.tokens * seconds[0] + seconds[1:]
    for name, values in zip(COSTS, (point.tokens, point.compute_s, point.latency_s, calibrated), strict=True):
        cost = Estimate(np.nan, np.nan, 0) if values is None else estimate(values)
        row |= {name: json_number(cost.value), f"{name}_stderr": json_number(cost.stderr)}
    return {**row, "accepted": float(point.accepted.mean()), "mean_k": float(point.k.mean())}


def _gain(reference: ReplayedPolicy | None, ks: Sequence[int]) -> dict[str, Any] | None:
    """Return what the largest k of power sampling adds to k = 2, or to the smallest; None for one k."""
    if reference is None or len(ks) < 2:
        return None
    points = dict(zip(reference.thresholds.astype(int).tolist(), reference.curve, strict=True))
    small = 2 if 2 in ks[:-1] else ks[0]
    difference = paired(points[ks[-1]].correct, points[small].correct)
    if not difference.num_questions:
        return None
    return {
        "from": small,
        "to": ks[-1],
        "difference": plain(difference),
        "tokens_times": float(points[ks[-1]].tokens.mean() / points[small].tokens.mean()),
        "questions_needed": needed(difference.value, difference.stderr, difference.num_questions),
    }


def _mcnemar(analysis: Analysis, judged: Sequence[ReplayedPolicy], graded: np.ndarray) -> list[dict[str, Any]]:
    if not graded.any():
        return []
    power = judged[0] if judged[0].family == "fixed" and judged[0].series == "power" else None
    largest = None
    if analysis.correct is not None:
        largest = analysis.correct[:, 0, -1]
    elif power is not None:
        largest = power.curve[-1].correct == 1  # all trajectories, whatever their order
    return compare.mcnemar_tests(judged, largest, f"fixed-k{analysis.ks[-1]}" if analysis.ks else "")


def _store(table: StoreTable, whole: StoreTable) -> dict[str, Any]:
    manifest = table.manifest
    return {
        "folder": table.name,
        "policy": manifest.policy,
        "aggregator": manifest.aggregator,
        "seed": manifest.seed,
        "sampler": manifest.sampler,
        "clock": manifest.calibration,
        "fingerprint": manifest.fingerprint,
        "num_questions": len(whole.question_ids),
        "questions_at_a_time": manifest.config.get("compute", {}).get("questions_at_a_time"),
    }


# -- notes -------------------------------------------------------------------------------------------------------------


def _notes(analysis: Analysis, entries: Sequence[dict[str, Any]], sources: Sequence[dict[str, Any]]) -> list[str]:
    """Return what a careful reader must know before believing the numbers."""
    tables, count = analysis.tables, len(analysis.tables[0].question_ids)
    notes = []
    more = [one for one in analysis.whole if len(one.question_ids) > count]
    if analysis.kind != "replay" and more:
        each = ", ".join(f"{one.name} {len(one.question_ids):,}" for one in more)
        notes.append(f"Everything is computed on the {questions(count)} that all stores have; some have more: {each}.")
    for what, counts in {
        "Questions without a grade count in the costs but not in accuracies": {
            table.series: len(table.question_ids) - len(table.graded) for table in tables
        },
        "Answers that the grader could not decide on count as not right": {
            source["series"]: source["num_ungradable"] for source in sources
        },
    }.items():
        if any(counts.values()):
            notes.append(f"{what}: {', '.join(f'{name} {n:,}' for name, n in counts.items() if n)}.")
    if any(one.family == "fixed" and len(one.curve) > 1 for one in analysis.policies):
        notes.append(
            f"Fixed k is the mean over {analysis.num_orders} orders of the same trajectories, with every k that was "
            "sampled between those of the table where tokens are matched."
        )
    cancelled = {
        one.series: one.live.cancelled.mean() / one.live.outcome.tokens.mean() for one in tables if one.live is not None
    }
    if any(cancelled.values()):
        each = ", ".join(f"{name} {100 * part:.1f} %" for name, part in cancelled.items() if part)
        notes.append(f"Tokens of trajectories that were begun early and cancelled count; their share: {each}.")
    notes += _size_notes(analysis, count)
    rows = [
        row for entry in entries for row in ([entry["operating_point"]] if entry["operating_point"] else entry["curve"])
    ]
    flat = [row["name"] for row in rows if row["name"] and row["stderr"] == 0 and row["name"] != "oracle"]
    if flat:
        notes.append(
            f"{listing(flat)}: all answers right or all wrong. The standard error of 0 says that there was no spread "
            "among these questions, not that the accuracy is known exactly."
        )
    notes += [
        f"{table.series} is no draw from p^alpha: {table.manifest.policy['law']}."
        for table in tables
        if "law" in table.manifest.policy
    ]
    power = [table.manifest for table in tables if table.series == "power" or table.live is not None]
    manifests = [table.manifest for table in tables]
    for what, values in {
        "sampler settings": [manifest.sampler for manifest in power],
        "seeds": [manifest.seed for manifest in manifests],
        "aggregators": [manifest.aggregator for manifest in manifests],
    }.items():
        if any(value != values[0] for value in values):
            notes.append(
                f"The stores were made with different {what} (see provenance), so policies differ in more than k."
            )
    return notes


def _size_notes(analysis: Analysis, count: int) -> list[str]:
    """Return what the number of questions means for what is read."""
    notes = []
    if count < FEWEST:
        notes.append(
            f"With {questions(count)}, standard errors are themselves rough, and n is too small to say that a policy "
            "is as good as another."
        )
    if analysis.folds is not None:
        chosen_on = count - -(-count // analysis.folds)
        least = fewest_questions(analysis.margin)
        if least is None or chosen_on < least:
            smallest, margin = 100 * effective_margin(chosen_on, analysis.margin), points_of(analysis.margin)
            notes.append(
                f"n is too small to exclude a loss of {margin} of accuracy: thresholds are chosen on {chosen_on:,} "
                f"questions, which can exclude a loss of {smallest:.1f} points at best"
                + (f"; {margin} takes {least:,}." if least else ".")
            )
    return notes
