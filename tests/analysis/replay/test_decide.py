"""Choosing a threshold: what it is said to lose it does lose at most, on questions that it was not chosen on."""

import math

import numpy as np
import pytest

from dps.decide.thresholds import NEVER_STOP, cheapest_without_loss, choose_threshold, effective_margin, stops
from dps.estimates import loss_is_below, smallest_margin


def population(count, rng, *, gains=0.06, harms=0.03, signal=0.8):
    """Questions of which some are right at the maximum only and some not any more there; a controller that knows some.

    Returns p_inc (Q, C), correct and tokens (Q, C + 1); stopping everywhere at once loses gains - harms.
    """
    kind = rng.random(count)
    gain, harm = kind < gains, (kind >= gains) & (kind < gains + harms)
    shown = rng.normal(size=(count, 1)) + signal * gain[:, None] + 0.3 * rng.normal(size=(count, 3))
    correct = np.repeat(rng.random((count, 1)) < 0.5, 4, axis=1)
    correct[gain], correct[harm] = [False, False, False, True], [True, True, True, False]
    return 1 / (1 + np.exp(-shown)), correct, np.tile([20, 40, 60, 80], (count, 1))


@pytest.mark.parametrize(("count", "trials"), [(80, 100), (400, 100), (1000, 60)])
@pytest.mark.parametrize(("gains", "harms", "signal"), [(0.06, 0.03, 0.8), (0.02, 0.0, 0.0), (0.10, 0.05, 1.5)])
def test_the_promised_loss_is_kept_on_other_questions(count, trials, gains, harms, signal):
    """Chosen on some questions, held against the margin on very many others: too much in 2.5 % of cases at most."""
    rng = np.random.default_rng(count)
    shape = {"gains": gains, "harms": harms, "signal": signal}
    p_inc, correct, _ = population(40_000, np.random.default_rng(99), **shape)
    margin, broken = effective_margin(count, 0.01), 0
    for _ in range(trials):
        threshold = choose_threshold(*population(count, rng, **shape), 0.01)
        right = np.take_along_axis(correct, stops(p_inc, threshold)[:, None], axis=1)
        broken += correct[:, -1].mean() - right.mean() > margin
    assert broken / trials <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / trials)


def test_a_controller_that_knows_saves_and_one_that_does_not_saves_little():
    rng = np.random.default_rng(0)
    shares = {}
    for signal in (0.0, 6.0):
        p_inc, correct, tokens = population(4000, rng, harms=0.0, signal=signal)
        stop = stops(p_inc, choose_threshold(p_inc, correct, tokens, 0.01))
        shares[signal] = np.take_along_axis(tokens, stop[:, None], axis=1).mean() / 80
    assert shares[6.0] < 0.4
    assert shares[0.0] > 0.75


@pytest.mark.parametrize("count", [1, 2, 20, 100, 367])
def test_few_questions_choose_by_the_smallest_loss_that_they_can_show(count):
    assert effective_margin(count, 0.01) == smallest_margin(count) > 0.01
    p_inc, tokens = np.tile([0.2, 0.1], (count, 1)), np.tile([2, 4, 6], (count, 1))
    right = np.ones((count, 3), dtype=bool)
    assert choose_threshold(p_inc, right, tokens, 0.01) == 1.0  # nobody loses anything
    right[0, :2] = False
    assert choose_threshold(p_inc, right, tokens, 0.01) == NEVER_STOP  # whatever stops loses a question


@pytest.mark.parametrize("count", [20, 40, 80, 200])
@pytest.mark.parametrize("policies", [1, 10, 61])
def test_no_policy_of_many_is_called_without_loss_by_luck(count, policies):
    """True losses of 2 points beside a margin of 1 point: the cheapest one is named in 2.5 % of cases at most."""
    rng, trials, claims = np.random.default_rng(count), 60, 0
    tokens = np.repeat(np.arange(policies, 0, -1.0)[:, None], count, axis=1)
    for _ in range(trials):
        losses = -(rng.random((policies, count)) < 0.02).astype(float)
        claims += cheapest_without_loss(losses, tokens, 0.01) is not None
    assert claims / trials <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / trials)


def test_enough_questions_choose_by_the_margin():
    assert effective_margin(368, 0.01) == 0.01
    assert effective_margin(40, 0.2) == 0.2


def test_the_first_that_fails_ends_the_choice():
    """A cheap one that passes after a dearer one has failed was lucky."""
    count = 1000
    losses = np.zeros((4, count))
    losses[2, :30] = -1
    tokens = np.repeat(np.array([8.0, 6.0, 4.0, 2.0])[:, None], count, axis=1)
    assert cheapest_without_loss(losses, tokens, 0.01) == 1
    assert cheapest_without_loss(losses[[3, 2, 1, 0]], tokens[[3, 2, 1, 0]], 0.01) == 2
    losses[0, :30] = -1
    assert cheapest_without_loss(losses, tokens, 0.01) is None


def test_the_choice_is_the_last_in_a_row_that_passes():
    rng = np.random.default_rng(5)
    p_inc, correct, tokens = population(1500, rng)
    chosen = choose_threshold(p_inc, correct, tokens, 0.01)

    def passes(threshold):
        right = np.take_along_axis(correct, stops(p_inc, threshold)[:, None], axis=1)[:, 0]
        return loss_is_below(right.astype(float) - correct[:, -1], 0.01)

    assert passes(chosen)
    assert all(passes(t) for t in np.linspace(0.0, chosen, 9))
    assert np.abs(p_inc - chosen).min() > 1e-7
