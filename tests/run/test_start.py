"""The start of a run: what it takes by stage, what is said of it, and that prompts are made once."""

import json
import threading
import time

import pytest

import dps.api
import dps.sampler.open
import dps.start
from dps.cli import run
from dps.model import LanguageModel
from dps.run import ray_pool
from dps.run.progress_log import PROGRESS
from dps.start import Start, current, stage, starting, words

SETTINGS = (
    "--benchmark.name=arithmetic", "--benchmark.limit=3", "--sampler.block_size=8", "--sampler.max_new_tokens=16",
    "--sampler.num_mh_steps=1", "--compute.rows=8", "--k.maximum=2",
)  # fmt: skip


def test_each_second_counts_for_the_innermost_stage(monkeypatch):
    now = 100.0
    monkeypatch.setattr(dps.start.time, "monotonic", lambda: now)
    start = Start(before_s=2.0)
    with start.active():
        now += 1  # in no stage
        with stage("model"):
            now += 4
            with stage("prompts"):
                now += 8
            now += 16
        with stage("workers"):
            now += 32
            start.finish()
            assert start.total_s == 63.0
            with stage("rows"):  # after the first token
                now += 64
            start.finish()  # another worker's
    assert current() is None
    assert start.summary() == {"imports": 2.0, "other": 1.0, "model": 20.0, "prompts": 8.0, "workers": 96.0}
    assert start.total_s == sum(start.summary().values())
    assert words(start.total_s, start.seconds).startswith("first token after 127.0 s: workers 96.0 s, model 20.0 s, ")


def test_only_the_first_command_of_its_process_has_waited_for_the_imports(monkeypatch):
    monkeypatch.setattr(dps.start, "process_age", lambda: 7.0)
    seen = []
    for began in (False, True, False):
        if began:
            dps.start.process_began()
        with starting("harvest"), starting("inner"):
            seen.append(current().before_s)
    assert seen == [0.0, 7.0, 0.0]
    assert not [thread for thread in threading.enumerate() if thread.name == "start"]


def test_a_ray_actor_that_is_not_called_waits():
    start = ray_pool.Worker(0, None, None).start
    time.sleep(0.05)
    with start.active(), stage("model"):
        time.sleep(0.05)
    time.sleep(0.05)
    start.finish()
    assert start.summary().get("other", 0.0) < 0.01
    assert 0.1 <= start.seconds["waiting"] <= start.total_s < 1.0  # not since the process began


def test_all_that_a_question_waits_for_is_said(monkeypatch, capfd):
    monkeypatch.setattr(dps.start, "_SILENT_S", 0.02)
    opened = dps.sampler.open.open_engine.__wrapped__

    def slowly(*given, **settings):
        time.sleep(0.5)
        return opened(*given, **settings)

    monkeypatch.setattr(dps.api, "open_engine", stage("rows")(slowly))
    assert run(["sample", "1+2", "--k.start=1", "--k.maximum=1", "--rows=8"]) == 0
    assert "sample: making the rows" in capfd.readouterr().err.splitlines()


def test_what_lasts_is_said_and_what_does_not_is_not(monkeypatch, capfd):
    monkeypatch.setattr(dps.start, "_SILENT_S", 0.1)
    with starting("harvest"):
        with starting("inner"), stage("prompts"):
            pass
        with stage("model"):
            time.sleep(0.7)
    time.sleep(0.2)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "harvest: loading the model"
    assert lines[1:] == ["harvest: loading the model (0 s so far)"] * (len(lines) - 1)
    assert 1 <= len(lines) <= 3


def test_what_lasts_after_the_first_token_is_sampling(monkeypatch, capfd):
    monkeypatch.setattr(dps.start, "_SILENT_S", 0.1)
    with starting("harvest"), stage("first steps"):
        current().finish()
        time.sleep(0.4)
    assert "harvest: sampling\n" in capfd.readouterr().err


@pytest.mark.parametrize("workers", [1, 2])
def test_a_runs_start_is_measured_by_stage_and_kept(workers, tmp_path, capfd):
    assert run(["harvest", f"--output={tmp_path}", *SETTINGS, f"--compute.workers={workers}"]) == 0
    line = json.loads((tmp_path / PROGRESS).read_text().splitlines()[-1])
    assert line["start_s"] == pytest.approx(sum(line["start"].values()), abs=0.01)
    alone = {"prompts", "rows", "embedder", "first steps"}
    assert {"imports", "model", "identity", "prompts", "clock"} < set(line["start"])
    assert line["start"]["clock"] > 0.25
    if workers == 1:
        assert alone < set(line["start"])
        assert "worker_start" not in line
    else:
        assert alone | {"model"} < set(line["worker_start"])
        assert line["start"]["workers"] > 0
    assert capfd.readouterr().err.count("harvest: first token after ") == 1


def test_prompts_are_tokenized_once_for_all_samplers_of_a_run(tmp_path, monkeypatch):
    calls, encode = [], LanguageModel.encode_all
    monkeypatch.setattr(LanguageModel, "encode_all", lambda self, texts: calls.append(texts) or encode(self, texts))
    policies = ["--policies=[power,plain,lowtemp]", "--budgets={plain: 2, lowtemp: 2}"]
    assert run(["evaluate", f"--output={tmp_path}", *SETTINGS, *policies]) == 0
    assert [len(texts) for texts in calls] == [3]
