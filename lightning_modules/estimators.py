"""The parts of controllers that predict: PyTorch modules without Lightning.

A controller trains one of these (``controllers``) and a live run loads it alone (``load``), in every worker process, so
nothing here imports Lightning. Each takes raw features and keeps its own standardizer, calibration and threshold, so
that its state is all that a prediction needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dps.decide.features import EMBEDDING, HIDDEN, SCALARS
from lightning_modules.calibration import Calibrator, fit_weight
from lightning_modules.learnt import Learnt
from lightning_modules.standardizer import FAR, Standardizer

LEAST_COST = 0.01
"""Thousands of tokens that going on costs at least; an estimate below would make any gain worth it."""

_KNOTS = 33
"""Quantiles of a scalar that ranks are taken between."""
_ROUNDING = 1e-9
"""Quantiles that differ by less than this share of the largest are the same value, summed in another order."""


Array = TypeVar("Array", np.ndarray, Tensor)


def is_decided(scalars: Array, gate: Sequence[int]) -> Array:
    """Return which rows of scalars (..., F) the votes have decided: shape (...), bool.

    ``gate`` has the columns of ``vote_margin`` and ``current_k``, and the lead in votes that decides; none decides
    nothing.
    """
    if not gate:
        return scalars[..., 0] != scalars[..., 0]
    margin, k, lead = gate
    return scalars[..., margin] * scalars[..., k] > lead - 0.5


class Estimator(nn.Module):
    """Estimates the probability that k is enough from raw features; or, for the label ``value``, gain and cost.

    A value's terms are those of the gain of going on, in right answers, and of its cost, in thousands of tokens. Their
    ratio is the rate, points of accuracy per 1,000 tokens, which :func:`dps.decide.labels.score_of_rate` turns into
    p_enough. Rows that the votes have decided are enough.
    """

    threshold: Tensor
    """More trajectories are added while ``1 - p_enough`` is above this: a scalar, float64."""

    def __init__(self, parts: frozenset[str], value: bool = False, gate: Sequence[int] = ()) -> None:
        """Set which features it sees, of :data:`dps.decide.features.PARTS`, and the label; see :func:`is_decided`."""
        super().__init__()
        self.parts, self.value, self.gate = parts, value, tuple(gate)
        self.register_buffer("threshold", torch.tensor(0.5, dtype=torch.float64))
        self.calibrator = Calibrator()
        self.learnt = Learnt()

    def forward(self, scalars: Tensor, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Return the logit of p_enough before calibration, shape (N,), of features as measured.

        Shapes are (N, F), (N, D) and (N, E); what is not in ``parts`` is not looked at.
        """
        return self.combine(self.terms(scalars, hidden, embedding))

    def terms(self, scalars: Tensor, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Return the terms of the logit, shape (N, J); arguments as forward's."""
        raise NotImplementedError

    def combine(self, terms: Tensor) -> Tensor:
        """Return the logit that terms add up to, or the rate that they are: shape (N,)."""
        if self.value:
            return 100 * terms[:, 0] / terms[:, 1].clamp(min=LEAST_COST)
        return terms.sum(dim=1)

    def p_enough(self, combined: Tensor, scalars: Tensor) -> Tensor:
        """Return p_enough of logits or rates (N,), float64, of rows with these scalars (N, F): shape (N,)."""
        p = 0.5 - combined.atan() / math.pi if self.value else self.calibrator(combined)
        return torch.where(is_decided(scalars, self.gate), torch.ones_like(p), p)

    def weigh(self, terms: Tensor, labels: np.ndarray, num_questions: int) -> None:
        """Choose how much the terms of rows (N, J) that trained nothing count, where the estimator has a choice."""

    @torch.no_grad()
    def predict_enough(self, scalars: Tensor, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Return the calibrated probability that k is enough, shape (N,), float64 in [0, 1]; arguments as forward's."""
        training = self.training
        self.eval()
        try:
            return self.p_enough(self(scalars, hidden, embedding).double(), scalars)
        finally:
            self.train(training)


class Ranks(nn.Module):
    """Where a feature stands among the training rows: its rank from 0 to 1, as ``sqrt(12) (rank - 1/2)``.

    Trees see no more of a feature than its order, and lose nothing; a network gets every feature with the same spread
    and without outliers. Between 33 quantiles the rank is linear; values that share quantiles have the middle of them.
    """

    knots: Tensor
    positions: Tensor

    def __init__(self, size: int) -> None:
        """Start as if all F = ``size`` features were spread evenly between 0 and 1."""
        super().__init__()
        grid = torch.linspace(0, 1, _KNOTS, dtype=torch.float64).repeat(size, 1)
        self.register_buffer("knots", grid)
        self.register_buffer("positions", grid.clone())

    def fit(self, values: np.ndarray) -> None:
        """Take the quantiles of rows, shape (N, F)."""
        grid = np.linspace(0, 1, _KNOTS)
        for feature, column in enumerate(np.quantile(values, grid, axis=0).T):
            same = np.diff(column) <= _ROUNDING * np.abs(column).max()
            where = np.cumsum([0, *~same])
            self.knots[feature] = torch.from_numpy(column)
            self.positions[feature] = torch.from_numpy((np.bincount(where, grid) / np.bincount(where))[where])

    def forward(self, values: Tensor) -> Tensor:
        """Return the ranks, shape (N, F), in the default type."""
        columns = values.double().T.contiguous()
        after = torch.searchsorted(self.knots, columns, right=True).clamp(1, _KNOTS - 1)
        low, high = (self.knots.gather(1, at) for at in (after - 1, after))
        start, end = (self.positions.gather(1, at) for at in (after - 1, after))
        gap = high - low
        share = torch.where(gap > 0, (columns - low) / gap, 0.0).clamp(0, 1)
        return (math.sqrt(12) * (start + share * (end - start) - 0.5)).T.to(torch.get_default_dtype())


class MLPEstimator(Estimator):
    """Multilayer perceptrons: one on the scalars, and one that corrects its logit by what the wide parts tell.

    A harvest has hundreds of questions, and a hidden state or an embedding hundreds or thousands of components: enough
    to know every training question by heart. Trained as one network, that is what it does, and it ranks worse than the
    scalars alone. So the logit is ``own(scalars) + w * correction(scalars, projections of the wide parts)``: the first
    is trained as if there were nothing else, the second on what it leaves, and held-out questions choose w in [0, 1].
    A projection is dropout, a linear map to ``projection_size`` and tanh; nothing normalizes it, so that weight decay
    can make it small.
    """

    residual_weight: Tensor
    """w: a scalar, float64."""

    def __init__(
        self,
        *,
        num_scalars: int,
        hidden_size: int,
        embedding_size: int,
        projection_size: int,
        layer_sizes: Sequence[int],
        dropout: float,
        input_dropout: float,
        gate: Sequence[int] = (),
    ) -> None:
        """Build the networks for F, D and E features; D or E of 0 leaves the part out.

        The other settings are those of :class:`lightning_modules.controllers.mlp.MLPH`.
        """
        present = [SCALARS] + [HIDDEN] * (hidden_size > 0) + [EMBEDDING] * (embedding_size > 0)
        super().__init__(frozenset(present), gate=gate)
        self.ranks = Ranks(num_scalars)
        wide = {name: size for name, size in ((HIDDEN, hidden_size), (EMBEDDING, embedding_size)) if size}
        self.standardizers = nn.ModuleDict({name: Standardizer(size) for name, size in wide.items()})
        self.projections = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Dropout(input_dropout), nn.Linear(size, projection_size), nn.Tanh())
                for name, size in wide.items()
            }
        )
        self.layers = _perceptron(num_scalars, layer_sizes, dropout)
        self.residual = _perceptron(num_scalars + projection_size * len(wide), layer_sizes, dropout)
        nn.init.zeros_(self.residual[-1].weight)
        nn.init.zeros_(self.residual[-1].bias)
        self.register_buffer("residual_weight", torch.tensor(1.0, dtype=torch.float64))

    def fit_standardizers(self, scalars: np.ndarray, hidden: Iterable[np.ndarray], embedding: np.ndarray) -> None:
        """Take the ranks and statistics of the training rows: shapes (N, F), (N, D) in chunks, (M, E)."""
        self.ranks.fit(scalars)
        for name, chunks in ((HIDDEN, hidden), (EMBEDDING, [embedding])):
            if name in self.parts:
                self.standardizers[name].fit(chunks)

    @torch.no_grad()
    def start_at(self, share: float) -> None:
        """Let an untrained network say about this probability everywhere: nothing has to be learned to say it."""
        self.layers[-1].bias.fill_(math.log(max(share, 1e-3) / max(1 - share, 1e-3)))

    def residual_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the correction; all others are of the network on the scalars."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("layers.")]

    def terms(self, scalars: Tensor, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Return the scalars' own logit and the correction: shape (N, 2); see :meth:`Estimator.terms`."""
        dtype = self.layers[-1].weight.dtype
        own = self.ranks(scalars).to(dtype)
        wide = [
            self.projections[name](self.standardizers[name](values).to(dtype))
            for name, values in ((HIDDEN, hidden), (EMBEDDING, embedding))
            if name in self.parts
        ]
        return torch.cat([self.layers(own), self.residual(torch.cat([own, *wide], dim=1))], dim=1)

    def combine(self, terms: Tensor) -> Tensor:
        """Return the logit, shape (N,)."""
        return terms[:, 0] + self.residual_weight.to(terms.dtype) * terms[:, 1]

    def weigh(self, terms: Tensor, labels: np.ndarray, num_questions: int) -> None:
        """Choose the weight of the correction, see :func:`lightning_modules.calibration.fit_weight`."""
        self.residual_weight.fill_(fit_weight(*terms.double().numpy().T, labels, num_questions))


def _perceptron(width: int, layer_sizes: Sequence[int], dropout: float) -> nn.Sequential:
    """Return a perceptron with one output and layers of these sizes."""
    layers: list[nn.Module] = []
    for size in layer_sizes:
        layers += [nn.Linear(width, size), nn.GELU(), nn.Dropout(dropout)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 1))


class TreeEstimator(Estimator):
    """Gradient-boosted trees on the scalars; its state holds LightGBM's text form of them."""

    def __init__(self, gate: Sequence[int] = ()) -> None:
        """Start without trees; the logit is 0 then."""
        super().__init__(frozenset({SCALARS}), gate=gate)
        self.log_weight = 0.0
        """Log of the weight that rows where k is enough had in training; it is taken off the trees' logits, which are
        too high by it."""
        self._text = ""
        self._booster: Any = None

    @property
    def booster_text(self) -> str:
        """The trees as LightGBM writes them; empty before the first round."""
        return self._text

    @booster_text.setter
    def booster_text(self, text: str) -> None:
        import lightgbm

        self._text = text
        # Built from the text also right after training, so that what was saved is what predicts.
        self._booster = lightgbm.Booster(model_str=text) if text else None

    @property
    def num_rounds(self) -> int:
        """Boosting rounds so far."""
        return self._booster.current_iteration() if self._booster is not None else 0

    def terms(self, scalars: Tensor, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Return the logit of p_enough, shape (N, 1), float64; see :meth:`Estimator.terms`."""
        if self._booster is None or len(scalars) == 0:
            return torch.zeros(len(scalars), 1, dtype=torch.float64, device=scalars.device)
        values = scalars.detach().cpu().numpy().astype(np.float64)
        logits = self._booster.predict(values, raw_score=True, num_threads=1)
        return torch.from_numpy(np.asarray(logits, dtype=np.float64) - self.log_weight).to(scalars.device)[:, None]

    def get_extra_state(self) -> dict[str, Any]:
        """Return what the state holds besides tensors: the trees and what their logits are too high by."""
        return {"booster": self._text, "log_weight": self.log_weight}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the trees."""
        self.booster_text = state["booster"]
        self.log_weight = state["log_weight"]


class LinearEstimator(Estimator):
    """A linear model of the standardized scalars: the logit, or gain and cost."""

    weight: Tensor
    bias: Tensor

    def __init__(self, *, num_scalars: int, value: bool, gate: Sequence[int] = ()) -> None:
        """Start at 0, for F scalars."""
        super().__init__(frozenset({SCALARS}), value, gate)
        self.standardizer = Standardizer(num_scalars)
        self.register_buffer("weight", torch.zeros(1 + value, num_scalars, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(1 + value, dtype=torch.float64))

    def standard(self, scalars: Tensor) -> Tensor:
        """Return the standardized scalars, shape (N, F), float64."""
        return ((scalars.double() - self.standardizer.mean) / self.standardizer.scale).clamp(-FAR, FAR)

    def terms(self, scalars: Tensor, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Return the logit, shape (N, 1), or gain and cost, shape (N, 2), float64; see :meth:`Estimator.terms`."""
        # One product after the other: what is said of a row depends on no other, bit for bit.
        return (self.standard(scalars)[:, None] * self.weight).sum(dim=2) + self.bias


ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "linear": LinearEstimator,
    "gbdt": TreeEstimator,
    "mlp-h": MLPEstimator,
    "mlp-hq": MLPEstimator,
}
"""What predicts for each kind of controller; a checkpoint holds the name and the arguments."""
