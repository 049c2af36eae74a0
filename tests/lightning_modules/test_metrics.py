"""Measures of probabilities, their bootstrap over questions, and what a controller has to be better than."""

import math

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from dps.estimates import resamples
from lightning_modules.metrics import (
    baselines,
    length_probabilities,
    measure_probabilities,
    nothing_learnt,
    ranking,
    skills,
)


def by_tenths(p, labels):
    """Calibration error over tenths of the rows, one cut after another; equal values share the upper one."""
    ordered = np.sort(p)
    cuts = [ordered[int(np.ceil((len(p) - 1) * i / 10))] for i in range(1, 10)]
    bins = [sum(value >= cut for cut in cuts) for value in p]
    return sum(abs(sum(v - t for v, t, b in zip(p, labels, bins, strict=True) if b == i)) for i in range(10)) / len(p)


def test_probabilities_are_measured_as_others_measure_them():
    rng = np.random.default_rng(4)
    p = np.round(rng.random((40, 6)), 2)  # with ties
    labels = rng.random((40, 6)) < p
    weights = resamples(40, 3, seed=0)
    measured = measure_probabilities(p, labels, weights)
    truth, flat = labels.reshape(-1), p.reshape(-1)
    expected = {
        "auroc": roc_auc_score(truth, flat),
        "average_precision": average_precision_score(truth, flat),
        "calibration_error": by_tenths(flat, truth),
        "brier": brier_score_loss(truth, flat),
        "brier_skill": 1 - brier_score_loss(truth, flat) / labels.var(),
        "log_loss": log_loss(truth, flat.clip(1e-6, 1 - 1e-6)),
    }
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        assert measured[name].value == pytest.approx(value, rel=1e-9), name
    for draw, counts in enumerate(np.round(40 * weights).astype(int)):  # a draw is the table with questions repeated
        taken = np.repeat(np.arange(40), counts)
        again = measure_probabilities(p[taken], labels[taken], np.zeros((0, 40)))
        del again["calibration_error"]  # its bins are the table's own, those of the draws are the whole table's
        for name, value in again.items():
            assert measured[name].draws[draw] == pytest.approx(value.value), name


def test_the_standard_error_knows_that_rows_of_a_question_belong_together():
    rng = np.random.default_rng(0)
    labels = rng.random((200, 1)) < 0.5
    scores = labels + 1.5 * rng.normal(size=(200, 1))
    p = expit(scores)

    def stderr(p, labels):
        return measure_probabilities(p, labels, resamples(len(p), 400, 0))["auroc"].estimate().stderr

    once = stderr(p, labels)
    assert stderr(np.repeat(p, 10, axis=1), np.repeat(labels, 10, axis=1)) == pytest.approx(once, rel=1e-9)
    # Hanley and McNeil's formula for independent rows.
    a = ranking(p[:, 0], labels[:, 0])[0]
    q1, q2, up, down = a / (2 - a), 2 * a * a / (1 + a), labels.sum(), (~labels).sum()
    known = np.sqrt((a * (1 - a) + (up - 1) * (q1 - a * a) + (down - 1) * (q2 - a * a)) / (up * down))
    assert once == pytest.approx(known, rel=0.2)


def test_one_class_has_no_ranking():
    measured = measure_probabilities(np.full((5, 2), 0.8), np.ones((5, 2), bool), resamples(5, 10, 0))
    assert math.isnan(measured["auroc"].value)
    assert math.isnan(measured["brier_skill"].estimate().stderr)
    assert measured["brier"].value == pytest.approx(0.04)


def test_the_length_baseline_is_the_logistic_fit():
    rng = np.random.default_rng(5)
    lengths = rng.normal(40, 10, 20000)
    p = length_probabilities(lengths, expit(0.5 - 0.08 * (lengths - 40)), np.array([20.0, 40.0, 60.0]))
    np.testing.assert_allclose(p, expit(0.5 - 0.08 * np.array([-20, 0, 20])), atol=2e-3)
    flat = length_probabilities(np.full(5, 7), np.ones(5), np.array([7]))
    assert 0.9 < flat[0] <= 1


def test_skill_is_against_k_and_length_and_not_against_the_share_of_all_rows():
    """A controller that knows k alone, or the length alone, has learnt nothing of the trajectories."""
    rng = np.random.default_rng(0)
    lengths = rng.normal(40, 10, 3000)
    by_k = np.array([0.5, 0.7, 0.9])
    knows = rng.random((3000, 1, 1)) < 0.5
    chance = np.clip(by_k + 0.01 * (lengths[:, None, None] - 40) + np.where(knows, 0.08, -0.08), 0.01, 0.99)
    labels = rng.random((3000, 1, 3)) < chance
    train, test = slice(0, 1500), slice(1500, 3000)
    others = baselines(labels[train], lengths[train], lengths[test])

    def learnt(p):
        return nothing_learnt(skills(p, labels[test], others), 1500)

    assert "by k alone" in learnt(np.broadcast_to(by_k, labels[test].shape))
    assert "the length of the question" in learnt(others["length"][:, None])
    assert learnt(chance[test]) is None
    constant = skills(np.full((5, 1, 3), 0.9), np.ones((5, 1, 3), bool), {"k": np.ones((5, 3))})
    assert "the label does not vary" in nothing_learnt(constant, 5)
    assert nothing_learnt(None, 0) is None
    few = nothing_learnt({"k": {"value": 0.7, "low": math.nan, "high": math.nan}}, 3)
    assert "3 held-out questions are too few" in few
    assert "nan" not in few
