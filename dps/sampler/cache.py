"""The key/value cache of a batch of rows that each stand at their own position.

Keys and values of all layers live in one allocation indexed by (layer, key or value, row, position). A step writes each
row's new key and value at that row's position; a Metropolis-Hastings step that is rejected puts back the positions that
its proposal overwrote, from a second allocation that always holds the accepted response's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from dps.errors import InputError


def spans(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """List the positions of ragged spans.

    Args:
        start: First position of each span, int64, shape (B,).
        stop: One past its last, int64, shape (B,); a span may be empty.

    Returns:
        ``(which, position)``, both of the total length: the span's number and the position.

    Example:
        ``spans([3, 5], [5, 6])`` is ``([0, 0, 1], [3, 4, 5])``.
    """
    sizes = (stop - start).clamp(min=0)
    which = torch.repeat_interleave(torch.arange(len(start), device=start.device), sizes)
    first = sizes.cumsum(0) - sizes
    return which, torch.arange(len(which), device=start.device) - first[which] + start[which]


class RowCache(Cache):
    """Keys and values of R rows and S positions, as a transformers cache for one-token steps.

    Shapes: ``live`` and ``saved`` are (layers, 2, R, H, S, D) with H key/value heads of size D. A head's positions lie
    together in memory: attention on a CPU reads them two to three times as fast as with the heads together.
    """

    def __init__(self, model: PreTrainedModel, rows: int, positions: int) -> None:
        """Allocate.

        Args:
            model: The model; its layers must all attend to all earlier positions within ``positions``.
            rows: R.
            positions: S, prompt and response together.

        Raises:
            InputError: If the model has layers that cannot be rewound position by position.
        """
        super().__init__(layers=[])
        config = model.config.get_text_config()
        check_rewindable(config, positions)
        num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, 2, rows, num_heads, positions, head_size)
        self.live = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self.saved = torch.zeros_like(self.live)
        self.positions = positions
        self._heads = torch.arange(num_heads, device=model.device)
        self._flat: Tensor | None = None
        self._rows = rows
        self._length = positions

    def begin_step(self, position: Tensor, length: int) -> None:
        """Point the next forward pass at the first ``len(position)`` rows.

        Args:
            position: Position that each row writes, int64, shape (B,) with B <= R.
            length: Positions that attention reads, at least ``position.max() + 1``.
        """
        self._rows, self._length = len(position), length
        self._flat = self._slots(torch.arange(len(position), device=position.device), position)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write one position per row, return all positions that attention reads: (B, H, length, D) each."""
        layer = self.live[layer_idx]
        for kind, states in enumerate((key_states, value_states)):
            layer[kind].flatten(0, 2).index_copy_(0, self._flat, states.flatten(0, 2))
        window = layer[:, : self._rows, :, : self._length]
        return window[0], window[1]

    def get_seq_length(self, *args: object, **kwargs: object) -> int:
        """Return 0: positions are given with every step."""
        return 0

    def _slots(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Return where these (row, position) pairs lie when rows, heads and positions are one axis: (pairs * H,)."""
        return ((rows[:, None] * len(self._heads) + self._heads) * self.positions + positions[:, None]).flatten()

    def _move(self, source: Tensor, target: Tensor, rows: Tensor, start: Tensor, stop: Tensor) -> None:
        which, position = spans(start, stop)
        slots = self._slots(rows[which], position)
        target.flatten(2, 4).index_copy_(2, slots, source.flatten(2, 4).index_select(2, slots))

    def commit(self, rows: Tensor, start: Tensor, stop: Tensor) -> None:
        """Make positions ``start..stop-1`` of these rows the accepted ones."""
        self._move(self.live, self.saved, rows, start, stop)

    def restore(self, rows: Tensor, start: Tensor, stop: Tensor) -> None:
        """Put the accepted positions ``start..stop-1`` of these rows back."""
        self._move(self.saved, self.live, rows, start, stop)

    def load_prompt(self, row: int, prompt: Tensor) -> None:
        """Put a prompt's keys and values, (layers, 2, H, P, D), at the row's first positions."""
        for buffer in (self.live, self.saved):
            buffer[:, :, row, :, : prompt.shape[3]] = prompt

    def move_row(self, source: int, target: int) -> None:
        """Copy a whole row."""
        for buffer in (self.live, self.saved):
            buffer[:, :, target] = buffer[:, :, source]


def check_rewindable(config: object, positions: int) -> None:
    """Refuse models whose layers keep a state that cannot be cut back to an earlier position.

    Args:
        config: The text decoder's configuration.
        positions: Positions that a row will hold.

    Raises:
        InputError: For recurrent layers, and for sliding windows shorter than ``positions``.
    """
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    sliding = kinds & {"sliding_attention", "chunked_attention"}
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


@torch.inference_mode()
def prefill(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """Return the keys and values of a prompt's tokens.

    Args:
        model: The model.
        tokens: P token ids, at least one.

    Returns:
        (layers, 2, H, P, D) on the model's device.
    """
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([tokens], device=model.device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    states = [torch.stack((layer.keys[0], layer.values[0])) for layer in cache.layers]
    return torch.stack(states)
