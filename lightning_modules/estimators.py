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
        """Return the terms of the logit, or of gain and cost, shape (N, J); arguments as forward's."""
        raise NotImplementedError

    def combine(self, terms: Tensor) -> Tensor:
        """Return the logit that terms add up to, or the rate that they are: shape (N,)."""
        if self.value:
            gain, cost = self.gain_and_cost(terms).unbind(dim=1)
            return 100 * gain / cost.clamp(min=LEAST_COST)
        return terms.sum(dim=1)

    def gain_and_cost(self, terms: Tensor) -> Tensor:
        """Return the gain, in right answers, and the cost, in thousands of tokens, of a value's terms: shape (N, 2)."""
        return terms

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

        The settings are those of :class:`lightning_modules.controllers.mlp.MLPHQ`.
        """
        wide = {name: size for name, size in ((HIDDEN, hidden_size), (EMBEDDING, embedding_size)) if size}
        super().__init__(frozenset({SCALARS, *wide}), gate=gate)
        self.ranks = Ranks(num_scalars)
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
        """Take the ranks and statistics of the training rows: shapes (N, F), (N, D) in chunks, and (M, E)."""
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
        """Return the scalars' own logit and the correction's: shape (N, 2); see :meth:`Estimator.terms`."""
        dtype = self.layers[-1].weight.dtype
        own, given = self.ranks(scalars).to(dtype), {HIDDEN: hidden, EMBEDDING: embedding}
        wide = [
            projection(self.standardizers[name](given[name]).to(dtype)) for name, projection in self.projections.items()
        ]
        return torch.cat([self.layers(own), self.residual(torch.cat([own, *wide], dim=1))], dim=1)

    def combine(self, terms: Tensor) -> Tensor:
        """Return the logit: shape (N,)."""
        return terms[:, 0] + self.residual_weight.to(terms.dtype) * terms[:, 1]

    def weigh(self, terms: Tensor, labels: np.ndarray, num_questions: int) -> None:
        """Choose the weight of the correction, see :func:`lightning_modules.calibration.fit_weight`."""
        own, correction = terms.double().numpy().T
        self.residual_weight.fill_(fit_weight(own, correction, labels, num_questions))


def _perceptron(width: int, layer_sizes: Sequence[int], dropout: float) -> nn.Sequential:
    """Return a perceptron with one output and layers of these sizes."""
    layers: list[nn.Module] = []
    for size in layer_sizes:
        layers += [nn.Linear(width, size), nn.GELU(), nn.Dropout(dropout)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 1))


BOOSTERS = ("booster", "cost")
"""Names of the boosters in a checkpoint; only the label ``value`` has the second."""


class TreeEstimator(Estimator):
    """Gradient-boosted trees on the scalars; its state holds LightGBM's text form of them.

    One booster is of the logit; for the label ``value`` there are two, of gain and cost.
    """

    def __init__(self, *, value: bool = False, gate: Sequence[int] = ()) -> None:
        """Start without trees; the logit, or gain and cost, is 0 then."""
        super().__init__(frozenset({SCALARS}), value, gate)
        self._texts = [""] * (1 + value)
        self._boosters: list[Any] = []

    @property
    def texts(self) -> list[str]:
        """The trees of each booster as LightGBM writes them; empty before the first round."""
        return self._texts

    @texts.setter
    def texts(self, texts: list[str]) -> None:
        import lightgbm

        self._texts = texts
        # Built from the text also right after training, so that what was saved is what predicts.
        self._boosters = [lightgbm.Booster(model_str=text) for text in texts if text]

    @property
    def num_rounds(self) -> int:
        """Boosting rounds so far."""
        return self._boosters[0].current_iteration() if self._boosters else 0

    def terms(self, scalars: Tensor, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Return the logit, shape (N, 1), or gain and cost, shape (N, 2), float64; see :meth:`Estimator.terms`."""
        if not self._boosters or len(scalars) == 0:
            return torch.zeros(len(scalars), 1 + self.value, dtype=torch.float64, device=scalars.device)
        values = scalars.detach().cpu().numpy().astype(np.float64)
        said = [booster.predict(values, raw_score=True, num_threads=1) for booster in self._boosters]
        return torch.from_numpy(np.stack(said, axis=1).astype(np.float64)).to(scalars.device)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what the state holds besides tensors: the trees."""
        return dict(zip(BOOSTERS, self._texts, strict=False))

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the trees."""
        self.texts = [state[name] for name in BOOSTERS[: 1 + self.value]]


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
