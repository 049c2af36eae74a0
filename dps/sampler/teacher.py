"""Hidden states of finished responses by one teacher-forced pass, averaged over blocks.

Log-probabilities, entropies and top-1 probabilities are recorded as tokens are drawn; hidden states of rejected tokens
would be wasted, so they come from reading the accepted response once. The pass ends at the layer that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from dps.errors import InputError
from dps.model import LanguageModel

_TOKENS_PER_PASS = {"cuda": 16384, "cpu": 8192}
"""Padded tokens of one forward pass, at most (one sequence alone may be longer)."""


def check_layer(layer: int, num_layers: int) -> None:
    """Raise InputError for a feature layer that the model lacks (``hidden_states`` has num_layers + 1 entries)."""
    if not 0 <= layer <= num_layers:
        raise InputError(
            f"features.layer is {layer}, but the model has {num_layers} layers: "
            f"choose 0 (the embedding's output) to {num_layers}."
        )


@torch.inference_mode()
def block_hidden(
    model: LanguageModel,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    layer: int,
    block_size: int,
) -> list[np.ndarray]:
    """Read responses once and average the hidden states at the positions that predict each block's tokens.

    A pass that runs out of memory is done again in two halves.

    Args:
        model: The base model.
        sequences: Pairs of prompt and response token ids, each response with at least one token.
        layer: Index into ``hidden_states``: 0 is the embedding's output, 11 the output of the eleventh layer.
        block_size: Tokens per block.

    Returns:
        For each sequence the means of its b blocks: shape (b, D), float32.
    """
    check_layer(layer, model.num_layers)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]) + len(sequences[i][1]))
    room = _TOKENS_PER_PASS.get(model.device.type, _TOKENS_PER_PASS["cpu"])
    waiting: list[list[int]] = []
    for index in order:
        size = sum(map(len, sequences[index]))
        if waiting and (len(waiting[-1]) + 1) * size <= room:
            waiting[-1].append(index)
        else:
            waiting.append([index])
    means: dict[int, np.ndarray] = {}
    while waiting:
        batch = waiting.pop()
        try:
            passed = _one_pass(model, [sequences[i] for i in batch], layer, block_size)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            waiting += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            continue
        means.update(zip(batch, passed, strict=True))
    return [means[index] for index in range(len(sequences))]


def _one_pass(
    model: LanguageModel, sequences: list[tuple[Sequence[int], Sequence[int]]], layer: int, block_size: int
) -> list[np.ndarray]:
    """Run one padded batch. Padding stands on the right, where a causal model cannot see it from the left."""
    # The last token predicts nothing that is needed, so it is not fed.
    joined = [[*prompt, *response][:-1] for prompt, response in sequences]
    ids = torch.zeros((len(joined), max(map(len, joined))), dtype=torch.int64)
    for row, tokens in enumerate(joined):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    hidden = hidden_states(model, ids.to(model.device), layer)

    # One line for each predicted token of all sequences: where its hidden state is, and the number of its block.
    sizes = [block_sizes(len(response), block_size) for _, response in sequences]
    starts = [row * ids.shape[1] + len(prompt) - 1 for row, (prompt, _) in enumerate(sequences)]
    spans = zip(starts, (len(response) for _, response in sequences), strict=True)
    where = np.concatenate([np.arange(start, start + length) for start, length in spans])
    block_lengths = np.concatenate(sizes)
    blocks = np.repeat(np.arange(len(block_lengths)), block_lengths)
    lines = hidden.flatten(0, 1)[torch.from_numpy(where).to(hidden.device)].double()
    sums = torch.zeros((len(block_lengths), lines.shape[1]), dtype=torch.float64, device=hidden.device)
    sums.index_add_(0, torch.from_numpy(blocks).to(hidden.device), lines)
    means = (sums.cpu().numpy() / block_lengths[:, None]).astype(np.float32)
    ends = np.cumsum([len(size) for size in sizes])
    return [means[end - len(size) : end].copy() for end, size in zip(ends, sizes, strict=True)]


def hidden_states(model: LanguageModel, ids: Tensor, layer: int) -> Tensor:
    """Return ``hidden_states[layer]``, (B, T, D), of ids (B, T); the forward pass goes no further than it must."""
    decoder = model.model.base_model
    layers = getattr(decoder, "layers", None)
    if layer == model.num_layers or not isinstance(layers, nn.ModuleList) or len(layers) != model.num_layers:
        return decoder(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[layer]

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        raise _Reached(args[0] if args else kwargs["hidden_states"])

    hook = layers[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        decoder(input_ids=ids, use_cache=False)
    except _Reached as reached:
        return reached.hidden
    finally:
        hook.remove()
    raise RuntimeError(f"the forward pass never reached layer {layer}")


class _Reached(Exception):
    """Carries what the next layer would be given."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def block_sizes(length: int, block_size: int) -> np.ndarray:
    """Return the number of tokens of each block of a response: shape (ceil(length / block_size),), int32."""
    return np.diff([*range(0, length, block_size), length]).astype(np.int32)
