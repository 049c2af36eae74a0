"""``dps fit``, ``validate``, ``test`` and ``predict``: what the composition root and the quickstart call.

Light to import; Lightning is loaded when a command runs (``trainer_cli``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dps.commands.options import one_line
from dps.errors import InputError
from feature_store.errors import StoreError

if TYPE_CHECKING:
    from lightning_modules.trainer_cli import ControllerCLI


def main(args: list[str]) -> None:
    """Run LightningCLI on a subcommand and its options.

    Args:
        args: For example ``["fit", "--config", "configs/mlp_hq.yaml"]``.

    Raises:
        InputError: If options, configuration, store or checkpoint cannot be used.
        SystemExit: After ``--help`` or ``--print_config``.
    """
    _run(args)


def fit_controller(config: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Train a controller in this process.

    Args:
        config: A configuration of ``dps fit``.
        overrides: Options, such as ``--data.init_args.store=runs/quickstart/harvest``.

    Returns:
        The best checkpoint; :func:`lightning_modules.load_controller` reads it.

    Raises:
        InputError: If options, configuration or store cannot be used.
    """
    return _run(["fit", "--config", str(config), *overrides]).best_checkpoint


def cross_validate(args: Sequence[str], folds: int = 5, output: str | Path | None = None) -> Path:
    """Cross-validate a controller by question, see :mod:`lightning_modules.crossval`.

    Args:
        args: Options of ``dps fit``, for example ``["--config", "configs/mlp_hq.yaml"]``.
        folds: Number of folds.
        output: Folder of everything; ``crossval`` in the configuration's run folder if None.

    Returns:
        The folder, which holds ``predictions.h5`` and ``crossval.json``.

    Raises:
        InputError: If options, configuration, store or folder cannot be used.
    """
    from lightning_modules.crossval import crossval

    return crossval(args, folds, None if output is None else Path(output))


def search_settings(args: Sequence[str], trials: int = 20, folds: int = 3, output: str | Path | None = None) -> Path:
    """Search for a controller's best settings with Optuna, see :mod:`lightning_modules.tune`.

    Args:
        args: Options of ``dps fit``, for example ``["--config", "configs/mlp_hq.yaml"]``.
        trials: Trials in all.
        folds: Folds of each trial.
        output: Folder of everything; ``tune`` in the configuration's run folder if None.

    Returns:
        The folder, which holds ``best.yaml``.

    Raises:
        InputError: If Optuna is absent, or options, configuration, store or folder cannot be used.
    """
    from lightning_modules.tune import tune

    return tune(args, trials, folds, None if output is None else Path(output))


def resolve(args: Sequence[str]) -> ControllerCLI:
    """Return model, data module and Trainer as options of ``dps fit`` say; nothing runs.

    Raises:
        InputError: If options, configuration or store cannot be used.
    """
    return _run(list(args), run=False)


def run(args: Sequence[str]) -> ControllerCLI:
    """Run LightningCLI on a subcommand and its options, and return it.

    Raises:
        InputError: If options, configuration, store or checkpoint cannot be used.
    """
    return _run(list(args))


def _run(args: list[str], *, run: bool = True) -> ControllerCLI:
    import argparse

    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from lightning_modules.trainer_cli import ControllerCLI, quiet

    try:
        with quiet():
            return ControllerCLI(args, run=run)
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        # jsonargparse wraps what a constructor raises; the user's mistake is inside.
        inner: BaseException | None = error
        while inner is not None and not isinstance(inner, InputError | StoreError):
            inner = inner.__cause__ or inner.__context__
        if inner is not None:
            raise inner from None
        missing = _missing_package(error)
        if missing is not None:
            raise InputError(
                f"What the configuration names needs a package that is not installed ({_essence(str(missing))}): "
                "install it with pip, or leave it out."
            ) from error
        if isinstance(error, argparse.ArgumentError):
            raise InputError(
                f"{_essence(str(error))}; dps {args[0] if run else 'fit'} --help-all lists every key."
            ) from error
        raise
    except ModuleNotFoundError as error:
        raise InputError(
            f"What the configuration names needs a package that is not installed ({_essence(str(error))}): install it "
            "with pip, or leave it out."
        ) from error
    except MisconfigurationException as error:
        raise InputError(f"The Trainer refuses its configuration: {_essence(str(error))}.") from error
    except SystemExit as error:
        # Lightning turns Ctrl-C, and SIGTERM that is raised like it, into an exit of its own.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise


def _missing_package(error: BaseException) -> ModuleNotFoundError | None:
    """Return the import that failed, among what an error was raised from."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, ModuleNotFoundError):
        inner = inner.__cause__ or inner.__context__
    return inner


_CHATTER = (
    "Subtypes:",
    "Errors:",
    "Given value",
    "- Expected a <class 'NoneType'>",
    "- Not a valid subclass",
    "Not a valid subclass",
    "Subclass types expect",
    "- a class path",
    "- a dict",
)
"""Beginnings of the lines in which jsonargparse lists what it tried."""


def _essence(message: str) -> str:
    """Return a parser's message as one line, without the list of what was tried."""
    lines = [line.strip() for line in message.splitlines()]
    kept = [line.removeprefix("- ") for line in lines if line and not line.startswith(_CHATTER)]
    return one_line("\n".join(kept).replace("Does not validate against any of the Union subtypes ", "")).rstrip(".")
