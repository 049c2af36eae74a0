"""Features of finished responses by one teacher-forced pass: entropy, top-1 probability, hidden states, per block.

The sampling loop needs only log-probabilities; everything else about an accepted response comes from reading it once,
which is far cheaper than having sampled it and leaves no running sums to rewind after a rejection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dps.errors import InputError
from dps.model import LanguageModel
from dps.sampler.target import base_logprobs

_TOKENS_PER_PASS = 8192
"""Padded tokens of one forward pass, at most (one sequence alone may be longer)."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockFeatures:
    """What a teacher-forced pass says of one response of b blocks."""

    logprob: np.ndarray
    """Sum of log p(x_t) per block, nats: shape (b,), float64."""
    entropy: np.ndarray
    """Sum of next-token entropies per block, nats: shape (b,), float64."""
    top1: np.ndarray
    """Sum of top-1 probabilities per block: shape (b,), float64."""
    hidden: np.ndarray
    """Mean hidden state over the positions that predict the block's tokens: shape (b, D), float32."""


def check_layer(layer: int, num_layers: int) -> None:
    """Refuse a feature layer that the model lacks (``hidden_states`` has num_layers + 1 entries).

    Raises:
        InputError: If ``layer`` is not in 0..num_layers.
    """
    if not 0 <= layer <= num_layers:
        raise InputError(
            f"features.layer is {layer}, but the model has {num_layers} layers: "
            f"choose 0 (the embedding's output) to {num_layers}."
        )


@torch.inference_mode()
def block_features(
    model: LanguageModel,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    layer: int,
    block_size: int,
) -> list[BlockFeatures]:
    """Read responses once and average what the model says of them over blocks.

    Args:
        model: The base model.
        sequences: Pairs of prompt and response token ids, each response with at least one token.
        layer: Index into ``hidden_states``: 0 is the embedding's output, 11 the output of the eleventh layer.
        block_size: Tokens per block.

    Returns:
        One entry per sequence, in the same order.

    Source:
        METHOD section 3.
    """
    check_layer(layer, model.num_layers)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]) + len(sequences[i][1]))
    found: dict[int, BlockFeatures] = {}
    batch: list[int] = []
    for number, index in enumerate(order):
        batch.append(index)
        following = order[number + 1] if number + 1 < len(order) else None
        longest = sum(map(len, sequences[following])) if following is not None else 0
        if following is None or (len(batch) + 1) * longest > _TOKENS_PER_PASS:
            passed = _one_pass(model, [sequences[i] for i in batch], layer, block_size)
            found.update(zip(batch, passed, strict=True))
            batch = []
    return [found[index] for index in range(len(sequences))]


def _one_pass(
    model: LanguageModel, sequences: list[tuple[Sequence[int], Sequence[int]]], layer: int, block_size: int
) -> list[BlockFeatures]:
    """Run one padded batch. Padding stands on the right, where a causal model cannot see it from the left."""
    # The last token predicts nothing that is needed, so it is not fed.
    joined = [[*prompt, *response][:-1] for prompt, response in sequences]
    ids = torch.zeros((len(joined), max(map(len, joined))), dtype=torch.int64)
    for row, tokens in enumerate(joined):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    output = model.model(input_ids=ids.to(model.device), use_cache=False, output_hidden_states=True)
    results = []
    for row, (prompt, response) in enumerate(sequences):
        predicting = slice(len(prompt) - 1, len(prompt) - 1 + len(response))
        logprobs = base_logprobs(output.logits[row, predicting])
        tokens = torch.tensor(list(response), device=logprobs.device)
        per_token = torch.stack(
            (
                logprobs.gather(1, tokens[:, None])[:, 0].double(),
                -(logprobs.exp() * logprobs).sum(-1).double(),
                logprobs.max(-1).values.exp().double(),
            )
        )
        hidden = output.hidden_states[layer][row, predicting].float()
        sums = block_sums(per_token, block_size).cpu().numpy()
        sizes = block_sizes(len(response), block_size)
        means = (block_sums(hidden.T.double(), block_size) / torch.tensor(sizes, device=hidden.device)).T
        results.append(BlockFeatures(sums[0], sums[1], sums[2], means.float().cpu().numpy().copy()))
    return results


def block_sizes(length: int, block_size: int) -> np.ndarray:
    """Return the number of tokens of each block of a response: shape (ceil(length / block_size),), int32."""
    return np.diff([*range(0, length, block_size), length]).astype(np.int32)


def block_sums(values: Tensor, block_size: int) -> Tensor:
    """Sum values over consecutive blocks.

    Args:
        values: Shape (..., n).
        block_size: Tokens per block; the last block may be shorter.

    Returns:
        Shape (..., ceil(n / block_size)).
    """
    length = values.shape[-1]
    blocks = torch.arange(length, device=values.device) // block_size
    sums = torch.zeros((*values.shape[:-1], -(-length // block_size)), dtype=values.dtype, device=values.device)
    return sums.index_add_(-1, blocks, values)
