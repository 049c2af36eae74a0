"""pass@k: the estimator against enumeration, means and errors against sums by hand."""

from fractions import Fraction
from itertools import combinations
from math import sqrt

import pytest

from dps.analysis.metrics.pass_at_k import COLUMNS, curves, pass_at_k, shown_ks
from dps.analysis.metrics.samples import Pooled


def enumerated(num_samples, num_right, k):
    """The share of all subsets of k that hold one of the first `num_right`."""
    subsets = list(combinations(range(num_samples), k))
    return Fraction(sum(min(subset) < num_right for subset in subsets), len(subsets))


@pytest.mark.parametrize("num_samples", range(1, 9))
def test_it_is_the_share_of_subsets(num_samples):
    for right in range(num_samples + 1):
        for k in range(1, num_samples + 1):
            assert pass_at_k(num_samples, right, k) == float(enumerated(num_samples, right, k))


def test_its_mean_over_all_runs_is_the_chance_itself():
    """Unbiased: averaged over every outcome of n = 6 trials of chance 1/3, it is 1 - (2/3)^k."""
    p, n = Fraction(1, 3), 6
    for k in range(1, n + 1):
        mean = sum(
            pass_at_k(n, c, k) * float(len(list(combinations(range(n), c))) * p**c * (1 - p) ** (n - c))
            for c in range(n + 1)
        )
        assert mean == pytest.approx(float(1 - (1 - p) ** k), abs=1e-12)


def test_large_numbers_neither_overflow_nor_lose_digits():
    assert pass_at_k(2000, 1, 1000) == 0.5
    assert pass_at_k(64, 1, 64) == 1.0
    assert pass_at_k(2000, 1999, 2) == 1.0
    assert pass_at_k(2000, 0, 2000) == 0.0


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_impossible_numbers_are_refused(n, c, k):
    with pytest.raises(ValueError, match="expected 0 <= c <= n"):
        pass_at_k(n, c, k)


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
    rows = curves(pooled(power=[[1, 0, 0], [1, 1, 0], [0, 0, 0]]), ["power"])
    assert [tuple(row) for row in rows] == [COLUMNS] * 3
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
    rows = {(row["policy"], row["k"]): row for row in curves(entries, ["power", "plain"])}
    assert set(rows) == {("power", 1), ("power", 2), ("plain", 1), ("plain", 2), ("plain", 3)}
    assert {row["num_questions"] for row in rows.values()} == {2}  # the second lacks plain, the third has no grade
    assert rows["power", 2]["pass_at_k"] == 0.5
    assert rows["plain", 1]["pass_at_k"] == pytest.approx(1 / 3)  # what cannot be graded counts as not right
    assert (rows["power", 1]["num_ungradable"], rows["plain", 1]["num_ungradable"]) == (0, 1)


def test_with_a_gold_answer_what_cannot_be_graded_is_not_right():
    (row,) = curves(pooled(power=[[None], [1]]), ["power"])
    assert (row["pass_at_k"], row["num_questions"], row["num_ungradable"]) == (0.5, 2, 1)
    (row,) = curves(pooled(gold=None, power=[[None], [1]]), ["power"])
    assert (row["pass_at_k"], row["num_questions"], row["num_ungradable"]) == (1.0, 1, 0)


def test_k_ends_where_the_shortest_question_does():
    assert [row["k"] for row in curves(pooled(power=[[1, 0, 1], [0, 1]]), ["power"])] == [1, 2]
    assert curves(pooled(power=[[1]], plain=[None]), ["power", "plain"]) == []
    (row,) = curves(pooled(power=[[1]]), ["power"])
    assert row["stderr"] is None  # one question has no spread


def test_short_tables_show_powers_of_two_and_the_largest():
    assert shown_ks(1) == [1]
    assert shown_ks(8) == [1, 2, 4, 8]
    assert shown_ks(10) == [1, 2, 4, 8, 10]
