"""The draw of the next token: what ``streams.uniform`` and ``step.advance_rows`` do, in one launch and in two."""

# ruff: noqa: ANN001, ANN202 -- Triton takes the types of a kernel's arguments from the launch.

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from dps.sampler.rows import Rows

_LOG2_E = tl.constexpr(1.4426950408889634)
# The numbers of ``streams.uniform``.
_GAMMA = tl.constexpr(0x9E3779B97F4A7C15)
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX_2 = tl.constexpr(0x94D049BB133111EB)
_LAST_BIT = tl.constexpr(2.0**-52)
_CHUNK = 4096
"""Tokens of the vocabulary that one program of the first pass over the logits reads."""


def uniform(keys: Tensor, counters: Tensor) -> Tensor:
    """Return what :func:`dps.sampler.streams.uniform` does, bit for bit, in one launch; both tensors are contiguous."""
    out = torch.empty(keys.shape, dtype=torch.float64, device=keys.device)
    count = keys.numel()
    _uniform_numbers[(triton.cdiv(count, 128),)](keys, counters, out, count, BLOCK=128, num_warps=4)
    return out


@triton.jit
def _uniform_numbers(keys, counters, out, count, BLOCK: tl.constexpr):
    """Write one block of numbers."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    key = tl.load(keys + index, mask=mask, other=0)
    counter = tl.load(counters + index, mask=mask, other=0)
    tl.store(out + index, _uniform_number(key, counter), mask=mask)


@triton.jit
def _uniform_number(key, counter):
    """Return draw ``counter`` of the stream ``key``, both int64."""
    z = key.to(tl.uint64, bitcast=True) + (counter.to(tl.uint64, bitcast=True) + 1) * _GAMMA
    z = (z ^ (z >> 30)) * _MIX_1
    z = (z ^ (z >> 27)) * _MIX_2
    z = z ^ (z >> 31)
    return ((z >> 12).to(tl.float64) + 0.5) * _LAST_BIT


def advance_rows(
    logits: Tensor, rows: Rows, *, temperature: float | None, is_eos: Tensor, eos: int, not_eos: int
) -> None:
    """Draw each active row's next token from ``softmax(logits / temperature)`` and bring the row up to date.

    What :func:`dps.sampler.step.advance_rows` does, with the same arguments and random numbers. The logits (rows may be
    any stride apart, ``-inf`` is probability 0) are read once, in chunks, for the maximum and sums of exponentials of
    each; then one program per row finds the chunk of its token, reads that chunk again and writes all that the token
    changes. Rows that are not active are not read. Exponentials and sums within a chunk are float32, everything across
    chunks and both cumulative sums float64.
    """
    count, vocabulary = logits.shape
    chunks = triton.cdiv(vocabulary, _CHUNK)
    block = min(_CHUNK, max(16, triton.next_power_of_2(vocabulary)))
    # A Python float reaches a kernel as float32: two of them carry a float64.
    mixed = temperature is None  # each row has its own
    inverse = 0.0 if mixed else 1.0 / temperature
    inverse_high = float(np.float32(inverse))
    inverse_low = inverse - inverse_high
    # exp(x / T) is a square of exp(x) for T = 1/2, of a square for 1/4, ...: one exponential per logit, not two.
    squarings = {1.0: 0, 2.0: 1, 4.0: 2, 8.0: 3}.get(inverse, -1)
    statistics = torch.empty((4, count, chunks), dtype=torch.float32, device=logits.device)
    _chunk_statistics[(chunks, count)](
        logits, statistics, rows.active, rows.inverse, logits.stride(0), vocabulary, inverse_high,
        BLOCK=block, SQUARINGS=squarings, MIXED=mixed, num_warps=4,
    )  # fmt: skip
    tokens, values, terms = rows.live.tokens, rows.live.values, rows.terms
    _advance_row[(count,)](
        logits, statistics, rows.active, rows.key, rows.draws, rows.position, rows.generated, rows.useful_steps,
        rows.read_positions, rows.start, rows.horizon, rows.forced_length, tokens, values, is_eos,
        rows.evidence, rows.weight, rows.bound, rows.rejected_early, rows.saved_tokens, rows.length,
        rows.bound if terms is None else terms, rows.inverse, 0 if terms is None else terms.stride(0),
        logits.stride(0), vocabulary, chunks, inverse_high, inverse_low,
        tokens.stride(0), values.stride(0), values.stride(1), eos, not_eos,
        BLOCK=block, CHUNKS=max(16, triton.next_power_of_2(chunks)), SQUARINGS=squarings,
        EARLY=terms is not None, MIXED=mixed, num_warps=8,
    )  # fmt: skip


@triton.jit
def _exponentials(logit, top, inverse, SQUARINGS: tl.constexpr, MIXED: tl.constexpr):
    """Return ``logit - top``, its exponential and the exponential of its quotient by T, float32.

    MIXED: ``inverse`` is float64 and the row's own, for which each token takes what a pure batch is compiled for.
    """
    # A chunk of nothing but -inf has no maximum to subtract.
    below = logit - tl.where(top == float("-inf"), 0.0, top)
    base = tl.exp2(below * _LOG2_E)
    if MIXED:
        square = base * base
        fourth = square * square
        tempered = tl.exp2(below * inverse.to(tl.float32) * _LOG2_E)
        tempered = tl.where(inverse == 8.0, fourth * fourth, tl.where(inverse == 4.0, fourth, tempered))
        tempered = tl.where(inverse == 2.0, square, tl.where(inverse == 1.0, base, tempered))
    elif SQUARINGS >= 0:
        tempered = base
        for _ in tl.static_range(SQUARINGS):
            tempered = tempered * tempered
    else:
        tempered = tl.exp2(below * inverse * _LOG2_E)
    return below, base, tempered


@triton.jit
def _chunk_statistics(
    logits, statistics, active, inverses, stride, vocabulary, inverse,
    BLOCK: tl.constexpr, SQUARINGS: tl.constexpr, MIXED: tl.constexpr,
):  # fmt: skip
    """Write one chunk's maximum, sums of both exponentials and sum of x exp(x): ``statistics`` is (4, B, C)."""
    chunk, row = tl.program_id(0), tl.program_id(1)
    chunks, rows = tl.num_programs(0), tl.num_programs(1)
    if tl.load(active + row).to(tl.int32) == 0:
        return
    index = chunk * BLOCK + tl.arange(0, BLOCK)
    start = logits + row.to(tl.int64) * stride
    logit = tl.load(start + index, mask=index < vocabulary, other=float("-inf")).to(tl.float32)
    top = tl.max(logit, 0)
    if MIXED:
        inverse = tl.load(inverses + row)
    below, base, tempered = _exponentials(logit, top, inverse, SQUARINGS, MIXED)
    at = statistics + row * chunks + chunk
    plane = rows * chunks
    tl.store(at, top)
    tl.store(at + plane, tl.sum(base, 0))
    tl.store(at + 2 * plane, tl.sum(tempered, 0))
    tl.store(at + 3 * plane, tl.sum(tl.where(base > 0.0, below * base, 0.0), 0))


@triton.jit
def _advance_row(
    logits, statistics, active, key, draws, position, generated, useful_steps,
    read_positions, start, horizon, forced_length, tokens, values, is_eos,
    evidence, weight, bound, rejected_early, saved_tokens, length, terms, inverses,
    term_stride, stride, vocabulary, chunks, inverse_high, inverse_low,
    token_stride, kind_stride, value_stride, eos, not_eos,
    BLOCK: tl.constexpr, CHUNKS: tl.constexpr, SQUARINGS: tl.constexpr, EARLY: tl.constexpr, MIXED: tl.constexpr,
):  # fmt: skip
    """Draw one row's token and write what follows from it, in the order of ``step.advance_rows``."""
    row = tl.program_id(0)
    if tl.load(active + row).to(tl.int32) == 0:
        return
    counter = tl.load(draws + row)
    number = _uniform_number(tl.load(key + row), counter)
    following = tl.load(position + row) + 1
    size = following + 1 - tl.load(start + row)
    limit = tl.load(horizon + row)
    forced_size = tl.load(forced_length + row)
    num_generated = tl.load(generated + row)
    num_useful = tl.load(useful_steps + row)
    num_read = tl.load(read_positions + row)

    drawn, base_logprob, proposal_logprob, entropy, top_probability = _find_token(
        logits, statistics, number, inverses, stride, vocabulary, chunks, inverse_high, inverse_low,
        BLOCK, CHUNKS, SQUARINGS, MIXED,
    )  # fmt: skip
    says_end = tl.load(is_eos + drawn).to(tl.int32) != 0
    forced = forced_size > 0
    end = forced_size == size
    token = tl.where(forced & (end | says_end), tl.where(end, eos, not_eos), drawn)
    ended = tl.where(forced, end, says_end)

    if EARLY:
        if MIXED:
            terms += row
        of_base, of_proposal = tl.load(terms), tl.load(terms + term_stride)
        of_entropy, of_token = tl.load(terms + 2 * term_stride), tl.load(terms + 3 * term_stride)
        running = tl.load(evidence + row) + of_base * base_logprob + of_proposal * proposal_logprob
        cut_weight = tl.load(weight + row) + of_entropy * entropy + of_token
        doomed = running - tl.log(cut_weight) < tl.load(bound + row)
        num_rejected = tl.load(rejected_early + row)
        num_saved = tl.load(saved_tokens + row)
        longer = tl.maximum(tl.load(length + row) - size, 0)

    # Every warp reads the row's numbers, one of them writes them: not before all have read.
    tl.debug_barrier()
    wide = row.to(tl.int64)
    tl.store(tokens + wide * token_stride + following, token.to(tl.int64))
    value = values + wide * value_stride + following
    tl.store(value, base_logprob)
    tl.store(value + kind_stride, proposal_logprob)
    tl.store(value + 2 * kind_stride, entropy)
    tl.store(value + 3 * kind_stride, top_probability)
    tl.store(read_positions + row, num_read + following)
    tl.store(position + row, following)
    tl.store(draws + row, counter + 1)
    tl.store(generated + row, num_generated + 1)
    tl.store(useful_steps + row, num_useful + 1)
    goes_on = (ended | (size >= limit)) == 0
    if EARLY:
        tl.store(evidence + row, running)
        tl.store(weight + row, cut_weight)
        stopped = goes_on & doomed
        tl.store(rejected_early + row, num_rejected + stopped.to(tl.int64))
        tl.store(saved_tokens + row, num_saved + tl.where(stopped, longer, 0))
        goes_on = goes_on & (doomed == 0)
    tl.store(active + row, goes_on)


@triton.jit
def _find_token(
    logits, statistics, number, inverses, stride, vocabulary, chunks, inverse_high, inverse_low,
    BLOCK: tl.constexpr, CHUNKS: tl.constexpr, SQUARINGS: tl.constexpr, MIXED: tl.constexpr,
):  # fmt: skip
    """Merge a row's chunks, find the chunk of its token and the token in it; return what ``law.draw_tokens`` does."""
    row, rows = tl.program_id(0), tl.num_programs(0)
    if MIXED:
        inverse = tl.load(inverses + row)
        tempering = inverse
    else:
        inverse = tl.cast(inverse_high, tl.float64) + tl.cast(inverse_low, tl.float64)
        tempering = inverse_high
    chunk_index = tl.arange(0, CHUNKS)
    exists = chunk_index < chunks
    at = statistics + row * chunks + chunk_index
    plane = rows * chunks
    top = tl.load(at, mask=exists, other=float("-inf"))
    base_sum = tl.load(at + plane, mask=exists, other=0.0).to(tl.float64)
    weight = tl.load(at + 2 * plane, mask=exists, other=0.0).to(tl.float64)

    peak = tl.max(top, 0).to(tl.float64)
    below = top.to(tl.float64) - peak
    rescale = tl.exp(below)
    base_sum = base_sum * rescale
    base_total = tl.sum(base_sum, 0)
    weight = weight * tl.exp(below * inverse)
    cumulative = tl.cumsum(weight, 0)
    total = tl.max(cumulative, 0)

    # First chunk past the target; the last chunk that has any probability, if rounding left none.
    goal = number * total
    first = tl.min(tl.where((cumulative > goal) & (weight > 0.0), chunk_index, CHUNKS), 0)
    last = tl.max(tl.where(weight > 0.0, chunk_index, 0), 0)
    chunk = tl.minimum(first, last)
    chosen = chunk_index == chunk
    own = tl.sum(tl.where(chosen, weight, 0.0), 0)
    before = tl.sum(tl.where(chosen, cumulative - weight, 0.0), 0)
    fraction = (goal - before) / own
    fraction = tl.where(fraction > 0.0, fraction, 0.0)

    start = logits + row.to(tl.int64) * stride
    index = tl.arange(0, BLOCK)
    inside = chunk * BLOCK + index
    logit = tl.load(start + inside, mask=inside < vocabulary, other=float("-inf")).to(tl.float32)
    chunk_top = tl.sum(tl.where(chosen, top, 0.0), 0)
    _, _, tempered = _exponentials(logit, chunk_top, tempering, SQUARINGS, MIXED)
    cumulative_inside = tl.cumsum(tempered.to(tl.float64), 0)
    goal_inside = fraction * tl.max(cumulative_inside, 0)
    first_inside = tl.min(tl.where((cumulative_inside > goal_inside) & (tempered > 0.0), index, BLOCK), 0)
    last_inside = tl.max(tl.where(tempered > 0.0, index, 0), 0)
    found = chunk * BLOCK + tl.minimum(first_inside, last_inside)

    # The last index has its bound for rows of nothing but NaN, which must not read outside their memory.
    found = tl.minimum(found, vocabulary - 1)
    distance = tl.load(start + found).to(tl.float32).to(tl.float64) - peak
    log_base_total = tl.log(base_total)
    base_logprob = distance - log_base_total
    proposal_logprob = distance * inverse - tl.log(total)
    product = tl.load(at + 3 * plane, mask=exists, other=0.0).to(tl.float64) * rescale
    product += tl.where(base_sum > 0.0, below, 0.0) * base_sum
    entropy = log_base_total - tl.sum(product, 0) / base_total
    return found, base_logprob, proposal_logprob, entropy, 1.0 / base_total
