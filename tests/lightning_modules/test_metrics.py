import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_calibration_error

from lightning_modules.metrics import (
    auroc,
    auroc_stderr,
    calibration_error,
    fit_length,
    length_probabilities,
    length_scores,
    measure_probabilities,
    question_draws,
)


def pairs(scores, labels):
    up, down = scores[labels], scores[~labels]
    return np.mean([[float(a > b) + 0.5 * float(a == b) for b in down] for a in up])


@pytest.mark.parametrize("seed", range(5))
def test_auroc_counts_pairs(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 6, 50).astype(float), rng.random(50) < 0.4
    assert auroc(scores, labels) == pytest.approx(pairs(scores, labels), abs=1e-12)
    weights = rng.integers(0, 3, 50)
    repeated = np.repeat(np.arange(50), weights)
    assert auroc(scores, labels, weights) == pytest.approx(pairs(scores[repeated], labels[repeated]), abs=1e-12)


def test_auroc_of_one_class_is_nan():
    assert np.isnan(auroc(np.arange(4.0), np.ones(4, bool)))


def test_the_standard_error_knows_that_rows_of_a_question_belong_together():
    rng = np.random.default_rng(0)
    labels = rng.random(200) < 0.5
    scores = labels + 1.5 * rng.normal(size=200)
    once = auroc_stderr(scores, labels, np.arange(200))
    copies = auroc_stderr(np.repeat(scores, 10), np.repeat(labels, 10), np.repeat(np.arange(200), 10))
    assert copies == pytest.approx(once, rel=1e-9)  # ten copies of every row say nothing new
    naive = auroc_stderr(np.repeat(scores, 10), np.repeat(labels, 10), np.arange(2000))
    assert naive < once / 2
    # Hanley and McNeil's formula for independent rows.
    a = auroc(scores, labels)
    q1, q2, up, down = a / (2 - a), 2 * a * a / (1 + a), labels.sum(), (~labels).sum()
    known = np.sqrt((a * (1 - a) + (up - 1) * (q1 - a * a) + (down - 1) * (q2 - a * a)) / (up * down))
    assert once == pytest.approx(known, rel=0.2)
    assert once == auroc_stderr(scores, labels, np.arange(200))


@pytest.mark.parametrize("sign", [1, -1])
def test_length_takes_its_direction_from_training(sign):
    lengths = np.arange(10)
    labels = sign * lengths > 4.5 * sign
    assert auroc(length_scores(lengths, labels, lengths), labels) == 1.0
    assert auroc(length_scores(lengths, ~labels, lengths), labels) == 0.0


def by_tenths(p, labels):
    """Calibration error over tenths of the rows, one cut after another; equal values share the upper one."""
    ordered = np.sort(p)
    cuts = [ordered[int(np.ceil((len(p) - 1) * i / 10))] for i in range(1, 10)]
    bins = [sum(value >= cut for cut in cuts) for value in p]
    return sum(abs(sum(v - t for v, t, b in zip(p, labels, bins, strict=True) if b == i)) for i in range(10)) / len(p)


def test_calibration_errors_are_seen_where_all_values_are_close_together():
    """Between 0.9 and 1, where thresholds lie, bins of equal width would average the errors away."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.9, 1.0, 20_000)
    labels = rng.random(20_000) < 1.9 - p
    narrow = float(binary_calibration_error(torch.from_numpy(p), torch.from_numpy(labels.astype(int)), n_bins=10))
    assert narrow < 0.005
    assert calibration_error(p, labels) == pytest.approx(0.05, abs=0.008)
    assert calibration_error(p, rng.random(20_000) < p) < 0.008


def test_probabilities_are_measured_as_others_measure_them():
    rng = np.random.default_rng(4)
    p = np.round(rng.random((40, 6)), 2)  # with ties
    labels = rng.random((40, 6)) < p
    weights = question_draws(40, 3, seed=0)
    found = measure_probabilities(p, labels, weights)
    tensors = torch.from_numpy(p.reshape(-1)), torch.from_numpy(labels.reshape(-1).astype(int))
    expected = {
        "auroc": binary_auroc(*tensors),
        "average_precision": binary_average_precision(*tensors),
        "calibration_error": by_tenths(p.reshape(-1), labels.reshape(-1)),
        "brier": ((tensors[0] - tensors[1]) ** 2).mean(),
        "brier_skill": 1 - ((tensors[0] - tensors[1]) ** 2).mean() / labels.var(),
        "log_loss": binary_cross_entropy(tensors[0].clamp(1e-6, 1 - 1e-6), tensors[1].double()),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].value == pytest.approx(float(value), rel=1e-5), name
    for draw, counts in enumerate(weights.astype(int)):  # a draw is the table with questions repeated
        taken = np.repeat(np.arange(40), counts)
        again = measure_probabilities(p[taken], labels[taken], np.ones((1, 40)))
        del again["calibration_error"]  # its bins are the table's own, those of the draws are the whole table's
        for name, value in again.items():
            assert found[name].draws[draw] == pytest.approx(value.value), name
            assert value.draws[0] == pytest.approx(value.value), name


def test_draws_of_questions_are_bootstraps():
    draws = question_draws(50, 2000, seed=1)
    assert (draws.sum(axis=1) == 50).all()
    assert draws.mean(axis=0) == pytest.approx(np.ones(50), abs=0.15)
    np.testing.assert_array_equal(draws, question_draws(50, 2000, seed=1))


def test_the_length_baseline_is_the_logistic_fit():
    rng = np.random.default_rng(5)
    lengths = rng.normal(40, 10, 20000)
    shares = 1 / (1 + np.exp(-(0.5 - 0.08 * (lengths - 40))))
    p = length_probabilities(fit_length(lengths, shares), np.array([20.0, 40.0, 60.0]))
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-(0.5 - 0.08 * np.array([-20, 0, 20])))), atol=2e-3)
    flat = length_probabilities(fit_length(np.full(5, 7.0), np.ones(5)), np.array([7.0]))
    assert 0.9 < flat[0] < 1
