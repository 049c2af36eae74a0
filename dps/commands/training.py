"""Commands whose options are LightningCLI's: fit, validate, test, predict, crossval, tune.

The help is given here, because LightningCLI's own takes seconds to load.
"""

from __future__ import annotations

import sys
from argparse import ArgumentError, ArgumentParser, RawDescriptionHelpFormatter
from contextlib import nullcontext
from functools import partial

from dps.commands.options import PARSER, ParserMade, one_line, refuse_empty_names
from dps.errors import InputError
from dps.start import ANALYSIS, IMPORTS, TRAINING, stage, starting

_WHAT = {
    "fit": """\
Train a controller on the features of a harvest. The same command again goes on
after its last epoch.""",
    "validate": "Measure a controller on its validation questions.",
    "test": "Measure a controller on its test questions, beside question length alone.",
    "predict": """\
Write a controller's probabilities for every question and checkpoint as CSV.""",
    "crossval": """\
Train a controller for each fold of the questions and predict the fold with it,
so that every question is judged by a controller that has not seen it. A
finished fold is not trained again. Writes predictions.h5
(docs/controllers_format.md) and crossval.json: AUROC, average precision, Brier
score and calibration error with standard errors clustered by question, beside
question length alone, and the policy at the out-of-fold thresholds.""",
    "tune": """\
Search for the settings whose out-of-fold probabilities have the lowest log
loss, with Optuna (pip install optuna). The test questions of dps fit stay out
of it. The same command again does the trials that are missing. Writes
trials.json and best.yaml, for

  dps fit --config mlp_hq --config FOLDER/best.yaml

Searched: of the trees learning_rate, num_leaves, min_rows_per_leaf, l2 and
fractions; of the networks lr, weight_decay, sizes and dropout
(docs/controllers_format.md).""",
}
_CKPT_PATH = ("--ckpt_path", "FILE", "checkpoint to measure (the run's best), or of fit to start from")
_KEYS = (
    ("--config", "NAME", "mlp_hq, mlp_h, gbdt, value, ... of the package, or a YAML file; again: on top"),
    ("--store", "FOLDER", "the harvest (data.init_args.store)"),
    ("--label", "NAME", "no_gain, correct, end or value (data.init_args.label)"),
    ("--feature_set", "NAME", "published, extended, ladder or recorded (data.init_args.feature_set)"),
    ("--ladder", "[...]", "what is climbed, such as [plain 2, plain 2] (data.init_args.ladder)"),
    ("--seed", "N", "seed of everything (seed_everything)"),
    ("--max_epochs", "N", "and every other option of the Trainer"),
    ("--print_config", "", "show the whole configuration and stop"),
)
"""Options of LightningCLI that the help shows: name, value, help."""
_HABITS = {
    **{f"--{name}": f"--data.init_args.{name}" for name in ("store", "label", "feature_set", "ladder")},
    "--output": "--trainer.default_root_dir",
    "--seed": "--seed_everything",
}
"""Short names of LightningCLI's options that its parser does not know by themselves."""
_OUTPUT = ("--output", None, "folder to write to; one of the command's name in the run folder if not given")
_OWN: dict[str, list[tuple[str, int | None, str]]] = {
    "crossval": [
        ("--folds", 5, "number of folds"),
        ("--rounds", 1, "rounds of the label value, each of which goes on as the one before says"),
        _OUTPUT,
    ],
    "tune": [
        ("--trials", 20, "trials in all; the first is the configuration itself"),
        ("--folds", 3, "folds of each trial"),
        _OUTPUT,
    ],
}
"""Options that LightningCLI does not have: name, default, help."""


def run_training(command: str, arguments: list[str]) -> None:
    """``dps fit``, ``crossval`` and so on: the commands that train and judge controllers."""
    with starting(command):
        _train(command, arguments)


def _train(command: str, arguments: list[str]) -> None:
    """Run one of them; a SystemExit after ``--help`` or ``--print_config``."""
    own = _OWN.get(command, [])
    if arguments == [PARSER]:
        raise ParserMade(_parser(command, whole=True))
    if {"-h", "--help"} & {*arguments}:
        print(_parser(command, whole=True).format_help(), end="")
        raise SystemExit(0)
    if not arguments:
        raise InputError(f"Expected a configuration: dps {command} --config mlp_hq; --help explains the options.")
    try:
        parsed, rest = _parser(command).parse_known_args(arguments)
    except ArgumentError as error:
        raise InputError(f"{one_line(str(error))}: dps {command} --help explains the options.") from error
    options = vars(parsed)
    refuse_empty_names(options)
    if "--help-all" in rest:
        command, rest = "fit" if own else command, ["--help"]
    split = [word.partition("=") for word in rest]
    rest = ["".join((_HABITS.get(name, name), equals, value)) for name, equals, value in split]
    with stage(IMPORTS):
        from lightning_modules import cli, trainer_cli

    # Lightning's own bar stands on a terminal's last line.
    with nullcontext() if sys.stderr.isatty() and command == "fit" else stage(TRAINING):
        if rest != ["--help"] and command == "crossval":
            cli.cross_validate(rest, **options)
        elif rest != ["--help"] and command == "tune":
            from lightning_modules.tune import tune

            tune(rest, **options)
        else:
            trainer_cli.run([command, *rest])


def _parser(command: str, *, whole: bool = False) -> ArgumentParser:
    """Return the parser of a command's own options; the ``whole`` one also has those of LightningCLI, to be shown."""
    own = _OWN.get(command, [])
    parser = ArgumentParser(
        prog=f"dps {command}",
        usage=f"dps {command} --config NAME [options]",
        description=_WHAT[command],
        epilog=f"example:\n  dps {command} --config mlp_hq --store runs/harvest\n\n"
        f"dps {command} --help-all explains every key of the configuration (takes seconds).",
        formatter_class=partial(RawDescriptionHelpFormatter, max_help_position=25, width=80),
        allow_abbrev=False,
        add_help=False,
        exit_on_error=False,
    )
    for option, default, text in own:
        kind, default_text = (str, "") if default is None else (int, f" [{default}]")
        names = (option, "-o") if option == "--output" else (option,)
        parser.add_argument(
            *names, default=default, type=kind, help=text + default_text, metavar="N" if default else "FOLDER"
        )
    if whole:
        output = ("--output", "FOLDER", "the run folder (trainer.default_root_dir)")
        for option, value, text in (*_KEYS, *(() if own else (_CKPT_PATH, output))):
            parser.add_argument(option, help=text, **({"metavar": value} if value else {"action": "store_true"}))
    return parser


@starting("probe")
def run_probe(arguments: list[str]) -> None:
    """``dps probe``: how well a harvest's questions, and their first rung, tell what will be right at the end."""
    from dps.commands.options import parse, parser_of
    from lightning_modules.probe_config import ProbeConfig

    parser = parser_of("probe", ProbeConfig)
    parser.add_argument("store", type=str, help="folder of a harvest")
    config, parsed = parse(parser, ProbeConfig, arguments)
    config.check()
    with stage(IMPORTS):
        from lightning_modules.probing import probe
    with stage(ANALYSIS):
        print(probe(parsed["store"], config))
