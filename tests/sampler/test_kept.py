"""Hidden states kept while decoding are those of a pass over the accepted response, whatever became of proposals."""

import dataclasses
import itertools
import warnings

import numpy as np
import pytest
import torch

import dps.sampler.engine as engine_module
import dps.sampler.settle as settle_module
from dps.sampler.cache import RowCache
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.kept import KeptStates, can_keep
from dps.sampler.memory import row_bytes
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import stream_key
from dps.sampler.teacher import block_hidden
from dps.testing import sample_chains

from .chains import CONFIG as PUBLISHED
from .chains import requests_of
from .models import tiny_model, with_tokenizer
from .recordings import RecordedEngine
from .test_mixed import ARMS, check_same, open_mixed
from .test_mixed import requests_of as mixed_requests

CONFIG = dataclasses.replace(PUBLISHED, reject_early=False)
"""For decisions by a coin, which may accept what is certain to be rejected."""
LAYER = 2


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


@pytest.mark.parametrize(
    ("changes", "layer", "stop_strings", "kind"),
    [
        ({}, 2, (), Engine),
        ({}, 0, (), RecordedEngine),
        ({"schedule": "final-horizon", "num_final_steps": 5}, 1, (), RecordedEngine),
        ({"cut_law": "entropy"}, 2, ("bc", "ab"), Engine),
        ({"early_stop": "entropy", "early_stop_threshold": 1.5, "early_stop_min_tokens": 4}, 2, (), RecordedEngine),
        ({"num_mh_steps": 0}, 2, (), Engine),
        ({"block_size": 18}, 2, (), RecordedEngine),
        ({"block_size": 1, "num_mh_steps": 1}, 2, (), Engine),
    ],
    ids=str,
)
def test_states_are_those_of_a_pass_and_chains_stay_the_same(model, monkeypatch, changes, layer, stop_strings, kind):
    coin(monkeypatch)
    config = dataclasses.replace(CONFIG, **changes).check()
    found, without = (
        sample_chains(
            kind(model, config, rows=16, prompt_room=8, stop_strings=stop_strings, layer=wanted), requests_of(range(24))
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


def test_states_of_long_blocks(model, monkeypatch):
    coin(monkeypatch)
    config = SamplerConfig(alpha=2.0, block_size=192, max_new_tokens=384, num_mh_steps=1, reject_early=False)
    requests = [
        ChainRequest(n, (1, 2, 3), stream_key(0, "q", n), forced_length=length)
        for n, length in enumerate((384, 200, 193, 192, 191, 2, 1))
    ]
    chains = sample_chains(RecordedEngine(model, config, rows=8, prompt_room=8, layer=LAYER), requests).values()
    assert sorted({len(chain.hidden) for chain in chains}) == [1, 2]
    assert distance(model, list(chains), LAYER, 192) < 1e-5


def test_chains_of_mixed_arms_survive_moved_and_halved_rows_and_chains_that_are_given_up(model, monkeypatch):
    """Token for token, with their states; no chain comes back twice, and what ran is started again."""
    expected = sample_chains(open_mixed(model, layer=LAYER), mixed_requests(range(60)))
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
    engine, chains, given_up, left_rows = open_mixed(model, rows=64, layer=LAYER), {}, set(), 0
    for request in mixed_requests(range(60)):
        engine.submit(request)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for looks in itertools.count():
            if engine.idle:
                break
            for chain in engine.poll(1):
                assert chain.request.key not in chains
                chains[chain.request.key] = chain
            if looks % 4 == 0 and (key := looks % 61) not in chains:
                left_rows += len(engine.cancel({key})) * (engine.rows < 64)
                given_up |= {key} & expected.keys()
    # Other packages warn, too: of what they deprecate.
    said = [str(warning.message) for warning in caught if "ran out of memory" in str(warning.message)]
    assert ["64 rows; sampling goes on with 32" in said[0], "32 rows; sampling goes on with 16" in said[1]] == [
        True
    ] * 2
    assert (engine.rows, len(said)) == (16, 2)
    assert min(moved, left_rows, len(chains), len(given_up)) > 3
    assert len({key % len(ARMS) for key in given_up}) > 2
    check_same(chains, {key: chain for key, chain in expected.items() if key not in given_up})
    for found in (chains, expected):
        assert distance(model, list(found.values()), LAYER, CONFIG.block_size) < 1e-5


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
