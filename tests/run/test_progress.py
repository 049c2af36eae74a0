import json
import os
import pty
import re
import subprocess
import sys
import threading

import pytest

from dps import config
from dps.cli import run
from dps.run import progress_log
from dps.run.progress import Progress, format_rate, format_seconds, track
from dps.run.progress_log import PROGRESS, ProgressLog
from feature_store import Store

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
        progress.advance(0)
        progress.note(tokens=12345, accuracy=0.61237)
        progress.note(accuracy=0.5)
        assert capsys.readouterr() == ("", "")
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"harvest: 300 of 300 in \d+\.\d s, [\d.]+/s, tokens 12,345, accuracy 0\.5\n", output.err)


def test_broken_off_work_says_how_far_it_came(capsys):
    def work():
        with track("harvest", 10) as progress:
            progress.advance(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert "harvest: 3 of 10 in" in capsys.readouterr().err


def test_nothing_to_do(capsys):
    with track("harvest", 0):
        pass
    assert capsys.readouterr().err.count("\n") == 2


def on_a_terminal(script):
    """Run a script with a terminal as stderr; returns stdout and what the terminal showed."""
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
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment
    )
    os.close(theirs)
    reader = threading.Thread(target=read)
    reader.start()
    output, _ = process.communicate(timeout=60)
    reader.join(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    return output, b"".join(shown).decode()


def test_on_a_terminal_there_is_a_bar():
    output, shown = on_a_terminal(SCRIPT)
    assert output == "result\n"  # goes where it is sent, not to the terminal
    last = shown.replace("\r", "\n").strip().splitlines()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "\n".join(last))
    assert "harvest [bold]" in text
    assert re.search(r"[0-4]/5 .*/s", text)
    assert re.search(r"5/5 +\d\.\d/s +0:00:0\d +left", text)
    assert "accuracy 1, k 2" in text
    assert "to do" not in text


def test_rate_counts_what_was_done(monkeypatch):
    now = 100.0
    monkeypatch.setattr("dps.run.progress.time.monotonic", lambda: now)
    progress = Progress("x", 10)
    assert progress.per_second == 0
    now = 102.0
    progress.advance(4)
    assert progress.done == 4
    assert progress.elapsed_s == 2
    assert progress.per_second == 2


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1:00 min"),
        (185, "3:05 min"),
        (7385, "2:03:05 h"),
    ],
)
def test_times_are_read_by_persons(seconds, expected):
    assert format_seconds(seconds) == expected


def test_slow_rates_are_per_minute():
    assert format_rate(12.34) == "12.3/s"
    assert format_rate(0.05) == "3.0/min"


def test_the_log_says_how_far_a_store_is(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_log.time, "monotonic", lambda: now[0])
    with ProgressLog(tmp_path, before=10, total=30) as log:
        for done in range(1, 11):
            now[0] += 0.4
            log.note(done, {"tokens": 100 * done})
    lines = [json.loads(line) for line in (tmp_path / PROGRESS).read_text().splitlines()]
    assert [line["questions"] for line in lines] == [11, 14, 17, 20]
    assert [line["elapsed_s"] for line in lines] == [0.4, 1.6, 2.8, 4.0]
    assert lines[-1]["total"] == 30
    assert lines[-1]["questions_per_min"] == 150.0
    assert lines[-1]["left_s"] == 4.0
    assert lines[-1]["tokens"] == 1000
    with ProgressLog(tmp_path, before=20, total=30) as log:
        now[0] += 1
        log.note(1, {})
    assert len((tmp_path / PROGRESS).read_text().splitlines()) == 5  # a resumed run appends


def test_the_log_counts_its_time_from_the_first_admission(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_log.time, "monotonic", lambda: now[0])
    with ProgressLog(tmp_path, before=0, total=4) as log:
        log.note(1, {}, age_s=5.0)
        now[0] += 5
        log.note(2, {}, age_s=2.0)
        now[0] += 2
        log.note(3, {}, age_s=14.0)  # was admitted before all others, and took longer
    lines = [json.loads(line) for line in (tmp_path / PROGRESS).read_text().splitlines()]
    assert [line["elapsed_s"] for line in lines] == [5.0, 10.0, 14.0]
    assert lines[0]["questions_per_min"] == 12.0
    assert lines[0]["left_s"] == 15.0


def test_the_log_becomes_tensorboard_scalars_whose_steps_go_on_in_a_resumed_run(tmp_path, capsys):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the extra tensorboard is not installed"
    )
    command = [
        "harvest", f"--output={tmp_path}", "--sampler.block_size=12", "--sampler.max_new_tokens=12",
        "--sampler.num_mh_steps=1", "--compute.rows=8", "--compute.threads=1", "--compute.tensorboard=true",
        "--compute.commit_interval_s=0", "--k.maximum=2", "--k.start=2",
    ]  # fmt: skip
    for limit in (2, 4):
        assert run([*command, f"--benchmark.limit={limit}", "--benchmark.split=train"]) == 0
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), {accumulator.SCALARS: 0}).Reload()
    lines = [json.loads(line) for line in (tmp_path / PROGRESS).read_text().splitlines()]
    expected = {name for line in lines for name, value in line.items() if value is not None}
    assert set(events.Tags()["scalars"]) == expected - {"time", "questions", "total"}
    for name in events.Tags()["scalars"]:
        pairs = [(line["questions"], line[name]) for line in lines if line[name] is not None]
        found = events.Scalars(name)
        assert [event.step for event in found] == [step for step, _ in pairs]
        assert [event.value for event in found] == pytest.approx([value for _, value in pairs], rel=1e-6)
    assert [line["questions"] for line in lines][-1] == 4
    assert len(Store.open(tmp_path)) == 4


def test_tensorboard_that_is_not_there_is_refused_before_a_model_loads(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(config, "find_spec", lambda name: None)
    assert run(["harvest", f"--output={tmp_path / 's'}", "--compute.tensorboard=true"]) == 2
    assert "pip install -e '.[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
