"""Hidden states kept while decoding are those of a pass over the accepted response, whatever became of proposals."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch

import dps.sampler.engine as engine_module
import dps.sampler.settle as settle_module
from dps.sampler.cache import RowCache
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.forward import EagerForward, UnchangedForward
from dps.sampler.fused import FusedDecoder
from dps.sampler.kept import KeptStates, can_keep
from dps.sampler.memory import row_bytes
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import stream_key
from dps.sampler.teacher import block_hidden
from dps.testing import sample_chains

from .chains import CONFIG as PUBLISHED
from .chains import requests_of
from .interpreter import CUDA, DEVICE, kernels
from .models import tiny_model, with_tokenizer
from .recordings import RecordedEngine
from .test_forward import ARCHITECTURES, FUSED, PROMPTS, TOKENS, logits_by_steps, random_model
from .test_mixed import ARMS, check_same
from .test_mixed import requests_of as mixed_requests

CONFIG = dataclasses.replace(PUBLISHED, reject_early=False)
"""For decisions by a coin, which may accept what is certain to be rejected."""
LAYER = 2
ROUNDING = 1e-4 if CUDA else 1e-5
"""Of a state in single precision, relative to the largest."""


@pytest.fixture(scope="module")
def model():
    return with_tokenizer(tiny_model(layers=3, sharpness=2.0, positions=512), names=list("_abcdefghijk"))


def distance(model, chains, layer, block_size):
    """Return the largest difference of a chain's states from those of a pass over it, relative to the largest."""
    pairs = [(chain.request.prompt, chain.tokens.tolist()) for chain in chains]
    expected = block_hidden(model, pairs, layer=layer, block_size=block_size)
    for chain, means in zip(chains, expected, strict=True):
        assert (chain.hidden.shape, chain.hidden.dtype) == (means.shape, np.float32)
    return max(np.abs(c.hidden - means).max() / np.abs(means).max() for c, means in zip(chains, expected, strict=True))


def coin(monkeypatch):
    """Decide by a coin: proposals of all lengths are rejected, and accepted."""
    monkeypatch.setattr(settle_module, "accept", lambda number, log_ratio: number < 0.4)


@pytest.mark.parametrize("kind", [Engine, RecordedEngine])
@pytest.mark.parametrize(
    ("changes", "layer", "stop_strings"),
    [
        ({}, 2, ()),
        ({}, 0, ()),
        ({"schedule": "final-horizon", "num_final_steps": 5}, 1, ()),
        ({"cut_law": "entropy"}, 2, ("bc", "ab")),
        ({"early_stop": "entropy", "early_stop_threshold": 1.5, "early_stop_min_tokens": 4}, 2, ()),
        ({"num_mh_steps": 0}, 2, ()),
        ({"block_size": 18}, 2, ()),
        ({"block_size": 1}, 2, ()),
    ],
    ids=str,
)
def test_states_are_those_of_a_pass_and_chains_stay_the_same(model, monkeypatch, kind, changes, layer, stop_strings):
    coin(monkeypatch)
    config = dataclasses.replace(CONFIG, **changes).check()
    found, without = (
        sample_chains(
            kind(model, config, rows=16, prompt_room=8, stop_strings=stop_strings, layer=wanted), requests_of(range(40))
        )
        for wanted in (layer, None)
    )
    check_same(found, without)
    assert all(chain.hidden is None for chain in without.values())
    chains = list(found.values())
    assert distance(model, chains, layer, config.block_size) < 1e-5
    assert len({len(chain.tokens) for chain in chains}) > 3
    if config.num_mh_steps:
        accepted = [step for chain in chains for step in chain.steps.accepted]
        assert 0.2 < np.mean(accepted) < 0.6
    assert all(not layer._forward_pre_hooks for layer in model.model.base_model.layers)


@pytest.mark.parametrize("kind", [Engine, RecordedEngine])
def test_states_of_long_blocks(model, monkeypatch, kind):
    coin(monkeypatch)
    config = SamplerConfig(alpha=2.0, block_size=192, max_new_tokens=384, num_mh_steps=2, reject_early=False)
    requests = [
        ChainRequest(n, (1, 2, 3), stream_key(0, "q", n), forced_length=length)
        for n, length in enumerate((384, 200, 193, 192, 191, 2, 1))
    ]
    chains = sample_chains(kind(model, config, rows=8, prompt_room=8, layer=LAYER), requests).values()
    assert sorted({len(chain.hidden) for chain in chains}) == [1, 2]
    assert distance(model, list(chains), LAYER, 192) < 1e-5


@pytest.mark.parametrize("kind", [Engine, RecordedEngine])
def test_states_of_mixed_arms(model, kind):
    engine = kind(model, ARMS, rows=16, prompt_room=8, layer=LAYER)
    found = sample_chains(engine, mixed_requests(range(60)))
    check_same(found, sample_chains(kind(model, ARMS, rows=16, prompt_room=8), mixed_requests(range(60))))
    assert distance(model, list(found.values()), LAYER, CONFIG.block_size) < 1e-5


def test_states_survive_rows_that_move_chains_that_are_given_up_and_halved_rows(model, monkeypatch):
    coin(monkeypatch)
    settle, steps, moved = engine_module.settle, 0, 0
    move_rows = RowCache.move_rows

    def scarce(*args):
        nonlocal steps
        steps += 1
        if steps in (30, 75):
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 2.00 GiB")
        settle(*args)

    def noted(cache, sources, targets):
        nonlocal moved
        moved += len(sources)
        move_rows(cache, sources, targets)

    monkeypatch.setattr(engine_module, "settle", scarce)
    monkeypatch.setattr(RowCache, "move_rows", noted)
    engine, chains = Engine(model, CONFIG, rows=64, prompt_room=8, layer=LAYER), {}
    for request in requests_of(range(70)):
        engine.submit(request)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while not engine.idle:
            chains |= {chain.request.key: chain for chain in engine.poll(1)}
            engine.cancel({n for n in range(0, 70, 7) if n not in chains})
    assert engine.rows == 16
    assert len(chains) >= 60
    assert moved > 0
    assert distance(model, list(chains.values()), LAYER, CONFIG.block_size) < 1e-5


@pytest.mark.parametrize("mistake", ["proposals overwrite the response's", "nothing is accepted"])
def test_states_of_other_tokens_would_be_noticed(model, monkeypatch, mistake):
    coin(monkeypatch)
    engine = Engine(model, CONFIG, rows=16, prompt_room=8, layer=LAYER)
    accept = KeptStates.accept

    def wrong(kept, chosen, first, stop):
        if mistake == "nothing is accepted":
            return
        everything = torch.ones_like(chosen)
        accept(kept, everything, first, stop)

    monkeypatch.setattr(KeptStates, "accept", wrong)
    chains = list(sample_chains(engine, requests_of(range(20))).values())
    assert distance(model, chains, LAYER, CONFIG.block_size) > 1e-2


# -- every way of running the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["eager", "unchanged", "fused"])
@pytest.mark.parametrize("architecture", ["Qwen2", "Gemma2", *(pytest.param(a, marks=pytest.mark.slow) for a in
                                          ARCHITECTURES if a not in ("Qwen2", "Gemma2"))])  # fmt: skip
@pytest.mark.parametrize("layer", [0, 1])
@torch.inference_mode()
def test_every_way_hands_over_the_state(path, architecture, layer):
    if path == "fused" and architecture not in FUSED:
        pytest.skip(f"the fused pass does not know {architecture}")
    language_model = random_model(architecture, device=DEVICE)
    model = language_model.model
    start = torch.tensor([len(prompt) for prompt in PROMPTS], device=DEVICE) + 1
    kept = KeptStates(model, layer, start, room=3)
    cache = RowCache(model, 3, 160, kernels=None if path == "eager" else kernels)
    kind = {"eager": EagerForward, "unchanged": UnchangedForward, "fused": FusedDecoder}[path]
    forward = kind(model, cache, *(() if path == "eager" else (kernels,)), kept)
    logits_by_steps(language_model, forward, cache, PROMPTS, TOKENS.to(DEVICE))
    kept.accept(torch.ones(3, dtype=torch.bool, device=DEVICE), start * 0, start * 0 + 3)
    found = kept.means([0, 1, 2], [3, 3, 3], 1)
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([[*prompt, *TOKENS[:, row].tolist()]], device=DEVICE)
        states = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
        expected = states[layer][0, len(prompt) :].cpu().numpy()
        assert np.abs(found[row] - expected).max() < ROUNDING * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["unchanged", "fused"])
def test_engine_on_kernels_keeps_the_states(monkeypatch, path):
    coin(monkeypatch)
    monkeypatch.setattr("dps.sampler.engine.SMALLEST_BATCH", 4)
    monkeypatch.setattr("dps.sampler.engine.load_kernels", lambda device: kernels)
    model = random_model("Qwen2", device=DEVICE, num_key_value_heads=1)
    config = SamplerConfig(alpha=4.0, block_size=2, max_new_tokens=4, num_mh_steps=2, reject_early=False)
    requests = [ChainRequest(i, (1 + i, 5, 7)[: 1 + i % 3], stream_key(0, "q", i)) for i in range(6)]
    engine = Engine(model, config, rows=4, prompt_room=3, path=path, graphs=CUDA, layer=1)
    assert engine.path == path
    chains = list(sample_chains(engine, requests).values())
    assert 0 < sum(chain.mh_accepted for chain in chains) < sum(chain.mh_proposed for chain in chains)
    assert distance(model, chains, 1, 2) < ROUNDING


# -- where nothing is kept, and what keeping takes ---------------------------------------------------------------------


def test_a_layer_that_no_layer_of_the_model_is_given_is_not_kept(model):
    kept = {layer: can_keep(model.model, layer) for layer in (None, -1, 0, 2, 3, 4)}
    assert [layer for layer, can in kept.items() if can] == [0, 2]
    for layer in (None, 3):
        engine = Engine(model, CONFIG, rows=8, prompt_room=8, layer=layer)
        assert engine.kept_layer is engine._rows.kept is None
        assert sample_chains(engine, requests_of([0]))[0].hidden is None


def test_keeping_takes_the_memory_that_rows_are_planned_with(model):
    kept = KeptStates(model.model, LAYER, torch.zeros(16, dtype=torch.int64), room=CONFIG.max_new_tokens)
    planned = row_bytes(model.model, 32, CONFIG.max_new_tokens + 1) - row_bytes(model.model, 32)
    assert kept._cells.nbytes + kept._free.nbytes == 16 * planned
