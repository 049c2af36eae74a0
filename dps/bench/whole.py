"""Whole runs in processes of their own: what a user waits for, from the command to the last commit."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dps.bench.config import BenchConfig
from dps.bench.records import machine_of
from dps.errors import InputError
from dps.run.progress_log import PROGRESS
from dps.run.scheduler import SHARES
from feature_store import Store


def whole_run(config: BenchConfig, *, plain: bool, prefetch: bool, rows: int | None, workers: int) -> dict[str, Any]:
    """Measure one run of all questions in a process of its own, graded and committed.

    Args:
        config: The benchmark.
        plain: Plain samples at temperature 1 by ``dps evaluate``, without features; else ``dps harvest``, with them.
        prefetch: Whether idle rows take steps ahead of time.
        rows: Rows of an engine; None takes as many as memory allows.
        workers: Workers of the run.

    Returns:
        The values of a :class:`dps.bench.records.Record`.

    Raises:
        InputError: If the run fails; the sentence is the run's own.
    """
    resolved = asdict(config)
    compute = {"rows": rows, "workers": workers, "forward": config.forward[0], "threads": config.threads}
    compute["prefetch"] = prefetch
    names = ("model", "benchmark", "sampler", "features", "seed")
    if plain:
        command, store = "evaluate", "plain"
        more: dict[str, Any] = {"policies": ["plain"], "budgets": {"plain": config.plain_k}}
    else:
        command, store = "harvest", ""
        names += ("forced_mean_length", "forced_spread")
        more = {"k": {"start": config.k, "maximum": config.k}}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path, output = Path(folder) / "run.json", Path(folder) / "run"
        path.write_text(json.dumps({name: resolved[name] for name in names} | more | {"compute": compute}))
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "dps", command, f"--config={path}", f"--output={output}"],
            capture_output=True,
            text=True,
        )
        command_s = time.perf_counter() - started
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}, no message."]
            raise InputError(f"The {command} to be measured failed: {said[-1]}")
        last = json.loads((output / store / PROGRESS).read_text().splitlines()[-1])
        manifest = Store.open(output / store).manifest
    return {
        "num_tokens": last["tokens"],
        "seconds": last["elapsed_s"],
        "rows": int(manifest.calibration["rows"]),
        "workers": workers,
        "acceptance_ratio": last["acceptance_ratio"],
        "num_questions": last["questions"],
        "command_s": command_s,
        "startup_s": last.get("start", {}),
        "peak_memory_gib": last["gpu_gib"],
        "machine": machine_of(manifest.device),
    } | summary_of(last["spent"], worker_s=workers * last["elapsed_s"])


def summary_of(spent: Mapping[str, float], *, worker_s: float) -> dict[str, Any]:
    """Return what a run's log says of its time and row-steps, in shares.

    Args:
        spent: The sums over the workers, see ``dps.run.scheduler.Account.numbers``.
        worker_s: Seconds of all workers together.
    """
    shares = {name: spent[f"{name}_s"] / worker_s for name in SHARES if name != "other"}
    counted = [spent[name] for name in ("num_generated_tokens", "num_row_steps")]
    waiting = [spent.get(f"waiting_{name}", 0) for name in ("num_generated_tokens", "num_row_steps")]
    tail = [whole - part for whole, part in zip(counted, waiting, strict=True)]
    useful = [tokens / steps if steps else None for tokens, steps in (counted, waiting, tail)]
    return {
        "shares": shares | {"other": max(0.0, 1 - sum(shares.values()))},
        "useful_rows": useful[0],
        "useful_rows_waiting": useful[1],
        "useful_rows_tail": useful[2],
        "tail_share": max(0.0, 1 - spent.get("waiting_seconds", 0.0) / worker_s),
        "spent": dict(spent),
    }
