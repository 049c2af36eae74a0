"""``dps fit``, ``validate``, ``test``, ``predict``, ``crossval`` and ``tune``: what the command line calls.

Light to import; Lightning is loaded when a command runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def main(args: list[str]) -> None:
    """Run LightningCLI on a subcommand and its options, for example ``["fit", "--config", "configs/mlp_hq.yaml"]``.

    Raises:
        InputError: If options, configuration, store or checkpoint cannot be used.
        SystemExit: After ``--help`` or ``--print_config``.
    """
    from lightning_modules.trainer_cli import run

    run(args)


def fit_controller(config: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Train a controller in this process and return its best checkpoint.

    Args:
        config: A configuration of ``dps fit``.
        overrides: Options, such as ``--data.init_args.store=runs/quickstart/harvest``.

    Raises:
        InputError: If options, configuration or store cannot be used.
    """
    from lightning_modules.trainer_cli import run

    return run(["fit", "--config", str(config), *overrides]).best_checkpoint


def cross_validate(args: Sequence[str], folds: int = 5, output: str | Path | None = None) -> Path:
    """Cross-validate a controller by question, see :mod:`lightning_modules.crossval`.

    Args:
        args: Options of ``dps fit``, for example ``["--config", "configs/mlp_hq.yaml"]``.
        folds: Number of folds.
        output: The folder for ``predictions.h5`` and ``crossval.json``, which is returned; ``crossval`` in the
            configuration's run folder if None.
    """
    from lightning_modules.crossval import crossval

    return crossval(args, folds, None if output is None else Path(output))


def search_settings(args: Sequence[str], trials: int = 20, folds: int = 3, output: str | Path | None = None) -> Path:
    """Search for a controller's best settings with Optuna, see :mod:`lightning_modules.tune`.

    Args:
        args: Options of ``dps fit``, for example ``["--config", "configs/mlp_hq.yaml"]``.
        trials: Trials in all.
        folds: Folds of each trial.
        output: The folder for ``best.yaml``, which is returned; ``tune`` in the configuration's run folder if None.
    """
    from lightning_modules.tune import tune

    return tune(args, trials, folds, None if output is None else Path(output))
