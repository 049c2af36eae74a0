"""The law of a chain on one page: target, proposal, cut, acceptance, schedule, early stop (METHOD section 1).

Pure functions of tensors. The engine runs them for all rows at once (``step``, ``settle``; a GPU draws by ``kernels``),
``dps.testing`` enumerates them. All log-probabilities are in nats; B is the number of rows, V of tokens.

A Metropolis-Hastings step draws a cut m, keeps the first m tokens of the response x, draws the rest of y from the
proposal until the end or the stage's horizon, and accepts y if ``log u < log_accept_ratio``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dps.sampler.settings import ENTROPY_FLOOR, AcceptRule, SamplerConfig

# -- target and proposal: next-token laws ------------------------------------------------------------------------------


def base_logprobs(logits: Tensor) -> Tensor:
    """Return log p(. | context), (..., V): the softmax of the model's own logits, nothing tempered or truncated."""
    return (logits if logits.element_size() >= 4 else logits.float()).log_softmax(-1)


def proposal_logprobs(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Return log g(. | context), (..., V): the softmax of ``logits / temperature``, nothing truncated.

    A tensor has a temperature for each context, shape (..., 1).
    """
    logits = logits if logits.element_size() >= 4 else logits.float()
    # In the precision of the logits: a column of float64 would raise theirs, which a number does not.
    temperature = temperature.to(logits.dtype) if isinstance(temperature, Tensor) else temperature
    return (logits / temperature).log_softmax(-1)


def entropies(logprobs: Tensor) -> Tensor:
    """Return the entropy of each law, nats, shape (...,), from log-probabilities of shape (..., V)."""
    return -(logprobs.exp() * logprobs).nan_to_num(0.0).sum(-1)


def sample_token(logprobs: Tensor, uniform: Tensor) -> Tensor:
    """Draw one token per row: the first one whose cumulative probability exceeds ``uniform``.

    The sums run in float64, so that no token of a large vocabulary is lost to rounding, and a token of probability 0 is
    never drawn.

    Args:
        logprobs: Log-probabilities, shape (B, V).
        uniform: One number in (0, 1) per row, float64, shape (B,).
    """
    cumulative = logprobs.double().exp().cumsum(-1)
    total = cumulative[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    token = torch.searchsorted(cumulative, torch.minimum(uniform[:, None] * total, below_total), right=True)[:, 0]
    return token.clamp(max=logprobs.shape[1] - 1)  # only what is no number leads beyond: the engine refuses it


def draw_tokens(logits: Tensor, temperature: float | Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token per row from the proposal, and say what is kept of each.

    The temperature is that of all rows, or of each row, shape (B, 1).

    Returns:
        The tokens, (B,), and (4, B), float64: log p and log g of the token, the entropy of the base model's law there
        and the probability of its most likely token.
    """
    base, proposal = base_logprobs(logits), proposal_logprobs(logits, temperature)
    token = sample_token(proposal, uniform)
    own = [logprobs.gather(1, token[:, None])[:, 0].double() for logprobs in (base, proposal)]
    return token, torch.stack([*own, entropies(base).double(), base.max(-1).values.exp().double()])


# -- cut: where a step starts to resample ------------------------------------------------------------------------------


def cut_position(uniform: Tensor, length: Tensor) -> Tensor:
    """Return the cut ``m ~ Uniform{0..|x|-1}``, (B,): the first m tokens are kept."""
    return torch.minimum((uniform * length).long(), length - 1)


def cut_logprob(length: Tensor) -> Tensor:
    """Return ``log w(m | x) = -log |x|``, (B,), the same for every m below the length."""
    return -length.double().log()


def weighted_cut_position(uniform: Tensor, weights: Tensor, start: Tensor) -> Tensor:
    """Return the cut m of the law ``w(m | x) = e_m / sum_{j < |x|} e_j``.

    Args:
        uniform: Numbers in (0, 1), float64, shape (B,).
        weights: e_j at the response's positions, above 0, and exactly 0 at all others: float64, shape (B, T).
        start: Position of the response's first token, shape (B,).

    Returns:
        m counted from that token: int64, (B,), in 0..|x|-1 whatever the rounding; 0 where the response is empty.
    """
    cumulative = weights.cumsum(-1)
    reached = (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(-1) - start
    last = (weights > 0).sum(-1) - 1
    return torch.minimum(reached, last).clamp(min=0)


def weighted_cut_logprob(weights: Tensor) -> Tensor:
    """Return the part of ``log w(m | x)`` that the suffix decides: ``-log sum_{j < |x|} e_j``, (B,).

    The rest, ``log e_m``, depends on ``x_<m`` alone, which a step keeps: it is the same for x and for every proposal.
    """
    return -weights.sum(-1).log()


# -- acceptance --------------------------------------------------------------------------------------------------------


class Suffix(NamedTuple):
    """What the decision needs of a response from the cut on: sums over the full suffix, EOS included."""

    base: Tensor
    """Log p of the suffix."""
    proposal: Tensor
    """Log g of the suffix."""
    cut: Tensor
    """Log-probability of the cut given the whole response."""


def log_accept_ratio(new: Suffix, old: Suffix, alpha: float | Tensor, rule: AcceptRule = "metropolis") -> Tensor:
    """Return the log of the ratio by which a step from x to y is accepted.

    ``metropolis``: ``alpha [log p(y) - log p(x)] + [log g(x) - log g(y)] + [log w(m|y) - log w(m|x)]``, sums over the
    suffixes, since the kept prefix cancels. It leaves p^alpha as it is.

    ``max_swap``: infinite where y is more likely than x under the base model, minus infinite elsewhere; the limit of
    infinite alpha. It is a search, not a draw from any power of the law.
    """
    if rule == "max_swap":
        return torch.where(new.base > old.base, torch.inf, -torch.inf)
    return (alpha * new.base - alpha * old.base) + (old.proposal - new.proposal) + (new.cut - old.cut)


def accept(uniform: Tensor, log_ratio: Tensor) -> Tensor:
    """Accept with probability ``min(1, exp(log_ratio))``.

    The number ``u`` depends on nothing of the proposal, and is drawn before it.
    """
    return uniform.log() < log_ratio


# -- rejecting early: a proposal whose rejection is certain need not be finished ---------------------------------------

_SLACK = 1e-5
"""Nats by which rounding may raise a token's term, times alpha: float32 log-probabilities are good to a tenth."""


class EarlyTerms(NamedTuple):
    """What a token of a proposal adds to ``evidence``, a sum that never grows, and to ``weight``, which never shrinks.

    The log ratio of a proposal that ended here would be ``evidence - log weight`` less what the old response has of it,
    so once this is below ``log u`` it stays there.
    """

    base: float
    """Times log p, to the evidence."""
    proposal: float
    """Times log g, to the evidence."""
    entropy: float
    """Times the entropy, to the weight of the cut's law."""
    token: float
    """To that weight."""


def early_terms(config: SamplerConfig) -> EarlyTerms | None:
    """Return the terms by which a proposal is rejected early; None where that is off or nothing is certain.

    ``alpha log p - log g`` of a token is at most 0 for a proposal temperature in [1/alpha, 1].
    """
    if not config.reject_early:
        return None
    if config.accept_rule == "max_swap":
        return EarlyTerms(1.0, 0.0, 0.0, 0.0)
    if not 1 / config.alpha <= config.temperature <= 1:
        return None
    cut = (1.0, ENTROPY_FLOOR) if config.cut_law == "entropy" else (0.0, 1.0)
    return EarlyTerms(config.alpha, -1.0, *cut)


def early_bound(
    uniform: Tensor, old: Suffix, room: Tensor, alpha: float | Tensor, rule: AcceptRule = "metropolis"
) -> Tensor:
    """Return what ``evidence - log weight`` must fall below for the rejection to be certain, (B,).

    Args:
        uniform: The number ``u`` of the step, drawn before the proposal.
        old: Of the response that the proposal would replace.
        room: Tokens that the proposal may have, (B,): as often may a term be rounded up.
        alpha: Exponent of the target.
        rule: How steps are accepted.
    """
    slack = _SLACK * alpha * room
    if rule == "max_swap":
        return old.base - slack
    return uniform.log() + (alpha * old.base - old.proposal + old.cut) - slack


# -- schedule: what follows a step -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Next:
    """The next thing each row does; every field has shape (B,)."""

    horizon: Tensor
    """Response length at which the row stops generating."""
    steps_left: Tensor
    """Metropolis-Hastings steps left in the stage."""
    propose: Tensor
    """Takes a Metropolis-Hastings step, bool."""
    extend: Tensor
    """Starts the next stage by extending to its horizon, bool."""
    finished: Tensor
    """The chain has ended, bool."""


def next_move(
    config: SamplerConfig,
    *,
    length: Tensor,
    has_ended: Tensor,
    horizon: Tensor,
    steps_left: Tensor,
    extended: Tensor,
    limit: Tensor | int,
    num_mh_steps: Tensor,
    final_steps: Tensor,
) -> Next:
    """Return what each row does next, after an extension or a Metropolis-Hastings step.

    Schedule ``paper``: a chain ends with the first stage that leaves it at an EOS. ``final-horizon``: it then jumps to
    T_max and takes ``final_steps`` there; the last stage of an unfinished chain takes the larger number of steps.

    Args:
        config: The sampler's settings that all rows have: block_size.
        length: Of the current response, (B,).
        has_ended: Whether the response ends in EOS or a stop string, (B,).
        horizon: Of the row's stage, (B,).
        steps_left: Before the step that is over, (B,).
        extended: Whether an extension is over, (B,).
        limit: T_max, the most tokens of a response, (B,) or a number.
        num_mh_steps: Steps of a stage, (B,) or ().
        final_steps: Steps at T_max, (B,) or ().
    """
    at_limit = horizon >= limit
    of_stage = torch.where(at_limit, torch.maximum(num_mh_steps, final_steps), num_mh_steps)
    steps_left = torch.where(extended, of_stage, steps_left - 1)
    stage_over = steps_left <= 0
    jump = stage_over & has_ended & ~at_limit & (final_steps > 0)
    extend = stage_over & ~has_ended & (length < limit)
    grown = (horizon + config.block_size).clamp(max=limit)
    return Next(
        horizon=torch.where(jump, limit, torch.where(extend, grown, horizon)),
        steps_left=torch.where(jump, final_steps, steps_left),
        propose=~stage_over | jump,
        extend=extend,
        finished=stage_over & ~jump & ~extend,
    )


def stops_early(config: SamplerConfig, length: Tensor, means: Tensor) -> Tensor:
    """Return whether the rule ``early_stop`` ends a response between two stages: bool, (B,).

    What comes out of a chain that is ended for what it has generated is no draw from the target.

    Args:
        config: The sampler's settings.
        length: Lengths of the responses so far, (B,).
        means: Over each response: of log p, next-token entropy and top-1 probability of the base model, (3, B).
    """
    logprob, entropy, top_probability = means
    threshold = config.early_stop_threshold_in_force
    past = {
        "entropy": entropy <= threshold,
        "perplexity": torch.exp(-logprob) <= threshold,
        "self_confidence": top_probability >= threshold,
    }[config.early_stop]
    return past & (length >= config.early_stop_min_tokens)
