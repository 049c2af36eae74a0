"""One split of a cross-validation or of a search: what both do with a configuration of ``dps fit`` and a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dps.errors import InputError
from dps.folders import claim
from feature_store import Store
from lightning_modules.trainer_cli import ControllerCLI, run


def open_folds(
    args: Sequence[str], command: str, folds: int, output: str | Path | None, results: Sequence[str]
) -> tuple[ControllerCLI, Path, bool]:
    """Resolve options of ``dps fit`` and claim the folder for a command's ``results``, see :func:`dps.folders.claim`.

    Returns:
        The CLI, of which nothing has run; the folder, which has the command's name in the run folder if ``output`` is
        None; whether results of the same run stand there.
    """
    if folds < 2:
        raise InputError(f"Expected at least 2 folds, got {folds}.")
    cli = run(args, run=False)
    data = cli.datamodule
    if data.folds is not None:
        raise InputError(f"dps {command} sets data.folds and data.fold itself: leave them out.")
    if folds > (count := len(Store.open(data.store))):
        raise InputError(f"Expected at most as many folds as {data.store} has questions, {count:,}, got {folds:,}.")
    folder = Path(output or cli.run_folder / command)
    settings = {"folds": folds, "max_epochs": cli.trainer.max_epochs, **cli.settings(folder)}
    return cli, folder, claim(folder, f"dps {command}", settings, results)


def train_split(args: Sequence[str], folder: Path, fold: int, folds: int, *more: str) -> ControllerCLI:
    """Train a controller on all questions but those of a fold; an interrupted training goes on.

    ``more`` are options of ``dps fit`` that come after ``args``.
    """
    own = (f"--data.init_args.folds={folds}", f"--data.init_args.fold={fold}", f"--trainer.default_root_dir={folder}")
    return run(["fit", *args, *more, *own])
