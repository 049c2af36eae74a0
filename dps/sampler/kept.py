"""Hidden states kept while decoding: a chain that ends has those of its response, without a pass over it.

The state that predicts a response's token belongs to the token before it, which a step feeds: the prompt's last token
for the first one. So what a proposal needs is fed after its cut, and a rejected one must leave the response's states
alone. Each predicted token has two cells: one holds the accepted response's state, the other, the *free* one, takes the
proposal's. Accepting swaps the two from the cut on; rejecting does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dps.sampler.teacher import block_means, layers_of

_ROWS_PER_READING = 8
"""Rows whose states are averaged at a time, in double precision."""


def can_keep(model: PreTrainedModel, layer: int | None) -> bool:
    """Return whether ``hidden_states[layer]`` is what a layer of the model is given, so that a step passes it by."""
    layers = layers_of(model)
    return layer is not None and layers is not None and 0 <= layer < len(layers)


class KeptStates:
    """``hidden_states[layer]`` at the positions that predict the responses of R rows of up to N tokens."""

    def __init__(self, model: PreTrainedModel, layer: int, start: Tensor, room: int) -> None:
        """Allocate.

        Args:
            model: The model.
            layer: Index into ``hidden_states``, see :func:`can_keep`.
            start: Position of each row's first response token, int64 of shape (R,); the rows' own, always up to date.
            room: N, tokens of the longest response. A cell more takes what rows feed whose response is full.
        """
        self.layer, self._start = layer, start
        size = model.config.get_text_config().hidden_size
        self._cells = torch.zeros((len(start) * (room + 1), 2, size), dtype=model.dtype, device=model.device)
        self._free = torch.zeros((len(start), room + 1), dtype=torch.int64, device=model.device)
        self._index = torch.arange(room + 1, device=model.device)
        self._first = torch.arange(len(start), device=model.device) * (room + 1)

    def write(self, hidden: Tensor, position: Tensor) -> None:
        """Take what the layer is given, (B, D), for the tokens at ``position``, (B,), of the first B rows.

        Rows that are not active write what they would write again, to cells that nobody reads before.
        """
        # A row without a chain stands at 0, wherever its last response began.
        token = (position + 1 - self._start[: len(position)]).clamp(0, len(self._index) - 1)
        cell = self._first[: len(position)] + token
        self._cells.flatten(0, 1).index_copy_(0, 2 * cell + self._free.flatten()[cell], hidden)

    def accept(self, chosen: Tensor, first: Tensor, stop: Tensor) -> None:
        """Let tokens ``first..stop-1`` of the proposals that are ``chosen``, each of shape (B,), be the response's."""
        swapped = (self._index >= first[:, None]) & (self._index < stop[:, None]) & chosen[:, None]
        self._free[: len(chosen)].bitwise_xor_(swapped)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy whole rows, one by one: all at once would take as much memory again."""
        by_row = self._cells.unflatten(0, self._free.shape)
        for source, target in zip(sources, targets, strict=True):
            by_row[target], self._free[target] = by_row[source], self._free[source]

    def means(self, rows: Sequence[int], lengths: Sequence[int], block_size: int) -> list[np.ndarray]:
        """Return the means over each block of these rows' responses of those lengths: each (b, D), float32."""
        found: list[np.ndarray] = []
        for begin in range(0, len(rows), _ROWS_PER_READING):
            some = slice(begin, begin + _ROWS_PER_READING)
            spans = [np.arange(n) + row * len(self._index) for row, n in zip(rows[some], lengths[some], strict=True)]
            cell = torch.from_numpy(np.concatenate(spans)).to(self._cells.device)
            found += block_means(self._cells[cell, 1 - self._free.flatten()[cell]], lengths[some], block_size)
        return found
