"""What all controllers share when they are trained, validated and tested.

Gets batches from ``data``; after every epoch it measures the validation split, replays dynamic policies over it and
chooses the threshold, so that every checkpoint holds a controller that is ready for live runs (``load``).
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision, BinaryCalibrationError

from dps.features import SCALAR_FEATURES
from lightning_modules.data import Batch, FeatureDataModule
from lightning_modules.estimators import Estimator
from lightning_modules.load import DESCRIPTION, FORMAT
from lightning_modules.replay import choose_threshold, replay, stops
from lightning_modules.results import TestResult, measure
from lightning_modules.table import Table

_log = logging.getLogger("lightning_modules")


class ControllerModule(L.LightningModule):
    """Trains an estimator of the probability that k is enough.

    A subclass sets ``name``, gives its estimator to ``__init__`` and writes ``training_step`` and
    ``configure_optimizers``. It needs a Trainer with a :class:`~lightning_modules.data.FeatureDataModule`.
    """

    name: ClassVar[str]
    """``gbdt``, ``mlp-h`` or ``mlp-hq``."""

    def __init__(
        self, estimator: Estimator, settings: dict[str, Any], hidden_size: int, embedding_size: int, tolerance: float
    ) -> None:
        """Keep what all controllers have.

        Args:
            estimator: What is trained.
            settings: Its arguments as plain values, from which a live run builds it again.
            hidden_size: D of the harvest.
            embedding_size: E of the harvest.
            tolerance: Accuracy that the threshold may give up against k = maximum on the validation split.
        """
        super().__init__()
        self.estimator = estimator
        self.tolerance = tolerance
        self.test_result: TestResult | None = None
        """What the last test measured."""
        self._description: dict[str, Any] = {
            "format": FORMAT,
            "name": self.name,
            "settings": settings,
            "feature_names": list(SCALAR_FEATURES),
            "hidden_size": hidden_size,
            "embedding_size": embedding_size,
        }
        self._logits: list[Tensor] = []
        self._said: set[str] = set()
        self._ranking = MetricCollection({"auroc": BinaryAUROC(), "average_precision": BinaryAveragePrecision()})
        self._probability = MetricCollection(
            {"brier": MeanSquaredError(), "calibration_error": BinaryCalibrationError(n_bins=10)}
        )

    @property
    def parts(self) -> frozenset[str]:
        """The parts of the features that it uses; the data module makes no others."""
        return self.estimator.parts

    @property
    def data(self) -> FeatureDataModule:
        """The data module of the run."""
        return self.trainer.datamodule

    def predict_enough(self, scalars: Tensor, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Return the probability that k is enough: shape (N,), float64.

        Args:
            scalars: Raw features, shape (N, 6).
            hidden: Pooled hidden states, shape (N, D).
            embedding: Question embeddings, shape (N, E).
        """
        return self.estimator.predict_enough(scalars, hidden, embedding)

    # -- what the Trainer calls ------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Before training, note what the checkpoint has to know of the data."""
        if stage == TrainerFn.FITTING:
            self._description["data"] = self.data.description()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the logits of a batch until the split is complete."""
        self._keep(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the logits of a batch until the split is complete."""
        self._keep(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return p_enough of a batch, shape (N,)."""
        return self.predict_enough(batch.scalars, batch.hidden, batch.embedding)

    def on_validation_epoch_end(self) -> None:
        """Measure the validation split; in training also choose the threshold."""
        logits, table = self._kept("val")
        if table is None or self.trainer.sanity_checking:
            return
        labels = table.labels(self.data.label)
        target = torch.from_numpy(labels.reshape(-1).astype(np.float64))
        values = {"loss": float(functional.binary_cross_entropy_with_logits(logits, target))}
        values |= self._measure(logits, target, "validation")
        p_inc = 1.0 - logits.sigmoid().numpy().reshape(labels.shape)
        if self.trainer.state.fn == TrainerFn.FITTING:
            threshold = choose_threshold(p_inc, table.correct, table.tokens, self.tolerance)
            self.estimator.threshold.fill_(threshold)
        threshold = float(self.estimator.threshold)
        chosen = replay(stops(p_inc, threshold), table.correct, table.tokens, table.ks)
        values |= {
            "threshold": threshold,
            "accuracy": chosen.accuracy,
            "accuracy_maximum": float(table.correct[..., -1].mean()),
            "tokens_share": chosen.tokens / float(table.tokens[..., -1].mean()),
            "mean_k": chosen.mean_k,
        }
        self.log_dict({f"val/{name}": value for name, value in values.items()})
        self._description["validation"] = {"epoch": self.current_epoch, **values}

    def on_test_epoch_end(self) -> None:
        """Measure the test split beside question length alone, and replay the policies over it."""
        logits, table = self._kept("test")
        if table is None:
            return
        labels = table.labels(self.data.label)
        target = torch.from_numpy(labels.reshape(-1).astype(np.float64))
        self.test_result = measure(
            self.name,
            logits.sigmoid().numpy().reshape(labels.shape),
            float(self.estimator.threshold),
            table=table,
            train=self.data.table("train"),
            label=self.data.label,
            metrics=self._measure(logits, target, "test"),
        )
        self.log_dict({f"test/{name}": value for name, value in self.test_result.metrics.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a live run has to know, as plain values."""
        checkpoint[DESCRIPTION] = dict(self._description)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what the checkpoint's training noted; a training that goes on notes its own data."""
        self._description = {**checkpoint[DESCRIPTION], **self._description}

    # -- parts of the above ----------------------------------------------------------------------------------------

    def _keep(self, batch: Batch) -> None:
        with torch.no_grad():
            self._logits.append(self.estimator(batch.scalars, batch.hidden, batch.embedding).double().cpu())

    def _kept(self, split: str) -> tuple[Tensor, Table | None]:
        """Return the logits that were kept and the questions they are of, complete ones only; None if there is none."""
        logits = torch.cat(self._logits) if self._logits else torch.zeros(0, dtype=torch.float64)
        self._logits.clear()
        table = self.data.table(split)
        # There are fewer rows than the table has where the Trainer limits the batches, as a trial run does.
        rows_per_question = table.num_rows // table.num_questions
        complete = len(logits) // rows_per_question
        if complete == 0:
            return logits, None
        return logits[: complete * rows_per_question], table.select(np.arange(complete))

    def _measure(self, logits: Tensor, target: Tensor, split: str) -> dict[str, float]:
        """Return the metrics of a split; where it has one class, those that mean something there, and say so once."""
        p_enough, labels = logits.sigmoid().to(self.device), target.long().to(self.device)
        collections = [self._probability]
        if 0 < target.sum() < len(target):
            collections.append(self._ranking)
        elif split not in self._said:
            self._said.add(split)
            _log.warning(
                "The %s split has one class only: all %d rows are %s%s. AUROC and average precision are left out.",
                split,
                len(target),
                "" if target[0] else "not ",
                self.data.label,
            )
        values: dict[str, float] = {}
        for collection in collections:
            collection.reset()
            values |= {name: float(value) for name, value in collection(p_enough, labels).items()}
        return values
