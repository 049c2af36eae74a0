"""The key/value cache of a batch of rows that each stand at their own position.

Keys and values of all layers live in one allocation indexed by (layer, key or value, row, position). A step writes each
row's new key and value at that row's position; a Metropolis-Hastings step that is rejected puts back the positions that
its proposal overwrote, from a second allocation that always holds the accepted response's.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache as once
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from dps.errors import InputError


def spans(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """List the positions of the ragged spans ``start..stop-1``, each possibly empty: (span's number, position).

    ``spans([3, 5], [5, 6])`` is ``([0, 0, 1], [3, 4, 5])``.
    """
    sizes = (stop - start).clamp(min=0)
    which = torch.repeat_interleave(torch.arange(len(start), device=start.device), sizes)
    first = sizes.cumsum(0) - sizes
    return which, torch.arange(len(which), device=start.device) - first[which] + start[which]


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Sizes of a model's keys and values."""

    layers: int
    heads: int
    """Key/value heads."""
    head_size: int

    @classmethod
    def of(cls, config: Any) -> CacheShape:
        """Read the sizes from the text decoder's configuration."""
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(config.num_hidden_layers, heads, head_size)

    @property
    def elements_per_position(self) -> int:
        """Numbers that one position of one row holds."""
        return self.layers * 2 * self.heads * self.head_size


class RowCache(Cache):
    """Keys and values of R rows and S positions, as a transformers cache for one-token steps.

    ``live`` and ``saved`` have the shape (layers, 2, R, H, S, D) with H key/value heads of size D. A head's positions
    lie together in memory: attention on a CPU reads them two to three times as fast as with the heads together.
    """

    def __init__(self, model: PreTrainedModel, rows: int, positions: int, *, kernels: Any = None) -> None:
        """Allocate R rows of S positions, prompt and response together; ``kernels`` is the package where it can run.

        Raises:
            InputError: If the model has layers that cannot be rewound position by position, or lies on several devices.
        """
        super().__init__(layers=[])
        config = model.config.get_text_config()
        check_rewindable(config, positions)
        check_one_device(model)
        sizes = CacheShape.of(config)
        shape = (sizes.layers, 2, rows, sizes.heads, positions, sizes.head_size)
        self.live = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self.saved = torch.zeros_like(self.live)
        self.positions = positions
        self.sharing: Tensor | None = None
        """Where the attention kernel reads prompts, see ``sharing.share_prompts``: int64, shape (3, R)."""
        self.arrivals: Tensor | None = None
        """What the attention kernel counts by, one number for each row and head; always zero between steps."""
        if kernels is not None:
            self.arrivals = torch.zeros(rows * sizes.heads, dtype=torch.int32, device=model.device)
            alone = np.arange(rows)
            self.sharing = torch.from_numpy(np.stack((alone, alone, 0 * alone))).to(model.device)
        self._kernels = kernels
        self._heads = torch.arange(sizes.heads, device=model.device)
        self._rows, self._length, self._written = rows, positions, self._heads

    def begin_step(self, position: Tensor, length: int) -> None:
        """Point the next forward pass at the first B rows: each writes its ``position``, (B,), and reads ``length``."""
        self._rows, self._length = len(position), length
        self._written = self._slots(torch.arange(len(position), device=position.device), position)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write one position per row, return all positions that attention reads: (B, H, length, D) each."""
        layer = self.live[layer_idx]
        for kind, states in enumerate((key_states, value_states)):
            layer[kind].flatten(0, 2).index_copy_(0, self._written, states.flatten(0, 2))
        window = layer[:, : self._rows, :, : self._length]
        return window[0], window[1]

    def get_seq_length(self, *args: object, **kwargs: object) -> int:
        """Return 0: positions are given with every step."""
        return 0

    def _slots(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Return where these (row, position) pairs lie when rows, heads and positions are one axis: (pairs * H,)."""
        return ((rows[:, None] * len(self._heads) + self._heads) * self.positions + positions[:, None]).flatten()

    def move(self, source: Tensor, target: Tensor, chosen: Tensor, start: Tensor, stop: Tensor) -> None:
        """Copy positions ``start..stop-1`` of the rows that are ``chosen``, bool (B,), between live and saved."""
        if self._kernels is not None:
            self._kernels.move_spans(source, target, start, stop, chosen)
            return
        rows = chosen.nonzero()[:, 0]
        if not len(rows):
            return
        which, position = spans(start[rows], stop[rows])
        slots = self._slots(rows[which], position)
        target.flatten(2, 4).index_copy_(2, slots, source.flatten(2, 4).index_select(2, slots))

    def load_prompt(self, rows: list[int], prompt: Tensor) -> None:
        """Put a prompt's keys and values, (layers, 2, H, P, D), at these rows' first positions.

        ``saved`` needs none: what a rejection puts back begins at the prompt's last token, which is fed with the rest.
        """
        where = torch.tensor(rows, device=prompt.device)
        self.live[:, :, where, :, : prompt.shape[3]] = prompt[:, :, None]

    def move_rows(self, sources: list[int], targets: list[int]) -> None:
        """Copy whole rows."""
        for buffer in (self.live, self.saved):
            for source, target in zip(sources, targets, strict=True):
                buffer[:, :, target] = buffer[:, :, source]


def check_rewindable(config: Any, positions: int) -> None:
    """Refuse models whose layers keep a state that cannot be cut back to an earlier of so many positions.

    Raises:
        InputError: For recurrent layers, for sliding windows shorter than ``positions``, and for rotary embeddings that
            change with the length of the sequence.
    """
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    sliding = kinds & {"sliding_attention", "chunked_attention"}
    if getattr(config, "layer_types", None) is None and getattr(config, "use_sliding_window", window is not None):
        sliding = {"sliding_attention"}  # Mistral and its like: every layer slides, and the configuration names none
    if sliding and window is not None and window < positions:
        raise InputError(
            f"The model attends over a sliding window of {window} positions, but prompt and response need {positions}: "
            f"lower sampler.max_new_tokens so that both fit, or choose a model with full attention."
        )
    if unknown := kinds - sliding - {"full_attention"}:
        raise InputError(
            f"The model has layers of the kind {', '.join(sorted(unknown))}, whose state cannot be rewound to a cut: "
            "choose a model whose layers all use attention."
        )
    ropes = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for rope in [of_kind for of_kind in ropes.values() if isinstance(of_kind, dict)] or [ropes]:
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        if rope.get("rope_type") in ("longrope", "dynamic") and positions > original:
            raise InputError(
                f"The model's rotary embedding ({rope['rope_type']}) changes for all positions when a sequence passes "
                f"{original} positions, but prompt and response need {positions}: lower sampler.max_new_tokens so that "
                "both fit."
            )


def check_one_device(model: PreTrainedModel) -> None:
    """Raise InputError for a model whose weights lie on several devices: rows and their decisions have one."""
    devices = {str(weight.device) for weight in model.parameters()}
    if len(devices) > 1:
        raise InputError(
            f"The model's weights lie on several devices ({', '.join(sorted(devices))}), but the sampler runs on one: "
            "load the model without device_map, on a device that holds it, and give each GPU a worker of its own."
        )


def cache_argument(model: PreTrainedModel, cache: Cache) -> dict[str, Cache]:
    """Return a cache as an argument of the model's forward pass, by the name that this release of transformers has."""
    return {_cache_keyword(type(model)): cache}


@once
def _cache_keyword(kind: type[PreTrainedModel]) -> str:
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


@torch.inference_mode()
def prefill(model: PreTrainedModel, prompts: list[tuple[int, ...]]) -> list[Tensor]:
    """Return the keys and values of prompts, read in one padded pass: (layers, 2, H, P, D) for each of P >= 1 tokens.

    Padding stands on the right, where a causal model cannot see it from the left.
    """
    cache = DynamicCache(config=model.config)
    ids = torch.zeros((len(prompts), max(map(len, prompts))), dtype=torch.int64)
    for line, tokens in zip(ids, prompts, strict=True):
        line[: len(tokens)] = torch.tensor(tokens)
    model(input_ids=ids.to(model.device), **cache_argument(model, cache), use_cache=True, logits_to_keep=1)
    states = torch.stack([torch.stack((layer.keys, layer.values)) for layer in cache.layers])
    return [states[:, :, line, :, : len(tokens)].clone() for line, tokens in enumerate(prompts)]
