"""The model's forward pass of one token per row, over the rows' cache: plain, with our attention, or fused.

Three ways, slowest and most general first; ``open_forward`` takes the fastest that model and machine allow:

- ``eager``: the transformers model as it is, with a mask over positions. Runs everywhere.
- ``unchanged``: the same layers; attention is a kernel that reads each row's own length (transformers'
  AttentionInterface), keys and values are written by a kernel.
- ``fused``: our own pass over the layers of the common architectures (``fused``), with the model's weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from dps.sampler.cache import RowCache, cache_argument
from dps.sampler.fused import FusedDecoder, can_fuse
from dps.sampler.kept import KeptStates
from dps.sampler.settings import ForwardPath
from dps.sampler.teacher import layers_of
from dps.start import COMPARISON, stage

Forward = Callable[[Tensor, Tensor, int], Tensor]
"""(token ids (B,), positions (B,), number of positions that attention may read) -> logits (B, V)."""

_OWN_ATTENTION = "dps_rows"
_AGREEMENT = 0.995
"""Least correlation of the logits of two ways on the same tokens; rounding in half precision leaves more than 0.999."""


def load_kernels(device: torch.device) -> Any:
    """Return the package of Triton kernels if it can run on that device, else None."""
    if device.type != "cuda":
        return None
    try:
        import triton  # noqa: F401
    except ImportError:
        return None
    from dps.sampler import kernels

    return kernels


@stage(COMPARISON)
def open_forward(
    model: PreTrainedModel,
    cache: RowCache,
    kernels: Any,
    wanted: ForwardPath = "auto",
    kept: KeptStates | None = None,
) -> tuple[Forward, ForwardPath]:
    """Return the fastest forward pass that agrees with the model's own, and its name.

    Args:
        model: The transformers model.
        cache: The rows' keys and values, empty: they are overwritten by the comparison.
        kernels: ``dps.sampler.kernels`` or None.
        wanted: Take this way, or the nearest slower one that the model allows; ``auto`` is the fastest.
        kept: Takes hidden states along, where somebody wants them.
    """
    eager = EagerForward(model, cache, kept)
    if kernels is None or wanted == "eager" or not getattr(model, "_supports_attention_backend", False):
        return eager, "eager"
    unchanged = UnchangedForward(model, cache, kernels, kept)
    try:
        own = _probe(unchanged, cache, model)
    except NotImplementedError:
        return eager, "eager"
    if wanted == "unchanged" or not can_fuse(model):
        return unchanged, "unchanged"
    fused = FusedDecoder(model, cache, kernels, kept)
    agreement = correlation(_probe(fused, cache, model), own)
    if agreement < _AGREEMENT:
        warnings.warn(
            f"The fused pass does not agree with the model's own layers (correlation of logits {agreement:.4f}); "
            "sampling goes on with the model's own.",
            stacklevel=2,
        )
        return unchanged, "unchanged"
    return fused, "fused"


@torch.inference_mode()
def _probe(forward: Forward, cache: RowCache, model: PreTrainedModel) -> Tensor:
    """Return the logits of a few steps over eight rows that hold different tokens: (steps * 8, V)."""
    generator = torch.Generator().manual_seed(0)
    rows = min(8, cache.live.shape[2])
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(vocabulary, (6, rows), generator=generator).to(model.device)
    logits = []
    for step, fed in enumerate(tokens):
        position = torch.full((rows,), step, device=model.device)
        logits.append(forward(fed, position, min(32, cache.positions)).float().clone())
    return torch.cat(logits)


def correlation(a: Tensor, b: Tensor) -> float:
    """Return the correlation of two tables of logits, each row less its mean."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return float((a * b).sum() / (a.norm() * b.norm()))


@contextmanager
def _keeping(kept: KeptStates | None, model: PreTrainedModel, position: Tensor) -> Iterator[None]:
    """Have the model's layer hand over what it is given, (B, 1, D), in the meantime."""
    if kept is None:
        yield
        return

    def write(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.write((args[0] if args else kwargs["hidden_states"])[:, 0], position)

    with layers_of(model)[kept.layer].register_forward_pre_hook(write, with_kwargs=True):
        yield


class EagerForward:
    """The transformers model as it is, with an additive mask over positions."""

    def __init__(self, model: PreTrainedModel, cache: RowCache, kept: KeptStates | None = None) -> None:
        self._model, self._cache, self._kept = model, cache, kept
        self._index = torch.arange(cache.positions, device=model.device)
        self._hidden = torch.full((), torch.finfo(model.dtype).min, dtype=model.dtype, device=model.device)
        self._seen = torch.zeros_like(self._hidden)

    def __call__(self, fed: Tensor, position: Tensor, length: int) -> Tensor:
        """See :data:`Forward`."""
        self._cache.begin_step(position, length)
        with _keeping(self._kept, self._model, position):
            return self._model(
                input_ids=fed[:, None],
                position_ids=position[:, None],
                attention_mask=self._mask(position, length)[:, None, None],
                **cache_argument(self._model, self._cache),
                use_cache=True,
            ).logits[:, -1]

    def _mask(self, position: Tensor, length: int) -> Tensor:
        """Return what attention is told of each row, (B, T)."""
        return torch.where(self._index[:length] > position[:, None], self._hidden, self._seen)


class UnchangedForward(EagerForward):
    """The transformers model's own layers with a kernel for attention."""

    def __init__(self, model: PreTrainedModel, cache: RowCache, kernels: Any, kept: KeptStates | None = None) -> None:
        super().__init__(model, cache, kept)
        self._attention = _attention(kernels, cache.arrivals, cache.sharing)

    def __call__(self, fed: Tensor, position: Tensor, length: int) -> Tensor:
        """See :data:`Forward`."""
        # At every call: the name is the process's, the function's counters are this cache's.
        AttentionInterface.register(_OWN_ATTENTION, self._attention)
        config = self._model.config.get_text_config()
        before = config._attn_implementation
        config._attn_implementation = _OWN_ATTENTION
        try:
            return super().__call__(fed, position, length)
        finally:
            config._attn_implementation = before

    def _mask(self, position: Tensor, length: int) -> Tensor:
        """Return each row's end: transformers hands a mask of four dimensions through to attention as it is."""
        return position[:, None]


def _attention(kernels: Any, arrivals: Tensor, sharing: Tensor) -> Callable[..., tuple[Tensor, None]]:
    """Return the attention function for transformers' interface; for ``arrivals`` and ``sharing`` see the kernel.

    The function raises NotImplementedError for what the kernel lacks: attention sinks and position biases.
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
        attended = kernels.attend_rows(
            query[:, :, 0],
            key,
            value,
            attention_mask[:, 0, 0, 0],
            max_length=key.shape[2],
            scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
            softcap=softcap,
            arrivals=arrivals,
            sharing=sharing[:, : len(query)],
        )
        return attended[:, None], None

    return attention
