"""Kill a harvest with SIGKILL at random moments, resume it, and compare what came of it with one that was left alone.

    python scripts/kill_harvest.py --kills 50 --output docs/results/crash/kills.json

Every trial starts a harvest of the embedded model with two workers in a new folder, and kills it and its workers at a
moment drawn uniformly over the time that the whole takes. It checks that the store verifies and holds every question
that the progress log reported, resumes it, and compares it trajectory for trajectory with an uninterrupted one. A later
kill of the resumed run may follow, with probability one half.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from feature_store import Store
from feature_store.tools import damage

SETTINGS = (
    "--benchmark.name=arithmetic", "--sampler.block_size=24", "--sampler.max_new_tokens=48", "--sampler.num_mh_steps=2",
    "--compute.rows=16", "--compute.workers=2", "--compute.commit_interval_s=0.2", "--k.maximum=4",
)  # fmt: skip


def start(folder: Path, questions: int) -> subprocess.Popen[bytes]:
    """Start a harvest in a session of its own, so that it can be killed with all its processes."""
    options = [f"--output={folder}", f"--benchmark.limit={questions}", *SETTINGS]
    command = [sys.executable, "-m", "dps", "harvest", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def reported(folder: Path) -> int:
    """Return the questions that the progress log has reported; a line that was being written does not count."""
    path = folder / "progress.jsonl"  # not there where the kill came before the first report
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return max((json.loads(line)["questions"] for line in lines), default=0)


def same(one: Store, other: Store) -> bool:
    """Whether two stores hold the same trajectories with the same features."""
    if one.question_ids != other.question_ids:
        return False
    for a, b in zip(one, other, strict=True):
        for t, u in zip(a.trajectories, b.trajectories, strict=True):
            equal = t.tokens.tolist() == u.tokens.tolist() and t.text == u.text and t.correct == u.correct
            if not equal or not np.allclose(t.hidden, u.hidden, rtol=0, atol=1e-5):
                return False
    return True


def kill_after(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Kill a run after a while with SIGKILL; False if it had ended by itself."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def main() -> None:
    """Run the trials, print and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    work = Path(tempfile.mkdtemp(prefix="kill-harvest-"))
    started = time.monotonic()
    whole = start(work / "whole", options.questions)
    if whole.wait():
        sys.exit(whole.stderr.read().decode())
    seconds = time.monotonic() - started
    reference = Store.open(work / "whole")
    kills, trials = [], 0
    failures: list[str] = []
    while len(kills) < options.kills:
        folder = work / f"trial-{trials}"
        trials += 1
        while True:
            process = start(folder, options.questions)
            if len(kills) >= options.kills or not kill_after(process, rng.uniform(0, seconds)):
                break
            logged, there = reported(folder), 0
            if (folder / "manifest.json").exists():
                problems = damage(folder)
                there = len(Store.open(folder))
                failures += [f"trial {trials}: {problem}" for problem in problems]
            if there < logged:
                failures.append(f"trial {trials}: {logged} questions were reported, {there} are there")
            kills.append({"trial": trials, "reported": logged, "kept": there})
            if rng.random() < 0.5:
                process = start(folder, options.questions)
                break
        if process.wait():
            failures.append(f"trial {trials}: the resumed run failed: {process.stderr.read().decode()[-300:]}")
        elif not same(Store.open(folder), reference):
            failures.append(f"trial {trials}: the resumed store is another")
        shutil.rmtree(folder, ignore_errors=True)
        print(f"{len(kills)} kills in {trials} trials, {len(failures)} failures", file=sys.stderr, flush=True)
    shutil.rmtree(work)
    kept = [kill["kept"] for kill in kills]
    found = {
        "kills": len(kills), "trials": trials, "failures": failures, "questions": options.questions,
        "seconds_uninterrupted": round(seconds, 1), "seed": options.seed,
        "kept_at_the_kill": {"none": kept.count(0), "some": sum(0 < n < options.questions for n in kept),
                             "all": kept.count(options.questions)},
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
