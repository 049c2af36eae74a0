import time
from dataclasses import replace

import numpy as np
import pytest

from dps.analysis.replay.samples import read_samples, walk
from dps.analysis.report.statistics import outcomes_of
from dps.decide.aggregate import answer_of, has_grade
from dps.decide.features import checkpoint_features
from dps.decide.table import Table, ks_of, make_table, orders_of, split_of
from dps.errors import InputError
from tests.analysis.report.evaluations import power_manifest
from tests.factories import make_manifest, make_question
from tests.lightning_modules.harvests import make_questions

KS = (2, 4, 6, 8)
CLOCK = make_manifest().calibration


def table_of(questions, **changes):
    return make_table(questions, **{"ks": KS, "aggregator": "majority", "calibration": CLOCK, **changes})


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "last", "attention"])
@pytest.mark.parametrize(("hidden_size", "feature_set"), [(1, "published"), (12, "extended")])
def test_every_row_equals_the_live_features_bit_for_bit(pooling, spread, hidden_size, feature_set):
    questions = [make_question(i, hidden_size=hidden_size) for i in range(6)]
    table = table_of(questions, num_orders=5, seed=3, pooling=pooling, feature_set=feature_set, spread=spread)
    inputs = table.inputs_of(np.arange(table.num_rows))
    for q, question in enumerate(questions):
        for o, order in enumerate(orders_of(question.question_id, 8, 5, 3)):
            for c, k in enumerate(KS[:-1]):
                live = checkpoint_features(
                    [question.trajectories[i] for i in order[:k]],
                    num_prompt_tokens=question.num_prompt_tokens,
                    embedding=question.embedding,
                    calibration=CLOCK,
                    pooling=pooling,
                )
                np.testing.assert_array_equal(table.scalars[q, o, c], live.scalars_of(feature_set))
                hidden = np.concatenate([live.hidden, live.spread]) if spread else live.hidden
                if pooling == "attention":
                    members = inputs.members[(q * 5 + o) * 3 + c]
                    assert (members[k:] == -1).all()
                    blocks = inputs.values[members[:k]]
                    np.testing.assert_array_equal(blocks[:, : live.blocks.shape[1]], live.blocks)
                    assert (blocks[:, live.blocks.shape[1] :] == 0).all()
                    np.testing.assert_allclose(table.hidden[q, o, c], hidden, rtol=0, atol=1e-6)
                else:
                    assert live.blocks.size == 0
                    np.testing.assert_array_equal(table.hidden[q, o, c], hidden)
                    np.testing.assert_array_equal(inputs[(q * 5 + o) * 3 + c], hidden)
                np.testing.assert_array_equal(table.embedding[q], live.embedding)
                assert table.hidden.dtype == live.hidden.dtype


@pytest.mark.parametrize("aggregator", ["majority", "best_logprob", "weighted"])
def test_answers_and_tokens_by_brute_force(aggregator):
    questions = [make_question(i) for i in range(8)]
    table = table_of(questions, num_orders=4, seed=1, aggregator=aggregator)
    for q, question in enumerate(questions):
        for o, order in enumerate(orders_of(question.question_id, 8, 4, 1)):
            for c, k in enumerate(KS):
                first = [question.trajectories[i] for i in order[:k]]
                assert table.correct[q, o, c] == answer_of(first, aggregator)[1]
                assert table.tokens[q, o, c] == sum(t.num_generated_tokens for t in first)
    assert 0 < table.correct.mean() < 1


@pytest.mark.parametrize(
    ("correct", "no_gain"),
    [
        ("1111", "111"),
        ("0000", "111"),  # hopeless is enough
        ("0001", "000"),
        ("0010", "001"),  # k = 6 turns it right, though k = 8 loses it again
        ("1001", "100"),
        ("0110", "011"),
        ("1000", "111"),
        ("0100", "011"),
    ],
)
def test_labels_on_small_examples(correct, no_gain):
    bits = np.array([[[c == "1" for c in correct]]])
    shape = (1, 1, 3)
    table = Table(
        ("q",),
        ("What?",),
        np.ones(1),
        np.ones(1, bool),
        KS,
        np.zeros((*shape, 6)),
        np.zeros((1, 1, 8), np.int16),
        np.zeros((1, 8, 0), np.float32),
        np.zeros(1, np.int64),
        np.zeros((1, 0)),
        bits,
        bits,
    )
    assert "".join(str(int(b)) for b in table.labels("no_gain")[0, 0]) == no_gain
    assert "".join(str(int(b)) for b in table.labels("correct")[0, 0]) == correct[:-1]


def test_no_gain_by_its_definition():
    table = table_of([make_question(i) for i in range(30)], num_orders=3)
    for q, o, c in np.ndindex(30, 3, 3):
        now, later = table.correct[q, o, c], table.correct[q, o, c + 1 :]
        assert table.labels("no_gain")[q, o, c] == (not (not now and later.any()))


def test_orders_are_permutations_and_the_first_is_natural():
    orders = orders_of("q1", 8, 20, 0)
    np.testing.assert_array_equal(orders[0], np.arange(8))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(8), (20, 1)))
    assert len({tuple(o) for o in orders}) > 15
    np.testing.assert_array_equal(orders, orders_of("q1", 8, 20, 0))
    assert (orders != orders_of("q1", 8, 20, 1)).any()
    assert (orders != orders_of("q2", 8, 20, 0)).any()


def test_questions_without_a_grade_are_marked():
    questions = make_questions(4)
    blind = replace(
        questions[1], gold=None, trajectories=tuple(replace(t, correct=None) for t in questions[1].trajectories)
    )
    table = table_of([questions[0], blind, questions[2]])
    assert table.graded.tolist() == [True, False, True]
    assert table.select(table.graded).question_ids == (questions[0].question_id, questions[2].question_id)


def test_unusable_questions_are_refused():
    with pytest.raises(InputError, match="q00003 has 6"):
        table_of([make_question(3, k=6)])
    question = make_question(4)
    bare = tuple(replace(t, block_entropy=np.full(len(t.block_entropy), np.nan)) for t in question.trajectories)
    with pytest.raises(InputError, match="q00004 has none"):
        table_of([replace(question, trajectories=bare)])
    with pytest.raises(InputError, match="at least one question"):
        table_of([])


def test_parts_that_nobody_uses_are_not_made():
    table = table_of([make_question(0)], parts={"scalars"})
    assert table.hidden.shape == (1, 1, 3, 0)
    assert table.embedding.shape == (1, 0)


def test_checkpoints_come_from_the_policy():
    policy = {"name": "power", "family": "fixed", "start": 1, "step": 3, "maximum": 10}
    assert ks_of(policy, "s") == (1, 4, 7, 10)
    for bad in (
        {**policy, "family": "dynamic"},
        {"name": "plain", "family": "fixed", "ks": [1, 2]},
        {**policy, "maximum": 1},
    ):
        with pytest.raises(InputError):
            ks_of(bad, "s")


def test_a_question_keeps_its_split_and_fractions_hold():
    names = [split_of(f"q{i}", 0.6, 0.2, 0) for i in range(4000)]
    assert [round(names.count(s) / 4000, 1) for s in ("train", "val", "test")] == [0.6, 0.2, 0.2]
    four = [split_of(f"q{i}", 0.6, 0.2, 0, 0.1) for i in range(4000)]
    assert [round(four.count(s) / 4000, 1) for s in ("calibration", "test")] == [0.1, 0.1]
    assert all(b == a or (a, b) == ("test", "calibration") for a, b in zip(names, four, strict=True))
    assert names == [split_of(f"q{i}", 0.6, 0.2, 0) for i in range(4000)]
    assert names != [split_of(f"q{i}", 0.6, 0.2, 1) for i in range(4000)]


def test_three_hundred_questions_take_about_a_second():
    questions = [make_question(i, hidden_size=128, embedding_size=64) for i in range(100)] * 3
    started = time.process_time()
    assert table_of(questions, num_orders=8).num_rows == 7200
    assert time.process_time() - started < 3


def test_an_ungradable_answer_is_wrong_and_a_question_without_any_grade_has_no_labels():
    """One meaning for training, replays, reports and pass@k, see :func:`dps.decide.aggregate.has_grade`."""

    def graded(question, rows, **changes):
        pairs = zip(question.trajectories, rows, strict=True)
        return replace(question, trajectories=tuple(replace(t, correct=c) for t, c in pairs), **changes)

    questions = [make_question(i) for i in range(5)]
    questions = [
        graded(questions[0], [None] * 8),  # a gold answer that no answer could be compared with
        graded(questions[1], [None] * 8, gold=None),
        graded(questions[2], [True] + [None] * 7, gold=None),  # graded by tests, most of which could not run
        graded(questions[3], [True] * 8, gold=None),
        graded(questions[4], [False] + [None] * 7),
    ]
    table = make_table(questions, ks=(2, 4, 8), aggregator="best_logprob", calibration=CLOCK, num_orders=4)
    assert table.graded.tolist() == [True, False, True, True, True] == [has_grade(q) for q in questions]
    for row, question in enumerate(questions):
        expected = [
            [bool(answer_of([question.trajectories[i] for i in order[:k]], "best_logprob")[1]) for k in (2, 4, 8)]
            for order in orders_of(question.question_id, 8, 4, 0)
        ]
        if table.graded[row]:
            assert table.correct[row].tolist() == expected
    samples = read_samples(make_manifest(aggregator="best_logprob"), questions, "store")
    assert samples.question_ids == tuple(q.question_id for q in questions if has_grade(q))
    assert (samples.num_ungraded, samples.num_ungradable) == (1, 8 + 7 + 7)
    walked = walk(samples, table.orders[table.graded].astype(int), (2, 4, 8), 0)
    assert (walked.correct == table.correct[table.graded]).all()
    found = outcomes_of(power_manifest(aggregator="best_logprob"), questions, None)
    [o2, o4, o8] = [o for o in found if o.k in (2, 4, 8)]
    assert np.isnan(o8.correct).tolist() == (~table.graded).tolist()
    assert o8.correct[table.graded].tolist() == table.correct[table.graded][:, 0, 2].tolist()
    assert np.isnan(o2.correct).tolist() == np.isnan(o4.correct).tolist() == (~table.graded).tolist()
