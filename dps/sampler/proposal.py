"""The proposal law: the base model at a temperature, sampled from one uniform number per token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dps.sampler.target import base_logprobs


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """One token per row with what was known of it; log-probabilities and entropy in nats, float64, shape (B,)."""

    token: Tensor
    """Token ids, int64, shape (B,)."""
    base_logprob: Tensor
    """Log p of the token under the base model."""
    proposal_logprob: Tensor
    """Log g of the token under the proposal."""
    entropy: Tensor
    """Entropy of the base model's next-token law."""
    top_probability: Tensor
    """Probability of its most likely token."""


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


def draw_tokens(logits: Tensor, temperature: float, uniform: Tensor) -> Draw:
    """Draw one token per row from the proposal and say what the base model and the proposal think of it.

    Args:
        logits: The model's logits, shape (B, V).
        temperature: Of the proposal.
        uniform: One number in (0, 1) per row, float64, shape (B,).
    """
    base, proposal = base_logprobs(logits), proposal_logprobs(logits, temperature)
    token = sample_token(proposal, uniform)
    return Draw(
        token=token,
        base_logprob=base.gather(1, token[:, None])[:, 0].double(),
        proposal_logprob=proposal.gather(1, token[:, None])[:, 0].double(),
        entropy=entropies(base).double(),
        top_probability=base.max(-1).values.exp().double(),
    )


def entropies(logprobs: Tensor) -> Tensor:
    """Return the entropy of each law, nats, shape (...,), from log-probabilities of shape (..., V)."""
    return -(logprobs.exp() * logprobs).nan_to_num(0.0).sum(-1)
