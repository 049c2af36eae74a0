"""The proposal law: the base model at a temperature, sampled from one uniform number per token."""

from __future__ import annotations

import torch
from torch import Tensor


def proposal_logprobs(logits: Tensor, temperature: float) -> Tensor:
    """Return log g(. | context): the softmax of ``logits / temperature``, nothing truncated.

    Args:
        logits: The model's logits, shape (..., V).
        temperature: Above 0; 1/alpha by default in power sampling.

    Returns:
        Log-probabilities in nats, shape (..., V), at least float32.
    """
    return ((logits if logits.element_size() >= 4 else logits.float()) / temperature).log_softmax(-1)


def sample_token(logprobs: Tensor, uniform: Tensor) -> Tensor:
    """Draw one token per row by the inverse of its cumulative distribution.

    Returns the first token whose cumulative probability exceeds ``uniform``. The sums run in float64, so that no token
    of a large vocabulary is lost to rounding, and a token of probability 0 is never drawn.

    Args:
        logprobs: Log-probabilities, shape (B, V).
        uniform: One number in (0, 1) per row, float64, shape (B,).

    Returns:
        Token ids, int64, shape (B,).
    """
    cumulative = logprobs.double().exp().cumsum(-1)
    total = cumulative[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    return torch.searchsorted(cumulative, torch.minimum(uniform[:, None] * total, below_total), right=True)[:, 0]
