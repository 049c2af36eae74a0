"""The command line: the one place that knows both the sampler's side and the controllers' side of the project.

Nothing heavy is imported before a command's settings have been parsed and checked.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dps.errors import InputError, WorkersDied

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from dps.run import Summary
    from dps.scheduler import Checkpoint

_LIGHTNING = ("fit", "validate", "test", "predict")

_USAGE = """usage: dps COMMAND [options]     (dps COMMAND --help explains the options)

Dynamic Power Sampling: exact power sampling of language models, with trained controllers
that decide how many trajectories a question needs.

  quickstart   the whole pipeline on the embedded model: harvest, train, evaluate, report
  sample       ask one question and watch the number of trajectories grow
  harvest      sample questions k times with features, into a store for training
  fit          train a controller on a store          (fit --config configs/mlp_hq.yaml)
  crossval     train on folds of a store, predict every question by a controller that has not seen it
  tune         search for a controller's best settings (needs Optuna)
  validate     measure a trained controller on its validation questions
  test         measure it on its test questions
  predict      write its probabilities for every question of a store as CSV
  ship         a trained controller as a folder to hand on, with a card of what was measured
  evaluate     run fixed, plain and controlled policies live on the model
  replay       every policy over a harvest's stored trajectories, at all thresholds, in seconds
  report       tables and figures from evaluation runs or replays: HTML, PNG, SVG, JSON
  grade        grade responses without a model: a store's again, or those of a file from anywhere
  outputs      write responses for alpaca_eval, and let an annotator of yours judge them
  data         list the benchmarks and their licences, or download them
  store        info, verify, merge, export: what one does with a finished store
  metrics      published CSV tables, samples to success and their predictor, pass@k, from runs
  bench        measure the sampler's speed against the published loop and plain sampling

Configurations to start from are in configs/. Exit codes: 0 done, 2 bad input or no room on the disk, 3 workers died,
130 interrupted, 143 terminated."""

_LIGHTNING_USAGE = """usage: dps {command} --config configs/mlp_hq.yaml [--key value ...]

{what} Runs LightningCLI: every key of the file can be
overridden on the command line.

  --config FILE                     configs/mlp_hq.yaml, mlp_h.yaml, gbdt.yaml, or those named _extended
  --data.init_args.store FOLDER     the harvest to train on
  --data.init_args.label NAME       no_gain or correct, or solvable to give up
  --data.init_args.block NUMBER     asked after this block, while trajectories run
  --trainer.max_epochs N            and every other option of the Trainer
  --ckpt_path FILE                  the checkpoint to measure (else the run's best), or to start from (fit);
                                    the same dps fit again goes on after its last epoch by itself
  --print_config                    show the whole resolved configuration and stop
  --help-all                        list every option (loads Lightning first, some seconds)"""

_CROSSVAL_USAGE = """usage: dps crossval --config configs/mlp_hq.yaml [--folds 5] [--output FOLDER] [--key value ...]

Trains a controller for each fold of the questions and predicts the fold with it, so that every
question is judged by a controller that has not seen it. A finished fold is not trained again.
Writes predictions.h5 (docs/controllers_format.md) and crossval.json: AUROC, average precision,
Brier score and calibration error with standard errors clustered by question, beside question
length alone, and the policy at the out-of-fold thresholds against the largest k.

  --config FILE                     as for dps fit; its other options can follow, too
  --folds N                         number of folds, 5 if not given
  --output FOLDER                   where to write; crossval/ in the run folder if not given
  --data.init_args.store FOLDER     the harvest
  --data.init_args.label NAME       no_gain or correct, or solvable to give up
  --data.init_args.block NUMBER     asked after this block, while trajectories run
  --data.init_args.feature_set SET  published (six scalars) or extended"""

_TUNE_USAGE = """usage: dps tune --config configs/mlp_hq.yaml [--trials 20] [--folds 3] [--output FOLDER] [--key value]

Searches for the settings whose out-of-fold probabilities have the lowest log loss, with Optuna
(pip install optuna). The test questions of dps fit stay out of it. The same
command again does the trials that are missing. Writes best.yaml and trials.json; then

  dps fit --config configs/mlp_hq.yaml --config FOLDER/best.yaml

  --config FILE                     as for dps fit; its other options can follow, too
  --trials N                        trials in all, 20 if not given; the first is the configuration itself
  --folds N                         folds of each trial, 3 if not given
  --output FOLDER                   where to write; tune/ in the run folder if not given

Searched: of the trees learning_rate, num_leaves, min_rows_per_leaf, l2, feature_fraction and
bagging_fraction; of the networks lr, weight_decay, projection_size, layer_sizes, dropout and
input_dropout (ranges: docs/controllers_format.md)."""

_WHAT = {
    "fit": "Train a controller on the features of a harvest.",
    "validate": "Measure a controller on its validation questions.",
    "test": "Measure a controller on its test questions, beside question length alone.",
    "predict": "Write a controller's probabilities for every question and checkpoint as CSV.",
}


def run(arguments: list[str]) -> int:
    """Run a command.

    Args:
        arguments: What stands after ``dps`` on the command line.

    Returns:
        The exit code: 0, 2 for bad input or a disk without room, 3 where workers died, 130 after Ctrl-C, 143 after
        SIGTERM.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_USAGE)
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if command == "--version":
        from importlib.metadata import version

        print(f"dps {version('dynamic-power-sampling')}")
        return 0
    if command not in _COMMANDS and command not in _LIGHTNING:
        return _refuse("dps", f"Unknown command {command}: expected one of {', '.join([*_COMMANDS, *_LIGHTNING])}.")
    from dps.arguments import readable
    from feature_store.errors import StoreError

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the libraries; our own know where they write
    try:
        rest = readable(command, rest)
        if command in _LIGHTNING:
            _lightning(command, rest)
        else:
            _COMMANDS[command](rest)
    except (InputError, StoreError) as error:
        return _refuse(f"dps {command}", str(error))
    except WorkersDied as error:
        return _refuse(f"dps {command}", str(error), code=3)
    except KeyboardInterrupt as stopped:
        print(f"\ndps {command}: interrupted; {_after_interruption(command, rest)}.", file=sys.stderr)
        return 143 if isinstance(stopped, _Terminated) else 130
    except BrokenPipeError:
        return 0  # the reader of a pipe has gone (`dps report | head`): nothing is wrong here
    except MemoryError:
        return _refuse(
            f"dps {command}", "There is not enough memory for this: use smaller settings or another machine."
        )
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        where = f" for {error.filename}" if error.filename else ""
        return _refuse(f"dps {command}", f"There is no room{where} ({error.strerror}): make some, then run it again.")
    return 0


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, a used-up quota and a limit of file sizes."""


_KEPT = {
    "quickstart": "what was finished",
    "harvest": "every question that was finished",
    "evaluate": "every question that was finished",
    "fit": "every epoch that was finished",
    "crossval": "every fold and epoch that was finished",
    "tune": "every trial that was finished",
    "bench": "every measurement that was finished",
    "grade": "every verdict that was written",
}
"""What a command that was interrupted has kept; the others begin again."""


def _after_interruption(command: str, arguments: list[str]) -> str:
    """Return what an interrupted command leaves, and what the same command does then."""
    planning = any(argument.startswith("--plan") for argument in arguments)
    copying = command == "grade" and any(Path(argument).is_dir() for argument in arguments)  # of a store, whole or not
    if command in _KEPT and not planning and not copying:
        return f"{_KEPT[command]} is kept, the same command goes on from there"
    return "nothing of it is kept, the same command begins again"


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: a cluster wants the machine back, or a time limit is near. Ends a command as Ctrl-C does."""


def _terminate(number: int, frame: object) -> None:
    raise _Terminated


def _refuse(prefix: str, message: str, code: int = 2) -> int:
    print(f"{prefix}: error: {message}", file=sys.stderr)
    return code


_Config = TypeVar("_Config")


def _parser(command: str, description: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=f"dps {command}", description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    return parser


def _parse(
    parser: ArgumentParser, config_class: type[_Config], arguments: list[str], fits: str | None = None
) -> tuple[_Config, Any]:
    """Parse options into a dataclass; returns it with the namespace of everything else.

    With ``fits``, the name of the command, the defaults fit the model and the questions, see ``dps.defaults``.
    """
    from argparse import ArgumentError

    from dps.arguments import check_text

    parser.add_class_arguments(config_class)
    if fits is not None:
        _fit_defaults(parser, fits, arguments)
    try:
        parsed = parser.parse_args(arguments)
    except (ArgumentError, TypeError, ValueError, RecursionError) as error:
        raise InputError(_one_line(str(error))) from error
    check_text(parsed.as_dict())
    _refuse_empty_names(vars(parsed))
    built = parser.instantiate_classes(parsed)
    return config_class(**{f.name: built[f.name] for f in fields(config_class)}), parsed  # type: ignore[arg-type]


def _fit_defaults(parser: ArgumentParser, command: str, arguments: list[str]) -> None:
    """Give a parser the defaults that fit the model and the questions that the arguments ask for."""
    from argparse import ArgumentError

    from dps.defaults import defaults_for

    asked = [word for word in arguments if word not in ("-h", "--help") and not word.startswith("--print_config")]
    try:
        found = parser.parse_args(asked)
    except (ArgumentError, TypeError, ValueError):
        return  # what is wrong is said when they are parsed in earnest
    bare = not any(word.split("=")[0].startswith(("--config", "--policies", "--controllers")) for word in arguments)
    parser.set_defaults(defaults_for(command, found["model.name"], found.get("benchmark.name"), bare=bare))


_NAMES = ("output", "folders", "harvest", "run", "store", "controller", "crossval", "replay", "rivals")
"""Options and arguments that name files or folders."""


def _refuse_empty_names(options: Mapping[str, Any]) -> None:
    """Refuse empty names of files and folders, which would mean the current folder.

    Raises:
        InputError: With the option.
    """
    for option in _NAMES:
        names = options.get(option)
        for name in names if isinstance(names, list | tuple) else [names]:
            if isinstance(name, str) and not name.strip():
                raise InputError(f"Expected a file or folder for {option}, got an empty name: name one.")


def _one_line(message: str) -> str:
    """Return a parser's message as one line."""
    return " ".join(part.strip() for part in message.splitlines() if part.strip())


# -- commands ----------------------------------------------------------------------------------------------------------


def _harvest(arguments: list[str]) -> None:
    from dps.config import HarvestConfig

    parser = _parser("harvest", "Sample every question k times by power sampling and store trajectories and features.")
    config, _ = _parse(parser, HarvestConfig, _plan_flag(arguments), fits="harvest")
    _check_questions(config.check())
    _check_there(config.model, config.features.embedder)
    if config.plan != "off":
        import json
        import time

        import psutil

        from dps.plan import plan_harvest

        plan = plan_harvest(config, loading_s=time.time() - psutil.Process().create_time())
        print(json.dumps(plan.plain(), indent=1) if config.plan == "json" else plan.words())
        return
    from dps.run import harvest

    _say([harvest(config)])


def _plan_flag(arguments: list[str]) -> list[str]:
    """Return the arguments with a bare ``--plan`` spelt out."""
    following = [*arguments, ""][1:]
    return [
        "--plan=words" if word == "--plan" and (not after or after.startswith("-")) else word
        for word, after in zip(arguments, following, strict=True)
    ]


def _evaluate(arguments: list[str]) -> None:
    from dps.config import EvaluateConfig

    parser = _parser(
        "evaluate", "Run policies live on the model, one store each: fixed k, plain, low temperature, controllers."
    )
    config, _ = _parse(parser, EvaluateConfig, arguments, fits="evaluate")
    if any(argument.partition("=")[0] == "--policies" for argument in arguments):
        # A configuration file may set up more policies than the command line names; what it sets up itself is used.
        config = config.narrowed(_named(arguments, ("controllers", "rules", "in_run")))
    _check_questions(config.check())
    _check_there(config.model)
    for name in config.policies:
        inside = config.in_run.get(name)
        for path in inside.paths if inside is not None else ():
            _check_controller(path)
        at_end = name if inside is None else inside.policy
        if at_end in config.controllers:
            _check_controller(config.controllers[at_end])
    from dps.run import evaluate

    _say(evaluate(config, load_controller=_load_controller()))


def _named(arguments: list[str], settings: tuple[str, ...]) -> set[str]:
    """Return what arguments set of these settings, which are dictionaries: ``controllers.gbdt``, for example."""
    import yaml

    found = set()
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, value = argument.removeprefix("--").partition("=")
        setting, _, name = option.partition(".")
        if not argument.startswith("--") or setting not in settings:
            continue
        names = [name.partition(".")[0]] if name else yaml.safe_load(value if equals else following) or []
        found |= {f"{setting}.{each}" for each in names}
    return found


def _report(arguments: list[str]) -> None:
    from dps.config import EvaluateConfig, ReportConfig

    parser = _parser(
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
    config, parsed = _parse(parser, ReportConfig, arguments)
    folders = [Path(folder) for folder in parsed["folders"] or [EvaluateConfig.output]]
    from dps.report import is_report
    from dps.report.replays import is_replay

    replays = [folder for folder in folders if is_replay(folder)]
    stored = [folder for folder in folders if is_report(folder)]
    if not replays and not stored:
        _write_report(folders, config.output, config.title)
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


def _write_report(folders: list[Path], output: str | None, title: str | None) -> None:
    from dps.report import render_table, write_report

    target = _report_folder(folders, output)
    report = write_report(folders, target, title)
    print(render_table(report))
    _say_findings(report)
    print(f"\n{target / 'report.html'}")


def _write_report_again(folder: Path, output: str | None, title: str | None) -> None:
    from dps.report import pages_in, render_table, what_varies, write_pages_again

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
    from dps.report import pages_in, what_varies
    from dps.report.replays import write_replays

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


def _replay(arguments: list[str]) -> None:
    from dps.replay.config import ReplayConfig

    parser = _parser(
        "replay",
        "Run every policy over the stored trajectories of a harvest, at all thresholds, and compare them: controllers, "
        "rules that need no training, fixed k, and self-consistency over the rivals' samples.",
    )
    parser.add_argument("harvest", type=str, help="folder of a harvest, or of the policy power of an evaluation")
    config, parsed = _parse(parser, ReplayConfig, arguments)
    config.check()
    from dps.replay.command import claim_folder, run_replay, write_replay

    for path in config.controllers.values():
        if not (Path(path) / "predictions.h5").is_file():
            _check_controller(path)
    again = claim_folder(Path(parsed["harvest"]), config)
    from lightning_modules.predict import predict_orders

    report = run_replay(Path(parsed["harvest"]), config, predict_orders)
    write_replay(report, Path(config.output))
    _say_findings(report)
    if again:
        print(f"\n{config.output} held this replay already; it was made again.")
    print(f"\n{Path(config.output) / 'replay.html'}")


def _ship(arguments: list[str]) -> None:
    from dps.config import ShipConfig

    parser = _parser("ship", "Write a trained controller as a folder to hand on, with a card of what was measured.")
    parser.add_argument("run", type=str, help="run folder or checkpoint of dps fit")
    config, parsed = _parse(parser, ShipConfig, arguments)
    _check_controller(parsed["run"])
    from lightning_modules.ship import ship

    settings = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "output"}
    print(ship(parsed["run"], config.check().output, **settings))


def _data(arguments: list[str]) -> None:
    from dps.config import DataConfig

    parser = _parser("data", "List the benchmarks with their licences; `dps data download` fetches them.")
    parser.add_argument("action", nargs="?", choices=("list", "download"), default="list")
    config, parsed = _parse(parser, DataConfig, arguments)
    from dps.benchmarks.download import download, listing

    if parsed["action"] == "list":
        print(listing())
        return
    problems = download(config.names, Path(config.output) if config.output is not None else None)
    if problems:
        raise InputError(" ".join(problems))


def _grade(arguments: list[str]) -> None:
    from dps.config import GradeConfig

    parser = _parser(
        "grade",
        "Read and grade responses without a model: those of a store again, into a copy, or those of a file with one "
        'JSON object a line: {"id", "kind": number, math, choice, text or code, "response", "gold"}.',
    )
    parser.add_argument("responses", type=str, help="folder of a store, or a file of responses")
    config, parsed = _parse(parser, GradeConfig, arguments)
    path = Path(parsed["responses"])
    if path.is_file():
        _grade_file(path, Path(config.output) if config.output else path.with_name(f"{path.stem}-graded.jsonl"))
    else:
        _grade_store(path, Path(config.output) if config.output else path.with_name(f"{path.name}-graded"))


def _grade_store(folder: Path, output: Path) -> None:
    from dps.benchmarks.regrade import regrade
    from dps.progress import track
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
    from dps.progress import track

    checked = check_responses(path)
    with track("grade", checked.num_responses) as bar:
        graded = grade_file(path, output, checked, bar.advance)
    print(f"{graded.words()}\n{output}")


def _store(arguments: list[str]) -> None:
    from dps.config import StoreConfig

    parser = _parser("store", "Look at stores, verify them, merge parts of one run, or export their scalars.")
    parser.add_argument("action", choices=("info", "verify", "merge", "export"))
    parser.add_argument("folders", nargs="+", type=str, help="folders of stores")
    config, parsed = _parse(parser, StoreConfig, arguments)
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


def _outputs(arguments: list[str]) -> None:
    from dps.config import OutputsConfig

    parser = _parser("outputs", "Write a store's responses as the model_outputs that alpaca_eval reads.")
    parser.add_argument("store", type=str, help="folder of the store")
    config, parsed = _parse(parser, OutputsConfig, arguments)
    config.check()
    from dps.benchmarks.outputs import annotate, write_outputs

    folder = Path(parsed["store"])
    target = Path(config.output) if config.output is not None else folder / "model_outputs.json"
    print(f"{write_outputs(folder, target, config.k):,} responses: {target}")
    _say_shortfalls([folder])
    if config.annotator is not None:
        rate = annotate(config.annotator, target, target.with_suffix(""))
        print(f"win rate {rate.value:.1%} +- {rate.stderr:.1%} of {rate.num_instructions:,} instructions")


def _metrics(arguments: list[str]) -> None:
    from dps.metrics.config import MetricsConfig

    parser = _parser(
        "metrics",
        "Read runs and write a table of their trajectories with the published columns, samples to success of every "
        "question, their linear predictor, and pass@k. Entropy, perplexity and self-confidence are of the base model; "
        "mcmc_k in the table is num_mh_steps.",
    )
    parser.add_argument("folders", nargs="*", type=str, help="folders of evaluations, or stores")
    config, parsed = _parse(parser, MetricsConfig, arguments)
    config.check()
    from dps.metrics.command import render, run_metrics

    print(render(run_metrics([Path(folder) for folder in parsed["folders"]], config)))


def _bench(arguments: list[str]) -> None:
    from dps.bench.config import BenchConfig

    parser = _parser("bench", "Measure the engine against the published one-chain loop and plain batched sampling.")
    config, _ = _parse(parser, BenchConfig, arguments, fits="bench")
    _check_questions(config.check())
    _check_there(config.model)
    from dps.bench.records import print_table
    from dps.bench.run import bench

    print_table(bench(config))


def _quickstart(arguments: list[str]) -> None:
    from dps.arguments import CONFIGS, check_seed
    from dps.config import EvaluateConfig, HarvestConfig, QuickstartConfig

    parser = _parser("quickstart", "Run the whole pipeline on the embedded model; minutes on two CPU cores.")
    config, _ = _parse(parser, QuickstartConfig, arguments)
    check_seed(config.seed)
    output = Path(config.output)
    workers = config.workers or len(os.sched_getaffinity(0))

    def load(config_class: type[_Config], name: str, questions: int | None) -> _Config:
        options = [f"--config={CONFIGS / name}", f"--seed={config.seed}", f"--benchmark.seed={config.seed}"]
        options += [f"--compute.workers={workers}"]
        options += [f"--benchmark.limit={questions}"] if questions is not None else []
        return _parse(_parser("quickstart", ""), config_class, options)[0]

    harvest_config = replace(
        load(HarvestConfig, "harvest/arithmetic.yaml", config.harvest_questions), output=str(output / "harvest")
    ).check()
    names = ("gbdt", "mlp-h", "mlp-hq")
    controllers = {name: str(output / "controllers" / name) for name in names}
    evaluate_config = replace(
        load(EvaluateConfig, "evaluate/arithmetic.yaml", config.evaluate_questions),
        output=str(output / "evaluation"),
        controllers=controllers,
    ).check()

    _head("1/4 harvest: power sampling with features, k = 8")
    from dps.run import evaluate, harvest

    _say([harvest(harvest_config)])
    _head("2/4 train: three controllers")
    from lightning_modules.cli import fit_controller

    for name in names:
        fit_controller(
            CONFIGS / f"{name.replace('-', '_')}.yaml",
            [
                f"--data.init_args.store={output / 'harvest'}",
                f"--seed_everything={config.seed}",
                f"--trainer.default_root_dir={controllers[name]}",
            ],
        )
    _head("3/4 evaluate: fixed, plain and controlled, live on the model")
    _say(evaluate(evaluate_config, load_controller=_load_controller()))
    _head("4/4 report")
    _write_report([output / "evaluation"], str(output), None)


def _sample(arguments: list[str]) -> None:
    from dps.arguments import check_seed
    from dps.config import KRange, SampleConfig
    from dps.model_config import EMBEDDED, ModelConfig, check_model_name
    from dps.sampler.settings import SamplerConfig

    parser = _parser("sample", "Ask one question, watch the number of trajectories grow, get the answer.")
    parser.add_argument("question", help="the question, in quotes")
    parser.add_class_arguments(ModelConfig, "model")
    parser.add_class_arguments(SamplerConfig, "sampler")
    parser.add_class_arguments(KRange, "k")
    config, parsed = _parse(parser, SampleConfig, arguments, fits="sample")
    config.check()
    built = parser.instantiate_classes(parsed)
    model_config, sampler, k = built["model"], built["sampler"].check(), built["k"].check()
    check_model_name(model_config)
    check_seed(config.seed)
    if config.controller is not None:
        _check_controller(config.controller)
    style = config.style or ("arithmetic" if model_config.name == EMBEDDED else "number")
    from dps.benchmarks.given import given_questions

    given_questions([parsed["question"]], style)  # refuses an unknown style and an empty question before a model loads
    _check_there(model_config)
    from dps.api import answer
    from dps.model import load_model

    controller = _load_controller()(config.controller) if config.controller is not None else None

    def show(checkpoint: Checkpoint) -> None:
        answers = "  ".join(t.answer if t.answer is not None else "–" for t in checkpoint.trajectories)
        said = "" if checkpoint.p_enough is None else f"   enough: {checkpoint.p_enough:.0%}"
        then = f" → {checkpoint.more} more" if checkpoint.more else ""
        print(f"k = {len(checkpoint.trajectories)}:  {answers}{said}{then}", flush=True)

    record = answer(
        [parsed["question"]],
        load_model(model_config),
        controller=controller,
        k=k,
        sampler=sampler,
        style=style,
        embedder=config.embedder,
        feature_layer=config.feature_layer,
        seed=config.seed,
        rows=config.rows,
        on_checkpoint=show,
    )[0]
    best = max(record.trajectories, key=lambda t: (t.answer == record.answer, t.base_logprob))
    tokens = sum(t.num_generated_tokens for t in record.trajectories)
    print(
        f"\n{best.text.strip()}\n\n"
        f"answer: {record.answer}   (k = {record.k}, {tokens:,} tokens, {record.latency_s:.1f} s)"
    )


def _crossval(arguments: list[str]) -> None:
    if _explained("crossval", _CROSSVAL_USAGE, arguments):
        return
    own, rest = _own_options("crossval", arguments, {"--folds": 5, "--output": None})
    _check_configurations(rest)
    from lightning_modules.cli import cross_validate

    cross_validate(rest, folds=own["folds"], output=own["output"])


def _tune(arguments: list[str]) -> None:
    if _explained("tune", _TUNE_USAGE, arguments):
        return
    own, rest = _own_options("tune", arguments, {"--trials": 20, "--folds": 3, "--output": None})
    _check_configurations(rest)
    from lightning_modules.cli import search_settings

    search_settings(rest, trials=own["trials"], folds=own["folds"], output=own["output"])


def _explained(command: str, usage: str, arguments: list[str]) -> bool:
    """Print how a command is used where its arguments ask for that; without any arguments, refuse."""
    if arguments and "-h" not in arguments and "--help" not in arguments:
        return False
    print(usage)
    if not arguments:
        raise InputError(f"Expected a configuration: dps {command} --config configs/mlp_hq.yaml.")
    return True


def _own_options(
    command: str, arguments: list[str], defaults: dict[str, int | None]
) -> tuple[dict[str, Any], list[str]]:
    """Take a command's own options out of arguments whose rest is LightningCLI's."""
    from argparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(prog=f"dps {command}", add_help=False, allow_abbrev=False, exit_on_error=False)
    for option, default in defaults.items():
        parser.add_argument(option, default=default, type=str if default is None else int)
    try:
        found, rest = parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise InputError(f"{_one_line(str(error))}: dps {command} --help explains the options.") from error
    _refuse_empty_names(vars(found))
    return vars(found), rest


def _lightning(command: str, arguments: list[str]) -> None:
    if _explained(command, _LIGHTNING_USAGE.format(command=command, what=_WHAT[command]), arguments):
        return
    arguments = ["--help" if argument == "--help-all" else argument for argument in arguments]
    _check_configurations(arguments)
    from lightning_modules.cli import main

    main([command, *arguments])


def _check_configurations(arguments: list[str]) -> None:
    """Refuse a configuration that is not there, before Lightning is imported."""
    for flag, following in zip(arguments, [*arguments[1:], ""], strict=True):
        path = (
            following if flag in ("--config", "-c") else flag.removeprefix("--config=") if "--config=" in flag else None
        )
        if path is not None and not Path(path).is_file():
            raise InputError(f"Expected a configuration file, but there is no {path}: see configs/.")


_COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "quickstart": _quickstart,
    "sample": _sample,
    "crossval": _crossval,
    "tune": _tune,
    "harvest": _harvest,
    "evaluate": _evaluate,
    "replay": _replay,
    "ship": _ship,
    "report": _report,
    "grade": _grade,
    "outputs": _outputs,
    "store": _store,
    "data": _data,
    "metrics": _metrics,
    "bench": _bench,
}


# -- what several commands need ----------------------------------------------------------------------------------------


def _load_controller() -> Callable[[str], Any]:
    from lightning_modules.load import load_controller

    return load_controller


def _check_controller(path: str) -> None:
    """Refuse a controller that is not there, before anything heavy is imported."""
    from dps.policies.files import controller_file

    location = controller_file(path)
    if not location.is_file():
        raise InputError(f"Expected a trained controller at {path}, but there is no {location}: train it with dps fit.")


def _check_questions(config: Any) -> None:
    """Read the questions once, so that a bad file is refused before a model loads; says what there is to know."""
    from dps.benchmarks import load_benchmark

    for remark in load_benchmark(config.benchmark, config.model.name).remarks:
        print(f"note: {remark}", file=sys.stderr)


def _check_there(model: Any, embedder: str | None = None) -> None:
    """Refuse a model or an embedder that cannot be had, before anything heavy is imported."""
    from dps.embedding import QuestionEmbedder
    from dps.model_config import EMBEDDED, check_there

    check_there(model)
    if embedder not in (None, EMBEDDED):
        QuestionEmbedder(embedder).check_there()


def _head(text: str) -> None:
    print(f"\n{text}", file=sys.stderr, flush=True)


def _say(summaries: list[Summary]) -> None:
    from dps.doubt import doubt

    for summary in summaries:
        print(f"{summary.folder}: {summary.complete} questions, {summary.sampled} of them sampled now", flush=True)
    alike: dict[tuple[int, int], list[str]] = {}
    for summary in summaries:
        alike.setdefault((summary.graded, summary.right), []).append(str(summary.folder))
    for (graded, right), folders in alike.items():
        if (sentence := doubt(", ".join(folders), graded, right)) is not None:
            print(f"warning: {sentence}", file=sys.stderr, flush=True)
