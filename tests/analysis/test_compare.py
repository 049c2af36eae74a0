"""Matched tokens, areas, tests: against values worked out by hand or by the bootstrap."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dps.analysis.compare import accuracy_at, against, matched_tokens
from dps.analysis.policies import ReplayedPolicy
from dps.analysis.table import Outcome
from dps.decide.ladder import doubling
from dps.estimates import resamples


def outcome(correct, tokens, k=1):
    correct = np.asarray(correct, dtype=float)
    tokens = np.broadcast_to(np.asarray(tokens, dtype=float), correct.shape)
    unmeasured = np.full(len(correct), np.nan)
    return Outcome(correct, tokens, tokens / 4, np.full(len(correct), float(k)), unmeasured, unmeasured)


def fixed(series, points):
    """Fixed k: (k, correct, tokens) of each point."""
    ks = np.array([k for k, _, _ in points], dtype=float)
    curve = tuple(outcome(correct, tokens, k) for k, correct, tokens in points)
    ladder = doubling(series, int(np.nan_to_num(ks[-1], nan=8)))
    return ReplayedPolicy("fixed", "fixed", series, ks, curve, np.ones(len(ks), bool), ladder=ladder, source=series)


def live(name, correct, tokens, k=5, family="controller"):
    point = outcome(correct, tokens, k)
    ks = np.full(len(correct), k)
    return ReplayedPolicy(
        name,
        family,
        "power",
        np.full(1, 0.5),
        (point,),
        np.ones(1, bool),
        point,
        np.full(1, 0.5),
        ks,
        point.correct == 1,
        ladder=doubling("power", 8),
    )


def matched(policies, count=None, seed=0):
    count = count or len(policies[0].curve[0].correct)
    entries = matched_tokens(policies, resamples(count, 2000, [seed, 1]))
    return {(entry["policy"], entry["rival"]): entry for entry in entries}


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_the_mixture_spends_the_policys_tokens_and_is_a_real_policy(seed, place):
    rng = np.random.default_rng(seed)
    low, high = (
        outcome(rng.integers(0, 2, 30), rng.integers(*ends, 30), k) for ends, k in (((10, 30), 2), ((40, 90), 4))
    )
    spent = (1 - place) * low.tokens.mean() + place * high.tokens.mean()
    values, below, above, weight = accuracy_at([low, high], np.full(30, spent))
    expected = (1 - place) * low.correct.mean() + place * high.correct.mean()
    assert values.mean() == pytest.approx(expected, abs=1e-9)
    tokens = [low, high][below].tokens.mean() * (1 - weight) + [low, high][above].tokens.mean() * weight
    assert tokens == pytest.approx(spent)


def test_a_rival_that_ends_earlier_or_begins_later_says_so():
    answers = np.arange(40) % 2
    rival = fixed("plain", [(1, answers, 10), (2, np.ones(40), 20)])
    power = fixed("power", [(1, answers, 5), (2, answers, 20), (8, np.ones(40), 100)])
    found = matched([power, rival])
    assert ("power 1", "plain") not in found
    assert not found["power 2", "plain"]["rival_exhausted"]
    beyond = found["power 8", "plain"]
    assert (beyond["rival_exhausted"], beyond["rival_tokens"], beyond["between"]) == (True, 20, [2, 2])


def test_the_difference_is_paired_and_a_few_that_agree_decide_nothing():
    for count in (3, 5, 200):
        answers = np.arange(count) % 2
        rival = fixed("plain", [(1, answers, 10), (2, answers, 30)])
        entry = matched([live("gbdt", answers, 20), rival])["gbdt", "plain"]
        assert (entry["difference"]["value"], entry["difference"]["stderr"]) == (0, 0)
        assert entry["difference"]["low"] < 0 < entry["difference"]["high"]
        entry = matched([live("gbdt", np.ones(count), 20), fixed("plain", [(1, np.zeros(count), 20)])])
        assert entry["gbdt", "plain"]["verdict"] == ("above" if count > 5 else "undecided")


def test_the_interval_has_the_uncertainty_of_the_tokens_in_it():
    """Against a bootstrap that draws the whole curve again on every resample."""
    rng = np.random.default_rng(0)
    count, cost = 400, rng.gamma(4.0, 25.0, 400)
    curve = [(k, rng.random(count) < 0.9 - 0.6 / k, k * cost * rng.uniform(0.8, 1.2, count)) for k in (1, 2, 4, 8)]
    rival, policy = (
        fixed("plain", curve),
        live("gbdt", rng.random(count) < 0.8, 2.5 * cost * rng.uniform(0.5, 1.5, count)),
    )
    entry = matched([policy, rival])["gbdt", "plain"]
    weights = resamples(count, 2000, 3)
    tokens, accuracy = (np.stack([weights @ getattr(p, n) for p in rival.curve], 1) for n in ("tokens", "correct"))
    spent = weights @ policy.chosen.tokens
    values = weights @ policy.chosen.correct - [np.interp(*row) for row in zip(spent, tokens, accuracy, strict=True)]
    assert entry["difference"]["stderr"] == pytest.approx(values.std(), rel=0.1)
    low, high = np.percentile(values, [2.5, 97.5])
    assert [entry["difference"][end] for end in ("low", "high")] == pytest.approx([low, high], abs=0.01)


def test_the_strongest_of_several_rivals_has_an_interval_that_allows_for_its_choice():
    rng = np.random.default_rng(1)
    rivals = [replace(fixed(f"s{i}", [(1, rng.random(150) < 0.7, 10)])) for i in range(6)]
    found = matched([live("gbdt", rng.random(150) < 0.7, 20), *rivals])
    for entry in found.values():
        assert entry["together"]["rivals"] == 6
        assert (
            entry["together"]["low"]
            < entry["difference"]["low"]
            < entry["difference"]["high"]
            < entry["together"]["high"]
        )


def test_a_point_beside_the_largest_k():
    count = 400
    reference = outcome(np.ones(count), 800.0)
    point = outcome(np.arange(count) >= 2, np.where(np.arange(count) < 200, 200.0, 400.0))
    found = against(point, reference, np.append(0.01, np.full(count, 1.0)), 0.02)
    assert found["accuracy_difference"]["value"] == pytest.approx(-0.005)
    assert found["tokens_ratio"]["value"] == pytest.approx(300 / 800)
    assert found["time_ratio"]["value"] == pytest.approx((3 + 1) / (8 + 1))
    assert found["no_loss"]
    assert not against(point, reference, None, 0.01)["no_loss"]
    same = against(reference, reference, None, 0.01)
    assert (same["accuracy_difference"]["low"], same["time_ratio"]) == (0.0, None)
    blank = against(outcome(np.full(count, np.nan), 1.0), reference, None, 0.01)
    assert (blank["accuracy_difference"]["value"], blank["no_loss"]) == (None, False)


def test_equal_tokens_are_not_taken_for_equal_answers():
    """Answers that all have the length limit's tokens, or a live policy that sampled more than the fixed k's did."""
    right, wrong = np.ones(50), np.zeros(50)
    assert against(outcome(wrong, 800.0), outcome(right, 800.0), None, 0.01)["accuracy_difference"]["value"] == -1
    power = fixed("power", [(2, wrong, 200), (8, wrong, 800)])
    for tokens in (800, 1600):
        entry = matched([power, live("gbdt", right, tokens)])["gbdt", "power"]
        assert (entry["difference"]["value"], entry["verdict"]) == (1, "above")
    same = matched([power, live("gbdt", wrong, 800)])["gbdt", "power"]
    assert (same["difference"]["low"], same["difference"]["high"]) == (0, 0)
