"""The command line: the one place that knows both the sampler's side and the controllers' side of the project.

Nothing heavy is imported before a command's settings have been parsed and checked.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dps.commands.analysis import run_metrics, run_replay, run_report
from dps.commands.grading import run_data, run_grade, run_outputs
from dps.commands.options import one_line, refuse_empty_names
from dps.commands.running import run_bench, run_evaluate, run_harvest, run_quickstart, run_sample
from dps.commands.stores import run_ship, run_store
from dps.errors import InputError, WorkersDied

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
        _check_configurations(rest)
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


def _crossval(arguments: list[str]) -> None:
    if _explained("crossval", _CROSSVAL_USAGE, arguments):
        return
    own, rest = _own_options("crossval", arguments, {"--folds": 5, "--output": None})
    from lightning_modules.cli import cross_validate

    cross_validate(rest, folds=own["folds"], output=own["output"])


def _tune(arguments: list[str]) -> None:
    if _explained("tune", _TUNE_USAGE, arguments):
        return
    own, rest = _own_options("tune", arguments, {"--trials": 20, "--folds": 3, "--output": None})
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
        raise InputError(f"{one_line(str(error))}: dps {command} --help explains the options.") from error
    refuse_empty_names(vars(found))
    return vars(found), rest


def _lightning(command: str, arguments: list[str]) -> None:
    if _explained(command, _LIGHTNING_USAGE.format(command=command, what=_WHAT[command]), arguments):
        return
    arguments = ["--help" if argument == "--help-all" else argument for argument in arguments]
    from lightning_modules.cli import main

    main([command, *arguments])


def _check_configurations(arguments: list[str]) -> None:
    """Refuse a configuration that is not there, before anything heavy is imported."""
    for flag, following in zip(arguments, [*arguments[1:], ""], strict=False):
        path = (
            following if flag in ("--config", "-c") else flag.removeprefix("--config=") if "--config=" in flag else None
        )
        if path is not None and not Path(path).is_file():
            raise InputError(f"Expected a configuration file, but there is no {path}: see configs/.")


_COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "quickstart": run_quickstart,
    "sample": run_sample,
    "crossval": _crossval,
    "tune": _tune,
    "harvest": run_harvest,
    "evaluate": run_evaluate,
    "replay": run_replay,
    "ship": run_ship,
    "report": run_report,
    "grade": run_grade,
    "outputs": run_outputs,
    "store": run_store,
    "data": run_data,
    "metrics": run_metrics,
    "bench": run_bench,
}
