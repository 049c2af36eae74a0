"""The small work of a decoder layer between its matrix products: norms, rotary embedding, activation."""

# ruff: noqa: ANN001, ANN202 -- Triton takes the types of a kernel's arguments from the launch.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add a block's output to the residual stream and normalize the sum.

    ``s = x + residual`` (rounded to the dtype); ``n = weight * round(s / sqrt(mean(s^2) + eps))``, the mean in float32,
    with the roundings of transformers' Qwen2RMSNorm and LlamaRMSNorm.

    ``x`` (B, C), C at most 8192, ``residual`` (the same; None where ``x`` is the stream itself) and ``weight`` (C,) are
    contiguous and of one dtype. Returns the normalized sum and the sum.
    """
    rows, width = x.shape
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
        q_norm: Weight of the query norm, shape (D,); given together with ``k_norm`` or not at all.
        k_norm: Weight of the key norm, shape (D,).
        eps: Added to the mean square of these norms.

    Returns:
        The rotated queries, shape (B, H, D).
    """
    rows, size = qkv.shape[0], layer.shape[4]
    heads = num_heads + 2 * num_kv_heads
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
    """Return ``silu(gate) * up``, (B, F), ``silu(x) = x / (1 + exp(-x))``, each rounded to the dtype.

    ``gate_up``, (B, 2 F), contiguous, has the gate in the first half of each row and up in the second.
    """
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
