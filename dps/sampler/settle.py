"""What happens when a proposal ends: accept or reject it, put the accepted response in place, start what is next.

All rows at once, by masks and without a look from the host, so that a CUDA graph can hold it. The mathematics is in
``law``; this module applies it to the rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dps.sampler.cache import RowCache
from dps.sampler.law import (
    Suffix,
    accept,
    cut_logprob,
    cut_position,
    early_bound,
    log_accept_ratio,
    next_move,
    stops_early,
    weighted_cut_logprob,
    weighted_cut_position,
)
from dps.sampler.rows import Responses, Rows
from dps.sampler.settings import ENTROPY_FLOOR, SamplerConfig


def settle(rows: Rows, config: SamplerConfig, is_eos: Tensor, cache: RowCache) -> None:
    """Settle every row whose proposal has ended; the others stay as they are.

    Of ``config`` is taken what all rows have (``SamplerConfig.shares_rows``); ``is_eos`` is bool, shape (V,).
    """
    ended = rows.occupied & ~(rows.active | rows.finished)
    proposed = ended & ~rows.extending
    generated = rows.position + 1 - rows.start
    from_cut = rows.index >= rows.cut[:, None]
    # A proposal that was stopped early is decided as if it had ended there: its rejection is certain, so the same.
    new = _suffix(rows, rows.live, generated, from_cut, config)
    old = Suffix(rows.old_base, rows.old_proposal, rows.old_cut)
    verdict = accept(rows.number, log_accept_ratio(new, old, rows.alpha, config.accept_rule))
    verdict = verdict & (rows.number < torch.inf)  # of a row that runs ahead, see ``prefetch``
    differs = (rows.live.tokens != rows.saved.tokens) & from_cut & (rows.index < (rows.start + generated)[:, None])
    differs = differs.any(-1) | (generated != rows.length)
    # The numbers of tokens that a proposal did not need are passed over: no later number depends on where it ended.
    rows.draws.add_(torch.where(proposed, rows.horizon - generated, 0))
    accepted = ended & (rows.extending | verdict)

    before = rows.length.clone()
    torch.where(accepted, generated, rows.length, out=rows.length)
    stop = rows.start + rows.length
    before_stop = rows.index < stop[:, None]
    _put_in_place(rows, accepted, ended ^ accepted, from_cut & before_stop, stop, cache)
    if rows.kept is not None:
        rows.kept.accept(accepted, rows.cut - rows.start, rows.length)
    whole = before_stop & (rows.index >= rows.start[:, None])
    logprob = torch.where(whole, rows.saved.values[0], 0.0).sum(-1)
    rows.accepted.add_(accepted & proposed)
    rows.record(proposed, before, accepted, accepted & differs, logprob)
    rows.proposed.add_(proposed)
    _start_next(rows, ended, stop, config, is_eos)


def _suffix(rows: Rows, responses: Responses, length: Tensor, from_cut: Tensor, config: SamplerConfig) -> Suffix:
    """Sum what was recorded from the cut (``from_cut``, bool (R, S + 1)) to the end of responses of that length."""
    stop = rows.start + length
    suffix = from_cut & (rows.index < stop[:, None])
    base, proposal = torch.where(suffix, responses.values[:2], 0.0).sum(-1)
    if config.cut_law == "entropy":
        return Suffix(base, proposal, weighted_cut_logprob(_weights(rows, responses, stop)))
    return Suffix(base, proposal, cut_logprob(length))


def _weights(rows: Rows, responses: Responses, stop: Tensor) -> Tensor:
    """Return the weights of the cut law ``entropy``: shape (R, S + 1), 0 outside the response."""
    return torch.where(rows.between(rows.start, stop), responses.values[2] + ENTROPY_FLOOR, 0.0)


def _draw(rows: Rows, wanted: Tensor) -> Tensor:
    """Take the next random number of each row's stream where ``wanted``; elsewhere the stream does not move."""
    number = rows.uniform(rows.key, rows.draws)
    rows.draws.add_(wanted)
    return number


def _put_in_place(
    rows: Rows, accepted: Tensor, rejected: Tensor, suffix: Tensor, stop: Tensor, cache: RowCache
) -> None:
    """Make accepted proposals the response, and put the response back where a rejected proposal has overwritten it.

    ``suffix``, bool (R, S + 1), are the response's positions from the cut on; it ends before ``stop``.
    """
    first, last = rows.cut - 1, stop - 1  # the last token was not fed: keys and values end before it
    rows.saved.take(rows.live, suffix & accepted[:, None])
    cache.move(cache.live, cache.saved, accepted, first, last)
    rows.live.take(rows.saved, suffix & rejected[:, None])
    cache.move(cache.saved, cache.live, rejected, first, last)


def _start_next(rows: Rows, ended: Tensor, stop: Tensor, config: SamplerConfig, is_eos: Tensor) -> None:
    """Start the next step, stage or end of the rows that ended; ``stop`` is where their responses end."""
    last = (stop - 1).clamp(min=0)[:, None]
    has_ended = is_eos[rows.saved.tokens.gather(1, last)[:, 0]]
    if rows.stops is not None:
        has_ended = has_ended | (rows.saved.states.gather(1, last)[:, 0] == rows.stops.matched)
    move = next_move(
        config,
        length=rows.length,
        has_ended=has_ended,
        horizon=rows.horizon,
        steps_left=rows.steps_left,
        extended=rows.extending,
        limit=rows.limit,
        num_mh_steps=rows.num_mh_steps,
        final_steps=rows.final_steps,
    )
    number = _draw(rows, ended & move.propose)
    if config.cut_law == "entropy":
        cut = weighted_cut_position(number, _weights(rows, rows.saved, stop), rows.start)
    else:
        cut = cut_position(number, rows.length)
    cut = torch.where(move.propose, rows.start + cut, stop)
    _prepare_step(rows, ended, move.propose, cut, move.horizon, config)
    over = ended & move.finished
    if config.early_stop != "none":
        # Asked between stages only: where the chain goes on by extending.
        early = ended & move.extend & stops_early(config, rows.length, _means(rows, stop))
        rows.early.logical_or_(early)
        over = over | early
    torch.where(ended, cut, rows.cut, out=rows.cut)
    torch.where(ended, rows.cut - 1, rows.position, out=rows.position)
    torch.where(ended, move.horizon, rows.horizon, out=rows.horizon)
    torch.where(ended, move.steps_left, rows.steps_left, out=rows.steps_left)
    torch.where(ended, move.extend, rows.extending, out=rows.extending)
    torch.where(ended, ~over, rows.active, out=rows.active)
    rows.finished.logical_or_(over)


def _prepare_step(
    rows: Rows, ended: Tensor, propose: Tensor, cut: Tensor, horizon: Tensor, config: SamplerConfig
) -> None:
    """Draw u of the rows that ``propose``, and note what their proposals are compared with: now, and token by token."""
    number = _draw(rows, ended & propose)
    old = _suffix(rows, rows.saved, rows.length.clamp(min=1), rows.index >= cut[:, None], config)
    fields = [
        (rows.number, number),
        (rows.old_base, old.base),
        (rows.old_proposal, old.proposal),
        (rows.old_cut, old.cut),
    ]
    if rows.terms is not None:
        bound = early_bound(number, old, rows.start + horizon - cut, rows.alpha, config.accept_rule)
        if config.accept_rule == "max_swap":
            weight = torch.ones_like(bound)
        elif config.cut_law == "entropy":
            weight = _weights(rows, rows.saved, cut).sum(-1)
        else:
            weight = (cut - rows.start).double()
        bound = torch.where(propose & (rows.terms[0] > 0), bound, -torch.inf)
        fields += [(rows.bound, bound), (rows.evidence, torch.zeros_like(bound)), (rows.weight, weight)]
    for field, value in fields:
        torch.where(ended, value, field, out=field)


def _means(rows: Rows, stop: Tensor) -> Tensor:
    """Return the means over each response of log p, entropy and top-1 probability: float64, shape (3, R)."""
    base_logprob, _, entropy, top_probability = rows.saved.values
    kept = torch.stack((base_logprob, entropy, top_probability))  # a list as index would be copied from the host
    return torch.where(rows.between(rows.start, stop), kept, 0.0).sum(-1) / rows.length.clamp(min=1)
