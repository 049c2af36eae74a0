"""What happens when a proposal ends: accept or reject it, put the accepted response in place, start what is next.

All rows at once, by masks and without a look from the host, so that a CUDA graph can hold it. The mathematics is in
``accept``, ``cut``, ``target``, ``tries`` and ``schedule``; this module applies it to the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dps.sampler.accept import accept, log_accept_ratio, more_likely
from dps.sampler.cache import RowCache
from dps.sampler.cut import cut_logprob, cut_position, weighted_cut_logprob, weighted_cut_position
from dps.sampler.rows import Responses, Rows
from dps.sampler.schedule import next_move, stage_alpha, stops_early
from dps.sampler.settings import ENTROPY_FLOOR, SamplerConfig
from dps.sampler.stop import Endings
from dps.sampler.target import power_logprob
from dps.sampler.tries import consider_try, tries_log_accept_ratio


def settle(rows: Rows, config: SamplerConfig, endings: Endings, cache: RowCache) -> None:
    """Settle every row whose proposal has ended; the others stay as they are.

    Args:
        rows: The rows.
        config: The sampler's settings.
        endings: What ends a response.
        cache: Their keys and values.

    Source:
        METHOD section 1.
    """
    ended = rows.occupied & ~(rows.active | rows.finished)
    proposed = ended & ~rows.extending
    decided, stepped = ended, proposed
    generated = rows.position + 1 - rows.start
    alpha = stage_alpha(config, rows.horizon)
    from_cut = rows.index >= rows.cut[:, None]
    new = _suffix(rows, rows.live, generated, from_cut, alpha, config)
    old = _suffix(rows, rows.saved, rows.length.clamp(min=1), from_cut, alpha, config)
    if rows.candidate is None:
        source, new_length = rows.live, generated
        log_ratio = log_accept_ratio(
            new_target=new.target,
            old_target=old.target,
            new_proposal=new.proposal,
            old_proposal=old.proposal,
            new_cut=new.cut,
            old_cut=old.cut,
        )
    else:
        _consider(rows, proposed, generated, new, cache)
        last_try = rows.tries_left <= 1
        decided, stepped = ended & (rows.extending | last_try), proposed & last_try
        # An extension is not weighed: what it generated is the candidate.
        source = rows.candidate
        _choose(rows, ended & rows.extending, generated, cache)
        new_length = rows.candidate_length
        log_ratio = tries_log_accept_ratio(rows.log_others, rows.log_candidate, old.omega)
    number = _draw(rows, stepped)
    verdict = more_likely(new.base, old.base) if config.accept_rule == "max_swap" else accept(number, log_ratio)
    accepted = decided & (rows.extending | verdict)

    before = rows.length.clone()
    torch.where(accepted, new_length, rows.length, out=rows.length)
    stop = rows.start + rows.length
    before_stop = rows.index < stop[:, None]
    _put_in_place(rows, decided, accepted, from_cut & before_stop, stop, source, cache)
    whole = before_stop & (rows.index >= rows.start[:, None])
    logprob = torch.where(whole, rows.saved.values[0], 0.0).sum(-1)
    rows.record(stepped, before, accepted, logprob)
    rows.proposed.add_(stepped)
    rows.accepted.add_(accepted & stepped)
    _start_next(rows, ended, decided, stop, config, endings)


@dataclass(frozen=True, slots=True, eq=False)
class _Suffix:
    """What the mathematics needs of the suffix from the cut, each of shape (R,), nats."""

    base: Tensor
    target: Tensor
    proposal: Tensor
    cut: Tensor

    @property
    def omega(self) -> Tensor:
        """Log of the importance weight of a try: target over proposal, times the cut's probability."""
        return self.target - self.proposal + self.cut


def _suffix(
    rows: Rows, responses: Responses, length: Tensor, from_cut: Tensor, alpha: Tensor, config: SamplerConfig
) -> _Suffix:
    """Sum what was recorded from the cut to the end of responses of that length.

    Args:
        rows: The rows.
        responses: What to sum.
        length: Lengths, int64, shape (R,).
        from_cut: Which positions lie at the cut or after it, bool, shape (R, S + 1).
        alpha: Exponents of the target, shape (R,).
        config: The sampler's settings.
    """
    stop = rows.start + length
    suffix = from_cut & (rows.index < stop[:, None])
    base, proposal = torch.where(suffix, responses.values[:2], 0.0).sum(-1)
    weighted = config.cut_law == "entropy"
    cut = weighted_cut_logprob(_weights(rows, responses, stop)) if weighted else cut_logprob(length)
    return _Suffix(base, power_logprob(base, alpha), proposal, cut)


def _weights(rows: Rows, responses: Responses, stop: Tensor) -> Tensor:
    """Return the weights of the cut law ``entropy``: shape (R, S + 1), 0 outside the response."""
    return torch.where(rows.between(rows.start, stop), responses.values[2] + ENTROPY_FLOOR, 0.0)


def _means(rows: Rows, stop: Tensor) -> Tensor:
    """Return the means over each response of log p, entropy and top-1 probability: float64, shape (3, R)."""
    whole = rows.between(rows.start, stop)
    base_logprob, _, entropy, top_probability = rows.saved.values
    kept = torch.stack((base_logprob, entropy, top_probability))  # a list as index would be copied from the host
    return torch.where(whole, kept, 0.0).sum(-1) / rows.length.clamp(min=1)


def _draw(rows: Rows, wanted: Tensor) -> Tensor:
    """Take the next random number of each row's stream where ``wanted``; elsewhere the stream does not move."""
    number = rows.uniform(rows.key, rows.draws)
    rows.draws.add_(wanted)
    return number


def _consider(rows: Rows, proposed: Tensor, generated: Tensor, new: _Suffix, cache: RowCache) -> None:
    """Let the try that has ended compete with the candidate of the earlier ones."""
    replace, others, candidate = consider_try(_draw(rows, proposed), new.omega, rows.log_others, rows.log_candidate)
    torch.where(proposed, others, rows.log_others, out=rows.log_others)
    torch.where(proposed, candidate, rows.log_candidate, out=rows.log_candidate)
    _choose(rows, proposed & replace, generated, cache)


def _choose(rows: Rows, chosen: Tensor, generated: Tensor, cache: RowCache) -> None:
    """Make what these rows generated the candidate."""
    stop = rows.start + generated
    rows.candidate.take(rows.live, chosen[:, None] & rows.between(rows.cut, stop))
    torch.where(chosen, generated, rows.candidate_length, out=rows.candidate_length)
    cache.move(cache.live, cache.candidate, chosen, rows.cut - 1, stop - 1)


def _put_in_place(
    rows: Rows,
    decided: Tensor,
    accepted: Tensor,
    suffix: Tensor,
    stop: Tensor,
    source: Responses,
    cache: RowCache,
) -> None:
    """Make accepted proposals the response, and put the response back where a rejected proposal has overwritten it.

    Args:
        rows: The rows.
        decided: Rows of which one or the other is true: bool, shape (R,).
        accepted: Which of them it is, bool, shape (R,).
        suffix: The positions of the response from the cut on, bool, shape (R, S + 1).
        stop: Where it ends, int64, shape (R,). Its last token was not fed, so keys and values end before it.
        source: The proposals: what is live, or the candidates.
        cache: The rows' keys and values.
    """
    rejected = decided ^ accepted
    taken, returned = suffix & accepted[:, None], suffix & rejected[:, None]
    first, last = rows.cut - 1, stop - 1
    rows.saved.take(source, taken)
    states = cache.live
    if source is rows.candidate:
        states = cache.candidate
        rows.live.take(source, taken)
        cache.move(states, cache.live, accepted, first, last)
    cache.move(states, cache.saved, accepted, first, last)
    rows.live.take(rows.saved, returned)
    cache.move(cache.saved, cache.live, rejected, first, last)


def _start_next(
    rows: Rows, ended: Tensor, decided: Tensor, stop: Tensor, config: SamplerConfig, endings: Endings
) -> None:
    """Start each decided row's next step, stage or end; the others that ended make another try from the same cut."""
    move = next_move(
        config,
        length=rows.length,
        has_ended=endings.ended(rows.saved, stop),
        horizon=rows.horizon,
        steps_left=rows.steps_left,
        extended=rows.extending,
    )
    number = _draw(rows, decided & move.propose)
    if config.cut_law == "entropy":
        cut = weighted_cut_position(number, _weights(rows, rows.saved, stop), rows.start)
    else:
        cut = cut_position(number, rows.length)
    cut = torch.where(move.propose, rows.start + cut, stop)
    over = decided & move.finished
    if config.early_stop != "none":
        # Asked between stages only: where the chain goes on by extending.
        early = decided & move.extend & stops_early(config, rows.length, _means(rows, stop))
        rows.early.logical_or_(early)
        over = over | early
    rows.keep(decided & ~over & (move.horizon != rows.horizon), move.horizon)
    torch.where(decided, cut, rows.cut, out=rows.cut)
    torch.where(ended, rows.cut - 1, rows.position, out=rows.position)
    torch.where(decided, move.horizon, rows.horizon, out=rows.horizon)
    torch.where(decided, move.steps_left, rows.steps_left, out=rows.steps_left)
    torch.where(decided, move.extend, rows.extending, out=rows.extending)
    torch.where(ended, ~over, rows.active, out=rows.active)
    rows.finished.logical_or_(over)
    if rows.candidate is not None:
        rows.tries_left.sub_(ended.long()).masked_fill_(decided, config.num_tries)
        for log_sum in (rows.log_others, rows.log_candidate):
            log_sum.masked_fill_(decided, -torch.inf)
