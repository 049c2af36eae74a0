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
from dps.sampler.proposal import entropies
from dps.sampler.target import base_logprobs

_TOKENS_PER_PASS = 8192
"""Padded tokens of one forward pass, at most (one sequence alone may be longer)."""
_LOGITS_BYTES = 2 << 30
"""What the logits of one pass may take on a GPU."""
_TOKENS_PER_CHUNK = 1024
"""Positions whose logits are turned into single precision at a time."""


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

    Note:
        A pass that runs out of memory is done again in two halves.

    Source:
        METHOD section 3.
    """
    check_layer(layer, model.num_layers)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]) + len(sequences[i][1]))
    room = _tokens_per_pass(model)
    waiting: list[list[int]] = []
    for index in order:
        size = sum(map(len, sequences[index]))
        if waiting and (len(waiting[-1]) + 1) * size <= room:
            waiting[-1].append(index)
        else:
            waiting.append([index])
    found: dict[int, BlockFeatures] = {}
    while waiting:
        batch = waiting.pop()
        try:
            passed = _one_pass(model, [sequences[i] for i in batch], layer, block_size)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            waiting += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            continue
        found.update(zip(batch, passed, strict=True))
    return [found[index] for index in range(len(sequences))]


def _tokens_per_pass(model: LanguageModel) -> int:
    """Return the padded tokens of one pass, at most (one sequence alone may be longer): what its logits have room for.

    On a CPU the number is the same for every model, so that a sequence is read in the same company.
    """
    if model.device.type == "cpu":
        return _TOKENS_PER_PASS
    vocabulary = model.model.get_output_embeddings().weight.shape[0]
    return max(512, min(_TOKENS_PER_PASS, _LOGITS_BYTES // (vocabulary * model.model.dtype.itemsize)))


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

    # One line for each predicted token of all sequences: where its logits are, what it is, and the number of its block.
    sizes = [block_sizes(len(response), block_size) for _, response in sequences]
    lengths = [len(response) for _, response in sequences]
    starts = [row * ids.shape[1] + len(prompt) - 1 for row, (prompt, _) in enumerate(sequences)]
    where = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
    tokens = np.concatenate([np.asarray(response, np.int64) for _, response in sequences])
    block_lengths = np.concatenate(sizes)
    blocks = np.repeat(np.arange(len(block_lengths)), block_lengths)
    device = model.device
    where, tokens, blocks = (torch.from_numpy(array).to(device) for array in (where, tokens, blocks))

    logits = output.logits.flatten(0, 1)
    chunks = zip(where.split(_TOKENS_PER_CHUNK), tokens.split(_TOKENS_PER_CHUNK), strict=True)
    per_token = torch.cat([token_statistics(logits[part], following) for part, following in chunks], dim=1)
    hidden = output.hidden_states[layer].flatten(0, 1)[where].double()
    sums = torch.zeros((len(block_lengths), 3 + hidden.shape[1]), dtype=torch.float64, device=device)
    sums.index_add_(0, blocks, torch.cat((per_token.T, hidden), dim=1))
    sums = sums.cpu().numpy()
    means = (sums[:, 3:] / block_lengths[:, None]).astype(np.float32)
    ends = np.cumsum([len(size) for size in sizes])
    return [
        BlockFeatures(*(sums[end - len(size) : end, :3].T.copy()), hidden=means[end - len(size) : end].copy())
        for end, size in zip(ends, sizes, strict=True)
    ]


def token_statistics(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return what the base model says at positions that predict these tokens.

    Args:
        logits: The model's logits, shape (N, V).
        tokens: The tokens that follow, int64, shape (N,).

    Returns:
        Log p of the token, entropy (both nats) and top-1 probability: float64, shape (3, N).
    """
    logprobs = base_logprobs(logits)
    return torch.stack(
        (
            logprobs.gather(1, tokens[:, None])[:, 0].double(),
            entropies(logprobs).double(),
            logprobs.max(-1).values.exp().double(),
        )
    )


def block_sizes(length: int, block_size: int) -> np.ndarray:
    """Return the number of tokens of each block of a response: shape (ceil(length / block_size),), int32."""
    return np.diff([*range(0, length, block_size), length]).astype(np.int32)
