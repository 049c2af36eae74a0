"""The cut law: where a Metropolis-Hastings step starts to resample a response.

Either uniform over the response, or in proportion to a weight of each token that depends on what stands before it, such
as the entropy of the base model's next-token law: a step then seldom cuts where nothing else could have been said.
"""

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


def weighted_cut_position(uniform: Tensor, weights: Tensor, start: Tensor) -> Tensor:
    """Return the cut m of the law ``w(m | x) = e_m / sum_{j < |x|} e_j``.

    Args:
        uniform: Numbers in (0, 1), float64, shape (B,).
        weights: e_j at the response's positions, above 0; exactly 0 at all others: float64, shape (B, T).
        start: Position of the response's first token, int64, shape (B,).

    Returns:
        m, counted from the response's first token: int64, shape (B,), in 0..|x|-1 whatever the rounding; 0 where the
        response is empty.
    """
    cumulative = weights.cumsum(-1)
    reached = (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(-1) - start
    last = (weights > 0).sum(-1) - 1
    return torch.minimum(reached, last).clamp(min=0)


def weighted_cut_logprob(weights: Tensor) -> Tensor:
    """Return the part of ``log w(m | x)`` that the suffix decides: ``-log sum_{j < |x|} e_j``.

    The rest, ``log e_m``, depends on ``x_<m`` alone, which a step keeps: it is the same for x and for every proposal.

    Args:
        weights: As in :func:`weighted_cut_position`.

    Returns:
        Nats, float64, shape (B,); infinite where the response is empty.
    """
    return -weights.sum(-1).log()
