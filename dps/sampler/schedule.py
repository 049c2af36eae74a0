"""What a chain does when a proposal has been decided: another step, the next stage, the final horizon, or the end.

A stage has a horizon, and an exponent that may still be growing towards alpha.

Pure arithmetic on row tensors, so the engine runs it for all rows that ended at once and tests run it on one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dps.sampler.settings import SamplerConfig


@dataclass(frozen=True, slots=True)
class Next:
    """The next thing each row does; every field has shape (B,)."""

    horizon: Tensor
    """Response length at which the row stops generating, int64."""
    steps_left: Tensor
    """Metropolis-Hastings steps left in the stage, int64."""
    propose: Tensor
    """Takes a Metropolis-Hastings step, bool."""
    extend: Tensor
    """Starts the next stage by extending to its horizon, bool."""
    finished: Tensor
    """The chain has ended, bool."""


def stage_alpha(config: SamplerConfig, horizon: Tensor) -> Tensor:
    """Return the exponent of the target at a horizon: ``1 + (alpha - 1) min(1, s / anneal_blocks)`` in stage s.

    Args:
        config: The sampler's settings.
        horizon: Horizons, int64, shape (B,); s is the horizon in blocks.

    Returns:
        float64, shape (B,); exactly alpha from stage ``anneal_blocks`` on.

    Note:
        The proposal's temperature does not follow: log-probabilities under the proposal stay valid from stage to stage.
    """
    stage = _stage(config, horizon)
    growing = 1.0 + (config.alpha - 1.0) * stage.double() / config.anneal_blocks
    return torch.where(stage >= config.anneal_blocks, config.alpha, growing)


def _stage(config: SamplerConfig, horizon: Tensor) -> Tensor:
    """Return the number of the stage that has this horizon, from 1."""
    return (horizon + config.block_size - 1) // config.block_size


def _stage_steps(config: SamplerConfig, horizon: Tensor) -> Tensor:
    """Return the Metropolis-Hastings steps of the stage that has this horizon.

    An unfinished chain's last stage is the final one; it takes the larger number of steps.
    """
    final = max(config.num_mh_steps, config.final_steps)
    return torch.where(horizon >= config.max_new_tokens, final, config.num_mh_steps)


def next_move(
    config: SamplerConfig,
    *,
    length: Tensor,
    has_ended: Tensor,
    horizon: Tensor,
    steps_left: Tensor,
    extended: Tensor,
) -> Next:
    """Return what each row does next, after its extension or its Metropolis-Hastings step was settled.

    Where the exponent grows over the first stages, a response that has ended before it is alpha goes through the
    remaining stages without being extended, so that every chain ends with steps at alpha.

    Args:
        config: The sampler's settings.
        length: Length of the current response, int64, shape (B,).
        has_ended: Whether it ends in EOS or a stop string, bool, shape (B,).
        horizon: Horizon H of the row's stage, int64, shape (B,).
        steps_left: Steps left before the settled one, int64, shape (B,).
        extended: Whether what was settled is an extension, bool, shape (B,).

    Source:
        METHOD section 1, "Stopping".
    """
    limit = config.max_new_tokens
    at_limit = horizon >= limit
    steps_left = torch.where(extended, _stage_steps(config, horizon), steps_left - 1)
    stage_over = steps_left <= 0
    jump = stage_over & has_ended & ~at_limit & (config.final_steps > 0)
    extend = stage_over & ~has_ended & (length < limit)
    growing = (_stage(config, horizon) < config.anneal_blocks) & (config.num_mh_steps > 0)
    carry = stage_over & has_ended & growing & ~at_limit & ~jump
    finished = stage_over & ~jump & ~extend & ~carry
    grown = (horizon + config.block_size).clamp(max=limit)
    return Next(
        horizon=torch.where(jump, limit, torch.where(extend | carry, grown, horizon)),
        steps_left=torch.where(jump, config.final_steps, torch.where(carry, _stage_steps(config, grown), steps_left)),
        propose=(~stage_over) | jump | carry,
        extend=extend,
        finished=finished,
    )


def stops_early(config: SamplerConfig, length: Tensor, means: Tensor) -> Tensor:
    """Return whether the rule ``early_stop`` ends a response between two stages.

    Args:
        config: The sampler's settings.
        length: Lengths of the responses so far, int64, shape (B,).
        means: Means over each response of log p (nats), next-token entropy (nats) and top-1 probability, all of the
            base model: float64, shape (3, B).

    Returns:
        bool, shape (B,).

    Note:
        A chain that a rule ends because of what it has generated is not a draw from the target; METHOD section 1.
    """
    logprob, entropy, top_probability = means
    threshold = config.early_stop_threshold_in_force
    past = {
        "entropy": lambda: entropy <= threshold,
        "perplexity": lambda: torch.exp(-logprob) <= threshold,
        "self_confidence": lambda: top_probability >= threshold,
    }[config.early_stop]()
    return past & (length >= config.early_stop_min_tokens)
