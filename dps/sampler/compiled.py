"""The model's own layers, compiled: for architectures without a fused pass, where a run is long enough to pay for it.

``torch.compile`` merges the small operations between matrix products. It must not see what changes from step to step
(lengths, the rows' cache), or it would compile again for each; so keys and values are stored, and attention reads them,
inside one operator that it takes as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache as once
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache

from dps.sampler.attention import attention_function, attention_implementation
from dps.sampler.cache import RowCache, cache_argument

_ATTENTION = "dps_rows_compiled"


@dataclass(slots=True)
class _Step:
    """What the operator of the step under way works on."""

    cache: RowCache | None = None
    kernels: Any = None
    position: Tensor | None = None
    length: int = 0


_step = _Step()


@torch.library.custom_op("dps::store_and_attend", mutates_args=())
def store_and_attend(
    query: Tensor, key: Tensor, value: Tensor, layer: int, scale: float, softcap: float | None
) -> Tensor:
    """Store one position of keys and values per row in the cache of the step under way, and attend to the row's past.

    Args:
        query: (B, H, 1, D).
        key: (B, Hkv, 1, D).
        value: (B, Hkv, 1, D).
        layer: Number of the layer.
        scale: Factor of the scores.
        softcap: Bound of the scores, where the model has one.

    Returns:
        (B, 1, H, D).
    """
    states, position = _step.cache.live[layer], _step.position
    _step.kernels.write_kv(key[:, :, 0], value[:, :, 0], states, position)
    attended = _step.kernels.attend_rows(
        query[:, :, 0],
        states[0],
        states[1],
        position,
        max_length=_step.length,
        scale=scale,
        softcap=softcap,
        arrivals=_step.cache.arrivals,
    )
    return attended[:, None]


@store_and_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, layer: int, scale: float, softcap: float | None) -> Tensor:
    rows, heads, _, size = query.shape
    return query.new_empty((rows, 1, heads, size))


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Attend by the operator, which knows the rows' positions."""
    return store_and_attend(query, key, value, module.layer_idx, scale, softcap)


class _Through(Cache):
    """A cache that hands keys and values on: the operator stores them."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(self, key: Tensor, value: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Return what came."""
        return key, value

    def get_seq_length(self, *args: object, **kwargs: object) -> int:
        """Return 0: positions are given with every step."""
        return 0


@once
def _register() -> None:
    AttentionInterface.register(_ATTENTION, attention_function(_attend))


class CompiledForward:
    """The forward pass, compiled at its first call for each new kind of batch; that takes a minute or two."""

    def __init__(self, model: PreTrainedModel, cache: RowCache, kernels: Any, *, backend: str = "inductor") -> None:
        """Prepare.

        Args:
            model: The transformers model.
            cache: The rows' keys and values.
            kernels: ``dps.sampler.kernels``.
            backend: Of ``torch.compile``.
        """
        _register()
        self._cache, self._kernels, self._config = cache, kernels, model.config.get_text_config()
        self._argument = cache_argument(model, _Through())
        self._run = torch.compile(model.forward, backend=backend)

    def __call__(self, fed: Tensor, position: Tensor, length: int) -> Tensor:
        """See :data:`dps.sampler.forward.Forward`."""
        _step.cache, _step.kernels, _step.position, _step.length = self._cache, self._kernels, position, length
        try:
            with attention_implementation(self._config, _ATTENTION):
                return self._run(
                    input_ids=fed[:, None],
                    position_ids=position[:, None],
                    attention_mask=position[:, None, None, None],  # handed through, so that no mask is made
                    **self._argument,
                    use_cache=True,
                ).logits[:, -1]
        finally:
            # The operator is the process's: what it held on to would outlive its engine.
            _step.cache = _step.kernels = _step.position = None
