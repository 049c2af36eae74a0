"""Commands that read what was sampled: report, replay, ship, grade, store, outputs, metrics; and data."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from dps.commands.options import parse, parser_of
from dps.errors import InputError


def run_report(arguments: list[str]) -> None:
    """``dps report``: read evaluations, write their page; or show a replay's again."""
    from dps.config import EvaluateConfig, ReportConfig

    parser = parser_of(
        "report",
        "Read evaluation runs and write report.html, report.png, report.svg and report.json, and report_mixing.png and "
        ".svg where power sampling recorded its steps. Of a folder with a report.json and no stores: make page and "
        "figures again from that alone. Of folders that dps replay wrote: make replay.html again from replay.json, or "
        "replays.html with several side by side.",
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=str,
        help="stores of policies, folders that hold such stores, the folder of a report.json, or folders of replays; "
        f"{EvaluateConfig.output}, where dps evaluate writes, if none is given",
    )
    config, parsed = parse(parser, ReportConfig, arguments)
    folders = [Path(folder) for folder in parsed["folders"] or [EvaluateConfig.output]]
    from dps.analysis.report import is_report
    from dps.analysis.report.replays import is_replay

    replays = [folder for folder in folders if is_replay(folder)]
    stored = [folder for folder in folders if is_report(folder)]
    if not replays and not stored:
        write_report_of(folders, config.output, config.title)
    elif stored and len(folders) == 1:
        _write_report_again(folders[0], config.output, config.title)
    elif stored:
        raise InputError(
            f"Expected one folder where its report.json is all there is, but {stored[0]} is one of {len(folders)}: "
            "make a report of each, or name the stores to compare."
        )
    elif len(replays) == len(folders):
        _write_replays(folders, config.output, config.title)
    else:
        other = next(folder for folder in folders if folder not in replays)
        raise InputError(
            f"Expected folders of replays only, or of evaluations only, but {replays[0]} holds a replay.json and "
            f"{other} none: make a report of each."
        )


def _report_folder(folders: list[Path], output: str | None) -> Path:
    """Return the folder of a report: the one that was named, else the own folder of what it is of.

    Raises:
        InputError: If it is of several folders and none was named.
    """
    if output is None and len(folders) > 1:
        raise InputError(
            f"Expected --output for a report of {len(folders)} folders, because none of them is its own: name a folder."
        )
    return folders[0] if output is None else Path(output)


def write_report_of(folders: list[Path], output: str | None, title: str | None) -> None:
    """Write the report of evaluations and print its table and findings."""
    from dps.analysis.report import render_table, write_report

    target = _report_folder(folders, output)
    report = write_report(folders, target, title)
    print(render_table(report))
    _say_findings(report)
    print(f"\n{target / 'report.html'}")


def _write_report_again(folder: Path, output: str | None, title: str | None) -> None:
    from dps.analysis.report import pages_in, render_table, what_varies, write_pages_again

    target = Path(output) if output is not None else folder
    before = pages_in(target, "report")
    report = write_pages_again(folder, target, title)
    print(render_table(report))
    _say_findings(report)
    print(f"\n{what_varies(report, before, pages_in(target, 'report'))}\n{target / 'report.html'}")


def _say_findings(report: Mapping[str, Any]) -> None:
    for finding in report["findings"]:
        print(f"- {finding}")


def _write_replays(folders: list[Path], output: str | None, title: str | None) -> None:
    from dps.analysis.report import pages_in, what_varies
    from dps.analysis.report.replays import write_replays

    one = len(folders) == 1
    target = _report_folder(folders, output)
    before = pages_in(target, "replay.")
    reports = write_replays(folders, target, title)
    for folder, report in zip(folders, reports, strict=True):
        print(f"{folder}: {report['title']}")
        _say_findings(report)
    print()
    if one:
        print(what_varies(reports[0], before, pages_in(target, "replay.")))
    print(f"{target / ('replay.html' if one else 'replays.html')}")


def run_replay(arguments: list[str]) -> None:
    """``dps replay``: every policy over stored trajectories."""
    from dps.analysis.replay.config import ReplayConfig

    parser = parser_of(
        "replay",
        "Run every policy over the stored trajectories of a harvest, at all thresholds, and compare them: controllers, "
        "rules that need no training, fixed k, and self-consistency over the rivals' samples.",
    )
    parser.add_argument("harvest", type=str, help="folder of a harvest, or of the policy power of an evaluation")
    config, parsed = parse(parser, ReplayConfig, arguments)
    config.check()
    from dps.analysis.replay.command import claim_folder, run_replay, write_replay

    for path in config.controllers.values():
        if not (Path(path) / "predictions.h5").is_file():
            check_controller_file(path)
    again = claim_folder(Path(parsed["harvest"]), config)
    from lightning_modules.predict import predict_orders

    report = run_replay(Path(parsed["harvest"]), config, predict_orders)
    write_replay(report, Path(config.output))
    _say_findings(report)
    if again:
        print(f"\n{config.output} held this replay already; it was made again.")
    print(f"\n{Path(config.output) / 'replay.html'}")


def run_ship(arguments: list[str]) -> None:
    """``dps ship``: a trained controller as a folder to hand on."""
    from dps.config import ShipConfig

    parser = parser_of("ship", "Write a trained controller as a folder to hand on, with a card of what was measured.")
    parser.add_argument("run", type=str, help="run folder or checkpoint of dps fit")
    config, parsed = parse(parser, ShipConfig, arguments)
    check_controller_file(parsed["run"])
    from lightning_modules.ship import ship

    settings = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "output"}
    print(ship(parsed["run"], config.check().output, **settings))


def run_data(arguments: list[str]) -> None:
    """``dps data``: list and fetch benchmarks."""
    from dps.config import DataConfig

    parser = parser_of("data", "List the benchmarks with their licences; `dps data download` fetches them.")
    parser.add_argument("action", nargs="?", choices=("list", "download"), default="list")
    config, parsed = parse(parser, DataConfig, arguments)
    from dps.benchmarks.download import download, listing

    if parsed["action"] == "list":
        print(listing())
        return
    problems = download(config.names, Path(config.output) if config.output is not None else None)
    if problems:
        raise InputError(" ".join(problems))


def run_grade(arguments: list[str]) -> None:
    """``dps grade``: grade stored responses again, or responses from anywhere."""
    from dps.config import GradeConfig

    parser = parser_of(
        "grade",
        "Read and grade responses without a model: those of a store again, into a copy, or those of a file with one "
        'JSON object a line: {"id", "kind": number, math, choice, text or code, "response", "gold"}.',
    )
    parser.add_argument("responses", type=str, help="folder of a store, or a file of responses")
    config, parsed = parse(parser, GradeConfig, arguments)
    path = Path(parsed["responses"])
    if path.is_file():
        _grade_file(path, Path(config.output) if config.output else path.with_name(f"{path.stem}-graded.jsonl"))
    else:
        _grade_store(path, Path(config.output) if config.output else path.with_name(f"{path.name}-graded"))


def _grade_store(folder: Path, output: Path) -> None:
    from dps.benchmarks.regrade import regrade
    from dps.run.progress import track
    from feature_store import Store

    with track("grade", len(Store.open(folder))) as bar:
        found = regrade(folder, output, bar.advance)
    print(
        f"{found.num_trajectories:,} responses to {found.num_questions:,} questions: {found.answers:,} answers and "
        f"{found.grades:,} grades are others now, {found.ungradable:,} cannot be graded; {found.question_grades:,} "
        f"questions have another grade.\n{output}"
    )
    _say_shortfalls([folder])


def _grade_file(path: Path, output: Path) -> None:
    from dps.benchmarks.grade_file import grade_file
    from dps.benchmarks.responses import check_responses
    from dps.run.progress import track

    checked = check_responses(path)
    with track("grade", checked.num_responses) as bar:
        graded = grade_file(path, output, checked, bar.advance)
    print(f"{graded.words()}\n{output}")


def run_store(arguments: list[str]) -> None:
    """``dps store``: look at stores, verify, merge and export them."""
    from dps.config import StoreConfig

    parser = parser_of("store", "Look at stores, verify them, merge parts of one run, or export their scalars.")
    parser.add_argument("action", choices=("info", "verify", "merge", "export"))
    parser.add_argument("folders", nargs="+", type=str, help="folders of stores")
    config, parsed = parse(parser, StoreConfig, arguments)
    import json

    from feature_store import tools

    action, folders = parsed["action"], [Path(folder) for folder in parsed["folders"]]
    if action in ("merge", "export") and config.output is None:
        raise InputError(f"Expected --output for dps store {action}: {'a folder' if action == 'merge' else 'a file'}.")
    if action == "export" and len(folders) > 1:
        raise InputError(f"Expected one store to export, got {len(folders)}: merge them first.")
    problems: list[str] = []
    if action == "info":
        found: Any = [tools.info(folder) for folder in folders]
        lines = ["\n".join(f"{name:<28}{value}" for name, value in _info(one).items()) + "\n" for one in found]
    elif action == "verify":
        found = {str(folder): tools.verify(folder) for folder in folders}
        problems = [problem for each in found.values() for problem in each]
        lines = [
            f"{folder}: {f'not sound, {len(each)} to mend' if each else f'sound, {_count(*_sizes(Path(folder)))}'}"
            for folder, each in found.items()
        ]
    elif action == "merge":
        merged = tools.merge(folders, Path(config.output or ""))
        found = {"questions": merged.questions, "repeated": merged.repeated, "output": config.output}
        lines = [f"{merged.questions:,} questions, {merged.repeated:,} of them in several stores: {config.output}"]
    else:
        rows = tools.export(folders[0], Path(config.output or ""))
        found = {"rows": rows, "output": config.output}
        lines = [f"{rows:,} trajectories: {config.output}"]
    print(json.dumps(found, indent=1) if config.json else "\n".join(lines))
    if action in ("merge", "export"):
        _say_shortfalls([Path(config.output or "")] if action == "merge" else folders)
    if problems:
        raise InputError(" ".join(problems))


def _sizes(folder: Path) -> tuple[int, int | None]:
    """Return how many questions a store holds and is to have."""
    from feature_store import Store

    store = Store.open(folder)
    return len(store), store.num_wanted


def _count(held: int, wanted: int | None) -> str:
    """Return how many questions a store holds, of how many where its manifest says so."""
    return f"{held:,} questions" if wanted is None else f"{held:,} of {wanted:,} questions"


def _info(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a store holds for people: both numbers of questions as one entry."""
    return {
        name: _count(value, info["questions_wanted"]).removesuffix(" questions") if name == "questions" else value
        for name, value in info.items()
        if name != "questions_wanted"
    }


def _say_shortfalls(folders: list[Path]) -> None:
    """Say on the terminal which of these stores lack questions."""
    from feature_store import Store

    for folder in folders:
        if (short := Store.open(folder).shortfall()) is not None:
            print(f"Note: {short}", file=sys.stderr)


def run_outputs(arguments: list[str]) -> None:
    """``dps outputs``: a store's responses as alpaca_eval reads them."""
    from dps.config import OutputsConfig

    parser = parser_of("outputs", "Write a store's responses as the model_outputs that alpaca_eval reads.")
    parser.add_argument("store", type=str, help="folder of the store")
    config, parsed = parse(parser, OutputsConfig, arguments)
    config.check()
    from dps.benchmarks.outputs import annotate, write_outputs

    folder = Path(parsed["store"])
    target = Path(config.output) if config.output is not None else folder / "model_outputs.json"
    print(f"{write_outputs(folder, target, config.k):,} responses: {target}")
    _say_shortfalls([folder])
    if config.annotator is not None:
        rate = annotate(config.annotator, target, target.with_suffix(""))
        print(f"win rate {rate.value:.1%} +- {rate.stderr:.1%} of {rate.num_instructions:,} instructions")


def run_metrics(arguments: list[str]) -> None:
    """``dps metrics``: tables of what was measured."""
    from dps.analysis.metrics.config import MetricsConfig

    parser = parser_of(
        "metrics",
        "Read runs and write a table of their trajectories with the published columns, samples to success of every "
        "question, their linear predictor, and pass@k. Entropy, perplexity and self-confidence are of the base model; "
        "mcmc_k in the table is num_mh_steps.",
    )
    parser.add_argument("folders", nargs="*", type=str, help="folders of evaluations, or stores")
    config, parsed = parse(parser, MetricsConfig, arguments)
    config.check()
    from dps.analysis.metrics.command import render, run_metrics

    print(render(run_metrics([Path(folder) for folder in parsed["folders"]], config)))


def check_controller_file(path: str) -> None:
    """Refuse a controller that is not there, before anything heavy is imported."""
    from dps.decide.rules.files import controller_file

    if not path.strip():
        raise InputError("Expected a trained controller, got an empty name: name its checkpoint or run folder.")
    location = controller_file(path)
    if not location.is_file():
        raise InputError(f"Expected a trained controller at {path}, but there is no {location}: train it with dps fit.")
