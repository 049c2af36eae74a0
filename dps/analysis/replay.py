"""``dps replay``: every policy over stored trajectories, at all thresholds. No model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dps.analysis.config import ReplayConfig
from dps.analysis.policies import ReplayedPolicy, at_threshold, bounds, dynamic, fixed
from dps.analysis.published import shown_ks
from dps.analysis.questions import number_shown, questions_to_read
from dps.analysis.result import Analysis, result_of
from dps.analysis.stores import check_comparable, choose_clock, find_stores
from dps.analysis.table import StoreTable, check_graded, common_questions, read_table
from dps.decide import RULES
from dps.decide.orders import Walk, orders_for, walk
from dps.decide.predictions import FILE, Predictions, read_predictions
from dps.decide.rules import LEADS, WIDTHS
from dps.decide.splits import divided_as, folds_of
from dps.errors import InputError
from dps.folders import claim, place_of, store_identity
from feature_store import Manifest, Store
from feature_store.manifest import read_manifest

_ELSEWHERE = ("output", "rivals", "controllers", "show_questions")
"""Settings that change no number, or are told elsewhere in the provenance."""

CHEAP_RULES = ("adaptive-consistency", "lead", "lead-2", "lead-3")
"""The rules that are run over cheap samples, which come one at a time, so lead-1 stops at the first."""

Predict = Callable[[str, Path, Sequence[str], np.ndarray, tuple[int, ...]], tuple[np.ndarray, float]]
"""Asks a trained controller (its path) about questions of a store (the store, Q ids, orders (Q, O, K) and ks):
p_enough, shape (Q, O, C), and the threshold that it came with. Handed in by the composition root."""


def claim_folder(harvest: Path, config: ReplayConfig) -> bool:
    """Note in the output folder which replay it is of, see :func:`dps.folders.claim`; return whether it held this one.

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

    Raises:
        InputError: If the stores or controllers do not fit together.
        StoreError: If a store cannot be read.
    """
    config.check()
    folders = [harvest, *(find_stores([Path(r) for r in config.rivals]) if config.rivals else [])]
    stores = [Store.open(folder) for folder in folders]
    manifest = stores[0].manifest
    check_comparable([(folder, store.manifest) for folder, store in zip(folders, stores, strict=True)])
    out_of_fold = {
        name: read_predictions(path) for name, path in config.controllers.items() if (Path(path) / FILE).is_file()
    }
    read = [
        (str(folder), read_table(store, str(folder), everything=False))
        for folder, store in zip(folders, stores, strict=True)
    ]
    whole = [check_graded(table, folder) for folder, table in read]
    common, notes = _common(whole, folders, out_of_fold)
    notes = [*(short for store in stores if (short := store.shortfall()) is not None), *notes]
    tables = [table.on(common) for table in whole]
    power, samples = tables[0], tables[0].samples
    assert samples is not None
    ks = power.ks if config.k is None else config.k.values
    if len(ks) < 2:
        raise InputError(
            f"Expected several k's at which policies may stop, but {harvest} has only k = {ks[0]}: give for instance "
            "--k.start 1 --k.step 1, with --k.maximum."
        )
    orders = _orders(common, samples.num_trajectories, config, out_of_fold, manifest)
    walked = walk(samples, orders, ks, manifest.aggregator, config.seed)
    folds = folds_of(divided_as(common, samples.contents), config.folds, config.seed)

    policies = [fixed(power, orders, ks, ks)]
    for name, path in config.controllers.items():
        p_enough, own = _asked(name, out_of_fold, predict, (path, harvest, common, orders, ks))
        policies.append(dynamic(name, "controller", "power", walked, p_enough, folds, config.margin, own))
    rules, blind = _rules("power", walked, RULES, folds, config.margin)
    policies += rules
    if blind:
        notes.append(
            f"Left out: {', '.join(blind)}. The harvest has not recorded the entropies and top-1 probabilities that "
            "they look at."
        )
    policies += bounds("power", walked, folds, config.margin)
    for table in tables[1:]:
        policies += _cheap(table, common, folds, config)
    default = f"Policies replayed: {manifest.benchmark.get('name')}, {Path(str(manifest.model.get('name'))).name}"
    return result_of(
        Analysis(
            kind="replay",
            title=config.title or default,
            tables=tables,
            whole=whole,
            policies=policies,
            ks=ks,
            num_orders=orders.shape[1],
            clock=choose_clock([manifest]),
            notes=notes,
            settings={k: v for k, v in asdict(config).items() if k not in _ELSEWHERE},
            controllers={name: Path(path).name for name, path in config.controllers.items()},
            margin=config.margin,
            folds=config.folds,
            resamples=config.resamples,
            seed=config.seed,
            questions=questions_to_read(stores[0], samples, policies, number_shown(config.show_questions, manifest)),
            correct=walked.correct,
        )
    )


def _common(
    whole: Sequence[StoreTable], folders: Sequence[Path], out_of_fold: Mapping[str, Predictions]
) -> tuple[list[str], list[str]]:
    """Return the graded questions that harvest, rivals and cross-validations all have, and notes."""
    first = whole[0]
    for folder, table in zip(folders[1:], whole[1:], strict=True):
        if not set(first.graded) & set(table.graded):
            raise InputError(
                f"Expected rivals of the same questions, but {folder} and {folders[0]} have no graded question in "
                f"common ({table.graded[0]}, ... and {first.graded[0]}, ...): evaluate the rivals on the questions of "
                "the harvest."
            )
    known = [set(one.question_ids) for one in out_of_fold.values()]
    common = sorted(set(common_questions(whole, graded=True)).intersection(*known))
    if not common:
        raise InputError("Expected graded questions that harvest, rivals and cross-validations all have, found none.")
    if len(common) == len(first.graded):
        return common, []
    return common, [
        f"Everything is computed on the {len(common):,} questions that all have; the harvest has {len(first.graded):,}."
    ]


def _orders(
    question_ids: Sequence[str],
    num_trajectories: int,
    config: ReplayConfig,
    out_of_fold: Mapping[str, Predictions],
    manifest: Manifest,
) -> np.ndarray:
    """Return the orders that all policies are averaged over: those of the out-of-fold probabilities, if there are."""
    orders: np.ndarray | None = None
    first = ""
    for name, one in out_of_fold.items():
        if one.store_fingerprint != manifest.fingerprint:
            raise InputError(
                f"The cross-validation of {name} ({config.controllers[name]}) is of another harvest: its store has the "
                f"fingerprint {one.store_fingerprint}, this one {manifest.fingerprint}. Run dps crossval on this one."
            )
        mine = one.on(question_ids).orders.astype(np.int64)
        if orders is not None and not np.array_equal(orders, mine):
            raise InputError(
                f"The cross-validations of {first} and {name} have other orders of the trajectories: run both with the "
                "same data.num_orders and data.seed."
            )
        orders, first = mine, first or name
    return orders_for(question_ids, num_trajectories, config.orders, config.seed) if orders is None else orders


def _asked(
    name: str, out_of_fold: Mapping[str, Predictions], predict: Predict, question: tuple[Any, ...]
) -> tuple[np.ndarray, float | np.ndarray]:
    """Return a controller's probabilities and the threshold that it came with, out of fold where there are such."""
    if name not in out_of_fold:
        return predict(*question)
    _, _, common, _, ks = question
    one = out_of_fold[name].on(common).at(ks)
    return one.p_enough, one.threshold


def _rules(
    series: str, walked: Walk, names: Collection[str], folds: np.ndarray, margin: float
) -> tuple[list[ReplayedPolicy], list[str]]:
    """Run rules that need no training; also return the names of those that the store shows too little to."""
    policies, blind = [], []
    for name in names:
        rule = RULES[name]
        if name in LEADS:
            policies.append(at_threshold(name, series, walked, walked.p_enough(rule), rule.threshold))
            continue
        widest: dict[str, Any] = {WIDTHS[name]: walked.ks[-1]} if name in WIDTHS else {}
        p_enough = walked.p_enough(replace(rule, **widest))
        if np.isfinite(p_enough).all():
            family = "chance" if name == "random" else "rule"
            policies.append(dynamic(name, family, series, walked, p_enough, folds, margin))
        else:
            blind.append(name)
    return policies, blind


def _cheap(
    table: StoreTable, question_ids: Sequence[str], folds: np.ndarray, config: ReplayConfig
) -> list[ReplayedPolicy]:
    """Return fixed and adaptive self-consistency over a rival's samples, one at a time, and its bounds."""
    samples = table.samples
    assert samples is not None
    most = samples.num_trajectories
    orders = orders_for(question_ids, most, config.orders, config.seed)
    every = range(1, most + 1)
    policies = [fixed(table, orders, every, shown_ks(most))]
    if most > 1:
        walked = walk(samples, orders, tuple(every), table.manifest.aggregator, config.seed)
        policies += _rules(table.series, walked, CHEAP_RULES, folds, config.margin)[0]
        policies += bounds(table.series, walked, folds, config.margin)
    return policies
