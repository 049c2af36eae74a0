"""Commands that sample: harvest, evaluate, bench, quickstart."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dps.commands.analysis import recommend_policy, replay_harvest, write_report_of
from dps.commands.options import Settings, parse, parser_of, spelt_out
from dps.start import IMPORTS, current, stage, starting
from dps.threads import num_cores

if TYPE_CHECKING:
    from dps.run.run import Summary

CHEAP_ARMS = ("plain 16", "lowtemp 16")
"""What the quickstart harvests beside power sampling."""
LADDERS = {
    "plain": ("plain 1",) * 16,
    "lowtemp": ("lowtemp 1",) * 16,
    "both": ("plain 1", "lowtemp 1") * 8,
    "cheap": ("lowtemp 2", "lowtemp 2", "lowtemp 4"),
    "cheap-then-power": ("lowtemp 2", "lowtemp 2", "lowtemp 4", "power 2", "power 2"),
}
"""Ladders that the quickstart replays beside power sampling's own."""


def run_harvest(arguments: list[str]) -> None:
    """``dps harvest``: sample for training, or plan that."""
    from dps.config import HarvestConfig

    parser = parser_of("harvest", HarvestConfig)
    config, _ = parse(parser, HarvestConfig, arguments, fits="harvest")
    with starting("harvest"):
        _check_questions(config.check())
        if config.plan != "off":
            import json

            with stage(IMPORTS):
                from dps.run.plan import plan_harvest

            start = current()
            plan = plan_harvest(config, loading_s=start.seconds[IMPORTS] if start is not None else 0.0)
            print(json.dumps(asdict(plan), indent=1) if config.plan == "json" else plan.words())
            return
        with stage(IMPORTS):
            from dps.run.run import harvest
        _say([harvest(config)])


def run_evaluate(arguments: list[str]) -> None:
    """``dps evaluate``: run policies live."""
    from dps.config import NARROWED, EvaluateConfig
    from dps.decide.policy_file import checkpoint_path

    parser = parser_of("evaluate", EvaluateConfig)
    config, _ = parse(parser, EvaluateConfig, arguments, fits="evaluate")
    arguments = spelt_out(parser, arguments)
    if any(argument.partition("=")[0] == "--policies" for argument in arguments):
        # A configuration file may set up more policies than the command line names; what it sets up itself is used.
        config = config.narrowed(_named(arguments, NARROWED))
    with starting("evaluation"):
        _check_questions(config.check())
        for name, path in config.controllers.items():
            if name in config.policies:
                checkpoint_path(path)
        with stage(IMPORTS):
            from dps.run.run import evaluate
            from lightning_modules.load import load_controller
        _say(evaluate(config, load_controller=load_controller))


def _named(arguments: list[str], settings: tuple[str, ...]) -> set[str]:
    """Return what arguments set of these settings, which are dictionaries: ``controllers.gbdt``; and ``ladder``."""
    import yaml

    names = set()
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, value = argument.removeprefix("--").partition("=")
        setting, _, name = option.partition(".")
        names |= {"ladder"} if argument.startswith("--ladder") else set()
        if argument.startswith("--") and setting in settings:
            keys = [name.partition(".")[0]] if name else yaml.safe_load(value if equals else following) or []
            names |= {f"{setting}.{key}" for key in keys}
    return names


@starting("bench")
def run_bench(arguments: list[str]) -> None:
    """``dps bench``: measure the engine."""
    from dps.bench.config import BenchConfig

    parser = parser_of("bench", BenchConfig)
    config, _ = parse(parser, BenchConfig, arguments, fits="bench")
    _check_questions(config.check())
    with stage(IMPORTS):
        from dps.bench.records import print_table
        from dps.bench.run import bench

    print_table(bench(config))


def run_quickstart(arguments: list[str]) -> None:
    """``dps quickstart``: the whole pipeline on the embedded model."""
    from dps.analysis.config import RecommendConfig, ReplayConfig
    from dps.arguments import CONFIGS, check_seed
    from dps.config import EvaluateConfig, HarvestConfig, QuickstartConfig

    parser = parser_of("quickstart", QuickstartConfig)
    config, _ = parse(parser, QuickstartConfig, arguments)
    check_seed(config.seed)
    output = Path(config.output)
    workers = config.workers or num_cores()

    def load(config_class: type[Settings], name: str, questions: int | None) -> Settings:
        options = [f"--config={CONFIGS / name}", f"--seed={config.seed}", f"--benchmark.seed={config.seed}"]
        options += [f"--compute.workers={workers}"]
        options += [f"--benchmark.limit={questions}"] if questions is not None else []
        return parse(parser_of("quickstart", config_class), config_class, options)[0]

    harvest_config = load(HarvestConfig, "harvest/arithmetic.yaml", config.harvest_questions)
    power = harvest_config.k.ladder()
    reference = f"{power.arms[0]} {power.maximum}"
    harvest_config = replace(
        harvest_config, output=str(output / "harvest"), ladder=(*power.texts(), *CHEAP_ARMS)
    ).check()
    controllers = {name: str(output / "controllers" / name) for name in ("gbdt", "mlp-h", "mlp-hq")}
    evaluate_config = replace(
        load(EvaluateConfig, "evaluate/arithmetic.yaml", config.evaluate_questions),
        output=str(output / "evaluation"),
        controllers=controllers,
        policies=("power", *controllers, "plain", "lowtemp"),
        budgets={arm: int(count) for arm, count in map(str.split, CHEAP_ARMS)},
    ).check()
    replay_config = ReplayConfig(
        ladders={"power": tuple(power.texts()), **LADDERS},
        reference=reference,
        seed=config.seed,
        output=str(output / "replay"),
    ).check()

    _head(f"1/5 harvest: {', '.join([reference, *CHEAP_ARMS])} responses of each question, with features")
    from dps.run.run import evaluate, harvest

    _say([harvest(harvest_config)])
    _head("2/5 train: three controllers, when to add power-sampled responses")
    from lightning_modules.cli import fit_controller
    from lightning_modules.load import load_controller

    for name, folder in controllers.items():
        fit_controller(
            CONFIGS / f"{name.replace('-', '_')}.yaml",
            [
                f"--data.init_args.store={output / 'harvest'}",
                f"--data.init_args.ladder={power.texts()}",
                f"--seed_everything={config.seed}",
                f"--trainer.default_root_dir={folder}",
            ],
        )
    _head("3/5 replay every ladder, and recommend a policy")
    replay_harvest(output / "harvest", replay_config)
    file = recommend_policy(output / "replay", RecommendConfig(target=reference, output=str(output)))
    print(f"another budget: dps recommend {output / 'replay'} --budget TOKENS --output FOLDER", flush=True)
    _head("4/5 evaluate, live on other questions: fixed numbers, controllers and the recommended policy")
    evaluate_config = replace(evaluate_config, policies=(*evaluate_config.policies, str(file)))
    _say(evaluate(evaluate_config.check(), load_controller=load_controller))
    _head("5/5 report")
    write_report_of([output / "evaluation"], str(output), None)


def _check_questions(config: Any) -> None:
    """Read the questions once, so that a bad file is refused before a model loads; says what there is to know."""
    from dps.benchmarks import load_benchmark

    for remark in load_benchmark(config.benchmark, config.model.name).remarks:
        print(f"note: {remark}", file=sys.stderr)


def _head(text: str) -> None:
    print(f"\n{text}", file=sys.stderr, flush=True)


def _say(summaries: list[Summary]) -> None:
    """Say how many questions each store holds; warn where all graded ones are right or none, or many responses cut."""
    from dps.doubt import cut_off, doubt

    alike: dict[tuple[int, int], list[str]] = {}
    for summary in summaries:
        print(f"{summary.folder}: {summary.complete} questions, {summary.sampled} of them sampled now", flush=True)
        alike.setdefault((summary.graded, summary.right), []).append(str(summary.folder))
    for (graded, right), folders in alike.items():
        if (sentence := doubt(", ".join(folders), graded, right)) is not None:
            print(f"warning: {sentence}", file=sys.stderr, flush=True)
    worst = max(summaries, key=lambda summary: summary.cut / max(1, summary.responses), default=None)
    if worst is not None and (sentence := cut_off(str(worst.folder), worst.responses, worst.cut)) is not None:
        print(f"warning: {sentence}", file=sys.stderr, flush=True)
