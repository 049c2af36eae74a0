"""Plan harvests, run them, and compare: tokens, wall-clock time and size of the store.

    python scripts/check_plan.py --output docs/results/plan/plan.json

Each case runs `dps harvest --plan json` and then `dps harvest` as a user would, in processes of their own. A plan holds
for a machine that is as busy later as it was when it was made; so the load average (running processes, over a minute)
at the start of either is recorded beside the times, and the processor time that the harvest had (all its processes).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = ("1x100", "1x320", "2x100", "2x320", "2x800")
"""Workers and questions."""


def dps(*arguments: str) -> str:
    """Run dps and return what it printed."""
    command = [sys.executable, "-m", "dps", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def processor_s() -> float:
    """Return the processor seconds that the commands have had so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def trial(workers: int, questions: int, config: Path, folder: Path) -> dict[str, Any]:
    """Plan one harvest, run it, and return both beside each other."""
    from feature_store import Store

    options = (
        "harvest",
        f"--config={config}",
        f"--output={folder}",
        f"--benchmark.limit={questions}",
        f"--compute.workers={workers}",
    )
    load_planned, started = os.getloadavg()[0], time.perf_counter()
    plan = json.loads(dps(*options, "--plan=json"))
    planned_in = time.perf_counter() - started
    load_taken, started, had = os.getloadavg()[0], time.perf_counter(), processor_s()
    dps(*options)
    took = time.perf_counter() - started
    tokens = sum(t.num_generated_tokens for question in Store.open(folder) for t in question.trajectories)
    size = sum(path.stat().st_size for path in folder.glob("segment-*.h5")) / 1e9
    found = {"tokens": tokens, "seconds": took, "gigabytes": size}
    return {
        "workers": workers,
        "questions": questions,
        "sampled": plan["sampled"],
        "planned_in_s": round(planned_in, 1),
        "load_planned": round(load_planned, 1),
        "load_taken": round(load_taken, 1),
        "processor_s": round(processor_s() - had, 1),
        **{f"{name}_planned": round(plan[name], 6) for name in found},
        **{f"{name}_taken": round(value, 6) for name, value in found.items()},
        **{f"{name}_ratio": round(plan[name] / value, 3) for name, value in found.items()},
    }


def main() -> None:
    """Run the cases, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/harvest/arithmetic.yaml"))
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="workers x questions", metavar="2x320")
    parser.add_argument("--commit", default="", help="the commit that is measured, to be recorded")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    trials = []
    with tempfile.TemporaryDirectory() as folder:
        for case in options.cases:
            workers, questions = map(int, case.split("x"))
            found = trial(workers, questions, options.config, Path(folder) / f"{workers}-{questions}")
            trials.append(found)
            ratios = ", ".join(f"{name} {found[f'{name}_ratio']:.2f}" for name in ("tokens", "seconds", "gigabytes"))
            print(f"{workers} worker(s), {questions} questions: planned / taken: {ratios}", flush=True)
    worst = max(abs(t[f"{name}_ratio"] - 1) for t in trials for name in ("tokens", "seconds", "gigabytes"))
    report = {
        "config": options.config.name,
        "commit": options.commit,
        "cores": len(os.sched_getaffinity(0)),
        "worst_relative_error": round(worst, 3),
        "trials": trials,
    }
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
