"""Snapshots of chains at the ends of stages, and chains that are given up: exact, and nobody else's concern."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import dps.sampler.engine as engine_module
from dps.errors import InputError
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.memory import row_bytes
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import stream_key

from .models import tiny_model

CONFIG = SamplerConfig(alpha=2.0, block_size=4, max_new_tokens=16, num_mh_steps=3)
PROMPTS = [(1, 2, 3), (4, 5), (6,), (7, 8, 9, 10, 11)]
VALUES = ("base_logprobs", "proposal_logprobs", "entropies", "top_probabilities")
COUNTS = ("num_generated_tokens", "mh_proposed", "mh_accepted")
SETTINGS = {
    "plain": {},
    "tries": {"num_tries": 2},
    "no-steps": {"num_mh_steps": 0},
}


@pytest.fixture(scope="module")
def model():
    return tiny_model(sharpness=2.0)


def submit(engine, count=32):
    for i in range(count):
        engine.submit(ChainRequest(i, PROMPTS[i % 4], stream_key(3, f"q{i % 4}", i)))


def run(model, config=CONFIG, *, blocks=(), count=32, rows=16):
    engine = Engine(model, config, rows=rows, prompt_room=8, snapshot_blocks=blocks)
    submit(engine, count)
    chains, snapshots = {}, {}
    while not engine.idle:
        ended = engine.poll()
        for snapshot in engine.take_snapshots():
            assert (snapshot.request.key, snapshot.block) not in snapshots
            assert snapshot.request.key not in chains  # it comes before its chain
            snapshots[snapshot.request.key, snapshot.block] = snapshot
        chains |= {chain.request.key: chain for chain in ended}
    assert engine.take_snapshots() == []
    return chains, snapshots


def same(one, other):
    assert one.tokens.tolist() == other.tokens.tolist()
    assert [getattr(one, name) for name in COUNTS] == [getattr(other, name) for name in COUNTS]
    for name in VALUES:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-7)
    for field in dataclasses.fields(one.steps):
        mine, theirs = getattr(one.steps, field.name), getattr(other.steps, field.name)
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_snapshot_is_the_chain_that_stops_at_that_stage(model, name):
    config = dataclasses.replace(CONFIG, **SETTINGS[name])
    chains, snapshots = run(model, config, blocks=(1, 2, 3))
    found = 0
    for block in (1, 2, 3):
        stopped, _ = run(model, dataclasses.replace(config, max_new_tokens=4 * block))
        going_on = {key for key, chain in stopped.items() if chain.ending == "length"}
        assert {key for key, of in snapshots if of == block} == going_on
        assert all(len(chains[key].tokens) > 0 for key in going_on)
        for key in going_on:
            same(snapshots[key, block], stopped[key])
            found += 1
        for key in stopped.keys() - going_on:  # a chain that ends at or before the stage is its own snapshot
            same(chains[key], stopped[key])
    assert found > 30


@pytest.mark.parametrize("name", [*SETTINGS, "final-horizon", "anneal", "early-stop"])
def test_chains_are_the_same_with_and_without_snapshots(model, name):
    changes = {
        "final-horizon": {"schedule": "final-horizon"},
        "anneal": {"anneal_blocks": 3},
        "early-stop": {"early_stop": "entropy", "early_stop_min_tokens": 4, "early_stop_threshold": 1.5},
    } | SETTINGS
    config = dataclasses.replace(CONFIG, **changes[name])
    without, none = run(model, config, rows=32)
    chains, snapshots = run(model, config, blocks=(1, 3))
    assert none == {}
    assert {block for _, block in snapshots} == {1, 3}
    assert len({chain.ending for chain in chains.values()}) > 1
    for key, chain in without.items():
        same(chains[key], chain)
        assert chains[key].ending == chain.ending


def test_a_chain_that_jumps_to_the_last_horizon_leaves_every_stage_between(model):
    config = dataclasses.replace(CONFIG, schedule="final-horizon")
    _, snapshots = run(model, config, blocks=(1, 2, 3), count=64, rows=64)
    stopped, _ = run(model, dataclasses.replace(CONFIG, max_new_tokens=4), count=64, rows=64)
    jumped = [key for key, chain in stopped.items() if chain.ending == "eos"]
    assert len(jumped) > 5
    for key in jumped:
        for block in (1, 2, 3):
            same(snapshots[key, block], stopped[key])
    assert {key for key, block in snapshots if block == 3} > set(jumped)


class NoLook(TorchDispatchMode):
    """Refuses what would make the host wait for the device, or shapes depend on values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        assert name not in {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"}, name
        if name in {"aten::index", "aten::index_put_"}:
            assert not any(index is not None and index.dtype == torch.bool for index in args[1]), name
        return function(*args, **(kwargs or {}))


def test_settling_with_snapshots_can_be_recorded(model, monkeypatch):
    """No look from the host, and nothing that a recording is bound to moves."""
    settle, taken = engine_module.settle, 0

    def watched(rows, *args):
        nonlocal taken
        with NoLook():
            settle(rows, *args)
        taken += int((rows.fresh > 0).sum())

    monkeypatch.setattr(engine_module, "settle", watched)
    engine = Engine(model, CONFIG, rows=16, prompt_room=8, snapshot_blocks=(1, 2))
    submit(engine)
    move = engine.cache.move

    def move_apart(*args):
        with _disable_current_modes():  # a GPU has a kernel of its own for this
            move(*args)

    monkeypatch.setattr(engine.cache, "move", move_apart)

    def places():
        tensors = [t for kept in engine._rows.kept for t in (kept.responses.tokens, kept.responses.values, kept.counts)]
        return [t.data_ptr() for t in tensors]

    before = places()
    while not engine.idle:
        engine.poll()
    assert taken > 20
    assert places() == before
    restore = engine._rows.pause()
    settle(engine._rows, CONFIG, engine._endings, engine.cache)
    assert not engine._rows.fresh.any()  # a recording's warm-up takes none
    restore()


def test_the_no_look_test_would_notice():
    with NoLook(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        bool(torch.ones(2).any())


@pytest.mark.parametrize("rows", [8, 40])
def test_giving_chains_up_frees_their_rows_and_leaves_the_others_alone(model, rows):
    expected, _ = run(model)
    engine = Engine(model, CONFIG, rows=rows, prompt_room=8, snapshot_blocks=(1,))
    submit(engine)
    engine.poll(1)
    chains, given_up, cancelled = {}, set(), []
    while not engine.idle:
        for chain in engine.poll(1):
            assert chain.request.key not in given_up
            chains[chain.request.key] = chain
        for snapshot in engine.take_snapshots():
            key = snapshot.request.key
            if key % 3 or key in given_up:
                continue
            # One that runs, one that may still wait, and one that was never there.
            asked = {key, (key + 16) % 32, "nobody"}
            running, waiting = engine.num_running, engine.num_pending
            gone = engine.cancel(asked)
            cancelled += gone
            given_up |= asked - chains.keys() - {"nobody"}
            assert engine.num_running == running - len(gone)
            assert waiting - engine.num_pending in (0, 1)
    assert len(given_up) > 8
    assert {c.request.key for c in cancelled} <= given_up
    assert chains.keys() == expected.keys() - given_up
    for key, chain in chains.items():
        same(chain, expected[key])
    for one in cancelled:
        assert one.num_generated_tokens >= 0
        assert one.admitted < one.finished
    assert any(one.num_generated_tokens > 4 for one in cancelled)
    assert engine.num_running == engine.num_pending == 0
    assert not engine._rows.occupied.any()
    spent = sum(c.num_generated_tokens for c in chains.values()) + sum(c.num_generated_tokens for c in cancelled)
    assert spent == engine.num_generated_tokens


@pytest.mark.parametrize("blocks", [(0,), (4,), (2, 1), (1, 1)])
def test_blocks_after_which_no_chain_goes_on_are_refused(model, blocks):
    with pytest.raises(InputError, match=r"with block_size 4 and max_new_tokens 16 these are 1 to 3"):
        Engine(model, CONFIG, rows=8, prompt_room=8, snapshot_blocks=blocks)


def test_snapshots_count_in_the_memory_of_a_row(model):
    assert row_bytes(model.model, CONFIG, 32, num_snapshots=2) - row_bytes(model.model, CONFIG, 32) == 2 * 40 * 32
