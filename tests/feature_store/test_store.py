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
from feature_store.columns import COLUMNS
from feature_store.records import not_recorded

from ..factories import make_dynamic_question, make_manifest, make_question, make_trajectory

ROOT = Path(__file__).parents[2]
SERIES = ("token_logprob", "token_entropy", "token_top1")


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


def with_last(question, **changes):
    """The question with other values in its last trajectory."""
    *others, last = question.trajectories
    return dataclasses.replace(question, trajectories=(*others, dataclasses.replace(last, **changes)))


def test_round_trip_of_every_field(tmp_path):
    steps = [None, 1, 5]
    questions = [make_question(i, k=1 + i % 8, steps=steps[i % 3]) for i in range(9)]
    questions.append(make_dynamic_question(9, ks=(2, 4, 6), steps=3))
    questions[4] = with_last(questions[4], **dict.fromkeys(SERIES, not_recorded()))
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
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_of_odd_values(tmp_path_factory, rows, size):
    questions = []
    for number, (words, maybe, flag, value, k) in enumerate(rows):
        both = {"answer": maybe, "correct": flag}
        chains = [make_trajectory(i, hidden_size=size, num_tokens=1 + i) for i in range(k)]
        odd = {"text": words, "base_logprob": value, "block_entropy": np.full(1, np.nan), **both}
        changes = {
            "question": words,
            "gold": maybe,
            "metadata": {"words": words.encode("utf-8", "replace").decode(), "none": None},
            "trajectories": tuple(dataclasses.replace(t, **odd) for t in chains),
            "decisions": (Decision(2, value),) * (number % 2),
        }
        question = make_question(number, k=1, embedding_size=size)
        questions.append(dataclasses.replace(question, **changes, **both))
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
    with pytest.raises(StoreError, match=r"arms\.power\.alpha was 4\.0 and is now 2\.0; seed was 0 and is now 3"):
        StoreWriter.open(tmp_path, other)


def test_log_p_is_never_halved(tmp_path):
    """Float16 ends at 65504, and has three digits; float32 has seven, too few for the differences of steps."""
    question = make_question(0, k=1, steps=4)
    (trajectory,) = question.trajectories
    of_tokens = np.full(len(trajectory.tokens), -1e5 - 1 / 128, np.float32)
    of_steps = np.full(len(trajectory.steps.logprob), -3000.0 + 1e-9)
    steps = dataclasses.replace(trajectory.steps, logprob=of_steps)
    StoreWriter.open(tmp_path, make_manifest()).commit([with_last(question, token_logprob=of_tokens, steps=steps)])
    ((read,),) = (q.trajectories for q in Store.open(tmp_path))
    assert_same((read.token_logprob, read.steps.logprob), (of_tokens, of_steps))


LAST = make_question(0, k=2, steps=3).trajectories[-1]
COUNTED = "Expected trajectory 1 to have a trace of as many steps and acceptances as it counts, or none"
REFUSED = {
    **{
        f"{count} {name}": ({name: np.zeros(count, np.float32)}, r"as many values in each column of /series, got \d+, ")
        for name in SERIES
        for count in (0, 1)
    },
    "too few values": (
        {name: getattr(LAST, name)[1:] for name in SERIES},
        "Expected trajectory 1 to have one per-token value of a kind for each token, or none",
    ),
    "proposed": ({"mh_proposed": LAST.mh_proposed + 1}, COUNTED),
    "accepted": ({"mh_accepted": LAST.mh_accepted - 1}, COUNTED),
    "ragged": (
        {"steps": dataclasses.replace(LAST.steps, horizon=LAST.steps.horizon[1:])},
        r"Expected trajectory 1 to have as many values in each column of /steps, got 8, 9, 9, 9, 9",
    ),
    "blocks": ({"block_top1": LAST.block_top1[1:]}, "as many values in each column of /blocks"),
    "ending": ({"ending": "bored"}, "Expected trajectory 1 to end in one of eos, stop, length, early"),
    "sizes": ({"hidden": LAST.hidden[:, 1:]}, "Expected vectors of one size in a segment, got sizes 7, 8"),
}


@pytest.mark.parametrize(("changes", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_record_that_does_not_fit_together_is_refused(tmp_path, changes, sentence):
    writer = StoreWriter.open(tmp_path, make_manifest())
    with pytest.raises(StoreError, match=sentence):
        writer.commit([with_last(make_question(0, k=2, steps=3), **changes)])
    assert len(Store.open(tmp_path)) == 0
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(("num_questions", "least", "most"), [(1, 21, 21), (8, 6, 10)])
def test_a_step_takes_about_the_bytes_that_the_page_says(tmp_path, num_questions, least, most):
    questions = [make_question(i, steps=10) for i in range(num_questions)]
    segment = StoreWriter.open(tmp_path, make_manifest()).commit(questions)
    with h5py.File(segment) as file:
        stored = sum(column.id.get_storage_size() for column in file["steps"].values())
    assert least <= stored / sum(t.mh_proposed for q in questions for t in q.trajectories) <= most


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


@pytest.mark.parametrize("links", [True, False])
def test_segments_are_never_replaced(tmp_path, monkeypatch, links):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    one, two = StoreWriter.open(tmp_path, make_manifest()), StoreWriter.attach(tmp_path)
    one.commit([make_question(0)]).rename(tmp_path / "segment-w0-000001.h5")
    # Now the number of segments is not the next free one.
    assert two.commit([make_question(1)]).name == "segment-w0-000002.h5"
    assert one.commit([make_question(2)]).name == "segment-w0-000003.h5"
    assert Store.open(tmp_path).question_ids == ["q00000", "q00001", "q00002"]


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


def test_a_killed_writer_loses_nothing_that_it_reported(tmp_path):
    """SIGKILL at several moments of a commit; the first time before anything is reported."""
    folder, reported = tmp_path / "new" / "store", set()
    for attempt in range(4):
        process = start_writer(folder)
        go(process)
        lines = [process.stdout.readline() for _ in range(4 * attempt)]
        time.sleep(0.011 * attempt)
        process.kill()
        reported |= set("".join([*lines, process.stdout.read()]).split())
        process.wait()
        if (folder / "manifest.json").exists():
            assert reported <= set(Store.open(folder).question_ids)
        else:
            assert not reported
    store = Store.open(folder)
    assert len(reported) >= 4 * (1 + 2 + 3)
    # One that was killed between giving the name and saying so may have left one more, each time.
    assert len(store) <= len(reported) + 4
    assert store.verify() == []
    assert_same(tuple(store), tuple(make_question(int(name[1:]), k=2) for name in store.question_ids))
    writer = StoreWriter.open(folder, make_manifest())
    assert reported <= writer.committed
    assert not list(folder.glob("*.tmp"))
    writer.commit([make_question(99_999)])
    assert "q99999" in Store.open(folder).question_ids


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


def test_two_processes_create_and_fill_one_store(tmp_path):
    """Both open it at once; their questions overlap, as after a crash."""
    folder = tmp_path / "store"
    processes = [start_writer(folder, f"w{i}", first=6 * i, last=6 * i + 9) for i in range(2)]
    for process in processes:
        go(process)
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    store = Store.open(folder)
    assert_same(tuple(store), tuple(make_question(i, k=2) for i in range(15)))
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
        assert f.attrs["version"] == 7
        sha256, columns = f.attrs["sha256"].decode(), f.attrs["column_sha256"].tobytes()
        names = []
        f.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
        data = {name: f[name][...] for name in names}
        units = {name: f[name].attrs["unit"].decode() for name in names if "unit" in f[name].attrs}
    assert units["trajectories/base_logprob"] == "nat"
    assert {units[f"questions/{name}_s"] for name in ("prefill", "embedding", "controller", "latency")} == {"s"}

    def cut(table, column, row):
        return slice(*data[f"{table}/{column}_offset"][row : row + 2])

    def fields_of(table, row, record, *, texts=""):
        """Compare a row with a record: plain columns, texts, and grades; return the names that are left."""
        left = {field.name for field in dataclasses.fields(record)}
        for name in left & {name.partition("/")[2] for name in data if name.startswith(f"{table}/")}:
            value = data[f"{table}/{name}"][row] if name not in texts.split() else None
            if value is None and data.get(f"{table}/{name}_present", np.ones(row + 1))[row]:
                raw = data[f"{table}/{name}"][cut(table, name, row)].tobytes().decode("utf-8", "surrogatepass")
                value = json.loads(raw) if name == "metadata" else raw
            elif name in ("correct", "strict_correct"):
                value = {1: True, 0: False, -1: None}[int(value)]
            elif name == "ending":
                value = ("eos", "stop", "length", "early")[value]
            np.testing.assert_array_equal(value, getattr(record, name), err_msg=name)
            left.remove(name)
        return left

    def arrays_of(table, row, record):
        """Compare a trajectory's rows of a table with a record; return the names of its columns."""
        names = {name.partition("/")[2] for name in data if name.startswith(f"{table}/")}
        for name in names:
            values = data[f"{table}/{name}"][cut("trajectories", table, row)]
            np.testing.assert_array_equal(values, getattr(record, name), err_msg=name)
        return names

    number = 0
    for row, question in enumerate(questions):
        texts = "question_id question prompt gold metadata answer"
        assert fields_of("questions", row, question, texts=texts) == {"decisions", "trajectories"}
        asked = cut("questions", "decisions", row)
        decisions = zip(*(data[f"decisions/{name}"][asked].tolist() for name in ("k", "p_enough")), strict=True)
        assert list(decisions) == [dataclasses.astuple(d) for d in question.decisions]
        assert cut("questions", "trajectories", row) == slice(number, number + question.k)
        for trajectory in question.trajectories:
            left = fields_of("trajectories", number, trajectory, texts="text arm answer strict_answer")
            for table in ("tokens", "series", "blocks"):
                left -= arrays_of(table, number, trajectory)
            assert left == {"steps"}
            steps = {field.name for field in dataclasses.fields(trajectory.steps)}
            assert arrays_of("steps", number, trajectory.steps) == steps
            number += 1

    of_columns = [
        hashlib.sha256(f"{name}|{data[name].dtype.str}|{data[name].shape}|".encode() + data[name].tobytes()).digest()
        for name in sorted(data)
    ]
    assert b"".join(of_columns) == columns
    assert hashlib.sha256(columns).hexdigest() == sha256


def test_the_example_of_the_page_runs(tmp_path):
    store = tmp_path / "runs" / "harvest"
    StoreWriter.open(store, make_manifest()).commit([make_question(0, k=2), make_question(1, k=1)])
    page = (ROOT / "docs" / "store_format.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    run = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True)
    shown = []
    for question in Store.open(store):
        shown.append(f"{question.question_id} {int(question.correct)}")
        shown += [f"  trajectory {t.index} {t.hidden.shape}" for t in question.trajectories]
    assert run.stdout.splitlines() == shown


def test_every_column_is_documented():
    page = (ROOT / "docs" / "store_format.md").read_text()
    for table, columns in COLUMNS.items():
        assert f"`/{table}`" in page
        for column in columns:
            assert f"`{column.name}`" in page


def test_a_response_twice_is_refused(tmp_path):
    writer, question = StoreWriter.open(tmp_path, make_manifest()), make_question(0, k=2)
    writer.commit([with_last(question, arm="plain", index=0)])
    with pytest.raises(StoreError, match="trajectory 0 to be the only one of its arm and index"):
        writer.commit([make_question(1, k=1), with_last(question, index=0)])
