"""``dps replay``: stores in, every policy's curve and operating point out, compared in pairs. No model is loaded.

``samples`` reads, ``policies`` runs, ``compare`` resamples; this module decides what is compared with what, and
``report`` says it in words. What it returns is ``replay.json``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dps.errors import InputError
from dps.policies import RULES, AdaptiveConsistency, EarlyStoppingConsistency, KRange
from dps.replay import compare
from dps.replay.compare import Curve, Interval
from dps.replay.config import ReplayConfig
from dps.replay.policies import Point, Ran, dynamic, fixed, folds_of, oracle
from dps.replay.reading import GROUPS, difficulty_of, number_shown, questions_to_read
from dps.replay.reliability import reliability
from dps.replay.samples import Samples, Walk, describe, orders_of, read_samples, scores, walk
from dps.report.statistics import fixed_ks
from dps.report.write import check_comparable, find_stores
from feature_store import Manifest, Store
from feature_store.files import replace_file
from feature_store.hostile import dataset_in

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
        with h5py.File(path, "r") as file:
            if block := int(file.attrs.get("block", 0)):
                raise InputError(
                    f"The cross-validation {folder} is of controllers that are asked after block {block} while "
                    "trajectories run, a replay asks where they have ended: leave it out."
                )
            return OutOfFold(
                question_ids=tuple(name.decode("utf-8") for name in dataset_in(file, "question_id")[()]),
                orders=dataset_in(file, "orders")[()].astype(np.int64),
                p_enough=dataset_in(file, "p_enough")[()],
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
    notes = []
    if len(common) < len(samples.question_ids):
        notes.append(
            f"Everything is computed on the {len(common):,} questions that all have; the harvest has "
            f"{len(samples.question_ids):,}."
        )
    samples, sources = samples.on(common), [s.on(common) for s in sources]
    ks = (config.k or _range(store.manifest, harvest)).values
    orders = _orders(common, samples.num_trajectories, config, found, store.manifest, ks)
    walked = walk(samples, orders, ks, config.seed)
    folds = folds_of(common, config.folds, config.seed)

    ran = [fixed("power", walked)]
    for name, path in config.controllers.items():
        one = found[name]
        if one is not None:
            p_enough, own = _rows(one, common, ks), None
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
        powers = [i for i, k in enumerate(every.ks) if k in _powers(source.num_trajectories)]
        ran.append(
            replace(
                fixed(source.series, every),
                curve=tuple(fixed(source.series, every).curve[i] for i in powers),
                thresholds=np.array([float(every.ks[i]) for i in powers]),
            )
        )
        rule = AdaptiveConsistency()
        p_inc = scores([rule.enough(seen) for seen in every.seen], every)
        ran.append(dynamic(rule.name, "rule", source.series, every, p_inc, folds, config.margin))
    report = _report(store.manifest, samples, sources, ran, walked, notes, config, harvest)
    shown = number_shown(config.show_questions, store.manifest)
    from dps.report.look import drawn_with

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


def _powers(maximum: int) -> set[int]:
    return {1 << i for i in range(12) if 1 << i <= maximum} | {maximum}


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


def _rows(found: OutOfFold, question_ids: Sequence[str], ks: tuple[int, ...]) -> np.ndarray:
    """Return the probabilities of these questions at these checkpoints, among those that there are."""
    place = {question: i for i, question in enumerate(found.question_ids)}
    rows = found.p_enough[[place[question] for question in question_ids]]
    return rows[..., [found.ks.index(k) for k in ks[:-1]]]


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
    seconds = float(manifest.calibration.get("seconds_per_token", np.nan))
    prefill = samples.prompt_tokens * float(manifest.calibration.get("prefill_seconds_per_token", np.nan))
    curves = {one.label: compare.curve_of(one.curve, weights) for one in ran}
    policies = [_policy(one, reference, weights, seconds, prefill, config) for one in ran]
    matched = _matched(ran, curves, weights)
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
        "k8_over_k2": _gain(ran[0], weights),
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
    from dps.replay.findings import findings

    report["findings"] = findings(report)
    return report


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
    if one.chosen is not None:
        ks, counts = np.unique(one.natural_k, return_counts=True)
        entry["operating_point"] = {
            **_against(one.chosen, reference, weights, seconds, prefill),
            "thresholds": sorted({float(t) for t in one.chosen_thresholds}),
            "mean_k": float(one.chosen.k.mean()),
            "accepted": float(one.chosen.accepted.mean()),
            "share_at_k": {str(int(k)): int(n) / len(one.natural_k) for k, n in zip(ks, counts, strict=True)},
        }
        entry["operating_point"]["no_loss"] = entry["operating_point"]["accuracy_difference"]["low"] >= -config.margin
    if one.own is not None:
        entry["own_threshold"] = {
            **_against(one.own, reference, weights, seconds, prefill),
            "threshold": one.own_threshold,
            "mean_k": float(one.own.k.mean()),
        }
    return entry


def _against(
    point: Point, reference: Point, weights: np.ndarray, seconds: float, prefill: np.ndarray
) -> dict[str, Any]:
    """Return a point's accuracy and cost beside the reference's, with paired intervals."""
    difference = point.correct - reference.correct
    time, other = point.tokens * seconds + prefill, reference.tokens * seconds + prefill
    return {
        "accuracy": compare.mean(point.correct, weights).plain(),
        "tokens": compare.mean(point.tokens, weights).plain(),
        "accuracy_difference": compare.mean(difference, weights).plain(),
        "tokens_ratio": compare.ratio(point.tokens, reference.tokens, weights).plain(),
        "time_ratio": compare.ratio(time, other, weights).plain() if np.isfinite(time).all() else None,
        "questions_needed": compare.questions_needed(difference),
    }


def _matched(ran: Sequence[Ran], curves: Mapping[str, Curve], weights: np.ndarray) -> list[dict[str, Any]]:
    """Compare every operating point, and k = maximum, with every other policy's curve at the same tokens."""
    found = []
    for one in ran:
        if one.kind in ("oracle", "chance") or one.series != "power":
            continue
        at = one.chosen or one.curve[-1]
        tokens, resampled = float(at.tokens.mean()), weights @ at.tokens
        accuracy, accuracies = float(at.correct.mean()), weights @ at.correct
        for other in ran:
            if other is one or other.kind == "oracle":
                continue
            rival = compare.accuracy_at(curves[other.label], tokens, resampled)
            if rival is None:
                continue
            difference = compare.interval(accuracy - rival[0], accuracies - rival[1])
            found.append(
                {
                    "policy": one.label if one.chosen is not None else f"fixed-k{int(one.thresholds[-1])}",
                    "kind": one.kind,
                    "rival": other.label,
                    "rival_kind": other.kind,
                    "rival_series": other.series,
                    "tokens": tokens,
                    "rival_tokens": min(tokens, float(curves[other.label].tokens[-1])),
                    "accuracy": accuracy,
                    "rival_accuracy": rival[0],
                    "difference": difference.plain(),
                    "verdict": _verdict(difference),
                    "questions_needed": _needed(difference, len(at.correct)),
                }
            )
    return found


def _needed(difference: Interval, num_questions: int) -> int | None:
    """Return how many questions would decide a difference of this size; None where it is 0."""
    half = (difference.high - difference.low) / 2
    if difference.value == 0 or half == 0:
        return None
    needed = num_questions * (half / difference.value) ** 2
    return int(np.ceil(needed)) if needed < 1e9 else None


def _verdict(difference: Interval) -> str:
    return {1: "above", -1: "below", 0: "undecided"}[difference.sign]


def _areas(ran: Sequence[Ran], curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    """Return the mean difference between every dynamic policy's curve and fixed k, over the tokens both span."""
    found = []
    base = ran[0]
    for one in ran[1:]:
        if one.series != "power" or one.kind == "oracle":
            continue
        area = compare.area_between(curves[one.label], curves[base.label])
        if area is not None:
            found.append({"policy": one.label, "rival": base.label, **area.plain(), "verdict": _verdict(area)})
    return found


def _mcnemar(ran: Sequence[Ran], walked: Walk) -> list[dict[str, Any]]:
    """Return exact McNemar tests of the operating points, in the natural order, against k = maximum and one another."""
    base = walked.correct[:, 0, -1]
    points = [(f"fixed-k{walked.ks[-1]}", base)]
    points += [(one.label, one.natural_correct) for one in ran if one.chosen is not None and one.series == "power"]
    return [
        {"policy": name, "rival": other, **compare.mcnemar(right, rival)}
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


def _gain(one: Ran, weights: np.ndarray) -> dict[str, Any]:
    """Return what the largest k adds to the smallest."""
    difference = one.curve[-1].correct - one.curve[0].correct
    return {
        "from": int(one.thresholds[0]),
        "to": int(one.thresholds[-1]),
        "difference": compare.mean(difference, weights).plain(),
        "questions_needed": compare.questions_needed(difference),
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def write_replay(report: Mapping[str, Any], output: Path) -> None:
    """Write ``replay.json``, ``replay.csv`` (every point of every curve) and the page that shows them."""
    from dps.report.replays import write_replay_page

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
