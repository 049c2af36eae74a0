"""Worker processes end in time, whatever the call does and whoever dies."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dps.benchmarks.workers import WorkerFailed, WorkerPool

SCRIPT = """
import os, sys, time
from dps.benchmarks.workers import serve

def do(payload):
    print("noise")
    if payload["do"] == "hang":
        open(payload["file"], "w").write(str(os.getpid()))
        time.sleep(60)
    if payload["do"] == "die":
        os._exit(3)
    if payload["do"] == "eat":
        return len(bytearray(1 << 33))
    return [payload["do"], os.getpid(), sorted(os.environ)]

if __name__ == "__main__":
    serve(do, sys.argv[1:])
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "worker.py").write_text(SCRIPT)
    return tmp_path / "worker.py"


def test_a_worker_that_overruns_is_replaced(script, tmp_path, monkeypatch):
    monkeypatch.setenv("DPS_SECRET", "1")
    pool = WorkerPool(script, workers=1, limit_s=0.5)
    try:
        _, first, environment = pool.call({"do": "a"})
        assert not {"DPS_SECRET", "HOME"} & set(environment)
        assert pool.call({"do": "b"})[1] == first
        started = time.monotonic()
        with pytest.raises(WorkerFailed, match=r"no reply within 0.5 s"):
            pool.call({"do": "hang", "file": str(tmp_path / "pid")})
        assert time.monotonic() - started < 3
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)
        with pytest.raises(WorkerFailed):
            pool.call({"do": "die"})
        with pytest.raises(WorkerFailed, match="out of memory"):
            pool.call({"do": "eat"})
        assert pool.call({"do": "c"})[0] == "c"
    finally:
        pool.close()


def test_workers_end_when_their_parent_is_killed(script, tmp_path):
    parent = (
        "from pathlib import Path; from dps.benchmarks.workers import WorkerPool\n"
        f"pool = WorkerPool(Path({str(script)!r}), workers=1, limit_s=1.0)\n"
        f"pool.call(dict(do='hang', file={str(tmp_path / 'pid')!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.DEVNULL)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)
    process.kill()
    process.wait()
    worker = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    end = time.monotonic() + 10
    while time.monotonic() < end and worker.exists():
        time.sleep(0.1)
    assert not worker.exists()
