"""The head p(right at the ladder's end): what a question itself tells, before anything has been sampled of it.

A regularized linear model on columns of the question alone: its length, its embedding, and the model's own hidden
states of the prompt (:func:`dps.sampler.teacher.prompt_states`). Controllers take its logit as one more scalar, so
trees and networks see thousands of components through one number; hundreds of questions allow no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dps.decide.features import EMBEDDING, PROMPT
from dps.decide.splits import folds_of, other_folds
from lightning_modules.standardizer import Standardizer

LENGTH = "length"
"""The column of the log of the prompt's tokens, beside the parts ``embedding`` and ``prompt`` of the features."""
FOLDS = 5
"""Inner folds, on which the parts and the strength of the penalty are chosen."""
_COMPONENTS = 64
"""Principal components that are kept of each part."""
_PENALTIES = (0.1, 1.0, 10.0)
"""Inverse strengths C of the ridge, for a part whose columns have the total variance 1."""
_MOST_PARTS = 3
"""The most parts whose logits are averaged."""


class EndProbe(nn.Module):
    """A linear model of the question's columns, each standardized; its state is four tensors."""

    weight: Tensor
    bias: Tensor

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """Start with the logit 0; ``sizes`` are the numbers of columns of those parts that the probe may look at."""
        super().__init__()
        self.sizes = dict(sizes)
        self.standardizer = Standardizer(sum(sizes.values()))
        self.register_buffer("weight", torch.zeros(sum(sizes.values()), dtype=torch.float64))
        self.register_buffer("bias", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def forward(self, prompt: Tensor, embedding: Tensor, length: Tensor) -> Tensor:
        """Return the logit of p(right at the ladder's end), shape (N,), float64.

        Shapes are (N, P), (N, E) and (N,), prompt tokens; what is not in ``sizes`` is not looked at.
        """
        parts = {LENGTH: length.double().log()[:, None], EMBEDDING: embedding, PROMPT: prompt}
        values = torch.cat([parts[name].double() for name in self.sizes], dim=1)
        return (self.standardizer(values).double() * self.weight).sum(dim=1) + self.bias


@dataclass(frozen=True, slots=True, eq=False)
class _PartFit:
    """A linear model of the standardized columns of one part."""

    standardizer: Standardizer
    weights: np.ndarray
    """One line for each of :data:`_PENALTIES`: shape (J, P)."""
    biases: np.ndarray
    """Shape (J,)."""

    def logits(self, values: np.ndarray) -> np.ndarray:
        """Return the logits of columns (N, P): shape (J, N)."""
        return self.weights @ self.standardizer(torch.from_numpy(values)).double().numpy().T + self.biases[:, None]


def fit_probe(
    columns: Mapping[str, np.ndarray], right: np.ndarray, groups: Sequence[str], seed: int, prompt_parts: int = 1
) -> tuple[EndProbe, np.ndarray]:
    """Fit a probe to some questions.

    Each part has a ridge logistic regression on its leading principal components; the logits of the best parts are
    averaged, since all columns in one regression are worse than the best layer alone. Inner folds choose penalties and
    parts by the log loss of being right at the end. The regressions are fitted to the mean over the rungs, which is
    less noisy, and the average is then calibrated for the end.

    Args:
        columns: Among ``length`` (Q,), prompt tokens; ``embedding`` (Q, E); and ``prompt`` (Q, P).
        right: Share of each question's orders in which it is right after each rung, the end last: shape (Q, R).
        groups: What folds are made of, see :func:`dps.decide.splits.divided_as`; the same question has one name.
        seed: Of the folds and the components.
        prompt_parts: Parts of equal size that the prompt's states have: two for each layer, the last and the mean.

    Returns:
        The probe of all these questions, and logits (Q,) of each by a fit without its own fold: what a controller is
        trained on, since a fit knows its own questions too well.
    """
    sizes = {name: 1 if values.ndim == 1 else values.shape[1] for name, values in columns.items() if values.size}
    joined = np.column_stack([np.log(columns[n]) if n == LENGTH else columns[n] for n in sizes]).astype(np.float64)
    parts = _parts(sizes, prompt_parts)
    folds, target, end = folds_of(groups, FOLDS, seed), right.mean(axis=1), right[:, -1]
    logits = np.empty((len(parts), len(_PENALTIES), len(end)))
    for mine, others in other_folds(folds):
        for one, part in zip(logits, parts, strict=True):
            one[:, mine] = _fit_part(joined[others, part], target[others], seed).logits(joined[mine, part])
    penalty = log_loss(logits, end).argmin(axis=1)
    own = np.take_along_axis(logits, penalty[:, None, None], axis=1)[:, 0]
    best = np.argsort(log_loss(own, end), kind="stable")[:_MOST_PARTS]
    averages = np.cumsum(own[best], axis=0) / np.arange(1, len(best) + 1)[:, None]
    lines = [_line(average, end) for average in averages]
    calibrated = np.stack([slope * a + bias for a, (slope, bias) in zip(averages, lines, strict=True)])
    count = int(log_loss(calibrated, end).argmin()) + 1
    slope, bias = lines[count - 1]

    probe = EndProbe(sizes)
    probe.bias.fill_(bias)
    for index in best[:count].tolist():
        part = parts[index]
        fit = _fit_part(joined[:, part], target, seed)
        probe.standardizer.mean[part] = fit.standardizer.mean
        probe.standardizer.scale[part] = fit.standardizer.scale
        probe.weight[part] = torch.from_numpy(slope * fit.weights[penalty[index]] / count)
        probe.bias += float(slope * fit.biases[penalty[index]] / count)
    return probe, calibrated[count - 1]


def log_loss(logits: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return the mean cross-entropy, nats, of logits (..., Q) for shares (Q,) of right answers: shape (...)."""
    return (np.logaddexp(0, logits) - share * logits).mean(axis=-1)


def _parts(sizes: Mapping[str, int], prompt_parts: int) -> list[slice]:
    """Return the columns of each part: length, embedding, and each of the prompt's states by itself."""
    parts, start = [], 0
    for name, size in sizes.items():
        step = size // prompt_parts if name == PROMPT else size
        parts += [slice(at, at + step) for at in range(start, start + size, step)]
        start += size
    return parts


def _fit_part(values: np.ndarray, target: np.ndarray, seed: int) -> _PartFit:
    """Fit the regressions of one part, columns (Q, P), to shares (Q,)."""
    from sklearn.decomposition import PCA

    standardizer = Standardizer(values.shape[1])
    standardizer.fit([values])
    standard = standardizer(torch.from_numpy(values)).double().numpy()
    most = min(_COMPONENTS, *standard.shape)
    size = math.sqrt(standard.shape[1])
    if most == standard.shape[1]:
        axes = np.eye(most)
    else:
        axes = PCA(most, svd_solver="randomized", random_state=seed % 2**32).fit(standard).components_
    scores = standard @ axes.T / size
    fits = [regress(scores, target, strength) for strength in _PENALTIES]
    weights = np.stack([weight for weight, _ in fits]) @ axes / size
    return _PartFit(standardizer, weights, np.array([bias for _, bias in fits]))


def regress(values: np.ndarray, share: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Return weights (P,) and bias of a ridge logistic regression on columns (Q, P), fitted to shares (Q,)."""
    from sklearn.linear_model import LogisticRegression

    fit = LogisticRegression(C=strength, tol=1e-6, max_iter=1000).fit(
        np.concatenate([values, values]),
        np.repeat([True, False], len(values)),
        sample_weight=np.concatenate([share, 1 - share]).clip(1e-6),
    )
    return fit.coef_[0], float(fit.intercept_[0])


def _line(logits: np.ndarray, share: np.ndarray) -> tuple[float, float]:
    """Return slope, at least 0, and bias that calibrate logits (Q,) for shares (Q,)."""
    weight, bias = regress(logits[:, None], share, 1e4)
    if weight[0] > 0:
        return float(weight[0]), bias
    mean = share.mean().clip(1e-6, 1 - 1e-6)  # worse than nothing: the share itself
    return 0.0, float(np.log(mean / (1 - mean)))
