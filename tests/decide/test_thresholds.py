"""Choosing a threshold: what it is said to lose it does lose at most, on questions that it was not chosen on."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dps.decide.thresholds import (
    NEVER_STOP,
    cheapest_without_loss,
    choose_threshold,
    cross_fitted,
    effective_margin,
    replay,
    stops,
    sweep,
)
from dps.estimates import loss_is_below, smallest_margin


def climb(p_inc, threshold):
    """The policy as METHOD section 4 says it: climb while p_inc > threshold and there is a larger k."""
    at = 0
    while at < len(p_inc) and p_inc[at] > threshold:
        at += 1
    return at


def random_case(seed, rows=40, checkpoints=3, values=None):
    rng = np.random.default_rng(seed)
    p_inc = rng.random((rows, checkpoints))
    if values is not None:
        p_inc = np.round(p_inc * values) / values  # many ties, zeros and ones
    correct = rng.random((rows, checkpoints + 1)) < [0.5, 0.6, 0.7, 0.75][: checkpoints + 1]
    return p_inc, correct, np.cumsum(rng.integers(5, 50, (rows, checkpoints + 1)), axis=1)


def outcome(p_inc, correct, tokens, threshold):
    at = [climb(p, threshold) for p in p_inc]
    return tuple(np.mean([v[i] for v, i in zip(of, at, strict=True)]) for of in (correct, tokens))


@pytest.mark.parametrize("values", [None, 4])
def test_stops_walks_the_policy(values):
    p_inc, _, _ = random_case(0, values=values)
    for threshold in (-1.0, 0.0, 0.25, 0.3, 1.0):
        assert stops(p_inc, threshold).tolist() == [climb(p, threshold) for p in p_inc]
    each = np.array([0.6, 0.3, 0.0])  # every question at its own threshold
    assert stops(np.tile([0.6, 0.4, 0.1], (3, 1, 1)), each[:, None, None]).tolist() == [[0], [2], [3]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([None, 3, 8]))
def test_the_sweep_equals_one_replay_for_each_threshold(seed, rows, values):
    case = random_case(seed, rows, values=values)
    thresholds, accuracies, costs = sweep(*case)
    assert (np.diff(thresholds) > 0).all()
    assert (thresholds[0], thresholds[-1]) == (NEVER_STOP, 1.0)
    for threshold, accuracy, cost in zip(thresholds, accuracies, costs, strict=True):
        assert (accuracy, cost) == pytest.approx(outcome(*case, threshold), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([None, 3, 8]), st.sampled_from([0.0, 0.05, 0.3]))
def test_the_threshold_by_brute_force(seed, rows, values, margin):
    p_inc, correct, tokens = random_case(seed, rows, values=values)
    excluded = effective_margin(rows, margin)

    def keeps(threshold):
        at = [climb(p, threshold) for p in p_inc]
        gaps = np.array([float(c[i]) - c[-1] for c, i in zip(correct, at, strict=True)])
        return (np.array(at) == 3).all() or loss_is_below(gaps, excluded)

    # From the most careful one on, one after another: the last before one fails.
    chosen = NEVER_STOP
    for threshold in sweep(p_inc, correct, tokens)[0]:
        if not keeps(threshold):
            break
        chosen = threshold
    found = choose_threshold(p_inc, correct, tokens, margin, candidates=10**4)
    assert outcome(p_inc, correct, tokens, found) == outcome(p_inc, correct, tokens, chosen)
    assert np.abs(p_inc - found).min() > 0 or values is not None  # clear of every probability


def test_replay_clusters_by_question():
    correct = np.array([[[True], [True]], [[False], [True]], [[False], [False]]])
    replayed = replay(np.zeros((3, 2), dtype=int), correct, np.full((3, 2, 1), 7), (2,))
    assert (replayed.accuracy, replayed.tokens, replayed.mean_k) == (0.5, 7.0, 2.0)
    assert replayed.accuracy_stderr == pytest.approx(np.std([1.0, 0.5, 0.0], ddof=1) / np.sqrt(3))


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


@pytest.mark.parametrize(("count", "trials"), [(80, 100), (1000, 60)])
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
    assert stops(p_inc, NEVER_STOP).tolist() == [2] * count
    assert (effective_margin(368, 0.01), effective_margin(40, 0.2)) == (0.01, 0.2)  # enough questions


@pytest.mark.parametrize("count", [20, 200])
@pytest.mark.parametrize("policies", [1, 10, 61])
def test_no_policy_of_many_is_called_without_loss_by_luck(count, policies):
    """True losses of 2 points beside a margin of 1 point: the cheapest one is named in 2.5 % of cases at most."""
    rng, trials, claims = np.random.default_rng(count), 60, 0
    tokens = np.repeat(np.arange(policies, 0, -1.0)[:, None], count, axis=1)
    for _ in range(trials):
        losses = -(rng.random((policies, count)) < 0.02).astype(float)
        claims += cheapest_without_loss(losses, tokens, 0.01) is not None
    assert claims / trials <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / trials)


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


def test_a_fold_does_not_choose_its_own_threshold():
    p_inc, correct, tokens = (values[:, None] for values in population(300, np.random.default_rng(4)))
    folds = np.arange(300) % 3
    chosen = cross_fitted(p_inc, correct, tokens, folds, 0.05)
    correct[folds == 1] = [False, False, False, True]  # whoever stops loses
    again = cross_fitted(p_inc, correct, tokens, folds, 0.05)
    assert len(set(chosen[folds == 1])) == 1
    assert again[folds == 1].tolist() == chosen[folds == 1].tolist()
    assert (again[folds != 1] < chosen[folds != 1]).all()


def test_another_policy_as_the_reference():
    """The end of the ladder itself has to reach it; below it, as much may be lost as the end gains."""
    p_inc, correct, tokens = population(2000, np.random.default_rng(5), gains=0.05, harms=0.0, signal=3.0)
    own = correct[:, -1].astype(float)
    assert choose_threshold(p_inc, correct, tokens, 0.01, reference=own) == choose_threshold(
        p_inc, correct, tokens, 0.01
    )
    better = np.maximum(own, np.random.default_rng(6).random(2000) < 0.1)
    assert choose_threshold(p_inc, correct, tokens, 0.01, reference=better) == NEVER_STOP
    first = correct[:, 0].astype(float)  # no threshold loses anything against what everybody has
    assert choose_threshold(p_inc, correct, tokens, 0.01, reference=first) == 1.0
    folds = np.arange(2000) % 4
    whole = (values[:, None] for values in (p_inc, correct, tokens))
    assert (cross_fitted(*whole, folds, 0.01, reference=better) == NEVER_STOP).all()
