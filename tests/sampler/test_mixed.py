"""Chains of several settings in one batch: each is the chain that it is in a batch of its own settings."""

import dataclasses

import numpy as np
import pytest
import torch

import dps.sampler.engine as engine_module
from dps.errors import InputError
from dps.sampler.cache import RowCache
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import stream_key
from dps.testing import assert_follows, reference_law, responses, sample_chains, toy_of

from .chains import CONFIG, PROMPTS
from .models import tiny_model, with_tokenizer
from .recordings import RecordedEngine
from .test_exactness import PAPER, same_steps

HOT = dataclasses.replace(CONFIG, proposal_temperature=1.3)
"""Nothing of these settings is rejected early, whatever the rows beside it do."""
ARMS = (
    CONFIG,
    CONFIG.plain(1.0),
    CONFIG.plain(0.6),
    HOT,
    dataclasses.replace(CONFIG, alpha=3.0, num_mh_steps=2, schedule="final-horizon", num_final_steps=5),
)
COUNT = 60


def requests_of(numbers, arms=ARMS, seed=3):
    """Chains whose settings and prompts take turns; neighbours of other settings have one random stream."""
    return [
        ChainRequest(i, PROMPTS[i % len(PROMPTS)], stream_key(seed, "q", i // len(arms)), arm=i % len(arms))
        for i in numbers
    ]


def open_mixed(model, arms=ARMS, *, kind=Engine, rows=16, **settings):
    return kind(model, arms, rows=rows, prompt_room=8, **settings)


def pure_chains(model, numbers=range(COUNT), arms=ARMS, **settings):
    """Return the chains of batches that have one of the settings each, by number."""
    found = {}
    for arm, config in enumerate(arms):
        own = [dataclasses.replace(r, arm=0) for r in requests_of(numbers, arms) if r.arm == arm]
        found |= sample_chains(open_mixed(model, config, **settings), own)
    return found


def check_same(found, expected):
    assert found.keys() == expected.keys()
    for key, chain in found.items():
        other = expected[key]
        assert chain.tokens.tolist() == other.tokens.tolist()
        for name in ("base_logprobs", "proposal_logprobs", "entropies", "top_probabilities"):
            np.testing.assert_array_equal(getattr(chain, name), getattr(other, name))
        for name in ("num_generated_tokens", "mh_proposed", "mh_accepted", "mh_rejected_early", "num_saved_tokens"):
            assert getattr(chain, name) == getattr(other, name)
        assert chain.ending == other.ending
        assert same_steps(chain, other)


@pytest.fixture(scope="module")
def model():
    return tiny_model(sharpness=2.0)


@pytest.fixture(scope="module")
def expected(model):
    return pure_chains(model)


@pytest.mark.parametrize(("rows", "kind"), [(8, Engine), (16, RecordedEngine), (64, Engine)])
def test_chains_of_a_mixed_batch_are_those_of_pure_ones(model, expected, rows, kind, monkeypatch):
    moved = 0
    move_rows = RowCache.move_rows

    def noted(cache, sources, targets):
        nonlocal moved
        moved += len(sources)
        move_rows(cache, sources, targets)

    monkeypatch.setattr(RowCache, "move_rows", noted)
    check_same(sample_chains(open_mixed(model, kind=kind, rows=rows), requests_of(range(COUNT))), expected)
    assert moved or rows == 8
    # Something happens in each: steps, early rejections where they are certain, and no two arms are alike.
    for arm, config in enumerate(ARMS):
        own = [chain for key, chain in expected.items() if key % len(ARMS) == arm]
        assert (sum(c.mh_proposed for c in own) > 0) == (config.num_mh_steps > 0)
        assert (sum(c.mh_rejected_early for c in own) > 0) == (arm in (0, 4))
        others = [expected[key - arm].tokens.tolist() for key in range(arm, COUNT, len(ARMS))]
        assert arm == 0 or others != [c.tokens.tolist() for c in own]


@pytest.mark.parametrize(
    ("changes", "stop_strings"),
    [
        (dict(cut_law="entropy"), ("bc", "ab")),
        (dict(early_stop="entropy", early_stop_threshold=1.5, early_stop_min_tokens=4), ()),
        (dict(accept_rule="max_swap"), ()),
    ],
    ids=str,
)
def test_options_that_all_rows_have_mix_too(changes, stop_strings):
    model = with_tokenizer(tiny_model(sharpness=2.0), names=list("_abcdefghijk"))
    arms = [dataclasses.replace(arm, **changes).check() for arm in ARMS]
    settings = dict(arms=arms, stop_strings=stop_strings)
    expected = pure_chains(model, range(40), **settings)
    check_same(sample_chains(open_mixed(model, **settings), requests_of(range(40))), expected)


def test_float64_chains_of_a_mixed_batch_are_those_of_pure_ones():
    model = tiny_model(sharpness=2.0, dtype=torch.float64)
    found = sample_chains(open_mixed(model), requests_of(range(20)))
    check_same(found, pure_chains(model, range(20)))


def test_rows_that_reject_early_and_rows_that_do_not_decide_alike_side_by_side(model):
    arms = [dataclasses.replace(arm, reject_early=early) for arm in (CONFIG, ARMS[4]) for early in (True, False)]
    requests = [dataclasses.replace(request, prompt=PROMPTS[0]) for request in requests_of(range(80), arms)]
    found = sample_chains(open_mixed(model, arms), requests)
    rejected = 0
    for key in range(0, 80, 2):
        early, late = found[key], found[key + 1]
        assert early.tokens.tolist() == late.tokens.tolist()
        assert same_steps(early, late)
        assert late.mh_rejected_early == 0
        assert (early.num_generated_tokens < late.num_generated_tokens) == (early.mh_rejected_early > 0)
        rejected += early.mh_rejected_early
    assert rejected > 20


# -- the law of each arm -----------------------------------------------------------------------------------------------

LAWS = (
    SamplerConfig(**PAPER),
    SamplerConfig(**PAPER).plain(1.0),
    SamplerConfig(**PAPER).plain(0.6),
    SamplerConfig(**PAPER | dict(alpha=2.0, proposal_temperature=None, num_mh_steps=3)),
)


def check_laws(arms=LAWS, count=12_000, place=lambda model: model):
    """Compare what each arm of one batch draws, by the model where it is put, with the arm's enumerated law."""
    language_model, prompt = tiny_model(vocabulary=3, eos=0, seed=23, sharpness=2.5), (1, 2, 1)
    toy = toy_of(language_model, prompt, 4)
    numbers = range(count * len(arms))
    requests = [ChainRequest(i, prompt, stream_key(0, "q", i), arm=i % len(arms)) for i in numbers]
    chains = sample_chains(Engine(place(language_model), arms, rows=2048, prompt_room=3), requests)
    for arm, config in enumerate(arms):
        drawn = [tuple(chains[i].tokens.tolist()) for i in numbers if i % len(arms) == arm]
        assert_follows(drawn, reference_law(toy, config), responses(toy, 4))


def test_each_arm_of_a_batch_follows_its_own_enumerated_law():
    check_laws()


@pytest.mark.parametrize(("field", "count"), [("temperature", 2_500), ("alpha", 8_000), ("num_mh_steps", 2_500)])
def test_a_batch_in_which_all_rows_have_the_settings_of_row_0_is_noticed(field, count, monkeypatch):
    settled, step = engine_module.settle, engine_module.decode_step

    def with_row_0(work):
        def wrong(rows, *args, **settings):
            getattr(rows, field).copy_(getattr(rows, field)[:1].expand(len(rows.position)).clone())
            work(rows, *args, **settings)

        return wrong

    monkeypatch.setattr(engine_module, "settle", with_row_0(settled))
    monkeypatch.setattr(engine_module, "decode_step", with_row_0(step))
    with pytest.raises(AssertionError, match="standard errors away"):
        check_laws([dataclasses.replace(arm, reject_early=False) for arm in LAWS], count)


# -- what cannot be meant ----------------------------------------------------------------------------------------------


def test_settings_that_cannot_share_rows_are_refused(model):
    with pytest.raises(InputError, match=r"one batch may differ in alpha, .*: open an engine for each"):
        open_mixed(model, [CONFIG, dataclasses.replace(CONFIG, block_size=9)])
    with pytest.raises(InputError, match="alpha must be at least 1"):
        open_mixed(model, [CONFIG, dataclasses.replace(CONFIG, alpha=0.5)])
    with pytest.raises(InputError, match="at least one"):
        open_mixed(model, [])
    engine = open_mixed(model, ARMS[:2])
    for arm in (2, -1):
        with pytest.raises(InputError, match=f"an arm from 0 to 1, the engine's settings, got {arm}"):
            engine.submit(dataclasses.replace(requests_of([0])[0], arm=arm))
