"""One token for every row: feed, draw, note whose proposal has ended. Pure device work, the body of a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dps.sampler.forward import Forward
from dps.sampler.law import draw_tokens
from dps.sampler.rows import Rows

Advance = Callable[[Tensor, Rows], None]
"""(logits (B, V), rows): draw each row's next token and bring the row up to date."""


def decode_step(rows: Rows, length: int, *, forward: Forward, advance: Advance) -> None:
    """Feed each row its token, draw the next one, and end the proposals that reached their end or their horizon.

    Args:
        rows: The rows, B of them; those that are not active compute along and change nothing that counts.
        length: No row stands at or beyond this position; attention reads no further.
        forward: The model.
        advance: :func:`advance_rows` or its equal in ``kernels``, its settings bound.
    """
    fed = rows.live.tokens.gather(1, rows.position[:, None])[:, 0]
    taken = rows.active.clone() if rows.stops is not None else None
    advance(forward(fed, rows.position, length), rows)
    if taken is not None:
        _follow_stops(rows, taken)


def advance_rows(
    logits: Tensor, rows: Rows, *, temperature: float | None, is_eos: Tensor, eos: int, not_eos: int
) -> None:
    """Draw each active row's next token from the proposal at that temperature and bring the row up to date.

    With temperature None each row has its own. Takes one number of each active row's random stream; rows that are not
    active stay as they are. ``is_eos``, bool (V,), says which tokens end a response; ``eos`` is one of them and
    ``not_eos`` another, for rows of forced length.
    """
    active = rows.active
    tempering = rows.temperature[:, None] if temperature is None else temperature
    drawn, values = draw_tokens(logits, tempering, rows.uniform(rows.key, rows.draws))
    following = rows.position + 1
    size = following + 1 - rows.start  # of the response that ends in the drawn token
    forced = rows.forced_length > 0
    end = rows.forced_length == size
    says_end = is_eos[drawn]
    token = torch.where(forced & (end | says_end), torch.where(end, eos, not_eos), drawn)
    ended = torch.where(forced, end, says_end)

    slot = following[:, None]
    tokens, kept = rows.live.tokens, rows.live.values
    tokens.scatter_(1, slot, torch.where(active, token, tokens.gather(1, slot)[:, 0])[:, None])
    slots = slot.expand(len(values), -1, -1)
    kept.scatter_(2, slots, torch.where(active, values, kept.gather(2, slots)[..., 0])[..., None])
    taken = active.long()
    rows.read_positions.add_(taken * following)
    rows.count(taken)
    goes_on = active & ~(ended | (size >= rows.horizon))
    if rows.terms is not None:
        doomed = _is_doomed(rows, values, active)
        doomed = goes_on & doomed
        rows.rejected_early.add_(doomed)
        rows.saved_tokens.add_(torch.where(doomed, (rows.length - size).clamp(min=0), 0))
        goes_on = goes_on & ~doomed
    active.copy_(goes_on)


def _is_doomed(rows: Rows, values: Tensor, taken: Tensor) -> Tensor:
    """Add the terms of the tokens that were ``taken``; return whose proposals are certain to be rejected, bool (R,)."""
    base_logprob, proposal_logprob, entropy, _ = values
    of_base, of_proposal, of_entropy, of_token = rows.terms
    rows.evidence.add_(torch.where(taken, of_base * base_logprob + of_proposal * proposal_logprob, 0.0))
    rows.weight.add_(torch.where(taken, of_entropy * entropy + of_token, 0.0))
    return rows.evidence - rows.weight.log() < rows.bound


def _follow_stops(rows: Rows, taken: Tensor) -> None:
    """Note how far a stop string has come in the rows that have ``taken`` a token; end those that completed one."""
    states, slot = rows.live.states, rows.position[:, None]
    token = rows.live.tokens.gather(1, slot)[:, 0]
    before = states.gather(1, (slot - 1).clamp(min=0))[:, 0]
    kept = states.gather(1, slot)[:, 0]
    state = torch.where(taken, rows.stops.following[before.long(), token], kept)
    state = torch.where(rows.forced_length > 0, 0, state)  # where the length is forced no text ends it
    states.scatter_(1, slot, state[:, None])
    rows.active.logical_and_(~(taken & (state == rows.stops.matched)))
