"""Measure how a harvest scales over the GPUs of one host.

    python scripts/measure_devices.py --output docs/results/devices/devices.json

Each run is ``dps harvest`` in a process of its own, into a new store: random weights in the shape of a model, responses
forced to given lengths, features on, commits to HDF5. The numbers of workers take turns, so that a slow spell meets all
of them. A short run before them, which is not counted, fills the caches that the first run on a machine would pay for.
What is written of each run:

- ``sampling_s``: seconds from the first admission of a question by any worker to the report of the last commit, as the
  store's progress.jsonl has them. Start-up (imports, loading the model, the clock's calibration) is before it;
  recording the GPU's work and the end, when rows go idle, are in it.
- ``tokens``: tokens sampled, rejected ones included; ``tokens_per_s``: over ``sampling_s``.
- ``command_s``: seconds of the whole command.

``scaling`` is the median of tokens_per_s over that of the first number of workers.

On a CPU, as a rehearsal:

    python scripts/measure_devices.py --model embedded --questions 24 --rows 16 --mean 20 --spread 0.1 \
        --block-size 12 --max-new-tokens 48 --repeats 1
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dps.run.progress_log import PROGRESS
from feature_store import Store
from feature_store.segment import read_question_ids

ROOT = Path(__file__).parents[1]
WARM_UP_SHARE = 8
"""The uncounted run has this part of the questions."""


def main() -> None:
    """Run the harvests, print and write what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers, one GPU each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=512, help="chains that run at a time on each GPU")
    parser.add_argument("--model", default="configs/bench/qwen2.5-0.5b", help="folder with the shape's config.json")
    parser.add_argument("--mean", type=int, default=120, help="mean length of the responses, tokens")
    parser.add_argument("--spread", type=float, default=0.1, help="standard deviation of the logarithm of the lengths")
    parser.add_argument("--block-size", type=int, default=48)
    parser.add_argument("--max-new-tokens", type=int, default=768)
    parser.add_argument("--mh-steps", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the stores are written; a temporary folder if not given")
    parser.add_argument("--commit", default="", help="commit that is measured; the repository's if not given")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    commit = options.commit or git("rev-parse", "--short", "HEAD")
    work = Path(tempfile.mkdtemp(prefix="devices-", dir=options.folder))
    report = {
        "commit": commit,
        "devices": devices(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "software": {name: version(name) for name in ("torch", "transformers", "numpy", "h5py")},
        "settings": {
            name: getattr(options, name)
            for name in ("model", "questions", "rows", "mean", "spread", "block_size", "max_new_tokens", "mh_steps")
        },
    }
    started = time.monotonic()
    runs: list[dict[str, Any]] = []
    try:
        questions = max(2, options.questions // WARM_UP_SHARE)
        say(started, "warm-up starts", {"questions": questions})
        say(started, "warm-up", harvest(options, max(options.workers), questions, work / "warm-up"))
        for repeat in range(options.repeats):
            for workers in options.workers:
                say(started, "starts", {"workers": workers, "repeat": repeat})
                found = harvest(options, workers, options.questions, work / f"{workers}-{repeat}")
                runs.append({"workers": workers, "repeat": repeat, **found})
                say(started, "done", runs[-1])
                write(options.output, {**report, "runs": runs, **summary(runs)})
    finally:
        shutil.rmtree(work)
    print(json.dumps(summary(runs), indent=1))


def harvest(options: argparse.Namespace, workers: int, questions: int, folder: Path) -> dict[str, Any]:
    """Run one harvest in a process of its own and return what it took; its store is removed."""
    command = [
        sys.executable, "-m", "dps", "harvest", f"--output={folder}",
        f"--model.name={options.model}", "--model.random_weights=true",
        "--benchmark.name=arithmetic", f"--benchmark.limit={questions}",
        f"--sampler.block_size={options.block_size}", f"--sampler.max_new_tokens={options.max_new_tokens}",
        f"--sampler.num_mh_steps={options.mh_steps}",
        f"--forced_mean_length={options.mean}", f"--forced_spread={options.spread}",
        f"--compute.rows={options.rows}", f"--compute.workers={workers}",
    ]  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    command_s = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}")
    last = json.loads((folder / PROGRESS).read_text().splitlines()[-1])
    store = Store.open(folder)
    tokens = sum(t.num_generated_tokens for question in store for t in question.trajectories)
    by_worker: Counter[str] = Counter()
    for path in folder.glob("segment-*.h5"):
        by_worker[path.name.split("-")[1]] += len(read_question_ids(path))
    if (len(store), tokens, last["questions"]) != (questions, last["tokens"], questions):
        sys.exit(f"expected {questions} questions in the store and the log, got {len(store)} and {last}")
    size = sum(path.stat().st_size for path in folder.glob("segment-*.h5"))
    shutil.rmtree(folder)
    return {
        "tokens": tokens,
        "sampling_s": last["elapsed_s"],
        "tokens_per_s": round(tokens / last["elapsed_s"], 1),
        "command_s": round(command_s, 2),
        "questions_of_worker": dict(sorted(by_worker.items())),
        "gigabytes": round(size / 1e9, 4),
        "acceptance_ratio": last["acceptance_ratio"],
        "gpu_gib": last["gpu_gib"],
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of each number of workers, and how they compare with the first."""
    medians = {}
    for workers in dict.fromkeys(run["workers"] for run in runs):
        own = [run for run in runs if run["workers"] == workers]
        names = ("tokens_per_s", "sampling_s", "command_s")
        medians[workers] = {name: round(statistics.median(run[name] for run in own), 3) for name in names}
    first = next(iter(medians.values()))["tokens_per_s"]
    scaling = {workers: round(found["tokens_per_s"] / first, 3) for workers, found in medians.items()}
    return {"medians": medians, "scaling": scaling}


def devices() -> list[str]:
    """Return the names of the GPUs, or of the processor where there is none."""
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return [next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")]


def git(*arguments: str) -> str:
    """Ask git; a copy without a repository has no answer."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def say(started: float, what: str, found: dict[str, Any]) -> None:
    """Print one run's numbers."""
    print(f"[{time.monotonic() - started:5.0f} s] {what}: {json.dumps(found)}", flush=True)


def write(path: Path | None, report: dict[str, Any]) -> None:
    """Write what is known so far."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
