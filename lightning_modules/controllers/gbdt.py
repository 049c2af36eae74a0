"""DPS-GBDT: gradient-boosted trees on the scalars, grown by LightGBM inside the Trainer's loop."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

from dps.decide.features import FeatureSet, feature_names
from dps.decide.labels import VALUE, Label
from dps.decide.ladder import Ladder
from dps.decide.splits import stable_number
from dps.errors import InputError
from lightning_modules.batches import Batch
from lightning_modules.controllers.base import ControllerModule
from lightning_modules.estimators import TreeEstimator, is_decided
from lightning_modules.trees import SQUARES


class GBDT(ControllerModule):
    """Gradient-boosted trees on the scalars (METHOD section 4); an epoch adds ``rounds_per_epoch`` rounds.

    For the label ``value`` there are two boosters, of gain and of cost, each grown by its squared error.

    Every epoch continues from the text of the trees so far, which is what a checkpoint holds. So a training that is
    resumed grows the same trees as one that ran through.
    """

    name: ClassVar[str] = "gbdt"

    def __init__(
        self,
        rounds_per_epoch: int,
        learning_rate: float,
        num_leaves: int,
        min_rows_per_leaf: int,
        l2: float,
        feature_fraction: float,
        bagging_fraction: float,
        num_threads: int,
        seed: int | None,
        feature_set: FeatureSet,
        rungs: list[str],
        label: Label,
        gate: list[int],
        cost_learning_rate: float = 0.1,
        **common: Any,
    ) -> None:
        """Start without trees.

        Args:
            rounds_per_epoch: Boosting rounds that an epoch adds.
            learning_rate: Shrinkage of each tree.
            num_leaves: Most leaves of a tree.
            min_rows_per_leaf: Fewest rows in a leaf; a question has orders x checkpoints rows.
            l2: L2 regularization of the leaves' values.
            feature_fraction: Share of the features that each tree sees, in (0, 1].
            bagging_fraction: Share of the rows that each tree sees, in (0, 1].
            num_threads: Threads of LightGBM; small tables are fastest on one.
            seed: Of feature and row sampling; null follows seed_everything.
            feature_set: The scalars; set from the data module.
            rungs: The ladder; set from the data module.
            label: What is learnt; set from the data module.
            gate: Which rows are decided; set from the data module.
            cost_learning_rate: Shrinkage of the trees of the cost, for the label `value`: a cost is told with fewer
                rounds than a gain.
            common: Arguments of every controller, see :class:`ControllerModule`.
        """
        if rounds_per_epoch < 1 or num_leaves < 2 or min_rows_per_leaf < 1 or num_threads < 1:
            raise InputError(
                "Expected rounds_per_epoch, min_rows_per_leaf and num_threads of at least 1 and num_leaves of at least "
                f"2, got {rounds_per_epoch}, {min_rows_per_leaf}, {num_threads} and {num_leaves}."
            )
        if not (
            0 < min(learning_rate, cost_learning_rate) <= max(learning_rate, cost_learning_rate) < math.inf
            and 0 <= l2 < math.inf
            and 0 < feature_fraction <= 1
            and 0 < bagging_fraction <= 1
        ):
            raise InputError(
                "Expected learning_rate and cost_learning_rate above 0, l2 of at least 0 and fractions in (0, 1], got "
                f"{learning_rate:g} and {cost_learning_rate:g}, l2 {l2:g}, feature_fraction {feature_fraction:g} and "
                f"bagging_fraction {bagging_fraction:g}."
            )
        settings = {"value": label == VALUE, "gate": list(gate)}
        given = {"feature_set": feature_set, "rungs": rungs, "label": label}
        super().__init__(TreeEstimator(**settings), settings, **given, **common)
        self.save_hyperparameters(logger=False)
        self.automatic_optimization = False
        # The Trainer counts optimizer steps, and ModelCheckpoint saves nothing while their number stands still.
        self._counted = nn.Parameter(torch.zeros(()), requires_grad=False)

    def setup(self, stage: str) -> None:
        """Refuse batches smaller than the training split: trees are grown on all of it."""
        super().setup(stage)
        if stage == "fit" and self.data.batch_size is not None:
            raise InputError(
                "The controller gbdt grows trees on the whole training split, but data.batch_size is "
                f"{self.data.batch_size}: set it to null."
            )

    def _lightgbm_parameters(self) -> dict[str, Any]:
        """Return what LightGBM is called with; the seed depends on the rounds so far, not on how training got there."""
        settings = self.hparams
        seed = torch.initial_seed() if settings.seed is None else settings.seed
        return {
            "objective": "binary",
            "learning_rate": settings.learning_rate,
            "num_leaves": settings.num_leaves,
            "min_data_in_leaf": settings.min_rows_per_leaf,
            "lambda_l2": settings.l2,
            "feature_fraction": settings.feature_fraction,
            "bagging_fraction": settings.bagging_fraction,
            "bagging_freq": 1 if settings.bagging_fraction < 1 else 0,
            "num_threads": settings.num_threads,
            "deterministic": True,
            "force_col_wise": True,
            "verbosity": -1,
            "seed": stable_number("trees", seed, self.estimator.num_rounds) % 2**31,
        }

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Add ``rounds_per_epoch`` rounds to each booster."""
        estimator = self.estimator
        assert isinstance(estimator, TreeEstimator)
        batch = batch.keep(~is_decided(batch.scalars, estimator.gate))
        scalars, parameters = batch.scalars.cpu().numpy(), self._lightgbm_parameters()
        if estimator.value:
            rates = (self.hparams.learning_rate, self.hparams.cost_learning_rate)
            targets = zip(estimator.texts, batch.label.cpu().numpy().T, rates, strict=True)
            squares = {**parameters, "objective": SQUARES}
            estimator.texts = [
                self._grown(text, scalars, target, {**squares, "learning_rate": rate}) for text, target, rate in targets
            ]
            loss = functional.mse_loss(estimator.terms(batch.scalars, batch.hidden, batch.embedding), batch.label)
        else:
            estimator.texts = [self._grown(estimator.texts[0], scalars, batch.label.cpu().numpy(), parameters)]
            logits = estimator(batch.scalars, batch.hidden, batch.embedding)
            loss = functional.binary_cross_entropy_with_logits(logits, batch.label.double())
        told = {"on_step": False, "on_epoch": True, "batch_size": len(scalars)}
        self.log("train/loss", loss, **told)
        self.log("train/rounds", float(estimator.num_rounds), **told)
        self.optimizers().step()

    def _grown(self, text: str, scalars: np.ndarray, target: np.ndarray, parameters: dict[str, Any]) -> str:
        """Return trees with ``rounds_per_epoch`` rounds more, grown on rows (N, F) and targets (N,)."""
        import lightgbm

        names = list(feature_names(self.hparams.feature_set, Ladder.parse(self.hparams.rungs)))
        booster = lightgbm.train(
            parameters,
            lightgbm.Dataset(scalars, target, feature_name=names),
            num_boost_round=self.hparams.rounds_per_epoch,
            init_model=lightgbm.Booster(model_str=text) if text else None,
        )
        return booster.model_to_string(num_iteration=-1)

    def configure_optimizers(self) -> Optimizer:
        """Return an optimizer that changes nothing and makes the Trainer count epochs as steps."""
        return SGD([self._counted], lr=0.0)
