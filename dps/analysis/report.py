"""``dps report``: the stores of an evaluation, or a harvest, to its result. No model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dps.analysis.mixing import chains_of, diagnose
from dps.analysis.policies import ORDERS, ReplayedPolicy, fixed, live
from dps.analysis.published import shown_ks
from dps.analysis.questions import number_shown, questions_to_read
from dps.analysis.result import Analysis, result_of
from dps.analysis.stores import check_comparable, choose_clock, find_stores
from dps.analysis.table import StoreTable, common_questions, read_table
from dps.decide.ladder import POWER, Ladder, from_ks
from dps.decide.orders import ladder_orders
from dps.errors import InputError
from feature_store import Store


def read_report(folders: Sequence[Path], title: str | None = None) -> dict[str, Any]:
    """Return the result of these stores without writing anything.

    A folder that holds stores one level below will do, too. Harvests are left out where there are evaluations.

    Raises:
        InputError: If there is nothing to read, or the stores cannot be compared.
        StoreError: If a store cannot be read.
    """
    places = find_stores(folders)
    opened = [(folder, Store.open(folder)) for folder in places]
    evaluations = [one for one in opened if one[1].manifest.kind == "evaluation"]
    left_out = [folder.resolve().name for folder, store in opened if store.manifest.kind != "evaluation"]
    kind = "evaluation" if evaluations else "harvest"
    notes = []
    if evaluations and left_out:
        notes.append(f"Left out, not evaluations: {', '.join(left_out)}.")
    used = evaluations or opened
    check_comparable([(folder, store.manifest) for folder, store in used])
    notes += [short for _, store in used if (short := store.shortfall()) is not None]
    whole = []
    for folder, store in used:
        table = read_table(store, str(folder), everything=True)
        if table.question_ids:
            whole.append(table)
        else:
            notes.append(f"{table.name} holds no complete question yet and is left out.")
    if not whole:
        raise InputError(
            f"Expected complete questions in {', '.join(map(str, places))}, found none yet: let "
            f"`dps {'evaluate' if evaluations else 'harvest'}` go on, then try again."
        )
    common = common_questions(whole, graded=False)
    if not common:
        sizes = ", ".join(f"{table.name} has {len(table.question_ids):,}" for table in whole)
        raise InputError(
            f"Expected questions that all stores have, found none ({sizes}): let `dps evaluate` finish, or name the "
            "stores to compare."
        )
    whole.sort(key=lambda table: (_rank(table), table.name))
    tables = [table.on(common) for table in whole]
    first = whole[0].manifest
    reference = next((table for table in tables if table.samples is not None), None)
    main = reference or tables[0]
    policies = [policy for table in tables for policy in _policies(table, common, next(iter(_budgets(main))))]
    policies.sort(key=lambda policy: not policy.is_main or policy.family != "fixed")
    shown = None
    if reference is not None and reference.samples is not None:
        of_it = next(store for _, store in used if store.manifest.policy["name"] == reference.series)
        shown = questions_to_read(of_it, reference.samples, policies, number_shown(None, first))
    return result_of(
        Analysis(
            kind=kind,
            title=title or f"Accuracy against cost: {first.benchmark.get('name', '?')}, {first.model.get('name', '?')}",
            tables=tables,
            whole=whole,
            policies=policies,
            main=policies[0].main,
            ks=() if reference is None else reference.ks,
            reference=None if reference is None else next(iter(_budgets(reference).values())).maximum,
            num_orders=ORDERS,
            clock=choose_clock([table.manifest for table in tables]),
            notes=notes,
            mixing=_mixing(tables),
            questions=shown,
        )
    )


def _rank(table: StoreTable) -> int:
    """Return the place of a store in the result: power sampling, controllers, rules, then other fixed budgets."""
    if table.live is not None:
        return 2 if "rule" in table.manifest.policy else 1
    return 0 if table.series == POWER else 3


def _policies(table: StoreTable, question_ids: Sequence[str], main: str) -> list[ReplayedPolicy]:
    """Return a store's policies: what it did, or its fixed budgets over their orders."""
    if table.samples is None:
        return [live(table, main)]
    policies = []
    for name, ladder in _budgets(table).items():
        orders = ladder_orders(question_ids, table.samples.arms, ladder, ORDERS, 0)
        several = len(table.ladder.arms) > 1
        listed = table.ks if not several else ladder.ks[-1:] if name == table.series else shown_ks(ladder.maximum)
        alone = len(listed) == 1 and name not in ladder.arms
        policies.append(replace(fixed(table, orders, ladder, listed, name), main=main, alone=alone))
    return policies


def _budgets(table: StoreTable) -> dict[str, Ladder]:
    """Return a store's fixed budgets by their names: the policy's of an evaluation; of a harvest those of each arm."""
    of_arms = {arm: from_ks(arm, range(1, most + 1)) for arm, most in table.ladder.totals.items()}
    if table.manifest.kind != "evaluation":
        return of_arms
    return {table.series: table.ladder if len(of_arms) > 1 else next(iter(of_arms.values()))}


def _mixing(tables: Sequence[StoreTable]) -> list[dict[str, Any]]:
    """Return the entries of ``mixing``: one for each store with recorded steps whose chains are not in another's.

    Of stores with the same sampler and seed only the first counts: a trajectory's stream depends on seed, question and
    index alone, so a controller's trajectories are the first ones of the fixed k's. Policies that sample another law
    than p^alpha have nothing to mix to.
    """
    entries: list[dict[str, Any]] = []
    seen: list[Any] = []
    for table in tables:
        run = ([arm for arm in table.manifest.arms.values() if arm.get("num_mh_steps")], table.manifest.seed)
        chains = chains_of({name: table.traces[name] for name in table.question_ids})
        if chains is not None and run not in seen and "law" not in table.manifest.policy:
            seen.append(run)
            entries.append({"store": table.name, "series": table.series, **diagnose(chains)})
    return entries
