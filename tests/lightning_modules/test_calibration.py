import numpy as np
import pytest
import torch
from scipy.special import expit

from lightning_modules.calibration import METHODS, fit_temperature, fit_weight
from lightning_modules.estimators import TreeEstimator

MANY = 10**12
"""Questions beside which the prior's ten do not count."""


def exact(logits, sharpness, rows=4000):
    """Rows whose labels have exactly the share ``sigmoid(sharpness * logit)`` at each logit, up to rounding."""
    ones = np.round(rows * expit(sharpness * np.asarray(logits))).astype(int)
    return np.repeat(logits, rows), np.concatenate([np.arange(rows) < n for n in ones])


@pytest.mark.parametrize("sharpness", [0.25, 1.0, 3.0])
def test_the_temperature_of_known_logits_is_found(sharpness):
    logits, labels = exact([-2.0, -0.5, 0.3, 1.1], sharpness)
    assert fit_temperature(logits, labels, MANY) == pytest.approx(sharpness, rel=2e-3)


def test_questions_that_all_agree_do_not_make_it_infinite():
    logits = np.array([-1.0, 2.0])
    assert fit_temperature(logits, np.array([False, True]), MANY) == 20.0
    assert fit_temperature(logits, np.array([True, False]), MANY) == 1 / 20
    assert fit_temperature(np.zeros(3), np.ones(3, bool), MANY) == 1 / 20
    # Twenty questions, all of them enough: the probability goes where (20 + 10 p) / 30 is, and no further.
    found = fit_temperature(np.full(20, 3.0), np.ones(20, bool), 20)
    assert expit(3.0 * found) == pytest.approx((20 + 10 * expit(3.0)) / 30)


@pytest.mark.parametrize("method", METHODS)
def test_it_keeps_ranks_and_survives_its_state(method):
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, 300)
    labels = rng.random(300) < expit(0.4 * logits)
    estimator = TreeEstimator()
    estimator.calibrator.fit(method, logits, labels, 100)
    other = TreeEstimator()
    other.load_state_dict(estimator.state_dict())
    asked = torch.linspace(-9, 9, 50, dtype=torch.float64)
    p = estimator.calibrator(asked)
    torch.testing.assert_close(other.calibrator(asked), p, rtol=0, atol=0)
    assert (p.diff() >= 0).all()
    assert p.min() > 0
    assert p.max() < 1
    if method == "none":
        torch.testing.assert_close(p, asked.sigmoid(), rtol=0, atol=0)
    else:
        assert (p - asked.sigmoid()).abs().max() > 0.05


def mixture_loss(weight, own, correction, labels):
    p = expit(own + weight * correction)
    return -np.log(np.where(labels, p, 1 - p)).mean()


def test_the_weight_of_a_correction_minimizes_the_loss():
    rng = np.random.default_rng(0)
    own, correction = rng.normal(size=(2, 4000))
    labels = rng.random(4000) < expit(own + 0.4 * correction)
    found = fit_weight(own, correction, labels, MANY)
    assert found == pytest.approx(0.4, abs=0.1)
    best = mixture_loss(found, own, correction, labels)
    assert all(best <= mixture_loss(found + step, own, correction, labels) for step in (-0.01, 0.01))


def test_a_correction_that_held_out_questions_do_not_confirm_counts_for_nothing():
    rng = np.random.default_rng(1)
    own, correction = rng.normal(size=(2, 400))
    labels = rng.random(400) < expit(own)
    wrong = np.where(labels, -1.0, 1.0)
    right = -3 * wrong
    assert fit_weight(own, wrong, labels, 100) == 0.0
    assert fit_weight(own, right, labels, MANY) == 1.0
    assert fit_weight(own, np.zeros(400), labels, 100) == 0.0
    weights = [fit_weight(own, 8 * right, labels, questions) for questions in (1, 10, 100)]
    assert 0 < weights[0] < weights[1] < weights[2] < 1  # few questions confirm little
    assert fit_weight(own, correction, labels, 100) < 0.5
