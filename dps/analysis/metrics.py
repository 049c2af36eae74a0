"""`dps metrics`: read finished runs once, write tables, predictor and pass@k, and say what came out."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from dps.analysis import export, predictor, published
from dps.analysis.config import MetricsConfig
from dps.analysis.published import METRICS, Pooled
from dps.analysis.stores import Run, find_runs
from dps.analysis.terminal import render_rows
from dps.analysis.words import listing, percent_with_error, share
from dps.errors import InputError
from dps.folders import claim, store_identity
from feature_store.files import replace_file

SCHEMA_VERSION = 1
"""Of ``pass_at_k.json`` and ``predictor.json``."""


def run_metrics(folders: Sequence[Path], config: MetricsConfig) -> dict[str, Any]:
    """Do all that `dps metrics` does; the same stores give the same bytes.

    The folder ``config.output`` gets ``trajectories.csv`` (``trajectories-<run>.csv`` where there are several runs);
    ``samples.csv`` and its slices ``entropy.csv``, ``perplexity.csv`` and ``self_confidence.csv``; ``predictor.json``
    and ``predictions.csv``; ``pass_at_k.csv``, ``.json``, ``.png`` and ``.svg``. Those of the same command are
    written anew.

    Returns:
        ``output``, ``runs``, ``notes``, ``pass_at_k`` (rows), ``predictor`` (results), ``samples`` (rows).

    Raises:
        InputError: If there is nothing to read or to measure, or the folder holds other results.
        StoreError: If a store cannot be read.
    """
    runs = find_runs(folders)
    own = runs[0].folder if len(runs) == 1 else runs[0].folder.parent
    output = Path(config.output) if config.output is not None else own / "metrics"
    if output.exists() and not output.is_dir():
        raise InputError(f"Expected a folder for the metrics, but {output} is a file: name another one.")
    policies, notes = _policies(runs, config)
    settings = {name: value for name, value in asdict(config).items() if name != "output"}
    identities = [store_identity(store.folder, output) for run in runs for store in run.stores]
    settings["stores"] = {one["folder"]: one["fingerprint"] for one in identities}
    claim(output, "dps metrics", settings, ("trajectories*.csv", "samples.csv", "predictor.json", "pass_at_k.*"))
    notes += [short for run in runs for s in run.stores if (short := s.shortfall()) is not None]
    pooled: dict[str, Pooled] = {}
    with ExitStack() as stack:  # runs that are refused when they have been read leave no table behind
        for run in runs:
            name = "trajectories.csv" if len(runs) == 1 else f"trajectories-{run.name}.csv"
            file = stack.enter_context(_written(output / name))
            _put_csv(file, export.columns(series=config.series), _read(run, policies, pooled, config))
        if not config.trajectories_only:
            _check_measurable(pooled, policies, config.mcmc_policy)
    measured: dict[str, Any] = {
        "output": str(output),
        "runs": {run.name: str(run.folder) for run in runs},
        "notes": notes,
        "samples": [],
        "predictor": [],
        "pass_at_k": [],
    }
    if config.trajectories_only:
        return measured
    counted = next(run.parts[config.mcmc_policy] for run in runs if config.mcmc_policy in run.parts)
    metric = counted.sampler.get("early_stop", "none")
    rows = measured["samples"] = published.question_rows(pooled, config.mcmc_policy, metric)
    settings = {name: getattr(config, name) for name in ("folds", "repeats", "bootstrap", "seed")}
    measured["predictor"], predictions = predictor.predict(rows, **settings)
    measured["pass_at_k"] = published.pass_curves(pooled, policies)
    notes += _notes(measured, pooled)
    _write_csv(output / "samples.csv", published.COLUMNS, rows)
    for metric in METRICS:
        _write_csv(output / f"{metric}.csv", published.slice_columns(metric), rows)
    _write_csv(output / "predictions.csv", predictor.COLUMNS, predictions)
    _write_csv(output / "pass_at_k.csv", published.PASS_COLUMNS, measured["pass_at_k"])
    for name in ("predictor", "pass_at_k"):
        content = {"schema_version": SCHEMA_VERSION, "runs": measured["runs"], "notes": notes, name: measured[name]}
        replace_file(output / f"{name}.json", json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    from dps.analysis.figures import draw_pass_at_k, png, svg

    figure = draw_pass_at_k(measured["pass_at_k"])
    replace_file(output / "pass_at_k.png", png(figure))
    replace_file(output / "pass_at_k.svg", svg(figure, salt="pass_at_k"))
    return measured


def render(measured: Mapping[str, Any]) -> str:
    """Return what came out as a short text: pass@k, the predictor, the notes, the folder."""
    lines = []
    if measured["pass_at_k"]:
        lines += ["pass@k, with its standard error over questions", _pass_table(measured["pass_at_k"])]
    for result in measured["predictor"]:
        lines.append(_predictor_line(result))
    lines += [f"Note: {note}" for note in measured["notes"]]
    lines.append(("\n" if lines else "") + measured["output"])
    return "\n".join(lines)


def _pass_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return pass@k as a table."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    values = {(row["policy"], row["k"]): row for row in rows}
    ks = published.shown_ks(max(row["k"] for row in rows))
    # The largest k of each policy is shown, too, where that is not a power of two.
    ks = sorted({*ks, *(max(k for name, k in values if name == policy) for policy in policies)})
    cells = {k: [values.get((policy, k)) for policy in policies] for k in ks}
    shown = [
        [str(k), *("" if row is None else percent_with_error(row["pass_at_k"], row["stderr"]) for row in cells[k])]
        for k in ks
    ]
    heads = ["k", *(f"{policy} %" for policy in policies)]
    return render_rows(heads, shown)


def _predictor_line(result: Mapping[str, Any]) -> str:
    """Return one target's errors as a sentence."""
    name = result["target"].replace("_", " ").capitalize()
    of = f"{result['num_questions']} questions, {result['num_censored']} censored"
    of += ", which are left out" if result["num_left_out"] else ""
    if "reason" in result:
        return f"{name}: not predicted, {result['reason']}."
    linear, constant = result["linear"], result["constant"]

    def shown(entry: Mapping[str, Any]) -> str:
        return share(entry["value"], entry["stderr"])

    return (
        f"{name} ({of}): linear predictor RMSE {shown(linear['rmse'])}, MAE {shown(linear['mae'])}, Spearman "
        f"{shown(linear['spearman'])}; a constant RMSE {shown(constant['rmse'])}, MAE {shown(constant['mae'])}."
    )


# -- steps -------------------------------------------------------------------------------------------------------------


def _policies(runs: Sequence[Run], config: MetricsConfig) -> tuple[list[str], list[str]]:
    """Return the policies whose trajectories are counted, the power-sampling one first, and notes on the others."""
    parts = {name: part for run in runs for name, part in run.parts.items()}
    fixed = [name for name, part in parts.items() if part.arm is not None]
    if config.mcmc_policy in parts and config.mcmc_policy not in fixed:
        raise InputError(
            f"Expected a policy with a fixed number of trajectories, but that of {config.mcmc_policy} depends on what "
            "they are: set mcmc_policy to power, or to another one that has no controller."
        )
    sides = published.side_policies(config.mcmc_policy).values()
    if config.mcmc_policy not in fixed and not (config.trajectories_only and set(sides) & set(fixed)):
        raise InputError(
            f"Expected a store of the policy {config.mcmc_policy} in {listing(str(run.folder) for run in runs)}, found "
            f"only {', '.join(parts)}: evaluate it, or set mcmc_policy to another one."
        )
    order = (config.mcmc_policy, "plain", "lowtemp")
    policies = [*(name for name in order if name in fixed), *sorted(set(fixed) - set(order))]
    others = sorted(set(parts) - set(fixed))
    notes = []
    if others:
        notes.append(
            f"Left out: {listing(others)}, whose number of trajectories depends on what they are, so that they cannot "
            "be exchanged."
        )
    for name in policies:
        if law := parts[name].store.manifest.policy.get("law"):
            notes.append(f"{name} is no draw from p^alpha: {law}.")
    return policies, notes


def _read(
    run: Run, policies: Sequence[str], pooled: dict[str, Pooled], config: MetricsConfig
) -> Iterator[dict[str, Any]]:
    """Yield a run's rows of trajectories, and pool its questions on the way."""
    for questions in run.questions(policies):
        published.pool(pooled, questions, config.mcmc_policy)
        yield from export.rows(run, questions, config.mcmc_policy, series=config.series)


def _check_measurable(pooled: Mapping[str, Pooled], policies: Sequence[str], mcmc_policy: str) -> None:
    """Refuse runs without grades, with one trajectory only, or without a question that all policies have.

    Raises:
        InputError: With one sentence that says which it is.
    """
    entries = list(pooled.values())
    instead = "set trajectories_only to write only their table"
    for policy in policies:
        if all(right is None for entry in entries for right in entry.correct.get(policy, ())):
            raise InputError(
                f"Expected graded trajectories, but none of the policy {policy} has a grade: use a benchmark with gold "
                f"answers, or {instead}."
            )
    if max((len(entry.correct.get(mcmc_policy, ())) for entry in entries), default=0) < 2:
        raise InputError(
            f"Expected at least two trajectories of a question, but the policy {mcmc_policy} has one of each: run it "
            f"with a larger k or another seed, or {instead}."
        )
    if not any(all(map(entry.counts, policies)) for entry in entries):
        raise InputError(
            f"Expected questions with a gold answer that the policies {listing(policies)} all have, found none: let "
            "the runs finish, or name the stores to read."
        )


def _notes(measured: Mapping[str, Any], pooled: Mapping[str, Pooled]) -> list[str]:
    """Return what a reader of the numbers must know besides."""
    notes = []
    num_questions = measured["pass_at_k"][0]["num_questions"]
    if num_questions < len(pooled):
        notes.append(
            f"pass@k is over the {num_questions} of {len(pooled)} questions that all policies have, with a gold answer."
        )
    ungradable = {row["policy"]: row["num_ungradable"] for row in measured["pass_at_k"] if row["num_ungradable"]}
    if ungradable:
        shown = listing(f"{count} of {policy}" for policy, count in ungradable.items())
        notes.append(f"Trajectories that could not be graded count as not right: {shown}.")
    missing = measured["predictor"][-1].get("missing")
    if missing:
        notes.append(f"The predictor has no {listing(missing)}: no run holds them.")
    return notes


# -- files -------------------------------------------------------------------------------------------------------------


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with _written(path) as file:
        _put_csv(file, columns, rows)


def _put_csv(file: TextIO, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table; what is absent, None or NaN is blank, columns that are not named are left out."""
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


@contextmanager
def _written(path: Path) -> Iterator[TextIO]:
    """Open a file that appears under its name when it is whole. A model's lone surrogates are written as escapes."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # of a command that was killed
    try:
        with temporary.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
