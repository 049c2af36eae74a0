"""Writes and moves of keys and values."""

# ruff: noqa: ANN001, ANN202 -- Triton takes the types of a kernel's arguments from the launch.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dps.sampler.kernels.checks import check_layer, check_packed

_MOVE = 8192
"""Elements that one program copies at a time."""


def write_kv(key: Tensor, value: Tensor, layer: Tensor, position: Tensor) -> None:
    """Write one position of each row: ``layer[0, b, :, position[b]] = key[b]``, ``layer[1, ...] = value[b]``.

    Args:
        key: Shape (B, Hkv, D); any strides of rows and heads.
        value: Shape (B, Hkv, D); any strides of rows and heads.
        layer: One layer of the cache, shape (2, R, Hkv, S, D), R at least B; positions and features contiguous.
        position: Where each row writes, shape (B,), int64, below S.
    """
    rows, heads, size = key.shape
    check_layer(layer, size)
    check_packed(position)
    if key.stride(2) != 1 or value.stride(2) != 1:
        raise ValueError("The features of a key and of a value must lie side by side.")
    _write_position[(rows,)](
        key, value, layer, position,
        key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        layer.stride(0), layer.stride(1), layer.stride(2),
        HEADS=heads, HEADS_PADDED=triton.next_power_of_2(heads), SIZE=size, SIZE_PADDED=triton.next_power_of_2(size),
        num_warps=4,
    )  # fmt: skip


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

    Args:
        source: Shape (L, 2, R, Hkv, S, D); positions and features contiguous.
        target: The same shape (R may differ) and dtype.
        start: First position of each row, shape (B,), int64, B at most both R.
        stop: End of each row, shape (B,), int64; nothing moves where it is at most ``start``.
        chosen: Which rows move, shape (B,), bool.
    """
    layers, kinds, _, heads, _, size = source.shape
    for cache in (source, target):
        check_layer(cache[0], size)
    check_packed(start, stop, chosen)
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
