"""The target law: the base model's next-token law, and its power over whole responses."""

from __future__ import annotations

from torch import Tensor


def base_logprobs(logits: Tensor) -> Tensor:
    """Return log p(. | context) of the base model: the softmax of its own logits, nothing tempered or truncated.

    Args:
        logits: The model's logits, shape (..., V).

    Returns:
        Log-probabilities in nats, shape (..., V), at least float32.
    """
    return (logits if logits.element_size() >= 4 else logits.float()).log_softmax(-1)


def power_logprob(base_logprob: Tensor, alpha: Tensor | float) -> Tensor:
    """Return the unnormalized target log-density ``alpha * log p(x)`` of a response or of a suffix.

    Args:
        base_logprob: Sum of base log-probabilities over the tokens, EOS included, nats.
        alpha: Sharpening exponent, at least 1; one number, or one per response.

    Source:
        METHOD section 1.
    """
    return alpha * base_logprob
