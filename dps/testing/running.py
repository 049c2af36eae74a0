"""The running sampler beside an enumerated law: a language model as a toy model, and chains of the engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dps.model import LanguageModel
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import stream_key
from dps.testing.toy import Response, ToyModel, random_model


@torch.inference_mode()
def toy_of(language_model: LanguageModel, prompt: Sequence[int], horizon: int) -> ToyModel:
    """Return the toy model whose logits are a language model's after a prompt.

    Every context costs an uncached forward pass, so the vocabulary must be a handful of tokens, one of them EOS.

    Args:
        language_model: The model.
        prompt: Token ids.
        horizon: Longest response, tokens.
    """
    vocabulary = language_model.model.config.vocab_size
    (eos,) = language_model.eos_ids
    shape = random_model(0, vocabulary=vocabulary, horizon=horizon, eos=eos)
    table = {}
    for context in shape.logits:
        ids = torch.tensor([[*prompt, *context]], device=language_model.device)
        table[context] = language_model.model(input_ids=ids, use_cache=False).logits[0, -1].double().cpu().numpy()
    return ToyModel(table, vocabulary, eos, horizon)


def draw_responses(
    language_model: LanguageModel, config: SamplerConfig, prompt: Sequence[int], count: int, *, rows: int = 2048
) -> list[Response]:
    """Return the responses of so many chains of the engine, each with its own stream of random numbers.

    Args:
        language_model: The model.
        config: The sampler's settings.
        prompt: Token ids.
        count: Chains.
        rows: Chains that run at a time.
    """
    engine = Engine(language_model, config, rows=rows, prompt_room=len(prompt))
    for number in range(count):
        engine.submit(ChainRequest(number, tuple(prompt), stream_key(0, "draw", number)))
    found: list[Response] = []
    while not engine.idle:
        found += [tuple(chain.tokens.tolist()) for chain in engine.poll()]
    return found
