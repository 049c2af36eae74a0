"""Hidden states of finished responses and of prompts, each by one forward pass over it.

Those of a response's blocks come with the chain where the engine keeps the layer (``kept``); this pass is for other
layers, and what the kept ones are compared with. It ends at the layer that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dps.errors import InputError
from dps.model import LanguageModel
from dps.sampler.memory import is_out_of_memory

_TOKENS_PER_PASS = {"cuda": 16384, "cpu": 8192}
"""Padded tokens of one forward pass, at most (one sequence alone may be longer)."""


def check_layer(layer: int, num_layers: int, setting: str = "features.layer") -> None:
    """Raise InputError for a feature layer that the model lacks (``hidden_states`` has num_layers + 1 entries)."""
    if not 0 <= layer <= num_layers:
        raise InputError(
            f"{setting} is {layer}, but the model has {num_layers} layers: "
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
    return _in_passes(
        model,
        [len(prompt) + len(response) for prompt, response in sequences],
        lambda batch: _block_means(model, [sequences[i] for i in batch], layer, block_size),
    )


@torch.inference_mode()
def prompt_states(model: LanguageModel, prompts: Sequence[Sequence[int]], layers: Sequence[int]) -> list[np.ndarray]:
    """Read prompts once, to the deepest of some layers, and keep what the model knows of each at its end.

    The prefill of sampling never sees a prompt's last token, so it does not have these.

    Args:
        model: The base model.
        prompts: Token ids, each with at least one.
        layers: Indices into ``hidden_states``, L of them: 0 is the embedding's output.

    Returns:
        For each prompt (L * 2 * D,), float32: of each layer the state at the last token, then the mean over all tokens.
    """
    for layer in layers:
        check_layer(layer, model.num_layers, "features.prompt_layers")

    def one_pass(batch: list[int]) -> list[np.ndarray]:
        chosen = [prompts[i] for i in batch]
        hidden = hidden_states(model, _padded(chosen).to(model.device), layers)
        lengths = [len(prompt) for prompt in chosen]
        rows = [torch.stack([t for h in hidden for t in _ends(h[row, :n])]) for row, n in enumerate(lengths)]
        return [*torch.stack(rows).flatten(1).float().cpu().numpy()]

    return _in_passes(model, list(map(len, prompts)), one_pass) if layers else [np.zeros(0, np.float32)] * len(prompts)


def _ends(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last and the mean of the states (T, D) of a prompt, in float64."""
    return hidden[-1].double(), hidden.double().mean(dim=0)


def _in_passes(
    model: LanguageModel, sizes: Sequence[int], one_pass: Callable[[list[int]], list[np.ndarray]]
) -> list[np.ndarray]:
    """Return the results of sequences of these sizes in tokens, in their order; those of like length share a pass."""
    room = _TOKENS_PER_PASS.get(model.device.type, _TOKENS_PER_PASS["cpu"])
    waiting: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=sizes.__getitem__):
        size = sizes[index]
        if waiting and (len(waiting[-1]) + 1) * size <= room:
            waiting[-1].append(index)
        else:
            waiting.append([index])
    results: dict[int, np.ndarray] = {}
    while waiting:
        batch = waiting.pop()
        try:
            passed = one_pass(batch)
        except RuntimeError as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
            waiting += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            continue
        results.update(zip(batch, passed, strict=True))
    return [results[index] for index in range(len(sizes))]


def _padded(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Return token ids with zeros on the right, where a causal model cannot see them from the left: shape (B, T)."""
    ids = torch.zeros((len(sequences), max(map(len, sequences))), dtype=torch.int64)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids


def _block_means(
    model: LanguageModel, sequences: list[tuple[Sequence[int], Sequence[int]]], layer: int, block_size: int
) -> list[np.ndarray]:
    """Run one padded batch."""
    # The last token predicts nothing that is needed, so it is not fed.
    ids = _padded([[*prompt, *response][:-1] for prompt, response in sequences])
    (hidden,) = hidden_states(model, ids.to(model.device), [layer])

    # One line for each predicted token of all sequences: where its hidden state is.
    lengths = [len(response) for _, response in sequences]
    starts = [row * ids.shape[1] + len(prompt) - 1 for row, (prompt, _) in enumerate(sequences)]
    where = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
    return block_means(hidden.flatten(0, 1)[torch.from_numpy(where).to(hidden.device)], lengths, block_size)


def block_means(states: Tensor, lengths: Sequence[int], block_size: int) -> list[np.ndarray]:
    """Return the means over each block of responses of these lengths, whose states (N, D) follow one another.

    Each response's are (b, D), float32; sums are float64.
    """
    sizes = [block_sizes(length, block_size) for length in lengths]
    block_lengths = np.concatenate(sizes)
    blocks = np.repeat(np.arange(len(block_lengths)), block_lengths)
    sums = torch.zeros((len(block_lengths), states.shape[1]), dtype=torch.float64, device=states.device)
    sums.index_add_(0, torch.from_numpy(blocks).to(states.device), states.double())
    means = (sums.cpu().numpy() / block_lengths[:, None]).astype(np.float32)
    ends = np.cumsum([len(size) for size in sizes])
    return [means[end - len(size) : end].copy() for end, size in zip(ends, sizes, strict=True)]


def hidden_states(model: LanguageModel, ids: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Return ``hidden_states[layer]``, (B, T, D), of ids (B, T) for each layer; the pass ends at the deepest."""
    decoder, blocks, deepest = model.model.base_model, layers_of(model.model), max(layers)
    if blocks is None or deepest == len(blocks):
        states = decoder(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
        return [states[layer] for layer in layers]
    given: dict[int, Tensor] = {}

    def keep(layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given[layer] = args[0] if args else kwargs["hidden_states"]
        if layer == deepest:
            raise _Reached

    with ExitStack() as hooks, suppress(_Reached):
        for layer in set(layers):
            hooks.callback(blocks[layer].register_forward_pre_hook(partial(keep, layer), with_kwargs=True).remove)
        decoder(input_ids=ids, use_cache=False)
    return [given[layer] for layer in layers]


def layers_of(model: PreTrainedModel) -> nn.ModuleList | None:
    """Return the decoder's layers; None where they do not lie where most models have them."""
    layers = getattr(model.base_model, "layers", None)
    known = isinstance(layers, nn.ModuleList) and len(layers) == model.config.get_text_config().num_hidden_layers
    return layers if known else None


class _Reached(Exception):
    """The deepest layer that is wanted would be next."""


def block_sizes(length: int, block_size: int) -> np.ndarray:
    """Return the number of tokens of each block of a response: shape (ceil(length / block_size),), int32."""
    return np.diff([*range(0, length, block_size), length]).astype(np.int32)
