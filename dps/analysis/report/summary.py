"""The report as one plain dictionary: what ``report.json`` holds, and all that figures, page and tables show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dps.analysis.report.findings import findings, matches, mixing_finding, paired, reference_of, verdict
from dps.analysis.report.mixing import ChainTrace, chains_of, diagnose
from dps.analysis.report.readings import ReadingOfQuestion, describe_readings
from dps.analysis.report.statistics import ORDERS, Match, Outcomes, common_questions, share_at_k
from dps.analysis.report.words import group_of, json_number
from dps.estimates import FEWEST, Estimate, estimate, needed, ratio
from feature_store.records import Manifest

SCHEMA_VERSION = 3
"""Version 2 added ``mixing``, version 3 ``readings`` and ``num_ungradable``."""
_GROUPS = ("power", "controller", "rule", "plain", "lowtemp")


@dataclass(frozen=True, slots=True, eq=False)
class LoadedStore:
    """A store reduced to what a report needs."""

    name: str
    """Name of its folder."""
    manifest: Manifest
    """Its manifest."""
    outcomes: list[Outcomes]
    """Its policies on all of its questions."""
    traces: dict[str, list[ChainTrace]]
    """The recorded steps of each question's chains; no chains where none were recorded."""
    read: dict[str, ReadingOfQuestion]
    """How each question's responses were read, where that is known."""

    @property
    def question_ids(self) -> tuple[str, ...]:
        """Its complete questions."""
        return self.outcomes[0].question_ids


def summarize(
    stores: Sequence[LoadedStore],
    *,
    clock: tuple[str, dict[str, float]] | None,
    title: str | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Compare the policies of all stores on the questions that all of them have.

    Args:
        stores: At least one store with at least one question in common.
        clock: Name of the store whose calibrated clock was used, and the clock.
        title: Title of the report; made from benchmark and model if None.
        notes: What the reader of the stores has to say.

    Returns:
        JSON values only; a number that does not exist is None.
    """
    stores = sorted(stores, key=lambda s: (_rank(s), s.name))
    whole = [o for store in stores for o in store.outcomes]
    common = common_questions(whole)
    outcomes = [o.on(common) for o in whole]
    reference = reference_of(outcomes)
    first = stores[0].manifest
    mixing = _mixing(stores, common)
    default = f"Accuracy against cost: {first.benchmark.get('name', '?')}, {first.model.get('name', '?')}"
    return {
        "schema_version": SCHEMA_VERSION,
        "title": title or default,
        "findings": [
            *findings(outcomes, {s.outcomes[0].series: s.manifest.aggregator for s in stores}),
            *(mixing_finding(entry, several=len(mixing) > 1) for entry in mixing),
        ],
        "notes": [*notes, *_notes(stores, outcomes, common)],
        "num_questions": len(common),
        "reference": reference.policy if reference is not None else None,
        "policies": [_row(o, all_, reference) for o, all_ in zip(outcomes, whole, strict=True) if o.listed],
        "matched_tokens": [_match_row(match) for match in matches(outcomes)],
        "mixing": mixing,
        "readings": [
            describe_readings(store.outcomes[0].series, found)
            for store in stores
            if (found := [store.read[name] for name in common if name in store.read])
        ],
        "clock": {"store": clock[0], **clock[1]} if clock is not None else None,
        "provenance": [_provenance(store) for store in stores],
    }


def _rank(store: LoadedStore) -> int:
    """Return the place of a store in the report: power sampling, controllers, rules, plain, low temperature, others."""
    first = store.outcomes[0]
    group = group_of({"policy": first.policy, "series": first.series, "family": first.family})
    return _GROUPS.index(group) if group in _GROUPS else len(_GROUPS)


def _row(outcomes: Outcomes, whole: Outcomes, reference: Outcomes | None) -> dict[str, Any]:
    """Return one policy's entry of ``policies``."""
    accuracy = estimate(outcomes.correct)
    row: dict[str, Any] = {
        "policy": outcomes.policy,
        "series": outcomes.series,
        "family": outcomes.family,
        "k": outcomes.k,
        "accuracy": json_number(accuracy.value),
        "accuracy_stderr": json_number(accuracy.stderr),
        "num_questions": len(outcomes.question_ids),
        "num_ungraded": len(outcomes.question_ids) - accuracy.num_questions,
        "num_ungradable": int(outcomes.ungradable.sum()),
        "num_questions_in_store": len(whole.question_ids),
    }
    for name in ("tokens", "compute_s", "calibrated_s", "latency_s"):
        value = estimate(getattr(outcomes, name))
        row[name] = json_number(value.value)
        row[f"{name}_stderr"] = json_number(value.stderr)
    row["mean_k"] = float(outcomes.num_trajectories.mean())
    row["share_at_k"] = {str(k): share for k, share in share_at_k(outcomes).items()}
    nothing = Estimate(math.nan, math.nan, 0)
    difference = paired(outcomes, reference) if reference is not None else nothing
    tokens = ratio(outcomes.tokens, reference.tokens) if reference is not None else nothing
    row["accuracy_minus_reference"] = json_number(difference.value)
    row["accuracy_minus_reference_stderr"] = json_number(difference.stderr)
    row["accuracy_minus_reference_low"] = json_number(difference.low)
    row["accuracy_minus_reference_high"] = json_number(difference.high)
    row["questions_needed"] = needed(difference.value, difference.stderr, difference.num_questions)
    row["tokens_ratio_reference"] = json_number(tokens.value)
    row["tokens_ratio_reference_stderr"] = json_number(tokens.stderr)
    # The same under the names that say "k8", for readers who want that and nothing else.
    is_k8 = reference is not None and reference.k == 8
    for name in ("accuracy_minus", "tokens_ratio"):
        row[f"{name}_k8"] = row[f"{name}_reference"] if is_k8 else None
        row[f"{name}_k8_stderr"] = row[f"{name}_reference_stderr"] if is_k8 else None
    return row


def _match_row(match: Match) -> dict[str, Any]:
    """Return one entry of ``matched_tokens``: a policy beside a rival that spends the same."""
    return {
        "policy": match.policy,
        "rival": match.rival,
        "k_below": match.k_below,
        "k_above": match.k_above,
        "weight_above": match.weight_above,
        "tokens": match.tokens,
        "rival_tokens": match.rival_tokens,
        "rival_exhausted": match.exhausted,
        "accuracy": json_number(match.accuracy),
        "rival_accuracy": json_number(match.rival_accuracy),
        "accuracy_difference": json_number(match.difference.value),
        "accuracy_difference_stderr": json_number(match.difference.stderr),
        "accuracy_difference_low": json_number(match.difference.low),
        "accuracy_difference_high": json_number(match.difference.high),
        "questions_needed": needed(match.difference.value, match.difference.stderr, match.difference.num_questions),
        "num_questions": match.difference.num_questions,
        "verdict": verdict(match.difference),
    }


def _mixing(stores: Sequence[LoadedStore], common: Sequence[str]) -> list[dict[str, Any]]:
    """Return the entries of ``mixing``: one for each store with recorded steps whose chains are not in another's.

    Of stores with the same sampler and seed only the first counts: a trajectory's stream depends on seed, question and
    index alone, so a controller's trajectories are the first ones of the fixed k's. Policies that sample another law
    than p^alpha have nothing to mix to.
    """
    entries, seen = [], []
    for store in stores:
        run = (store.manifest.sampler, store.manifest.seed)
        chains = chains_of({name: store.traces[name] for name in common})
        if chains is not None and run not in seen and "law" not in store.manifest.policy:
            seen.append(run)
            entries.append({"store": store.name, "series": store.outcomes[0].series, **diagnose(chains)})
    return entries


def _provenance(store: LoadedStore) -> dict[str, Any]:
    manifest = store.manifest
    return {
        "folder": store.name,
        "policy": manifest.policy,
        "model": manifest.model,
        "benchmark": manifest.benchmark,
        "aggregator": manifest.aggregator,
        "seed": manifest.seed,
        "sampler": manifest.sampler,
        "calibration": manifest.calibration,
        "fingerprint": manifest.fingerprint,
        "software": manifest.software,
        "num_questions": len(store.question_ids),
        "questions_at_a_time": manifest.config.get("compute", {}).get("questions_at_a_time"),
    }


def _notes(stores: Sequence[LoadedStore], outcomes: Sequence[Outcomes], common: Sequence[str]) -> list[str]:
    """Return what a careful reader must know before believing the table."""
    notes = []
    extra = [f"{s.name} {len(s.question_ids):,}" for s in stores if len(s.question_ids) > len(common)]
    if extra:
        notes.append(
            f"Everything is computed on the {len(common):,} questions that all stores have; "
            f"some have more: {', '.join(extra)}."
        )
    ungraded = {o.series: int(np.isnan(o.correct).sum()) for o in outcomes}
    if any(ungraded.values()):
        each = ", ".join(f"{name} {count:,}" for name, count in ungraded.items() if count)
        notes.append(f"Questions without a grade count in the costs but not in accuracies: {each}.")
    undecided = {o.policy: int(o.ungradable.sum()) for o in outcomes if o.listed}
    if any(undecided.values()):
        each = ", ".join(f"{name} {count:,}" for name, count in undecided.items() if count)
        notes.append(f"Answers that the grader could not decide count as not right: {each}.")
    if any(o.family == "fixed" and (o.k or 0) > 1 for o in outcomes):
        notes.append(
            f"Fixed k is the mean over {ORDERS} orders of the same trajectories, with every k that was sampled between "
            "those of the table where tokens are matched."
        )
    if len(common) < FEWEST:
        notes.append(
            f"With {len(common)} questions, standard errors are themselves rough, and n is too small to say that a "
            "policy is as good as another."
        )
    flat = [o.policy for o in outcomes if o.listed and estimate(o.correct).stderr == 0]
    if flat:
        notes.append(
            f"{', '.join(flat)}: all answers right or all wrong. The standard error of 0 says that there was no "
            f"spread among these questions, not that the accuracy is known exactly."
        )
    notes += [
        f"{s.outcomes[0].series} is no draw from p^alpha: {s.manifest.policy['law']}."
        for s in stores
        if "law" in s.manifest.policy
    ]
    power = [s for s in stores if s.outcomes[0].series == "power" or s.outcomes[0].family == "dynamic"]
    for what, values in {
        "sampler settings": [s.manifest.sampler for s in power],
        "seeds": [s.manifest.seed for s in stores],
        "aggregators": [s.manifest.aggregator for s in stores],
    }.items():
        if any(value != values[0] for value in values):
            notes.append(
                f"The stores were made with different {what} (see provenance), so policies differ in more than k."
            )
    return notes
