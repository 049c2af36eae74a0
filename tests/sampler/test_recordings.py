"""Recorded windows sample the chains that unrecorded ones sample, over every bucket of attended lengths.

A recording attends to a fixed number of positions, settles several times, and is looked at only now and then. In the
meantime a rejected proposal sends its row back into a response that may be longer than the proposal was.
"""

import dataclasses

import numpy as np
import pytest
import torch

import dps.sampler.engine as engine_module
import dps.sampler.settle as settle_module
from dps.sampler.engine import Engine
from dps.sampler.law import accept
from dps.sampler.rows import Rows
from dps.sampler.settings import SamplerConfig
from dps.testing import sample_chains

from .chains import requests_of
from .models import tiny_model
from .recordings import RecordedEngine

CONFIG = SamplerConfig(alpha=1.5, block_size=20, max_new_tokens=120, num_mh_steps=3, reject_early=False)
SINGLE_CHAINS = 24  # 200 were tried, too
LENGTHS = {16, 32, 64, 126}
"""The attended lengths of recordings, by ``small_buckets``."""


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch):
    """Make recordings attend to fewer positions than a GPU's do, so that short responses pass every length."""
    monkeypatch.setattr(engine_module, "_LENGTH_STEP", 2)


@pytest.fixture(autouse=True)
def many_rejections(monkeypatch):
    """Decide by a coin: a model of noise rejects few proposals that are shorter than the response."""
    monkeypatch.setattr(settle_module, "accept", lambda number, log_ratio: number < 0.3)


@pytest.fixture(scope="module")
def model():
    """A model whose responses have 1 to 120 tokens."""
    return tiny_model(vocabulary=60, layers=1, sharpness=2.0, positions=128, seed=4)


def sampled(engine, chains, at_a_time):
    found = {}
    for first in range(0, len(chains), at_a_time):
        found |= sample_chains(engine, chains[first : first + at_a_time])
    return [found[request.key] for request in chains]


def differing(found, expected):
    """Return how many chains are not the expected ones; of the others everything is compared."""
    count = 0
    for chain, other in zip(found, expected, strict=True):
        if chain.tokens.tolist() != other.tokens.tolist() or not np.allclose(
            chain.base_logprobs, other.base_logprobs, atol=1e-4
        ):
            count += 1
            continue
        for name in ("num_generated_tokens", "mh_proposed", "mh_accepted", "mh_rejected_early", "ending"):
            assert getattr(chain, name) == getattr(other, name)
        np.testing.assert_array_equal(chain.steps.cut_position, other.steps.cut_position)
        np.testing.assert_array_equal(chain.steps.accepted, other.steps.accepted)
    return count


def compared(model, config, count, at_a_time):
    """Return how many of that many recorded chains differ from unrecorded ones, and the recorded engine."""
    chains = requests_of(range(count), seed=5)
    recorded = RecordedEngine(model, config, rows=8, prompt_room=5)
    expected = sampled(Engine(model, config, rows=32, prompt_room=5), chains, count)
    return differing(sampled(recorded, chains, at_a_time), expected), recorded


@pytest.mark.slow
def test_single_chains_are_those_of_an_unrecorded_run_over_every_length(model):
    different, engine = compared(model, CONFIG, SINGLE_CHAINS, 1)
    assert different == 0
    assert engine.recorded_lengths == LENGTHS


FINAL = {"schedule": "final-horizon", "block_size": 120, "num_final_steps": 4}
ONE_STAGE = {"block_size": 120, "num_mh_steps": 8}


@pytest.mark.parametrize(
    ("changes", "at_a_time"),
    [
        (FINAL, 20),
        pytest.param(FINAL, 3, marks=pytest.mark.slow),
        pytest.param({"cut_law": "entropy"}, 3, marks=pytest.mark.slow),
        pytest.param(ONE_STAGE, 20, marks=pytest.mark.slow),
    ],
    ids=["final-horizon", "final-horizon-alone", "entropy-alone", "one-stage"],
)
def test_a_few_chains_are_those_of_an_unrecorded_run(model, changes, at_a_time):
    different, engine = compared(model, dataclasses.replace(CONFIG, **changes), 20, at_a_time)
    assert different == 0
    assert len(engine.recorded_lengths) > 2


def test_recorded_windows_reject_early_where_unrecorded_ones_do(model, monkeypatch):
    monkeypatch.setattr(settle_module, "accept", accept)
    config = dataclasses.replace(CONFIG, alpha=2.0, block_size=40, max_new_tokens=40, num_mh_steps=6, reject_early=True)
    chains = requests_of(range(10), seed=5)
    expected = sampled(Engine(model, config, rows=16, prompt_room=5), chains, 10)
    assert differing(sampled(RecordedEngine(model, config, rows=8, prompt_room=5), chains, 10), expected) == 0
    assert sum(chain.mh_rejected_early for chain in expected) > 5


@pytest.mark.slow
def test_a_bound_that_forgets_the_accepted_response_is_noticed(model, monkeypatch):
    monkeypatch.setattr(Rows, "reach", lambda rows: torch.where(rows.occupied, rows.position, 0))
    different, _ = compared(model, CONFIG, SINGLE_CHAINS, 1)
    assert different > 0


def test_no_row_stands_beyond_what_its_step_attends_to(model, monkeypatch):
    """The bound itself, at every step; a token left out need not change a chain."""
    step, count = engine_module.decode_step, 0

    def checked(rows, length, **others):
        nonlocal count
        assert (rows.position < length)[rows.active].all()
        count += 1
        step(rows, length, **others)

    monkeypatch.setattr(engine_module, "decode_step", checked)
    requests = requests_of(range(4), seed=5)
    sampled(RecordedEngine(model, CONFIG, rows=8, prompt_room=5), requests, 2)
    assert count > 300
