"""The index spares opening segments, and is worth nothing against them."""

import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from feature_store import Store, StoreError, StoreWriter
from feature_store import index as index_module
from feature_store.index import INDEX
from feature_store.manifest import digest_of_entries
from feature_store.tools import compact, verify
from tests.factories import make_manifest, make_question
from tests.feature_store.test_store import assert_same

NAMES = [f"q{number:05d}" for number in range(6)]


@pytest.fixture
def opened(monkeypatch):
    """The names of the segments that were opened for their ids; an index is made for three or more."""
    names, read = [], index_module.read_content

    def reading(path):
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(index_module, "read_content", reading)
    monkeypatch.setattr(index_module, "MANY", 3)
    return names


@pytest.fixture
def store(tmp_path, opened):
    """A folder with three segments of two questions each, and their index."""
    writer = StoreWriter.open(tmp_path / "store", make_manifest())
    for number in range(3):
        writer.commit([make_question(number), make_question(number + 3)])
    assert not (tmp_path / "store" / INDEX).exists()
    Store.open(tmp_path / "store")
    assert (tmp_path / "store" / INDEX).is_file()
    opened.clear()
    return tmp_path / "store"


def rewritten(store, change):
    """Change the index's entries, and sign it as whoever writes one can."""
    content = json.loads((store / INDEX).read_text())
    del content["sha256"]
    change(content)
    (store / INDEX).write_text(json.dumps({**content, "sha256": digest_of_entries(content)}))


def test_an_indexed_store_is_the_same_and_opens_no_segment(store, opened):
    indexed = Store.open(store)
    assert opened == []
    (store / INDEX).unlink()
    plain = Store.open(store)
    assert len(opened) == 3
    assert indexed.contents == plain.contents
    assert indexed.checksum() == plain.checksum()
    assert_same(tuple(indexed), tuple(plain))
    assert [q.question_id for q in indexed.scan()] == [q.question_id for q in plain.scan()]
    assert StoreWriter.attach(store).committed == set(NAMES)
    assert verify(store) == []


def test_only_what_the_index_does_not_know_is_opened(store, opened):
    writer, before = StoreWriter.attach(store), (store / INDEX).read_bytes()
    for number in (6, 7):
        writer.commit([make_question(number)], writer="w1")
    assert len(Store.open(store)) == 8
    assert opened == ["segment-w1-000000.h5", "segment-w1-000001.h5"]
    assert (store / INDEX).read_bytes() == before
    writer.commit([make_question(8)], writer="w1")
    Store.open(store)  # now there are three
    opened.clear()
    assert len(Store.open(store)) == 9
    assert opened == []


@pytest.mark.parametrize("what", ["time", "content", "copied", "absent"])
def test_a_segment_that_is_another_now_is_opened(store, opened, what):
    segment = store / "segment-w0-000001.h5"
    status = segment.stat()
    if what == "time":
        os.utime(segment, ns=(0, status.st_mtime_ns + 1))
    elif what == "content":
        other = StoreWriter.open(store.with_name("other"), make_manifest()).commit([make_question(9)])
        segment.write_bytes(other.read_bytes())
        os.utime(segment, ns=(0, status.st_mtime_ns))
    elif what == "copied":
        os.utime(segment)
    else:
        segment.unlink()
    opened.clear()
    others = ["q00000", "q00002", "q00003", "q00005"]
    assert Store.open(store).question_ids == {"content": [*others, "q00009"], "absent": others}.get(what, NAMES)
    assert opened == [segment.name] * (what != "absent")


def signed(**changes):
    return lambda store: rewritten(store, lambda content: content.update(changes))


def in_entries(change):
    return lambda store: rewritten(store, lambda content: [change(entry) for entry in content["segments"].values()])


def text(make):
    return lambda store: (store / INDEX).write_text(make((store / INDEX).read_text()))


def instead(make):
    def damage(store):
        (store / INDEX).rename(store / "moved")
        make(store / INDEX)

    return damage


DAMAGES = {
    "cut": text(lambda old: old[:-20]),
    "not signed": text(lambda old: old.replace("q00001", "q00009")),
    **{content[:6]: text(lambda old, new=content: new) for content in ("", "[" * 10**5, '{"a":' * 10**5, "9" * 10**4)},
    **{content: text(lambda old, new=content: new) for content in ("null", "[1]", '{"format": []}')},
    "version": signed(version=5),
    "format": signed(format="dps-feature-store"),
    "list": signed(segments=[1]),
    "entries": signed(segments=dict.fromkeys((f"segment-w0-00000{n}.h5" for n in range(3)), "x")),
    "ids": in_entries(lambda entry: entry.update(question_ids=[["q00000"]])),
    "checksum": in_entries(lambda entry: entry.update(sha256="\ud800")),
    "size": in_entries(lambda entry: entry.update(size=None)),
    "link": instead(lambda path: path.symlink_to(path.with_name("moved"))),
    "pipe": instead(os.mkfifo),
    "folder": instead(os.mkdir),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_an_index_that_is_none_is_passed_over_and_made_anew(store, opened, damage):
    damage(store)
    before = (store / "moved").read_bytes() if (store / "moved").exists() else None
    assert Store.open(store).question_ids == NAMES
    assert len(opened) == 3
    opened.clear()
    if (store / INDEX).is_dir():
        return
    assert Store.open(store).question_ids == NAMES
    assert opened == []
    assert not (store / INDEX).is_symlink()
    assert before is None or (store / "moved").read_bytes() == before  # what a link led to


def test_entries_of_other_files_are_passed_over(store):
    segment = StoreWriter.open(store.with_name("other"), make_manifest()).commit([make_question(9)])
    entry = {"size": segment.stat().st_size, "mtime_ns": segment.stat().st_mtime_ns, "sha256": "0" * 64}
    entry["question_ids"] = ["q00009"]
    rewritten(store, lambda content: content["segments"].update({f"../other/{segment.name}": entry}))
    assert Store.open(store).question_ids == NAMES


@pytest.mark.parametrize("names", [["q00001"], ["q00001", "q00004", "q00009"], ["q00004", "q00001"], ["q00001", "x"]])
def test_a_signed_lie_is_found_by_whoever_reads_the_segment(store, names):
    key = "segment-w0-000001.h5"
    rewritten(store, lambda content: content["segments"][key].update(question_ids=names))
    lied = Store.open(store)
    for read in (list, lambda store: list(store.scan())):
        with pytest.raises(StoreError, match=rf"{key} holds other questions than index\.json .*: delete index\.json"):
            read(lied)
    [problem] = verify(store)
    assert key in problem
    (store / INDEX).unlink()
    assert verify(store) == []
    Store.open(store)
    rewritten(store, lambda content: content["segments"][key].update(sha256="0" * 64))
    assert key in verify(store)[0]


def test_a_folder_that_cannot_be_written_is_read_as_before(store, monkeypatch):
    (store / INDEX).unlink()

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(index_module, "replace_file", refuse)
    for _ in range(2):
        assert Store.open(store).question_ids == NAMES
    assert not (store / INDEX).exists()


def test_a_store_that_is_joined_while_it_is_opened_is_opened_again(store, monkeypatch):
    (store / INDEX).unlink()
    read = index_module.read_content

    def first(path):
        monkeypatch.setattr(index_module, "read_content", read)
        compact(store)
        return read(path)

    monkeypatch.setattr(index_module, "read_content", first)
    assert Store.open(store).question_ids == NAMES
    assert not list(store.glob("segment-w*"))


def test_readers_and_writers_at_once_leave_a_right_index(store, monkeypatch):
    monkeypatch.setattr(index_module, "MANY", 1)
    writing = threading.Event()

    def read():
        while not writing.is_set():
            assert set(Store.open(store).question_ids) >= set(NAMES)

    writers = [StoreWriter.attach(store) for _ in range(2)]
    with ThreadPoolExecutor(3) as threads:
        readers = [threads.submit(read) for _ in range(3)]
        for number in range(6, 18):
            writers[number % 2].commit([make_question(number, k=1)], writer=f"w{number % 2}")
        writing.set()
    assert [reader.result() for reader in readers] == [None] * 3
    assert len(Store.open(store)) == 18
    assert verify(store) == []
    assert not list(store.glob("*.tmp"))
