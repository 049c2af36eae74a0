"""Labels of checkpoints against brute force, and the one threshold that a rate of gain becomes."""

from itertools import product

import numpy as np
import pytest

from dps.decide.labels import labels_of, later_stops, rate_of_score, score_of_rate, value_of
from dps.decide.thresholds import NEVER_STOP, stops

CORRECT = np.array(list(product([False, True], repeat=4)))
TOKENS = np.cumsum(np.random.default_rng(0).integers(1, 9, CORRECT.shape), axis=1)


def later_by_hand(p_inc, threshold):
    """A policy that goes on from c: it climbs to c + 1, and from there while p_inc is above the threshold."""
    found = []
    for c in range(len(p_inc)):
        at = c + 1
        while at < len(p_inc) and p_inc[at] > threshold:
            at += 1
        found.append(at)
    return found


@pytest.mark.parametrize("threshold", [NEVER_STOP, 0.0, 0.4, 1.0])
def test_value_over_all_stops_of_a_ladder_of_four_rungs(threshold):
    for said in product([0.0, 0.4, 0.9], repeat=3):
        later = later_stops(np.tile(said, (len(CORRECT), 1)), threshold)
        assert later.tolist() == [later_by_hand(said, threshold)] * len(CORRECT)
        gain, cost = value_of(CORRECT, TOKENS, later)
        for row, (right, spent) in enumerate(zip(CORRECT.tolist(), TOKENS.tolist(), strict=True)):
            for c, end in enumerate(later[row].tolist()):
                assert (gain[row, c], cost[row, c]) == (right[end] - right[c], spent[end] - spent[c])
        assert (labels_of(CORRECT, "value", later) == (gain <= 0)).all()


def test_without_a_later_policy_a_value_is_that_of_the_end_and_orders_are_kept_apart():
    gain, cost = value_of(CORRECT[:, None], TOKENS[:, None])
    np.testing.assert_array_equal(gain[:, 0], CORRECT[:, 3:].astype(int) - CORRECT[:, :3])
    np.testing.assert_array_equal(cost[:, 0], TOKENS[:, 3:] - TOKENS[:, :3])
    np.testing.assert_array_equal(labels_of(CORRECT, "value"), gain[:, 0] <= 0)
    np.testing.assert_array_equal(labels_of(CORRECT, "end"), np.repeat(CORRECT[:, 3:], 3, axis=1))


def test_one_rate_is_one_threshold_at_every_rung():
    rate = np.array([-50.0, -0.1, 0.0, 0.7, 0.9, 400.0])
    score = score_of_rate(rate)
    assert (np.diff(score) > 0).all()
    assert ((score > 0) & (score < 1)).all()
    np.testing.assert_allclose(rate_of_score(score), rate, rtol=1e-9, atol=1e-12)
    assert rate_of_score(NEVER_STOP) == -np.inf
    assert rate_of_score(1.0) == np.inf
    for asked in (-0.05, 0.0, 0.8):
        above = rate[None, ::-1] > asked
        assert stops(score[None, ::-1], float(score_of_rate(asked))).item() == above.argmin()
