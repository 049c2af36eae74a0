"""Samples to success and pass@k: the numbers themselves against enumeration, and what is pooled over runs."""

from fractions import Fraction
from itertools import combinations, permutations
from math import sqrt

import numpy as np
import pytest

from dps.analysis.published import (
    COLUMNS,
    PASS_COLUMNS,
    Pooled,
    expected_samples_to_success,
    measure,
    pass_at_k,
    pass_curves,
    pool,
    question_rows,
    samples_to_success,
)
from dps.errors import InputError
from tests.analysis.runs import question


@pytest.mark.parametrize("num_samples", range(1, 7))
def test_its_mean_over_all_orders(num_samples):
    for right in range(1, num_samples + 1):
        orders = list(permutations([True] * right + [False] * (num_samples - right)))
        mean = Fraction(sum(samples_to_success(order) for order in orders), len(orders))
        assert expected_samples_to_success(num_samples, right) == pytest.approx(float(mean), abs=1e-12)
    assert expected_samples_to_success(num_samples, 0) == num_samples + 1


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
    assert row["mcmc_entropy"] == measure(one.trajectories[0])["entropy"]
    assert row["std_perplexity"] == measure(plain.trajectories[0])["perplexity"]
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


# -- pass@k -----------------------------------------------------------------------------------------------------------


def enumerated(num_samples, num_right, k):
    """The share of all subsets of k that hold one of the first `num_right`."""
    subsets = list(combinations(range(num_samples), k))
    return Fraction(sum(min(subset) < num_right for subset in subsets), len(subsets))


@pytest.mark.parametrize("num_samples", range(1, 9))
def test_it_is_the_share_of_subsets(num_samples):
    for right in range(num_samples + 1):
        for k in range(1, num_samples + 1):
            assert pass_at_k(num_samples, right, k) == float(enumerated(num_samples, right, k))


def pooled(gold="7", **rows):
    """Questions by policy: `pooled(power=[[1, 0], ...])`."""
    count = max(map(len, rows.values()))
    entries = {f"q{i}": Pooled(f"question {i}", gold) for i in range(count)}
    for policy, lines in rows.items():
        for i, line in enumerate(lines):
            if line is not None:
                entries[f"q{i}"].correct[policy] = [None if right is None else bool(right) for right in line]
    return entries


def test_means_and_errors_are_over_questions():
    rows = pass_curves(pooled(power=[[1, 0, 0], [1, 1, 0], [0, 0, 0]]), ["power"])
    assert [tuple(row) for row in rows] == [PASS_COLUMNS] * 3
    assert [row["k"] for row in rows] == [1, 2, 3]
    by_question = [[1 / 3, 2 / 3, 0], [2 / 3, 1, 0], [1, 1, 0]]
    for row, values in zip(rows, by_question, strict=True):
        mean = sum(values) / 3
        assert row["pass_at_k"] == pytest.approx(mean)
        assert row["stderr"] == pytest.approx(sqrt(sum((v - mean) ** 2 for v in values) / 2 / 3))
        assert (row["num_questions"], row["num_trajectories"]) == (3, 3)


def test_policies_are_compared_on_their_common_graded_questions():
    entries = pooled(
        gold=None, power=[[1, 1], [0, 1], [None, None], [0, 0]], plain=[[0, 0, 1], None, [0, 0, 0], [1, None, 0]]
    )
    rows = {(row["policy"], row["k"]): row for row in pass_curves(entries, ["power", "plain"])}
    assert set(rows) == {("power", 1), ("power", 2), ("plain", 1), ("plain", 2), ("plain", 3)}
    assert {row["num_questions"] for row in rows.values()} == {2}  # the second lacks plain, the third has no grade
    assert rows["power", 2]["pass_at_k"] == 0.5
    assert rows["plain", 1]["pass_at_k"] == pytest.approx(1 / 3)  # what cannot be graded counts as not right
    assert (rows["power", 1]["num_ungradable"], rows["plain", 1]["num_ungradable"]) == (0, 1)
