"""``dps replay``: every policy over stored responses, on every ladder, at all thresholds. No model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dps.analysis.config import ReplayConfig
from dps.analysis.outcomes import Outcomes, outcomes_of
from dps.analysis.policies import ReplayedPolicy, at_threshold, bounds, dynamic, fixed
from dps.analysis.published import shown_ks
from dps.analysis.questions import number_shown, questions_to_read
from dps.analysis.result import Analysis, point_at, result_of
from dps.analysis.stores import choose_clock
from dps.analysis.table import StoreTable, check_graded, read_table
from dps.analysis.words import listing
from dps.decide import RULES
from dps.decide.aggregate import AGGREGATORS
from dps.decide.ladder import Ladder, Rung, doubling, from_ks
from dps.decide.orders import Walk, ladder_orders, walk
from dps.decide.predictions import FILE, Predictions, read_predictions
from dps.decide.rules import LEADS, WIDTHS
from dps.decide.samples import Samples, check_held
from dps.decide.splits import divided_as, folds_of
from dps.errors import InputError
from dps.folders import claim, place_of, store_identity
from feature_store import Manifest, Store

VOTE_RULES = ("adaptive-consistency", "esc", "sprt", "certificate", "lead", *LEADS)
"""The rules that look at votes only, which are run on every ladder; the others on the first."""

OrdersOf = Callable[[Ladder], np.ndarray]
"""Returns the columns in which a ladder's responses come, of Q questions in O orders: shape (Q, O, n). They count the
store's responses of the ladder's arms, arm by arm in the order of the store, and within an arm by index."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What a controller said of Q questions in O orders."""

    ladder: Ladder
    """The ladder that it knows."""
    p_enough: np.ndarray
    """Shape (Q, O, C)."""
    threshold: float | np.ndarray
    """The threshold that it came with; of a cross-validation, of each question: shape (Q,)."""
    label: str
    """What ``p_enough`` is the probability of, one of :data:`dps.decide.labels.LABELS`."""


Predict = Callable[[str, Path, Sequence[str], OrdersOf], tuple[Ladder, np.ndarray, float, str]]
"""Asks a trained controller (its path) about questions of a store (the store, Q ids): the four fields of
:class:`Asked`. Handed in by the composition root."""


def claim_folder(harvest: Path, config: ReplayConfig) -> bool:
    """Note in the output folder which replay it is of, see :func:`dps.folders.claim`; return whether it held this one.

    Raises:
        InputError: If the folder holds another run's results.
        StoreError: If the store cannot be read.
    """
    folder = Path(config.output)
    no_number = ("title", "show_questions", "output")
    settings = {name: value for name, value in asdict(config).items() if name not in no_number} | {
        "harvest": store_identity(harvest, folder),
        "controllers": {name: place_of(path, folder) for name, path in config.controllers.items()},
    }
    return claim(folder, "dps replay", settings, ("replay.json", "replay.csv"))


def run_replay(
    harvest: Path, config: ReplayConfig, predict: Predict, keep: Callable[[Outcomes], None] | None = None
) -> dict[str, Any]:
    """Run every policy over a harvest, and return what ``replay.json`` holds; ``keep`` is handed the outcomes.

    Raises:
        InputError: If the harvest, ladders and controllers do not fit together.
        StoreError: If the store cannot be read.
    """
    config.check()
    store = Store.open(harvest)
    out_of_fold = {
        name: read_predictions(path) for name, path in config.controllers.items() if (Path(path) / FILE).is_file()
    }
    whole = check_graded(read_table(store, str(harvest), everything=False), str(harvest))
    common, notes = _common(whole, out_of_fold)
    notes = [*filter(None, [store.shortfall()]), *notes]
    table = whole.on(common)
    samples = table.samples
    assert samples is not None
    num_orders, seed = _drawn(config, out_of_fold, store.manifest)
    columns, orders_of = _orders(samples, whole.ladder, num_orders, seed, str(harvest))
    controllers = {
        name: _of_fold(name, out_of_fold[name].on(common), orders_of)
        if name in out_of_fold
        else Asked(*predict(path, harvest, common, orders_of))
        for name, path in config.controllers.items()
    }
    ladders = ladders_of(config, whole, str(harvest), [asked.ladder for asked in controllers.values()])
    main = next(iter(ladders))
    folds = folds_of(divided_as(common, samples.contents), config.folds, config.seed)
    budgets = _budgets(table, ladders, columns)
    first, k, note = _reference(config, ladders, budgets)
    budgets = [
        replace(first, listed=first.listed | (first.thresholds == k)),
        *(one for one in budgets if one is not first),
    ]
    notes += note
    policies, correct = [], {}
    for series, ladder in ladders.items():
        known = {name: asked for name, asked in controllers.items() if asked.ladder == ladder}
        walked = walk(samples, columns(ladder), ladder.ks, store.manifest.aggregator, config.seed)
        climbing = (series, walked, folds, config.margin, point_at(first, k).correct)
        found = [_controller(name, asked, config.controllers[name], *climbing) for name, asked in known.items()]
        rules, blind = _rules(RULES if series == main else VOTE_RULES, *climbing)
        notes += blind
        mine = {"ladder": ladder, "aggregator": store.manifest.aggregator}
        policies += [replace(one, **mine) for one in (*found, *rules, *bounds(*climbing))]
        if found or series == main:
            correct[series] = walked.correct
    policies = [replace(one, main=main) for one in (*budgets, *policies)]
    if keep is not None:
        keep(outcomes_of(policies, common, folds))
    model = Path(str(store.manifest.model.get("name"))).name
    told = ("output", "controllers", "show_questions", "ladders")
    return result_of(
        Analysis(
            kind="replay",
            title=config.title or f"Policies replayed: {store.manifest.benchmark.get('name')}, {model}",
            tables=[table],
            whole=[whole],
            policies=policies,
            main=main,
            ks=ladders[main].ks,
            reference=k,
            num_orders=num_orders,
            clock=choose_clock([store.manifest]),
            notes=notes,
            settings={name: value for name, value in asdict(config).items() if name not in told},
            controllers={name: Path(path).name for name, path in config.controllers.items()},
            margin=config.margin,
            folds=config.folds,
            resamples=config.resamples,
            seed=config.seed,
            questions=questions_to_read(store, samples, policies, number_shown(config.show_questions, store.manifest)),
            correct=correct,
        )
    )


def _common(whole: StoreTable, out_of_fold: Mapping[str, Predictions]) -> tuple[list[str], list[str]]:
    """Return the graded questions that the harvest and the cross-validations all have, and notes."""
    common = sorted(set(whole.graded).intersection(*(one.question_ids for one in out_of_fold.values())))
    if not common:
        raise InputError("Expected graded questions that the harvest and the cross-validations all have, found none.")
    if len(common) == len(whole.graded):
        return common, []
    return common, [
        f"Everything is computed on the {len(common):,} questions that all have; the harvest has {len(whole.graded):,}."
    ]


def _drawn(config: ReplayConfig, out_of_fold: Mapping[str, Predictions], manifest: Manifest) -> tuple[int, int]:
    """Return how many orders all policies are averaged over, and their seed: of out-of-fold probabilities, if any."""
    drawn, first = (config.orders, config.seed), ""
    for name, one in out_of_fold.items():
        if one.store_fingerprint != manifest.fingerprint:
            raise InputError(
                f"The cross-validation of {name} ({config.controllers[name]}) is of another harvest: its store has the "
                f"fingerprint {one.store_fingerprint}, this one {manifest.fingerprint}. Run dps crossval on this one."
            )
        mine = (one.orders.shape[1], one.seed)
        if first and mine != drawn:
            raise InputError(
                f"The cross-validations of {first} and {name} have other orders of the trajectories: run both with the "
                "same data.num_orders and data.seed."
            )
        drawn, first = mine, name
    return drawn


def _orders(
    samples: Samples, held: Ladder, num_orders: int, seed: int, folder: str
) -> tuple[Callable[[Ladder], np.ndarray], OrdersOf]:
    """Return what gives a ladder's orders (Q, O, n): of columns of ``samples``, and of those of its own arms only.

    An arm's responses come in the same order on every ladder. ``held`` is what the harvest (``folder``) has climbed.
    """
    every = ladder_orders(samples.question_ids, samples.arms, held, num_orders, seed)
    place = {key: i for i, key in enumerate(held.sequence())}

    def columns(ladder: Ladder) -> np.ndarray:
        check_held(ladder, held, folder)
        return every[..., [place[key] for key in ladder.sequence()]]

    def orders_of(ladder: Ladder) -> np.ndarray:
        return (np.cumsum(np.isin(samples.arms, ladder.arms)) - 1)[columns(ladder)]

    return columns, orders_of


def _of_fold(name: str, one: Predictions, orders_of: OrdersOf) -> Asked:
    """Return what the controllers of a cross-validation said; InputError if it was in other orders."""
    ladder = one.ladder
    if not np.array_equal(one.orders, orders_of(ladder)):
        raise InputError(
            f"The cross-validation of {name} has other orders of the trajectories than this version draws: run dps "
            "crossval again."
        )
    return Asked(ladder, one.p_enough, one.threshold, one.label_name)


# -- ladders -----------------------------------------------------------------------------------------------------------


def ladders_of(config: ReplayConfig, table: StoreTable, folder: str, known: Sequence[Ladder]) -> dict[str, Ladder]:
    """Return the ladders of a replay by name, the one that the result is about first.

    ``known`` are those of the controllers, which are climbed whatever the settings say.

    Raises:
        InputError: If a ladder has the name of another arm or takes what the harvest lacks, or there is none.
    """
    totals = table.ladder.totals
    ladders = {name: Ladder.parse(rungs) for name, rungs in config.ladders.items()}
    others = [("+".join(ladder.arms), ladder) for ladder in known]
    if not ladders:
        others.append(("+".join(totals), table.ladder))
        cheap = tuple(rung for rung in table.ladder.rungs if not table.manifest.arms[rung.arm].get("num_mh_steps"))
        if cheap:  # what power sampling adds to
            others.append(("+".join(Ladder(cheap).arms), Ladder(cheap)))
        for arm, count in totals.items():
            others += [(f"{arm}-doubling", doubling(arm, count)), (f"{arm}-ones", from_ks(arm, range(1, count + 1)))]
    for name, ladder in others:
        if len(ladder.rungs) > 1 and ladder not in ladders.values():
            number = next(n for n in range(1, len(others) + 2) if (name if n == 1 else f"{name}-{n}") not in ladders)
            ladders[name if number == 1 else f"{name}-{number}"] = ladder
    for name, ladder in ladders.items():
        check_held(ladder, table.ladder, folder)
        if name in totals and ladder.arms != (name,):
            raise InputError(f"ladders.{name} has the name of an arm, but climbs {ladder}: give it another name.")
    if not ladders:
        raise InputError(
            f"Expected several responses of a question, so that policies may stop, but {folder} has one: harvest more."
        )
    return ladders


def _budgets(
    table: StoreTable, ladders: Mapping[str, Ladder], columns: Callable[[Ladder], np.ndarray]
) -> list[ReplayedPolicy]:
    """Return the fixed budgets of every arm, with every way to choose an answer, and of ladders of several arms."""
    own, budgets, (main, first) = table.ladder, [], next(iter(ladders.items()))
    for arm, most in own.totals.items():
        ones = from_ks(arm, range(1, most + 1))
        ends = [ladder.maximum for ladder in ladders.values() if ladder.arms == (arm,)]
        shown = {*shown_ks(most), *ends, *(own.ks if own.arms == (arm,) else ())}
        orders = columns(ones)
        of_arm = [fixed(table, orders, ones, sorted(shown), arm)]
        for aggregator in (a for a in AGGREGATORS if a != table.manifest.aggregator):
            of_arm.append(fixed(table, orders, from_ks(arm, shown_ks(most)), [most], arm, aggregator))
        budgets += [replace(one, series=main) for one in of_arm] if first.arms == (arm,) else of_arm
    for name, ladder in ladders.items():
        if len(ladder.arms) > 1:
            budgets.append(fixed(table, columns(ladder), ladder, [ladder.maximum], name))
    return budgets


def _reference(
    config: ReplayConfig, ladders: Mapping[str, Ladder], budgets: Sequence[ReplayedPolicy]
) -> tuple[ReplayedPolicy, int, list[str]]:
    """Return the fixed budgets that hold the reference, its number of responses, and a note if it was picked."""
    by_series = {policy.source: policy for policy in budgets if policy.name == "fixed"}
    if config.reference:
        wanted = Rung.parse(config.reference)
        policy = by_series.get(wanted.arm)
        if policy is None or wanted.count not in policy.thresholds:
            known = listing(f"{name} {one.thresholds[-1]:g}" for name, one in by_series.items())
            raise InputError(
                f"Expected a reference that the harvest holds, a fixed budget up to {known}, got {config.reference!r}."
            )
        return policy, wanted.count, []
    ladder = next(iter(ladders.values()))
    ends = [(by_series[arm], count) for arm, count in ladder.totals.items()]
    if len(ends) == 1:
        return *ends[0], []
    worth = [(point.correct.mean(), -point.tokens.mean()) for point in (point_at(*end) for end in ends)]
    policy, k = ends[worth.index(max(worth))]
    names = listing(policy.row_name(k) for policy, k in ends)
    return (
        policy,
        k,
        [f"The reference {policy.row_name(k)} is the most accurate of {names}, picked on these questions."],
    )


# -- policies on a ladder ----------------------------------------------------------------------------------------------


def _controller(
    name: str,
    asked: Asked,
    path: str,
    series: str,
    walked: Walk,
    folds: np.ndarray,
    margin: float,
    reference: np.ndarray,
) -> ReplayedPolicy:
    """Return a controller over its ladder; of the label ``value`` nobody asks whether ``p_enough`` comes true."""
    policy = dynamic(name, "controller", series, walked, asked.p_enough, folds, margin, asked.threshold, reference)
    return replace(policy, controller=path, p_enough=None if asked.label == "value" else asked.p_enough)


def _rules(
    names: Collection[str], series: str, walked: Walk, folds: np.ndarray, margin: float, reference: np.ndarray
) -> tuple[list[ReplayedPolicy], list[str]]:
    """Run rules that need no training; also return a note on those that the store shows too little to."""
    policies, blind = [], []
    for name in names:
        rule = RULES[name]
        if name == "lead-1" and walked.ks[0] == 1:
            continue  # one response leads by one vote
        if name in WIDTHS:
            rule = replace(rule, **{WIDTHS[name]: walked.ks[-1]})
        p_enough = walked.p_enough(rule)
        if name in LEADS:
            policy = at_threshold(name, series, walked, p_enough, rule.threshold)
        elif np.isfinite(p_enough).all():
            family = "chance" if name == "random" else "rule"
            policy = dynamic(name, family, series, walked, p_enough, folds, margin, reference=reference)
        else:
            blind.append(name)
            continue
        policies.append(replace(policy, rule=asdict(rule)))
    note = (
        f"Left out: {', '.join(blind)}. The harvest has not recorded the entropies and top-1 probabilities that they "
        "look at."
    )
    return policies, [note] if blind else []
