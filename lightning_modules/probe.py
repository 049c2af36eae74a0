"""The head p(right at the ladder's end): what a question itself tells, before anything has been sampled of it.

A regularized linear model on columns of the question alone: its length, its embedding, and the model's own hidden
states of the prompt (:func:`dps.sampler.teacher.prompt_states`). Controllers take its logit as one more scalar, so
trees and networks see thousands of components through one number; hundreds of questions allow no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

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
class PartFit:
    """A linear model of the standardized columns of one part."""

    place: slice
    """Its columns among those of all parts."""
    standardizer: Standardizer
    weight: np.ndarray
    """Of all questions' fit: shape (P,)."""
    bias: float
    logits: np.ndarray
    """Of each question by a fit without its fold: shape (Q,)."""


def fit_probe(
    columns: Mapping[str, np.ndarray], right: np.ndarray, groups: Sequence[str], seed: int, prompt_parts: int = 1
) -> tuple[EndProbe, np.ndarray]:
    """Fit a probe to some questions.

    Each part has a ridge logistic regression on its leading principal components; the logits of the best parts are
    averaged, since all columns in one regression are worse than the best layer alone. Inner folds choose penalties and
    parts by the log loss of being right at the end. The regressions are fitted to the mean over the rungs, which is
    less noisy, and the average is then calibrated for the end. Scale and components of a part, which know no label, are
    those of all these questions.

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
    sizes = sizes_of(columns)
    return join_parts(fit_parts(columns, right, groups, seed, prompt_parts), right[:, -1], sizes)


def sizes_of(columns: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return how many columns each of ``columns`` has, without those that have none."""
    return {name: 1 if values.ndim == 1 else values.shape[1] for name, values in columns.items() if values.size}


def fit_parts(
    columns: Mapping[str, np.ndarray], right: np.ndarray, groups: Sequence[str], seed: int, prompt_parts: int = 1
) -> list[PartFit]:
    """Fit each part by itself: length, embedding, and each of the prompt's states; see :func:`fit_probe`."""
    folds, target, end = list(other_folds(folds_of(groups, FOLDS, seed))), right.mean(axis=1), right[:, -1]
    parts, start = [], 0
    for name, size in sizes_of(columns).items():
        step = size // prompt_parts if name == PROMPT else size
        whole = (np.log(columns[name])[:, None] if name == LENGTH else columns[name]).astype(np.float64)
        for at in range(0, size, step):
            standardizer, axes = _components(whole[:, at : at + step], seed)
            scores = standardizer(torch.from_numpy(whole[:, at : at + step])).double().numpy() @ axes
            logits = np.empty((len(_PENALTIES), len(end)))
            for (mine, others), (own, strength) in product(folds, zip(logits, _PENALTIES, strict=True)):
                weight, bias = regress(scores[others], target[others], strength)
                own[mine] = scores[mine] @ weight + bias
            best = int(log_loss(logits, end).argmin())
            weight, bias = regress(scores, target, _PENALTIES[best])
            place = slice(start + at, start + at + step)
            parts.append(PartFit(place, standardizer, axes @ weight, bias, logits[best]))
        start += size
    return parts


def join_parts(parts: Sequence[PartFit], end: np.ndarray, sizes: Mapping[str, int]) -> tuple[EndProbe, np.ndarray]:
    """Return the probe that averages the best of some parts, and its logits (Q,) out of fold, see :func:`fit_probe`.

    ``end`` is the share of each question's orders that end right, shape (Q,); ``sizes`` the columns of all parts.
    """
    own = np.stack([part.logits for part in parts])
    best = np.argsort(log_loss(own, end), kind="stable")[:_MOST_PARTS]
    averages = np.cumsum(own[best], axis=0) / np.arange(1, len(best) + 1)[:, None]
    lines = [_line(average, end) for average in averages]
    calibrated = np.stack([slope * a + bias for a, (slope, bias) in zip(averages, lines, strict=True)])
    count = int(log_loss(calibrated, end).argmin()) + 1
    slope, bias = lines[count - 1]
    probe = EndProbe(sizes)
    probe.bias.fill_(bias)
    for part in (parts[index] for index in best[:count].tolist()):
        probe.standardizer.mean[part.place] = part.standardizer.mean
        probe.standardizer.scale[part.place] = part.standardizer.scale
        probe.weight[part.place] = torch.from_numpy(slope * part.weight / count)
        probe.bias += slope * part.bias / count
    return probe, calibrated[count - 1]


def log_loss(logits: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return the mean cross-entropy, nats, of logits (..., Q) for shares (Q,) of right answers: shape (...)."""
    return (np.logaddexp(0, logits) - share * logits).mean(axis=-1)


def _components(values: np.ndarray, seed: int) -> tuple[Standardizer, np.ndarray]:
    """Return the scale of one part's columns (Q, P), and the axes (P, J) of its scores, whose variances sum to 1."""
    from sklearn.decomposition import PCA

    standardizer = Standardizer(values.shape[1])
    standardizer.fit([values])
    standard = standardizer(torch.from_numpy(values)).numpy()
    most = min(_COMPONENTS, *standard.shape)
    if most == standard.shape[1]:
        axes = np.eye(most)
    else:
        axes = PCA(most, svd_solver="randomized", random_state=seed % 2**32).fit(standard).components_.astype(float)
    return standardizer, axes.T / math.sqrt(standard.shape[1])


def regress(values: np.ndarray, share: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Return weights (P,) and bias of a ridge logistic regression on columns (Q, P), fitted to shares (Q,)."""
    from sklearn.linear_model import LogisticRegression

    fit = LogisticRegression(C=strength, tol=1e-6, solver="newton-cholesky").fit(
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
