"""The running sampler beside an enumerated law: a language model as a toy model, and chains of the engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from dps.model import LanguageModel
from dps.sampler.engine import Chain, ChainRequest, Engine
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import stream_key
from dps.testing.toy import Response, ToyModel, random_model


@torch.inference_mode()
def toy_of(language_model: LanguageModel, prompt: Sequence[int], horizon: int) -> ToyModel:
    """Return the toy model whose logits are a language model's after a prompt.

    Every context costs an uncached forward pass, so the vocabulary must be a handful of tokens, one of them EOS.
    """
    vocabulary = language_model.model.config.vocab_size
    (eos,) = language_model.eos_ids
    shape = random_model(0, vocabulary=vocabulary, horizon=horizon, eos=eos)
    table = {}
    for context in shape.logits:
        ids = torch.tensor([[*prompt, *context]], device=language_model.device)
        table[context] = language_model.model(input_ids=ids, use_cache=False).logits[0, -1].double().cpu().numpy()
    return ToyModel(table, vocabulary, eos, horizon)


def sample_chains(engine: Engine, requests: Iterable[ChainRequest]) -> dict[Any, Chain]:
    """Return the finished chains of these requests by their keys."""
    for request in requests:
        engine.submit(request)
    chains = {}
    while not engine.idle:
        chains |= {chain.request.key: chain for chain in engine.poll()}
    return chains


def draw_responses(
    language_model: LanguageModel,
    config: SamplerConfig,
    prompt: Sequence[int],
    count: int,
    *,
    rows: int = 2048,
) -> list[Response]:
    """Return the responses of ``count`` chains of the engine, each with its own stream of random numbers."""
    engine = Engine(language_model, config, rows=rows, prompt_room=len(prompt))
    requests = (ChainRequest(i, tuple(prompt), stream_key(0, "draw", i)) for i in range(count))
    return [tuple(chain.tokens.tolist()) for chain in sample_chains(engine, requests).values()]
