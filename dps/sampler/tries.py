"""Multiple-try Metropolis: several proposals compete before one of them is accepted or rejected.

After the cut m, tries ``y_1..y_n`` are drawn independently from the proposal. One of them becomes the candidate, with
probability proportional to its weight ``e^omega(y_j)``; it is accepted with probability

    min(1, sum_j e^omega(y_j) / (sum_{j != candidate} e^omega(y_j) + e^omega(x))).

A response z that keeps ``x_<m`` weighs ``omega(z) = alpha log p(z_>=m) - log g(z_>=m) + log w(m | z)`` nats. Tries do
not depend on the suffix that they would replace, so the other tries stand in for the reference set that multiple-try
Metropolis draws afresh in general. A row makes its tries one after another, so the candidate is chosen as a stream: two
running sums and one random number per try. With one try this is the plain Metropolis-Hastings step.

Source:
    Liu, Liang and Wong, "The multiple-try method and local optimization in Metropolis sampling", JASA 2000; Martino, "A
    review of multiple try MCMC algorithms for signal processing", Digital Signal Processing 2018, section 4.1
    (independent tries).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dps.sampler.accept import accept


def replace_logprob(omega: Tensor, log_others: Tensor, log_candidate: Tensor) -> Tensor:
    """Return the log-probability that a new try replaces the candidate: its share of all weights so far.

    Args:
        omega: Log-weight of the new try, nats, shape (B,).
        log_others: Log of the summed weights of the earlier tries that are not the candidate; -inf if there are none.
        log_candidate: Log-weight of the candidate; -inf if there is none.

    Returns:
        Nats, shape (B,); 0 while no earlier try has any weight, so the first try always becomes the candidate.
    """
    earlier = torch.logaddexp(log_others, log_candidate)
    share = omega - torch.logaddexp(earlier, omega)
    return torch.where(earlier == -torch.inf, 0.0, share)


def consider_try(
    uniform: Tensor, omega: Tensor, log_others: Tensor, log_candidate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Let a new try compete with the candidate of the earlier ones.

    Args:
        uniform: Numbers in (0, 1), float64, shape (B,); one per try.
        omega: Log-weight of the new try, nats, shape (B,).
        log_others: Log of the summed weights of the earlier tries that are not the candidate; -inf at the first try.
        log_candidate: Log-weight of the candidate; -inf at the first try.

    Returns:
        ``(replace, log_others, log_candidate)``: whether the new try becomes the candidate, bool; the sums after it.

    Note:
        After n tries the candidate is try j with probability ``e^omega_j / sum_i e^omega_i`` (weighted reservoir
        sampling).
    """
    replace = accept(uniform, replace_logprob(omega, log_others, log_candidate))
    loser = torch.where(replace, log_candidate, omega)
    return replace, torch.logaddexp(log_others, loser), torch.where(replace, omega, log_candidate)


def tries_log_accept_ratio(log_others: Tensor, log_candidate: Tensor, old_omega: Tensor) -> Tensor:
    """Return the log of the ratio by which the candidate is accepted once all tries were made.

    Args:
        log_others: Log of the summed weights of the tries that are not the candidate, nats, shape (B,).
        log_candidate: Log-weight of the candidate.
        old_omega: Log-weight of the current response x.

    Returns:
        log r, nats, shape (B,); ``omega(y) - omega(x)`` where there was one try, -inf for a candidate without weight.
    """
    ratio = torch.logaddexp(log_others, log_candidate) - torch.logaddexp(log_others, old_omega)
    return torch.where(log_candidate == -torch.inf, -torch.inf, ratio)
