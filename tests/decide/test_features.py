import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dps.decide.features import (
    EXTENDED_FEATURES,
    LEARNT,
    SCALAR_FEATURES,
    Rows,
    checkpoint_features,
    feature_names,
    pool_hidden,
    scalars_of,
)
from dps.decide.ladder import Ladder, from_ks
from dps.decide.seen import columns_of
from tests.factories import make_manifest, make_question

CLOCK = make_manifest().calibration
SETS = ("published", "extended", "ladder", "recorded")


def sums(answer_class, base_logprob, tokens, logprob, *, entropy=0.0, top1=0.0, cut=False):
    return answer_class, base_logprob, tokens, entropy, top1, logprob, 3, 5, 4 * tokens, cut


def features_of(shown, ladder=None, feature_set="extended", num_prompt_tokens=5):
    """The scalars of one row of trajectories by name; of one arm where no ladder says otherwise."""
    ladder = ladder or from_ks("power", [len(shown)])
    arms = tuple(arm for arm, _ in ladder.sequence(len(shown)))
    rows = Rows(np.array(shown, float).T[..., None], arms, np.array([num_prompt_tokens]), CLOCK)
    values = rows.scalars(feature_set, (len(shown),), ladder)[0, 0].tolist()
    return dict(zip(feature_names(feature_set, ladder), values, strict=True))


def test_extended_features_by_hand():
    trajectories = [
        sums(4, -10.0, 10, -10.0, entropy=10.0, top1=5.0),
        sums(4, -4.0, 20, -10.0, entropy=10.0, top1=15.0, cut=True),
        sums(0, -7.0, 30, -60.0, entropy=60.0, top1=15.0),
        sums(-1, -1.0, 40, -40.0, entropy=80.0, top1=30.0, cut=True),
    ]
    assert features_of(trajectories, num_prompt_tokens=13) == pytest.approx(
        {
            "mcmc_perplexity": math.exp(1.2),
            "mcmc_entropy": 1.6,
            "mcmc_self_confidence": 0.65,
            "acceptance_ratio": 0.6,
            "question_time_sec": 400 * 0.001 + 13 * 0.0001,
            "current_k": 4.0,
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
    tied = features_of(pair)
    assert (tied["vote_margin"], tied["answer_logprob_gap"]) == (0.0, 7.0)
    outvoted = features_of([*pair, sums(0, -8.0, 5, -8.0)])
    assert outvoted["answer_logprob_gap"] == -6.0  # the majority is the less probable one


def test_one_trajectory_and_no_answer_are_finite():
    alone = features_of([sums(2, -3.0, 6, -3.0)])
    assert (alone["answer_agreement"], alone["vote_margin"], alone["num_distinct_answers"]) == (1.0, 1.0, 1.0)
    for name in ("length_std", "logprob_std", "entropy_std", "top1_std", "vote_entropy", "answer_logprob_gap"):
        assert alone[name] == 0.0
    silent = features_of([sums(-1, -3.0, 6, -3.0)] * 2)
    assert (silent["answer_agreement"], silent["unanswered_share"], silent["num_distinct_answers"]) == (0.0, 1.0, 0.0)
    assert np.isfinite(list(silent.values())).all()


MIXED = Ladder.parse(["plain 2", "lowtemp 1", "plain 1", "lowtemp 2", "power 2"])


def test_features_of_a_ladder_by_hand():
    """Two arms that have answered, one that has not been asked: plain says 4, 0, none and lowtemp says 0."""
    shown = [sums(4, -9.0, 10, -10.0), sums(0, -8.0, 20, -10.0), sums(0, -7.0, 30, -60.0), sums(-1, -1.0, 30, -40.0)]
    expected = {
        "rung": 2.0, "next_count": 2.0, "next_is_plain": 0.0, "next_is_lowtemp": 1.0, "next_is_power": 0.0,
        "tokens_so_far": 360.0, "arms_agree": 1.0,  # of plain's two answers with a vote each, 0 is the more probable
        "root_k": 2.0, "lead_by_root_k": 0.5,
        "n_plain": 3.0, "n_lowtemp": 1.0, "n_power": 0.0,
        "agreement_plain": 0.5, "agreement_lowtemp": 1.0, "agreement_power": 0.0,
        "own_share_plain": 1 / 3, "own_share_lowtemp": 1.0, "own_share_power": 0.0,
        "logprob_plain": -18 / 60, "logprob_lowtemp": -7 / 30, "logprob_power": 0.0,
        "length_plain": 20.0, "length_lowtemp": 30.0, "length_power": 0.0,
        "vote_value": 0.0, "end_logit": 0.0,
    }  # fmt: skip
    made = features_of(shown, MIXED, "ladder")
    assert made == pytest.approx(features_of(shown) | expected, rel=1e-12)
    assert list(made)[-2:] == list(LEARNT)
    lacking = {"mcmc_entropy", "mcmc_self_confidence", "question_time_sec", "entropy_std", "top1_std"}
    assert features_of(shown, MIXED, "recorded") == {k: v for k, v in made.items() if k not in lacking}
    shown[1] = sums(2, -9.5, 20, -10.0)  # plain's majority is 4 now, all arms' majority 0 by its log p
    other = features_of(shown, MIXED, "ladder")
    assert (other["arms_agree"], other["agreement_plain"], other["agreement_lowtemp"]) == (0.0, 0.0, 1.0)
    assert features_of(shown[:2], MIXED, "ladder")["arms_agree"] == 1.0  # there is no pair
    whole = features_of([*shown, *shown], MIXED, "ladder")
    assert (whole["next_count"], whole["next_is_power"], whole["rung"]) == (0.0, 0.0, 4.0)


def test_the_sets_of_features():
    published, extended = (feature_names(name, MIXED) for name in ("published", "extended"))
    assert (published, extended) == (SCALAR_FEATURES, SCALAR_FEATURES + EXTENDED_FEATURES)
    assert feature_names("ladder", MIXED)[: len(extended)] == extended
    with pytest.raises(ValueError, match="among published, extended, ladder, recorded, got 'all'"):
        feature_names("all", MIXED)


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=8), st.permutations(range(4)), st.integers(0, 9))
def test_how_classes_are_numbered_changes_nothing(classes, names, seed):
    rng = np.random.default_rng(seed)
    made = [sums(c, float(rng.normal()), int(rng.integers(1, 9)), float(-rng.random())) for c in classes]
    renamed = [(names[s[0]] if s[0] >= 0 else -1, *s[1:]) for s in made]
    ladder = Ladder(tuple(replace(rung, count=1) for rung in (MIXED.rungs * 2)[: len(made)]))
    assert features_of(made, ladder, "ladder") == features_of(renamed, ladder, "ladder")
    assert np.isfinite(list(features_of(made, ladder, "ladder").values())).all()


def test_what_is_shown_of_a_trajectory_and_recorded_without_entropies():
    question = make_question(3)
    four = question.trajectories[:4]
    assert [columns_of(t)[-1] for t in four] == [False, False, True, False]
    bare = [replace(t, block_entropy=t.block_entropy * np.nan, block_top1=t.block_top1 * np.nan) for t in four]
    whole, part = (
        checkpoint_features(each, num_prompt_tokens=9, embedding=question.embedding, calibration=CLOCK)
        for each in (four, bare)
    )
    np.testing.assert_array_equal(scalars_of([part], "recorded"), scalars_of([whole], "recorded"))
    assert whole.votes.tolist() == part.votes.tolist()


def test_the_hidden_state_of_a_trajectory_is_the_mean_over_tokens():
    for trajectory in make_question(3).trajectories[:4]:
        expected = np.repeat(trajectory.hidden, trajectory.block_num_tokens, axis=0).mean(axis=0)
        np.testing.assert_allclose(pool_hidden(trajectory), expected, rtol=1e-5, atol=1e-6)


def test_records_without_a_clock_have_all_features_but_the_time():
    question, ladder = make_question(), Ladder.parse(["power 2", "power 2"])
    options = {"num_prompt_tokens": 9, "embedding": question.embedding, "ladder": ladder}
    timed, untimed = (
        [checkpoint_features(question.trajectories[:2], calibration=clock, **options)] for clock in (CLOCK, {})
    )
    np.testing.assert_array_equal(scalars_of(untimed, "recorded"), scalars_of(timed, "recorded"))
    missing = np.isnan(scalars_of(untimed, "extended")[0])
    assert np.array(feature_names("extended", ladder))[missing].tolist() == ["question_time_sec"]


def test_many_questions_at_once_are_each_alone():
    asked = [
        checkpoint_features(
            make_question(i).trajectories[: 2 + i % 3], num_prompt_tokens=i, embedding=np.zeros(0), calibration=CLOCK
        )
        for i in range(9)
    ]
    for name in SETS:
        alone = np.concatenate([scalars_of([each], name) for each in asked])
        np.testing.assert_array_equal(scalars_of(asked, name), alone)
    np.testing.assert_array_equal(scalars_of(asked, "published"), [each.scalars for each in asked])
