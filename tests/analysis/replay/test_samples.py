"""A store as arrays: every order and every prefix answers what its trajectories answer."""

import numpy as np
import pytest

from dps.analysis.replay.samples import orders_of, read_samples, scores, walk
from dps.decide import RULES
from dps.decide.aggregate import answer_of
from dps.decide.seen import question_key, seen_of
from dps.errors import InputError
from tests.factories import make_dynamic_question, make_manifest, make_question


def walked(count=12, num_orders=5, ks=(2, 4, 6, 8), aggregator="majority"):
    questions = [make_question(number) for number in range(count)]
    samples = read_samples(make_manifest(aggregator=aggregator), questions, "store")
    orders = np.stack([orders_of(q.question_id, 8, num_orders, 0) for q in questions])
    return questions, samples, orders, walk(samples, orders, ks, seed=4)


@pytest.mark.parametrize("aggregator", ["majority", "best_logprob", "weighted"])
def test_every_prefix_of_every_order_answers_what_its_trajectories_answer(aggregator):
    questions, _, orders, found = walked(ks=(1, 2, 5, 8), aggregator=aggregator)
    for q, question in enumerate(questions):
        for o, order in enumerate(orders[q]):
            for i, k in enumerate(found.ks):
                used = [question.trajectories[j] for j in order[:k]]
                assert found.correct[q, o, i] == answer_of(used, aggregator)[1]
                assert found.tokens[q, o, i] == sum(t.num_generated_tokens for t in used)


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_says_in_replay_what_it_says_live(name):
    questions, _, _, found = walked()
    rule = RULES[name]
    p_inc = scores([rule.enough(seen) for seen in found.seen], found)
    for i, k in enumerate(found.ks[:-1]):
        live = rule.enough(
            seen_of([q.trajectories[:k] for q in questions], [question_key(4, q.question_id) for q in questions])
        )
        assert (1 - p_inc[:, 0, i]).tolist() == pytest.approx(live.tolist(), abs=1e-15)


def test_the_first_order_is_the_natural_one_and_the_others_are_permutations():
    orders = orders_of("q1", 8, 20, 3)
    assert orders[0].tolist() == list(range(8))
    assert {tuple(sorted(order)) for order in orders.tolist()} == {tuple(range(8))}
    assert orders_of("q1", 8, 4, 3).tolist() == orders[:4].tolist()
    assert orders_of("q2", 8, 20, 3).tolist() != orders.tolist()


def test_orders_are_those_of_the_table_that_controllers_train_on():
    from dps.decide import table

    for name in ("q1", "gsm8k-train-00007"):
        assert orders_of(name, 8, 6, 5).tolist() == table.orders_of(name, 8, 6, 5).tolist()


def test_a_store_whose_questions_differ_in_k_is_refused():
    with pytest.raises(InputError, match="question q00000 of store has 4"):
        read_samples(make_manifest(), [make_dynamic_question(0, ks=(2, 4))], "store")
    dynamic = make_manifest(policy={"name": "gbdt", "family": "dynamic", "start": 2, "step": 2, "maximum": 8})
    with pytest.raises(InputError, match="dynamic policy gbdt"):
        read_samples(dynamic, [make_question(0)], "store")


def test_more_trajectories_than_there_are_cannot_be_replayed():
    _, samples, orders, _ = walked(count=2)
    with pytest.raises(InputError, match="at most 8"):
        walk(samples, orders, (2, 10), 0)
