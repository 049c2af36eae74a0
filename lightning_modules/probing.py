"""``dps probe``: how well one can tell which questions will be answered rightly, and what giving up saves.

Every number is out of fold: a question is judged by fits, and given up at thresholds, of the other folds' questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dps.decide.features import EMBEDDING, LEARNT, PROMPT, SCALARS, feature_names
from dps.decide.orders import at_stop
from dps.decide.samples import held_of, trained_ladder
from dps.decide.splits import folds_of, other_folds
from dps.decide.table import Table, make_table
from dps.errors import InputError
from dps.estimates import bounded, ratio, resamples
from lightning_modules.estimators import FAR
from lightning_modules.metrics import NUM_DRAWS, measure_probabilities, plain
from lightning_modules.probe import LENGTH, fit_parts, join_parts, regress, sizes_of
from lightning_modules.probe_config import ProbeConfig, ProbeData

RESULT, FORMAT = "probe.json", 1
LOSSES = (0.0, 0.005, 0.01)
"""Losses of accuracy that thresholds are chosen for."""
_MARGINS = (1, 2, 3, 4, 1 << 20)
"""Leads at which a policy stops; the last one never does before the end."""
_CUTS = 65
"""Thresholds of giving up that are tried."""
_TREES = {
    "objective": "cross_entropy", "learning_rate": 0.05, "num_leaves": 7, "min_data_in_leaf": 100, "lambda_l2": 1.0,
    "num_threads": 1, "deterministic": True, "force_col_wise": True, "verbosity": -1,
}  # fmt: skip
_ROUNDS = 100


def probe(folder: str, config: ProbeConfig) -> Path:
    """Measure a harvest; prints a table and returns the file of results.

    Raises:
        InputError: If the harvest cannot be used, or the folder holds something else.
    """
    from dps.folders import claim, store_identity
    from feature_store import Store
    from lightning_modules.run_files import write_json

    store, data = Store.open(folder), config.data
    manifest, output = store.manifest, Path(str(config.output))
    ladder = trained_ladder(manifest, folder, data.ladder)
    table = make_table(
        store.scan(hidden=False),
        ladder=ladder,
        aggregator=manifest.aggregator,
        calibration=manifest.calibration,
        num_orders=data.num_orders,
        seed=data.seed,
        parts=frozenset({SCALARS, EMBEDDING, PROMPT}),
        feature_set=data.feature_set,
        totals=held_of(manifest, folder, ladder),
    )
    table = table.select(table.graded)
    if table.num_questions < 5 * config.folds:
        raise InputError(
            f"Expected at least {5 * config.folds} graded questions for {config.folds} folds, but {folder} has "
            f"{table.num_questions}: harvest more, or set fewer folds."
        )
    about = {"store": store_identity(folder, output), "data": asdict(data), "folds": config.folds}
    claim(output, "dps probe", about, (RESULT,))
    result = measure(table, data, config.folds, list(manifest.model.get("prompt_layers", [])))
    write_json(
        output / RESULT, {"format_version": FORMAT, **about, "store_fingerprint": manifest.fingerprint, **result}
    )
    print(describe(result))
    return output / RESULT


def columns_of(table: Table, layers: list[int]) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Return the question's columns, and of which of their parts each probe is made: one of each part, one of all."""
    columns = {LENGTH: table.lengths, EMBEDDING: table.embedding, PROMPT: table.prompt}
    columns = {name: values for name, values in columns.items() if values.size}
    parts = [name for name in columns if name != PROMPT]
    if PROMPT in columns:
        parts += [f"layer {layer} {which}" for layer in layers for which in ("last", "mean")]
    probes = {name: [place] for place, name in enumerate(parts)}
    return columns, probes | ({"all": list(range(len(parts)))} if len(parts) > 1 else {})


def measure(table: Table, data: ProbeData, folds: int, layers: list[int]) -> dict[str, Any]:
    """Return what ``probe.json`` holds of a table whose questions are all graded."""
    groups = table.divided_as()
    fold = folds_of(groups, folds, data.seed)
    draws = resamples(table.num_questions, NUM_DRAWS, data.seed)
    end = table.correct[..., -1]

    def row(p: np.ndarray) -> dict[str, Any]:
        measured = measure_probabilities(p, end, draws)
        return {
            **{metric: plain(measured[metric].estimate()) for metric in ("auroc", "brier_skill", "log_loss")},
            "saves": _savings(table, data.feature_set, fold, p),
        }

    alone, after = {}, {}
    for name, logits in (("first rung", None), *_question(table, layers, groups, fold, data.seed).items()):
        if logits is not None:
            alone[name] = row(np.repeat(_share(logits[0])[:, None], end.shape[1], axis=1))
        p, trees = _after(table, data, fold, None if logits is None else logits[1])
        after[name] = {**row(p), "folds_of_gbdt": trees}
    return {
        "ladder": table.ladder.texts(),
        "num_questions": table.num_questions,
        "num_orders": end.shape[1],
        "right_at_end": float(end.mean()),
        "question": alone,
        "after_first_rung": after,
        "votes_alone": _savings(table, data.feature_set, fold, None),
    }


def _question(
    table: Table, layers: list[int], groups: tuple[str, ...], fold: np.ndarray, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return each probe's logits (Q,) by the fits of the other folds, and by fold (F, Q) those of its training."""
    import torch

    columns, probes = columns_of(table, layers)
    right, (count, folds) = table.correct.mean(axis=1), (len(fold), int(fold.max()) + 1)
    said = {name: (np.zeros(count), np.zeros((folds, count))) for name in probes}
    for number, (mine, others) in enumerate(other_folds(fold)):
        chosen = {name: values[others] for name, values in columns.items()}
        names = [groups[i] for i in np.flatnonzero(others)]
        parts = fit_parts(chosen, right[others], names, seed, 2 * max(1, len(layers)))
        nothing = np.ones((int(mine.sum()), 1))
        given = [columns[name][mine] if name in columns else nothing for name in (PROMPT, EMBEDDING, LENGTH)]
        for name, places in probes.items():
            fit, inner = join_parts([parts[place] for place in places], right[others, -1], sizes_of(columns))
            own, stacked = said[name]
            own[mine] = fit(*map(torch.from_numpy, given)).numpy()
            stacked[number, others], stacked[number, mine] = inner, own[mine]
    return said


def _after(table: Table, data: ProbeData, fold: np.ndarray, logits: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Return p(right at the end) after the first rung, (Q, O), and in how many folds it is by trees.

    Else it is by a logistic regression; the log loss on the other folds' questions chooses. ``logits`` (F, Q) are of
    the question alone, by fold.
    """
    import lightgbm

    names = feature_names(data.feature_set, table.ladder)
    seen, end = table.scalars[:, :, 0], table.correct[..., -1]
    seen = seen[..., [name not in LEARNT for name in names]]
    trees, linear = np.zeros(end.shape), np.zeros(end.shape)
    for number, (mine, others) in enumerate(other_folds(fold)):
        own = [] if logits is None else [np.repeat(logits[number][:, None, None], end.shape[1], axis=1)]
        values = np.concatenate([seen, *own], axis=2)
        train, test = (values[rows].reshape(-1, values.shape[2]) for rows in (others, mine))
        labels = end[others].reshape(-1).astype(np.float64)
        booster = lightgbm.train({**_TREES, "seed": data.seed}, lightgbm.Dataset(train, labels), _ROUNDS)
        said = np.asarray(booster.predict(test, raw_score=True, num_threads=1))
        trees[mine] = said.reshape(-1, end.shape[1])
        mean, scale = train.mean(axis=0), train.std(axis=0)
        scale = np.where(scale > 1e-12, scale, 1.0)
        weight, bias = regress((train - mean) / scale, labels, 0.1)
        linear[mine] = (((test - mean) / scale).clip(-FAR, FAR) @ weight + bias).reshape(-1, end.shape[1])
    losses = [(np.logaddexp(0, of) - end * of).mean(axis=1) for of in (trees, linear)]
    p, by_trees = np.zeros(end.shape), 0
    for mine, others in other_folds(fold):
        better = bool(losses[0][others].mean() < losses[1][others].mean())
        p[mine], by_trees = _share((trees if better else linear)[mine]), by_trees + better
    return p, by_trees


def _share(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))


def _savings(table: Table, feature_set: str, fold: np.ndarray, p: np.ndarray | None) -> dict[str, Any]:
    """Return what giving up after the first rung saves: cheapest policies that lose so much on the other folds.

    A policy stops where the leading answer is ahead by a margin, and gives up after the first rung where p (Q, O) is
    below a threshold; None never gives up. Its tokens are compared with those of lead-2, and with those of the most
    accurate fixed budget.
    """
    cells = _cells(table, feature_set, p)
    right, spent = (values.reshape(-1, len(fold)) for values in cells)
    fixed_right, fixed_spent = (values.mean(axis=1).T for values in (table.correct, table.tokens))
    best = int(fixed_right.mean(axis=1).argmax())
    lead = cells[0][_MARGINS.index(2), 0], cells[1][_MARGINS.index(2), 0]
    saves: dict[str, Any] = {}
    for name, (right_of, tokens_of) in {"lead-2": lead, "fixed": (fixed_right[best], fixed_spent[best])}.items():
        saves[name] = {"tokens": float(tokens_of.mean()), "accuracy": float(right_of.mean())}
        for loss in LOSSES:
            got, paid = np.empty(len(fold)), np.empty(len(fold))
            for mine, others in other_folds(fold):
                kept = right[:, others].mean(axis=1) >= right_of[others].mean() - loss - 1e-12
                costs = np.where(kept, spent[:, others].mean(axis=1), math.inf)
                choice = int(costs.argmin()) if kept.any() else int(right[:, others].mean(axis=1).argmax())
                got[mine], paid[mine] = right[choice, mine], spent[choice, mine]
            difference, share = bounded(got - right_of), ratio(paid, tokens_of)
            shown = {"tokens": float(paid.mean()), "share": plain(share), "difference": plain(difference)}
            saves[name][f"{100 * loss:g}"] = shown
    return {**saves, "budget": int(table.ks[best])}


def _cells(table: Table, feature_set: str, p: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return accuracy and tokens of each question by margin and threshold of giving up: shape (M, T, Q) each."""
    names = feature_names(feature_set, table.ladder)
    checkpoints = np.asarray(table.ks[:-1])
    ahead = np.rint(table.scalars[..., names.index("vote_margin")] * checkpoints)
    cuts = [0.0] if p is None else [0.0, *np.quantile(p, np.linspace(0, 1, _CUTS)[1:-1])]
    cells = []
    for values in (table.correct.astype(np.float64), table.tokens.astype(np.float64)):
        first = values[..., 0]
        for margin in _MARGINS:
            enough = ahead >= margin
            later = at_stop(values, np.where(enough.any(axis=2), enough.argmax(axis=2), len(checkpoints)))
            cells += [(later if p is None else np.where(p < cut, first, later)).mean(axis=1) for cut in cuts]
    both = np.stack(cells).reshape(2, len(_MARGINS), len(cuts), -1)
    return both[0], both[1]


def describe(result: Mapping[str, Any]) -> str:
    """Return the results as a small table."""
    lines = [
        f"p(right at the end of [{', '.join(result['ladder'])}]): {result['num_questions']:,} questions, right at the "
        f"end {result['right_at_end']:.1%}; out of fold, ± clustered by question. Tokens as shares of lead-2's at a "
        f"loss of {', '.join(f'{100 * loss:g}' for loss in LOSSES)} points: give up after the first rung, else lead-m.",
        f"{'':<28}{'AUROC':>15}{'Brier skill':>16}{'log loss':>10}  tokens / lead-2     tokens / best fixed budget",
    ]

    def saves(found: Mapping[str, Any]) -> str:
        texts = (
            "  ".join(f"{found[of][f'{100 * loss:g}']['share']['value']:.2f}" for loss in LOSSES)
            for of in ("lead-2", "fixed")
        )
        return "    ".join(f"{text:<16}" for text in texts).rstrip()

    def line(name: str, row: Mapping[str, Any]) -> str:
        numbers = [row[metric] for metric in ("auroc", "brier_skill")]
        texts = ["–" if n["value"] is None else f"{n['value']:.3f} ± {n['stderr'] or 0:.3f}" for n in numbers]
        return f"{name:<28}{texts[0]:>15}{texts[1]:>16}{row['log_loss']['value']:>10.4f}  {saves(row['saves'])}"

    lines += ["the question alone", *(line(f"  {name}", row) for name, row in result["question"].items())]
    lines += ["after the first rung, with what it shows"]
    lines += [line(f"  {name}", row) for name, row in result["after_first_rung"].items()]
    lines.append(f"{'votes alone':<69}  {saves(result['votes_alone'])}")
    return "\n".join(lines)
