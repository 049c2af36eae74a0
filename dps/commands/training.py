"""Commands whose options are LightningCLI's: fit, validate, test, predict, crossval, tune.

The help is given here, because LightningCLI's own takes seconds to load.
"""

from __future__ import annotations

from argparse import ArgumentError, ArgumentParser, RawDescriptionHelpFormatter

from dps.commands.options import one_line, refuse_empty_names
from dps.errors import InputError

_WHAT = {
    "fit": "Train a controller on the features of a harvest. The same command again goes on after its last epoch.",
    "validate": "Measure a controller on its validation questions.",
    "test": "Measure a controller on its test questions, beside question length alone.",
    "predict": "Write a controller's probabilities for every question and checkpoint as CSV.",
    "crossval": """\
Trains a controller for each fold of the questions and predicts the fold with it, so that every
question is judged by a controller that has not seen it. A finished fold is not trained again.
Writes predictions.h5 (docs/controllers_format.md) and crossval.json: AUROC, average precision,
Brier score and calibration error with standard errors clustered by question, beside question
length alone, and the policy at the out-of-fold thresholds against the largest k.""",
    "tune": """\
Searches for the settings whose out-of-fold probabilities have the lowest log loss, with Optuna
(pip install optuna). The test questions of dps fit stay out of it. The same command again does
the trials that are missing. Writes best.yaml and trials.json; then

  dps fit --config configs/mlp_hq.yaml --config FOLDER/best.yaml

Searched: of the trees learning_rate, num_leaves, min_rows_per_leaf, l2, feature_fraction and
bagging_fraction; of the networks lr, weight_decay, projection_size, layer_sizes, dropout and
input_dropout (ranges: docs/controllers_format.md).""",
}

_KEYS = """\
every key of the configuration can be overridden:
  --config FILE                     configs/mlp_hq.yaml, mlp_h.yaml, gbdt.yaml, or those named _extended
  --data.init_args.store FOLDER     the harvest
  --data.init_args.label NAME       no_gain, correct, end or value
  --data.init_args.feature_set SET  published (six scalars), extended, ladder or recorded
  --trainer.max_epochs N            and every other option of the Trainer"""

_LIGHTNING_KEYS = """
  --ckpt_path FILE                  the checkpoint to measure (else the run's best), or to start from (fit)
  --print_config                    show the whole resolved configuration and stop
  --help-all                        list every option (loads Lightning first, some seconds)"""

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
    """Run one of the commands that train and judge controllers; a SystemExit after ``--help`` or ``--print_config``."""
    example = f"dps {command} --config configs/mlp_hq.yaml"
    own = _OWN.get(command, [])
    parser = ArgumentParser(
        prog=f"dps {command}",
        usage=" ".join([example, *(f"[{option} ...]" for option, _, _ in own), "[--key value ...]"]),
        description=_WHAT[command],
        epilog=_KEYS + ("" if own else _LIGHTNING_KEYS),
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    for option, default, text in own:
        kind, default_text = (str, "") if default is None else (int, f" (default: {default})")
        parser.add_argument(option, default=default, type=kind, help=text + default_text)
    if not arguments:
        raise InputError(f"Expected a configuration: {example}; --help explains the options.")
    try:
        parsed, rest = parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise InputError(f"{one_line(str(error))}: dps {command} --help explains the options.") from error
    options = vars(parsed)
    refuse_empty_names(options)
    from lightning_modules import cli

    if command == "crossval":
        cli.cross_validate(rest, **options)
    elif command == "tune":
        cli.search_settings(rest, **options)
    else:
        cli.main([command, *("--help" if word == "--help-all" else word for word in rest)])


def run_probe(arguments: list[str]) -> None:
    """``dps probe``: how well a harvest's questions, and their first rung, tell what will be right at the end."""
    from dps.commands.options import parse, parser_of
    from lightning_modules.probe_config import ProbeConfig

    parser = parser_of("probe")
    parser.add_argument("store", type=str, help="folder of a harvest")
    config, parsed = parse(parser, ProbeConfig, arguments)
    config.check()
    from lightning_modules.probing import probe

    print(probe(parsed["store"], config))
