"""Columns brought to mean 0 and standard deviation 1, by the statistics of the training split."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

FAR = 10.0
"""Standardized features are clamped to this many standard deviations: a live question unlike all of training must not
drive the network where it was never fitted."""


class Standardizer(nn.Module):
    """``(x - mean) / scale``, clamped; the statistics are those of the training split."""

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        """Start as the identity, for F = ``size`` features."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(size, dtype=torch.float64))

    def fit(self, chunks: Iterable[np.ndarray]) -> None:
        """Take mean and standard deviation of rows (N, F), given some at a time; a constant feature keeps scale 1.

        Note:
            Sums of squares are about each chunk's own mean, in float64; so nothing cancels however large the mean is.

        Source:
            Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
        """
        count, mean, squares = 0, 0.0, 0.0
        for values in chunks:
            new = len(values)
            own = values.mean(axis=0, dtype=np.float64)
            gap, count = own - mean, count + new
            squares = squares + values.var(axis=0, dtype=np.float64) * new + gap**2 * (new * (count - new) / count)
            mean = mean + gap * (new / count)
        scale = np.sqrt(squares / count)
        self.mean.copy_(torch.from_numpy(mean))
        self.scale.copy_(torch.from_numpy(np.where(scale > 1e-12, scale, 1.0)))

    def forward(self, values: Tensor) -> Tensor:
        """Return standardized values, shape (N, F), in the default type."""
        return ((values - self.mean) / self.scale).clamp(-FAR, FAR).to(torch.get_default_dtype())
