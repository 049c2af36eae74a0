"""LightningCLI for controllers: where a run's files lie, which checkpoint is tested, what is printed.

A run folder (``trainer.default_root_dir``) holds ``config.yaml`` (of the training that its checkpoints are from),
``checkpoints/best.ckpt`` and ``last.ckpt``, ``metrics.csv``, ``settings.json`` (whose results these are) and, once the
training has ended, ``trained.json``; and what later commands add: ``test/metrics.csv``, ``predictions.csv``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_only

from dps.arguments import check_seed, full_names
from dps.decide.files import controller_file
from dps.decide.policy import check_arms
from dps.decide.thresholds import NEVER_STOP
from dps.errors import InputError
from dps.estimates import fewest_questions
from dps.folders import claim, place_of, store_identity
from dps.threads import num_threads
from feature_store import Store
from feature_store.lock import held
from lightning_modules.controllers.base import ControllerModule
from lightning_modules.data import FeatureDataModule
from lightning_modules.load import Controller, checkpoint_path, load_controller, read_checkpoint
from lightning_modules.metrics import nothing_learnt, show
from lightning_modules.refusals import in_a_sentence
from lightning_modules.run_files import PredictionWriter, SaveConfigBesideCheckpoints, WholeCheckpoints, write_json

ENDED = "trained.json"
"""What a run folder has once its training has ended: after how many epochs, of how many at most."""

_HARMLESS = ("default_root_dir", "max_epochs", "enable_progress_bar", "enable_model_summary", "log_every_n_steps")
"""Options of the Trainer that leave a training the same; of ``max_epochs`` the first ones."""

_FROM_DATA = ("hidden_size", "embedding_size", "prompt_size", "feature_set", "rungs", "gate", "label")
"""Arguments of a controller that the data module decides: sizes from the store, and its feature set."""


def run(args: Sequence[str], *, run: bool = True) -> ControllerCLI:
    """Run LightningCLI on a subcommand and its options, and return it.

    Without ``run`` there is no subcommand among the arguments: model, data and Trainer are made only, as the options of
    ``fit`` say.

    Raises:
        InputError: If options, configuration, store or checkpoint cannot be used.
    """
    with quiet(), in_a_sentence(args[0] if run else "fit"):
        return ControllerCLI(list(args), run=run)


class ControllerCLI(LightningCLI):
    """Trains and tests controllers."""

    def __init__(self, args: list[str], *, run: bool = True) -> None:
        """Parse the options and run the subcommand; arguments as those of :func:`run`."""
        self._trained: Controller | None = None
        self._epochs = 0
        self._runs = run
        self._command = args[0] if run else None
        super().__init__(
            ControllerModule,
            FeatureDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfigBesideCheckpoints,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={"num_sanity_val_steps": 0, "devices": 1},
            seed_everything_default=0,
            parser_kwargs={"prog": "dps", "exit_on_error": False, "allow_abbrev": False},
            args=args,
            run=run,
        )

    def subcommands(self) -> dict[str, set[str]]:
        """Return the one that runs: each has a parser of its own, which takes long to make."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name == self._command}

    @property
    def run_folder(self) -> Path:
        """Where everything is written."""
        return Path(self.trainer.default_root_dir)

    @property
    def best_checkpoint(self) -> Path:
        """The best checkpoint of the run folder."""
        return checkpoint_path(self.run_folder)

    def resolved(self) -> dict[str, Any]:
        """Return the whole configuration as plain values."""
        options = self.config[self.subcommand] if self._runs else self.config
        parser = self._parser(self.subcommand) if self._runs else self.parser
        return yaml.safe_load(parser.dump(options, skip_none=False))

    def settings(self, folder: Path) -> dict[str, Any]:
        """Return what decides a training, as plain values; paths as seen from the folder of its results."""
        config = self.resolved()
        config = {name: config[name] for name in ("seed_everything", "model", "data", "trainer", "checkpoint")}
        for name in _HARMLESS:
            config["trainer"].pop(name, None)
        config["checkpoint"].pop("dirpath", None)
        for name in ("store", "cache_dir"):  # what it holds counts, not how its path is written
            config["data"]["init_args"].pop(name, None)
        store = Store.open(self.datamodule.store)
        content = {"questions": len(store), "content": store.checksum()[:16]}
        return {**config, "store": {**store_identity(self.datamodule.store, folder), **content}}

    # -- options ---------------------------------------------------------------------------------------------------

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the best checkpoint's criterion, and link what must not be configured twice."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        # One name, so that a second training replaces the first one's checkpoint instead of standing beside it.
        parser.set_defaults({"checkpoint.filename": "best", "checkpoint.enable_version_counter": False})
        parser.link_arguments("trainer.default_root_dir", "checkpoint.dirpath", compute_fn=_checkpoints)
        for name in _FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a test without ``--ckpt_path`` is of the run folder's best checkpoint."""
        known = (self._parser(args[0]) if self._runs else parser)._option_string_actions
        args = [*args[: self._runs], *full_names(args[self._runs :], known)]
        if self._command in ("validate", "test"):
            self._parser(self._command).set_defaults({"verbose": False})  # the results are printed as our own table
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended")
            super().parse_arguments(parser, args)
        command = self.config["subcommand"] if self._runs else None
        options = self.config[command] if self._runs else self.config
        for name in ("seed_everything", "data.init_args.seed", "model.init_args.seed"):
            check_seed(options.get(name), name)
        for name in _FROM_DATA:  # the link would win, silently
            if options.get(f"model.init_args.{name}") is not None:
                raise InputError(
                    f"model.init_args.{name} is set from the data module and cannot be configured: leave it out."
                )
        if not self._runs:
            return
        path = options.get("ckpt_path")
        if command == "fit" and path == "last":
            last = Path(_checkpoints(options.trainer.default_root_dir)) / "last.ckpt"
            path = str(last) if last.is_file() else None
        if command == "fit" and path is None:
            return
        trained = load_controller(path or options.trainer.default_root_dir)
        if "epoch" not in read_checkpoint(trained.path):
            raise InputError(
                f"Expected a checkpoint of dps fit, but {trained.path} is of dps ship, which leaves out what the "
                "Trainer needs: give the run folder that it was made of, or measure it with dps replay."
            )
        _check_network(options.model, trained, command)
        options.ckpt_path = str(trained.path)
        self._trained = trained if command != "fit" else None

    def _parse_ckpt_path(self) -> None:
        """Take no configuration from a checkpoint, which would name classes to import: checkpoints are handed on."""

    def after_instantiate_classes(self) -> None:
        """Refuse to measure a trained controller on data that do not fit it, or over another's; use its clock."""
        torch.set_num_threads(num_threads(sum(weight.numel() for weight in self.model.parameters())))
        if self._trained is None:
            return
        trained = self._trained.description["data"]
        for name, value in self.datamodule.settings().items():
            if trained.get(name) != value:  # another division into splits would test on training questions
                raise InputError(
                    f"The controller {self._trained.path} was trained with data.{name} {trained.get(name)}, but this "
                    f"configuration has {value}: give the configuration that it was trained with."
                )
        self._trained.check_model(
            {**self.datamodule.manifest.model, "hidden_size": self.datamodule.hidden_size},
            self.datamodule.embedding_size,
        )
        check_arms(self._trained, self.datamodule.manifest.arms)
        self.datamodule.calibration = self._trained.calibration
        # What the same command measured of another controller or store is not written over.
        folder, data = self.run_folder / str(self.subcommand), self.datamodule
        settings = {"checkpoint": place_of(self._trained.path, folder), **data.settings()}
        settings["store"] = store_identity(data.store, folder)
        results = ("../predictions.csv",) if self.subcommand == "predict" else ("metrics.csv",)
        claim(folder, f"dps {self.subcommand}", settings, results, "trainer.default_root_dir beside ckpt_path")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Make the Trainer, with the run folder's logger and callbacks."""
        config = self._get(self.config_init, "trainer")
        folder = Path(config["default_root_dir"])
        if config["logger"] in (None, True):
            version = "" if self.subcommand == "fit" else self.subcommand  # a training's is the run folder's own
            logs = self.subcommand not in ("predict", None)
            kwargs["logger"] = logs and CSVLogger(folder, name="", version=version, flush_logs_every_n_steps=1)
        if not config["plugins"]:
            # One process trains, whatever a cluster's variables say of the job that it runs in.
            kwargs["plugins"] = [LightningEnvironment(), *([WholeCheckpoints()] if self.subcommand == "fit" else [])]
            if "LOCAL_RANK" not in os.environ:
                rank_zero_only.rank = 0
        if config["enable_progress_bar"] is None:
            kwargs["enable_progress_bar"] = sys.stderr.isatty() and sys.stdout.isatty()
        configured = config["callbacks"] or []
        callbacks = list(configured) if isinstance(configured, list) else [configured]
        if self.subcommand == "fit":
            last = ModelCheckpoint(folder / "checkpoints", filename="last", enable_version_counter=False)
            callbacks.append(last)
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter(folder / "predictions.csv"))
        try:
            trainer = super().instantiate_trainer(**kwargs, callbacks=callbacks)
        except (ValueError, TypeError) as error:
            raise InputError(f"The Trainer refuses its configuration: {' '.join(str(error).split())}") from error
        if trainer.world_size > 1:
            raise InputError(
                f"A controller is trained by one process on one device, but trainer.devices and trainer.num_nodes "
                f"make {trainer.world_size:,}: leave both out."
            )
        return trainer

    def fit(self, **kwargs: Any) -> None:
        """Train; go on after the last whole epoch where the same training was interrupted, say so where it has ended.

        Raises:
            InputError: If the run folder holds the results of other settings.
            StoreError: If another run writes to it just now.
        """
        if self.trainer.fast_dev_run:  # a trial of a batch or two leaves no checkpoint
            self.trainer.fit(**kwargs)
            return
        folder = self.run_folder
        last = folder / "checkpoints" / "last.ckpt"
        given = kwargs.pop("ckpt_path", None)
        own = given is None or given == "last" or Path(given).resolve() == last.resolve()
        start = {"ckpt_path": None if own else place_of(given, folder)}
        with held(folder):
            settings = {**self.settings(folder), **start}
            same = claim(folder, "dps fit", settings, ("checkpoints/*.ckpt",), "trainer.default_root_dir")
            if same and (ended := self._ended(folder)) is not None:
                self._epochs = ended
                print(f"{folder}: trained already, nothing was done")
                return
            resumed = str(last) if same and last.is_file() else None if own else given
            _keep_metrics(folder, again=resumed is not None)
            if resumed is not None:
                done = read_checkpoint(Path(resumed))["epoch"] + 1
                print(f"{resumed}: the training goes on after epoch {done}", flush=True)
            (folder / ENDED).unlink(missing_ok=True)
            self.trainer.fit(**kwargs, ckpt_path=resumed)
            self._epochs = self.trainer.current_epoch
            if last.is_file():
                write_json(folder / ENDED, {"epochs": self._epochs, "max_epochs": self.trainer.max_epochs})

    def _ended(self, folder: Path) -> int | None:
        """Return the epochs of a training that has ended; None where it has not, or there are to be more epochs."""
        try:
            ended = json.loads((folder / ENDED).read_text(encoding="utf-8"))
            epochs, most = int(ended["epochs"]), int(ended["max_epochs"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        more = self.trainer.max_epochs == -1 or (self.trainer.max_epochs or 0) > epochs
        return None if epochs == most and more else epochs

    # -- what is printed -------------------------------------------------------------------------------------------

    def after_fit(self) -> None:
        """Say what the best checkpoint reached."""
        if self.trainer.fast_dev_run:  # a trial of a batch or two leaves no checkpoint
            return
        if not controller_file(self.run_folder).is_file():
            raise InputError(
                f"The training ended after {self._epochs} epochs without a checkpoint: set "
                "trainer.max_epochs higher, and checkpoint.monitor to one of the metrics in metrics.csv."
            )
        best = load_controller(self.best_checkpoint)
        reached = best.description["validation"]
        ranking = f"AUROC {reached['auroc']:.3f}, " if "auroc" in reached else ""
        last = self.datamodule.ks[-1]
        print(
            f"{best.name}: epoch {reached['epoch'] + 1} of {self._epochs}; on validation {ranking}loss "
            f"{reached['loss']:.3f}; threshold {best.threshold:.3f} gives accuracy {reached['accuracy']:.1%} (k = "
            f"{last}: {reached['accuracy_maximum']:.1%}) at {reached['tokens_share']:.2f} of its tokens\n"
            f"{_excluded(reached, best.threshold, self.model.margin, last)}"
        )
        warning = nothing_learnt(reached["skill"], reached["num_questions"])
        if warning is not None:
            print(f"Warning: {warning}", file=sys.stderr)
        if reached["epoch"] == 0 and self.trainer.current_epoch > 1:
            print(
                "Warning: its first epoch is the best: what it learnt later did not hold on validation questions.",
                file=sys.stderr,
            )
        print(best.path)

    def after_validate(self) -> None:
        """Print the validation metrics."""
        for name, value in sorted(self.trainer.callback_metrics.items()):
            print(f"{name:<24} {float(value):.4f}")

    def after_test(self) -> None:
        """Print the test as a table."""
        if self.model.test_result is not None:
            show(self.model.test_result, self.datamodule.store)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what Lightning says of devices, data loader workers, seeds and tips."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*Checkpoint directory .* exists and is not empty.*",
            ".*Experiment logs directory .* exists and is not empty.*",
            ".*The number of training batches .* is smaller than the logging interval.*",
            ".*GPU available but not used.*",
            ".*treespec, LeafSpec.*",
            ".*callbacks used to create the checkpoint need to be provided.*",
            ".*Couldn't infer the batch indices.*",
        ):
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _excluded(validation: Mapping[str, Any], threshold: float, margin: float, maximum: int) -> str:
    """Say what the questions that chose a threshold show of the accuracy that it gives up."""
    count, least = validation["num_threshold_questions"], fewest_questions(margin)
    points = f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"
    shown = f"{100 * validation['margin']:.1f} points"
    if threshold == NEVER_STOP:
        text = f"no threshold excludes a loss of {shown} on these {count:,} questions: all get k = {maximum}"
    else:
        text = f"chosen on {count:,} questions, which exclude a loss of {shown} (97.5 % sure)"
    if validation["margin"] > margin:
        text += f"; n is too small for {points}" + (f", which takes {least:,} questions" if least else "")
        text += ": dps crossval and dps ship choose on all questions"
    return text


def _checkpoints(run_folder: Any) -> str:
    """Return where a run's checkpoints lie."""
    if run_folder is None or not str(run_folder).strip():
        raise InputError("Expected a run folder: set trainer.default_root_dir, for example to runs/controllers/mlp-hq.")
    return str(Path(run_folder) / "checkpoints")


def _check_network(model: Any, trained: Controller, command: str) -> None:
    """Take over the settings of the network that was trained; refuse to train on with another kind or shape."""
    module, _, class_name = model["class_path"].rpartition(".")
    configured = getattr(import_module(module), class_name).name
    if trained.name != configured:
        raise InputError(
            f"Expected a checkpoint of {configured}, which this configuration is for, but {trained.path} is of "
            f"{trained.name}: give the configuration that it was trained with, or another checkpoint."
        )
    given = model["init_args"]
    for name, value in trained.description["settings"].items():
        if name not in given or name in _FROM_DATA:
            continue
        if command != "fit":
            given[name] = value
        elif name in ("projection_size", "layer_sizes") and given[name] != value:
            raise InputError(
                f"The controller {trained.path} was trained with model.{name} {value}, but this configuration has "
                f"{given[name]}: give the configuration that it was trained with, or begin anew without --ckpt_path."
            )


def _keep_metrics(folder: Path, *, again: bool) -> None:
    """Put the metrics of earlier epochs aside where a training goes on, because the logger begins its file anew."""
    metrics, earlier = folder / "metrics.csv", sorted(folder.glob("metrics-*.csv"))
    if not again:
        for path in earlier:
            path.unlink()
    elif metrics.is_file():
        metrics.rename(folder / f"metrics-{len(earlier) + 1}.csv")
