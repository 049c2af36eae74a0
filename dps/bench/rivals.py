"""What the engine is compared with: the published loop, one chain at a time, and plain sampling in batches."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dps.device import seeded, synchronize
from dps.model import LanguageModel
from dps.sampler.settings import SamplerConfig


@dataclass(slots=True)
class ReferenceChain:
    """One chain of the published loop, or the part of it that the budget allowed."""

    tokens: list[int] = field(default_factory=list)
    """The response."""
    num_generated_tokens: int = 0
    """Sampled tokens, rejected ones included."""
    num_proposals: int = 0
    """Calls of ``generate``."""
    mh_proposed: int = 0
    mh_accepted: int = 0
    seconds: float = 0.0
    """Wall-clock time, the device synchronized."""
    complete: bool = False
    """Whether it came to its end."""


@torch.inference_mode()
def reference_chain(
    model: LanguageModel, prompt: tuple[int, ...], config: SamplerConfig, *, seed: int, budget_s: float = math.inf
) -> ReferenceChain:
    """Run one chain as the code of Karan and Du 2025 does: one ``generate`` call per proposal, nothing kept in between.

    The acceptance rule is the published one, over the overlap of the suffixes, and its law is therefore not p^alpha.

    Of the settings, block size, T_max, steps, alpha and proposal temperature are read. The global random numbers are
    left as they were. Stops before the next proposal when ``budget_s`` seconds have passed.
    """
    cuts, chain, ends = random.Random(seed), ReferenceChain(), set(model.eos_ids)
    values: list[tuple[float, float]] = []  # log g and alpha log p of each token
    with seeded(model.device, seed):
        synchronize(model.device)
        started = time.perf_counter()

        def propose(cut: int, count: int) -> tuple[list[int], list[tuple[float, float]]]:
            tokens, of_tokens = _continue(model, [*prompt, *chain.tokens[:cut]], count, config)
            chain.num_generated_tokens += len(tokens)
            chain.num_proposals += 1
            return tokens, of_tokens

        def run() -> bool:
            for _ in range(config.max_new_tokens // config.block_size):
                tokens, of_tokens = propose(len(chain.tokens), config.block_size)
                chain.tokens += tokens
                values.extend(of_tokens)
                for _ in range(config.num_mh_steps):
                    if time.perf_counter() - started > budget_s:
                        return False
                    cut = cuts.randint(0, len(chain.tokens) - 1)
                    tokens, of_tokens = propose(cut, len(chain.tokens) - cut)
                    old = values[cut : cut + len(tokens)]  # the overlap, as published
                    log_ratio = sum(p - g for g, p in of_tokens) - sum(p - g for g, p in old)
                    chain.mh_proposed += 1
                    if math.log(cuts.random() + 1e-300) < log_ratio:
                        chain.mh_accepted += 1
                        chain.tokens[cut:], values[cut:] = tokens, of_tokens
                if ends & set(chain.tokens):
                    del chain.tokens[next(i for i, token in enumerate(chain.tokens) if token in ends) + 1 :]
                    break
            return True

        chain.complete = run()
        synchronize(model.device)
        chain.seconds = time.perf_counter() - started
    return chain


def _continue(
    model: LanguageModel, tokens: list[int], count: int, config: SamplerConfig
) -> tuple[list[int], list[tuple[float, float]]]:
    """Sample a continuation with ``generate``; return its tokens and (log g, alpha log p) of each."""
    ids = torch.tensor([tokens], device=model.device)
    output = model.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=True,
        temperature=config.temperature,
        top_k=0,
        top_p=1.0,
        eos_token_id=list(model.eos_ids),
        pad_token_id=model.eos_ids[0],
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    drawn = output.sequences[0, ids.shape[1] :]
    proposal, base = (
        torch.stack(steps)[:, 0].float().log_softmax(-1).gather(1, drawn[:, None])[:, 0]
        for steps in (output.scores, output.logits)
    )
    return drawn.tolist(), list(zip(proposal.tolist(), (config.alpha * base).tolist(), strict=True))


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
    """Sample one response to each prompt in one batch with transformers' own ``generate``.

    The global random numbers are left as they were. Random weights have no EOS to speak of: ``stop_at_eos`` false.
    Returns the tokens of all responses up to and including their EOS, and the seconds, the device synchronized.
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
    """Count tokens of responses (B, T) up to and including the first EOS of each row; what follows is padding."""
    ends = torch.isin(responses, torch.tensor(eos_ids))
    before = (ends.long().cumsum(1) - ends.long()) == 0
    return int(before.sum())
