"""Commands that compare what was sampled: report, replay, recommend, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dps.commands.options import parse, parser_of
from dps.errors import InputError
from dps.start import ANALYSIS, IMPORTS, PAGE, STORES, stage, starting

if TYPE_CHECKING:
    from dps.analysis.config import RecommendConfig, ReplayConfig


@starting("report")
def run_report(arguments: list[str]) -> None:
    """``dps report``: read evaluations or a harvest, write their page; or show a result again."""
    from dps.config import EvaluateConfig, ReportConfig

    parser = parser_of(
        "report",
        ReportConfig,
        "Read the stores of an evaluation, or a harvest, and write the page report.html, the figure report.png and "
        ".svg, and report.json, which holds all numbers. Of a folder with a report.json and no stores, or one of "
        "dps replay: make page and figure again from the JSON file. Of several such folders: compared.html.",
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
    from dps.analysis.write import is_replay, is_report

    replays = [folder for folder in folders if is_replay(folder)]
    stored = [folder for folder in folders if is_report(folder)]
    results = {*replays, *stored}
    if len(folders) == 1 and results:
        _write_again(folders[0], "report" if stored else "replay", config.output, config.title)
    elif results == {*folders}:
        _write_several(folders, config.output, config.title)
    elif results:
        other = next(folder for folder in folders if folder not in results)
        raise InputError(
            f"Expected folders of results only, or of stores only, but {(replays + stored)[0]} holds a "
            f"{'replay' if replays else 'report'}.json and {other} none without stores: make a report of each."
        )
    else:
        write_report_of(folders, config.output, config.title)


def _report_folder(folders: Sequence[Path], output: str | None) -> Path:
    """Return the folder of a report: the one that was named, else the own folder of what it is of."""
    if output is None and len(folders) > 1:
        raise InputError(
            f"Expected --output for a report of {len(folders)} folders, because none of them is its own: name a folder."
        )
    return folders[0] if output is None else Path(output)


@starting("report")
def write_report_of(folders: list[Path], output: str | None, title: str | None) -> None:
    """Write the report of evaluations and print its table and findings."""
    with stage(IMPORTS):
        from dps.analysis.report import read_report
        from dps.analysis.terminal import render_table
        from dps.analysis.write import write_result

    target = _report_folder(folders, output)
    with stage(STORES):
        result = read_report(folders, title)
    with stage(PAGE):
        result = write_result(result, target)
    print(render_table(result))
    _say_findings(result)
    print(f"\n{target / 'report.html'}")


def _say_findings(result: Mapping[str, Any]) -> None:
    for finding in result["findings"]:
        print(f"- {finding}")


def _write_again(folder: Path, name: str, output: str | None, title: str | None) -> None:
    from dps.analysis.terminal import render_table
    from dps.analysis.write import write_again

    target = Path(output) if output is not None else folder
    with stage(PAGE):
        result = write_again(folder, name, target, title)
    print(render_table(result) if name == "report" else f"{folder}: {result['title']}")
    _say_findings(result)
    print(f"\nMade again from {name}.json.\n{target / f'{name}.html'}")


def _write_several(folders: list[Path], output: str | None, title: str | None) -> None:
    from dps.analysis.write import write_several

    target = _report_folder(folders, output)
    with stage(PAGE):
        results = write_several(folders, target, title)
    for folder, result in zip(folders, results, strict=True):
        print(f"{folder}: {result['title']}")
        _say_findings(result)
    print(f"\n{target / 'compared.html'}")


@starting("replay")
def run_replay(arguments: list[str]) -> None:
    """``dps replay``: every policy over stored trajectories."""
    from dps.analysis.config import ReplayConfig

    parser = parser_of(
        "replay",
        ReplayConfig,
        "Run every policy over the stored responses of a harvest, on ladders over its arms, at all thresholds, and "
        "compare them: controllers, rules that need no training, and fixed budgets.",
    )
    parser.add_argument("harvest", type=str, help="folder of a harvest, or of a fixed policy of an evaluation")
    config, parsed = parse(parser, ReplayConfig, arguments)
    config.check()
    again = replay_harvest(Path(parsed["harvest"]), config)
    if again:
        print(f"\n{config.output} held this replay already; it was made again.")
    print(f"\n{Path(config.output) / 'replay.html'}")


@starting("replay")
def replay_harvest(harvest: Path, config: ReplayConfig) -> bool:
    """Replay a harvest, write the result and say what was found; return whether the folder held it already."""
    with stage(IMPORTS):
        from dps.analysis import replay
        from dps.analysis.terminal import render_table
        from dps.analysis.write import write_result
        from dps.decide.policy_file import checkpoint_path

    for path in config.controllers.values():
        if not (Path(path) / "predictions.h5").is_file():
            checkpoint_path(path)
    again = replay.claim_folder(harvest, config)
    with stage(IMPORTS):
        from dps.analysis.outcomes import FILE, write_outcomes
        from lightning_modules.predict import predict_orders

    output = Path(config.output)
    with stage(ANALYSIS):
        result = replay.run_replay(harvest, config, predict_orders, partial(write_outcomes, output / FILE))
    with stage(PAGE):
        result = write_result(result, output)
    print(render_table(result))
    _say_findings(result)
    return again


@starting("recommend")
def run_recommend(arguments: list[str]) -> None:
    """``dps recommend``: the policy to use, of all that a replay has compared."""
    from dps.analysis.config import RecommendConfig

    parser = parser_of(
        "recommend",
        RecommendConfig,
        "Choose a policy among all that dps replay has compared: the cheapest that keeps the accuracy of a target, or "
        "the most accurate within a budget. Say what it gives on questions that had no part in the choice, and write "
        "policy.yaml, which dps sample, dps evaluate and dps.answer run, and recommendation.json.",
    )
    parser.add_argument("replay", type=str, help="folder of dps replay")
    config, parsed = parse(parser, RecommendConfig, arguments)
    config.check()
    print(f"\n{recommend_policy(Path(parsed['replay']), config)}")


@starting("recommend")
def recommend_policy(replay: Path, config: RecommendConfig) -> Path:
    """Choose a policy of a replay and say why; return the file to run, or what was found where there is none."""
    from dps.decide.policy_file import checkpoint_path

    for path in config.controllers.values():
        checkpoint_path(path)
    with stage(IMPORTS):
        from dps.analysis.recommend import FILE, run_recommend

    with stage(ANALYSIS):
        result = run_recommend(replay, config, _ship)
    print("\n".join([*result["words"], "", *(f"- {note}" for note in result["notes"])]), flush=True)
    return Path(config.output or replay) / (result["policy_file"] or FILE)


def _ship(source: str, output: Path, threshold: float) -> Any:
    """Write a controller's folder with a threshold; return the controller as it is loaded from there."""
    from lightning_modules.load import load_controller
    from lightning_modules.ship import ship

    return load_controller(ship(source, output, threshold=threshold))


@starting("metrics")
def run_metrics(arguments: list[str]) -> None:
    """``dps metrics``: tables of what was measured."""
    from dps.analysis.config import MetricsConfig

    parser = parser_of(
        "metrics",
        MetricsConfig,
        "Read runs and write a table of their trajectories with the columns of Wu & Chen's code, samples to success of "
        "every question, their linear predictor, and pass@k. Entropy, perplexity and self-confidence are of the base "
        "model; mcmc_k in the table is num_mh_steps.",
    )
    parser.add_argument("folders", nargs="*", type=str, help="folders of evaluations, or stores")
    config, parsed = parse(parser, MetricsConfig, arguments)
    config.check()
    with stage(IMPORTS):
        from dps.analysis import metrics

    with stage(STORES):
        measured = metrics.run_metrics([Path(folder) for folder in parsed["folders"]], config)
    print(metrics.render(measured))
