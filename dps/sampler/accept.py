"""The decision of a Metropolis-Hastings step; the choice among several proposals is in ``tries``."""

from __future__ import annotations

from torch import Tensor


def log_accept_ratio(
    *,
    new_target: Tensor,
    old_target: Tensor,
    new_proposal: Tensor,
    old_proposal: Tensor,
    new_cut: Tensor,
    old_cut: Tensor,
) -> Tensor:
    """Return the log of the Metropolis-Hastings ratio of moving from x to y by resampling from a cut m.

    ``log r = [log pi(y) - log pi(x)] + [log g(x_>=m) - log g(y_>=m)] + [log w(m|y) - log w(m|x)]``; the kept prefix
    cancels, so the sums may run over the two full suffixes only, EOS included.

    Args:
        new_target: Unnormalized target log-density of y's suffix, nats, shape (B,).
        old_target: The same of x's suffix.
        new_proposal: Proposal log-probability of y's suffix.
        old_proposal: The same of x's suffix.
        new_cut: Log-probability of the cut given y.
        old_cut: The same given x.

    Returns:
        log r, nats, shape (B,).

    Source:
        METHOD section 1, "One MH step that is right for variable length".
    """
    return (new_target - old_target) + (old_proposal - new_proposal) + (new_cut - old_cut)


def accept(uniform: Tensor, log_ratio: Tensor) -> Tensor:
    """Accept with probability ``min(1, exp(log r))``.

    Args:
        uniform: Numbers in (0, 1), shape (B,).
        log_ratio: log r, shape (B,).

    Returns:
        bool, shape (B,).
    """
    return uniform.log() < log_ratio


def more_likely(new_logprob: Tensor, old_logprob: Tensor) -> Tensor:
    """Accept only what is more likely: the rule ``max_swap``, the limit of infinite alpha.

    A search for a likely response, not a draw from any power of the model's law: it never steps down, and neither the
    proposal nor the cut enters.

    Args:
        new_logprob: Log p of the proposed suffix under the base model, EOS included, nats, shape (B,).
        old_logprob: The same of the current suffix.

    Returns:
        bool, shape (B,).
    """
    return new_logprob > old_logprob
