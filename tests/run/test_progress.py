"""The progress of a run: a bar on a terminal, two lines elsewhere, and the log in each store's folder."""

import json
import os
import pty
import re
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from dps import extras
from dps.cli import run
from dps.decide import KRange
from dps.run.committer import Died, Done
from dps.run.pool import reclaim
from dps.run.progress import Progress, format_rate, format_seconds, track
from dps.run.progress_log import PROGRESS, Display, ProgressLog
from dps.run.worker import StoreTask
from dps.sampler.settings import SamplerConfig
from feature_store import Store
from tests.analysis.evaluations import write_store
from tests.factories import make_manifest, make_question

SCRIPT = """
import sys, time
from dps.run.progress import track
with track("harvest [bold]", 5) as progress:
    for i in range(5):
        time.sleep(0.12)
        progress.advance()
        progress.note(accuracy=0.25 * i, k=2)
print("result")
"""


def test_elsewhere_than_on_a_terminal_there_are_two_lines(capsys):
    with track("harvest", 300) as progress:
        assert capsys.readouterr().err == "harvest: 300 to do\n"
        for _ in range(300):
            progress.advance()
        progress.note(tokens=12345, accuracy=0.61237)
        progress.note(accuracy=0.5)
        assert capsys.readouterr() == ("", "")
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"harvest: 300 of 300 in \d+\.\d s, [\d.]+/s, tokens 12,345, accuracy 0\.5\n", output.err)


def test_elsewhere_long_work_says_now_and_then_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(Progress, "elapsed_s", property(lambda progress: float(progress.done - 1)))
    with track("harvest", 10_000) as progress:
        for _ in range(5000):
            progress.advance()
    lines = capsys.readouterr().err.splitlines()[1:-1]
    assert [int(line.split()[1]) for line in lines[:6]] == [11, 41, 161, 641, 1241, 1841]
    assert lines[1] == "harvest: 41 of 10000 in 40 s, 1.0/s"


def test_broken_off_work_says_how_far_it_came(capsys):
    def work():
        with track("harvest", 10) as progress:
            progress.advance(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert "harvest: 3 of 10 in" in capsys.readouterr().err


def test_on_a_terminal_there_is_a_bar():
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    shown = []

    def read():
        while True:
            try:
                chunk = os.read(ours, 4096)
            except OSError:  # how Linux says that the other side is closed
                return
            if not chunk:
                return
            shown.append(chunk)

    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment
    )
    os.close(theirs)
    reader = threading.Thread(target=read)
    reader.start()
    output, _ = process.communicate(timeout=60)
    reader.join(timeout=60)
    os.close(ours)
    assert (process.returncode, output) == (0, "result\n")  # it goes where it is sent, not to the terminal
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(shown).decode().replace("\r", "\n"))
    assert "harvest [bold]" in text
    assert re.search(r"[0-4]/5 .*/s", text)
    assert re.search(r"5/5 +\d\.\d/s +0:00:0\d +left", text)
    assert "accuracy 1, k 2" in text
    assert "to do" not in text


def test_times_and_rates_are_read_by_persons(monkeypatch):
    times = {0: "0.0 s", 9.94: "9.9 s", 9.96: "10 s", 59.6: "1:00 min", 185: "3:05 min", 7385: "2:03:05 h"}
    assert {seconds: format_seconds(seconds) for seconds in times} == times
    assert (format_rate(12.34), format_rate(0.05)) == ("12.3/s", "3.0/min")
    now = 100.0
    monkeypatch.setattr("dps.run.progress.time.monotonic", lambda: now)
    progress = Progress("x", 10)
    assert progress.per_second == 0
    now = 102.0
    progress.advance(4)
    assert (progress.done, progress.elapsed_s, progress.per_second) == (4, 2, 2)


def done(age_s=0.0):
    return Done(0, "q", tokens=(60, 40), correct=True, accepted=1, proposed=4, age_s=age_s)


def lines_of(folder):
    return [json.loads(line) for line in (folder / PROGRESS).read_text().splitlines()]


def test_the_line_and_the_log_say_how_far_the_grading_is_behind(tmp_path, monkeypatch):
    """Each worker says how far it is, what a dead one said is over; the line says nothing once all have caught up."""
    monkeypatch.setattr("dps.run.progress_log._EVERY_S", 0.0)
    reports = [(1, 1000, "grading 1,000 questions behind"), (0, 12, "grading 1,012 questions behind")]
    reports += [(1, 0, "grading 12 questions behind"), (0, 1, "grading 1 question behind"), (0, 0, "accepted 25%")]
    reports += [(2, 7, "grading 7 questions behind"), (0, 0, "accepted 25%")]
    with Display("evaluation", [(tmp_path, "power", 0)], 7, [(0,)]) as display:
        for number, (worker, behind, said) in enumerate(reports):
            if number == 6:
                display.show(Died(2))
            display.show(replace(done(), question_id=f"q{number}", worker=worker, behind=behind))
            assert display._bar.notes().endswith(said)
    assert [line["grading_behind"] for line in lines_of(tmp_path)] == [1000, 1012, 12, 1, 0, 7, 0]


def test_what_a_dead_worker_had_committed_is_reported_as_its_own(tmp_path):
    folder = write_store(tmp_path / "store", make_manifest(), [make_question(0), make_question(1)])
    first, _ = Store.open(folder).question_ids
    [found] = reclaim(
        3, [(0, first), (0, "elsewhere")], [StoreTask(folder, {"power": SamplerConfig()}, KRange().ladder())]
    )
    assert (found.question_id, found.worker, found.store) == (first, 3, 0)


def test_the_log_says_how_far_a_store_is(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("dps.run.progress.time.monotonic", lambda: now[0])
    with ProgressLog(tmp_path, before=10, total=30) as log:
        for _ in range(10):
            now[0] += 0.4
            log.add(done())
            log.write()
    lines = lines_of(tmp_path)
    assert [line["questions"] for line in lines] == [11, 14, 17, 20]
    assert [line["elapsed_s"] for line in lines] == [0.4, 1.6, 2.8, 4.0]
    assert {name: lines[-1][name] for name in ("total", "questions_per_min", "left_s", "tokens", "mean_k")} == {
        "total": 30, "questions_per_min": 150.0, "left_s": 4.0, "tokens": 1000, "mean_k": 2.0,
    }  # fmt: skip
    assert (lines[-1]["accuracy"], lines[-1]["acceptance_ratio"], lines[-1]["gpu_gib"]) == (1.0, 0.25, None)
    with ProgressLog(tmp_path, before=20, total=30) as log:
        now[0] += 1
        log.add(done())
        log.write()
    assert len(lines_of(tmp_path)) == 5  # a resumed run appends


def test_the_log_counts_its_time_from_the_first_admission(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("dps.run.progress.time.monotonic", lambda: now[0])
    with ProgressLog(tmp_path, before=0, total=4) as log:
        for later, age_s in ((0, 5.0), (5, 2.0), (2, 14.0)):  # the last was admitted before all others
            now[0] += later
            log.add(done(age_s))
            log.write()
    lines = lines_of(tmp_path)
    assert [line["elapsed_s"] for line in lines] == [5.0, 10.0, 14.0]
    assert (lines[0]["questions_per_min"], lines[0]["left_s"]) == (12.0, 15.0)


def test_the_log_sums_what_the_workers_spent_as_each_said_last(tmp_path):
    said = [
        (0, None),
        (0, {"decode_s": 1.5, "num_steps": 10}),
        (1, {"decode_s": 2.0}),
        (0, {"decode_s": 4.25, "num_steps": 30}),
    ]
    with ProgressLog(tmp_path, before=0, total=4) as log:
        for worker, spent in said:
            log.add(replace(done(), worker=worker, spent=spent))
            log._write_line()
    spent = [line["spent"] for line in lines_of(tmp_path)]
    assert spent[0] is None
    assert spent[1] == {"workers": 1, "decode_s": 1.5, "num_steps": 10}
    assert spent[3] == {"workers": 2, "decode_s": 6.25, "num_steps": 30}


def test_the_log_becomes_tensorboard_scalars_whose_steps_go_on_in_a_resumed_run(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the extra tensorboard is not installed"
    )
    for before in (0, 2):
        with ProgressLog(tmp_path, before, 4, tensorboard=True) as log:
            for _ in range(2):
                log.add(done())
                log.write()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), {accumulator.SCALARS: 0}).Reload()
    lines = lines_of(tmp_path)
    expected = {name for line in lines for name, value in line.items() if value is not None}
    assert set(events.Tags()["scalars"]) == expected - {"time", "questions", "total"}
    for name in events.Tags()["scalars"]:
        scalars = events.Scalars(name)
        assert [event.step for event in scalars] == [line["questions"] for line in lines]
        assert [event.value for event in scalars] == pytest.approx([line[name] for line in lines], rel=1e-6)
    assert lines[-1]["questions"] == 4


def test_tensorboard_that_is_not_there_is_refused_before_a_model_loads(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert run(["harvest", f"--output={tmp_path / 's'}", "--compute.tensorboard=true"]) == 2
    assert "pip install -e '.[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
