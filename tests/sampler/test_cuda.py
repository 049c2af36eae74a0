"""What only a CUDA device can show: recorded steps and compiled kernels sample the enumerated law, too."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch

import dps.sampler.settle as settle_module
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import stream_key
from dps.sampler.teacher import block_hidden
from dps.testing import assert_follows, reference_law, responses, sample_chains, toy_of

from .chains import requests_of
from .models import tiny_model, with_tokenizer
from .test_exactness import FINAL, PAPER
from .test_mixed import check_laws

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_cuda(language_model, dtype=torch.float32):
    return dataclasses.replace(language_model, model=language_model.model.to("cuda", dtype))


@pytest.mark.parametrize("path", ["fused", "unchanged", "eager"])
@pytest.mark.parametrize(
    "settings",
    [PAPER, FINAL, dict(PAPER, cut_law="entropy"), dict(PAPER, proposal_temperature=None)],
    ids=["paper", "final-horizon", "entropy", "default-temperature"],
)
def test_recorded_sampler_follows_the_enumerated_finite_step_law(settings, path):
    config = SamplerConfig(**settings)
    language_model = tiny_model(vocabulary=3, eos=0, seed=23, sharpness=2.5)
    prompt, count = (1, 2, 1), 20_000
    toy = toy_of(language_model, prompt, config.max_new_tokens)
    expected = reference_law(toy, config)
    engine = Engine(on_cuda(language_model), config, rows=2048, prompt_room=3, path=path)
    assert engine.kernels == f"{path}+graphs"
    chains = sample_chains(engine, [ChainRequest(i, prompt, stream_key(0, "q", i)) for i in range(count)])
    assert len(chains) == count
    drawn = [tuple(chain.tokens.tolist()) for chain in chains.values()]
    assert_follows(drawn, expected, responses(toy, config.max_new_tokens))


def test_each_arm_of_a_recorded_batch_follows_its_own_enumerated_law():
    check_laws(count=20_000, place=on_cuda)


@pytest.mark.parametrize(
    ("changes", "stop_strings", "ending"),
    [({}, (), "eos"), ({}, ("bc", "ab"), "stop"), (dict(early_stop="entropy", early_stop_threshold=1.5), (), "early")],
    ids=["plain", "stop-strings", "early-stop"],
)
def test_recorded_chains_are_those_of_the_cpu_up_to_rounding(changes, stop_strings, ending):
    config = SamplerConfig(
        alpha=2.0, block_size=6, max_new_tokens=18, num_mh_steps=4, early_stop_min_tokens=4, **changes
    ).check()
    requests = requests_of(range(64))
    model = with_tokenizer(tiny_model(sharpness=2.0), names=list("_abcdefghijk"))
    settings = dict(rows=16, prompt_room=8, stop_strings=stop_strings)
    cpu = sample_chains(Engine(model, config, **settings), requests)
    model = with_tokenizer(on_cuda(tiny_model(sharpness=2.0)), names=list("_abcdefghijk"))
    gpu = sample_chains(Engine(model, config, **settings), requests)
    assert ending in {c.ending for c in cpu.values()}
    same = [i for i in cpu if cpu[i].tokens.tolist() == gpu[i].tokens.tolist()]
    assert len(same) >= 60
    for i in same:
        np.testing.assert_allclose(gpu[i].base_logprobs, cpu[i].base_logprobs, atol=1e-3)
        assert gpu[i].mh_accepted == cpu[i].mh_accepted
        assert gpu[i].ending == cpu[i].ending
        np.testing.assert_array_equal(gpu[i].steps.cut_position, cpu[i].steps.cut_position)


@pytest.mark.parametrize("decide", ["coin", "law"])
def test_recorded_chains_are_those_of_an_unrecorded_run_over_every_length(monkeypatch, decide):
    """A few rows at a time, whose rejected proposals are often shorter than the response to which the rows return."""
    if decide == "coin":
        monkeypatch.setattr(settle_module, "accept", lambda number, log_ratio: number < 0.3)
    config = SamplerConfig(alpha=1.5, block_size=256, max_new_tokens=1536, num_mh_steps=3, reject_early=decide == "law")
    model = on_cuda(tiny_model(vocabulary=600, sharpness=2.0, positions=2048, seed=4))
    chains = requests_of(range(50), seed=5)
    recorded, unrecorded = (Engine(model, config, rows=8, prompt_room=8, graphs=graphs) for graphs in (True, False))
    assert (recorded.kernels, unrecorded.kernels) == ("fused+graphs", "fused")
    lengths = set()
    for first in range(0, len(chains), 5):
        found, expected = (sample_chains(engine, chains[first : first + 5]) for engine in (recorded, unrecorded))
        for key, chain in found.items():
            assert chain.tokens.tolist() == expected[key].tokens.tolist()
            np.testing.assert_allclose(chain.base_logprobs, expected[key].base_logprobs, atol=1e-3)
            assert chain.num_generated_tokens == expected[key].num_generated_tokens
            lengths.add(len(chain.tokens) // 256)
    assert lengths >= ({0, 1, 2, 3, 6} if decide == "coin" else {0, 1, 2})


def test_recorded_chains_whose_steps_are_taken_ahead_of_time_are_those_one_by_one():
    config = SamplerConfig(alpha=4.0, block_size=64, max_new_tokens=384, num_mh_steps=5)
    model = on_cuda(tiny_model(vocabulary=600, layers=3, sharpness=2.0, positions=512, seed=4))
    requests = requests_of(range(40))
    ahead, one_by_one = (
        Engine(model, config, rows=256, prompt_room=8, layer=2, prefetch=prefetch) for prefetch in (True, False)
    )
    found, expected = (sample_chains(engine, requests) for engine in (ahead, one_by_one))
    same = [key for key, chain in expected.items() if chain.tokens.tolist() == found[key].tokens.tolist()]
    assert len(same) >= 38  # batches of other sizes round differently
    for key in same:
        assert found[key].num_generated_tokens == expected[key].num_generated_tokens
        assert found[key].mh_accepted == expected[key].mh_accepted
        np.testing.assert_array_equal(found[key].steps.accepted, expected[key].steps.accepted)
        np.testing.assert_allclose(found[key].hidden, expected[key].hidden, atol=1e-3)
    assert ahead.num_spare_tokens > 0
    assert ahead.num_steps < 0.9 * one_by_one.num_steps


@pytest.mark.parametrize("path", ["fused", "unchanged", "eager"])
def test_recorded_chains_keep_the_states_of_a_pass(monkeypatch, path):
    """After many rejections and acceptances, in rows that move; the chains are those of an engine that keeps none."""
    monkeypatch.setattr(settle_module, "accept", lambda number, log_ratio: number < 0.4)
    config = SamplerConfig(alpha=1.5, block_size=64, max_new_tokens=384, num_mh_steps=3, reject_early=False)
    model = on_cuda(tiny_model(vocabulary=600, layers=3, sharpness=2.0, positions=512, seed=4))
    requests = requests_of(range(100))
    engines = [Engine(model, config, rows=64, prompt_room=8, path=path, layer=layer) for layer in (2, None)]
    assert [engine.kernels for engine in engines] == [f"{path}+graphs"] * 2
    kept, without = (sample_chains(engine, requests) for engine in engines)
    pairs = [(chain.request.prompt, chain.tokens.tolist()) for chain in kept.values()]
    expected = block_hidden(model, pairs, layer=2, block_size=64)
    for chain, means in zip(kept.values(), expected, strict=True):
        assert np.abs(chain.hidden - means).max() < 1e-4 * np.abs(means).max()
    assert {len(chain.hidden) for chain in kept.values()} >= {1, 2, 6}
    same = [kept[n].tokens.tolist() == without[n].tokens.tolist() for n in kept]
    assert sum(same) >= 95


def test_too_many_rows_are_halved_until_they_fit():
    model = on_cuda(tiny_model(sharpness=2.0, positions=1 << 20))
    config = SamplerConfig(alpha=2.0, block_size=1 << 10, max_new_tokens=1 << 19, num_mh_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = Engine(model, config, rows=1 << 14, prompt_room=8)
    assert engine.rows < 1 << 14
    assert any("too little memory for 16384 rows" in str(w.message) for w in caught)
    chains = sample_chains(engine, [ChainRequest(i, (1, 2), i + 1, forced_length=5) for i in range(20)])
    assert all(len(chain.tokens) == 5 for chain in chains.values())
