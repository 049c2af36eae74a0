"""Resampling questions: intervals, matched tokens, areas, McNemar."""

import numpy as np
import pytest
from scipy.stats import binomtest

from dps.analysis.replay import compare
from dps.analysis.replay.policies import Point


def points(rows):
    return [
        Point(np.asarray(c, float), np.asarray(t, float), accepted=np.zeros(len(c)), k=np.ones(len(c))) for c, t in rows
    ]


def test_resamples_are_weights_of_questions():
    weights = compare.resamples(50, 300, 0)
    assert weights.shape == (300, 50)
    assert weights.sum(axis=1) == pytest.approx(np.ones(300))
    assert weights * 50 == pytest.approx(np.round(weights * 50), abs=1e-12)
    assert compare.resamples(50, 300, 0).tolist() == weights.tolist()


def test_a_widened_interval_covers_its_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits, rare = 0, 0
    for trial in range(300):
        weights = compare.resamples(120, 400, trial)
        values = rng.choice([-1.0, 0.0, 1.0], 120, p=[0.2, 0.6, 0.2])
        found = compare.widened(values.mean(), weights @ values, 120)
        hits += found.low <= 0 <= found.high
        values = rng.choice([-1.0, 0.0], 120, p=[0.01, 0.99])  # often none, so the resamples have no spread
        found = compare.widened(values.mean(), weights @ values, 120)
        rare += found.low <= -0.01
    assert 0.91 <= hits / 300 <= 0.99
    assert rare / 300 >= 0.95


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_few_questions_that_all_win_decide_nothing(count):
    values = np.ones(count)
    assert compare.widened(1.0, compare.resamples(count, 500, 0) @ values, count).sign == 0


def test_a_ratio_of_proportional_costs_has_no_spread():
    tokens = np.random.default_rng(2).uniform(10, 90, 60)
    found = compare.ratio(0.4 * tokens, tokens, compare.resamples(60, 200, 0))
    assert [found.value, found.low, found.high] == pytest.approx([0.4, 0.4, 0.4])


def test_accuracy_at_given_tokens_is_the_mixture_of_two_points():
    curve = compare.curve_of(points([([0, 1, 0, 1], [10] * 4), ([1, 1, 0, 1], [30] * 4)]), compare.resamples(4, 50, 0))
    value, resampled = compare.accuracy_at(curve, 15.0, np.full(50, 15.0))
    assert value == pytest.approx(0.75 * 0.5 + 0.25 * 0.75)
    assert resampled == pytest.approx(0.75 * curve.resampled_accuracy[:, 0] + 0.25 * curve.resampled_accuracy[:, 1])
    assert compare.accuracy_at(curve, 9.0, np.full(50, 9.0)) is None
    assert compare.accuracy_at(curve, 99.0, np.full(50, 99.0))[0] == 0.75


def test_the_area_between_parallel_curves_is_their_distance():
    rng = np.random.default_rng(3)
    base = rng.random((5, 80)) * 0.5
    tokens = np.repeat(np.array([10.0, 20, 40, 80, 160])[:, None], 80, axis=1)
    weights = compare.resamples(80, 100, 0)
    one = compare.curve_of(points(zip(base + 0.07, tokens, strict=True)), weights)
    other = compare.curve_of(points(zip(base, tokens, strict=True)), weights)
    found = compare.area_between(one, other)
    assert [found.value, found.low, found.high] == pytest.approx([0.07] * 3)
    far = compare.curve_of(points(zip(base, tokens * 1000, strict=True)), weights)
    assert compare.area_between(one, far) is None


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 5), (9, 1), (3, 14), (1, 0)])
def test_mcnemar_is_the_exact_binomial_test(first, second):
    one = np.array([True] * first + [False] * second + [True] * 7 + [False] * 3)
    other = np.array([False] * first + [True] * second + [True] * 7 + [False] * 3)
    found = compare.mcnemar(one, other)
    assert (found["only_one"], found["only_other"]) == (first, second)
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert found["p_value"] == pytest.approx(expected)
