"""The table of controllers: every row is what a live run would have known, and the label follows its definition."""

import time
from dataclasses import replace

import numpy as np
import pytest

from dps.decide.aggregate import answer_of, has_grade
from dps.decide.features import checkpoint_features, scalars_of
from dps.decide.labels import continue_score, labels_of
from dps.decide.ladder import Ladder, from_ks
from dps.decide.orders import ladder_orders, orders_of
from dps.decide.samples import trained_ladder
from dps.decide.table import make_table
from dps.errors import InputError
from tests.factories import make_manifest, make_question

KS = (2, 4, 6, 8)
CLOCK = make_manifest().calibration


def table_of(questions, **changes):
    return make_table(
        questions, **{"ladder": from_ks("power", KS), "aggregator": "majority", "calibration": CLOCK, **changes}
    )


def graded(question, rows, **changes):
    pairs = zip(question.trajectories, rows, strict=True)
    return replace(question, trajectories=tuple(replace(t, correct=c) for t, c in pairs), **changes)


MIXED = Ladder.parse(["plain 1", "lowtemp 2", "plain 2", "power 1", "lowtemp 1"])


def with_arms(question, arms):
    """The question with its trajectories as those of some arms, in order."""
    indices = [arms[:i].count(arm) for i, arm in enumerate(arms)]
    named = zip(question.trajectories, arms, indices, strict=True)
    prompt = np.random.default_rng(question.num_prompt_tokens).normal(size=6).astype(np.float32)
    trajectories = tuple(replace(t, arm=arm, index=index) for t, arm, index in named)
    return replace(question, trajectories=trajectories, prompt_hidden=prompt)


@pytest.mark.parametrize(
    ("hidden_size", "feature_set", "ladder"),
    [
        (1, "published", from_ks("power", KS)),
        (12, "extended", from_ks("power", KS)),
        (3, "ladder", MIXED),
        (2, "recorded", MIXED),
    ],
)
def test_every_row_equals_the_live_features_bit_for_bit(hidden_size, feature_set, ladder, monkeypatch):
    monkeypatch.setattr("dps.decide.table._ROWS", 10)
    arms = ["power"] * 8 if ladder is not MIXED else ["plain"] * 4 + ["lowtemp"] * 3 + ["power"]
    totals = {arm: arms.count(arm) for arm in dict.fromkeys(arms)}
    questions = [with_arms(make_question(i, hidden_size=hidden_size), arms) for i in range(6)]
    table = table_of(questions, ladder=ladder, totals=totals, num_orders=5, seed=3, feature_set=feature_set)
    orders = ladder_orders(table.question_ids, arms, ladder, 5, 3)
    for q, question in enumerate(questions):
        for o, order in enumerate(orders[q]):
            for c, k in enumerate(ladder.ks[:-1]):
                live = checkpoint_features(
                    [question.trajectories[i] for i in order[:k]],
                    num_prompt_tokens=question.num_prompt_tokens,
                    embedding=question.embedding,
                    calibration=CLOCK,
                    prompt_hidden=question.prompt_hidden,
                    ladder=ladder,
                )
                np.testing.assert_array_equal(table.scalars[q, o, c], scalars_of([live], feature_set)[0])
                np.testing.assert_array_equal(table.votes[q, o, c], live.votes)
                np.testing.assert_array_equal(table.hidden[q, o, c], live.hidden)
                np.testing.assert_array_equal(table.embedding[q], live.embedding)
                np.testing.assert_array_equal(table.prompt[q], live.prompt)
    assert table.hidden.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate(list(table.hidden_chunks())), table.hidden.reshape(-1, hidden_size))


def test_vectors_may_be_a_memory_map(tmp_path):
    table = table_of([make_question(i) for i in range(6)], num_orders=3)
    mapped = np.lib.format.open_memmap(tmp_path / "v.npy", "w+", np.float32, table.vectors.shape)
    mapped[:] = table.vectors
    some = np.array([3, 0])
    np.testing.assert_array_equal(replace(table, vectors=mapped).select(some).hidden, table.hidden[some])


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
    bits = np.array([c == "1" for c in correct])
    assert "".join(str(int(b)) for b in labels_of(bits, "no_gain")) == no_gain
    assert "".join(str(int(b)) for b in labels_of(bits, "correct")) == correct[:-1]
    with pytest.raises(ValueError, match="among no_gain, correct, end, value, got 'solvable'"):
        labels_of(bits, "solvable")
    assert continue_score(np.array([0.25])).tolist() == [0.75]


def test_an_ungradable_answer_is_wrong_and_a_question_without_any_grade_has_no_labels():
    """One meaning for training, replays, reports and pass@k, see :func:`dps.decide.aggregate.has_grade`."""
    questions = [make_question(i) for i in range(5)]
    questions = [
        graded(questions[0], [None] * 8),  # a gold answer that no answer could be compared with
        graded(questions[1], [None] * 8, gold=None),
        graded(questions[2], [True] + [None] * 7, gold=None),  # graded by tests, most of which could not run
        graded(questions[3], [True] * 8, gold=None),
        graded(questions[4], [False] + [None] * 7),
    ]
    table = table_of(questions, ladder=from_ks("power", (2, 4, 8)), aggregator="best_logprob", num_orders=4)
    assert table.graded.tolist() == [True, False, True, True, True] == [has_grade(q) for q in questions]
    for row, question in enumerate(questions):
        for o, order in enumerate(orders_of(question.question_id, 8, 4, 0)):
            first = [[question.trajectories[i] for i in order[:k]] for k in (2, 4, 8)]
            assert table.correct[row, o].tolist() == [bool(answer_of(one, "best_logprob")[1]) for one in first]
    assert table.select(table.graded).question_ids == tuple(q.question_id for q in questions if has_grade(q))


def test_unusable_questions_are_refused():
    question = make_question(4)
    bare = tuple(replace(t, block_entropy=np.full(len(t.block_entropy), np.nan)) for t in question.trajectories)
    for questions, sentence in (
        ([make_question(3, k=6)], "q00003 has 6"),
        ([replace(question, trajectories=bare)], "q00004 has none"),
        ([], "at least one question"),
        ([question, replace(question, prompt_hidden=np.ones(4, np.float32))], r"of one size .* these have \[0, 4\]"),
    ):
        with pytest.raises(InputError, match=sentence):
            table_of(questions)


def test_parts_that_nobody_uses_are_not_made():
    table = table_of([make_question(0)], parts={"scalars"})
    assert (table.hidden.shape, table.embedding.shape, table.prompt.shape) == ((1, 1, 3, 0), (1, 0), (1, 0))


def test_the_ladder_that_is_trained_on_has_a_checkpoint():
    def of(**policy):
        return make_manifest(policy={"name": "power", "family": "fixed", "ladder": ["power 1", "power 3"], **policy})

    assert trained_ladder(of(), "s").ks == (1, 4)
    assert trained_ladder(of(), "s", ["power 2", "power 1"]).ks == (2, 3)
    for manifest, rungs, sentence in (
        (of(family="dynamic"), None, "but s is of the dynamic policy power"),
        (of(ladder=["power 1"]), None, r"below its end, but that of s is \[power 1\]"),
        (of(), ["power 1"], r"but that of data.ladder is \[power 1\]"),
        (of(), ["power 1", "power 4"], "Expected 5 responses of the arm power in s, which has power 4"),
    ):
        with pytest.raises(InputError, match=sentence):
            trained_ladder(manifest, "s", rungs)


def test_three_hundred_questions_take_about_a_second():
    questions = [make_question(i, hidden_size=128, embedding_size=64) for i in range(100)] * 3
    started = time.process_time()
    assert table_of(questions, num_orders=8).num_rows == 7200
    assert time.process_time() - started < 3
