"""Triton kernels of one decoding step: the work between two matrix products, each array touched once.

A step of the engine is a chain of weight products with small work between them: norms, rotary embedding, the write of
one position of keys and values, attention over the row's past, and the draw of the next token from the logits. These
functions are that small work. Their cost is the bytes they move, so each reads its input once and writes its output
once; attention reads the positions a row has, not the positions it could have.

Every function allocates its output with ``torch.empty``, looks at shapes and Python numbers only and never waits for
the device, so a CUDA graph can hold it. Triton compiles at the first launch: call once before the capture. Kernels are
launched on the current device.

This module imports triton, so only what has checked for a GPU imports it. With ``TRITON_INTERPRET=1`` in the
environment before the import it runs on a CPU, slowly, for tests.
"""

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
_PROGRAMS_PER_PROCESSOR = 8
"""Attention programs that each multiprocessor should get: enough that rows of unequal length even out."""
_SMALLEST_PIECE = 128
"""Fewest positions per attention program: below, merging costs more than the parallel reads gain."""
_MOST_PIECES = 64
"""Most programs that share one row: the merge holds one vector of each in registers."""
_MOVE = 8192
"""Elements that one program copies at a time."""


def _check_packed(*tensors: Tensor) -> None:
    """Refuse tensors with gaps: the kernels that read them take no strides and would read other numbers."""
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise ValueError(f"Expected a contiguous tensor, got {tuple(tensor.shape)}, strides {tensor.stride()}.")


# -- random numbers ----------------------------------------------------------------------------------------------------


def uniform(keys: Tensor, counters: Tensor) -> Tensor:
    """Return draw ``counters`` of the streams ``keys`` in one launch: bit for bit :func:`dps.sampler.streams.uniform`.

    Args:
        keys: Stream keys, int64, contiguous.
        counters: Draw numbers from 0, int64, same shape, contiguous.

    Returns:
        float64, same shape, strictly inside (0, 1).
    """
    _check_packed(keys, counters)
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


# -- the next token ----------------------------------------------------------------------------------------------------


def advance_rows(logits: Tensor, rows: Rows, *, temperature: float, is_eos: Tensor, eos: int, not_eos: int) -> None:
    """Draw each active row's next token from ``softmax(logits / temperature)`` and bring the row up to date.

    What ``step.advance_rows`` does, in two launches, with the same random numbers: the token is the first one whose
    cumulative probability exceeds the row's number times the total; a token of probability 0 is never drawn. The logits
    are read once, in chunks (maximum and sums of exponentials per chunk); then one program per row finds the chunk of
    its token, reads that chunk again and writes all that the token changes. Rows that are not active are not read.

    Args:
        logits: The model's logits, shape (B, V), bfloat16, float16 or float32; rows may be any stride apart. ``-inf``
            is probability 0.
        rows: The B rows.
        temperature: Of the proposal, above 0.
        is_eos: Which tokens end a response: bool, shape (V,).
        eos: One that does, for rows of forced length.
        not_eos: One that does not.

    Note:
        Exponentials are float32, sums within a chunk float32, everything across chunks and both cumulative sums
        float64. Randomness: one number of each active row's stream.
    """
    count, vocabulary = logits.shape
    if logits.stride(1) != 1:
        raise ValueError("The logits of a row must lie side by side.")
    if len(rows.position) != count or len(is_eos) != vocabulary:
        raise ValueError(
            f"Expected logits of {len(rows.position)} rows and {len(is_eos)} tokens, got {tuple(logits.shape)}."
        )
    chunks = triton.cdiv(vocabulary, _CHUNK)
    block = min(_CHUNK, max(16, triton.next_power_of_2(vocabulary)))
    # A Python float reaches a kernel as float32: two of them carry a float64.
    inverse = 1.0 / temperature
    inverse_high = float(np.float32(inverse))
    inverse_low = inverse - inverse_high
    # exp(x / T) is a square of exp(x) for T = 1/2, of a square for 1/4, ...: one exponential per logit, not two.
    squarings = {1.0: 0, 2.0: 1, 4.0: 2, 8.0: 3}.get(inverse, -1)
    statistics = torch.empty((4, count, chunks), dtype=torch.float32, device=logits.device)
    _chunk_statistics[(chunks, count)](
        logits, statistics, rows.active, logits.stride(0), vocabulary, inverse_high,
        BLOCK=block, SQUARINGS=squarings, num_warps=4,
    )  # fmt: skip
    tokens, values = rows.live.tokens, rows.live.values
    _advance_row[(count,)](
        logits, statistics, rows.active, rows.key, rows.draws, rows.position, rows.generated, rows.useful_steps,
        rows.read_positions, rows.start, rows.horizon, rows.forced_length, tokens, values, is_eos,
        logits.stride(0), vocabulary, chunks, inverse_high, inverse_low,
        tokens.stride(0), values.stride(0), values.stride(1), eos, not_eos,
        BLOCK=block, CHUNKS=max(16, triton.next_power_of_2(chunks)), SQUARINGS=squarings, num_warps=8,
    )  # fmt: skip


@triton.jit
def _exponentials(logit, top, inverse, SQUARINGS: tl.constexpr):
    """Return ``logit - top``, its exponential and the exponential of its quotient by T, float32."""
    # A chunk of nothing but -inf has no maximum to subtract.
    below = logit - tl.where(top == float("-inf"), 0.0, top)
    base = tl.exp2(below * _LOG2_E)
    if SQUARINGS >= 0:
        tempered = base
        for _ in tl.static_range(SQUARINGS):
            tempered = tempered * tempered
    else:
        tempered = tl.exp2(below * inverse * _LOG2_E)
    return below, base, tempered


@triton.jit
def _chunk_statistics(
    logits, statistics, active, stride, vocabulary, inverse,
    BLOCK: tl.constexpr, SQUARINGS: tl.constexpr,
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
    below, base, tempered = _exponentials(logit, top, inverse, SQUARINGS)
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
    stride, vocabulary, chunks, inverse_high, inverse_low,
    token_stride, kind_stride, value_stride, eos, not_eos,
    BLOCK: tl.constexpr, CHUNKS: tl.constexpr, SQUARINGS: tl.constexpr,
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

    found, base_logprob, proposal_logprob, entropy, top_probability = _find_token(
        logits, statistics, number, stride, vocabulary, chunks, inverse_high, inverse_low,
        BLOCK, CHUNKS, SQUARINGS,
    )  # fmt: skip
    says_end = tl.load(is_eos + found).to(tl.int32) != 0
    forced = forced_size > 0
    end = forced_size == size
    token = tl.where(forced & (end | says_end), tl.where(end, eos, not_eos), found)
    ended = tl.where(forced, end, says_end)

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
    tl.store(active + row, ~(ended | (size >= limit)))


@triton.jit
def _find_token(
    logits, statistics, number, stride, vocabulary, chunks, inverse_high, inverse_low,
    BLOCK: tl.constexpr, CHUNKS: tl.constexpr, SQUARINGS: tl.constexpr,
):  # fmt: skip
    """Merge a row's chunks, find the chunk of its token and the token in it.

    Returns:
        The token, its log-probabilities under the base law and the proposal, the base law's entropy, and the
        probability of its most likely token.
    """
    row, rows = tl.program_id(0), tl.num_programs(0)
    inverse = tl.cast(inverse_high, tl.float64) + tl.cast(inverse_low, tl.float64)
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
    _, _, tempered = _exponentials(logit, chunk_top, inverse_high, SQUARINGS)
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


# -- attention ---------------------------------------------------------------------------------------------------------


def attend_rows(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    *,
    max_length: int,
    scale: float,
    softcap: float | None = None,
    piece: int | None = None,
    arrivals: Tensor | None = None,
) -> Tensor:
    """Attend from one query per row to the row's positions up to its own.

    ``out = softmax(cap(scale * q k^T)) v`` over positions ``0..position[b]``, ``cap(x) = softcap * tanh(x / softcap)``.

    One program reads the keys and values of one key head over one piece of a row's positions, for all query heads that
    share them; nothing beyond the row's length is read. The pieces of a longer row are merged by a second kernel or,
    with ``arrivals``, by whichever program ends last, which saves a launch.

    Args:
        query: Shape (B, H, D); any strides of rows and heads.
        keys: One layer's keys, shape (R, Hkv, S, D), R at least B, Hkv a divisor of H; positions and features
            contiguous.
        values: The same for values, same strides.
        position: Position of each row's query, whose own key and value are written already: shape (B,), int64, at
            least 0.
        max_length: No row that matters has more positions (positions beyond are ignored); decides the number of
            programs, not what they read.
        scale: Factor of the scores, ``D ** -0.5`` as a rule.
        softcap: Bound of the scores, where the model has one.
        piece: Positions per program, a multiple of 64; by default from B, Hkv and ``max_length``, so that the device
            is filled several times over.
        arrivals: Zeros, at least B * Hkv of them, int32, kept between calls: where the programs of a row count who has
            ended. Zeros again when the kernel ends; calls that may overlap must not share them.

    Returns:
        Shape (B, H, D), dtype of ``query``, contiguous.

    Note:
        What lies beyond a row's length may be anything, NaN included.

    Source:
        Dao, Haziza, Massa and Sizov, "Flash-Decoding for long-context inference", 2023.
    """
    rows, heads, size = query.shape
    key_heads = keys.shape[1]
    if keys.stride() != values.stride() or keys.stride()[2:] != (size, 1) or query.stride(2) != 1:
        raise ValueError("Keys and values must share their strides, with positions and features contiguous.")
    _check_packed(position)
    if arrivals is not None and arrivals.numel() < rows * key_heads:
        raise ValueError(f"Expected at least {rows * key_heads} arrivals, got {arrivals.numel()}.")
    group = heads // key_heads
    out = torch.empty((rows, heads, size), dtype=query.dtype, device=query.device)
    if piece is None:
        piece = _piece_length(rows * key_heads, max_length, query.device)
    pieces = triton.cdiv(max_length, piece)
    split = pieces > 1
    padded = max(16, triton.next_power_of_2(size))
    # Unused (and never read) without a split.
    partial = torch.empty((rows, heads, pieces, size), dtype=torch.float32, device=query.device) if split else out
    log_sum = torch.empty((rows, heads, pieces), dtype=torch.float32, device=query.device) if split else out
    block, num_warps, num_stages = _attention_shape(padded, keys.element_size())
    _attend_piece[(rows * key_heads, pieces)](
        query, keys, values, position, out, partial, log_sum, position if arrivals is None else arrivals,
        query.stride(0), query.stride(1), keys.stride(0), keys.stride(1),
        scale, 1.0 if softcap is None else softcap, piece,
        KEY_HEADS=key_heads, GROUP=group, GROUP_PADDED=max(16, triton.next_power_of_2(group)),
        SIZE=size, SIZE_PADDED=padded, BLOCK=block,
        SOFTCAP=softcap is not None, SPLIT=split, MERGE=arrivals is not None,
        num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
    if split and arrivals is None:
        _merge_pieces[(rows * heads,)](
            partial, log_sum, position, out, piece, pieces,
            HEADS=heads, SIZE=size, SIZE_PADDED=padded, PIECES=triton.next_power_of_2(pieces),
            num_warps=4 if padded * pieces >= 1024 else 1,
        )  # fmt: skip
    return out


def _piece_length(pairs: int, max_length: int, device: torch.device) -> int:
    """Return how many positions one attention program reads.

    The rows' lengths are on the device; half of ``max_length`` stands for their mean.

    Args:
        pairs: Rows times key heads.
        max_length: Positions of the longest row.
        device: Where it runs.

    Returns:
        A multiple of 64 positions.
    """
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
    fair = pairs * max_length / (2 * processors * _PROGRAMS_PER_PROCESSOR)
    wanted = max(fair, _SMALLEST_PIECE, max_length / _MOST_PIECES)
    return int(-(-wanted // 64)) * 64


def _attention_shape(padded_size: int, element_size: int) -> tuple[int, int, int]:
    """Return positions per block, warps and pipeline stages for a (padded) head size.

    About 16 KB of keys and as much of values in each of two to three stages: what a multiprocessor must have in flight
    to reach memory bandwidth, with room for several programs in its shared memory.
    """
    if padded_size * element_size <= 128:
        return 64, 4, 4
    if padded_size * element_size <= 256:
        return 64, 4, 3
    return 32, 4, 3


@triton.jit
def _attend_piece(
    query, keys, values, position, out, partial, log_sum, arrivals,
    query_row_stride, query_head_stride, row_stride, head_stride,
    scale, softcap, piece_length,
    KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr,
    SIZE: tl.constexpr, SIZE_PADDED: tl.constexpr, BLOCK: tl.constexpr,
    SOFTCAP: tl.constexpr, SPLIT: tl.constexpr, MERGE: tl.constexpr,
):  # fmt: skip
    """Attend over one piece of one row, for the query heads of one key head.

    With ``MERGE`` the last program of a row merges its pieces; else ``_merge_pieces`` does.
    """
    # Pieces vary slowest: the programs of late pieces, most of which have nothing to do, come last.
    pair, piece = tl.program_id(0), tl.program_id(1)
    row, key_head = pair // KEY_HEADS, pair % KEY_HEADS
    # A row that waits may stand beyond max_length: its output is of no use, but its pieces must still be counted.
    length = tl.minimum(tl.load(position + row).to(tl.int32) + 1, tl.num_programs(1) * piece_length)

    member = tl.arange(0, GROUP_PADDED)
    feature = tl.arange(0, SIZE_PADDED)
    head = key_head * GROUP + member
    query_mask = (member < GROUP)[:, None] & (feature < SIZE)[None, :]
    # Before the branch, so that the query is under way together with the length.
    q = tl.load(
        query + row.to(tl.int64) * query_row_stride + head[:, None] * query_head_stride + feature[None, :],
        mask=query_mask,
        other=0.0,
    )
    begin = piece * piece_length
    if begin >= length:
        return
    end = tl.minimum(length, begin + piece_length)

    start = row.to(tl.int64) * row_stride + key_head.to(tl.int64) * head_stride
    inside = tl.arange(0, BLOCK)
    offset = inside[:, None] * SIZE + feature[None, :]
    key_start = keys + start
    value_start = values + start

    top = tl.full([GROUP_PADDED], float("-inf"), tl.float32)
    weight_sum = tl.zeros([GROUP_PADDED], tl.float32)
    weighted = tl.zeros([GROUP_PADDED, SIZE_PADDED], tl.float32)
    for first in range(begin, end, BLOCK):
        valid = first + inside < end
        # Neither garbage nor NaN beyond the row's length may enter: 0 * NaN is NaN.
        mask = valid[:, None] if SIZE == SIZE_PADDED else valid[:, None] & (feature < SIZE)[None, :]
        k = tl.load(key_start + (first * SIZE + offset), mask=mask, other=0.0)
        v = tl.load(value_start + (first * SIZE + offset), mask=mask, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee")
        if SOFTCAP:
            # tanh(x) = 1 - 2 / (1 + exp(2 x)), right at both ends too.
            doubled = tl.exp2(score * (2.0 * scale / softcap * _LOG2_E))
            score = softcap * (1.0 - 2.0 / (1.0 + doubled)) * _LOG2_E
        else:
            score = score * (scale * _LOG2_E)
        score = tl.where(valid[None, :], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        weight_sum = weight_sum * shrink + tl.sum(weight, 1)
        weighted = tl.dot(weight.to(v.dtype), v, weighted * shrink[:, None], input_precision="ieee")
        top = new_top

    result = weighted / weight_sum[:, None]
    place = row.to(tl.int64) * (KEY_HEADS * GROUP) + head
    out_at = out + place[:, None] * SIZE + feature[None, :]
    if SPLIT:
        if length > piece_length:
            pieces = tl.num_programs(1)
            slot = place * pieces + piece
            tl.store(partial + slot[:, None] * SIZE + feature[None, :], result, mask=query_mask)
            tl.store(log_sum + slot, top + tl.log2(weight_sum), mask=member < GROUP)
            if MERGE:
                # Every thread has stored before one of them tells the others' programs.
                tl.debug_barrier()
                used = tl.cdiv(length, piece_length)
                if tl.atomic_add(arrivals + pair, 1, sem="acq_rel") == used - 1:
                    merged = _merge_group(
                        partial, log_sum, place * pieces, used, GROUP, GROUP_PADDED, SIZE, SIZE_PADDED
                    )  # fmt: skip
                    tl.store(out_at, merged.to(out.dtype.element_ty), mask=query_mask)
                    tl.store(arrivals + pair, 0)
        else:
            tl.store(out_at, result.to(out.dtype.element_ty), mask=query_mask)
    else:
        tl.store(out_at, result.to(out.dtype.element_ty), mask=query_mask)


@triton.jit
def _merge_group(
    partial, log_sum, first_slot, used,
    GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr, SIZE: tl.constexpr, SIZE_PADDED: tl.constexpr,
):  # fmt: skip
    """Merge the ``used`` pieces of a group of query heads by their weights."""
    member = tl.arange(0, GROUP_PADDED)
    feature = tl.arange(0, SIZE_PADDED)
    top = tl.full([GROUP_PADDED], float("-inf"), tl.float32)
    weight_sum = tl.zeros([GROUP_PADDED], tl.float32)
    weighted = tl.zeros([GROUP_PADDED, SIZE_PADDED], tl.float32)
    for first in range(0, used, 4):
        for ahead in tl.static_range(4):  # unrolled: the loads of four pieces are under way together
            piece = first + ahead
            mask = tl.where(piece < used, member, GROUP) < GROUP
            slot = first_slot + piece
            # Past the first-level cache, which may hold what was there before another program wrote.
            level = tl.load(log_sum + slot, mask=mask, other=0.0, cache_modifier=".cg")
            part = tl.load(
                partial + slot[:, None] * SIZE + feature[None, :],
                mask=mask[:, None] & (feature < SIZE)[None, :],
                other=0.0,
                cache_modifier=".cg",
            )
            level = tl.where(piece < used, level, float("-inf"))
            new_top = tl.maximum(top, level)
            weight = tl.exp2(level - new_top)
            shrink = tl.exp2(top - new_top)
            weight_sum = weight_sum * shrink + weight
            weighted = weighted * shrink[:, None] + part * weight[:, None]
            top = new_top
    return weighted / weight_sum[:, None]


@triton.jit
def _merge_pieces(
    partial, log_sum, position, out, piece_length, pieces,
    HEADS: tl.constexpr, SIZE: tl.constexpr, SIZE_PADDED: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Merge the pieces of one query head by their weights; rows of one piece are written already."""
    place = tl.program_id(0)
    length = tl.minimum(tl.load(position + place // HEADS).to(tl.int32) + 1, pieces * piece_length)
    if length <= piece_length:
        return
    piece = tl.arange(0, PIECES)
    feature = tl.arange(0, SIZE_PADDED)
    slot = place.to(tl.int64) * pieces + piece
    exists = piece * piece_length < length
    level = tl.load(log_sum + slot, mask=exists, other=float("-inf"))
    part = tl.load(
        partial + slot[:, None] * SIZE + feature[None, :],
        mask=exists[:, None] & (feature < SIZE)[None, :],
        other=0.0,
    )
    weight = tl.exp2(level - tl.max(level, 0))
    result = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out + place.to(tl.int64) * SIZE + feature, result.to(out.dtype.element_ty), mask=feature < SIZE)


# -- keys and values ---------------------------------------------------------------------------------------------------


def write_kv(key: Tensor, value: Tensor, layer: Tensor, position: Tensor) -> None:
    """Write one position of each row: ``layer[0, b, :, position[b]] = key[b]``, ``layer[1, ...] = value[b]``.

    Args:
        key: Shape (B, Hkv, D); any strides of rows and heads.
        value: Shape (B, Hkv, D); any strides of rows and heads.
        layer: One layer of the cache, shape (2, R, Hkv, S, D), R at least B; positions and features contiguous.
        position: Where each row writes, shape (B,), int64, below S.
    """
    rows, heads, size = key.shape
    _check_layer(layer, size)
    _check_packed(position)
    if key.stride(2) != 1 or value.stride(2) != 1:
        raise ValueError("The features of a key and of a value must lie side by side.")
    _write_position[(rows,)](
        key, value, layer, position,
        key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        layer.stride(0), layer.stride(1), layer.stride(2),
        HEADS=heads, HEADS_PADDED=triton.next_power_of_2(heads), SIZE=size, SIZE_PADDED=triton.next_power_of_2(size),
        num_warps=4,
    )  # fmt: skip


def _check_layer(layer: Tensor, size: int) -> None:
    """Refuse a layer whose positions and features are not contiguous: the kernels take their strides for granted."""
    if layer.shape[4] != size or layer.stride()[3:] != (size, 1):
        raise ValueError(f"A layer must hold heads of {size} features, contiguous over positions and features.")


@triton.jit
def _write_position(
    key, value, layer, position,
    key_row_stride, key_head_stride, value_row_stride, value_head_stride,
    kind_stride, row_stride, head_stride,
    HEADS: tl.constexpr, HEADS_PADDED: tl.constexpr, SIZE: tl.constexpr, SIZE_PADDED: tl.constexpr,
):  # fmt: skip
    """Write the key and the value of one row."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS_PADDED)[:, None]
    feature = tl.arange(0, SIZE_PADDED)[None, :]
    mask = (head < HEADS) & (feature < SIZE)
    place = tl.load(position + row)
    k = tl.load(key + row * key_row_stride + head * key_head_stride + feature, mask=mask)
    v = tl.load(value + row * value_row_stride + head * value_head_stride + feature, mask=mask)
    target = layer + row * row_stride + place * SIZE + head.to(tl.int64) * head_stride + feature
    tl.store(target, k, mask=mask)
    tl.store(target + kind_stride, v, mask=mask)


def move_spans(source: Tensor, target: Tensor, start: Tensor, stop: Tensor, chosen: Tensor) -> None:
    """Copy positions ``start..stop-1`` of the chosen rows, all layers, keys and values, from one cache to another.

    A rejected proposal has overwritten the suffix of its row; this brings it back, and keeps an accepted one. Only the
    span moves; the programs of rows that were not chosen end at once.

    Args:
        source: Shape (L, 2, R, Hkv, S, D); positions and features contiguous.
        target: The same shape (R may differ) and dtype.
        start: First position of each row, shape (B,), int64, B at most both R.
        stop: End of each row, shape (B,), int64; nothing moves where it is at most ``start``.
        chosen: Which rows move, shape (B,), bool.
    """
    layers, kinds, _, heads, _, size = source.shape
    for cache in (source, target):
        _check_layer(cache[0], size)
    _check_packed(start, stop, chosen)
    _move_span[(layers * kinds, start.shape[0])](
        source, target, start, stop, chosen,
        source.stride(0), source.stride(1), source.stride(2), source.stride(3),
        target.stride(0), target.stride(1), target.stride(2), target.stride(3),
        HEADS=heads, SIZE=size, BLOCK=_MOVE, num_warps=8,
    )  # fmt: skip


@triton.jit
def _move_span(
    source, target, start, stop, chosen,
    source_layer_stride, source_kind_stride, source_row_stride, source_head_stride,
    target_layer_stride, target_kind_stride, target_row_stride, target_head_stride,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Copy one row's span of one layer's keys or values; a head's span is one contiguous piece of memory."""
    row = tl.program_id(1).to(tl.int64)
    if tl.load(chosen + row).to(tl.int32) == 0:
        return
    layer, kind = (tl.program_id(0) // 2).to(tl.int64), (tl.program_id(0) % 2).to(tl.int64)
    begin = tl.load(start + row).to(tl.int32) * SIZE
    end = tl.load(stop + row).to(tl.int32) * SIZE
    element = tl.arange(0, BLOCK)
    from_start = source + layer * source_layer_stride + kind * source_kind_stride + row * source_row_stride
    to_start = target + layer * target_layer_stride + kind * target_kind_stride + row * target_row_stride
    for first in range(begin, end, BLOCK):
        index = first + element
        for head in range(HEADS):
            moved = tl.load(from_start + head * source_head_stride + index, mask=index < end)
            tl.store(to_start + head * target_head_stride + index, moved, mask=index < end)


# -- pieces of a decoder layer -----------------------------------------------------------------------------------------


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add a block's output to the residual stream and normalize the sum.

    ``s = x + residual`` (rounded to the dtype); ``n = weight * round(s / sqrt(mean(s^2) + eps))``, the mean in float32,
    with the roundings of transformers' Qwen2RMSNorm and LlamaRMSNorm.

    Args:
        x: Output of the block before, shape (B, C), contiguous, C at most 8192.
        residual: The residual stream, same shape and dtype; None where ``x`` is the stream itself.
        weight: Shape (C,), same dtype.
        eps: Added to the mean square.

    Returns:
        The normalized sum and the sum, each of shape (B, C); the sum is ``x`` itself without a residual.
    """
    rows, width = x.shape
    _check_packed(x, weight, *([] if residual is None else [residual]))
    normed = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    block = max(16, triton.next_power_of_2(width))
    _add_norm[(rows,)](
        x, x if residual is None else residual, weight, normed, total, eps,
        WIDTH=width, BLOCK=block, RESIDUAL=residual is not None, num_warps=min(16, max(1, block // 256)),
    )  # fmt: skip
    return normed, total


@triton.jit
def _add_norm(
    x, residual, weight, normed, total, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Add and normalize one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < WIDTH
    dtype = x.dtype.element_ty
    scale = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(x + row * WIDTH + column, mask=mask, other=0.0).to(tl.float32)
    if RESIDUAL:
        value += tl.load(residual + row * WIDTH + column, mask=mask, other=0.0).to(tl.float32)
        value = value.to(dtype).to(tl.float32)
        tl.store(total + row * WIDTH + column, value.to(dtype), mask=mask)
    normal = value * tl.rsqrt(tl.sum(value * value, 0) / WIDTH + eps)
    normal = normal.to(dtype).to(tl.float32) * scale
    tl.store(normed + row * WIDTH + column, normal.to(dtype), mask=mask)


def rotate_and_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    layer: Tensor,
    position: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Split the merged projection, normalize and rotate queries and keys, write keys and values to the cache.

    ``rotated = x * cos + rotate_half(x) * sin`` over the first Drot features of each head, the rest unchanged, with the
    roundings of transformers' ``apply_rotary_pos_emb``; before it, where given, a root-mean-square norm per head
    (Qwen3).

    Args:
        qkv: Queries, keys, values of one position per row, shape (B, (H + 2 * Hkv) * D), contiguous rows.
        cos: Cosines of every position, shape (S, Drot), Drot even and at most D, contiguous.
        sin: Sines, the same shape, contiguous.
        layer: One layer of the cache, shape (2, R, Hkv, S, D), R at least B; positions and features contiguous.
        position: Where each row stands and writes, shape (B,), int64, below S.
        num_heads: Query heads H.
        num_kv_heads: Key and value heads Hkv.
        q_norm: Weight of the query norm, shape (D,), or None.
        k_norm: Weight of the key norm, shape (D,), or None; both are given or neither is.
        eps: Added to the mean square of these norms.

    Returns:
        The rotated queries, shape (B, H, D), contiguous, dtype of ``qkv``.
    """
    rows, size = qkv.shape[0], layer.shape[4]
    heads = num_heads + 2 * num_kv_heads
    _check_layer(layer, size)
    _check_packed(cos, sin, position)
    if cos.shape != sin.shape or len(cos) < layer.shape[3]:
        raise ValueError(f"Expected cosines and sines of {layer.shape[3]} positions, got {len(cos)} and {len(sin)}.")
    if qkv.shape[1] != heads * size or qkv.stride(1) != 1:
        raise ValueError(f"Expected rows of {heads} heads of {size} features, contiguous; got {tuple(qkv.shape)}.")
    if (q_norm is None) != (k_norm is None):
        raise ValueError("q_norm and k_norm are given together or not at all.")
    query = torch.empty((rows, num_heads, size), dtype=qkv.dtype, device=qkv.device)
    padded = triton.next_power_of_2(size)
    block = min(max(1, 1024 // padded), triton.next_power_of_2(heads))
    _rotate_heads[(triton.cdiv(heads, block), rows)](
        qkv, cos, sin, layer, position, query,
        qkv if q_norm is None else q_norm, qkv if k_norm is None else k_norm, eps,
        qkv.stride(0), layer.stride(0), layer.stride(1), layer.stride(2),
        HEADS=num_heads, KEY_HEADS=num_kv_heads, SIZE=size, SIZE_PADDED=padded, ROTARY=cos.shape[1], BLOCK=block,
        NORM=q_norm is not None, num_warps=4,
        enable_fp_fusion=False,  # a fused multiply-add would leave out the rounding of the first product
    )  # fmt: skip
    return query


@triton.jit
def _rotate_heads(
    qkv, cos, sin, layer, position, query, q_norm, k_norm, eps,
    qkv_stride, kind_stride, row_stride, head_stride,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, SIZE: tl.constexpr, SIZE_PADDED: tl.constexpr,
    ROTARY: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Take a block of one row's heads (queries, keys and values in this order) to where they belong."""
    row = tl.program_id(1).to(tl.int64)
    dtype = qkv.dtype.element_ty
    head = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    feature = tl.arange(0, SIZE_PADDED)[None, :]
    is_query = head < HEADS
    turns = head < HEADS + KEY_HEADS
    mask = (head < HEADS + 2 * KEY_HEADS) & (feature < SIZE)
    # rotate_half: feature i of the first half meets minus feature i of the second, the second half meets the first.
    in_first = feature < ROTARY // 2
    rotary = feature < ROTARY
    partner = tl.where(rotary, tl.where(in_first, feature + ROTARY // 2, feature - ROTARY // 2), feature)
    place = tl.load(position + row)
    start = qkv + row * qkv_stride + head * SIZE
    value = tl.load(start + feature, mask=mask, other=0.0).to(tl.float32)
    # The partner's line is in the first-level cache already.
    other = tl.load(start + partner, mask=mask, other=0.0).to(tl.float32)
    cosine = tl.load(cos + place * ROTARY + feature, mask=rotary, other=1.0).to(tl.float32)
    sine = tl.load(sin + place * ROTARY + feature, mask=rotary, other=0.0).to(tl.float32)

    plain = value
    if NORM:
        inverse = tl.rsqrt(tl.sum(value * value, 1) / SIZE + eps)[:, None]
        within = feature < SIZE
        query_scale = tl.load(q_norm + feature, mask=within, other=0.0).to(tl.float32)
        key_scale = tl.load(k_norm + feature, mask=within, other=0.0).to(tl.float32)
        query_other = tl.load(q_norm + partner, mask=within, other=0.0).to(tl.float32)
        key_other = tl.load(k_norm + partner, mask=within, other=0.0).to(tl.float32)
        value = (value * inverse).to(dtype).to(tl.float32) * tl.where(is_query, query_scale, key_scale)
        other = (other * inverse).to(dtype).to(tl.float32) * tl.where(is_query, query_other, key_other)
        value = value.to(dtype).to(tl.float32)
        other = other.to(dtype).to(tl.float32)
    sign = tl.where(in_first, -1.0, 1.0)
    turned = (value * cosine).to(dtype).to(tl.float32) + (other * sine * sign).to(dtype).to(tl.float32)
    value = tl.where(rotary, turned, value)
    result = tl.where(turns, value, plain).to(dtype)

    tl.store(query + row * (HEADS * SIZE) + head * SIZE + feature, result, mask=mask & is_query)
    # Value head i follows key head i in the other half of the layer.
    kind = (head >= HEADS + KEY_HEADS).to(tl.int64)
    key_head = head.to(tl.int64) - HEADS - kind * KEY_HEADS
    target = layer + kind * kind_stride + row * row_stride + key_head * head_stride + place * SIZE + feature
    tl.store(target, result, mask=mask & (head >= HEADS))


def silu_and_multiply(gate_up: Tensor) -> Tensor:
    """Return ``silu(gate) * up`` of the merged projection, ``silu(x) = x / (1 + exp(-x))``, each rounded to the dtype.

    Args:
        gate_up: Gate in the first half of each row, up in the second: shape (B, 2 F), contiguous.

    Returns:
        Shape (B, F), same dtype.
    """
    _check_packed(gate_up)
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    block = min(1024, max(16, triton.next_power_of_2(width)))
    _silu_multiply[(triton.cdiv(width, block), rows)](gate_up, out, WIDTH=width, BLOCK=block, num_warps=4)
    return out


@triton.jit
def _silu_multiply(gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Activate one block of one row."""
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = column < WIDTH
    dtype = out.dtype.element_ty
    gate = tl.load(gate_up + row * (2 * WIDTH) + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * (2 * WIDTH) + WIDTH + column, mask=mask, other=0.0).to(tl.float32)
    activated = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    tl.store(out + row * WIDTH + column, (activated * up).to(dtype), mask=mask)
