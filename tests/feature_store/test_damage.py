"""Damaged, changed and hostile stores: opening ends in records or in one sentence, soon and in little memory."""

import hashlib
import json
import pickle
import re
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest

from feature_store import Store, StoreError, StoreWriter
from feature_store.columns import DATASETS
from feature_store.manifest import _encoded
from feature_store.tools import verify
from tests.factories import make_dynamic_question, make_manifest, make_question

SEGMENT = "segment-w0-000000.h5"
DAMAGED = rf"{SEGMENT} cannot be read: it is truncated or damaged\. Delete it; the next run samples"
CHANGED = rf"{SEGMENT} does not match its checksum: it was changed after it was written"


@pytest.fixture
def store(tmp_path):
    writer = StoreWriter.open(tmp_path / "store", make_manifest())
    writer.commit([*(make_question(i, k=2, steps=3) for i in range(3)), make_dynamic_question(3, steps=2)])
    return tmp_path / "store"


def sign(segment):
    """Give a changed segment the checksums of what it holds now, as whoever writes one can."""
    with h5py.File(segment, "r+") as file:
        digests = [
            hashlib.sha256(
                f"{name}|{file[name].dtype.str}|{file[name].shape}|".encode() + file[name][...].tobytes()
            ).digest()
            for name in sorted(DATASETS)
        ]
        file.attrs["column_sha256"] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
        file.attrs["sha256"] = np.bytes_(hashlib.sha256(b"".join(digests)).hexdigest())


def replaced(segment, name, make):
    """Replace a dataset by what ``make`` puts there under the same name."""
    with h5py.File(segment, "r+") as file:
        values = file[name][...]
        del file[name]
        group, _, last = name.rpartition("/")
        make(file[group], last, values)


def entry(name, index, change):
    """A damage: another value in a dataset, with checksums that fit it."""

    def damage(segment):
        with h5py.File(segment, "r+") as file:
            file[name][index] = change(file[name][index])
        sign(segment)

    return damage


def attribute(name, value):
    def damage(segment):
        with h5py.File(segment, "r+") as file:
            file.attrs[name] = value

    return damage


def metadata(text):
    """A damage: the metadata of the first question are this text, with checksums that fit it."""
    encoded = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)

    def damage(segment):
        with h5py.File(segment, "r+") as file:
            for name, values in (("metadata", encoded), ("metadata_offset", np.array([0, *[len(encoded)] * 4]))):
                del file[f"questions/{name}"]
                file[f"questions/{name}"] = values
        sign(segment)

    return damage


def cut(share):
    return lambda segment: segment.write_bytes(segment.read_bytes()[: int(share * segment.stat().st_size)])


def flipped_bit(name):
    """A damage: one bit of a dataset's values, wherever they lie in the file."""

    def damage(segment):
        with h5py.File(segment) as file:
            dataset = file[name].id
            offset = dataset.get_offset() or dataset.get_chunk_info(0).byte_offset
        content = bytearray(segment.read_bytes())
        content[offset] ^= 1
        segment.write_bytes(content)

    return damage


def linked_group(segment):
    with h5py.File(segment, "r+") as file:
        file.move("tokens", "elsewhere")
        file["tokens"] = h5py.SoftLink("/elsewhere")


def folder(segment):
    segment.unlink()
    segment.mkdir()


TEXTS = ("[" * 100_000, "[1]", "7", "null", '{"a": ' * 50_000 + "1" + "}" * 50_000, "9" * 10_000, "{", "\udc80")
SEGMENTS = {
    "version": (attribute("version", 8), rf"{SEGMENT} is a segment of version 8, but this program reads version 7"),
    "versions": (attribute("version", [1, 1]), r"of version \[1 1\]"),
    "format": (attribute("format", np.bytes_("other")), "is not a segment of a dps-feature-store"),
    "folder": (folder, r"cannot be opened \(Is a directory\): check it and its permissions"),  # and may well be whole
    "linked group": (linked_group, "reaches tokens/tokens by a link"),
    "ids": (entry("questions/question_id_offset", 1, lambda v: -3), DAMAGED),
    "values per token": (entry("trajectories/series_offset", 1, lambda v: v - 1), DAMAGED),
    "ending below": (entry("trajectories/ending", 1, lambda v: -1), DAMAGED),
    "ending above": (entry("trajectories/ending", 1, lambda v: 4), DAMAGED),
    "steps proposed": (entry("trajectories/mh_proposed", 0, lambda v: v + 1), DAMAGED),
    "steps accepted": (entry("trajectories/mh_accepted", 0, lambda v: v + 1), DAMAGED),
    "a step accepted": (entry("steps/accepted", 0, lambda v: 1 - v), DAMAGED),
    "bit of tokens": (flipped_bit("tokens/tokens"), CHANGED),
    "bit of entropies": (flipped_bit("blocks/block_entropy"), DAMAGED),  # HDF5 notices
    "bit of log p": (flipped_bit("trajectories/base_logprob"), DAMAGED),
    **{f"cut at {share}": (cut(share), DAMAGED) for share in (0.0, 0.2, 0.5, 0.9, 0.999)},
    **{f"huge {name}": (attribute(name, np.zeros(8000)), rf"attribute {name}") for name in ("format", "version")},
    "huge sha256": (attribute("sha256", np.zeros(8000)), "attribute sha256"),
    **{f"metadata {text[:8]!a}": (metadata(text), DAMAGED) for text in TEXTS},
}


@pytest.mark.parametrize(("damage", "sentence"), SEGMENTS.values(), ids=SEGMENTS)
def test_a_segment_that_is_not_whole_is_named(store, damage, sentence):
    whole = StoreWriter.attach(store).commit([make_question(9)], writer="w1")
    damage(store / SEGMENT)
    with pytest.raises(StoreError, match=sentence):
        list(Store.open(store))
    [problem] = verify(store)  # the other segment is whole
    assert SEGMENT in problem
    (store / SEGMENT).rename(store / "away")
    assert [q.question_id for q in Store.open(store)] == ["q00009"]
    assert whole.exists()


@pytest.mark.parametrize("name", DATASETS)
def test_a_column_that_does_not_fit_is_refused(store, name):
    """Every dataset of the layout, one entry too long (with the right checksums), of another type, and missing."""

    def longer(group, last, values):
        group[last] = np.concatenate([values, values[-1:]]) if len(values) else np.zeros(3, values.dtype)

    def other_type(group, last, values):
        group[last] = values.astype(np.float16)

    good = (store / SEGMENT).read_bytes()
    for make in (longer, other_type, lambda *_: None):
        (store / SEGMENT).write_bytes(good)
        replaced(store / SEGMENT, name, make)
        if make is longer:
            sign(store / SEGMENT)
        with pytest.raises(StoreError, match=DAMAGED):
            list(Store.open(store))


def test_a_flipped_byte_is_noticed_or_harmless(tmp_path):
    """Wherever the byte is: in data, compressed or not, or in HDF5's own structures; for every way of reading."""
    questions = [make_question(i, k=4, hidden_size=60) for i in range(3)]
    segment = StoreWriter.open(tmp_path, make_manifest()).commit(questions)
    content = segment.read_bytes()
    with h5py.File(segment) as file:
        assert file["blocks/hidden"].compression == "gzip"
        assert file["tokens/tokens"].compression is None
    ways = (lambda s: list(s), lambda s: list(s.scan()), lambda s: list(s.scan(hidden=False)))
    noticed = [0, 0, 0]
    expected = [pickle.dumps(read(Store.open(tmp_path))) for read in ways]
    for offset in np.random.default_rng(0).integers(0, len(content), 50):
        damaged = bytearray(content)
        damaged[offset] ^= 0xFF
        segment.write_bytes(damaged)
        for way, read in enumerate(ways):
            try:
                served = pickle.dumps(read(Store.open(tmp_path)))
            except StoreError as error:
                noticed[way] += str(segment) in str(error)
            else:  # in a gap of the file, or in what is not read
                assert served == expected[way]
    assert noticed[0] >= noticed[1] >= noticed[2] > 10


def test_string_attributes_of_either_kind_are_read(store):
    with h5py.File(store / SEGMENT, "r+") as file:
        for name in ("format", "sha256"):
            file.attrs[name] = file.attrs[name].decode()
    assert verify(store) == []


def test_no_structure_is_without_a_checksum(store):
    """Of HDF5's own structures only the global heap (signature GCOL) has none, and a flipped bit in it can hang it."""
    content = (store / SEGMENT).read_bytes()
    assert b"GCOL" not in content
    assert b"OHDR" in content  # object headers of HDF5 1.10, which have one


# -- data that are not in the file -------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["questions/question_id", "trajectories/base_logprob", "tokens/tokens"])
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_data_that_are_not_in_the_file_are_refused(store, name, make):
    replaced(store / SEGMENT, name, make)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StoreError, match=rf"^[^\n]*{SEGMENT} [^\n]*\.$"):
        list(Store.open(store))
    if not name.startswith("tokens/"):  # which a scan does not read
        with pytest.raises(StoreError, match=rf"^[^\n]*{SEGMENT} [^\n]*\.$"):
            list(Store.open(store).scan())
    assert len(verify(store)) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


# -- manifests ---------------------------------------------------------------------------------------------------------

WRONG = json.loads(Path(__file__).with_name("wrong_manifests.json").read_text())
"""Entries of a manifest, and which of them is wrong."""


@pytest.mark.parametrize(("changes", "name"), WRONG, ids=str)
def test_a_manifest_with_entries_of_other_types_is_a_sentence(store, changes, name):
    """The checksum is right, as whoever writes a manifest can make it."""
    content = {**json.loads((store / "manifest.json").read_text()), **changes}
    del content["sha256"]
    (store / "manifest.json").write_bytes(_encoded(content))
    with pytest.raises(StoreError, match=rf"Expected {re.escape(name)} of .*manifest\.json to be .*, got .*\.$"):
        Store.open(store)


def text_of(**changes):
    return lambda text: json.dumps({**json.loads(text), **changes})


CLOCK = ('"seconds_per_token": 0.001', '"seconds_per_token": 0.007')
NO_JSON = r"manifest\.json cannot be read as JSON|is not the manifest of"
MANIFESTS = [
    (text_of(version=4), r"is of version 4 by its manifest\.json, but this program reads version 7"),
    (text_of(format="other"), "is not the manifest of a dps-feature-store"),
    (lambda text: text.replace(*CLOCK), r"manifest\.json does not match its checksum"),
    (lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "seed"}), "lacks seed: it is damaged"),
    *((lambda text, content=content: content, NO_JSON) for content in ("[" * 100_000, '{"a":' * 100_000, "9" * 10_000)),
    *((lambda text, content=content: content, NO_JSON) for content in ("[1]", "null", '"text"', "", "\x00", "{")),
]


@pytest.mark.parametrize(("change", "sentence"), MANIFESTS, ids=range(len(MANIFESTS)))
def test_a_manifest_that_is_none_is_a_sentence(store, change, sentence):
    path = store / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(StoreError, match=sentence):
        Store.open(store)


def test_a_manifest_that_is_huge_or_absent_is_not_read(store):
    with open(store / "manifest.json", "wb") as file:
        file.truncate(10**12)  # takes no room
    with pytest.raises(StoreError, match="cannot be read as JSON"):
        Store.open(store)
    (store / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"has no manifest\.json"):
        Store.open(store)
    with pytest.raises(StoreError, match="there is no folder"):
        Store.open(store / "absent")
