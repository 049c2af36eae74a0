"""Attention of our own inside transformers' layers: what every way of doing it needs of their interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Attend = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor, float, float | None], Tensor]
"""(attention module, query (B, H, 1, D), key, value, mask, factor of the scores, their bound) -> (B, 1, H, D)."""


def attention_function(attend: Attend) -> Callable[..., tuple[Tensor, None]]:
    """Return the function that ``AttentionInterface.register`` takes.

    It raises NotImplementedError for what ``attend`` is not told of: attention sinks and position biases.
    """

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        scaling: float | None = None,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
            raise NotImplementedError("attention sinks and position biases have no kernel")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return attend(module, query, key, value, attention_mask, scale, softcap), None

    return attention


@contextmanager
def attention_implementation(config: Any, name: str) -> Iterator[None]:
    """Let the layers of a text decoder's configuration find the attention of that name for a while."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
