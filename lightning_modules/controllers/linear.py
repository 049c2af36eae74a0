"""Linear controllers: ridge regressions on the scalars, solved at once by scikit-learn.

With thousands of questions whose gains are -1, 0 or 1 nothing larger holds what it learns on other questions: boosted
trees of the same scalars rank worse.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.optim import SGD, Optimizer

from dps.decide.features import FeatureSet, feature_names
from dps.decide.labels import VALUE, Label
from dps.decide.ladder import Ladder
from dps.errors import InputError
from lightning_modules.batches import Batch
from lightning_modules.controllers.base import ControllerModule
from lightning_modules.estimators import LinearEstimator


class Linear(ControllerModule):
    """A linear model on the scalars: of gain and cost for the label ``value``, else of the label's logit.

    One epoch solves it. The penalty is on standardized scalars.
    """

    name: ClassVar[str] = "linear"

    def __init__(
        self,
        feature_set: FeatureSet,
        rungs: list[str],
        label: Label,
        gate: list[int],
        penalty: float,
        cost_penalty: float,
        **common: Any,
    ) -> None:
        """Start at 0.

        Args:
            feature_set: The scalars; set from the data module.
            rungs: The ladder; set from the data module.
            label: What is learnt; set from the data module.
            gate: Which rows are decided; set from the data module.
            penalty: Ridge of the logit or the gain, in questions: as strong as if so many of them had said nothing.
            cost_penalty: Ridge of the cost, for the label `value`.
            common: Arguments of every controller, see :class:`ControllerModule`.
        """
        if not (0 < penalty < math.inf and 0 < cost_penalty < math.inf):
            raise InputError(f"Expected penalty and cost_penalty above 0, got {penalty:g} and {cost_penalty:g}.")
        names = feature_names(feature_set, Ladder.parse(rungs))
        settings = {"num_scalars": len(names), "value": label == VALUE, "gate": list(gate)}
        given = {"feature_set": feature_set, "rungs": rungs, "label": label}
        super().__init__(LinearEstimator(**settings), settings, **given, **common)
        self.save_hyperparameters(logger=False)
        self.automatic_optimization = False
        self._counted = nn.Parameter(torch.zeros(()), requires_grad=False)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Solve the regressions on the whole training split, whatever the batch."""
        from sklearn.linear_model import LogisticRegression, Ridge

        estimator, table = self.estimator, self.data.table("train")
        assert isinstance(estimator, LinearEstimator)
        scalars, labels = self._undecided(table)
        estimator.standardizer.fit([scalars])
        values = estimator.standard(torch.from_numpy(scalars)).numpy()
        per_question = len(values) / table.num_questions
        penalty, cost_penalty = (per_question * self.hparams[name] for name in ("penalty", "cost_penalty"))
        if estimator.value:
            targets = [labels[:, 0], labels[:, 1] / 1000]
            fits = [Ridge(a).fit(values, y) for a, y in zip((penalty, cost_penalty), targets, strict=True)]
            weights, biases = [fit.coef_ for fit in fits], [fit.intercept_ for fit in fits]
        elif labels.min() == labels.max():
            weights, biases = [np.zeros(values.shape[1])], [math.inf]
        else:
            fit = LogisticRegression(C=1 / penalty, max_iter=1000).fit(values, labels)
            weights, biases = list(fit.coef_), list(fit.intercept_)
        estimator.weight.copy_(torch.from_numpy(np.stack(weights)))
        limits = np.clip(biases, -_SUREST, _SUREST) if not estimator.value else np.array(biases)
        estimator.bias.copy_(torch.from_numpy(limits))
        self.optimizers().step()

    def configure_optimizers(self) -> Optimizer:
        """Return an optimizer that changes nothing and makes the Trainer count epochs as steps."""
        return SGD([self._counted], lr=0.0)


_SUREST = 10.0
"""The largest bias of a logit: a label that does not vary is not certain."""
