"""Joining segments: no question is lost or changed, whenever it is killed, and memory stays small."""

import errno
import os
import tracemalloc
from dataclasses import replace
from io import BufferedWriter, FileIO

import pytest

from feature_store import Store, StoreError, StoreWriter, joining
from feature_store import store as store_module
from feature_store.index import INDEX
from feature_store.joining import join_segments
from feature_store.tools import verify
from tests.factories import make_manifest, make_question
from tests.feature_store.test_store import assert_same

QUESTIONS = [make_question(number, k=2) for number in range(10)]


def write(folder, batches, writer="w0", **settings):
    store = StoreWriter.open(folder, make_manifest())
    for batch in batches:
        store.commit([make_question(number, **settings) for number in batch], writer=writer)
    return folder


@pytest.fixture
def twice(tmp_path, monkeypatch):
    """Ten questions in small segments, some of them twice, in one case with other content; names sort both ways."""
    monkeypatch.setattr(joining, "MOST_BYTES", 8_000)  # three questions or so
    writer = StoreWriter.open(tmp_path / "store", make_manifest())
    for first in (7, 1, 4):
        writer.commit(QUESTIONS[first : first + 3], writer="w1")
    writer.commit(QUESTIONS[:5], writer="a")  # before what a joining writes
    changed = replace(QUESTIONS[0], question="another")
    for copy in ("aa", "w2"):  # the copy of ``a`` counts
        writer.commit([changed, *QUESTIONS[3:6]], writer=copy)
    return tmp_path / "store"


def killed_in(folder, step):
    """Join in a process that ends, as a kill would end it, before its commit or removal number ``step``; its code."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    left = step

    def counting(work):
        def counted(path, *arguments, **settings):
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return work(path, *arguments, **settings)

        return counted

    store_module.write_once = counting(store_module.write_once)
    joining.Path.unlink = counting(joining.Path.unlink)  # of temporary files, too: a kill between file and name
    join_segments(folder)
    os._exit(0)


def test_a_joining_that_is_killed_anywhere_loses_and_changes_nothing(twice, tmp_path):
    before = tuple(Store.open(twice))
    assert_same(before, tuple(QUESTIONS))
    for step in range(100):
        folder = tmp_path / str(step)
        os.system(f"cp -r {twice} {folder}")
        code = killed_in(folder, step)
        assert_same(tuple(Store.open(folder)), before)
        assert verify(folder) == []
        _, after = join_segments(folder)
        assert_same(tuple(Store.open(folder)), before)
        contents = Store.open(folder).contents
        assert 2 < len(contents) == after < 6
        assert sum(len(content.question_ids) for content in contents.values()) == len(before)  # nothing twice
        if code == 0:
            break
        assert code == 9
    assert step > 2 * after + 6  # a commit has two steps or more; six segments go, and the index


def test_a_joining_that_fails_takes_back_what_it_wrote(twice, monkeypatch):
    before, names = tuple(Store.open(twice)), sorted(os.listdir(twice))
    write_once, left = store_module.write_once, [2]

    def full(path, content):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_once(path, content)

    monkeypatch.setattr(store_module, "write_once", full)
    with pytest.raises(StoreError, match=r"Cannot write to the store .* \(No space left on device\)"):
        join_segments(twice)
    assert sorted(os.listdir(twice)) == names
    assert_same(tuple(Store.open(twice)), before)


@pytest.mark.parametrize("read", [Store.__iter__, Store.scan, Store.by_segment])
@pytest.mark.parametrize("started", [0, 1, 4])
def test_a_store_that_is_open_while_its_segments_are_joined_stays_readable(tmp_path, read, started):
    folder = write(tmp_path / "s", [[5, 0], [1], [4, 2], [3]])
    store = Store.open(folder)
    questions = read(store)
    first = [next(questions).question_id for _ in range(started)]
    join_segments(folder)
    write(folder, [[8, 7], [6]])  # under names that have come free; the open store has what it had
    names = first + [question.question_id for question in questions]
    assert sorted(names) == store.question_ids == [f"q{number:05d}" for number in range(6)]
    (folder / "segment-all-000000.h5").unlink()
    with pytest.raises(StoreError, match=r"segment-\w+-000000.h5 (cannot be opened \(No such file|holds other)"):
        list(read(store))


@pytest.mark.parametrize("size", [1, 2**20])
def test_what_waits_where_there_is_no_room_is_a_sentence(twice, monkeypatch, size):
    before = sorted(os.listdir(twice))
    monkeypatch.setattr(joining, "SpooledTemporaryFile", lambda **_: BufferedWriter(FileIO("/dev/full", "w"), size))
    with pytest.raises(StoreError, match=r"Cannot write a temporary file to .*store \(No space left on device\)"):
        join_segments(twice)
    assert sorted(os.listdir(twice)) == before


def test_new_segments_stay_where_another_joining_relies_on_them(tmp_path, monkeypatch):
    """Which no lock has refused: it has removed the old copies when this one fails."""
    folder, write_once = write(tmp_path / "s", [[0], [1], [2], [3]]), store_module.write_once

    def second_fails(path, content):
        if "all-000001" in path.name:
            with monkeypatch.context() as other:
                other.setattr(joining, "is_small", lambda *_: False)  # it sees the new one as large
                join_segments(folder)
            raise OSError(errno.ENOSPC, "No space left on device")
        write_once(path, content)

    monkeypatch.setattr(store_module, "write_once", second_fails)
    with pytest.raises(StoreError, match="No space left"):
        join_segments(folder, questions=2)
    assert len(Store.open(folder)) == 4


def test_only_small_segments_are_joined_and_only_where_there_are_enough(tmp_path):
    folder = write(tmp_path / "s", [[0, 1, 2], [3], [4], [5]])
    large = (folder / "segment-w0-000000.h5").stat().st_mtime_ns
    (folder / INDEX).write_text("of segments that go")
    assert join_segments(folder, least=4, questions=4) == (4, 4)
    assert join_segments(folder, least=3, questions=4) == (4, 2)
    assert sorted(os.listdir(folder)) == ["manifest.json", "segment-all-000000.h5", "segment-w0-000000.h5"]
    assert (folder / "segment-w0-000000.h5").stat().st_mtime_ns == large
    write(folder, [[6]])
    assert join_segments(folder, questions=4) == (3, 3)  # a single small one stays
    assert Store.open(folder).question_ids == [f"q{number:05d}" for number in range(7)]


def test_memory_is_bounded_by_bytes_and_not_by_questions(tmp_path, monkeypatch):
    """16 MB of hidden states in segments whose questions come from the whole range of ids."""
    monkeypatch.setattr(joining, "MOST_BYTES", 2**20)
    monkeypatch.setattr(joining, "_HELD", 2 * 2**20)
    spread = [[number, number + 20, number + 40] for number in range(20)]
    folder = write(tmp_path / "s", spread, k=8, hidden_size=3500)
    before = Store.open(folder)
    total = sum(t.hidden.nbytes for q in before for t in q.trajectories)
    reads, read = [], Store.read_counting
    monkeypatch.setattr(Store, "read_counting", lambda store, path, *how: reads.append(path) or read(store, path, *how))
    tracemalloc.start()
    join_segments(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6 * total
    assert sorted(reads) == list(before.contents)  # each once, whatever the order
    assert {path.suffix for path in folder.iterdir()} == {".json", ".h5"}  # no file of those that waited
    assert verify(folder) == []
    joined = Store.open(folder)
    for one, path in zip(map(joined.read_counting, joined.contents), joined.contents, strict=True):
        questions = list(one)
        size = sum(t.hidden.nbytes for q in questions for t in q.trajectories)
        assert size <= 2**20 or len(questions) == 1, path
    assert joined.question_ids == [name for content in joined.contents.values() for name in content.question_ids]
    for question in joined:
        assert_same(question, make_question(int(question.question_id[1:]), k=8, hidden_size=3500))
