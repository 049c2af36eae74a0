"""Chains for tests: the same prompts, streams and ways to run an engine to the end."""

import torch

from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import stream_key
from dps.testing import sample_chains

CONFIG = SamplerConfig(alpha=2.0, block_size=6, max_new_tokens=18, num_mh_steps=4)
PROMPTS = [(1, 2, 3), (4, 5), (6,), (7, 8, 9, 10, 11)]


def requests_of(numbers, prompts=PROMPTS, seed=3):
    """Chains whose prompts take turns; a chain is the same whatever the others are."""
    return [ChainRequest(i, prompts[i % len(prompts)], stream_key(seed, f"q{i % len(prompts)}", i)) for i in numbers]


def run(model, config=CONFIG, *, count=24, rows=8, **settings):
    """Return chains 0 to count - 1."""
    chains = sample_chains(Engine(model, config, rows=rows, prompt_room=8, **settings), requests_of(range(count)))
    return [chains[i] for i in range(count)]


def sampled_chains(language_model, config, prompt, numbers, rows=64, stop_strings=()):
    """Return these chains of one prompt by their numbers."""
    engine = Engine(language_model, config, rows=rows, prompt_room=len(prompt), stop_strings=stop_strings)
    return sample_chains(engine, [ChainRequest(i, prompt, stream_key(0, "q", i)) for i in numbers])


def logits_after(model, chain):
    """Return the uncached logits under which each token of a chain was drawn, (n, V)."""
    prompt = chain.request.prompt
    ids = torch.tensor([[*prompt, *chain.tokens.tolist()]])
    return model.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]


def logprobs_of(logits, chain):
    """Return log-probabilities of a chain's tokens from such logits."""
    return logits.log_softmax(-1).gather(1, torch.tensor(chain.tokens.tolist())[:, None])[:, 0].numpy()
