"""The store: exact round trips, and nothing lost or wrong after kills, truncation and flipped bytes."""

import dataclasses
import json
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
from feature_store.segment import COLUMNS

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
    questions = [make_question(i, k=1 + i % 8) for i in range(9)] + [make_dynamic_question(9, ks=(2, 4, 6))]
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
        ({"version": 2}, "is of version 2, but this program reads version 1"),
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
    with pytest.raises(StoreError, match=r"segment-w0-000000\.h5"):
        tuple(Store.open(tmp_path))


def test_a_flipped_byte_is_found_or_harmless(tmp_path):
    questions = [make_question(i) for i in range(3)]
    segment = StoreWriter.open(tmp_path, make_manifest()).commit(questions)
    content = segment.read_bytes()
    found = 0
    for offset in np.random.default_rng(0).integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[offset] ^= 0xFF
        segment.write_bytes(damaged)
        try:
            problems = Store.open(tmp_path).verify()
        except StoreError as error:
            problems = [str(error)]
        if problems:
            assert segment.name in problems[0]
            found += 1
        else:  # in a gap of the file: nothing that is read has changed
            assert_same(tuple(Store.open(tmp_path)), tuple(questions))
    assert found > 10


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


WRITER = """
import sys
from feature_store import StoreWriter
from tests.factories import make_manifest, make_question
writer = StoreWriter.open(sys.argv[1], make_manifest())
for number in range(100_000):
    name = make_question(number).question_id
    if name not in writer.committed:
        writer.commit([make_question(number)])
        print(name, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_reported(tmp_path):
    reported = set()
    for attempt in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        first = process.stdout.readline()
        time.sleep(0.02 + 0.037 * attempt)
        process.kill()
        reported |= set((first + process.stdout.read()).split())
        process.wait()
        store = Store.open(tmp_path)
        assert reported <= set(store.question_ids)
        assert store.verify() == []
    assert len(reported) > 20
    StoreWriter.open(tmp_path, make_manifest())
    assert not list(tmp_path.glob("*.tmp"))


def test_the_documented_layout_is_enough_to_read_a_store(tmp_path):
    """What docs/store_format.md says, with h5py alone."""
    question = make_dynamic_question(4, ks=(2, 4))
    segment = StoreWriter.open(tmp_path, make_manifest()).commit([make_question(3), question])
    with h5py.File(segment) as f:
        assert f.attrs["format"] == "dps-feature-store"
        assert f.attrs["version"] == 1
        row = 1
        start, stop = f["questions/question_id_offset"][row : row + 2]
        assert bytes(f["questions/question_id"][start:stop]).decode() == question.question_id
        t0, t1 = f["questions/trajectories_offset"][row : row + 2]
        assert t1 - t0 == question.k
        last = t1 - 1
        n0, n1 = f["trajectories/tokens_offset"][last : last + 2]
        np.testing.assert_array_equal(f["tokens/tokens"][n0:n1], question.trajectories[-1].tokens)
        b0, b1 = f["trajectories/blocks_offset"][last : last + 2]
        np.testing.assert_array_equal(f["blocks/hidden"][b0:b1], question.trajectories[-1].hidden)
        assert f["blocks/hidden"].dtype == np.float32
        assert f["trajectories/base_logprob"].dtype == np.float64
        assert f["trajectories/base_logprob"].attrs["unit"] == "nat"
        d0, d1 = f["questions/decisions_offset"][row : row + 2]
        assert f["decisions/k"][d0:d1].tolist() == [d.k for d in question.decisions]


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
