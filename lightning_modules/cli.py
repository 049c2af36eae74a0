"""Training and cross-validation of controllers from Python, as ``dps fit`` and ``dps crossval`` do them.

Light to import; Lightning is loaded when a function runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dps.arguments import readable


def fit_controller(config: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Train a controller on a harvest, as ``dps fit`` does.

    Args:
        config: A configuration; ``configs/...`` that is not there is the package's own.
        overrides: Options of ``dps fit``, for instance ``["--data.init_args.store", "runs/mine/harvest"]``.

    Returns:
        The best checkpoint, for :func:`dps.load_controller`; its run folder has ``metrics.csv``, a row an epoch.

    Raises:
        InputError: If options, configuration or store cannot be used.

    Example:
        >>> fit_controller("configs/gbdt.yaml", ["--data.init_args.store=runs/mine/harvest"])  # doctest: +SKIP
    """
    arguments = readable("fit", ["--config", str(config), *overrides])
    from lightning_modules.trainer_cli import run

    return run(["fit", *arguments]).best_checkpoint


def cross_validate(args: Sequence[str], folds: int = 5, output: str | Path | None = None, rounds: int = 1) -> Path:
    """Train a controller per fold of the questions and judge every question by the one that has not seen it.

    Args:
        args: The options of ``dps fit``, for instance ``["--config", "configs/gbdt.yaml"]``.
        folds: Number of folds.
        output: Folder to write to; ``crossval`` in the configuration's run folder if None.
        rounds: Rounds of the label ``value``, each of which goes on as the one before says.

    Returns:
        The folder of ``predictions.h5`` and ``crossval.json``; of several rounds, the last one's.

    Raises:
        InputError: If options, configuration, store or folder cannot be used.
    """
    from lightning_modules.crossval import crossval

    return crossval(readable("crossval", args), folds, output, rounds)
