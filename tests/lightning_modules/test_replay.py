import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dps.decide.thresholds import NEVER_STOP, choose_threshold, effective_margin, replay, stops, sweep
from dps.estimates import loss_is_below


def walk(p_inc, threshold):
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
    tokens = np.cumsum(rng.integers(5, 50, (rows, checkpoints + 1)), axis=1)
    return p_inc, correct, tokens


def outcome(p_inc, correct, tokens, threshold):
    at = [walk(p, threshold) for p in p_inc]
    return np.mean([c[i] for c, i in zip(correct, at, strict=True)]), np.mean(
        [t[i] for t, i in zip(tokens, at, strict=True)]
    )


@pytest.mark.parametrize("values", [None, 4])
def test_stops_walks_the_policy(values):
    p_inc, _, _ = random_case(0, values=values)
    for threshold in (-1.0, 0.0, 0.25, 0.3, 1.0):
        assert stops(p_inc, threshold).tolist() == [walk(p, threshold) for p in p_inc]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([None, 3, 8]))
def test_the_sweep_equals_one_replay_for_each_threshold(seed, rows, values):
    p_inc, correct, tokens = random_case(seed, rows, values=values)
    thresholds, accuracies, costs = sweep(p_inc, correct, tokens)
    assert (np.diff(thresholds) > 0).all()
    assert thresholds[0] == NEVER_STOP
    assert thresholds[-1] == 1.0
    for threshold, accuracy, cost in zip(thresholds, accuracies, costs, strict=True):
        assert (accuracy, cost) == pytest.approx(outcome(p_inc, correct, tokens, threshold), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([None, 3, 8]), st.sampled_from([0.0, 0.05, 0.3]))
def test_the_threshold_by_brute_force(seed, rows, values, margin):
    p_inc, correct, tokens = random_case(seed, rows, values=values)
    excluded = effective_margin(rows, margin)

    def keeps(threshold):
        at = [walk(p, threshold) for p in p_inc]
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


def test_thresholds_stand_clear_of_every_probability():
    p_inc, correct, tokens = random_case(5)
    threshold = choose_threshold(p_inc, correct, tokens, 0.05)
    assert np.abs(p_inc - threshold).min() > 1e-5


def test_hopeless_controllers_run_to_the_maximum():
    p_inc = np.zeros((3, 2))
    correct = np.array([[False, False, True]] * 3)
    assert choose_threshold(p_inc, correct, np.tile([1, 2, 3], (3, 1)), 0.0) == NEVER_STOP
    assert stops(p_inc, NEVER_STOP).tolist() == [2, 2, 2]


def test_replay_clusters_by_question():
    correct = np.array([[[True], [True]], [[False], [True]], [[False], [False]]])
    found = replay(np.zeros((3, 2), dtype=int), correct, np.full((3, 2, 1), 7), (2,))
    assert (found.accuracy, found.tokens, found.mean_k) == (0.5, 7.0, 2.0)
    assert found.accuracy_stderr == pytest.approx(np.std([1.0, 0.5, 0.0], ddof=1) / np.sqrt(3))
