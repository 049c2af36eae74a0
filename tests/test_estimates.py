"""Intervals and tests against exact ones of SciPy, and simulated: errors and power are what they are said to be."""

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest

from dps.estimates import (
    Estimate,
    bounded,
    brier_skill,
    estimate,
    fewest_questions,
    loss_is_below,
    needed,
    paired,
    quantile_bins,
    ratio,
    resampled,
    resamples,
    simultaneous,
    smallest_margin,
    widened,
)


def pairs(only_one, only_other, both=50):
    return np.array([1.0] * only_one + [-1.0] * only_other + [0.0] * both)


def within(hits, trials, share):
    """Whether so many hits are no more than a share explains, 3 standard errors allowed."""
    return hits / trials <= share + 3 * math.sqrt(share * (1 - share) / trials)


def simulated(count, shares, holds, trials=1500):
    """In how many trials something holds of the differences of so many questions, of which shares win and lose."""
    rng, times = np.random.default_rng(count), 0
    drawn = np.array([rng.multinomial(count, [*shares, 1 - sum(shares)]) for _ in range(trials)])
    for (won, lost, same), number in zip(*np.unique(drawn, axis=0, return_counts=True), strict=True):
        times += number * bool(holds(pairs(won, lost, same)))
    return times


# -- against exact methods ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("both", [0, 400])
def test_the_interval_of_a_difference_leaves_0_out_where_the_exact_mcnemar_test_rejects(both):
    for first, second in product(range(20), range(20)):
        if not first + second + both:
            continue
        expected = binomtest(first, first + second).pvalue if first + second else 1.0
        one = np.array([True] * first + [False] * second + [True] * both)
        other = np.array([False] * first + [True] * second + [True] * both)
        assert (paired(one, other).sign != 0) == (expected < 0.05), (first, second)


@pytest.mark.parametrize(("count", "right"), [(1, 0), (5, 5), (20, 3), (40, 40), (120, 60), (700, 2)])
def test_the_interval_of_a_share_is_that_of_clopper_and_pearson(count, right):
    interval = bounded(np.arange(count) < right, 0.0, 1.0)
    expected = binomtest(right, count).proportion_ci(method="exact")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_values_between_are_weighed_as_random_weights_say():
    rng = np.random.default_rng(1)
    values = rng.choice([-0.5, -0.1, 0, 0.2, 1], 80, p=[0.1, 0.2, 0.4, 0.2, 0.1])
    weights = rng.dirichlet(np.ones(81), 100_000)
    interval = bounded(values)
    assert interval.low == pytest.approx(np.quantile(weights @ np.append(values, -1), 0.025), abs=2e-3)
    assert interval.high == pytest.approx(np.quantile(weights @ np.append(values, 1), 0.975), abs=2e-3)
    assert loss_is_below(values, -interval.low + 1e-6)
    assert not loss_is_below(values, -interval.low - 1e-6)


def test_a_large_sample_has_the_interval_of_its_standard_error():
    values = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 20_000, p=[0.1, 0.75, 0.15])
    for one in (bounded(values), estimate(values)):
        ends = (one.value - 1.96 * one.stderr, one.value + 1.96 * one.stderr)
        assert (one.low, one.high) == pytest.approx(ends, abs=1e-4)


# -- no spread, few questions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_up_to_five_questions_that_all_win_decide_nothing(count):
    for value in (1.0, -1.0, 0.3):
        assert bounded(np.full(count, value)).sign == 0
        assert estimate(np.full(count, value)).sign == 0  # without spread there is no scale to judge by
    assert count == 1 or widened(1.0, resamples(count, 500, 0) @ np.ones(count), count).sign == 0
    assert bounded(np.ones(6)).sign == 1  # the exact McNemar test of 6 to 0 has p = 3 %
    assert bounded(-np.ones(6)).sign == -1


@pytest.mark.parametrize(
    ("values", "sign"),
    [([1, 1, 1, 0] * 10, 1), ([-1, -1, -1, 0] * 10, -1), ([1, -1, 1, 0], 0), ([0, 0, 0], 0), ([1], 0), ([1, 1, 0], 0)],
)
def test_a_difference_is_decided_where_its_interval_leaves_0_out(values, sign):
    assert bounded(np.array(values, dtype=float)).sign == sign
    assert estimate(np.array(values, dtype=float)).sign == sign


def test_rounding_is_no_spread_and_nothing_is_known_of_no_question():
    assert estimate(np.full(7, 0.1) * 3).stderr == 0
    assert estimate(np.full(1000, 1 / 3)).sign == 0
    for nothing in (bounded(np.array([np.nan])), estimate(np.array([]))):
        assert (nothing.num_questions, nothing.sign) == (0, 0)
        assert math.isnan(nothing.value)
    assert Estimate(1.0, math.nan, 1).sign == 0
    assert math.isnan(resampled(0.3, np.array([np.nan, 0.2]), 60).low)


def test_the_smallest_number_of_questions_for_a_margin():
    for margin in (0.01, 0.02, 0.05, 0.1):
        count = fewest_questions(margin)
        assert loss_is_below(np.zeros(count), margin)
        assert not loss_is_below(np.zeros(count - 1), margin)
        assert smallest_margin(count) <= margin < smallest_margin(count - 1)
    assert (fewest_questions(0.01), fewest_questions(0.0)) == (368, None)


# -- resamples and probabilities ---------------------------------------------------------------------------------------


def test_resamples_are_weights_of_questions():
    weights = resamples(50, 300, [0, 1])
    assert weights.shape == (300, 50)
    assert weights.sum(axis=1) == pytest.approx(np.ones(300))
    assert weights * 50 == pytest.approx(np.round(weights * 50), abs=1e-12)
    assert weights.tolist() == resamples(50, 300, [0, 1]).tolist() != resamples(50, 300, 1).tolist()


def test_a_widened_interval_covers_its_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits, rare = 0, 0
    for trial in range(300):
        weights = resamples(120, 400, trial)
        values = rng.choice([-1.0, 0.0, 1.0], 120, p=[0.2, 0.6, 0.2])
        one = widened(values.mean(), weights @ values, 120)
        hits += one.low <= 0 <= one.high
        values = rng.choice([-1.0, 0.0], 120, p=[0.01, 0.99])  # often none, so the resamples have no spread
        rare += widened(values.mean(), weights @ values, 120).low <= -0.01
    assert 0.91 <= hits / 300 <= 0.99
    assert rare / 300 >= 0.95


def test_a_ratio_of_proportional_costs_has_no_spread():
    tokens, other = (np.random.default_rng(seed).uniform(10, 90, 60) for seed in (2, 3))
    weights = resamples(60, 4000, 0)
    by_draws = resampled(0.4, (weights @ (0.4 * tokens)) / (weights @ tokens), 60)
    assert [by_draws.value, by_draws.low, by_draws.high] == pytest.approx([0.4] * 3)
    assert ratio(0.4 * tokens, tokens).stderr == pytest.approx(0, abs=1e-12)
    by_draws = resampled(0.0, (weights @ other) / (weights @ tokens), 60)
    assert ratio(other, tokens).stderr == pytest.approx(by_draws.stderr, rel=0.1)


def test_bins_have_equally_many_values():
    values = np.random.default_rng(1).beta(9, 1, 1000)
    assert np.bincount(quantile_bins(values)).tolist() == pytest.approx([100] * 10, abs=1)
    assert quantile_bins(np.array([0.5] * 9 + [0.7])).max() <= 1


def test_the_skill_is_against_a_baseline():
    truth = np.random.default_rng(5).random((80, 6)) < 0.3
    share = np.full(truth.shape, 0.3)
    assert brier_skill(truth.astype(float), truth, share).value == pytest.approx(1)
    assert brier_skill(share, truth, share).plain() == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert brier_skill(np.full(truth.shape, 0.9), truth, share).high < 0
    assert brier_skill(share, truth, truth.astype(float)) is None
    assert brier_skill(share[:1], truth[:1], share[:1]) is None


# -- simulations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [10, 20, 40, 80, 150, 400, 1000])
@pytest.mark.parametrize("shares", [(0.0, 0.02), (0.01, 0.03), (0.04, 0.06), (0.0, 0.01), (0.015, 0.025)])
def test_no_loss_is_claimed_by_mistake_in_two_and_a_half_percent_at_most(count, shares):
    """True losses of 1 and of 2 points beside a margin of 1 point."""
    assert within(simulated(count, shares, lambda values: loss_is_below(values, 0.01)), 1500, 0.025)


@pytest.mark.parametrize("count", [20, 40, 80, 400])
def test_the_same_where_each_question_is_a_mean_over_orders(count):
    rng, trials, claims = np.random.default_rng(count), 600, 0
    for _ in range(trials):
        losing = rng.random(count) < 0.04
        values = np.where(losing, -rng.beta(1, 1, count), 0.0) + rng.choice([-0.125, 0.0, 0.125], count)
        claims += loss_is_below(values.round(2), 0.01)  # the true loss is 2 points
    assert within(claims, trials, 0.025)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 12, 30, 100])
@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_equal_policies_are_told_apart_in_five_percent_at_most(count, share):
    assert within(simulated(count, (share, share), lambda values: bounded(values).sign), 1500, 0.05)


@pytest.mark.parametrize("count", [3, 5, 10, 40])
def test_means_without_known_ends_are_told_from_0_in_five_percent(count):
    values = np.random.default_rng(count).normal(size=(4000, count))
    told = sum(estimate(row).sign != 0 for row in values)
    assert within(told, 4000, 0.05)
    assert told / 4000 > 0.05 - 3 * math.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.parametrize(("difference", "spread"), [(0.03, 0.3), (0.05, 0.3), (-0.02, 0.1), (0.5, 3.0), (0.1, 0.9)])
def test_the_questions_that_are_needed_decide_in_80_percent_of_cases(difference, spread):
    count = needed(difference, spread / math.sqrt(50), 50)
    assert count == math.ceil(7.85 * spread**2 / difference**2 - 1e-9)
    rng, trials = np.random.default_rng(count), 1000
    told = sum(estimate(rng.normal(difference, spread, count)).sign == np.sign(difference) for _ in range(trials))
    assert abs(told / trials - 0.8) <= 3 * math.sqrt(0.8 * 0.2 / trials) + 0.01
    # No difference, no spread, one question, a billion and more.
    assert [needed(*case, 100) for case in ((0.0, 0.5), (1.0, 0.0), (1.0, math.nan), (1e-6, 0.5))] == [None] * 4


def test_the_worst_of_several_equals_is_told_apart_in_five_percent():
    """Picked out of ten, the worst of equal rivals leaves 0 out by itself in a third of cases."""
    rng, trials, count, rivals = np.random.default_rng(3), 400, 60, 10
    alone = together = 0
    for trial in range(trials):
        gaps, weights = rng.normal(size=(rivals, count)), resamples(count, 300, trial)
        values, replicates = gaps.mean(axis=1), weights @ gaps.T
        worst = int(values.argmin())
        alone += np.quantile(replicates[:, worst], 0.975) < 0
        together += simultaneous(values, replicates)[worst][1] < 0
    assert alone / trials > 0.15
    assert within(together, trials, 0.05)
