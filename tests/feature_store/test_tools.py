import csv
import gzip
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from dps.decide.aggregate import answer_of
from feature_store import Store, StoreError, StoreWriter
from feature_store.lock import LOCK, held
from feature_store.tools import compact, export, info, merge, verify
from tests.factories import make_manifest, make_question
from tests.feature_store.test_store import assert_same


def write(folder, numbers, **changes):
    manifest = replace(make_manifest(**changes), fingerprint=str(sorted(changes)))
    writer = StoreWriter.open(folder, manifest)
    for number in numbers:
        writer.commit([make_question(number)])
    return folder


def dps(*arguments):
    return subprocess.run([sys.executable, "-m", "dps", *map(str, arguments)], capture_output=True, text=True)


def test_info_counts_what_is_there(tmp_path):
    folder = write(tmp_path / "s", range(5))
    questions = [make_question(i) for i in range(5)]
    found = info(folder)
    trajectories = [t for q in questions for t in q.trajectories]
    assert found["questions"] == found["segments"] == 5
    assert found["trajectories"] == found["trajectories_with_features"] == len(trajectories)
    assert found["tokens"] == sum(len(t.tokens) for t in trajectories)
    assert found["generated_tokens"] == sum(t.num_generated_tokens for t in trajectories)
    assert found["acceptance_ratio"] == sum(t.mh_accepted for t in trajectories) / sum(
        t.mh_proposed for t in trajectories
    )
    assert found["right_questions"] == sum(q.correct is True for q in questions)
    assert sum(found["endings"].values()) == len(trajectories)
    assert found["bytes"] == sum(path.stat().st_size for path in folder.glob("*.h5"))
    json.dumps(found)
    StoreWriter.attach(folder).commit([replace(make_question(9), num_cancelled_tokens=70)], writer="b")
    assert info(folder)["cancelled_tokens"] == found["cancelled_tokens"] + 70 == 70


def test_parts_of_a_run_merge_to_the_whole(tmp_path):
    parts = [write(tmp_path / "a", [0, 2, 4]), write(tmp_path / "b", [1, 3]), write(tmp_path / "c", [2, 5])]
    done = []
    found = merge(parts, tmp_path / "all", done.append)
    assert (found.questions, found.repeated, sum(done)) == (6, 1, 6)
    whole = write(tmp_path / "whole", range(6))
    assert_same(tuple(Store.open(tmp_path / "all")), tuple(Store.open(whole)))
    assert verify(tmp_path / "all") == []


def test_stores_that_are_no_parts_of_one_run_are_not_merged(tmp_path):
    one = write(tmp_path / "a", [0])
    with pytest.raises(StoreError, match=r"b is of another run than .*a: seed was 0 and is now 7. Merge parts"):
        merge([one, write(tmp_path / "b", [1], seed=7)], tmp_path / "all")
    writer = StoreWriter.open(tmp_path / "c", Store.open(one).manifest)
    other = make_question(0)
    changed = replace(other.trajectories[0], tokens=other.trajectories[0].tokens[::-1].copy())
    writer.commit([replace(other, trajectories=(changed, *other.trajectories[1:]))])
    with pytest.raises(StoreError, match=r"q00000 has other trajectories in .*c than in .*a"):
        merge([one, tmp_path / "c"], tmp_path / "all2")
    with pytest.raises(StoreError, match="Expected an empty folder"):
        merge([one], tmp_path / "c")
    with pytest.raises(StoreError, match="at least one store"):
        merge([], tmp_path / "none")


def arm(folder, name, numbers=range(3), **changes):
    """A store with two responses of one arm to each question, of a run of its own."""
    policy = {"name": name, "family": "fixed", "ladder": [f"{name} 2"]}
    manifest = make_manifest(policy=policy, arms={name: {"alpha": len(name)}}, **changes)
    writer = StoreWriter.open(folder, replace(manifest, fingerprint=f"{name}{sorted(changes)}"))
    made = [make_question(i, k=2, rng=np.random.default_rng([len(name), i])) for i in numbers]
    writer.commit([replace(q, trajectories=tuple(replace(t, arm=name) for t in q.trajectories)) for q in made])
    return folder


def test_runs_that_differ_in_their_arms_are_joined_by_question(tmp_path):
    def settle(question, aggregator):
        return replace(question, answer=f"{aggregator} of {question.k}")

    stores = [arm(tmp_path / name, name) for name in ("power", "plain", "warm")]
    assert merge(stores, tmp_path / "all", settle=settle) == (3, 0)
    joined = Store.open(tmp_path / "all")
    assert joined.manifest.policy == {
        "name": "harvest",
        "family": "fixed",
        "ladder": ["power 2", "plain 2", "warm 2"],
    }
    assert list(joined.manifest.arms) == ["power", "plain", "warm"]
    for question, *parts in zip(joined, *map(Store.open, stores), strict=True):
        assert [(t.arm, t.index) for t in question.trajectories] == [
            (name, index) for name in joined.manifest.arms for index in range(2)
        ]
        for t, u in zip(question.trajectories, [t for part in parts for t in part.trajectories], strict=True):
            assert_same(replace(t, answer_class=0), replace(u, answer_class=0))
        classes = {}
        numbers = [classes.setdefault(t.answer, len(classes)) for t in question.trajectories]
        assert [t.answer_class for t in question.trajectories] == numbers
        assert question.answer == "majority of 6"
    # A run's parts and another arm at once, and an arm that is added to what was joined before.
    parts = [write_part(tmp_path / f"part{i}", tmp_path / "power", [i, 2]) for i in range(2)]
    assert merge([*parts, stores[1]], tmp_path / "two") == (3, 1)
    assert merge([tmp_path / "two", stores[2]], tmp_path / "three", settle=settle) == (3, 0)
    assert_same(tuple(Store.open(tmp_path / "three")), tuple(joined))


def write_part(folder, of, numbers):
    """A part of a run's store, with some of its questions."""
    store = Store.open(of)
    StoreWriter.open(folder, store.manifest).commit([q for i, q in enumerate(store) if i in numbers])
    return folder


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"seed": 7}, "b is of another run than .*a: seed was 0 and is now 7. Merge parts of one run, or runs that"),
        ({"numbers": [0, 1]}, "1 are in one of them only: .*b lacks q00002"),
        ({"name": "power", "device": "x"}, "q00000 has the response 0 of the arm power in several"),
        ({"name": "power", "numbers": [4], "aggregator": "weighted"}, "aggregator was 'majority'"),
    ],
)
def test_arms_that_do_not_fit_together_are_refused(tmp_path, other, sentence):
    stores = [arm(tmp_path / "a", "power"), arm(tmp_path / "b", **{"name": "plain"} | other)]
    with pytest.raises(StoreError, match=sentence):
        merge(stores, tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_info_says_what_each_arm_has(tmp_path):
    merge([arm(tmp_path / name, name) for name in ("plain", "power")], tmp_path / "all")
    questions = tuple(Store.open(tmp_path / "all"))
    found = info(tmp_path / "all", answer_of)["arms"]
    assert list(found) == ["plain", "power"]
    plain = [[t for t in q.trajectories if t.arm == "plain"] for q in questions]
    assert found["plain"] == {
        "responses_per_question": 2,
        "generated_tokens_per_response": np.mean([t.num_generated_tokens for each in plain for t in each]),
        "accuracy_of_a_response": np.mean([t.correct for each in plain for t in each]),
        "accuracy_of_votes": np.mean([answer_of(each)[1] for each in plain]),
    }
    assert info(tmp_path / "all")["arms"]["plain"]["accuracy_of_votes"] is None
    shown = dps("store", "info", tmp_path / "all").stdout
    table = [line.split() for line in shown.split("arm  ")[1].splitlines()]
    each = found["plain"]
    means = each["generated_tokens_per_response"], 100 * each["accuracy_of_a_response"], 100 * each["accuracy_of_votes"]
    assert [line for line in table if line[:1] == ["plain"]] == [
        ["plain", "2", f"{means[0]:.4g}", *(f"{m:.1f}" for m in means[1:])]
    ]


def test_export_writes_every_scalar(tmp_path):
    folder = write(tmp_path / "s", range(3))
    assert export(folder, tmp_path / "out/scalars.csv") == 24
    with open(tmp_path / "out/scalars.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    frame = Store.open(folder).to_frame()
    assert list(rows[0]) == list(frame.columns)
    assert [row["question_id"] for row in rows] == frame["question_id"].tolist()
    assert [float(row["base_logprob"]) for row in rows] == frame["base_logprob"].tolist()
    answers = [t.strict_answer or "" for q in Store.open(folder) for t in q.trajectories]
    assert [row["strict_answer"] for row in rows] == answers
    assert "" in answers
    export(folder, tmp_path / "scalars.csv.gz")
    packed = (tmp_path / "scalars.csv.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "out/scalars.csv").read_bytes()
    export(folder, tmp_path / "again.csv.gz")
    assert (tmp_path / "again.csv.gz").read_bytes() == packed
    with pytest.raises(StoreError, match=r"ends in .csv, .csv.gz or .parquet, got scalars.txt"):
        export(folder, tmp_path / "scalars.txt")


def test_the_commands(tmp_path):
    parts = [write(tmp_path / "a", [0, 1]), write(tmp_path / "b", [2])]
    shown = json.loads(dps("store", "info", *parts, "--json", "true").stdout)
    assert [one["questions"] for one in shown] == [2, 1]
    merged = dps("store", "merge", *parts, "--output", tmp_path / "all")
    assert merged.stdout.startswith("3 questions, 0 of them in several stores")
    assert json.loads(dps("store", "verify", tmp_path / "all", "--json", "true").stdout) == {str(tmp_path / "all"): []}
    assert dps("store", "export", tmp_path / "all", "--output", tmp_path / "x.csv").stdout.startswith("24 trajectories")
    [segment, *_] = sorted((tmp_path / "a").glob("*.h5"))
    segment.write_bytes(segment.read_bytes()[:-100])
    damaged = dps("store", "verify", *parts)
    assert damaged.returncode == 2
    assert segment.name in damaged.stderr
    assert "b: sound" in damaged.stdout
    for arguments in (["merge", parts[1]], ["export", parts[1]], ["info", tmp_path / "nowhere"]):
        refused = dps("store", *arguments)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), arguments


def test_a_second_run_is_refused_and_a_killed_one_leaves_nothing(tmp_path):
    folder = tmp_path / "run"
    code = (
        "import sys, time; from pathlib import Path; from feature_store.lock import held\n"
        f"with held(Path({str(folder)!r})):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    with (
        pytest.raises(StoreError, match=rf"Another run writes to .*run just now \(process {first.pid} on "),
        held(folder),
    ):
        pass
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    with held(folder):  # nothing is left of the killed one
        pass
    assert (folder / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    with held(folder):
        pass  # it was given back


def test_compaction_keeps_every_question_and_survives_a_kill(tmp_path, monkeypatch):
    folder = write(tmp_path / "s", range(9))
    before = tuple(Store.open(folder))
    unlink = type(folder).unlink

    def killed(path, *arguments, **settings):
        if path.suffix == ".h5":
            raise KeyboardInterrupt
        unlink(path, *arguments, **settings)

    monkeypatch.setattr(type(folder), "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        compact(folder, questions=4)
    monkeypatch.undo()
    assert len(list(folder.glob("*.h5"))) == 9 + 3  # the new ones beside the old ones
    assert_same(tuple(Store.open(folder)), before)
    assert compact(folder, questions=4) == (12, 3)
    assert compact(folder, questions=4) == (3, 3)
    with pytest.raises(StoreError, match="there is no folder"):
        compact(tmp_path / "misspelt")
    assert not (tmp_path / "misspelt").exists()
    assert verify(folder) == []
    assert_same(tuple(Store.open(folder)), before)
    StoreWriter.attach(folder).commit([make_question(20)])
    assert len(Store.open(folder)) == 10
