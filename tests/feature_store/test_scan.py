"""A scan gives what features need, in little memory, and never a changed value."""

from dataclasses import fields

import h5py
import numpy as np
import pytest

from feature_store import Store, StoreError, StoreWriter
from feature_store.columns import COLUMNS
from feature_store.scan import scan_segment
from tests.factories import make_manifest, make_question

LEFT_OUT = {"text", "tokens", "steps", *(column.name for column in COLUMNS["series"])}


def content(record, left_out=("trajectories", *LEFT_OUT)):
    """Everything of a question that a scan keeps, comparable."""
    plain = [np.asarray(getattr(record, f.name)).tolist() for f in fields(record) if f.name not in left_out]
    return [*plain, *(content(t) for t in getattr(record, "trajectories", ()))]


def interleaved(folder, count=12, **settings):
    """A store whose segments each hold questions from the whole range of ids."""
    writer = StoreWriter.open(folder, make_manifest())
    questions = [make_question(number, **settings) for number in range(count)]
    for first in range(3):
        writer.commit(questions[first::3][::-1])
    return Store.open(folder), questions


def test_a_scan_gives_every_question_once_with_what_features_need(tmp_path):
    store, questions = interleaved(tmp_path, steps=3)
    scanned = list(store.scan())
    assert [content(q) for q in sorted(scanned, key=lambda q: q.question_id)] == [content(q) for q in questions]
    assert all(len(t.tokens) == len(t.token_top1) == len(t.steps.length) == 0 for q in scanned for t in q.trajectories)
    for short, question in zip(sorted(store.scan(hidden=False), key=lambda q: q.question_id), questions, strict=True):
        for t, whole in zip(short.trajectories, question.trajectories, strict=True):
            assert t.hidden.shape == (len(whole.hidden), 0)
            assert t.block_entropy.tolist() == whole.block_entropy.tolist()


def test_hidden_states_are_read_in_pieces(tmp_path):
    questions = [make_question(i, hidden_size=64) for i in range(9)]
    segment = StoreWriter.open(tmp_path, make_manifest()).commit(questions)
    sizes = [sum(t.hidden.nbytes for t in q.trajectories) for q in questions]
    for piece in (1, max(sizes), 2 * max(sizes), sum(sizes)):
        pieces = {}
        for question, whole in zip(scan_segment(segment, piece=piece), questions, strict=True):
            assert content(question) == content(whole)
            for holder in question.trajectories:
                pieces[id(holder.hidden.base)] = holder.hidden.base
        read = [array.nbytes for array in pieces.values()]
        assert sum(read) == sum(sizes)
        assert max(read) <= max(piece, max(sizes))
    assert len(read) == 1


def test_of_two_copies_the_first_segments_counts(tmp_path):
    writer = StoreWriter.open(tmp_path, make_manifest())
    first, second = make_question(0, rng=np.random.default_rng(1)), make_question(0, rng=np.random.default_rng(2))
    writer.commit([first, make_question(1)], writer="a")
    writer.commit([second, make_question(2)], writer="b")
    found = {q.question_id: q for q in Store.open(tmp_path).scan()}
    assert list(found) == ["q00000", "q00001", "q00002"]
    assert content(found["q00000"]) == content(first) != content(second)
    assert [content(q) for q in Store.open(tmp_path)] == [content(q) for q in found.values()]


def test_the_checksum_follows_the_content(tmp_path):
    store, _ = interleaved(tmp_path / "a")
    again, _ = interleaved(tmp_path / "b")
    assert store.checksum() == again.checksum() == Store.open(tmp_path / "a").checksum()
    StoreWriter.open(tmp_path / "b", make_manifest()).commit([make_question(50)])
    assert Store.open(tmp_path / "b").checksum() != store.checksum()


# -- values that were changed by a program, whose HDF5 checksums are right ---------------------------------------------

READ = (
    "blocks/block_entropy",
    "blocks/hidden",
    "questions/embedding",
    "questions/num_prompt_tokens",
    "questions/question",
    "questions/question_id",
    "trajectories/base_logprob",
    "trajectories/correct",
    "trajectories/num_generated_tokens",
)
"""Columns that training reads."""


def change(segment, name, value=None):
    """Write another value into a column, as any program can; HDF5 makes its own checksums anew."""
    with h5py.File(segment, "r+") as file:
        values = file[name][...]
        flat = values.reshape(-1)
        flat[-1] = value if value is not None else np.nan if values.dtype.kind == "f" else flat[-1] ^ 1
        file[name][...] = values


@pytest.mark.parametrize("name", READ)
def test_a_value_that_a_program_changed_is_not_served(tmp_path, name):
    segment = StoreWriter.open(tmp_path, make_manifest()).commit([make_question(i) for i in range(4)])
    change(segment, name)
    with pytest.raises(StoreError, match=rf"{segment.name} does not match its checksum: it was changed after"):
        list(Store.open(tmp_path).scan())


def test_what_a_scan_does_not_read_is_left_to_verify(tmp_path):
    segment = StoreWriter.open(tmp_path, make_manifest()).commit([make_question(1)])
    change(segment, "tokens/tokens")
    assert len(list(Store.open(tmp_path).scan())) == 1
    (problem,) = Store.open(tmp_path).verify()
    assert "does not match its checksum" in problem
