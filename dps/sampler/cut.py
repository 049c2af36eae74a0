"""The cut law: where a Metropolis-Hastings step starts to resample a response."""

from __future__ import annotations

import torch
from torch import Tensor


def cut_position(uniform: Tensor, length: Tensor) -> Tensor:
    """Return the cut ``m ~ Uniform{0..|x|-1}``: the first m tokens are kept.

    Args:
        uniform: Numbers in (0, 1), float64, shape (B,).
        length: Response lengths |x| >= 1, int64, shape (B,).

    Returns:
        int64, shape (B,).
    """
    return torch.minimum((uniform * length).long(), length - 1)


def cut_logprob(length: Tensor) -> Tensor:
    """Return ``log w(m | x) = -log |x|``, the same for every m below the length.

    Args:
        length: Response lengths |x| >= 1, shape (B,).

    Returns:
        Nats, float64, shape (B,).
    """
    return -length.double().log()
