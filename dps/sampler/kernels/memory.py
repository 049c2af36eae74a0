"""Moves of keys and values between two caches."""

# ruff: noqa: ANN001, ANN202 -- Triton takes the types of a kernel's arguments from the launch.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_MOVE = 8192
"""Elements that one program copies at a time."""


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
