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
    blocks_of,
    checkpoint_features,
    extended_features,
    pool_hidden,
    sums_of,
)
from tests.factories import make_manifest, make_question


def sums(answer_class, base_logprob, tokens, logprob, *, entropy=0.0, top1=0.0, cut=False):
    return TrajectorySums(tokens, logprob, entropy, top1, 3, 5, 4 * tokens, answer_class, base_logprob, cut)


def named(values):
    assert len(values) == len(EXTENDED_FEATURES)
    return dict(zip(EXTENDED_FEATURES, values, strict=True))


def test_extended_features_by_hand():
    found = named(
        extended_features(
            [
                sums(4, -10.0, 10, -10.0, entropy=10.0, top1=5.0),
                sums(4, -4.0, 20, -10.0, entropy=10.0, top1=15.0, cut=True),
                sums(0, -7.0, 30, -60.0, entropy=60.0, top1=15.0),
                sums(-1, -1.0, 40, -40.0, entropy=80.0, top1=30.0, cut=True),
            ],
            num_prompt_tokens=13,
        )
    )
    third, two_thirds = 1 / 3, 2 / 3
    assert found == pytest.approx(
        {
            "answer_agreement": 0.5,
            "vote_margin": 0.25,
            "num_distinct_answers": 2.0,
            "unanswered_share": 0.25,
            "vote_entropy": -third * math.log(third) - two_thirds * math.log(two_thirds),
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
    found = named(extended_features(pair, 5))
    assert (found["vote_margin"], found["answer_logprob_gap"]) == (0.0, 7.0)
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


@given(
    classes=st.lists(st.integers(-1, 3), min_size=1, max_size=8),
    names=st.permutations(range(4)),
    seed=st.integers(0, 9),
)
def test_how_classes_are_numbered_changes_nothing(classes, names, seed):
    rng = np.random.default_rng(seed)
    made = [sums(c, float(rng.normal()), int(rng.integers(1, 9)), float(-rng.random())) for c in classes]
    renamed = [replace(s, answer_class=names[s.answer_class] if s.answer_class >= 0 else -1) for s in made]
    found = extended_features(made, 5)
    assert found == extended_features(renamed, 5)
    assert np.isfinite(found).all()


def test_a_checkpoint_has_both_sets_and_the_published_six_stay():
    question = make_question(3)
    found = checkpoint_features(
        question.trajectories[:4],
        num_prompt_tokens=question.num_prompt_tokens,
        embedding=question.embedding,
        calibration=make_manifest().calibration,
    )
    assert FEATURE_SETS["published"] == SCALAR_FEATURES
    assert FEATURE_SETS["extended"] == SCALAR_FEATURES + EXTENDED_FEATURES
    np.testing.assert_array_equal(found.scalars_of("published"), found.scalars)
    np.testing.assert_array_equal(found.scalars_of("extended"), [*found.scalars, *found.extended])
    by_hand = extended_features([sums_of(t) for t in question.trajectories[:4]], question.num_prompt_tokens)
    np.testing.assert_array_equal(found.extended, by_hand)
    assert [sums_of(t).cut for t in question.trajectories[:4]] == [False, False, True, False]


def many_blocks(count, seed=0):
    """A trajectory of so many blocks of unequal numbers of tokens, with hidden states of size 3."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 9, count).astype(np.int32)
    hidden = rng.normal(size=(count, 3)).astype(np.float32)
    return replace(make_question(0).trajectories[0], block_num_tokens=counts, hidden=hidden)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 31, 33, 100])
def test_blocks_beyond_sixteen_are_averaged_and_no_token_is_lost(count):
    trajectory = many_blocks(count)
    found = blocks_of(trajectory)
    assert found.shape == (min(count, 16), 4)
    assert found[:, -1].sum() == trajectory.block_num_tokens.sum()
    if count <= 16:
        np.testing.assert_array_equal(found[:, :-1], trajectory.hidden)
        np.testing.assert_array_equal(found[:, -1], trajectory.block_num_tokens)
    mean = (found[:, -1:] * found[:, :-1]).sum(axis=0) / found[:, -1].sum()
    np.testing.assert_allclose(mean, pool_hidden(trajectory, "mean"), atol=1e-6)
    if count == 33:  # one of three neighbours, fifteen of two
        counts, hidden = trajectory.block_num_tokens, trajectory.hidden
        np.testing.assert_allclose(found[0, :-1], np.average(hidden[:2], axis=0, weights=counts[:2]), atol=1e-6)
        np.testing.assert_allclose(found[-1, :-1], np.average(hidden[30:], axis=0, weights=counts[30:]), atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "last", "attention"])
def test_the_spread_is_that_of_the_trajectories_and_none_for_one(pooling):
    question = make_question(3)

    def features(k):
        return checkpoint_features(
            question.trajectories[:k],
            num_prompt_tokens=question.num_prompt_tokens,
            embedding=question.embedding,
            calibration=make_manifest().calibration,
            pooling=pooling,
        )

    each = [pool_hidden(t, "last" if pooling == "last" else "mean") for t in question.trajectories[:4]]
    np.testing.assert_allclose(features(4).spread, np.std(each, axis=0), rtol=1e-6)
    assert features(1).spread.tolist() == [0.0] * 8
    blocks = features(4).blocks
    if pooling != "attention":
        assert blocks.size == 0
        return
    assert blocks.shape == (4, max(len(t.hidden) for t in question.trajectories[:4]), 9)
    for found, trajectory in zip(blocks, question.trajectories, strict=False):
        count = len(trajectory.hidden)
        np.testing.assert_array_equal(found[:count, :-1], trajectory.hidden)
        assert found[:, -1].tolist() == [*trajectory.block_num_tokens, *[0] * (len(found) - count)]
