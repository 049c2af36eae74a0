"""What the kernels take for granted of their arguments' memory."""

from __future__ import annotations

from torch import Tensor


def check_packed(*tensors: Tensor) -> None:
    """Refuse tensors with gaps: the kernels that read them take no strides and would read other numbers."""
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise ValueError(f"Expected a contiguous tensor, got {tuple(tensor.shape)}, strides {tensor.stride()}.")


def check_layer(layer: Tensor, size: int) -> None:
    """Refuse a layer of the cache whose positions and features are not contiguous."""
    if layer.shape[4] != size or layer.stride()[3:] != (size, 1):
        raise ValueError(f"A layer must hold heads of {size} features, contiguous over positions and features.")
