"""Train MLP-HQ on a synthetic store larger than it should need memory for, and measure memory and waiting.

    nice -n 10 python scripts/measure_streaming.py --gigabytes 9 --output docs/results/streaming/streaming.json

Writes a harvest with hidden states of a 7B model's size (D = 3584, 16 blocks, 8 trajectories, random values, of which
gzip saves a twelfth), and runs ``dps fit --config configs/mlp_hq.yaml`` on it in child processes: the first makes the
file of pooled hidden states, the second finds it, the third, for comparison, may hold them in memory. Then it reads the
same bytes in sequence. The store is removed at the end. What is written:

- ``peak_rss_mb``: the child's high-water mark of resident memory, as the kernel counts it.
- of each epoch: rows per second of training; bytes per second of the pooled hidden states that it reads, and of the
  store's hidden states that they stand for; and ``waited``: the share of the time from the end of a step to the start
  of the next, which includes Lightning's own work there, as ``in_memory`` shows. The page cache is dropped before each
  epoch where that is allowed.
- ``read_in_sequence``: plain reads of the segments' bytes, of the pooled file's, and of the store's hidden states
  decoded through h5py, with the page cache dropped before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback

ROOT = Path(__file__).parents[1]
HIDDEN, EMBEDDING, BLOCKS, TRAJECTORIES, BLOCK_TOKENS = 3584, 768, 16, 8, 192
QUESTION_BYTES = 4 * HIDDEN * BLOCKS * TRAJECTORIES
PER_SEGMENT = 16
"""Questions of a segment: 29 MB of hidden states."""
REPORT = "DPS_MEASURE_STREAMING"
"""Environment variable with the file that :class:`Clock` writes."""


class Clock(Callback):
    """Measures each epoch of a training from inside it, and the process's peak memory."""

    def __init__(self) -> None:
        """Start with nothing measured."""
        self._epochs: list[dict[str, float]] = []
        self._born = time.perf_counter()
        self._setup_s = 0.0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Note when an epoch starts, with nothing of the store in memory where that can be had."""
        if not self._epochs:
            self._setup_s = time.perf_counter() - self._born
        drop_page_cache()
        self._start = self._last = time.perf_counter()
        self._waited, self._first, self._rows = 0.0, 0.0, 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Count the time since the last step as waiting."""
        waited = time.perf_counter() - self._last
        self._waited += waited
        self._first = self._first or waited
        self._rows += len(batch.label)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note when a step ends, and with the last one the epoch's training."""
        self._last = time.perf_counter()
        if batch_idx + 1 == trainer.num_training_batches:
            seconds = self._last - self._start
            questions = self._rows / trainer.datamodule.table("train").rows_per_question
            self._epochs.append(
                {
                    "seconds": seconds,
                    "rows": self._rows,
                    "rows_per_s": self._rows / seconds,
                    "pooled_mb_per_s": questions * 4 * HIDDEN * TRAJECTORIES / 1e6 / seconds,
                    "store_mb_per_s": questions * QUESTION_BYTES / 1e6 / seconds,
                    "waited": self._waited / seconds,
                    "waited_for_the_first_batch_s": self._first,
                }
            )

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write what was measured."""
        status = Path("/proc/self/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]
        found = {
            "peak_rss_mb": int(peak) * 1024 / 1e6,
            "seconds_until_the_first_epoch": self._setup_s,
            "epochs": self._epochs,
        }
        Path(os.environ[REPORT]).write_text(json.dumps(found))


def main() -> None:
    """Make the store, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=9.0, help="hidden states of the store, 10^9 bytes")
    parser.add_argument("--memory-mb", type=int, default=256, help="data.memory_mb of the training")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the store is written; a temporary folder if not given")
    parser.add_argument("--keep", action="store_true", help="leave the store there, and use the one that is there")
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.write is not None:
        write_store(options.folder, options.write)
        return
    work = options.folder or Path(tempfile.mkdtemp(prefix="streaming-"))
    store = work / "harvest"
    questions = round(options.gigabytes * 1e9 / QUESTION_BYTES)
    try:
        if not (store / "manifest.json").exists():
            started = time.perf_counter()
            # In a process of its own, which therefore starts no larger than this one.
            command = [sys.executable, __file__, f"--folder={store}", f"--write={questions}"]
            subprocess.run(command, check=True, env=environment())
            print(f"wrote {questions} questions in {time.perf_counter() - started:.0f} s", flush=True)
        found = {
            "questions": questions,
            "hidden_gb": questions * QUESTION_BYTES / 1e9,
            "store_gb": sum(path.stat().st_size for path in store.glob("segment-*.h5")) / 1e9,
            "memory_mb": options.memory_mb,
            "first_run": train(work, store, options.memory_mb, options.epochs),
        }
        found["second_run"] = train(work, store, options.memory_mb, options.epochs)
        found["in_memory"] = train(work, store, 10**5, options.epochs)
        found["read_in_sequence"] = sequential(store)
    finally:
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    found["machine"] = {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "lightning", "numpy", "h5py")},
    }
    found["commit"] = commit.stdout.strip()
    text = json.dumps(rounded(found), indent=1)
    print(text)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")


def write_store(folder: Path, questions: int) -> None:
    """Write a harvest of that many questions, a segment at a time."""
    from feature_store import Manifest, StoreWriter

    manifest = Manifest(
        kind="harvest",
        policy={"name": "power", "family": "fixed", "start": 2, "step": 2, "maximum": TRAJECTORIES},
        aggregator="majority",
        seed=0,
        model={"name": "made-up-7b", "fingerprint": "0" * 16, "hidden_size": HIDDEN, "feature_layer": 11},
        benchmark={"name": "made-up"},
        sampler={},
        calibration={"seconds_per_token": 0.001, "prefill_seconds_per_token": 0.0001, "rows": 1},
        fingerprint="0" * 64,
    )
    writer = StoreWriter.open(folder, manifest)
    numbers = np.random.default_rng(0).permutation(questions)  # a run does not sample in order of id
    for start in range(0, questions, PER_SEGMENT):
        writer.commit([made_up(int(number)) for number in numbers[start : start + PER_SEGMENT]])


def made_up(number: int) -> Any:
    """Return a question whose features tell a little of how hard it is."""
    from feature_store import Question, Trajectory

    rng = np.random.default_rng([7, number])
    chance = float(rng.uniform(0.2, 1.0))
    count = np.full(BLOCKS, BLOCK_TOKENS, np.int32)

    def trajectory(index: int) -> Trajectory:
        correct = bool(rng.random() < chance)
        entropy = count * rng.uniform(0.3, 0.5) * (1.5 - chance)
        hidden = rng.standard_normal((BLOCKS, HIDDEN), dtype=np.float32)
        hidden[:, :8] += 2 * chance
        tokens = int(count.sum())
        return Trajectory(
            index=index, tokens=rng.integers(0, 150_000, tokens, dtype=np.int32), text="", answer=str(int(not correct)),
            answer_class=int(not correct), correct=correct, base_logprob=float(-entropy.sum()),
            proposal_logprob=float(-entropy.sum()), num_generated_tokens=5 * tokens + int(rng.integers(1000)),
            mh_proposed=160, mh_accepted=int(rng.integers(40, 120)), compute_s=30.0, started_s=0.0, finished_s=30.0,
            block_num_tokens=count, block_logprob=-entropy, block_entropy=entropy, block_top1=count * 0.8,
            hidden=hidden,
        )  # fmt: skip

    return Question(
        question_id=f"q{number:07d}", question=f"made up {number}", prompt="made up", gold="0", metadata={},
        num_prompt_tokens=int(rng.integers(50, 300)), embedding=rng.standard_normal(EMBEDDING, dtype=np.float32),
        prefill_s=0.1, embedding_s=0.01, controller_s=0.0, latency_s=240.0, answer="0", correct=True, decisions=(),
        trajectories=tuple(trajectory(index) for index in range(TRAJECTORIES)),
    )  # fmt: skip


def train(work: Path, store: Path, memory_mb: int, epochs: int) -> dict[str, Any]:
    """Run ``dps fit`` in a child process and return what its clock wrote."""
    report = work / "clock.json"
    shutil.rmtree(work / "run", ignore_errors=True)  # each training begins anew
    drop_page_cache()
    options = {
        "data.init_args.store": store,
        "data.init_args.memory_mb": memory_mb,
        "trainer.default_root_dir": work / "run",
        "trainer.max_epochs": epochs,
        "trainer.log_every_n_steps": 50,
        "trainer.enable_progress_bar": "false",
        "trainer.callbacks+": "scripts.measure_streaming.Clock",
    }
    command = [sys.executable, "-m", "dps", "fit", "--config", "configs/mlp_hq.yaml"]
    started = time.perf_counter()
    subprocess.run(
        [*command, *(f"--{name}={value}" for name, value in options.items())],
        check=True,
        cwd=ROOT,
        env=environment() | {REPORT: str(report)},
    )
    return {"seconds": time.perf_counter() - started, **json.loads(report.read_text())}


def sequential(store: Path) -> dict[str, Any]:
    """Read the same bytes with nothing else to do."""
    from feature_store import Store

    found: dict[str, Any] = {"page_cache_dropped": drop_page_cache()}
    for name, paths in {
        "segments": sorted(store.glob("segment-*.h5")),
        "pooled_file": sorted(store.glob("cache/pooled-*.npy")),
    }.items():
        started, count = time.perf_counter(), 0
        for path in paths:
            with open(path, "rb", buffering=0) as file:
                while piece := file.read(2**24):
                    count += len(piece)
        found[name] = {"mb_per_s": count / 1e6 / (time.perf_counter() - started), "gb": count / 1e9}
    drop_page_cache()
    started, count = time.perf_counter(), 0
    for question in Store.open(store).scan():
        count += sum(t.hidden.nbytes for t in question.trajectories)
    found["decoded_hidden_states"] = {"mb_per_s": count / 1e6 / (time.perf_counter() - started), "gb": count / 1e9}
    return found


def drop_page_cache() -> bool:
    """Make the kernel forget files; False where that is not allowed."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        return False
    return True


def environment() -> dict[str, str]:
    """Return the environment of a child: this tree's packages, one thread for arithmetic."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def cpu() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def rounded(value: Any) -> Any:
    """Return the same with four digits of each float."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
