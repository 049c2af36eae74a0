"""DPS-MLP-H and DPS-MLP-HQ: a multilayer perceptron on scalars, hidden state and (HQ) question embedding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from dps.decide.features import FeatureSet, feature_names
from dps.decide.labels import VALUE, Label
from dps.decide.ladder import Ladder
from dps.errors import InputError
from lightning_modules.batches import Batch
from lightning_modules.controllers.base import ControllerModule
from lightning_modules.estimators import MLPEstimator, is_decided


class MLPH(ControllerModule):
    """DPS-MLP-H: an MLP on the scalars and the pooled hidden state (METHOD section 4)."""

    name: ClassVar[str] = "mlp-h"
    uses_embedding: ClassVar[bool] = False

    def __init__(
        self,
        hidden_size: int,
        embedding_size: int,
        feature_set: FeatureSet,
        rungs: list[str],
        label: Label,
        gate: list[int],
        optimizer: OptimizerCallable,
        projection_size: int,
        layer_sizes: list[int],
        dropout: float,
        input_dropout: float,
        residual_lr_scale: float,
        residual_weight_decay: float,
        **common: Any,
    ) -> None:
        """Build the network.

        Args:
            hidden_size: Size of the harvest's hidden states; set from the store.
            embedding_size: Size of the harvest's question embeddings; set from the store.
            feature_set: The scalars; set from the data module.
            rungs: The ladder; set from the data module.
            label: What is learnt; set from the data module.
            gate: Which rows are decided; set from the data module.
            optimizer: Makes the optimizer; its settings are those of the network on the scalars.
            projection_size: Width to which hidden state and question embedding are each projected.
            layer_sizes: Widths of the hidden layers, of the network on the scalars and of its correction.
            dropout: Probability of dropping a unit of a hidden layer, in [0, 1).
            input_dropout: Probability of dropping a component of hidden state or embedding, in [0, 1).
            residual_lr_scale: Learning rate of the correction by hidden state and question embedding, as a multiple of
                the optimizer's.
            residual_weight_decay: Weight decay of the correction, instead of the optimizer's.
            common: Arguments of every controller, see :class:`ControllerModule`.
        """
        if label == VALUE:
            raise InputError(
                f"The controller {self.name} does not learn the label value: choose another data.init_args.label, or "
                "the controller of configs/value.yaml."
            )
        for what, size in {"hidden states": hidden_size, "embeddings": embedding_size}.items():
            if size == 0 and (what == "hidden states" or self.uses_embedding):
                raise InputError(
                    f"The controller {self.name} needs {what}, but the store has none: harvest with features."
                )
        settings = {
            "num_scalars": len(feature_names(feature_set, Ladder.parse(rungs))),
            "hidden_size": hidden_size,
            "embedding_size": embedding_size if self.uses_embedding else 0,
            "projection_size": projection_size,
            "layer_sizes": list(layer_sizes),
            "dropout": dropout,
            "input_dropout": input_dropout,
            "gate": list(gate),
        }
        _check_settings(settings, residual_lr_scale, residual_weight_decay)
        sizes = {
            "hidden_size": hidden_size,
            "embedding_size": embedding_size,
            "feature_set": feature_set,
            "rungs": rungs,
            "label": label,
        }
        super().__init__(MLPEstimator(**settings), settings, **sizes, **common)
        self.save_hyperparameters(ignore=["optimizer"], logger=False)
        self._optimizer = optimizer
        self._residual_lr_scale = residual_lr_scale
        self._residual_weight_decay = residual_weight_decay

    def setup(self, stage: str) -> None:
        """Before training, also take the statistics of the training split, its share of the label included."""
        super().setup(stage)
        if stage == "fit":
            table, estimator = self.data.table("train"), self.estimator
            assert isinstance(estimator, MLPEstimator)
            labels = self._undecided(table)[1]
            estimator.fit_standardizers(
                table.scalars.reshape(table.num_rows, -1), table.hidden_chunks(), table.embedding
            )
            estimator.start_at(float(torch.from_numpy(labels).double().mean()))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch, of the scalars alone and of all together: binary cross-entropies, nats.

        The correction learns what the scalars' network leaves and changes nothing in it, so that stays as good as it is
        alone.
        """
        batch = batch.keep(~is_decided(batch.scalars, self.estimator.gate))
        with self._own_stream():
            terms = self.estimator.terms(batch.scalars, batch.hidden, batch.embedding)
        own, correction = (part[:, 0].contiguous() for part in terms.chunk(2, dim=1))
        losses = {
            f"{name}loss": functional.binary_cross_entropy_with_logits(logits, batch.label)
            for name, logits in (("scalars_", own), ("", own.detach() + correction))
        }
        for name, value in losses.items():
            self.log(f"train/{name}", value, on_step=False, on_epoch=True, batch_size=len(own))
        return losses["scalars_loss"] + losses["loss"]

    def configure_optimizers(self) -> Optimizer:
        """Return the injected optimizer over the parameters, with the correction's own rate and decay.

        Raises:
            InputError: If the optimizer has no weight decay, or refuses its settings.
        """
        estimator = self.estimator
        assert isinstance(estimator, MLPEstimator)
        groups = [{"params": [*estimator.layers.parameters()]}, {"params": estimator.residual_parameters()}]
        try:
            optimizer = self._optimizer(groups)
        except ValueError as error:
            raise InputError(f"The optimizer refuses its settings: {error}.") from error
        group = optimizer.param_groups[1]
        if "weight_decay" not in group:
            raise InputError(f"Expected an optimizer with weight decay, such as AdamW, got {type(optimizer).__name__}.")
        group["lr"] *= self._residual_lr_scale
        group["weight_decay"] = self._residual_weight_decay
        return optimizer

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


def _check_settings(settings: dict[str, Any], residual_lr_scale: float, residual_weight_decay: float) -> None:
    """Refuse settings that no network can have."""
    dropout, input_dropout = settings["dropout"], settings["input_dropout"]
    projection_size, layer_sizes = settings["projection_size"], settings["layer_sizes"]
    if not (0 <= dropout < 1 and 0 <= input_dropout < 1):
        raise InputError(f"Expected dropout and input_dropout in [0, 1), got {dropout:g} and {input_dropout:g}.")
    if not (residual_lr_scale > 0 and residual_weight_decay >= 0):
        raise InputError(
            "Expected residual_lr_scale above 0 and residual_weight_decay of at least 0, got "
            f"{residual_lr_scale:g} and {residual_weight_decay:g}."
        )
    if projection_size < 1 or min(layer_sizes, default=1) < 1:
        raise InputError(
            f"Expected projection_size and layer_sizes of at least 1, got {projection_size} and {layer_sizes}."
        )
