"""Splits, folds, orders: every order and every prefix answers what its trajectories answer."""

from dataclasses import replace

import numpy as np
import pytest

from dps.decide import RULES, Ladder
from dps.decide.aggregate import AGGREGATORS, answer_of
from dps.decide.orders import at_stop, in_order, ladder_orders, orders_of, walk
from dps.decide.samples import fixed_ladder, samples_of
from dps.decide.seen import question_key, seen_of
from dps.decide.splits import divided_as, fold_of, folds_of, other_folds, split_of
from dps.errors import InputError
from tests.factories import make_dynamic_question, make_manifest, make_question

IDS = [f"q{i}" for i in range(4000)]


def power_orders(ids, num_orders, most=8, seed=0):
    return ladder_orders(ids, ["power"] * most, Ladder.parse([f"power {most}"]), num_orders, seed)


def test_a_question_keeps_its_split_and_fractions_hold():
    names = [split_of(name, 0.6, 0.2, 0) for name in IDS]
    assert [round(names.count(s) / 4000, 1) for s in ("train", "val", "test")] == [0.6, 0.2, 0.2]
    four = [split_of(name, 0.6, 0.2, 0, 0.1) for name in IDS]
    assert [round(four.count(s) / 4000, 1) for s in ("calibration", "test")] == [0.1, 0.1]
    assert all(b == a or (a, b) == ("test", "calibration") for a, b in zip(names, four, strict=True))
    assert names == [split_of(name, 0.6, 0.2, 0) for name in IDS]
    assert names != [split_of(name, 0.6, 0.2, 1) for name in IDS]


def test_folds_partition_the_questions():
    folds = [fold_of(name, 5, 0) for name in IDS]
    assert all(700 < folds.count(f) < 900 for f in range(5))
    assert folds != [fold_of(name, 5, 1) for name in IDS]
    balanced = folds_of(IDS[:23], 5, 0)
    assert sorted(np.bincount(balanced).tolist()) == [4, 4, 5, 5, 5]
    assert folds_of([*IDS[:23], "q7", "q7"], 5, 0).tolist() == [*balanced, balanced[7], balanced[7]]
    for mine, others in other_folds(balanced):
        assert (mine ^ others).all()
    assert [(mine.all(), others.all()) for mine, others in other_folds(np.zeros(3))] == [(True, True)]
    assert divided_as(("b", "a", "c", "d"), ("x", "x", "", "")) == ("a", "a", "c", "d")  # the same text is one question


def test_orders_are_permutations_and_the_first_is_natural():
    orders = orders_of("q1", 8, 20, 0)
    np.testing.assert_array_equal(orders[0], np.arange(8))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(8), (20, 1)))
    assert len({tuple(o) for o in orders}) > 15
    np.testing.assert_array_equal(orders[:4], orders_of("q1", 8, 4, 0))
    assert (orders != orders_of("q1", 8, 20, 1)).any() & (orders != orders_of("q2", 8, 20, 0)).any()
    np.testing.assert_array_equal(power_orders(["q2", "q1"], 20)[1], orders)
    assert power_orders([], 4).shape == (0, 4, 8)


def walked(count=12, num_orders=5, ks=(2, 4, 6, 8), aggregator="majority"):
    questions = [make_question(number) for number in range(count)]
    samples = samples_of(questions, {"power": 8})
    orders = power_orders(samples.question_ids, num_orders)
    return questions, samples, orders, walk(samples, orders, ks, aggregator, rule_seed=4)


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_every_prefix_of_every_order_answers_what_its_trajectories_answer(aggregator):
    questions, samples, orders, steps = walked(ks=(1, 2, 5, 8), aggregator=aggregator)
    for q, question in enumerate(questions):
        for o, order in enumerate(orders[q]):
            for i, k in enumerate(steps.ks):
                used = [question.trajectories[j] for j in order[:k]]
                winner = steps.winners[q, o, i]
                assert (question.trajectories[winner].answer, steps.correct[q, o, i]) == answer_of(used, aggregator)
                assert winner in order[:k]
                assert steps.tokens[q, o, i] == sum(t.num_generated_tokens for t in used)
                assert steps.accepted[q, o, i] == sum(len(t.tokens) for t in used)
    assert 0 < steps.correct.mean() < 1
    latest = np.maximum.accumulate(in_order(samples.finished_s, orders), axis=2)
    assert latest[3, 2, 4] == max(questions[3].trajectories[j].finished_s for j in orders[3, 2, :5])
    assert at_stop(steps.tokens, np.full((12, 5), 3)).tolist() == steps.tokens[..., 3].tolist()


def test_nobody_wins_where_nobody_answers():
    question = make_question(0)
    silent = tuple(replace(t, answer=None, answer_class=-1, correct=None) for t in question.trajectories)
    samples = samples_of([replace(question, trajectories=silent), question], {"power": 8})
    steps = walk(samples, power_orders(samples.question_ids, 2), (1, 8), "majority")
    assert steps.seen == ()
    assert (steps.winners[0] == -1).all()
    assert not steps.correct[0].any()
    assert samples.gradable.any(axis=1).tolist() == [False, True]


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_says_in_replay_what_it_says_live(name):
    questions, _, _, steps = walked()
    p_enough = steps.p_enough(RULES[name])
    keys = [question_key(4, q.question_id) for q in questions]
    for i, k in enumerate(steps.ks[:-1]):
        live = RULES[name].enough(seen_of([q.trajectories[:k] for q in questions], keys))
        assert p_enough[:, 0, i].tolist() == pytest.approx(live.tolist(), abs=1e-15)


def test_samples_of_some_questions_only():
    questions, samples, _, _ = walked()
    some = samples.on(["q00007", "q00002"])
    assert some.question_ids == ("q00007", "q00002")
    assert some.levels == ("2", "2")
    assert some.generated[0].tolist() == [t.num_generated_tokens for t in questions[7].trajectories]
    assert samples.select(samples.has_grade).right.tolist() == samples.right.tolist()
    assert samples_of([], {"power": 8}).classes.shape == (0, 8)


def test_a_store_whose_questions_differ_in_k_is_refused():
    with pytest.raises(InputError, match=r"8 responses of the arm power .* of store, but question q00000 has 4"):
        samples_of([make_dynamic_question(0, ks=(2, 4))], {"power": 8}, "store")
    dynamic = make_manifest(
        policy={"name": "gbdt", "family": "dynamic", "ladder": ["power 2", "power 2", "power 2", "power 2"]}
    )
    with pytest.raises(InputError, match="dynamic policy gbdt"):
        fixed_ladder(dynamic, "store")
    assert fixed_ladder(make_manifest(), "store").ks == (2, 4, 6, 8)
    plain = make_manifest(policy={"name": "plain", "family": "fixed", "ladder": ["power 1", "power 3"]})
    assert fixed_ladder(plain, "store").ks == (1, 4)
    _, samples, orders, _ = walked(count=2)
    with pytest.raises(InputError, match="at most 8"):
        walk(samples, orders, (2, 10), "majority")
