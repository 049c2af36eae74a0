"""Steps taken ahead of time: the same chains, token for token, in fewer steps of the batch."""

import dataclasses

import numpy as np
import pytest

from dps.sampler.engine import Engine
from dps.sampler.prefetch import Prefetcher, Seat
from dps.sampler.rows import Rows
from dps.sampler.settings import SamplerConfig
from dps.testing import sample_chains

from .chains import CONFIG, requests_of
from .models import tiny_model, with_tokenizer
from .recordings import RecordedEngine

NAMES = list("_abcdefghijk")
COUNTS = ("num_generated_tokens", "mh_proposed", "mh_accepted", "mh_rejected_early", "num_saved_tokens", "ending")
ARMS = (CONFIG, dataclasses.replace(CONFIG, num_mh_steps=10, alpha=4.0), dataclasses.replace(CONFIG, num_mh_steps=0))


def opened(kind, prefetch, config=CONFIG, rows=64, **settings):
    model = with_tokenizer(tiny_model(sharpness=2.0), names=NAMES)
    return kind(model, config, rows=rows, prompt_room=8, layer=1, prefetch=prefetch, **settings)


def differing(found, expected):
    """Return how many chains are others; of the rest everything is compared."""
    different = 0
    for key, chain in expected.items():
        other = found[key]
        if chain.tokens.tolist() != other.tokens.tolist():
            different += 1
            continue
        for name in COUNTS:
            assert getattr(other, name) == getattr(chain, name), name
        for name in ("horizon", "length", "cut_position", "accepted"):
            np.testing.assert_array_equal(getattr(other.steps, name), getattr(chain.steps, name))
        np.testing.assert_allclose(other.steps.logprob, chain.steps.logprob, atol=1e-5)
        np.testing.assert_allclose(other.entropies, chain.entropies, atol=1e-5)
        np.testing.assert_allclose(other.hidden, chain.hidden, atol=1e-5)
    return different


@pytest.mark.parametrize("kind", [Engine, RecordedEngine])
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"schedule": "final-horizon", "num_final_steps": 7}, {"reject_early": False}, {"cut_law": "entropy"},
        {"accept_rule": "max_swap"}, {"num_mh_steps": 12}, {"early_stop": "entropy", "early_stop_threshold": 1.5},
    ],
    ids=lambda changes: next(iter(changes.values()), "default"),
)  # fmt: skip
def test_chains_and_counts_are_those_without(kind, changes):
    config = dataclasses.replace(CONFIG, early_stop_min_tokens=4, **changes).check()
    requests = requests_of(range(11))
    one_by_one, ahead = (opened(kind, prefetch, config) for prefetch in (False, True))
    expected = sample_chains(one_by_one, requests)
    assert differing(sample_chains(ahead, requests), expected) == 0
    total = sum(chain.num_generated_tokens for chain in expected.values())
    assert ahead.num_generated_tokens == one_by_one.num_generated_tokens == total
    assert ahead.num_steps < one_by_one.num_steps
    assert ahead.num_spare_tokens > 0 == one_by_one.num_spare_tokens


@pytest.mark.parametrize("kind", [Engine, RecordedEngine])
def test_so_they_are_with_several_arms_and_stop_strings_whose_chains_come_in_waves(kind):
    requests = [dataclasses.replace(each, arm=i % 3) for i, each in enumerate(requests_of(range(60)))]
    one_by_one, ahead = (opened(kind, prefetch, ARMS, rows=24, stop_strings=("bc", "ab")) for prefetch in (False, True))
    expected, found = sample_chains(one_by_one, requests), {}
    for first in range(0, 60, 7):  # idle rows run ahead, then all rows are wanted
        for request in requests[first : first + 7]:
            ahead.submit(request)
        found |= {chain.request.key: chain for chain in ahead.poll(5)}
    found |= sample_chains(ahead, [])
    assert {chain.ending for chain in expected.values()} >= {"stop", "length"}
    assert differing(found, expected) == 0
    assert ahead.num_generated_tokens == one_by_one.num_generated_tokens
    assert ahead.num_spare_tokens > 0


def test_a_copy_that_ran_ahead_wrongly_would_be_seen(monkeypatch):
    monkeypatch.setattr(Rows, "changed", lambda rows, sources, steps: np.zeros(len(sources), bool))
    requests = requests_of(range(11))
    expected, found = (sample_chains(opened(Engine, prefetch), requests) for prefetch in (False, True))
    assert any(found[key].tokens.tolist() != chain.tokens.tolist() for key, chain in expected.items())


def test_what_is_cancelled_leaves_all_its_rows():
    requests = requests_of(range(4))
    expected = sample_chains(opened(Engine, False), requests)
    engine = opened(Engine, True)
    for request in requests:
        engine.submit(request)
    ended = engine.poll(12)
    assert sum(seat is not None for seat in engine._seats) > engine.num_running > 1
    cancelled = next(seat for seat in engine._seats if seat and seat.behind).request.key
    assert [each.request.key for each in engine.cancel([cancelled])] == [cancelled]
    assert not any(seat and seat.request.key == cancelled for seat in engine._seats)
    assert int(engine._rows.occupied.sum()) == sum(seat is not None for seat in engine._seats)
    found = {chain.request.key: chain for chain in ended} | sample_chains(engine, [])
    assert differing(found, {key: chain for key, chain in expected.items() if key != cancelled}) == 0
    assert not any(engine._seats)
    assert not engine._rows.occupied.any()


def test_where_every_step_leaves_the_response_a_chain_takes_about_as_long_as_its_longest_steps():
    """Power sampling of a model that says one thing: every proposal is the response again."""
    config = SamplerConfig(alpha=4.0, block_size=18, max_new_tokens=18, num_mh_steps=14)
    request = dataclasses.replace(requests_of([0])[0], forced_length=18)
    one_by_one, ahead = (Engine(tiny_model(sharpness=60.0), config, rows=64, prompt_room=8, prefetch=p) for p in (0, 1))
    expected, found = (sample_chains(engine, [request]) for engine in (one_by_one, ahead))
    assert found[0].tokens.tolist() == expected[0].tokens.tolist()
    assert ahead.num_steps < one_by_one.num_steps / 2


def test_a_line_of_seats():
    first = Seat(requests_of([0])[0], 0.0, 0.0, row=3)
    second = first.copy(5, 0)
    third = second.copy(6, 1)
    assert [seat.row for seat in first.line()] == [3, 5, 6]
    second.give_way()
    assert [seat.row for seat in first.line()] == [3, 6]
    assert (third.behind, third.step) == (first, 0)
    first.give_way()
    assert third.behind is None
    assert list(third.line()) == [third]
    fourth = third.copy(1, 4)
    assert third.cut() == [fourth]
    assert third.ahead is None


def test_more_rows_are_worth_running_where_steps_change_less():
    rarely, often = Prefetcher(), Prefetcher()
    for _ in range(300):
        rarely.note(np.array([False]))
        often.note(np.array([True]))
    sizes = [8, 16, 32, 64, 128, 256]
    assert rarely.best_rows(8, sizes) > often.best_rows(8, sizes) == 8
