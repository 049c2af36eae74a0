"""Links, pipes and devices in the place of a store's files: nothing outside the store is read or changed."""

import os
import socket

import pytest

from feature_store import Store, StoreError, StoreWriter
from feature_store.files import replace_file, write_once
from feature_store.lock import held
from tests.factories import make_manifest, make_question


@pytest.fixture
def store(tmp_path):
    StoreWriter.open(tmp_path / "store", make_manifest()).commit([make_question(0)])
    return tmp_path / "store"


def by_link(path, tmp_path):
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")


def by_dangling_link(path, tmp_path):
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")


def by_pipe(path, tmp_path):
    path.unlink()
    os.mkfifo(path)


def by_socket(path, tmp_path):
    path.unlink()
    where = os.getcwd()
    os.chdir(path.parent)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(where)


def by_device(path, tmp_path):
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("name", ["manifest.json", "segment-w0-000000.h5"])
@pytest.mark.parametrize("make", [by_link, by_dangling_link, by_pipe, by_socket, by_device])
def test_what_is_no_regular_file_is_not_read(store, tmp_path, name, make):
    make(store / name, tmp_path)
    with pytest.raises(StoreError, match=rf"Expected \S*{name} to be a regular file, but it is a "):
        Store.open(store)


@pytest.mark.parametrize("make", [by_link, by_dangling_link, by_pipe, by_device])
def test_a_lock_that_is_no_regular_file_is_left_alone(store, tmp_path, make):
    (store / "run.lock").write_text("precious")
    make(store / "run.lock", tmp_path)
    with pytest.raises(StoreError, match=r"run\.lock to be a regular file"), held(store):
        pass
    if make is by_link:
        assert (tmp_path / "moved").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
    (store / "run.lock").unlink()
    (tmp_path / "precious").write_text("precious")
    os.link(tmp_path / "precious", store / "run.lock")
    with pytest.raises(StoreError, match="has 2 names"), held(store):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_progress_is_not_written_through_a_link(store, tmp_path):
    from dps.run.progress_log import ProgressLog

    (tmp_path / "precious").write_text("no line end")
    (store / "progress.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match=r"progress\.jsonl to be a regular file"):
        ProgressLog(store, 0, 4)
    (store / "progress.jsonl").unlink()
    os.link(tmp_path / "precious", store / "progress.jsonl")
    with pytest.raises(StoreError, match="has 2 names"):
        ProgressLog(store, 0, 4)
    assert (tmp_path / "precious").read_text() == "no line end"


@pytest.mark.parametrize("write", [write_once, replace_file])
def test_files_are_not_written_through_links(tmp_path, write):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / f"new.{os.getpid()}.tmp").symlink_to(tmp_path / "precious")
    write(tmp_path / "new", b"content")
    assert (tmp_path / "new").read_bytes() == b"content"
    (tmp_path / "old").symlink_to(tmp_path / "precious")
    if write is replace_file:
        write(tmp_path / "old", "a lone surrogate: \ud800")
        assert (tmp_path / "old").read_text() == "a lone surrogate: \\ud800"
    else:
        with pytest.raises(FileExistsError):
            write(tmp_path / "old", b"content")
    assert (tmp_path / "precious").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "precious"]
