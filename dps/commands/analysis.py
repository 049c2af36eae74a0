"""Commands that compare what was sampled: report, replay, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dps.commands.options import parse, parser_of
from dps.commands.stores import check_controller_file
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
