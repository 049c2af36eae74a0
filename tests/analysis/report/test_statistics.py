"""The report's numbers against values worked out by hand or by brute force."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dps.analysis.replay.samples import orders_of
from dps.analysis.report.statistics import (
    ORDERS,
    Outcomes,
    common_questions,
    estimate,
    fixed_ks,
    match_tokens,
    outcomes_of,
    ratio,
    share_at_k,
)
from dps.decide.aggregate import answer_of
from dps.errors import InputError
from feature_store import Decision
from tests.analysis.report.evaluations import dynamic_manifest, plain_manifest, power_manifest, question
from tests.factories import make_question

CLOCK = {"seconds_per_token": 0.01, "prefill_seconds_per_token": 0.5}


def outcomes(policy, correct, tokens, *, series="plain", k=1, family="fixed"):
    count = len(correct)
    zeros = np.zeros(count)
    return Outcomes(
        policy,
        series,
        family,
        k,
        tuple(f"q{i}" for i in range(count)),
        np.asarray(correct, dtype=float),
        np.broadcast_to(np.asarray(tokens, dtype=float), count),
        zeros,
        zeros,
        zeros,
        np.full(count, k),
        np.zeros(count, bool),
    )


def by_k(found):
    return {o.k: o for o in found}


def over_orders(record, k, aggregator="majority"):
    """Accuracy, tokens and latency of the first k over the orders, one order after another."""
    orders = orders_of(record.question_id, record.k, ORDERS, 0)
    used = [[record.trajectories[i] for i in order[:k]] for order in orders]
    right = [bool(answer_of(some, aggregator)[1]) for some in used]
    tokens = [sum(t.num_generated_tokens for t in some) for some in used]
    return np.mean(right), np.mean(tokens), np.mean([max(t.finished_s for t in some) for some in used])


def test_a_fixed_k_is_the_mean_over_orders_of_its_trajectories():
    record = question(0, [1, 0, 0, 0, 1, 1, 1, 1], tokens=7)
    found = by_k(outcomes_of(power_manifest(), [record], CLOCK))
    assert list(found) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [o.policy for o in found.values() if o.listed] == ["fixed-k2", "fixed-k4", "fixed-k6", "fixed-k8"]
    for k, o in found.items():
        right, _, latency = over_orders(record, k)
        assert (o.correct[0], o.latency_s[0]) == pytest.approx((right, latency))
        assert o.tokens[0] == 7 * k
        assert o.compute_s[0] == pytest.approx(k * 0.02 + 0.003)
        assert o.calibrated_s[0] == pytest.approx(7 * k * 0.01 + 10 * 0.5)
        assert o.num_trajectories[0] == k
    # In the order of sampling the first two were a tie that the higher log p decides, the first four three wrong ones.
    assert found[8].correct[0] == 1
    assert 0 < found[4].correct[0] < 1


@pytest.mark.parametrize("aggregator", ["majority", "best_logprob", "weighted"])
def test_answers_over_orders_are_those_of_the_aggregator_on_random_records(aggregator):
    questions = [make_question(i, hidden_size=0) for i in range(300)]  # more than are averaged at a time
    found = by_k(outcomes_of(power_manifest(aggregator=aggregator), questions, None))
    for k in (1, 3, 4, 8):
        expected = [over_orders(q, k, aggregator) for q in questions[:20] + questions[250:270]]
        rows = [*range(20), *range(250, 270)]
        assert found[k].correct[rows] == pytest.approx([e[0] for e in expected])
        assert found[k].tokens[rows] == pytest.approx([e[1] for e in expected])
        assert np.isnan(found[k].calibrated_s).all()


def test_a_lucky_prefix_does_not_count():
    """Right first and wrong later, as sampled: one trajectory of four is right a quarter of the time."""
    lucky = [question(i, [1, 0, 0, 0]) for i in range(40)]
    found = by_k(outcomes_of(plain_manifest("lowtemp", ks=(1, 2, 4)), lucky, None))
    assert estimate(found[1].correct).value == pytest.approx(0.25, abs=0.04)
    assert found[4].correct.tolist() == [0] * 40


def test_a_dynamic_store_keeps_its_answer_and_pays_for_its_controller():
    live = [question(1, [1, 1], decisions=[Decision(2, 0.9)]), question(0, [0, 0, 1, 1, 1, 1])]
    [gbdt] = outcomes_of(dynamic_manifest(), live, CLOCK)
    assert gbdt.policy == "gbdt"
    assert gbdt.k is None
    assert gbdt.question_ids == ("q00000", "q00001")
    assert gbdt.num_trajectories.tolist() == [6, 2]
    assert gbdt.compute_s == pytest.approx([6 * 0.02 + 0.006, 2 * 0.02 + 0.006])
    assert gbdt.latency_s.tolist() == [9.0, 9.0]
    assert share_at_k(gbdt) == {2: 0.5, 6: 0.5}


def without_grades(record):
    return replace(record, trajectories=tuple(replace(t, correct=None) for t in record.trajectories))


def test_an_ungradable_answer_is_not_right_and_a_question_without_any_grade_does_not_count():
    cases = [
        question(0, [1] * 8, gold=None),  # graded by tests
        without_grades(question(1, [1] * 8)),  # a gold answer, but nobody could grade
        without_grades(question(2, [1] * 8, gold=None)),
    ]
    for o in outcomes_of(power_manifest(), cases, None):
        assert o.correct.tolist() == pytest.approx([1, 0, np.nan], nan_ok=True)
        assert o.ungradable.tolist() == [False, True, False]


def test_the_recorded_answer_of_a_dynamic_store_counts():
    records = [
        without_grades(question(0, [1, 1], correct=None, gold=None)),
        question(1, [1, 1], correct=False),
        question(2, [1, 1], correct=None),
    ]
    [gbdt] = outcomes_of(dynamic_manifest(), records, None)
    assert np.isnan(gbdt.correct[0])
    assert gbdt.correct[1:].tolist() == [0, 0]
    assert gbdt.ungradable.tolist() == [False, False, True]


def test_ks_come_from_the_list_or_from_the_range():
    assert fixed_ks({"name": "power", "start": 2, "step": 2, "maximum": 8}) == (2, 4, 6, 8)
    assert fixed_ks({"name": "plain", "ks": [8, 1, 2]}) == (1, 2, 8)
    found = outcomes_of(plain_manifest("lowtemp", ks=(1, 4)), [question(0, [1] * 4)], None)
    assert [o.policy for o in found if o.listed] == ["lowtemp-k1", "lowtemp-k4"]
    assert [o.k for o in found] == [1, 2, 3, 4]


def test_a_question_with_too_few_trajectories_is_refused():
    with pytest.raises(InputError, match="q00003 of the policy power has 6 trajectories where its manifest says 8"):
        outcomes_of(power_manifest(), [question(3, [1] * 6)], None)


def test_selection_sorts_and_pairs():
    o = outcomes("plain-k1", [0, 1, 0, 1], [1, 2, 3, 4])
    chosen = o.on(["q3", "q1"])
    assert chosen.question_ids == ("q1", "q3")
    assert chosen.tokens.tolist() == [2, 4]
    assert common_questions([o, chosen]) == ("q1", "q3")


def test_estimate_is_mean_and_standard_error_without_nan():
    result = estimate(np.array([1.0, 0.0, np.nan, 1.0, 1.0]))
    assert result.value == 0.75
    assert result.stderr == pytest.approx(math.sqrt(0.75 * 0.25 * 4 / 3 / 4))
    assert result.num_questions == 4
    assert math.isnan(estimate(np.array([1.0])).stderr)
    assert math.isnan(estimate(np.array([np.nan])).value)


def test_ratio_agrees_with_the_bootstrap():
    rng = np.random.default_rng(0)
    b = rng.gamma(5.0, 100.0, 400)
    a = b * rng.choice([0.25, 0.5, 1.0], 400)
    result = ratio(a, b)
    assert result.value == pytest.approx(a.mean() / b.mean())
    draws = rng.integers(0, 400, (4000, 400))
    assert result.stderr == pytest.approx(np.std(a[draws].mean(1) / b[draws].mean(1)), rel=0.06)
    assert ratio(b, b).stderr == 0


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_the_mixture_spends_the_policys_tokens_and_is_a_real_policy(seed, place):
    rng = np.random.default_rng(seed)
    count = 30
    low = outcomes("plain-k2", rng.integers(0, 2, count), rng.integers(10, 30, count), k=2)
    high = outcomes("plain-k4", rng.integers(0, 2, count), rng.integers(40, 90, count), k=4)
    spent = (1 - place) * low.tokens.mean() + place * high.tokens.mean()
    policy = outcomes("gbdt", rng.integers(0, 2, count), spent, family="dynamic", series="gbdt")
    match = match_tokens(policy, [high, low])
    assert match.rival_tokens == pytest.approx(spent)
    assert not match.exhausted
    expected = (1 - place) * low.correct.mean() + place * high.correct.mean()
    assert match.rival_accuracy == pytest.approx(expected, abs=1e-9)
    assert match.difference.value == pytest.approx(policy.correct.mean() - expected, abs=1e-9)


def test_the_matched_difference_is_paired():
    # The same answers question by question: no spread, however uncertain the two accuracies are.
    answers = [0, 1] * 20
    rival = [outcomes("plain-k1", answers, 10, k=1), outcomes("plain-k2", answers, 30, k=2)]
    match = match_tokens(outcomes("fixed-k2", answers, 20, series="power", k=2), rival)
    assert match.difference.value == 0
    assert match.difference.stderr == 0


def test_between_two_ks_the_rival_is_what_it_reached_there_and_no_chord():
    # A concave curve: 3 votes are nearly as good as 4, 2 are a coin.
    share = {1: 0.3, 2: 0.3, 3: 0.6, 4: 0.65}
    curve = [outcomes(f"plain-k{k}", np.arange(100) < 100 * s, 10 * k, k=k) for k, s in share.items()]
    match = match_tokens(outcomes("gbdt", np.arange(100) < 62, 30, series="gbdt", family="dynamic"), curve)
    assert (match.k_below, match.weight_above) == (3, 0)
    assert match.rival_accuracy == pytest.approx(0.6)


def test_a_rival_that_ends_earlier_or_begins_later_says_so():
    curve = [outcomes("plain-k1", [0, 1], 10, k=1), outcomes("plain-k2", [1, 1], 20, k=2)]
    beyond = match_tokens(outcomes("fixed-k8", [1, 1], 100, series="power", k=8), curve)
    assert beyond.exhausted
    assert (beyond.k_below, beyond.k_above, beyond.rival_tokens) == (2, 2, 20)
    assert match_tokens(outcomes("fixed-k2", [1, 1], 5, series="power", k=2), curve) is None
    exact = match_tokens(outcomes("fixed-k2", [1, 1], 20, series="power", k=2), curve)
    assert not exact.exhausted
    assert exact.k_below == exact.k_above == 2
