"""Ladders: rungs as text, what they ask for and in which order; the short form of power sampling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dps.decide.ladder import KRange, Ladder, Rung, doubling, from_ks, ladder_of
from dps.decide.orders import ladder_orders, orders_of
from dps.errors import InputError
from dps.sampler.arms import DEFAULT_ARMS, Arm, arms_of
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import stream_key

STREAM, ORDER = 5313747773312698815, [1, 3, 7, 5, 2, 6, 0, 4]
"""Of the commits before."""
RUNGS = st.lists(st.tuples(st.sampled_from(["power", "plain", "a.1-b_2"]), st.integers(1, 9)), min_size=1, max_size=9)
MIXED = Ladder.parse(["plain 2", "lowtemp 1", "plain 2", "power 2"])


@given(RUNGS)
def test_a_ladder_is_its_text_and_its_sequence(pairs):
    ladder = Ladder.parse([f"{arm} {count}" for arm, count in pairs])
    assert ladder == Ladder.parse(ladder.texts()) == Ladder(tuple(Rung(*pair) for pair in pairs))
    assert ladder.ks == tuple(np.cumsum([count for _, count in pairs]))
    sequence = ladder.sequence()
    assert len(sequence) == len(set(sequence)) == ladder.maximum == ladder.ks[-1]
    for arm, total in ladder.totals.items():
        assert [index for name, index in sequence if name == arm] == list(range(total))
    assert [arm for arm, _ in sequence] == [arm for arm, count in pairs for _ in range(count)]
    for k, rung in zip((0, *ladder.ks), (*ladder.rungs, None), strict=True):
        assert ladder.rung_after(k) == rung
        assert ladder.sequence(k) == sequence[:k]


def test_a_mixed_ladder():
    assert str(MIXED) == "[plain 2, lowtemp 1, plain 2, power 2]"
    assert (MIXED.arms, MIXED.totals) == (("plain", "lowtemp", "power"), {"plain": 4, "lowtemp": 1, "power": 2})
    assert MIXED.sequence(4) == (("plain", 0), ("plain", 1), ("lowtemp", 0), ("plain", 2))


@pytest.mark.parametrize(
    ("rungs", "sentence"),
    [
        ([], "at least one rung, or leave the ladder out"),
        ("plain 2", "a list of rungs"),
        (["plain"], "a rung such as 'plain 2'.*got 'plain': write the number"),
        (["plain 0"], "1 to 4,096 responses, got 'plain 0'"),
        (["plain -1"], "a rung such as"),
        ([2], "a rung such as"),
        (["Plain 2"], "a rung such as"),
        (["plain 4000", "plain 97"], "at most 4,096 responses, got 4,097"),
    ],
)
def test_ladders_that_nobody_can_mean(rungs, sentence):
    with pytest.raises(InputError, match=sentence):
        Ladder.parse(rungs)


def test_short_forms():
    assert KRange().ladder().texts() == ["power 2"] * 4 == from_ks("power", (2, 4, 6, 8)).texts()
    assert KRange(1, 3, 7).ladder().texts() == ["power 1", "power 3", "power 3"]
    assert doubling("plain", 12).ks == (1, 2, 4, 8, 12)
    assert doubling("plain", 1).ks == (1,)
    assert ladder_of(KRange(), ()) == KRange().ladder()
    assert ladder_of(KRange(), MIXED.texts()) == MIXED
    with pytest.raises(InputError, match="k and ladder both say"):
        ladder_of(KRange(1, 1, 2), MIXED.texts())


def test_arms_of_ladders():
    base = SamplerConfig(block_size=8, max_new_tokens=32, num_mh_steps=3, reject_early=False)
    mixed = Ladder.parse(["plain 2", "power10 1", "power 1"])
    found = arms_of({"power10": Arm(num_mh_steps=10), "plain": Arm(temperature=0.5)}, [MIXED, mixed], base)
    assert list(found) == ["plain", "lowtemp", "power", "power10"]
    assert found["power"] == base
    assert (found["plain"], found["lowtemp"]) == (base.plain(0.5), base.plain(0.25))
    assert (found["power10"].num_mh_steps, found["power10"].alpha) == (10, base.alpha)
    assert all(sampler.shares_rows(base) for sampler in found.values())
    assert set(DEFAULT_ARMS) == {"power", "plain", "warm", "lowtemp"}


@pytest.mark.parametrize(
    ("arms", "rung", "sentence"),
    [
        ({}, "hot 2", r"names the arm hot, but the arms are power, plain, warm, lowtemp: set arms\.hot"),
        ({"hot": Arm(temperature=2.0)}, "plain 2", r"arms\.hot is set, but no rung takes it"),
        ({"Hot": Arm(temperature=2.0)}, "plain 2", "an arm's name of small letters"),
        ({"plain": Arm(1.0, num_mh_steps=5)}, "plain 2", r"arms\.plain has temperature 1 and num_mh_steps 5: plain"),
        ({"plain": Arm(1.0, alpha=2.0)}, "plain 2", r"arms\.plain has temperature 1 and alpha 2"),
        ({"plain": Arm(0.0)}, "plain 2", r"arms\.plain\.temperature must be above 0 and finite, got 0"),
        ({"plain": Arm(float("nan"))}, "plain 2", "must be above 0 and finite"),
        ({"p2": Arm(alpha=0.5)}, "p2 2", r"arms\.p2: alpha must be at least 1"),
    ],
)
def test_arms_that_cannot_be_meant(arms, rung, sentence):
    with pytest.raises(InputError, match=sentence):
        arms_of(arms, [Ladder.parse([rung])], SamplerConfig())


def test_streams_and_orders_of_power_sampling_are_those_from_before_there_were_arms():
    assert stream_key(0, "q1", 3) == STREAM == stream_key(0, "q1", 3, "power")
    assert len({stream_key(0, "q1", 3, arm) for arm in ("power", "plain", "warm")}) == 3
    assert orders_of("q1", 8, 3, 0)[2].tolist() == ORDER
    assert orders_of("q1", 8, 3, 0, "plain")[2].tolist() != ORDER


def test_a_ladder_of_power_sampling_meets_the_orders_of_all_trajectories():
    arms = ["power"] * 8
    (orders,) = ladder_orders(["q1"], arms, KRange().ladder(), 5, 0)
    np.testing.assert_array_equal(orders, orders_of("q1", 8, 5, 0))
    (shorter,) = ladder_orders(["q1"], arms, KRange(maximum=4).ladder(), 5, 0)
    np.testing.assert_array_equal(shorter, orders[:, :4])


def test_ladders_meet_the_same_trajectories_of_an_arm_that_they_share():
    arms = ["power"] * 2 + ["plain"] * 6 + ["lowtemp"] * 3
    mixed, plain = (
        ladder_orders(["q1", "q2"], arms, ladder, 7, 3) for ladder in (MIXED, Ladder.parse(["plain 1", "plain 5"]))
    )
    assert mixed[:, 0].tolist() == [[2, 3, 8, 4, 5, 0, 1]] * 2
    taken = np.array(arms)[mixed]
    assert (taken == [arm for arm, _ in MIXED.sequence()]).all()
    np.testing.assert_array_equal(mixed[..., [0, 1, 3, 4]], plain[..., :4])
    assert all(len(set(row)) == 7 for row in mixed.reshape(-1, 7).tolist())
    assert len({tuple(row) for row in plain[0].tolist()}) > 3
