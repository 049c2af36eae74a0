"""What a chain may have of its own: settings, a shorter T_max, stop strings. Each is as in an engine made for it."""

from dataclasses import replace

import pytest
import torch

from dps.errors import InputError
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.settings import SamplerConfig
from dps.sampler.stop import StopTable
from dps.sampler.streams import stream_key
from dps.testing import assert_follows, reference_law, responses, sample_chains, toy_of
from tests.sampler.models import tiny_model, with_tokenizer
from tests.sampler.test_exactness import FINAL, PAPER

from .chains import CONFIG
from .recordings import RecordedEngine
from .test_mixed import check_same

PROMPT = (1, 2, 1)
OWN = [CONFIG, replace(CONFIG, alpha=3.0, num_mh_steps=2), CONFIG.plain(0.7), replace(CONFIG, reject_early=False)]
STRINGS = [(), ("ab",), ("ba", "cc"), ("b",)]


@pytest.fixture(scope="module")
def model():
    return with_tokenizer(tiny_model(vocabulary=4, eos=0, seed=5, sharpness=1.0))


def requests(numbers, **own):
    return [ChainRequest(i, PROMPT, stream_key(0, "q", i), **own) for i in numbers]


@pytest.mark.parametrize("kind", [Engine, RecordedEngine])
def test_chains_with_all_of_it_are_those_of_engines_made_for_it(model, kind):
    engine = kind(model, [CONFIG, CONFIG.plain(1.0)], rows=16, prompt_room=3, stop_room=40)
    mixed, expected = [], {}
    for i in range(96):
        arm, strings, limit = OWN[i % 4], STRINGS[i // 4 % 4], (6, 12, 18)[i // 16 % 3]
        mixed += requests([i], arm=arm, max_new_tokens=limit, stop_state=engine.stops.take(strings))
        alone = Engine(model, replace(arm, max_new_tokens=limit), rows=8, prompt_room=3, stop_strings=strings)
        expected |= sample_chains(alone, requests([i]))
    check_same(sample_chains(engine, mixed), expected)
    assert {chain.ending for chain in expected.values()} == {"eos", "stop", "length"}


@pytest.mark.parametrize("changes", [PAPER, FINAL], ids=["paper", "final-horizon"])
def test_a_limit_between_two_blocks_follows_the_enumerated_law(changes):
    config = SamplerConfig(**changes)
    assert config.max_new_tokens % config.block_size == 0
    shorter = replace(config, max_new_tokens=config.max_new_tokens - config.block_size + 1)  # the last stage is short
    model = tiny_model(vocabulary=3, eos=0, seed=23, sharpness=1.0)
    toy = toy_of(model, PROMPT, shorter.max_new_tokens)
    engine = Engine(model, config, rows=1024, prompt_room=3)
    chains = sample_chains(engine, requests(range(8_000), max_new_tokens=shorter.max_new_tokens))
    drawn = [tuple(chain.tokens.tolist()) for chain in chains.values()]
    assert_follows(drawn, reference_law(toy, shorter), responses(toy, shorter.max_new_tokens))


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"arm": replace(CONFIG, num_mh_steps=99)}, "at most 12 Metropolis-Hastings steps"),
        ({"arm": replace(CONFIG, block_size=9)}, "Expected settings that rows for"),
        ({"max_new_tokens": 19}, "Expected a response of 1 to 18 tokens"),
        ({"max_new_tokens": 0}, "Expected a response of 1 to 18 tokens"),
    ],
)
def test_what_the_rows_cannot_have_is_refused(model, own, sentence):
    engine = Engine(model, [CONFIG, CONFIG.plain(1.0)], rows=8, prompt_room=3)
    with pytest.raises(InputError, match=sentence):
        engine.submit(requests([0], **own)[0])
    pure = Engine(model, CONFIG, rows=8, prompt_room=3)
    with pytest.raises(InputError, match="Expected settings that rows for"):
        pure.submit(requests([0], arm=CONFIG.plain(0.5))[0])


def test_a_longer_prompt_fits_where_its_limit_is_shorter(model):
    engine = Engine(model, CONFIG, rows=8, prompt_room=3)
    long = (1, 2, 3) * 8
    with pytest.raises(InputError, match="together more than"):
        engine.submit(ChainRequest(0, long, 1))
    [chain] = sample_chains(engine, [ChainRequest(0, long, 1, max_new_tokens=6)]).values()
    assert len(chain.tokens) <= 6


def test_the_table_has_room_for_what_is_in_use_and_forgets_what_is_not():
    table = StopTable(["x"], [b"a", b"b", b"x"], torch.device("cpu"), room=4)
    first = table.take(["ab"])  # two states
    assert table.take(["ab"]) == first
    assert table.take(["aba"]) is None  # three more do not fit
    second = table.take(["bb"])
    assert {first, second}.isdisjoint({0, table.matched})
    assert table.following[table.following[first, 0], 1] == table.matched
    assert table.following[first, 2] == first  # the engine's own string means nothing to it
    assert table.following[0, 2] == table.matched
    table.release(["ab"])
    assert table.take(["aba"]) is None  # one user is left
    table.release(["ab"])
    table.release(["bb"])
    third = table.take(["aba"])
    state = third
    for token in (0, 1, 0):
        state = int(table.following[state, token])
    assert state == table.matched
