"""Several workers make the store that one makes, also where one of them is killed."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from dps.cli import run
from dps.run import committer
from dps.run.committer import Committer, Done
from dps.run.progress_log import PROGRESS, Display
from feature_store import Store
from feature_store.errors import StoreError
from feature_store.tools import damage, verify
from scripts.kill_harvest import reported, same

SETTINGS = (
    "--benchmark.name=arithmetic", "--benchmark.limit=24", "--sampler.block_size=24", "--sampler.max_new_tokens=48",
    "--sampler.num_mh_steps=2", "--compute.rows=16", "--compute.commit_interval_s=0.2", "--k.maximum=4",
    "--compute.threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A harvest by one worker in the calling process."""
    folder = tmp_path_factory.mktemp("alone") / "store"
    assert run(["harvest", f"--output={folder}", *SETTINGS]) == 0
    return Store.open(folder)


def started(folder, *options, segments=0, **settings):
    """Start a harvest, and wait until it has committed something more."""
    command = [sys.executable, "-m", "dps", "harvest", f"--output={folder}", *SETTINGS, *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **settings)
    while process.poll() is None and len(list(folder.glob("segment-w*.h5"))) <= segments:
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()
    return process


def whole(folder, alone):
    assert verify(folder) == []
    assert same(Store.open(folder), alone)


def test_two_workers_make_the_store_of_one_though_one_is_killed(alone, tmp_path):
    process = started(tmp_path, "--compute.workers=2")
    number = int(next(tmp_path.glob("segment-w*.h5")).name.split("-")[1].removeprefix("w"))
    os.kill(worker_of(process.pid, number), signal.SIGKILL)
    error = process.communicate()[1]
    assert process.returncode == 0, error
    assert f"Worker {number} died with exit code -9; its " in error
    whole(tmp_path, alone)


@pytest.mark.slow
def test_a_harvest_that_is_killed_at_any_moment_goes_on_to_the_same_store(alone, tmp_path):
    """Two kills of all its processes at once; scripts/kill_harvest.py does 50."""
    rng = random.Random(0)
    for _ in range(2):
        before = len(list(tmp_path.glob("segment-w*.h5")))
        process = started(tmp_path, "--compute.workers=2", segments=before, start_new_session=True)
        time.sleep(rng.uniform(0, 0.2))
        assert process.poll() is None, process.stderr.read()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert damage(tmp_path) == []
        assert reported(tmp_path) <= len(Store.open(tmp_path)) < 24
    assert run(["harvest", f"--output={tmp_path}", *SETTINGS]) == 0
    whole(tmp_path, alone)


@pytest.mark.slow
def test_where_all_workers_die_the_run_ends_in_a_sentence_and_keeps_what_they_committed(tmp_path):
    process = started(tmp_path, "--compute.workers=2")
    for victim in [worker_of(process.pid, number) for number in (0, 1)]:
        os.kill(victim, signal.SIGKILL)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 3, error
    assert "Traceback" not in error
    assert "\ndps harvest: error: All workers died; what they had committed is kept" in error
    assert damage(tmp_path) == []
    assert 0 < len(Store.open(tmp_path)) < 24


@pytest.mark.slow
def test_three_ray_workers_make_the_store_of_one_though_one_is_killed(alone, tmp_path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    process = started(tmp_path, "--compute.backend=ray", "--compute.workers=3")
    victims = [pid for pid, _, command in processes() if "ray::Worker" in command]
    assert len(victims) == 3
    os.kill(victims[0], signal.SIGKILL)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 0, error
    assert "died; its" in error
    whole(tmp_path, alone)


def test_without_ray_the_backend_is_refused_in_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(["harvest", f"--output={tmp_path / 's'}", "--compute.backend=ray", *SETTINGS]) == 2
    assert "pip install -e '.[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "s" / "manifest.json").exists()


def processes():
    """Every process: its id, its parent's, its command line."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = open(f"/proc/{entry}/stat").read().rsplit(") ", 1)[1].split()  # noqa: SIM115
            command = open(f"/proc/{entry}/cmdline").read()  # noqa: SIM115
        except OSError:
            continue
        found.append((int(entry), int(fields[1]), command))
    return found


def worker_of(parent, number):
    """The process id of a run's worker: children of the fork server, in the order of their start."""
    found = processes()
    server = next(pid for pid, of, command in found if of == parent and "forkserver" in command)
    return sorted(pid for pid, of, _ in found if of == server)[number]


# -- progress ----------------------------------------------------------------------------------------------------------


def progress(folder):
    """The lines of a store's progress log."""
    return [json.loads(line) for line in (folder / PROGRESS).read_text().splitlines()]


def test_the_bar_counts_shared_tokens_once_and_each_log_what_its_policy_is_charged(tmp_path, capsys):
    folders = {name: tmp_path / name for name in ("power", "rule", "plain")}
    for folder in folders.values():
        folder.mkdir()
    done = Done(0, "q0", tokens=(100, 200, 300), correct=True, accepted=1, proposed=2, age_s=1.0)
    with Display("evaluation", [(folder, name, 0) for name, folder in folders.items()], 2, [(0, 1), (2,)]) as display:
        for store, count, gpu_gib in ((1, 1, 3.456), (0, 3, 7.891), (2, 2, 3.5)):  # of two workers
            early = {0: 7, 1: 5, 2: 0}[store]  # cancelled of the question until then
            display.show(replace(done, store=store, tokens=done.tokens[:count], gpu_gib=gpu_gib, cancelled=early))
        display.show(replace(done, question_id="q1", store=0))
    assert display.counts == [2, 1, 1]
    assert [progress(folder)[-1]["tokens"] for folder in folders.values()] == [1207, 105, 300]
    assert [progress(folder)[-1]["gpu_gib"] for folder in folders.values()] == [7.89, 3.46, 3.5]
    said = capsys.readouterr().err
    assert "tokens 1,507" in said  # 100 of both, 500 of the first alone, 300 of another sampler, 600 of the next
    assert "GPU GiB 7.9" in said
    assert "evaluation (power, rule, plain): 4 of 6" in said


def test_the_log_says_what_the_run_spent(alone):
    last = progress(alone.folder)[-1]
    spent = last["spent"]
    assert (spent["workers"], spent["num_generated_tokens"]) == (1, last["tokens"])
    assert 0 < spent["waiting_num_row_steps"] < spent["num_row_steps"]  # 96 chains on 16 rows
    seconds = sum(spent[f"{name}_s"] for name in ("decode", "prefill", "features", "embedding", "grading", "other"))
    assert 0 < seconds < last["elapsed_s"] + 1
    assert min(spent[name] for name in ("decode_s", "prefill_s", "features_s", "embedding_s")) > 0


def test_a_worker_reports_the_memory_of_its_own_gpu(alone, tmp_path, monkeypatch):
    if not torch.cuda.is_available():
        assert progress(alone.folder)[-1]["gpu_gib"] is None
    monkeypatch.setattr(committer, "peak_gib", lambda: 1.5)
    assert run(["harvest", f"--output={tmp_path}", *SETTINGS, "--benchmark.limit=2"]) == 0
    assert progress(tmp_path)[-1]["gpu_gib"] == 1.5


class _Slow:
    """A store that is written when the test says so."""

    def __init__(self, error=None):
        self.go, self.written, self.error = threading.Event(), [], error

    def commit(self, questions, writer):
        assert self.go.wait(10)
        self.written.append([q.question_id for q in questions])
        if self.error is not None:
            raise self.error


@pytest.fixture
def commits(alone, monkeypatch):
    """A committer to a slow store, that store, and the questions that were reported."""
    store, reported = _Slow(), []
    monkeypatch.setattr(committer.StoreWriter, "attach", lambda folder: store)
    return Committer([alone.folder], "w0", 0.0, lambda done: reported.append(done.question_id)), store, reported


def test_sampling_goes_on_while_a_commit_is_written(alone, commits):
    commit, store, reported = commits
    first, second, third = itertools.islice(alone, 3)
    with commit:
        commit.add(0, first, 0)
        commit.add(0, second, None)  # another store still misses it
        commit.look()
        assert (commit.complete, reported, store.written) == ({0: 1}, [], [])
        store.go.set()
        while not reported:
            commit.look()
        assert reported == [first.question_id]
        commit.add(0, third, 0)
    assert store.written[0] == reported[:1]
    assert reported == list(itertools.chain(*store.written)) == [q.question_id for q in (first, second, third)]


def test_a_store_that_cannot_be_written_stops_the_worker_once(alone, commits):
    commit, store, reported = commits
    store.error = StoreError("no room")
    store.go.set()
    first, second = itertools.islice(alone, 2)

    def sample():
        with commit:
            commit.add(0, first, 0)
            while True:
                commit.look()

    with pytest.raises(StoreError, match="no room"):
        sample()
    with pytest.raises(RuntimeError):
        commit.add(0, second, 0)  # it takes nothing more
    assert (store.written, reported) == ([[first.question_id]], [])
