"""What happens when a proposal ends: accept or reject it, put the accepted response in place, start what is next.

All rows at once, by masks and without a look from the host, so that a CUDA graph can hold it. The mathematics is in
``accept``, ``cut``, ``target``, ``tries`` and ``schedule``; this module applies it to the rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dps.sampler.accept import accept, log_accept_ratio, more_likely
from dps.sampler.cache import RowCache
from dps.sampler.cut import cut_logprob, cut_position, weighted_cut_logprob, weighted_cut_position
from dps.sampler.rows import Responses, Rows
from dps.sampler.schedule import next_move, stage_alpha
from dps.sampler.settings import ENTROPY_FLOOR, SamplerConfig
from dps.sampler.streams import uniform
from dps.sampler.target import power_logprob
from dps.sampler.tries import consider_try, tries_log_accept_ratio


def settle(rows: Rows, config: SamplerConfig, is_eos: Tensor, cache: RowCache) -> None:
    """Settle every row whose proposal has ended; the others stay as they are.

    Args:
        rows: The rows.
        config: The sampler's settings.
        is_eos: Which tokens end a response: bool, shape (V,).
        cache: Their keys and values.

    Source:
        METHOD section 1.
    """
    ended = rows.occupied & ~rows.active & ~rows.finished
    proposed = ended & ~rows.extending
    generated = rows.position + 1 - rows.start
    new = _suffix(rows, rows.live, generated, config)
    old = _suffix(rows, rows.saved, rows.length.clamp(min=1), config)
    again = torch.zeros_like(ended)
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
        again = proposed & (rows.tries_left > 1)
        # An extension is not weighed: what it generated is the candidate.
        source = rows.candidate
        _choose(rows, ended & rows.extending, generated, cache)
        new_length = rows.candidate_length
        log_ratio = tries_log_accept_ratio(rows.log_others, rows.log_candidate, old.omega)
    decided = ended & ~again
    number = _draw(rows, decided & ~rows.extending)
    verdict = more_likely(new.base, old.base) if config.accept_rule == "max_swap" else accept(number, log_ratio)
    accepted = decided & (rows.extending | verdict)

    before = rows.length.clone()
    _keep(rows, accepted, source, new_length, cache)
    _return(rows, decided & ~accepted, cache)
    whole = rows.between(rows.start, rows.start + rows.length)
    logprob = torch.where(whole, rows.saved.values[0], 0.0).sum(-1)
    stepped = decided & ~rows.extending
    rows.record(stepped, before, accepted, logprob)
    rows.proposed.add_(stepped.long())
    rows.accepted.add_((accepted & ~rows.extending).long())
    _start_next(rows, decided, again, config, is_eos)


class _Suffix:
    """What the mathematics needs of the suffix from the cut, each of shape (R,), nats."""

    def __init__(self, base: Tensor, target: Tensor, proposal: Tensor, cut: Tensor) -> None:
        self.base, self.target, self.proposal, self.cut = base, target, proposal, cut

    @property
    def omega(self) -> Tensor:
        """Log of the importance weight of a try: target over proposal, times the cut's probability."""
        return self.target - self.proposal + self.cut


def _suffix(rows: Rows, responses: Responses, length: Tensor, config: SamplerConfig) -> _Suffix:
    """Sum what was recorded from the cut to the end of responses of that length."""
    stop = rows.start + length
    base, proposal = torch.where(rows.between(rows.cut, stop), responses.values[:2], 0.0).sum(-1)
    by_entropy = config.cut_law == "entropy"
    cut = weighted_cut_logprob(_weights(rows, responses, stop)) if by_entropy else cut_logprob(length)
    return _Suffix(base, power_logprob(base, stage_alpha(config, rows.horizon)), proposal, cut)


def _weights(rows: Rows, responses: Responses, stop: Tensor) -> Tensor:
    """Return the weights of the cut law ``entropy``: shape (R, S + 1), 0 outside the response."""
    return torch.where(rows.between(rows.start, stop), responses.values[2] + ENTROPY_FLOOR, 0.0)


def _draw(rows: Rows, wanted: Tensor) -> Tensor:
    """Take the next random number of each row's stream where ``wanted``; elsewhere the stream does not move."""
    number = uniform(rows.key, rows.draws)
    rows.draws.add_(wanted.long())
    return number


def _consider(rows: Rows, proposed: Tensor, generated: Tensor, new: _Suffix, cache: RowCache) -> None:
    """Let the try that has ended compete with the candidate of the earlier ones."""
    replace, others, candidate = consider_try(_draw(rows, proposed), new.omega, rows.log_others, rows.log_candidate)
    rows.log_others.copy_(torch.where(proposed, others, rows.log_others))
    rows.log_candidate.copy_(torch.where(proposed, candidate, rows.log_candidate))
    _choose(rows, proposed & replace, generated, cache)


def _choose(rows: Rows, chosen: Tensor, generated: Tensor, cache: RowCache) -> None:
    """Make what these rows generated the candidate."""
    stop = rows.start + generated
    rows.candidate.take(rows.live, chosen[:, None] & rows.between(rows.cut, stop))
    rows.candidate_length.copy_(torch.where(chosen, generated, rows.candidate_length))
    cache.move(cache.live, cache.candidate, chosen, rows.cut - 1, stop - 1)


def _keep(rows: Rows, accepted: Tensor, source: Responses, length: Tensor, cache: RowCache) -> None:
    """Make the accepted proposals the response. Its last token was not fed, so keys and values end before it."""
    rows.length.copy_(torch.where(accepted, length, rows.length))
    stop = rows.start + rows.length
    span = accepted[:, None] & rows.between(rows.cut, stop)
    rows.saved.take(source, span)
    states = cache.live
    if source is rows.candidate:
        states = cache.candidate
        rows.live.take(source, span)
        cache.move(states, cache.live, accepted, rows.cut - 1, stop - 1)
    cache.move(states, cache.saved, accepted, rows.cut - 1, stop - 1)


def _return(rows: Rows, rejected: Tensor, cache: RowCache) -> None:
    """Put the accepted response back where a proposal has overwritten it."""
    stop = rows.start + rows.length
    rows.live.take(rows.saved, rejected[:, None] & rows.between(rows.cut, stop))
    cache.move(cache.saved, cache.live, rejected, rows.cut - 1, stop - 1)


def _start_next(rows: Rows, decided: Tensor, again: Tensor, config: SamplerConfig, is_eos: Tensor) -> None:
    """Start each decided row's next step, stage or end; rows that go ``again`` make another try from the same cut."""
    stop = rows.start + rows.length
    last_token = rows.saved.tokens.gather(1, (stop - 1).clamp(min=0)[:, None])[:, 0]
    move = next_move(
        config,
        length=rows.length,
        ends_in_eos=is_eos[last_token],
        horizon=rows.horizon,
        steps_left=rows.steps_left,
        extended=rows.extending,
    )
    number = _draw(rows, decided & move.propose)
    if config.cut_law == "entropy":
        cut = weighted_cut_position(number, _weights(rows, rows.saved, stop), rows.start)
    else:
        cut = cut_position(number, rows.length)
    cut = torch.where(move.propose, cut, rows.length)
    rows.cut.copy_(torch.where(decided, rows.start + cut, rows.cut))
    rows.position.copy_(torch.where(decided | again, rows.cut - 1, rows.position))
    rows.horizon.copy_(torch.where(decided, move.horizon, rows.horizon))
    rows.steps_left.copy_(torch.where(decided, move.steps_left, rows.steps_left))
    rows.extending.copy_(torch.where(decided, move.extend, rows.extending))
    rows.active.copy_(torch.where(decided, ~move.finished, rows.active | again))
    rows.finished.logical_or_(decided & move.finished)
    if rows.candidate is not None:
        rows.tries_left.copy_(torch.where(decided, config.num_tries, rows.tries_left - again.long()))
        for log_sum in (rows.log_others, rows.log_candidate):
            log_sum.masked_fill_(decided, -torch.inf)
