"""The published loop, for comparison of speed: one chain, one ``generate`` call per proposal, nothing kept in between.

Its acceptance rule is the published one, over the overlap of the suffixes, and its law is therefore not p^alpha; it is
here to be timed.

Source:
    Karan and Du 2025, "Reasoning with Sampling", and the code released with it.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass

import torch

from dps.device import seeded, synchronize
from dps.model import LanguageModel
from dps.sampler.settings import SamplerConfig


@dataclass(frozen=True, slots=True)
class ReferenceChain:
    """One chain of the loop, or the part of it that the budget allowed."""

    tokens: list[int]
    """The response."""
    num_generated_tokens: int
    """Sampled tokens, rejected ones included."""
    num_proposals: int
    """Calls of ``generate``."""
    mh_proposed: int
    mh_accepted: int
    seconds: float
    """Wall-clock time, the device synchronized."""
    complete: bool
    """Whether it came to its end."""


@dataclass(slots=True)
class _Continuation:
    """What one call of ``generate`` brought; log-probabilities as the published code keeps them."""

    tokens: list[int]
    proposal: list[float]
    target: list[float]
    """alpha log p of each token."""


@torch.inference_mode()
def reference_chain(
    model: LanguageModel, prompt: tuple[int, ...], config: SamplerConfig, *, seed: int, budget_s: float = math.inf
) -> ReferenceChain:
    """Run one chain as the published code does, until its end or until the budget is spent.

    Args:
        model: The language model.
        prompt: Token ids.
        config: Block size, T_max, steps, alpha and proposal temperature are read; the schedule is the published one.
        seed: Of the chain's random numbers; the global ones are left as they were.
        budget_s: Stop before the next proposal when so many seconds have passed.
    """
    cuts = random.Random(seed)
    response: list[int] = []
    proposal: list[float] = []
    target: list[float] = []
    generated = calls = proposed = accepted = 0
    ends = set(model.eos_ids)
    with seeded(model.device, seed):
        synchronize(model.device)
        started = time.perf_counter()

        def ended(complete: bool) -> ReferenceChain:
            synchronize(model.device)
            seconds = time.perf_counter() - started
            return ReferenceChain(response, generated, calls, proposed, accepted, seconds, complete)

        for _ in range(config.max_new_tokens // config.block_size):
            grown = _continue(model, [*prompt, *response], config.block_size, config)
            response = response + grown.tokens
            proposal, target = proposal + grown.proposal, target + grown.target
            generated, calls = generated + len(grown.tokens), calls + 1
            for _ in range(config.num_mh_steps):
                if time.perf_counter() - started > budget_s:
                    return ended(False)
                cut = cuts.randint(0, len(response) - 1)
                new = _continue(model, [*prompt, *response[:cut]], len(response) - cut, config)
                generated, calls, proposed = generated + len(new.tokens), calls + 1, proposed + 1
                stop = cut + len(new.tokens)  # the overlap, as published
                log_ratio = sum(new.target) + sum(proposal[cut:stop]) - sum(target[cut:stop]) - sum(new.proposal)
                if math.log(cuts.random() + 1e-300) < log_ratio:
                    accepted += 1
                    response = response[:cut] + new.tokens
                    proposal, target = proposal[:cut] + new.proposal, target[:cut] + new.target
            if ends & set(response):
                response = response[: next(i for i, token in enumerate(response) if token in ends) + 1]
                break
        return ended(True)


def _continue(model: LanguageModel, tokens: list[int], count: int, config: SamplerConfig) -> _Continuation:
    """Sample a continuation with ``generate``, its scores and its logits."""
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
    scores = torch.stack(output.scores)[:, 0].float().log_softmax(-1).gather(1, drawn[:, None])[:, 0]
    logits = torch.stack(output.logits)[:, 0].float().log_softmax(-1).gather(1, drawn[:, None])[:, 0]
    return _Continuation(drawn.tolist(), scores.tolist(), (config.alpha * logits).tolist())
