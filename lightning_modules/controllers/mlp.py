"""DPS-MLP-H and DPS-MLP-HQ: a multilayer perceptron on scalars, hidden state and (HQ) question embedding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from dps.errors import InputError
from dps.features import FEATURE_SETS, FeatureSet, Pooling
from lightning_modules.calibration import Method
from lightning_modules.controllers.base import ControllerModule, PositiveWeight
from lightning_modules.data import Batch
from lightning_modules.estimators import MLPEstimator


class MLPH(ControllerModule):
    """DPS-MLP-H: an MLP on the scalars and the pooled hidden state (METHOD section 4)."""

    name: ClassVar[str] = "mlp-h"
    uses_embedding: ClassVar[bool] = False

    def __init__(
        self,
        hidden_size: int,
        embedding_size: int,
        feature_set: FeatureSet,
        pooling: Pooling,
        spread: bool,
        optimizer: OptimizerCallable,
        projection_size: int,
        layer_sizes: list[int],
        dropout: float,
        input_dropout: float,
        positive_weight: PositiveWeight,
        calibration: Method,
        tolerance: float,
    ) -> None:
        """Build the network.

        Args:
            hidden_size: Size of the harvest's hidden states; set from the store.
            embedding_size: Size of the harvest's question embeddings; set from the store.
            feature_set: The scalars; set from the data module.
            pooling: How blocks become one vector; set from the data module.
            spread: Whether the hidden state has the spread over trajectories, too; set from the data module.
            optimizer: Makes the optimizer of the network's parameters.
            projection_size: Width to which hidden state and question embedding are each projected.
            layer_sizes: Widths of the hidden layers.
            dropout: Probability of dropping a unit of a hidden layer, in [0, 1).
            input_dropout: Probability of dropping a component of hidden state or embedding, in [0, 1).
            positive_weight: Weight in the loss of a row where k is enough, or `balanced` for the weight that makes both
                classes count the same; probabilities are corrected for it.
            calibration: Of the probabilities, on the calibration split: `none`, `temperature` (one number) or
                `isotonic` (a step function).
            tolerance: Accuracy that the threshold may give up against k = maximum where it is chosen.

        Raises:
            InputError: If the settings or the harvest cannot be used.
        """
        for what, size in {"hidden states": hidden_size, "embeddings": embedding_size}.items():
            if size == 0 and (what == "hidden states" or self.uses_embedding):
                raise InputError(
                    f"The controller {self.name} needs {what}, but the store has none: harvest with features."
                )
        if not (0 <= dropout < 1 and 0 <= input_dropout < 1):
            raise InputError(f"Expected dropout and input_dropout in [0, 1), got {dropout:g} and {input_dropout:g}.")
        if projection_size < 1 or min(layer_sizes, default=1) < 1:
            raise InputError(
                f"Expected projection_size and layer_sizes of at least 1, got {projection_size} and {layer_sizes}."
            )
        settings = {
            "num_scalars": len(FEATURE_SETS[feature_set]),
            "hidden_size": hidden_size,
            "embedding_size": embedding_size if self.uses_embedding else 0,
            "projection_size": projection_size,
            "layer_sizes": list(layer_sizes),
            "dropout": dropout,
            "input_dropout": input_dropout,
            "spread": spread,
            "attention": pooling == "attention",
        }
        super().__init__(
            MLPEstimator(**settings),
            settings,
            hidden_size=hidden_size,
            embedding_size=embedding_size,
            feature_set=feature_set,
            positive_weight=positive_weight,
            calibration=calibration,
            tolerance=tolerance,
        )
        self.save_hyperparameters(ignore=["optimizer"], logger=False)
        self._optimizer = optimizer
        self._weight = 1.0

    def setup(self, stage: str) -> None:
        """Before training, also take the statistics of the training split, its share of the label included."""
        super().setup(stage)
        if stage == "fit":
            table = self.data.table("train")
            rows = table.num_rows
            labels = torch.from_numpy(table.labels(self.data.label).reshape(-1))
            self._weight = self._positive_weight_of(labels)
            estimator = self.estimator
            assert isinstance(estimator, MLPEstimator)
            estimator.fit_standardizers(table.scalars.reshape(rows, -1), table.hidden_chunks(), table.embedding)
            estimator.start_at(float(labels.double().mean()))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch: weighted binary cross-entropy, nats.

        With weight w of the positive rows it is least where the logit is ``log(w p / (1 - p))``. So ``log w`` is added
        here, and the network's own logit stays that of p.
        """
        with self._own_stream():
            logits = self.estimator(batch.scalars, batch.hidden, batch.embedding)
        weight = torch.tensor(self._weight, device=logits.device)
        loss = functional.binary_cross_entropy_with_logits(logits + weight.log(), batch.label, pos_weight=weight)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(logits))
        return loss

    def configure_optimizers(self) -> Optimizer:
        """Return the injected optimizer over the network's parameters."""
        return self._optimizer(self.estimator.parameters())

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        """Draw dropout from a stream that depends on the process's seed and the step only.

        So a resumed training drops the units that it would have dropped, and nobody else's stream moves.
        """
        seed = (torch.initial_seed() + 0x9E3779B97F4A7C15 * (self.global_step + 1)) % 2**63
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield


class MLPHQ(MLPH):
    """DPS-MLP-HQ: an MLP on the scalars, the pooled hidden state and the question embedding (METHOD section 4)."""

    name: ClassVar[str] = "mlp-hq"
    uses_embedding: ClassVar[bool] = True
