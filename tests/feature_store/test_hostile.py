"""Stores that somebody else made: whatever is in them, opening ends in records or in one sentence, soon and in little
memory, and nothing outside the store is read or changed."""

import json
import os
import resource
import socket

import h5py
import numpy as np
import pytest

from feature_store import Store, StoreError, StoreWriter
from feature_store.files import replace_file, write_once
from feature_store.lock import held
from feature_store.manifest import _encoded
from feature_store.tools import verify
from tests.factories import make_manifest, make_question
from tests.feature_store.test_store import sign


@pytest.fixture
def store(tmp_path):
    StoreWriter.open(tmp_path / "store", make_manifest()).commit([make_question(i, steps=5) for i in range(4)])
    return tmp_path / "store"


def segment(store):
    return store / "segment-w0-000000.h5"


def replaced(file, name, make):
    """Replace a dataset by what ``make`` puts there under the same name."""
    values = file[name][...]
    del file[name]
    group, _, last = name.rpartition("/")
    make(file[group], last, values)


def external(group, name, values):
    group.create_dataset(name, values.shape, values.dtype, external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])


def virtual(group, name, values):
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "data", values.shape)
    group.create_virtual_dataset(name, layout)


def soft_link(group, name, values):
    group["elsewhere"] = values
    group[name] = h5py.SoftLink(f"{group.name}/elsewhere")


def external_link(group, name, values):
    group[name] = h5py.ExternalLink("/tmp/other.h5", "/data")


def huge(group, name, values):
    group.create_dataset(name, (10**12, *values.shape[1:]), values.dtype)


def huge_in_chunks(group, name, values):
    group.create_dataset(name, (10**12, *values.shape[1:]), values.dtype, chunks=(1024, *values.shape[1:]))


def huge_chunk(group, name, values):
    shape = (2**28, *values.shape[1:])
    group.create_dataset(name, values.shape, values.dtype, chunks=shape, maxshape=(None, *values.shape[1:]))


def bomb(group, name, values):
    """Zeros packed twice: a thousand times a thousand to one."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((2**22,))
    plist.set_deflate(9)
    plist.set_filter(h5py.h5z.FILTER_DEFLATE, h5py.h5z.FLAG_OPTIONAL, (9,))
    space = h5py.h5s.create_simple((2**24,))
    made = h5py.h5d.create(group.id, name.encode(), h5py.h5t.py_create(values.dtype), space, plist)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros(2**24, values.dtype))


def other_filter(group, name, values):
    group.create_dataset(name, data=np.resize(values, 4096), chunks=(1024,), compression="lzf")


MAKERS = (external, virtual, soft_link, external_link, huge, huge_in_chunks, huge_chunk, bomb, other_filter)
PLACES = ("questions/question_id", "trajectories/base_logprob", "tokens/tokens", "trajectories/steps_offset")


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_data_that_are_not_in_the_file_are_refused(store, name, make):
    with h5py.File(segment(store), "r+") as file:
        replaced(file, name, make)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StoreError, match=r"^[^\n]*segment-w0-000000\.h5 [^\n]*\.$"):
        list(Store.open(store))
    if not name.startswith(("tokens/", "trajectories/steps")):  # which a scan does not read
        with pytest.raises(StoreError, match=r"^[^\n]*segment-w0-000000\.h5 [^\n]*\.$"):
            list(Store.open(store).scan())
    assert len(verify(store)) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


def test_a_group_that_is_a_link_is_refused(store):
    with h5py.File(segment(store), "r+") as file:
        file.move("tokens", "elsewhere")
        file["tokens"] = h5py.SoftLink("/elsewhere")
    with pytest.raises(StoreError, match="reaches tokens/tokens by a link"):
        list(Store.open(store))


@pytest.mark.parametrize("name", ["format", "version", "sha256"])
def test_an_attribute_that_is_huge_is_refused(store, name):
    with h5py.File(segment(store), "r+") as file:
        file.attrs[name] = np.zeros(8000)
    with pytest.raises(StoreError, match=rf"attribute {name}|damaged"):
        list(Store.open(store))


METADATA = ("[" * 100_000, "[1]", "7", "null", '{"a": ' * 50_000 + "1" + "}" * 50_000, "9" * 10_000, "{", "\udc80")


@pytest.mark.parametrize("text", METADATA, ids=lambda text: text[:8])
def test_metadata_that_are_no_object_are_damage(store, text):
    encoded = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    with h5py.File(segment(store), "r+") as file:
        for name, values in (("metadata", encoded), ("metadata_offset", np.array([0, *[len(encoded)] * 4]))):
            del file[f"questions/{name}"]
            file[f"questions/{name}"] = values
    sign(segment(store))
    with pytest.raises(StoreError, match="truncated or damaged"):
        list(Store.open(store))


# -- files -------------------------------------------------------------------------------------------------------------


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


def test_a_lock_with_a_second_name_is_left_alone(store, tmp_path):
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


# -- manifests ---------------------------------------------------------------------------------------------------------


def changed_manifest(store, **changes):
    """Change fields of a manifest, and its checksum with them."""
    content = {**json.loads((store / "manifest.json").read_text()), **changes}
    content.pop("sha256")
    (store / "manifest.json").write_bytes(_encoded(content))


WRONG = [
    {"kind": 7},
    {"kind": None},
    {"policy": "power"},
    {"policy": {}},
    {"policy": {"name": 7}},
    {"policy": {"name": "power", "start": "2"}},
    {"policy": {"name": "power", "maximum": 10**9}},
    {"policy": {"name": "power", "maximum": 0}},
    {"policy": {"name": "power", "step": 1.5}},
    {"policy": {"name": "plain", "ks": 8}},
    {"policy": {"name": "plain", "ks": []}},
    {"policy": {"name": "plain", "ks": ["8"]}},
    {"policy": {"name": "plain", "ks": [True]}},
    {"aggregator": ["majority"]},
    {"seed": "0"},
    {"seed": 0.5},
    {"seed": True},
    {"model": None},
    {"model": {"name": 7}},
    {"benchmark": []},
    {"benchmark": {"name": {}}},
    {"sampler": "fast"},
    {"calibration": {"seconds_per_token": "fast"}},
    {"calibration": {"seconds_per_token": -1}},
    {"calibration": {"seconds_per_token": float("nan")}},
    {"calibration": {"rows": [1]}},
    {"config": 1},
    {"fingerprint": None},
    {"software": ["torch"]},
]


@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_a_manifest_with_fields_of_other_types_is_a_sentence(store, changes):
    changed_manifest(store, **changes)
    field = next(iter(changes))
    with pytest.raises(StoreError, match=rf"manifest\.json[^\n]*{field}|{field}[^\n]*manifest\.json"):
        Store.open(store)


CONTENTS = ("[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "[1]", "null", '"text"', "", "\x00", "{" + " " * 10**6)


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: repr(content[:8]))
def test_a_manifest_that_is_none_is_a_sentence(store, content):
    (store / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match=r"cannot be read as JSON|is not the manifest of"):
        Store.open(store)


def test_a_manifest_that_is_huge_is_not_read(store):
    with open(store / "manifest.json", "wb") as file:
        file.truncate(10**12)  # takes no room
    with pytest.raises(StoreError, match="cannot be read as JSON"):
        Store.open(store)
