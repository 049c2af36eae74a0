import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dps.decide.features import (
    EXTENDED_FEATURES,
    FEATURE_SETS,
    SCALAR_FEATURES,
    TrajectorySums,
    checkpoint_features,
    extended_features,
    pool_hidden,
    scalar_features,
    sums_of,
)
from tests.factories import make_manifest, make_question


def sums(answer_class, base_logprob, tokens, logprob, *, entropy=0.0, top1=0.0, cut=False):
    return TrajectorySums(tokens, logprob, entropy, top1, 3, 5, 4 * tokens, answer_class, base_logprob, cut)


def named(values):
    assert len(values) == len(EXTENDED_FEATURES)
    return dict(zip(EXTENDED_FEATURES, values, strict=True))


def test_extended_features_by_hand():
    trajectories = [
        sums(4, -10.0, 10, -10.0, entropy=10.0, top1=5.0),
        sums(4, -4.0, 20, -10.0, entropy=10.0, top1=15.0, cut=True),
        sums(0, -7.0, 30, -60.0, entropy=60.0, top1=15.0),
        sums(-1, -1.0, 40, -40.0, entropy=80.0, top1=30.0, cut=True),
    ]
    assert named(extended_features(trajectories, num_prompt_tokens=13)) == pytest.approx(
        {
            "answer_agreement": 0.5,
            "vote_margin": 0.25,
            "num_distinct_answers": 2.0,
            "unanswered_share": 0.25,
            "vote_entropy": -1 / 3 * math.log(1 / 3) - 2 / 3 * math.log(2 / 3),
            "answer_logprob_gap": -4.0 + 7.0,
            "length_mean": 25.0,
            "length_std": math.sqrt(125.0),
            "length_max": 40.0,
            "cut_share": 0.5,
            "logprob_mean": (-1 - 0.5 - 2 - 1) / 4,
            "logprob_std": float(np.std([-1, -0.5, -2, -1])),
            "logprob_min": -2.0,
            "logprob_max": -0.5,
            "entropy_std": float(np.std([1, 0.5, 2, 2])),
            "top1_std": float(np.std([0.5, 0.75, 0.5, 0.75])),
            "num_prompt_tokens": 13.0,
        },
        rel=1e-12,
    )


def test_a_tie_of_votes_is_broken_by_the_best_log_probability():
    pair = [sums(0, -9.0, 5, -9.0), sums(1, -2.0, 5, -2.0)]
    tied = named(extended_features(pair, 5))
    assert (tied["vote_margin"], tied["answer_logprob_gap"]) == (0.0, 7.0)
    outvoted = named(extended_features([*pair, sums(0, -8.0, 5, -8.0)], 5))
    assert outvoted["answer_logprob_gap"] == -6.0  # the majority is the less probable one


def test_one_trajectory_and_no_answer_are_finite():
    alone = named(extended_features([sums(2, -3.0, 6, -3.0)], 5))
    assert (alone["answer_agreement"], alone["vote_margin"], alone["num_distinct_answers"]) == (1.0, 1.0, 1.0)
    for name in ("length_std", "logprob_std", "entropy_std", "top1_std", "vote_entropy", "answer_logprob_gap"):
        assert alone[name] == 0.0
    silent = named(extended_features([sums(-1, -3.0, 6, -3.0)] * 2, 5))
    assert (silent["answer_agreement"], silent["unanswered_share"], silent["num_distinct_answers"]) == (0.0, 1.0, 0.0)
    assert np.isfinite(list(silent.values())).all()


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=8), st.permutations(range(4)), st.integers(0, 9))
def test_how_classes_are_numbered_changes_nothing(classes, names, seed):
    rng = np.random.default_rng(seed)
    made = [sums(c, float(rng.normal()), int(rng.integers(1, 9)), float(-rng.random())) for c in classes]
    renamed = [replace(s, answer_class=names[s.answer_class] if s.answer_class >= 0 else -1) for s in made]
    assert extended_features(made, 5) == extended_features(renamed, 5)
    assert np.isfinite(extended_features(made, 5)).all()


def test_a_checkpoint_has_both_sets_and_the_published_six_stay():
    question = make_question(3)
    four, length = question.trajectories[:4], question.num_prompt_tokens
    clock = make_manifest().calibration
    made = checkpoint_features(four, num_prompt_tokens=length, embedding=question.embedding, calibration=clock)
    assert FEATURE_SETS == {"published": SCALAR_FEATURES, "extended": SCALAR_FEATURES + EXTENDED_FEATURES}
    published = scalar_features([sums_of(t) for t in four], length, clock)
    extended = extended_features([sums_of(t) for t in four], length)
    np.testing.assert_array_equal(made.scalars_of("published"), published)
    np.testing.assert_array_equal(made.scalars_of("extended"), [*published, *extended])
    assert [sums_of(t).cut for t in four] == [False, False, True, False]


def test_the_hidden_state_of_a_trajectory_is_the_mean_over_tokens():
    for trajectory in make_question(3).trajectories[:4]:
        expected = np.repeat(trajectory.hidden, trajectory.block_num_tokens, axis=0).mean(axis=0)
        np.testing.assert_allclose(pool_hidden(trajectory), expected, rtol=1e-5, atol=1e-6)
