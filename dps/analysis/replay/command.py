"""``dps replay``: stores in, every policy's curve and operating point out, compared in pairs. No model is loaded.

``samples`` reads, ``policies`` runs, ``compare`` resamples; this module decides what is compared with what, and
``report`` says it in words. What it returns is ``replay.json``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dps.analysis.replay import compare
from dps.analysis.replay.compare import Curve
from dps.analysis.replay.config import ReplayConfig
from dps.analysis.replay.matched import matched_tokens, verdict_of
from dps.analysis.replay.policies import Point, Ran, dynamic, fixed, folds_of, oracle
from dps.analysis.replay.reading import GROUPS, difficulty_of, number_shown, questions_to_read
from dps.analysis.replay.reliability import reliability
from dps.analysis.replay.samples import Samples, Walk, describe, orders_of, read_samples, scores, walk
from dps.analysis.report.statistics import fixed_ks
from dps.analysis.report.write import check_comparable, find_stores
from dps.decide import RULES, AdaptiveConsistency, EarlyStoppingConsistency, KRange
from dps.decide.thresholds import effective_margin
from dps.errors import InputError
from dps.estimates import (
    Estimate,
    bounded,
    estimate,
    fewest_questions,
    loss_is_below,
    mcnemar,
    questions_needed,
)
from dps.folders import claim, place_of, store_identity
from feature_store import Manifest, Store
from feature_store.files import replace_file
from feature_store.hdf5 import open_hdf5
from feature_store.hostile import dataset_in
from feature_store.manifest import read_manifest
from feature_store.records import representatives

SCHEMA_VERSION = 2
"""Of ``replay.json``."""

_ELSEWHERE = ("output", "rivals", "controllers", "show_questions")
"""Settings that change no number, or are told elsewhere in the provenance."""

Predict = Callable[[str, Path, Sequence[str], np.ndarray, tuple[int, ...]], tuple[np.ndarray, float]]
"""Asks a trained controller (its path) about questions of a store (the store, Q ids, orders (Q, O, K) and ks):
p_enough, shape (Q, O, C), and the threshold that it came with. Handed in by the composition root."""


@dataclass(frozen=True, slots=True, eq=False)
class OutOfFold:
    """The probabilities that ``dps crossval`` wrote."""

    question_ids: tuple[str, ...]
    """Q of them."""
    orders: np.ndarray
    """Shape (Q, O, K), int64."""
    p_enough: np.ndarray
    """Shape (Q, O, C), float64; each by a controller that had not seen the question."""
    thresholds: np.ndarray | None
    """The threshold of each question's controller, shape (Q,); None where the file has none."""
    ks: tuple[int, ...]
    """C checkpoints, then the maximum."""
    store_fingerprint: str
    """Of the harvest."""


def read_out_of_fold(folder: str | Path) -> OutOfFold | None:
    """Read ``predictions.h5`` of a cross-validation; None if the folder holds none.

    Raises:
        InputError: If its controllers are asked inside a run, or it cannot be read.
    """
    path = Path(folder) / "predictions.h5"
    if not path.is_file():
        return None
    try:
        with open_hdf5(path) as file:
            if block := int(file.attrs.get("block", 0)):
                raise InputError(
                    f"The cross-validation {folder} is of controllers that are asked after block {block} while "
                    "trajectories run, a replay asks where they have ended: leave it out."
                )
            return OutOfFold(
                question_ids=tuple(name.decode("utf-8") for name in dataset_in(file, "question_id")[()]),
                orders=dataset_in(file, "orders")[()].astype(np.int64),
                p_enough=dataset_in(file, "p_enough")[()],
                thresholds=dataset_in(file, "threshold")[()] if "threshold" in file else None,
                ks=tuple(int(k) for k in np.atleast_1d(file.attrs["ks"])),
                store_fingerprint=_text(file.attrs["store_fingerprint"]),
            )
    except InputError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise InputError(
            f"Expected predictions of dps crossval, but {path} cannot be read as such ({type(error).__name__}): run it "
            "again."
        ) from error


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def claim_folder(harvest: Path, config: ReplayConfig) -> bool:
    """Note in the output folder which replay it is of, see :func:`dps.folders.claim`; return whether it held this one.

    Args:
        harvest: The store.
        config: What to compare.

    Raises:
        InputError: If the folder holds another run's results, or a rival is no store.
        StoreError: If a store cannot be read.
    """
    folder = Path(config.output)
    rivals = find_stores([Path(r) for r in config.rivals]) if config.rivals else []
    shown = ("title", "show_questions")  # of the page only
    settings = {name: value for name, value in asdict(config).items() if name not in (*_ELSEWHERE, *shown)}
    settings |= {
        "harvest": store_identity(harvest, folder),
        "rivals": {place_of(rival, folder): read_manifest(rival).fingerprint for rival in rivals},
        "controllers": {name: place_of(path, folder) for name, path in config.controllers.items()},
    }
    return claim(folder, "dps replay", settings, ("replay.json", "replay.csv"))


def run_replay(harvest: Path, config: ReplayConfig, predict: Predict) -> dict[str, Any]:
    """Run every policy over a harvest and its rivals, and return what ``replay.json`` holds.

    Args:
        harvest: A store with fixed k: a harvest, or the policy ``power`` of an evaluation.
        config: What to compare.
        predict: Asks a trained controller.

    Raises:
        InputError: If the stores or controllers do not fit together.
        StoreError: If a store cannot be read.
    """
    config.check()
    store = Store.open(harvest)
    rivals = [
        (folder, Store.open(folder))
        for folder in (find_stores([Path(r) for r in config.rivals]) if config.rivals else [])
    ]
    check_comparable([(harvest, store.manifest), *((folder, rival.manifest) for folder, rival in rivals)])
    found = {name: read_out_of_fold(path) for name, path in config.controllers.items()}
    samples = read_samples(store.manifest, store.scan(hidden=False), str(harvest))
    sources = [read_samples(rival.manifest, rival.scan(hidden=False), str(folder)) for folder, rival in rivals]
    common = sorted(
        set(samples.question_ids).intersection(
            *(s.question_ids for s in sources), *(f.question_ids for f in found.values() if f)
        )
    )
    for (folder, _), source in zip(rivals, sources, strict=True):
        if not set(samples.question_ids) & set(source.question_ids):
            raise InputError(
                f"Expected rivals of the same questions, but {folder} and {harvest} have no graded question in common "
                f"({source.question_ids[0]}, ... and {samples.question_ids[0]}, ...): evaluate the rivals on the "
                "questions of the harvest."
            )
    if not common:
        raise InputError("Expected graded questions that harvest, rivals and cross-validations all have, found none.")
    notes = [short for one in (store, *(rival for _, rival in rivals)) if (short := one.shortfall()) is not None]
    if len(common) < len(samples.question_ids):
        notes.append(
            f"Everything is computed on the {len(common):,} questions that all have; the harvest has "
            f"{len(samples.question_ids):,}."
        )
    samples, sources = samples.on(common), [s.on(common) for s in sources]
    ks = (config.k or _range(store.manifest, harvest)).values
    orders = _orders(common, samples.num_trajectories, config, found, store.manifest, ks)
    walked = walk(samples, orders, ks, config.seed)
    stand_for = representatives(dict(zip(common, samples.contents, strict=True)))
    folds = folds_of([stand_for[name] for name in common], config.folds, config.seed)

    ran = [fixed("power", walked)]
    for name, path in config.controllers.items():
        one = found[name]
        if one is not None:
            p_enough, own = _rows(one, common, ks)
        else:
            p_enough, own = predict(path, harvest, common, orders, ks)
        ran.append(dynamic(name, "controller", "power", walked, 1.0 - p_enough, folds, config.margin, own))
    rules, blind = _rules("power", walked, folds, config.margin)
    ran += rules
    if blind:
        notes.append(
            f"Left out: {', '.join(blind)}. The harvest has not recorded the entropies and top-1 probabilities that "
            "they look at."
        )
    ran.append(oracle("power", walked))
    for source in sources:
        of_source = np.stack([orders_of(name, source.num_trajectories, config.orders, config.seed) for name in common])
        every = walk(source, of_source, range(1, source.num_trajectories + 1), config.seed)
        ran.append(fixed(source.series, every))
        rule = AdaptiveConsistency()
        p_inc = scores([rule.enough(seen) for seen in every.seen], every)
        ran.append(dynamic(rule.name, "rule", source.series, every, p_inc, folds, config.margin))
    report = _report(store.manifest, samples, sources, ran, walked, notes, config, harvest)
    shown = number_shown(config.show_questions, store.manifest)
    from dps.analysis.report.look import drawn_with

    return {**report, "questions": questions_to_read(store, samples, ran, shown), "figures": drawn_with()}


def _rules(series: str, walked: Walk, folds: np.ndarray, margin: float) -> tuple[list[Ran], list[str]]:
    """Run every rule that needs no training; also return the names of those that the harvest shows too little to."""
    found, blind = [], []
    for name, rule in RULES.items():
        # One sweep with the widest window goes through all shorter ones.
        used = EarlyStoppingConsistency(window=walked.ks[-1]) if name == "esc" else rule
        p_inc = scores([used.enough(seen) for seen in walked.seen], walked)
        if not np.isfinite(p_inc).all():
            blind.append(name)
            continue
        found.append(dynamic(name, "chance" if name == "random" else "rule", series, walked, p_inc, folds, margin))
    return found, blind


def _range(manifest: Manifest, harvest: Path) -> KRange:
    policy = manifest.policy
    if {"start", "step", "maximum"} <= policy.keys():
        return KRange(*(int(policy[name]) for name in ("start", "step", "maximum")))
    ks = fixed_ks(policy)
    return KRange(1, 1, ks[-1])


def _orders(
    question_ids: Sequence[str],
    num_trajectories: int,
    config: ReplayConfig,
    found: Mapping[str, OutOfFold | None],
    manifest: Manifest,
    ks: tuple[int, ...],
) -> np.ndarray:
    """Return the orders that all policies are averaged over: those of the out-of-fold probabilities, if there are."""
    orders: np.ndarray | None = None
    first = ""
    for name, one in found.items():
        if one is None:
            continue
        if one.store_fingerprint != manifest.fingerprint:
            raise InputError(
                f"The cross-validation of {name} ({config.controllers[name]}) is of another harvest: its store has the "
                f"fingerprint {one.store_fingerprint}, this one {manifest.fingerprint}. Run dps crossval on this one."
            )
        if set(ks[:-1]) - set(one.ks[:-1]) or ks[-1] > one.ks[-1]:
            raise InputError(
                f"The cross-validation of {name} asks at k = {', '.join(map(str, one.ks[:-1]))} of at most "
                f"{one.ks[-1]}, the replay at {', '.join(map(str, ks[:-1]))} of at most {ks[-1]}: set k to a part of "
                "its range, or cross-validate on a harvest with that range."
            )
        place = {question: i for i, question in enumerate(one.question_ids)}
        mine = one.orders[[place[question] for question in question_ids]]
        if orders is not None and not np.array_equal(orders, mine):
            raise InputError(
                f"The cross-validations of {first} and {name} have other orders of the trajectories: run both with the "
                "same data.num_orders and data.seed."
            )
        orders, first = mine, first or name
    if orders is not None:
        return orders
    return np.stack([orders_of(name, num_trajectories, config.orders, config.seed) for name in question_ids])


def _rows(found: OutOfFold, question_ids: Sequence[str], ks: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the probabilities of these questions at these checkpoints, and each question's threshold."""
    place = {question: i for i, question in enumerate(found.question_ids)}
    rows = [place[question] for question in question_ids]
    thresholds = None if found.thresholds is None else found.thresholds[rows]
    return found.p_enough[rows][..., [found.ks.index(k) for k in ks[:-1]]], thresholds


# -- what is compared with what ----------------------------------------------------------------------------------------


def _report(
    manifest: Manifest,
    samples: Samples,
    sources: Sequence[Samples],
    ran: Sequence[Ran],
    walked: Walk,
    notes: Sequence[str],
    config: ReplayConfig,
    harvest: Path,
) -> dict[str, Any]:
    """Return everything that is shown, as JSON values."""
    weights = compare.resamples(len(samples.question_ids), config.resamples, config.seed)
    reference = ran[0].curve[-1]
    notes = [*notes, *_size_notes(samples, sources, config)]
    seconds = float(manifest.calibration.get("seconds_per_token", np.nan))
    prefill = samples.prompt_tokens * float(manifest.calibration.get("prefill_seconds_per_token", np.nan))
    curves = {one.label: compare.curve_of(one.curve, weights) for one in ran}
    policies = [_policy(one, reference, weights, seconds, prefill, config) for one in ran]
    matched = matched_tokens(ran, curves, weights)
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "title": config.title
        or f"Policies replayed: {manifest.benchmark.get('name')}, {Path(str(manifest.model.get('name'))).name}",
        "num_questions": len(samples.question_ids),
        "num_orders": int(walked.correct.shape[1]),
        "ks": list(walked.ks),
        "margin": config.margin,
        "notes": list(notes),
        "sources": [describe(source) for source in (samples, *sources)],
        "policies": policies,
        "matched_tokens": matched,
        "areas": _areas(ran, curves),
        "mcnemar": _mcnemar(ran, walked),
        "difficulty": _difficulty(samples, walked.ks, ran),
        "calibration": [
            {"policy": one.label, "kind": one.kind, **reliability(one.p_enough, walked.correct, weights)}
            for one in ran
            if one.p_enough is not None and one.series == "power" and one.kind != "chance"
        ],
        "clock": _clock(seconds, samples.prompt_tokens, prefill),
        "k8_over_k2": _gain(ran[0]),
        "provenance": {
            "harvest": harvest.name,
            "model": manifest.model,
            "benchmark": manifest.benchmark,
            "sampler": manifest.sampler,
            "seed": manifest.seed,
            "aggregator": manifest.aggregator,
            "calibration": manifest.calibration,
            "fingerprint": manifest.fingerprint,
            "replay": {k: v for k, v in asdict(config).items() if k not in _ELSEWHERE},
            "controllers": {name: Path(path).name for name, path in config.controllers.items()},
        },
    }
    from dps.analysis.replay.findings import findings

    report["findings"] = findings(report)
    return report


def _size_notes(samples: Samples, sources: Sequence[Samples], config: ReplayConfig) -> list[str]:
    """Return what the number of questions, and answers that nobody could grade, mean for what is read."""
    notes = []
    total = len(samples.question_ids)
    chosen_on = total - -(-total // config.folds)
    least = fewest_questions(config.margin)
    if least is None or chosen_on < least:
        smallest = 100 * effective_margin(chosen_on, config.margin)
        notes.append(
            f"n is too small to exclude a loss of {_points(100 * config.margin)} of accuracy: thresholds are "
            f"chosen on {chosen_on:,} questions, which can exclude a loss of {smallest:.1f} points at best"
            + (f"; {_points(100 * config.margin)} takes {least:,}." if least else ".")
        )
    undecided = {one.series: one.num_ungradable for one in (samples, *sources) if one.num_ungradable}
    if undecided:
        each = ", ".join(f"{name} {count:,}" for name, count in undecided.items())
        notes.append(f"Answers that the grader could not decide count as not right: {each}.")
    return notes


def _points(value: float) -> str:
    return f"{value:g} point{'' if value == 1 else 's'}"


def _policy(
    one: Ran, reference: Point, weights: np.ndarray, seconds: float, prefill: np.ndarray, config: ReplayConfig
) -> dict[str, Any]:
    """Return one policy: its curve, and its operating point against k = maximum of power sampling."""
    tokens = np.stack([p.tokens for p in one.curve])
    correct = np.stack([p.correct for p in one.curve])
    band = np.percentile(weights @ correct.T, [2.5, 97.5], axis=0)
    entry: dict[str, Any] = {
        "policy": one.label,
        "name": one.name,
        "kind": one.kind,
        "series": one.series,
        "curve": [
            {
                "threshold": _number(threshold),
                "accuracy": float(c.mean()),
                "low": float(low),
                "high": float(high),
                "tokens": float(t.mean()),
                "accepted": float(p.accepted.mean()),
                "mean_k": float(p.k.mean()),
                "calibrated_s": _number(float((t * seconds + prefill).mean())),
            }
            for threshold, c, t, p, low, high in zip(one.thresholds, correct, tokens, one.curve, *band, strict=True)
        ],
    }
    if one.kind in ("fixed", "oracle"):
        for place, point in zip(entry["curve"], one.curve, strict=True):
            found = _against(point, reference, weights, seconds, prefill)
            place |= {name: found[name] for name in ("accuracy_difference", "tokens_ratio", "time_ratio")}
            place["no_loss"] = one.kind == "fixed" and loss_is_below(point.correct - reference.correct, config.margin)
    if one.chosen is not None:
        ks, counts = np.unique(one.natural_k, return_counts=True)
        entry["operating_point"] = {
            **_against(one.chosen, reference, weights, seconds, prefill),
            "thresholds": sorted({float(t) for t in one.chosen_thresholds}),
            "mean_k": float(one.chosen.k.mean()),
            "accepted": float(one.chosen.accepted.mean()),
            "share_at_k": {str(int(k)): int(n) / len(one.natural_k) for k, n in zip(ks, counts, strict=True)},
        }
        entry["operating_point"]["no_loss"] = loss_is_below(one.chosen.correct - reference.correct, config.margin)
    if one.own is not None:
        entry["own_threshold"] = {
            **_against(one.own, reference, weights, seconds, prefill),
            # Of the controllers of a cross-validation, the one in the middle.
            "threshold": float(np.median(one.own_threshold)),
            "mean_k": float(one.own.k.mean()),
            "no_loss": loss_is_below(one.own.correct - reference.correct, config.margin),
        }
    return entry


def _against(
    point: Point, reference: Point, weights: np.ndarray, seconds: float, prefill: np.ndarray
) -> dict[str, Any]:
    """Return a point's accuracy and cost beside the reference's, with paired intervals."""
    difference = point.correct - reference.correct
    time, other = point.tokens * seconds + prefill, reference.tokens * seconds + prefill
    return {
        "accuracy": bounded(point.correct, 0.0, 1.0).plain(),
        "tokens": _plain(estimate(point.tokens)),
        "accuracy_difference": _difference(point, reference),
        "tokens_ratio": compare.ratio(point.tokens, reference.tokens, weights).plain(),
        "time_ratio": compare.ratio(time, other, weights).plain() if np.isfinite(time).all() else None,
        "questions_needed": questions_needed(difference),
    }


def _difference(point: Point, reference: Point) -> dict[str, float]:
    """Return an accuracy difference with its interval; nothing is uncertain where both are k = maximum."""
    if np.array_equal(point.tokens, reference.tokens):
        return {"value": 0.0, "low": 0.0, "high": 0.0}
    return bounded(point.correct - reference.correct).plain()


def _plain(found: Estimate) -> dict[str, float]:
    """Return an estimate as JSON values; where it has no interval, that is the value alone."""
    if np.isnan(found.low):
        return {"value": found.value, "low": found.value, "high": found.value}
    return found.plain()


def _areas(ran: Sequence[Ran], curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    """Return the mean difference between every dynamic policy's curve and fixed k, over the tokens both span."""
    found = []
    base = ran[0]
    for one in ran[1:]:
        if one.series != "power" or one.kind == "oracle":
            continue
        area = compare.area_between(curves[one.label], curves[base.label])
        if area is not None:
            found.append({"policy": one.label, "rival": base.label, **area.plain(), "verdict": verdict_of(area)})
    return found


def _mcnemar(ran: Sequence[Ran], walked: Walk) -> list[dict[str, Any]]:
    """Return exact McNemar tests of the operating points, in the natural order, against k = maximum and one another."""
    base = walked.correct[:, 0, -1]
    points = [(f"fixed-k{walked.ks[-1]}", base)]
    points += [(one.label, one.natural_correct) for one in ran if one.chosen is not None and one.series == "power"]
    return [
        {"policy": name, "rival": other, **mcnemar(right, rival)}
        for i, (name, right) in enumerate(points)
        for other, rival in points[:i]
    ]


def _clock(seconds: float, prompt_tokens: np.ndarray, prefill: np.ndarray) -> dict[str, float] | None:
    """Return what a token and a question's prompt take on the calibrated clock; None where the store has none."""
    if not (np.isfinite(seconds) and np.isfinite(prefill).all()):
        return None
    return {
        "seconds_per_token": seconds,
        "prompt_tokens": float(prompt_tokens.mean()),
        "prefill_s": float(prefill.mean()),
    }


def _difficulty(samples: Samples, ks: Sequence[int], ran: Sequence[Ran]) -> dict[str, Any]:
    """Return how many trajectories questions got, by difficulty: the share of their trajectories that is right."""
    group = difficulty_of(samples)
    rows = []
    for one in ran:
        if one.chosen is None or one.series != "power":
            continue
        rows.append(
            {
                "policy": one.label,
                "mean_k": [
                    _number(float(one.chosen.k[group == g].mean())) if (group == g).any() else None for g in range(5)
                ],
                "share_at_k": [
                    {str(k): float(s) for k in ks if (s := np.mean(one.natural_k[group == g] == k))}
                    if (group == g).any()
                    else {}
                    for g in range(5)
                ],
            }
        )
    return {"groups": list(GROUPS), "questions": [int((group == g).sum()) for g in range(5)], "policies": rows}


def _gain(one: Ran) -> dict[str, Any]:
    """Return what the largest k adds to the smallest."""
    difference = one.curve[-1].correct - one.curve[0].correct
    return {
        "from": int(one.thresholds[0]),
        "to": int(one.thresholds[-1]),
        "difference": bounded(difference).plain(),
        "questions_needed": questions_needed(difference),
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def write_replay(report: Mapping[str, Any], output: Path) -> None:
    """Write ``replay.json``, ``replay.csv`` (every point of every curve) and the page that shows them."""
    from dps.analysis.report.replays import write_replay_page

    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    replace_file(output / "replay.json", text + "\n")
    names = ["policy", "kind", "series", "threshold", "accuracy", "low", "high", "tokens", "mean_k", "calibrated_s"]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, names, extrasaction="ignore")
    writer.writeheader()
    for policy in report["policies"]:
        for point in policy["curve"]:
            writer.writerow({**policy, **point})
    replace_file(output / "replay.csv", table.getvalue())
    # From the text, as `dps report` does it later.
    write_replay_page(json.loads(text), output)
