#!/usr/bin/env python
"""Load test of ``dps serve``: many clients at once, every answer and the throughput compared with ``dps evaluate``.

    python scripts/serve_load.py --clients 200 --requests 2000

A server of the embedded model and the clients run as processes of this machine. ``dps evaluate --streams prompt``
answers the same questions by the same policy in between, in this process: its seconds have grading and the writing of
the store, and the model's loading, but neither imports nor the measurement of the clock. Ratios are evaluate / serve
of each repeat, so above 1 where serving is faster; those of processor time mean something on a machine that has other
work, too. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import psutil

from feature_store import Store
from feature_store.records import Question


def questions(count: int) -> list[str]:
    """Return generated questions, all different."""
    from dps.benchmarks import BenchmarkConfig, load_benchmark

    return [item.question for item in load_benchmark(BenchmarkConfig(limit=count), "embedded").items]


@contextmanager
def server(k: int, rows: int) -> Iterator[tuple[str, psutil.Process]]:
    """Run a server; gives its URL and process."""
    options = [f"--k={k}", f"--rows={rows}", "--port=0", "--limits.waiting=4096", "--limits.requests=4096"]
    process = subprocess.Popen([sys.executable, "-m", "dps", "serve", *options], stderr=subprocess.PIPE, text=True)
    try:
        while (found := re.search(r"at (http\S+/v1)", line := process.stderr.readline())) is None:
            if not line:
                raise SystemExit("The server did not start.")
        yield found[1], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.communicate()


async def ask_all(url: str, asked: list[str], clients: int, seed: int) -> tuple[list[float], list[dict]]:
    """Ask every question once by so many clients at a time; return the seconds of each, and the replies."""
    import httpx

    waiting, seconds, replies = list(enumerate(asked))[::-1], [0.0] * len(asked), [{}] * len(asked)
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)

    async def one(client: httpx.AsyncClient) -> None:
        while waiting:
            number, question = waiting.pop()
            began = time.perf_counter()
            body = {"model": "embedded", "messages": [{"role": "user", "content": question}], "seed": seed}
            reply = await client.post(f"{url}/chat/completions", json=body | {"responses": True})
            seconds[number], replies[number] = time.perf_counter() - began, reply.json()

    async with httpx.AsyncClient(limits=limits, timeout=None) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))
    return seconds, replies


def wrong(record: Question, reply: dict) -> bool:
    """Return whether a reply is another than the record: an error, another response, or another question's."""
    if "choices" not in reply:
        return True
    said = [(r["arm"], r["index"], r["text"]) for r in reply["choices"][0]["dps"]["responses"]]
    return said != [(t.arm, t.index, t.text) for t in record.trajectories]


def evaluate(folder: Path, limit: int, k: int, rows: int, seed: int, *more: str) -> list[Question]:
    """Run ``dps evaluate`` in this process; return its records in the order of the questions."""
    from dps import cli

    power = ["--policies=[power]", f"--k.start={k}", "--k.step=1", f"--k.maximum={k}", "--streams=prompt"]
    asked = ["--benchmark.name=arithmetic", f"--benchmark.limit={limit}", f"--compute.rows={rows}", f"--seed={seed}"]
    with redirect_stdout(sys.stderr):
        if cli.run(["evaluate", *power, *asked, f"--output={folder}", *more]):
            raise SystemExit("dps evaluate failed.")
    return list(Store.open(folder / "power"))


def measured(process: psutil.Process) -> list[float]:
    """Return the time, and the seconds that a process and its children have had of the cores."""
    return [time.perf_counter(), sum(process.cpu_times()[:4])]


def main() -> None:
    """Measure, alternating, and print what came."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"clients": 200, "requests": 2000, "k": 8, "rows": 64, "repeats": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    asked = questions(given.requests)
    places = {question: place for place, question in enumerate(asked)}
    spent: dict[str, list[np.ndarray]] = {"serve": [], "evaluate": []}
    failures, latencies = 0, []
    with tempfile.TemporaryDirectory() as folder, server(given.k, given.rows) as (url, process):
        root, settings = Path(folder), (given.k, given.rows)
        evaluate(root / "first", 1, *settings, 0)
        for repeat in range(given.repeats):
            records, replies = [], []
            for kind in ("serve", "evaluate")[:: 1 - repeat % 2 * 2]:
                who = process if kind == "serve" else psutil.Process()
                before = measured(who)
                if kind == "serve":
                    seconds, replies = asyncio.run(ask_all(url, asked, given.clients, repeat))
                    latencies += seconds
                else:
                    clock = f"--compute.clock_store={root / 'first' / 'power'}"
                    records = evaluate(root / str(repeat), len(asked), *settings, repeat, clock)
                spent[kind].append(np.subtract(measured(who), before))
            failures += len(asked) - len(records)
            failures += sum(wrong(record, replies[places[record.question]]) for record in records)
    ratios = np.transpose(np.divide(spent["evaluate"], spent["serve"]))
    result = {
        **vars(given),
        "wrong, lost or mixed up": failures,
        "latency_s": {"median": float(np.median(latencies)), "p95": float(np.quantile(latencies, 0.95))},
        "seconds, processor seconds": {kind: np.round(each, 2).tolist() for kind, each in spent.items()},
    }
    for name, each in zip(("throughput against dps evaluate", "the same by processor time"), ratios, strict=True):
        result[name] = {"median": np.median(each), "range": [each.min(), each.max()]}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
