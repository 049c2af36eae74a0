"""The result of an analysis as one plain dictionary, of the same schema for evaluations, harvests and replays.

It holds all that pages, figures and tables show, so it can be kept when the stores are not. ``report`` and
``replay`` say which policies are compared; :func:`result_of` compares them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

SCHEMA_VERSION = 4
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
    """All policies, the fixed budgets with the reference first where there is one."""
    main: str
    """The series that the result is about."""
    ks: tuple[int, ...]
    """Responses after each rung of its ladder."""
    reference: int | None
    """The budget of the first policy that all others are compared with."""
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
    correct: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Of a replay, by series, whether the answer is right after every rung: shape (Q, O, C + 1), bool."""


def result_of(analysis: Analysis) -> dict[str, Any]:
    """Return everything that is shown, as JSON values; a number that does not exist is None."""
    tables, first = analysis.tables, analysis.tables[0]
    ids = first.question_ids
    graded = np.isin(ids, common_questions(tables, graded=True))
    policies = [graded_alike(policy, graded) for policy in analysis.policies]
    weights = resamples(int(graded.sum()), analysis.resamples, [analysis.seed, 1]) if graded.any() else None
    reference = None if analysis.reference is None else point_at(policies[0], analysis.reference)
    judged = [restricted(policy, graded) for policy in policies]
    seconds, clock = _clock(analysis)
    sources = [one for pair in zip(tables, analysis.whole, strict=True) for one in describe_source(*pair)]
    entries = [
        _policy(policy, one, reference, weights, seconds, analysis.margin)
        for policy, one in zip(policies, judged, strict=True)
    ]
    told = [one for one in policies if one.is_main or one.family == "controller"]
    enough = [one for one in told if one.p_enough is not None and one.family != "chance"]
    groups = groups_of(tables, policies)
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": analysis.kind,
        "title": analysis.title,
        "num_questions": len(ids),
        "num_graded": int(graded.sum()),
        "num_orders": analysis.num_orders,
        "main_series": analysis.main,
        "ks": list(analysis.ks),
        "margin": analysis.margin,
        "reference": None if reference is None else policies[0].row_name(analysis.reference or 0),
        "notes": [*analysis.notes, *_notes(analysis, entries, sources)],
        "sources": sources,
        "policies": entries,
        "gain": _gain(policies[0], analysis.reference),
        "matched_tokens": [] if weights is None else compare.matched_tokens(judged, weights),
        "left": []
        if weights is None or analysis.kind != "replay"
        else compare.left(judged, [best_rule(entries, name) for name in _two_ladders(entries, analysis.main)], weights),
        "difficulty": None
        if groups is None or not graded.any()
        else compare.difficulty(np.where(graded, groups, -1), GROUPS, analysis.ks, policies),
        "calibration": [
            {
                "policy": one.label,
                "family": one.family,
                **reliability(one.p_enough, analysis.correct[one.series], weights),  # type: ignore[arg-type]
            }
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
    return {**result, "findings": findings(result), "questions": analysis.questions, "recommendation": None}


def _two_ladders(entries: Sequence[dict[str, Any]], main: str) -> list[str]:
    """Return the main series, and that of the others whose best rule is the cheapest without a loss."""
    others = [entry for entry in entries if entry["series"] != main]
    best = best_rule(others, *dict.fromkeys(entry["series"] for entry in others))
    return [main, *(entry["series"] for entry in others if entry["policy"] == best)]


def point_at(policy: ReplayedPolicy, k: int) -> Outcome:
    """Return the point of fixed budgets that has k responses."""
    return policy.curve[policy.thresholds.tolist().index(k)]


def groups_of(tables: Sequence[StoreTable], policies: Sequence[ReplayedPolicy]) -> np.ndarray | None:
    """Return the difficulty of each question, (Q,), by the responses of the arms that the main ladder takes."""
    arms = {arm for one in policies if one.is_main and one.ladder is not None for arm in one.ladder.arms}
    for samples in (table.samples for table in tables if table.samples is not None):
        if (of := np.isin(samples.arms, sorted(arms))).any():
            return difficulty_of(samples.right[:, of])
    return None


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
    reference: Outcome | None,
    weights: np.ndarray | None,
    seconds: np.ndarray | None,
    margin: float,
) -> dict[str, Any]:
    """Return one policy: its curve, and its operating point beside the reference."""
    bands: tuple[Any, Any] = [None] * len(policy.curve), [None] * len(policy.curve)
    if weights is not None:
        bands = compare.percentiles(weights @ np.stack([point.correct for point in judged.curve]).T)

    def beside(point: Outcome) -> dict[str, Any]:
        return {} if reference is None else compare.against(point, reference, seconds, margin)

    curve = []
    for i, (threshold, point) in enumerate(zip(policy.thresholds, policy.curve, strict=True)):
        listed = bool(policy.listed[i])
        row = {
            "name": policy.row_name(threshold) if listed else None,
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
        "arms": [] if policy.ladder is None else list(policy.ladder.arms),
        "ladder": None if policy.ladder is None or policy.family == "fixed" else policy.ladder.texts(),
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
            "responses": policy.responses,
            "gave_up": policy.gave_up,
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


def _gain(fixed: ReplayedPolicy, largest: int | None) -> dict[str, Any] | None:
    """Return what the reference adds to 2 responses of its series, or to the smallest row; None for one row."""
    ks = [int(k) for k in fixed.thresholds[fixed.listed] if largest is not None and k <= largest]
    if len(ks) < 2 or largest is None:
        return None
    small = 2 if 2 in ks[:-1] else ks[0]
    before, after = point_at(fixed, small), point_at(fixed, largest)
    difference = paired(after.correct, before.correct)
    if not difference.num_questions:
        return None
    return {
        "from": fixed.row_name(small),
        "to": fixed.row_name(largest),
        "difference": plain(difference),
        "tokens_times": float(after.tokens.mean() / before.tokens.mean()),
        "questions_needed": needed(difference.value, difference.stderr, difference.num_questions),
    }


def _store(table: StoreTable, whole: StoreTable) -> dict[str, Any]:
    manifest = table.manifest
    return {
        "folder": table.name,
        "policy": manifest.policy,
        "aggregator": manifest.aggregator,
        "seed": manifest.seed,
        "arms": manifest.arms,
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
            f"Fixed budgets are means over {analysis.num_orders} orders of the same responses, with every number that "
            "was sampled between those of the table where tokens are matched."
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
    manifests = [table.manifest for table in tables]
    arms = {arm: [m.arms[arm] for m in manifests if arm in m.arms] for m in manifests for arm in m.arms}
    for what, values in {
        **{f"settings of the arm {arm}": values for arm, values in arms.items()},
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
