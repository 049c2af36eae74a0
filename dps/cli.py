"""The command line: the table of commands, and what all of them share: arguments, signals, sentences and exit codes.

The one place that knows both the sampler's side and the controllers' side of the project. Nothing heavy is imported
before a command's settings have been parsed and checked.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dps import __version__
from dps.arguments import did_you_mean, readable
from dps.commands.analysis import run_metrics, run_recommend, run_replay, run_report
from dps.commands.custom_generate import run_custom_generate
from dps.commands.grading import run_data, run_grade, run_outputs
from dps.commands.options import PARSER, ParserMade
from dps.commands.running import run_bench, run_evaluate, run_harvest, run_quickstart
from dps.commands.sampling import run_sample
from dps.commands.serving import run_serve
from dps.commands.stores import run_ship, run_store
from dps.commands.training import run_probe, run_training
from dps.errors import InputError, WorkersDied
from dps.extras import require
from feature_store.errors import StoreError

COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "quickstart": (run_quickstart, "the whole method on the embedded model: harvest, train, recommend, evaluate"),
    "sample": (run_sample, "ask one question and watch the number of trajectories grow"),
    "serve": (run_serve, "answer clients of the OpenAI protocol, all of them on the rows of one model"),
    "custom-generate": (run_custom_generate, "a folder that transformers' model.generate(custom_generate=...) runs"),
    "harvest": (run_harvest, "sample questions k times with features, into a store for training"),
    "fit": (partial(run_training, "fit"), "train a controller on a store          (fit --config configs/mlp_hq.yaml)"),
    "crossval": (
        partial(run_training, "crossval"),
        "train on folds of a store, predict every question by a controller that has not seen it",
    ),
    "tune": (partial(run_training, "tune"), "search for a controller's best settings (needs Optuna)"),
    "validate": (partial(run_training, "validate"), "measure a trained controller on its validation questions"),
    "test": (partial(run_training, "test"), "measure it on its test questions"),
    "predict": (partial(run_training, "predict"), "write its probabilities for every question of a store as CSV"),
    "probe": (run_probe, "how well a question tells whether it will be answered rightly, and what that saves"),
    "ship": (run_ship, "a trained controller as a folder to hand on, with a card of what was measured"),
    "evaluate": (run_evaluate, "run fixed, plain and controlled policies live on the model"),
    "replay": (run_replay, "every policy over a harvest's stored trajectories, at all thresholds, in seconds"),
    "recommend": (run_recommend, "the policy to use, of all that a replay has compared, and a file to run it"),
    "report": (run_report, "tables and figures from evaluation runs or replays: HTML, PNG, SVG, JSON"),
    "grade": (run_grade, "grade responses without a model: a store's again, or those of a file from anywhere"),
    "outputs": (run_outputs, "write responses for alpaca_eval, and let an annotator of yours judge them"),
    "data": (run_data, "list the benchmarks and their licences, or download them"),
    "store": (run_store, "info, verify, merge, export, import, compact: what one does with a finished store"),
    "metrics": (run_metrics, "published CSV tables, samples to success and their predictor, pass@k, from runs"),
    "bench": (run_bench, "measure the sampler's speed against the published loop and plain sampling"),
}
"""Every command: what does it, with the words behind the command's name, and its line of the overview."""

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

_OVERVIEW = """usage: dps COMMAND [options]     (dps COMMAND --help explains the options)

Dynamic Power Sampling: exact power sampling of language models, with trained controllers
that decide how many trajectories a question needs.

{commands}

Configurations to start from are in configs/. Exit codes: 0 done, 2 bad input or no room on the disk, 3 workers died,
130 interrupted, 143 terminated."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, a used-up quota and a limit of file sizes."""


def run(arguments: list[str]) -> int:
    """Run the command that stands after ``dps`` on the command line.

    Returns the exit code: 0, 2 for bad input or a disk without room, 3 where workers died, 130 after Ctrl-C, 143 after
    SIGTERM.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_OVERVIEW.format(commands="\n".join(f"  {name:<16}{line}" for name, (_, line) in COMMANDS.items())))
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        print(f"dps {__version__}")
        return 0
    if name.replace("-", "_") == "__print_completion":
        return _print_completion(rest)
    if name not in COMMANDS:
        known = f"expected one of {', '.join(COMMANDS)}"
        return _refuse("dps", f"Unknown command {name}: {did_you_mean(name, COMMANDS, known)}")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the libraries; our own know where they write
    command = f"dps {name}"
    try:
        COMMANDS[name][0](readable(name, rest))
    except (InputError, StoreError) as error:
        return _refuse(command, str(error))
    except WorkersDied as error:
        return _refuse(command, str(error), code=3)
    except KeyboardInterrupt as stopped:
        print(f"\n{command}: interrupted; {_after_interruption(name, rest)}.", file=sys.stderr)
        return 143 if isinstance(stopped, _Terminated) else 130
    except BrokenPipeError:
        return 0  # the reader of a pipe has gone (`dps report | head`): nothing is wrong here
    except MemoryError:
        return _refuse(command, "There is not enough memory for this: use smaller settings or another machine.")
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        where = f" for {error.filename}" if error.filename else ""
        return _refuse(command, f"There is no room{where} ({error.strerror}): make some, then run it again.")
    return 0


def _print_completion(shells: list[str]) -> int:
    """Print the completion of a shell, made of the commands' own parsers."""
    try:
        require("Completion", "completion", "shtab")
    except InputError as error:
        return _refuse("dps", str(error))
    from jsonargparse import ArgumentParser
    from shtab import SUPPORTED_SHELLS

    if len(shells) != 1 or shells[0] not in SUPPORTED_SHELLS:
        return _refuse("dps", f"Expected one of {', '.join(SUPPORTED_SHELLS)} after --print_completion.")
    parser = ArgumentParser(prog="dps")
    commands = parser.add_subcommands()
    for name, (command, line) in COMMANDS.items():
        try:
            command([PARSER])
        except ParserMade as made:
            known = made.args[0]
            if not isinstance(known, ArgumentParser):  # of LightningCLI only what the help shows
                known, shown = ArgumentParser(prog=known.prog), known._actions
                for action in shown:
                    known.add_argument(*action.option_strings, help=action.help)
            commands.add_subcommand(name, known, help=line)
    print(parser.get_completion_script(f"shtab-{shells[0]}"))
    return 0


def _after_interruption(name: str, arguments: list[str]) -> str:
    """Return what an interrupted command leaves, and what the same command does then."""
    planning = any(argument.startswith("--plan") for argument in arguments)
    copying = name == "grade" and any(Path(argument).is_dir() for argument in arguments)  # of a store, whole or not
    if name not in _KEPT or planning or copying:
        return "nothing of it is kept, the same command begins again"
    return f"{_KEPT[name]} is kept, the same command goes on from there"


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: a cluster wants the machine back, or a time limit is near. Ends a command as Ctrl-C does."""


def _terminate(number: int, frame: object) -> None:
    raise _Terminated


def _refuse(prefix: str, message: str, code: int = 2) -> int:
    print(f"{prefix}: error: {message}", file=sys.stderr)
    return code
