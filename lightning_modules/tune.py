"""A search over a controller's settings with Optuna: which of them predict questions best that trained nothing.

``dps tune`` trains each trial on folds of the store's questions, as ``crossval`` does, but leaves the test questions of
``dps fit`` out of everything, so that what is found can be tested on them.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from dps.errors import InputError
from dps.extras import require
from feature_store.files import replace_file
from feature_store.lock import held
from lightning_modules.batches import predict_table
from lightning_modules.folds import open_folds, train_split
from lightning_modules.load import load_controller
from lightning_modules.run_files import write_json

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

    from lightning_modules.trainer_cli import ControllerCLI

BEST = "best.yaml"
TRIALS = "trials.json"


@dataclass(frozen=True, slots=True)
class Setting:
    """One dimension of a search: a key under ``model.init_args`` and the values that it may have."""

    key: str
    """Dotted."""
    low: float = 0.0
    """Least value."""
    high: float = 0.0
    """Largest value."""
    log: bool = False
    """Whether values are drawn evenly on a logarithmic scale."""
    whole: bool = False
    """Whether values are integers."""
    choices: tuple[str, ...] = ()
    """Values as YAML, instead of a range."""

    def suggest(self, trial: Trial) -> Any:
        """Return the trial's value."""
        if self.choices:
            return yaml.safe_load(trial.suggest_categorical(self.key, self.choices))
        if self.whole:
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)

    def stored(self, value: Any) -> Any:
        """Return a configured value as a trial stores it; None where it is outside the space."""
        if self.choices:
            return next((choice for choice in self.choices if yaml.safe_load(choice) == value), None)
        return value if isinstance(value, int | float) and self.low <= value <= self.high else None


_MLP = (
    Setting("optimizer.init_args.lr", 1e-4, 1e-2, log=True),
    Setting("optimizer.init_args.weight_decay", 1e-3, 10.0, log=True),
    Setting("projection_size", 2, 32, log=True, whole=True),
    Setting("layer_sizes", choices=("[]", "[16]", "[32]", "[64]", "[32, 32]")),
    Setting("dropout", 0.0, 0.6),
    Setting("input_dropout", 0.0, 0.9),
    Setting("residual_lr_scale", 0.05, 1.0, log=True),
    Setting("residual_weight_decay", 0.1, 50.0, log=True),
)
SPACES: dict[str, tuple[Setting, ...]] = {
    "mlp-h": _MLP,
    "mlp-hq": _MLP,
    "gbdt": (
        Setting("learning_rate", 0.01, 0.2, log=True),
        Setting("num_leaves", 2, 31, log=True, whole=True),
        Setting("min_rows_per_leaf", 20, 1000, log=True, whole=True),
        Setting("l2", 0.01, 100.0, log=True),
        Setting("feature_fraction", 0.3, 1.0),
        Setting("bagging_fraction", 0.3, 1.0),
    ),
}
"""What is searched for each kind of controller; ``docs/controllers_format.md`` has the same as a table."""


def tune(args: Sequence[str], trials: int = 20, folds: int = 3, output: str | Path | None = None) -> Path:
    """Search, and return the folder with ``best.yaml`` (a second ``--config``), ``trials.json`` and ``journal.log``.

    The objective is the mean cross-entropy (nats) of calibrated out-of-fold probabilities, over all rows. The first
    trial is the configuration itself, so the best is never worse than it there. Trials that the folder has count.

    ``output`` is ``tune`` in the configuration's run folder if None.

    Raises:
        InputError: If Optuna is absent, or options, configuration, store or folder cannot be used.
    """
    require("dps tune", "tune", "optuna")
    if trials < 1:
        raise InputError(f"Expected at least 1 trial, got {trials}.")
    cli, folder, _ = open_folds(args, "tune", folds, output, ("journal.log", BEST, TRIALS))
    with held(folder):
        return _search(cli, args, trials, folds, folder)


def _search(cli: ControllerCLI, args: Sequence[str], trials: int, folds: int, folder: Path) -> Path:
    """Run the trials that a folder lacks, and write what they show."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    resolved, space = cli.resolved(), SPACES[cli.model.name]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="tune",
        storage=JournalStorage(JournalFileBackend(str(folder / "journal.log"))),
        load_if_exists=True,
        direction="minimize",
    )
    if not study.trials:  # begin with the configuration's own settings
        own = {s.key: s.stored(_at(resolved["model"]["init_args"], s.key)) for s in space}
        study.enqueue_trial({key: value for key, value in own.items() if value is not None})
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):  # left by an interruption
        study.tell(trial.number, state=TrialState.FAIL)

    def complete() -> list[FrozenTrial]:
        return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    done = len(complete())
    # A sampler's state is not stored: another seed for every continuation, so that it proposes something new.
    study.sampler = optuna.samplers.TPESampler(seed=int(resolved["seed_everything"]) + done)
    if done < trials:
        study.optimize(lambda trial: _loss(trial, args, folder, space, folds, trials), n_trials=trials - done)

    best = study.best_trial
    values = {s.key: yaml.safe_load(best.params[s.key]) if s.choices else best.params[s.key] for s in space}
    head = "# A second --config for dps fit and dps crossval: the best settings that dps tune found.\n"
    chosen = {"model": _nested(resolved["model"], values)}
    replace_file(folder / BEST, head + yaml.safe_dump(chosen, sort_keys=False))
    rows = [{"trial": t.number, "log_loss": t.value, **t.params} for t in complete()]
    write_json(folder / TRIALS, {"name": cli.model.name, "folds": folds, "best": best.number, "trials": rows})
    print(
        f"best: trial {best.number + 1}, log loss {best.value:.4f}; the configuration's own {rows[0]['log_loss']:.4f}"
    )
    print(folder / BEST)
    return folder


def _loss(trial: Trial, args: Sequence[str], folder: Path, space: Sequence[Setting], folds: int, trials: int) -> float:
    """Return the mean out-of-fold log loss of a trial, nats; it is trained on every fold."""
    values = {setting.key: setting.suggest(trial) for setting in space}
    settings = [f"--model.init_args.{key}={json.dumps(value)}" for key, value in values.items()]
    losses = []
    for fold in range(folds):
        where = folder / f"fold-{fold}"  # each trial's checkpoints replace the last one's
        shutil.rmtree(where, ignore_errors=True)
        with redirect_stdout(io.StringIO()):
            data = train_split(args, where, fold, folds, *settings, "--data.init_args.keep_test=true").datamodule
        table = data.table("test")
        p = predict_table(load_controller(where).estimator, table).clip(1e-6, 1 - 1e-6)
        losses.append(-np.log(np.where(table.labels(data.label), p, 1 - p)).reshape(-1))
    loss = float(np.concatenate(losses).mean())
    print(f"trial {trial.number + 1} of {trials}: log loss {loss:.4f}", flush=True)
    return loss


def _at(values: Mapping[str, Any], key: str) -> Any:
    """Return the value under a dotted key, None where there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _nested(configured: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys under ``init_args`` as nested dictionaries, each with the class path it had."""
    nested: dict[str, Any] = {"class_path": configured["class_path"], "init_args": {}}
    for key, value in values.items():
        first, *rest = key.split(".")
        if not rest:
            nested["init_args"][first] = value
            continue
        class_path = configured["init_args"][first]["class_path"]
        inner = nested["init_args"].setdefault(first, {"class_path": class_path, "init_args": {}})
        inner["init_args"][rest[-1]] = value
    return nested
