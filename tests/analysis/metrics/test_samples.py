"""Samples to success: the number itself, its mean over orders, and what is pooled over runs."""

from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest

from dps.analysis.metrics.measures import acceptance_ratio, measure
from dps.analysis.metrics.samples import (
    COLUMNS,
    FEATURES,
    expected_samples_to_success,
    pool,
    question_rows,
    samples_to_success,
    slice_columns,
)
from dps.errors import InputError
from tests.factories import make_trajectory

from .made_up import question


def test_the_first_right_one_counts():
    assert samples_to_success([False, None, True, True]) == 3
    assert samples_to_success([True]) == 1
    assert samples_to_success([False, None]) is None
    assert samples_to_success([]) is None


@pytest.mark.parametrize("num_samples", range(1, 7))
def test_its_mean_over_all_orders(num_samples):
    for right in range(1, num_samples + 1):
        orders = list(permutations([True] * right + [False] * (num_samples - right)))
        mean = Fraction(sum(samples_to_success(order) for order in orders), len(orders))
        assert expected_samples_to_success(num_samples, right) == pytest.approx(float(mean), abs=1e-12)
    assert expected_samples_to_success(num_samples, 0) == num_samples + 1


def test_metrics_of_a_response_are_means_over_its_tokens():
    trajectory = make_trajectory(3, num_tokens=20)
    found = measure(trajectory)
    assert found.entropy == pytest.approx(trajectory.token_entropy.mean(dtype=np.float64), rel=1e-6)
    assert found.perplexity == pytest.approx(np.exp(-trajectory.token_logprob.mean(dtype=np.float64)), rel=1e-6)
    assert found.self_confidence == pytest.approx(0.8, rel=1e-6)
    assert acceptance_ratio(trajectory) == trajectory.mh_accepted / trajectory.mh_proposed


def test_runs_are_put_one_after_another():
    """Two runs of one question: the second goes on where the first ended, metrics are the first's first."""
    one, two, plain = question(0, [0, 0], salt=1), question(0, [None, 1], salt=2), question(0, [1], salt=3)
    pooled = {}
    pool(pooled, {"power": one, "plain": plain}, "power")
    pool(pooled, {"power": two}, "power")
    (row,) = question_rows(pooled, "power", "none")
    assert tuple(row) == COLUMNS
    assert (row["samples_to_success"], row["total_samples"]) == (4, 4)
    assert (row["num_right"], row["num_ungradable"], row["censored"]) == (1, 1, False)
    assert row["expected_samples_to_success"] == 5 / 2
    assert row["mcmc_entropy"] == measure(one.trajectories[0]).entropy
    assert row["std_perplexity"] == measure(plain.trajectories[0]).perplexity
    assert np.isnan(row["naive_self_confidence"])
    assert (row["question"], row["correct_answer"]) == (one.question, "7")


def test_censored_and_ungraded_questions():
    pooled = {}
    for number, row in enumerate([[0, 0, 0], [None, None], [0, 1]]):
        pool(pooled, {"power": question(number, row, gold=None if number == 1 else "7")}, "power")
    rows = question_rows(pooled, "power", "none")
    assert [row["question_id"] for row in rows] == ["q00000", "q00002"]  # no gold answer and no grade, no row
    assert [row["samples_to_success"] for row in rows] == [None, 2]
    assert [row["censored"] for row in rows] == [True, False]
    assert [row["expected_samples_to_success"] for row in rows] == [4, 1.5]


def test_another_question_under_the_same_id_is_refused():
    pooled = {}
    pool(pooled, {"power": question(0, [1])}, "power")
    with pytest.raises(InputError, match="q00000 is not the same in all of them"):
        pool(pooled, {"power": question(0, [1], gold="9")}, "power")


def test_names_of_the_published_slices():
    assert FEATURES[:3] == ("naive_entropy", "naive_perplexity", "naive_self_confidence")
    assert len(FEATURES) == 9
    assert slice_columns("entropy")[:5] == [
        *("question", "naive_entropy", "std_entropy", "mcmc_entropy", "samples_to_success")
    ]
