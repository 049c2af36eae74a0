"""Responses from tables: the same samples as those of the store that exported them, and a sentence for every lack."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from dps.cli import run
from dps.decide.samples import Samples, samples_of
from feature_store import Store, StoreError, StoreWriter
from feature_store.importing import joined_classes, read_responses
from feature_store.tools import export
from tests.factories import make_manifest, make_question

TOTALS = {"power": 3, "plain": 2}


def mixed(number):
    """A question with three power and two plain responses, whose classes are numbered by first appearance."""
    question, seen = make_question(number, k=5), {}
    responses = [
        replace(
            t,
            arm="power" if i < 3 else "plain",
            index=i % 3,
            answer=None if i == number else t.answer,
            answer_class=-1 if i == number else seen.setdefault(t.answer, len(seen)),
            correct=None if i == 4 else t.correct,
        )
        for i, t in enumerate(question.trajectories)
    ]
    return replace(question, trajectories=tuple(responses))


@pytest.fixture
def store(tmp_path):
    ladder = {"name": "harvest", "family": "fixed", "ladder": ["power 3", "plain 2"]}
    StoreWriter.open(tmp_path / "s", make_manifest(policy=ladder)).commit([mixed(i) for i in range(4)])
    return tmp_path / "s"


def questions_file(tmp_path, store):
    lines = [{"id": q.question_id, "question": q.question, "answer": q.gold, **q.metadata} for q in Store.open(store)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return "questions: {name: jsonl, path: questions.jsonl}\n"


def import_it(tmp_path, text, *options):
    (tmp_path / "import.yaml").write_text(text)
    return run(["store", "import", str(tmp_path / "import.yaml"), f"--output={tmp_path / 'imported'}", *options])


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
def test_exported_and_imported_responses_are_the_same_samples(tmp_path, store, ending, capsys):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    export(store, tmp_path / f"all{ending}")
    text = f"records: {{power: all{ending}, plain: all{ending}}}\n" + questions_file(tmp_path, store)
    assert import_it(tmp_path, text) == 0
    assert "4 questions, each with power 3, plain 2" in capsys.readouterr().out
    before, after = (samples_of(Store.open(folder), TOTALS) for folder in (store, tmp_path / "imported"))
    for name in Samples.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=name)
    manifest = Store.open(tmp_path / "imported").manifest
    assert manifest.policy == Store.open(store).manifest.policy
    assert [arm["num_mh_steps"] > 0 for arm in manifest.arms.values()] == [True, False]
    for old, new in zip(Store.open(store), Store.open(tmp_path / "imported"), strict=True):
        assert [(t.ending, t.strict_answer, t.mh_accepted) for t in new.trajectories] == [
            (t.ending, t.strict_answer, t.mh_accepted) for t in old.trajectories
        ]


LEAST = ["question_id,index,num_tokens,answer,correct,num_generated_tokens,base_logprob"]
ROWS = ["a,1,9,7,True,9,-2.5", "a,0,8,,False,8,-1.25", "b,0,5,7,True,5,-1", "b,1,5,NaN,,5,-1"]


def test_the_least_that_a_table_says(tmp_path):
    (tmp_path / "x.csv").write_text("\n".join(LEAST + ROWS))
    assert import_it(tmp_path, "records: {plain: x.csv}") == 0
    first, second = Store.open(tmp_path / "imported")
    one, two = first.trajectories
    assert [(t.index, t.answer, t.answer_class, t.correct) for t in (one, two)] == [
        (0, None, -1, False),
        (1, "7", 0, True),
    ]
    assert (two.base_logprob, two.block_num_tokens.tolist(), two.hidden.shape) == (-2.5, [9], (1, 0))
    assert math.isnan(two.block_entropy[0])
    assert math.isnan(two.block_top1[0])
    assert (first.answer, first.correct, first.question) == ("7", True, "")
    assert (second.trajectories[1].answer, second.trajectories[1].correct) == ("NaN", None)
    frame = Store.open(tmp_path / "imported").to_frame()
    assert frame["num_tokens"].tolist() == [8, 9, 5, 5]
    assert (frame["correct"].mean(), frame["entropy"].isna().all()) == (2 / 3, True)
    assert Store.open(tmp_path / "imported").to_frame("questions")["num_sampled_tokens"].tolist() == [17, 10]


def test_states_of_prompts_come_from_several_files(tmp_path):
    (tmp_path / "x.csv").write_text("\n".join(LEAST + ROWS))
    states = np.random.default_rng(0).normal(size=(2, 3, 2, 4)).astype(np.float16)
    for name, n in (("b", 1), ("a", 0)):
        np.savez(
            tmp_path / f"{name}.npz",
            question_ids=np.array([name]),
            layers=np.array([2, 4, 6]),
            states=states[n : n + 1],
        )
    assert import_it(tmp_path, "records: {plain: x.csv}\nprompt_states: [a.npz, b.npz]") == 0
    imported = Store.open(tmp_path / "imported")
    assert imported.manifest.model["prompt_layers"] == [2, 4, 6]
    for question, expected in zip(imported, states, strict=True):
        np.testing.assert_array_equal(question.prompt_hidden, expected.astype(np.float32).ravel())


@pytest.mark.parametrize(
    ("settings", "states", "sentence"),
    [
        ("prompt_states: [a.npz]", {"layers": [2, 4]}, "finite prompt states of the shape (2, 2, 2, D)"),
        ("prompt_states: [a.npz]", {"question_ids": ["a", "c"]}, "1 have none, such as b"),
        ("prompt_states: [import.yaml]", {}, "it cannot be read"),
        ("prompt_states: [a.npz, b.npz]", {}, "layers [2, 4, 6] in"),
        ("embedder: embedded", {}, "embedder needs the texts of the questions"),
        ("arms: {hot: {temperature: 2}}", {}, "arms.hot is set, but no rung takes it"),
        ("questions: {name: jsonl, path: q.jsonl}", {}, "2 are not there, such as a"),
        ("recrods: 1", {}, "recrods"),
    ],
)
def test_what_does_not_fit_the_tables_is_a_sentence(tmp_path, settings, states, sentence, capsys):
    (tmp_path / "x.csv").write_text("\n".join(LEAST + ROWS))
    (tmp_path / "q.jsonl").write_text('{"question": "What?", "answer": "7"}')
    whole = {"question_ids": ["a", "b"], "layers": [2, 4, 6], "states": np.zeros((2, 3, 2, 4))}
    np.savez(tmp_path / "a.npz", **{name: np.array(value) for name, value in (whole | states).items()})
    np.savez(tmp_path / "b.npz", **{name: np.array(value) for name, value in (whole | {"layers": [2, 4, 5]}).items()})
    assert import_it(tmp_path, f"records: {{plain: x.csv}}\n{settings}") == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([row.rpartition(",")[0] for row in LEAST + ROWS], "lacks the column base_logprob"),
        (LEAST + ROWS + ["b,1,5,7,True,5,-1"], "two rows of question b and index 1"),
        (LEAST + ROWS[:3], "numbers 0 to 1, but b has 0: number"),
        (LEAST + [row.replace(",1,", ",2,") for row in ROWS], "numbers 0 to 1, but a has 0, 2"),
        (LEAST + ROWS[:3] + ["b,1,5,7,True,5,nan"], "a finite number as base_logprob of every response"),
        (LEAST + ROWS[:3] + ["b,1,5,7,True,5,"], "got '' (question b, index 1)"),
        (LEAST + ROWS[:3] + ["b,1,5,7,True,5,-inf"], "got '-inf'"),
        (LEAST + ROWS[:3] + ["b,1,0,7,True,5,-1"], "a whole number of at least 1 as num_tokens"),
        (LEAST + ROWS[:3] + ["b,1,5.5,7,True,5,-1"], "got '5.5'"),
        (LEAST + ROWS[:3] + ["b,1,5,7,perhaps,5,-1"], "True, False or nothing as correct"),
        (LEAST, "has no response of the arm plain"),
        ([LEAST[0] + ",arm", *(row + ",power" for row in ROWS)], "has no response of the arm plain"),
        ([LEAST[0] + ",ending", *(row + ",over" for row in ROWS)], "one of eos, stop, length, early as ending"),
        ([""], "cannot be read as a table"),
        (LEAST + [row.replace("b,", "c,") for row in ROWS], "2 are not of both warm and plain: b is in"),
    ],
)
def test_a_table_that_lacks_something_is_a_sentence(tmp_path, rows, sentence):
    (tmp_path / "x.csv").write_text("\n".join(rows))
    (tmp_path / "warm.csv").write_text("\n".join(LEAST + ROWS))
    with pytest.raises(StoreError) as error:
        read_responses({"warm": tmp_path / "warm.csv", "plain": tmp_path / "x.csv"})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_answers_are_joined_by_text_and_by_who_has_numbered_them():
    answers = ["1/2", "0.5", "0.5", None, "3", "1/2"]
    assert joined_classes(answers, [("a", 4), ("a", 4), ("b", 0), None, ("b", 1), ("b", 2)]) == [0, 0, 0, -1, 1, 0]
    assert joined_classes(answers, [None] * 6) == [0, 1, 1, -1, 2, 0]
    assert joined_classes(["x", "y", "y", "z"], [(0, 0), (0, 1), (1, 0), (1, 0)]) == [0, 1, 1, 1]


def test_files_that_are_no_tables_are_sentences(tmp_path):
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "x.csv.gz").write_bytes(b"no gzip")
    for name, sentence in (("x.txt", "ends in .csv"), ("x.csv.gz", "cannot be read"), ("no.csv", "there is no")):
        with pytest.raises(StoreError, match=sentence):
            read_responses({"plain": tmp_path / name})


def test_text_and_wholly_typed_columns_of_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    columns = LEAST[0].split(",")
    rows = [["a", 0, 9, "7", True, 9, -2.5], ["a", 1, 9, None, None, 9, -2.5]]
    pd.DataFrame(rows, columns=columns).assign(text=["so 7", None]).to_parquet(tmp_path / "x.parquet")
    first, second = read_responses({"plain": tmp_path / "x.parquet"}).of(0)
    assert (first.text, first.answer, first.correct, second.text, second.answer, second.correct) == (
        "so 7",
        "7",
        True,
        "",
        None,
        None,
    )
