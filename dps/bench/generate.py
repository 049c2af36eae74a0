"""Plain batched sampling with transformers' own ``generate``: the cheap way to many responses, for comparison."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from dps.device import seeded, synchronize
from dps.model import LanguageModel


@torch.inference_mode()
def batched_generate(
    model: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    stop_at_eos: bool = True,
) -> tuple[int, float]:
    """Sample one response to each prompt in one batch.

    Args:
        model: The language model.
        prompts: Token ids, padded on the left.
        temperature: Of the samples.
        max_new_tokens: Their longest length.
        seed: Of the random numbers; the global ones are left as they were.
        stop_at_eos: Whether a response ends at EOS; random weights have none to speak of.

    Returns:
        Tokens of all responses up to and including their EOS, and the seconds that it took, the device synchronized.
    """
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), model.eos_ids[0])
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    with seeded(model.device, seed):
        synchronize(model.device)
        started = time.perf_counter()
        output = model.model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            eos_token_id=list(model.eos_ids) if stop_at_eos else None,
            pad_token_id=model.eos_ids[0],
        )
        synchronize(model.device)
        seconds = time.perf_counter() - started
    responses = output[:, longest:].cpu()
    return (count_tokens(responses, model.eos_ids) if stop_at_eos else responses.numel()), seconds


def count_tokens(responses: Tensor, eos_ids: Sequence[int]) -> int:
    """Count response tokens up to and including the first EOS of each row; what follows it is padding.

    Args:
        responses: Token ids, shape (B, T).
        eos_ids: Tokens that end a response.
    """
    ends = torch.isin(responses, torch.tensor(eos_ids))
    before = (ends.long().cumsum(1) - ends.long()) == 0
    return int(before.sum())
