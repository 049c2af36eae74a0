"""The store: exact round trips, and nothing lost or wrong after kills, truncation and flipped bytes."""

import dataclasses
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_store import Decision, Store, StoreError, StoreWriter
from feature_store import store as store_module
from feature_store.columns import COLUMNS, DATASETS
from feature_store.records import not_recorded
from feature_store.segment import column_digest

from ..factories import make_dynamic_question, make_manifest, make_question, make_trajectory

ROOT = Path(__file__).parents[2]


def assert_same(a, b):
    """Equal in every field, types and NaNs included."""
    assert type(a) is type(b)
    if dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b or (a != a and b != b)


def test_round_trip_of_every_field(tmp_path):
    steps = [None, 1, 5]
    questions = [make_question(i, k=1 + i % 8, steps=steps[i % 3]) for i in range(9)]
    questions.append(make_dynamic_question(9, ks=(2, 4, 6), steps=3))
    writer = StoreWriter.open(tmp_path, make_manifest())
    writer.commit(questions[5:])
    writer.commit(questions[:5], writer="w1")
    store = Store.open(tmp_path)
    assert_same(tuple(store), tuple(questions))
    assert store.manifest == make_manifest()
    assert store.question_ids == [q.question_id for q in questions]
    assert len(store) == 10
    assert_same(tuple(store.read(["q00007", "q00002"])), (questions[7], questions[2]))
    assert store.verify() == []


text = st.text(max_size=30)
odd_text = st.one_of(text, st.sampled_from(["", "\x00", "a\x00b", "\ud800", "é\u2028\n", "\U0001f600"]))
numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(
    st.lists(
        st.tuples(
            odd_text, st.one_of(st.none(), odd_text), st.sampled_from([True, False, None]), numbers, st.integers(0, 3)
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([0, 3]),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_of_odd_values(tmp_path_factory, rows, size):
    questions = []
    for number, (words, maybe, flag, value, k) in enumerate(rows):
        trajectories = tuple(
            dataclasses.replace(
                make_trajectory(i, hidden_size=size, num_tokens=1 + i),
                text=words,
                answer=maybe,
                correct=flag,
                base_logprob=value,
                block_entropy=np.full(1, np.nan),
            )
            for i in range(k)
        )
        questions.append(
            dataclasses.replace(
                make_question(number, k=1, embedding_size=size),
                question=words,
                gold=maybe,
                answer=maybe,
                correct=flag,
                metadata={"words": words.encode("utf-8", "replace").decode(), "none": None},
                trajectories=trajectories,
                decisions=(Decision(2, value),) * (number % 2),
            )
        )
    folder = tmp_path_factory.mktemp("odd")
    StoreWriter.open(folder, make_manifest()).commit(questions)
    assert_same(tuple(Store.open(folder)), tuple(questions))


def test_a_resumed_store_keeps_its_manifest_and_its_questions(tmp_path):
    first = StoreWriter.open(tmp_path, make_manifest())
    first.commit([make_question(0)])
    calibrated = make_manifest(calibration={"seconds_per_token": 9.0, "prefill_seconds_per_token": 9.0, "rows": 1.0})
    again = StoreWriter.open(tmp_path, calibrated)
    assert again.committed == {"q00000"}
    assert again.manifest.calibration == make_manifest().calibration
    again.commit([make_question(1)])
    assert Store.open(tmp_path).question_ids == ["q00000", "q00001"]


def test_another_run_is_refused_and_says_what_differs(tmp_path):
    StoreWriter.open(tmp_path, make_manifest()).commit([make_question(0)])
    other = make_manifest(fingerprint="other", seed=3, sampler={**make_manifest().sampler, "alpha": 2.0})
    with pytest.raises(StoreError, match=r"sampler\.alpha was 4\.0 and is now 2\.0; seed was 0 and is now 3"):
        StoreWriter.open(tmp_path, other)


def test_two_copies_of_a_question_count_once(tmp_path):
    writer = StoreWriter.open(tmp_path, make_manifest())
    writer.commit([make_question(0)], writer="w1")
    writer.commit([make_question(0, k=2), make_question(1)], writer="w0")
    store = Store.open(tmp_path)
    assert [q.k for q in store] == [2, 8]  # w0 comes before w1


def test_segments_are_never_replaced(tmp_path):
    one, two = StoreWriter.open(tmp_path, make_manifest()), StoreWriter.attach(tmp_path)
    paths = [w.commit([make_question(i)]) for i, w in enumerate((one, two, one))]
    assert len(set(paths)) == 3
    assert len(Store.open(tmp_path)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 4}, r"is of version 4 by its manifest\.json, but this program reads version 5"),
        ({"format": "something-else"}, "is not the manifest of a dps-feature-store"),
    ],
)
def test_other_formats_and_versions(tmp_path, change, message):
    StoreWriter.open(tmp_path, make_manifest())
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(StoreError, match=message):
        Store.open(tmp_path)


def test_absent_and_damaged_manifests(tmp_path):
    with pytest.raises(StoreError, match="there is no folder"):
        Store.open(tmp_path / "absent")
    with pytest.raises(StoreError, match=r"has no manifest\.json"):
        Store.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read as JSON"):
        Store.open(tmp_path)


def test_segment_of_another_version(tmp_path):
    segment = StoreWriter.open(tmp_path, make_manifest()).commit([make_question(0)])
    with h5py.File(segment, "r+") as file:
        file.attrs["version"] = 7
    with pytest.raises(StoreError, match=r"segment-w0-000000\.h5 is a segment of version 7"):
        Store.open(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_segment_is_named(tmp_path, share):
    segment = StoreWriter.open(tmp_path, make_manifest()).commit([make_question(i) for i in range(3)])
    content = segment.read_bytes()
    segment.write_bytes(content[: int(share * len(content))])
    with pytest.raises(StoreError, match=rf"{segment} cannot be read: it is truncated or damaged\. Delete it"):
        tuple(Store.open(tmp_path))


def test_a_flipped_byte_is_found_or_harmless(tmp_path):
    """Wherever the byte is: in data, compressed or not, or in HDF5's own structures."""
    questions = [make_question(i, k=4, hidden_size=60) for i in range(2)]
    segment = StoreWriter.open(tmp_path, make_manifest()).commit(questions)
    content = segment.read_bytes()
    with h5py.File(segment) as file:
        assert file["blocks/hidden"].compression == "gzip"
        assert file["tokens/tokens"].compression is None
    found = 0
    for offset in np.random.default_rng(0).integers(0, len(content), 120):
        damaged = bytearray(content)
        damaged[offset] ^= 0xFF
        segment.write_bytes(damaged)
        try:
            problems = Store.open(tmp_path).verify()
        except StoreError as error:
            problems = [str(error)]
        if problems:
            assert str(segment) in problems[0]
            found += 1
        else:  # in a gap of the file: nothing that is read has changed
            assert_same(tuple(Store.open(tmp_path)), tuple(questions))
    assert found > 30


def sign(segment):
    """Give a changed segment the checksums of what it holds now, as whoever writes one can."""
    with h5py.File(segment, "r+") as file:
        digests = [column_digest(name, file[name][...]) for name in sorted(DATASETS)]
        file.attrs["column_sha256"] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
        file.attrs["sha256"] = np.bytes_(hashlib.sha256(b"".join(digests)).hexdigest())


def flip_a_bit_of(segment, name):
    """Change one bit of a dataset's values, wherever they lie in the file."""
    with h5py.File(segment) as file:
        dataset = file[name].id
        offset = dataset.get_offset() or dataset.get_chunk_info(0).byte_offset
    content = bytearray(segment.read_bytes())
    content[offset] ^= 1
    segment.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tokens/tokens", "does not match its checksum"),
        ("blocks/block_entropy", "truncated or damaged"),  # HDF5 notices
        ("trajectories/base_logprob", "truncated or damaged"),
    ],
)
def test_a_flipped_bit_of_data_is_not_served_and_is_named_by_verify(tmp_path, name, message):
    writer = StoreWriter.open(tmp_path, make_manifest())
    writer.commit([make_question(0)], writer="w0")
    segment = writer.commit([make_question(1)], writer="w1")
    flip_a_bit_of(segment, name)
    store = Store.open(tmp_path)
    with pytest.raises(StoreError, match=message):
        tuple(store)
    assert [q.question_id for q in store.read(["q00000"])] == ["q00000"]  # the other segment is whole
    (problem,) = store.verify()
    assert str(segment) in problem
    assert message in problem


def test_a_changed_manifest_is_named(tmp_path):
    StoreWriter.open(tmp_path, make_manifest())
    path = tmp_path / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"seconds_per_token": 0.001', '"seconds_per_token": 0.007'))
    with pytest.raises(StoreError, match=r"manifest\.json does not match its checksum"):
        Store.open(tmp_path)


@pytest.mark.parametrize("name", DATASETS)
def test_a_column_that_does_not_fit_is_refused(tmp_path, name):
    """Every dataset of the layout, one entry too long, of another type, and missing."""
    good = (
        StoreWriter.open(tmp_path, make_manifest())
        .commit([make_question(0, steps=2), make_dynamic_question(1)])
        .read_bytes()
    )

    def longer(file):
        values = file[name][...]
        del file[name]
        file[name] = np.concatenate([values, values[-1:]]) if len(values) else np.zeros(3, values.dtype)

    def other_type(file):
        values = file[name][...]
        del file[name]
        file[name] = values.astype(np.float16)

    def missing(file):
        del file[name]

    for damage in (longer, other_type, missing):
        segment = tmp_path / "segment-w0-000000.h5"
        segment.write_bytes(good)
        with h5py.File(segment, "r+") as file:
            damage(file)
        with pytest.raises(
            StoreError, match=r"w0-000000\.h5 (cannot be read: it is truncated|does not match its checksum)"
        ):
            tuple(Store.open(tmp_path))


def test_string_attributes_of_either_kind_are_read(tmp_path):
    segment = StoreWriter.open(tmp_path, make_manifest()).commit([make_question(0)])
    with h5py.File(segment, "r+") as file:
        for name in ("format", "sha256"):
            file.attrs[name] = file.attrs[name].decode()
    assert Store.open(tmp_path).verify() == []


def test_no_structure_is_without_a_checksum(tmp_path):
    """Of HDF5's own structures only the global heap (signature GCOL) has none, and a flipped bit in it can hang it."""
    segment = StoreWriter.open(tmp_path, make_manifest()).commit([make_question(0)])
    content = segment.read_bytes()
    assert b"GCOL" not in content
    assert b"OHDR" in content  # object headers of HDF5 1.10, which have one


def test_an_attribute_of_another_shape_is_damage(tmp_path):
    segment = StoreWriter.open(tmp_path, make_manifest()).commit([make_question(0)])
    with h5py.File(segment, "r+") as file:
        file.attrs["version"] = [1, 1]
    with pytest.raises(StoreError, match=r"of version \[1 1\]"):
        Store.open(tmp_path)


def test_damaged_ids_are_not_read_as_other_ids(tmp_path):
    segment = StoreWriter.open(tmp_path, make_manifest()).commit([make_question(0), make_question(1)])
    with h5py.File(segment, "r+") as file:
        file["questions/question_id_offset"][1] = -3
    sign(segment)
    with pytest.raises(StoreError, match="damaged"):
        Store.open(tmp_path)


def test_what_the_system_refuses_is_not_called_damage(tmp_path):
    """Whoever cannot open a whole file must not be told to delete it."""
    StoreWriter.open(tmp_path, make_manifest())
    (tmp_path / "segment-w0-000000.h5").mkdir()
    with pytest.raises(StoreError, match=r"cannot be opened \(Is a directory\): check it and its permissions"):
        Store.open(tmp_path)


# -- steps -------------------------------------------------------------------------------------------------------------


# -- values per token, endings -----------------------------------------------------------------------------------------


def with_last(question, **changes):
    """The question with other values in its last trajectory."""
    *others, last = question.trajectories
    return dataclasses.replace(question, trajectories=(*others, dataclasses.replace(last, **changes)))


def test_values_per_token_may_be_left_out(tmp_path):
    none = dict.fromkeys(("token_logprob", "token_entropy", "token_top1"), not_recorded())
    question = with_last(make_question(0, k=3), **none)
    StoreWriter.open(tmp_path, make_manifest()).commit([question])
    (read,) = Store.open(tmp_path)
    assert_same(read, question)
    assert [len(t.token_logprob) > 0 for t in read.trajectories] == [True, True, False]


@pytest.mark.parametrize("name", ["token_logprob", "token_entropy", "token_top1"])
@pytest.mark.parametrize("count", [0, 1])
def test_values_that_are_not_one_per_token_are_refused(tmp_path, name, count):
    writer = StoreWriter.open(tmp_path, make_manifest())
    with pytest.raises(StoreError, match=r"the per-token values of trajectory 1 to be \d+ each, .* or none"):
        writer.commit([with_last(make_question(0, k=2), **{name: np.zeros(count, np.float32)})])
    assert len(Store.open(tmp_path)) == 0


def test_stored_values_that_are_not_one_per_token_are_damage(tmp_path):
    segment = StoreWriter.open(tmp_path, make_manifest()).commit([make_question(0, k=2)])
    with h5py.File(segment, "r+") as file:
        file["trajectories/series_offset"][1] -= 1
    sign(segment)
    with pytest.raises(StoreError, match="truncated or damaged"):
        tuple(Store.open(tmp_path))


def test_log_p_of_tokens_is_never_halved(tmp_path):
    """Float16 ends at 65504 and has three digits; float32 keeps seven."""
    question = make_question(0, k=1)
    exact = np.full(len(question.trajectories[0].tokens), -1e5 - 1 / 128, np.float32)
    StoreWriter.open(tmp_path, make_manifest()).commit([with_last(question, token_logprob=exact)])
    ((read,),) = (q.trajectories for q in Store.open(tmp_path))
    assert_same(read.token_logprob, exact)


def test_an_unknown_ending_is_refused(tmp_path):
    writer = StoreWriter.open(tmp_path, make_manifest())
    with pytest.raises(StoreError, match="one of eos, stop, length, early, got 'bored'"):
        writer.commit([with_last(make_question(0, k=2), ending="bored")])


@pytest.mark.parametrize("number", [-1, 4])
def test_a_stored_ending_without_a_name_is_damage(tmp_path, number):
    segment = StoreWriter.open(tmp_path, make_manifest()).commit([make_question(0, k=2)])
    with h5py.File(segment, "r+") as file:
        file["trajectories/ending"][1] = number
    sign(segment)
    with pytest.raises(StoreError, match="truncated or damaged"):
        tuple(Store.open(tmp_path))


def test_log_p_of_steps_is_never_halved(tmp_path):
    """Differences of a hundredth of a nat at -3000 nats do not survive float16, nor all of their digits float32."""
    question = make_question(0, k=1, steps=4)
    (trajectory,) = question.trajectories
    exact = np.full(len(trajectory.steps.logprob), -3000.0 + 1e-9)
    trajectory = dataclasses.replace(trajectory, steps=dataclasses.replace(trajectory.steps, logprob=exact))
    StoreWriter.open(tmp_path, make_manifest()).commit([dataclasses.replace(question, trajectories=(trajectory,))])
    ((read,),) = (q.trajectories for q in Store.open(tmp_path))
    assert_same(read.steps.logprob, exact)


@pytest.mark.parametrize(("num_questions", "least", "most"), [(1, 21, 21), (8, 6, 10)])
def test_a_step_takes_about_the_bytes_that_the_page_says(tmp_path, num_questions, least, most):
    questions = [make_question(i, steps=10) for i in range(num_questions)]
    segment = StoreWriter.open(tmp_path, make_manifest()).commit(questions)
    with h5py.File(segment) as file:
        stored = sum(column.id.get_storage_size() for column in file["steps"].values())
    assert least <= stored / sum(t.mh_proposed for q in questions for t in q.trajectories) <= most


@pytest.mark.parametrize("wrong", ["proposed", "accepted", "ragged"])
def test_a_trace_that_is_not_of_all_steps_is_refused(tmp_path, wrong):
    question = make_question(0, k=2, steps=3)
    last = question.trajectories[-1]
    changes = {
        "proposed": {"mh_proposed": last.mh_proposed + 1},
        "accepted": {"mh_accepted": last.mh_accepted - 1},
        "ragged": {"steps": dataclasses.replace(last.steps, horizon=last.steps.horizon[1:])},
    }[wrong]
    bad = dataclasses.replace(question, trajectories=(question.trajectories[0], dataclasses.replace(last, **changes)))
    writer = StoreWriter.open(tmp_path, make_manifest())
    with pytest.raises(
        StoreError, match=r"Expected the trace of trajectory 1 to have its .* record every step, or none"
    ):
        writer.commit([bad])
    assert len(Store.open(tmp_path)) == 0


@pytest.mark.parametrize("name", ["trajectories/mh_proposed", "trajectories/mh_accepted", "steps/accepted"])
def test_a_stored_trace_that_does_not_fit_its_counts_is_damage(tmp_path, name):
    segment = StoreWriter.open(tmp_path, make_manifest()).commit([make_question(0, k=2, steps=3)])
    with h5py.File(segment, "r+") as file:
        file[name][0] = 1 - file[name][0] if name == "steps/accepted" else file[name][0] + 1
    sign(segment)
    with pytest.raises(StoreError, match="truncated or damaged"):
        tuple(Store.open(tmp_path))


def test_mixed_sizes_are_refused(tmp_path):
    writer = StoreWriter.open(tmp_path, make_manifest())
    with pytest.raises(StoreError, match="sizes 5, 6"):
        writer.commit([make_question(0, embedding_size=5), make_question(1, embedding_size=6)])
    assert len(Store.open(tmp_path)) == 0
    assert not list(tmp_path.glob("*.tmp"))


def test_an_unwritable_folder_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="choose another output"):
        StoreWriter.open(tmp_path / "file" / "store", make_manifest())


def test_segments_without_a_manifest_are_not_adopted(tmp_path):
    StoreWriter.open(tmp_path, make_manifest()).commit([make_question(0)])
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"holds segments .* but no manifest\.json"):
        StoreWriter.open(tmp_path, make_manifest(fingerprint="other"))
    assert not (tmp_path / "manifest.json").exists()


def test_only_leftovers_of_dead_writers_are_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    StoreWriter.open(tmp_path, make_manifest())
    dead = [tmp_path / f"{name}.{gone.pid}.tmp" for name in ("segment-w0-000000.h5", "manifest.json")]
    alive = tmp_path / f"segment-w1-000000.h5.{os.getppid()}.tmp"
    foreign = tmp_path / "thesis.tmp"
    for path in (*dead, alive, foreign):
        path.write_text("half")
    with pytest.raises(StoreError):
        StoreWriter.open(tmp_path, make_manifest(fingerprint="other"))
    assert all(path.exists() for path in (*dead, alive, foreign))  # a folder that is refused is left as it is
    assert len(Store.open(tmp_path)) == 0  # readers pass over all of them
    StoreWriter.open(tmp_path, make_manifest())
    assert not any(path.exists() for path in dead)
    assert alive.exists()
    assert foreign.exists()


@pytest.mark.parametrize("commits", [False, True])
def test_a_process_that_creates_the_store_first_wins(tmp_path, monkeypatch, commits):
    """The other one comes between this one's look at the folder and its writing."""
    first = make_manifest(calibration={"seconds_per_token": 9.0, "prefill_seconds_per_token": 9.0, "rows": 1.0})
    create = store_module._create

    def too_late(folder, manifest):
        monkeypatch.undo()
        writer = StoreWriter.open(folder, first)
        if commits:
            writer.commit([make_question(0)])
        create(folder, manifest)

    monkeypatch.setattr(store_module, "_create", too_late)
    assert StoreWriter.open(tmp_path, make_manifest()).manifest == first


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    one, two = StoreWriter.open(tmp_path, make_manifest()), StoreWriter.attach(tmp_path)
    (tmp_path / "segment-w0-000001.h5").write_bytes(one.commit([make_question(0)]).read_bytes())
    (tmp_path / "segment-w0-000000.h5").unlink()  # now the number of segments is not the next free one
    assert two.commit([make_question(1)]).name == "segment-w0-000002.h5"
    assert Store.open(tmp_path).question_ids == ["q00000", "q00001"]


def test_a_full_disk_is_a_sentence_and_keeps_what_was_there(tmp_path):
    writer = StoreWriter.open(tmp_path, make_manifest())
    writer.commit([make_question(0)])
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
        with pytest.raises(StoreError, match=r"Cannot write to the store .* \(File too large\): what it held is kept"):
            writer.commit([make_question(1)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert writer.committed == {"q00000"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "segment-w0-000000.h5"]
    writer.commit([make_question(1)])
    assert len(Store.open(tmp_path)) == 2


WRITER = """
import sys
from feature_store import StoreWriter
from tests.factories import make_manifest, make_question
folder, name, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
writer = StoreWriter.open(folder, make_manifest())
for number in range(first, last):
    question = make_question(number, k=2)
    if question.question_id not in writer.committed:
        writer.commit([question], writer=name)
        print(question.question_id, flush=True)
"""


def start_writer(folder, name="w0", first=0, last=100_000):
    """A process that has imported everything and opens the store once its standard input says so."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), name, str(first), str(last)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def go(process):
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A store whose writer was killed with SIGKILL six times, and what it had reported by then."""
    folder, reported = tmp_path_factory.mktemp("killed") / "new" / "store", set()
    for attempt in range(6):
        process = start_writer(folder)
        go(process)
        lines = [process.stdout.readline() for _ in range(4 * attempt)]  # the first time, before anything is reported
        time.sleep(0.007 * attempt)  # then at several moments of a commit
        process.kill()
        reported |= set("".join([*lines, process.stdout.read()]).split())
        process.wait()
        if (folder / "manifest.json").exists():
            assert reported <= set(Store.open(folder).question_ids)
        else:
            assert not reported
    return folder, reported


def test_a_killed_writer_loses_nothing_that_it_reported(killed):
    folder, reported = killed
    store = Store.open(folder)
    assert len(reported) >= 4 * (1 + 2 + 3 + 4 + 5)
    assert reported <= set(store.question_ids)
    # One that was killed between giving the name and saying so may have left one more, each time.
    assert len(store) <= len(reported) + 6
    assert store.verify() == []
    assert_same(tuple(store), tuple(make_question(int(name[1:]), k=2) for name in store.question_ids))


KILLED_AT_A_BYTE = """
import resource, signal, sys
from feature_store import StoreWriter
from tests.factories import make_manifest, make_question
writer = StoreWriter.open(sys.argv[1], make_manifest())
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
writer.commit([make_question(1)])
"""


@pytest.mark.parametrize("byte", [1, 10_000])
def test_a_writer_killed_in_the_middle_of_its_file_leaves_a_whole_store(tmp_path, byte):
    StoreWriter.open(tmp_path, make_manifest()).commit([make_question(0)])
    command = [sys.executable, "-c", KILLED_AT_A_BYTE, str(tmp_path), str(byte)]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGXFSZ
    (half,) = tmp_path.glob("*.tmp")
    assert half.stat().st_size == byte
    store = Store.open(tmp_path)
    assert store.question_ids == ["q00000"]
    assert store.verify() == []
    assert StoreWriter.open(tmp_path, make_manifest()).committed == {"q00000"}
    assert not half.exists()


def test_a_store_resumes_after_kills(killed):
    folder, reported = killed
    writer = StoreWriter.open(folder, make_manifest())
    assert reported <= writer.committed
    assert not list(folder.glob("*.tmp"))
    writer.commit([make_question(99_999)])
    assert "q99999" in Store.open(folder).question_ids


def test_two_processes_create_and_fill_one_store(tmp_path):
    """Both open it at once; their questions overlap, as after a crash."""
    folder = tmp_path / "store"
    processes = [start_writer(folder, f"w{i}", first=8 * i, last=8 * i + 12) for i in range(2)]
    for process in processes:
        go(process)
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    store = Store.open(folder)
    assert_same(tuple(store), tuple(make_question(i, k=2) for i in range(20)))
    assert store.verify() == []
    assert {path.name.split("-")[1] for path in folder.glob("*.h5")} == {"w0", "w1"}
    assert not list(folder.glob("*.tmp"))


def test_the_store_imports_nothing_heavy_and_neither_of_the_other_packages():
    code = "import sys, feature_store; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "pandas", "lightning", "dps", "lightning_modules"} & set(loaded.split())


def test_the_documented_layout_is_enough_to_read_a_store(tmp_path):
    """What docs/store_format.md says, with h5py alone: every field of every record, and the checksum."""
    questions = [make_question(3, k=3, steps=4), make_dynamic_question(4, ks=(2, 4)), make_question(5, k=1, steps=1)]
    questions[2] = dataclasses.replace(questions[2], gold=None, answer=None, correct=None)
    segment = StoreWriter.open(tmp_path, make_manifest()).commit(questions)

    with h5py.File(segment) as f:
        assert f.attrs["format"] == b"dps-feature-store"
        assert f.attrs["version"] == 5
        sha256, columns = f.attrs["sha256"].decode(), f.attrs["column_sha256"].tobytes()
        names = []
        f.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
        data = {name: f[name][...] for name in names}
        units = {name: f[name].attrs["unit"].decode() for name in names if "unit" in f[name].attrs}
    assert units["trajectories/base_logprob"] == "nat"
    assert {units[f"questions/{name}_s"] for name in ("prefill", "embedding", "controller", "latency")} == {"s"}

    def cut(table, column, row):
        start, stop = data[f"{table}/{column}_offset"][row : row + 2]
        return slice(start, stop)

    def text(table, column, row):
        if f"{table}/{column}_present" in data and not data[f"{table}/{column}_present"][row]:
            return None
        return data[f"{table}/{column}"][cut(table, column, row)].tobytes().decode("utf-8", "surrogatepass")

    def row_of(table, row, texts):
        columns = [n.partition("/")[2] for n in data if n.startswith(f"{table}/")]
        plain = [c for c in columns if not c.endswith(("_offset", "_present")) and c not in texts]
        found = {c: data[f"{table}/{c}"][row] for c in plain} | {c: text(table, c, row) for c in texts}
        flags = [name for name in ("correct", "strict_correct") if name in found]
        return found | {name: {1: True, 0: False, -1: None}[int(found[name])] for name in flags}

    def check(found, record, besides):
        assert set(found) | set(besides) == {field.name for field in dataclasses.fields(record)}
        for name, value in found.items():
            np.testing.assert_array_equal(value, getattr(record, name), err_msg=name)

    for row, question in enumerate(questions):
        found = row_of("questions", row, ["question_id", "question", "prompt", "gold", "metadata", "answer"])
        check(found | {"metadata": json.loads(found["metadata"])}, question, ("decisions", "trajectories"))
        asked = cut("questions", "decisions", row)
        decisions = list(zip(*(data[f"decisions/{name}"][asked].tolist() for name in ("k", "p_enough")), strict=True))
        assert decisions == [dataclasses.astuple(d) for d in question.decisions]
        chains = cut("questions", "trajectories", row)
        assert chains.stop - chains.start == question.k
        for number, trajectory in zip(range(chains.start, chains.stop), question.trajectories, strict=True):
            found = row_of("trajectories", number, ["text", "answer", "strict_answer"])
            found["ending"] = {0: "eos", 1: "stop", 2: "length", 3: "early"}[int(found["ending"])]
            found["tokens"] = data["tokens/tokens"][cut("trajectories", "tokens", number)]
            blocks = cut("trajectories", "blocks", number)
            found |= {n.partition("/")[2]: data[n][blocks] for n in data if n.startswith("blocks/")}
            values = cut("trajectories", "series", number)
            found |= {n.partition("/")[2]: data[n][values] for n in data if n.startswith("series/")}
            check(found, trajectory, ("steps",))
            steps = cut("trajectories", "steps", number)
            check({n.partition("/")[2]: data[n][steps] for n in data if n.startswith("steps/")}, trajectory.steps, ())

    of_columns = [
        hashlib.sha256(f"{name}|{data[name].dtype.str}|{data[name].shape}|".encode() + data[name].tobytes()).digest()
        for name in sorted(data)
    ]
    assert b"".join(of_columns) == columns
    assert hashlib.sha256(columns).hexdigest() == sha256


def test_the_example_of_the_page_runs(tmp_path):
    StoreWriter.open(tmp_path, make_manifest()).commit([make_question(0, k=2), make_question(1, k=1)])
    page = (ROOT / "docs" / "store_format.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    run = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True)
    shown = []
    for question in Store.open(tmp_path):
        shown.append(f"{question.question_id} {int(question.correct)}")
        shown += [f"  trajectory {t.index} {t.hidden.shape}" for t in question.trajectories]
    assert run.stdout.splitlines() == shown


def test_every_column_is_documented():
    page = (ROOT / "docs" / "store_format.md").read_text()
    for table, columns in COLUMNS.items():
        assert f"`/{table}`" in page
        for column in columns:
            assert f"`{column.name}`" in page


def test_the_table_of_trajectories(tmp_path):
    questions = [make_question(i, k=2) for i in range(3)]
    StoreWriter.open(tmp_path, make_manifest()).commit(questions)
    frame = Store.open(tmp_path).to_frame()
    assert len(frame) == 6
    assert frame["num_tokens"].tolist() == [len(t.tokens) for q in questions for t in q.trajectories]
    assert frame["question_id"].tolist() == [q.question_id for q in questions for _ in range(2)]
    for name in set(frame) - {"num_tokens", "question_id"}:
        shown = [None if value != value else value for value in frame[name].tolist()]  # pandas shows no text as NaN
        assert shown == [getattr(t, name) for q in questions for t in q.trajectories]
    StoreWriter.open(tmp_path / "empty", make_manifest())
    empty = Store.open(tmp_path / "empty").to_frame()
    assert len(empty) == 0
    assert list(empty) == list(frame)
