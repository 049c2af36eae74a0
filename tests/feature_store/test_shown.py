"""What a reader sees of a store: tables of pandas, one-line reprs, and a question in a notebook."""

import dataclasses
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

import feature_store.scan
from feature_store import Store, StoreError, StoreWriter, Trajectory
from feature_store.columns import LONG
from tests.factories import make_dynamic_question, make_manifest, make_question, make_trajectory


def test_the_table_of_trajectories(tmp_path):
    questions = [make_question(i, k=2) for i in range(3)]
    StoreWriter.open(tmp_path, make_manifest()).commit(questions)
    frame = Store.open(tmp_path).to_frame()
    assert len(frame) == 6
    assert frame["num_tokens"].tolist() == [len(t.tokens) for q in questions for t in q.trajectories]
    assert frame["top1"].tolist() == [t.block_top1.sum() for q in questions for t in q.trajectories]
    for name in ("question_id", "num_prompt_tokens", "prefill_s"):
        assert frame[name].tolist() == [getattr(q, name) for q in questions for _ in range(2)]
    for name in set(frame) & {field.name for field in dataclasses.fields(questions[0].trajectories[0])}:
        shown = frame[name].astype(object).where(frame[name].notna(), None).tolist()  # pandas shows None in its way
        assert shown == [getattr(t, name) for q in questions for t in q.trajectories]
    assert frame["correct"].mean() == np.mean([t.correct for q in questions for t in q.trajectories])
    StoreWriter.open(tmp_path / "empty", make_manifest())
    for rows in ("trajectories", "questions"):
        empty, full = (Store.open(folder).to_frame(rows) for folder in (tmp_path / "empty", tmp_path))
        assert len(empty) == 0
        assert list(empty) == list(full)
    with pytest.raises(StoreError, match="one of trajectories, questions, got 'arms'"):
        Store.open(tmp_path).to_frame("arms")


def test_the_table_of_questions(tmp_path):
    questions = [make_dynamic_question(1), replace(make_question(0, k=1), correct=None, num_cancelled_tokens=5)]
    StoreWriter.open(tmp_path, make_manifest()).commit(questions)
    frame = Store.open(tmp_path).to_frame("questions")
    assert frame["question_id"].tolist() == ["q00000", "q00001"]
    assert frame["correct"].isna().tolist() == [True, False]
    assert frame["num_decisions"].tolist() == [0, 2]
    assert frame["p_enough"].isna().tolist() == [True, False]
    first = frame.iloc[0]
    [only] = questions[1].trajectories
    assert first["num_sampled_tokens"] == only.num_generated_tokens + 5
    assert first["num_tokens"] == len(only.tokens)
    assert first["compute_s"] == pytest.approx(only.compute_s + 0.001 + 0.002)
    assert frame.iloc[1]["p_enough"] == questions[0].decisions[-1].p_enough
    page = Store.to_frame.__doc__
    for rows in ("trajectories", "questions"):
        shown = Store.open(tmp_path).to_frame(rows)
        units = shown.attrs["units"]
        for name in shown:
            if (ending := name.rpartition("_")[2]) in ("tokens", "s"):
                assert units[name] == ending.replace("tokens", "token"), name
        fields = {field.name for field in dataclasses.fields(Trajectory)} if rows == "trajectories" else set()
        assert [name for name in shown if f"``{name}``" not in page and name not in fields] == []


def test_tables_read_texts_only_where_they_are_asked_for(tmp_path, monkeypatch):
    questions = [make_question(i, k=2) for i in range(2)]
    StoreWriter.open(tmp_path, make_manifest()).commit(questions)
    store, read = Store.open(tmp_path), []
    load = feature_store.scan.load
    monkeypatch.setattr(feature_store.scan, "load", lambda path, names: read.extend(names) or load(path, names))
    bare = [store.to_frame(rows) for rows in ("trajectories", "questions")]
    assert read
    assert not any(name.startswith(LONG) for name in read)
    trajectories, asked = (store.to_frame(rows, text=True) for rows in ("trajectories", "questions"))
    assert trajectories["text"].tolist() == [t.text for q in questions for t in q.trajectories]
    assert asked["question"].tolist() == [q.question for q in questions]
    pd.testing.assert_frame_equal(trajectories[list(bare[0])], bare[0])
    pd.testing.assert_frame_equal(asked[list(bare[1])], bare[1])


def test_a_record_is_one_line():
    question = replace(make_question(3, k=2), question="What\nis " + 30 * "long ")
    shown = repr(question)
    assert len(shown.splitlines()) == 1
    assert len(shown) < 150
    sampled = sum(t.num_generated_tokens for t in question.trajectories)
    assert f"k=2, {sampled:,} tokens sampled" in shown
    trajectory = make_trajectory(1, num_tokens=20, steps=5)
    steps = len(trajectory.steps.accepted)
    assert repr(trajectory.steps) == f"StepTrace({steps} steps, {trajectory.mh_accepted} accepted)"
    assert repr(trajectory) == (
        "Trajectory(power 1: answer='7', correct=True, 20 tokens, 80 sampled, "
        f"{trajectory.mh_accepted} of {steps} steps accepted, ends by stop)"
    )
    assert repr(make_dynamic_question().decisions[0]) == "Decision(k=2, p_enough=0.3)"


def test_a_store_is_one_line(tmp_path):
    StoreWriter.open(tmp_path, make_manifest()).commit([make_question(0)])
    about = "Manifest(harvest of power, made-up, model made-up, seed 0)"
    assert repr(Store.open(tmp_path)) == f"Store({str(tmp_path)!r}: 1 questions, {about})"


class Page(HTMLParser):
    """Which elements a page opens and closes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.add(tag)
        assert all(name == "style" for name, _ in attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_question_in_a_notebook_escapes_what_others_wrote():
    hostile = "</pre><script>alert('1' & \"2\")</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"
    question = make_dynamic_question(1)
    each = [replace(t, text=hostile, answer=hostile, arm="<b>") for t in question.trajectories]
    values = dict.fromkeys(("question", "question_id", "answer"), hostile)
    page = Page(replace(question, trajectories=tuple(each), **values)._repr_html_())
    assert page.open == []
    table = {"table", "thead", "tbody", "tr", "th", "td"}
    assert page.tags == {"div", "p", "b", "span", "details", "summary", "pre"} | table
    assert page.text.count(hostile) == 3 + len({t.answer_class for t in each}) + 2 * len(each)


def test_a_question_in_a_notebook_says_votes_and_decisions():
    right, wrong = (make_trajectory(i, answer="7" if i < 2 else "9", answer_class=i // 2) for i in (0, 2))
    question = make_question(0, k=1)
    base = replace(question, trajectories=(right, replace(right, index=1), wrong), answer="7", correct=True)
    words = " ".join(Page(base._repr_html_()).text.split())
    assert "Answer 7 (right) from 3 responses: 240 tokens sampled, 1.50 s until the answer." in words
    assert "answervotes 7 (right)2 9 (right)1" in words
    assert "p_enough" not in words
    asked = Page(replace(base, decisions=make_dynamic_question(1).decisions, correct=None)._repr_html_())
    assert "kp_enough 20.300 40.400" in " ".join(asked.text.split())
    assert "Answer 7 from" in " ".join(asked.text.split())
    nothing = replace(wrong, answer=None, answer_class=-1, correct=None)
    words = " ".join(Page(replace(base, trajectories=(nothing,), answer=None, correct=None)._repr_html_()).text.split())
    assert "Answer none from 1 responses" in words
