"""Attention of one query per row over the row's own positions."""

# ruff: noqa: ANN001, ANN202 -- Triton takes the types of a kernel's arguments from the launch.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = tl.constexpr(1.4426950408889634)
_PROGRAMS_PER_PROCESSOR = 8
"""Attention programs that each multiprocessor should get: enough that rows of unequal length even out."""
_SMALLEST_PIECE = 128
"""Fewest positions per attention program: below, merging costs more than the parallel reads gain."""
_MOST_PIECES = 64
"""Most programs that share one row: the last of them reads all their results."""


def attend_rows(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    *,
    max_length: int,
    scale: float,
    arrivals: Tensor,
    sharing: Tensor | None = None,
    softcap: float | None = None,
    piece: int | None = None,
) -> Tensor:
    """Attend from one query per row to the row's positions up to its own: shape (B, H, D), dtype of ``query``.

    ``out = softmax(cap(scale * q k^T)) v`` over positions ``0..position[b]``, ``cap(x) = softcap * tanh(x / softcap)``.
    What lies beyond a row's length may be anything, NaN included.

    One program reads the keys and values of one key head over one piece of a row's positions, for all query heads that
    share them; nothing beyond the row's length is read. The pieces of a longer row are merged by whichever of its
    programs ends last (Dao, Haziza, Massa and Sizov, "Flash-Decoding for long-context inference", 2023).

    Rows of one prompt hold the same keys and values for it. With ``sharing`` they all read one row's, in programs that
    run side by side, so that these come from the cache of the device and not from its memory each time.

    Args:
        query: Shape (B, H, D); any strides of rows and heads.
        keys: One layer's keys, shape (R, Hkv, S, D), R at least B, Hkv a divisor of H; positions and features
            contiguous.
        values: The same for values, same strides.
        position: Of each row's query, whose own key and value are written already: shape (B,), int64.
        max_length: No row that matters has more positions (positions beyond are ignored); decides the number of
            programs, not what they read.
        scale: Factor of the scores, ``D ** -0.5`` as a rule.
        arrivals: Zeros, at least B * Hkv of them, int32, kept between calls: where the programs of a row count who has
            ended. Zeros again when the kernel ends; calls that may overlap must not share them.
        sharing: Shape (3, B), int64: rows in the order in which their programs run, a permutation of them;
            for each row another row (or itself) with the same first positions, and how many these are. None shares
            nothing.
        softcap: Bound of the scores, where the model has one.
        piece: Positions per program, a multiple of 64; by default so that the device is filled several times over.
    """
    rows, heads, size = query.shape
    key_heads = keys.shape[1]
    if keys.stride() != values.stride() or keys.stride()[2:] != (size, 1) or query.stride(2) != 1:
        raise ValueError("Keys and values must share their strides, with positions and features contiguous.")
    group = heads // key_heads
    out = torch.empty((rows, heads, size), dtype=query.dtype, device=query.device)
    if piece is None:
        piece = positions_per_program(rows * key_heads, max_length, query.device)
    pieces = triton.cdiv(max_length, piece)
    split = pieces > 1
    padded = max(16, triton.next_power_of_2(size))
    # Unused (and never read) without a split.
    partial = torch.empty((rows, heads, pieces, size), dtype=torch.float32, device=query.device) if split else out
    log_sum = torch.empty((rows, heads, pieces), dtype=torch.float32, device=query.device) if split else out
    block, num_stages = _attention_shape(padded * keys.element_size())
    _attend_piece[(rows * key_heads, pieces)](
        query, keys, values, position, position if sharing is None else sharing, out, partial, log_sum, arrivals,
        0 if sharing is None else sharing.stride(0), query.stride(0), query.stride(1), keys.stride(0), keys.stride(1),
        scale, 1.0 if softcap is None else softcap, piece,
        KEY_HEADS=key_heads, GROUP=group, GROUP_PADDED=max(16, triton.next_power_of_2(group)),
        SIZE=size, SIZE_PADDED=padded, BLOCK=block, SOFTCAP=softcap is not None, SPLIT=split,
        SHARED=sharing is not None, num_warps=4, num_stages=num_stages,
    )  # fmt: skip
    return out


def positions_per_program(pairs: int, max_length: int, device: torch.device) -> int:
    """Return how many positions one attention program reads, a multiple of 64, for ``pairs`` rows times key heads.

    The rows' lengths are on the device; half of ``max_length`` stands for their mean.
    """
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
    fair = pairs * max_length / (2 * processors * _PROGRAMS_PER_PROCESSOR)
    wanted = max(fair, _SMALLEST_PIECE, max_length / _MOST_PIECES)
    return int(-(-wanted // 64)) * 64


def _attention_shape(head_bytes: int) -> tuple[int, int]:
    """Return positions per block and pipeline stages for a head of so many bytes, padding included.

    About 16 KB of keys and as much of values in each stage: what a multiprocessor must have in flight to reach memory
    bandwidth, with room for several programs in its shared memory.
    """
    return (64, 4) if head_bytes <= 128 else (64, 3) if head_bytes <= 256 else (32, 3)


@triton.jit
def _attend_piece(
    query, keys, values, position, sharing, out, partial, log_sum, arrivals,
    sharing_stride, query_row_stride, query_head_stride, row_stride, head_stride,
    scale, softcap, piece_length,
    KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr,
    SIZE: tl.constexpr, SIZE_PADDED: tl.constexpr, BLOCK: tl.constexpr,
    SOFTCAP: tl.constexpr, SPLIT: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Attend over one piece of one row, for the query heads of one key head; the row's last program merges."""
    # Pieces vary slowest: the programs of late pieces, most of which have nothing to do, come last.
    pair, piece = tl.program_id(0), tl.program_id(1)
    row, key_head = pair // KEY_HEADS, pair % KEY_HEADS
    if SHARED:
        row = tl.load(sharing + row).to(tl.int32)
        pair = row * KEY_HEADS + key_head
        origin = tl.load(sharing + sharing_stride + row)
        shared = tl.load(sharing + 2 * sharing_stride + row).to(tl.int32)
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
    start = row.to(tl.int64) * row_stride + key_head.to(tl.int64) * head_stride
    if SHARED:
        elsewhere = (origin - row) * row_stride
    else:
        elsewhere, shared = start * 0, begin * 0
    result, level = _attend_span(
        q, keys + start, values + start, elsewhere, shared,
        begin, tl.minimum(length, begin + piece_length), scale, softcap,
        GROUP_PADDED, SIZE, SIZE_PADDED, BLOCK, SOFTCAP, SHARED,
    )  # fmt: skip
    place = row.to(tl.int64) * (KEY_HEADS * GROUP) + head
    out_at = out + place[:, None] * SIZE + feature[None, :]
    if SPLIT:
        if length > piece_length:
            pieces = tl.num_programs(1)
            slot = place * pieces + piece
            tl.store(partial + slot[:, None] * SIZE + feature[None, :], result, mask=query_mask)
            tl.store(log_sum + slot, level, mask=member < GROUP)
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
def _attend_span(
    q, keys, values, elsewhere, shared, begin, end, scale, softcap,
    GROUP_PADDED: tl.constexpr, SIZE: tl.constexpr, SIZE_PADDED: tl.constexpr, BLOCK: tl.constexpr,
    SOFTCAP: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Return a group's attention over positions ``begin..end-1`` and the base-2 log of its weights' sum.

    The first ``shared`` positions lie ``elsewhere`` elements further on.
    """
    feature = tl.arange(0, SIZE_PADDED)
    inside = tl.arange(0, BLOCK)
    offset = inside[:, None] * SIZE + feature[None, :]
    top = tl.full([GROUP_PADDED], float("-inf"), tl.float32)
    weight_sum = tl.zeros([GROUP_PADDED], tl.float32)
    weighted = tl.zeros([GROUP_PADDED, SIZE_PADDED], tl.float32)
    for first in range(begin, end, BLOCK):
        valid = first + inside < end
        # Neither garbage nor NaN beyond the row's length may enter: 0 * NaN is NaN.
        mask = valid[:, None] if SIZE == SIZE_PADDED else valid[:, None] & (feature < SIZE)[None, :]
        place = first * SIZE + offset
        if SHARED:
            place = tl.where(first + inside < shared, elsewhere, 0)[:, None] + place
        k = tl.load(keys + place, mask=mask, other=0.0)
        v = tl.load(values + place, mask=mask, other=0.0)
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
    return weighted / weight_sum[:, None], top + tl.log2(weight_sum)


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
