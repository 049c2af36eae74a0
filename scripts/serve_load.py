#!/usr/bin/env python
"""Load test of ``dps serve``: many clients at once, every answer compared with ``dps.answer``, throughput with it, too.

    python scripts/serve_load.py --clients 200 --requests 2000

A server of the embedded model and the clients run as processes of this machine. ``dps.answer`` samples the same
questions by the same policy in between, as a list, so that the ratio of the two is what serving costs. Both ratios are
medians over the repeats; that of processor time means something on a machine that has other work, too. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psutil


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


async def ask_all(url: str, asked: list[str], clients: int, seed: int) -> tuple[float, list[float], list[dict]]:
    """Ask every question once by so many clients at a time; return the seconds, those of each, and the replies."""
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
        began = time.perf_counter()
        await asyncio.gather(*(one(client) for _ in range(clients)))
        return time.perf_counter() - began, seconds, replies


def wrong(record: object, reply: dict) -> bool:
    """Return whether a reply is another than the record: an error, another response, or another question's."""
    if "choices" not in reply:
        return True
    said = [(r["arm"], r["index"], r["text"]) for r in reply["choices"][0]["dps"]["responses"]]
    return said != [(t.arm, t.index, t.text) for t in record.trajectories]


def cpu(process: psutil.Process) -> float:
    """Return the seconds that a process has had of the cores."""
    return sum(process.cpu_times()[:2])


def main() -> None:
    """Measure, alternating, and print what came."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"clients": 200, "requests": 2000, "k": 8, "rows": 64, "repeats": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    import dps

    asked, model = questions(given.requests), dps.load_model("embedded")
    times, failures, latencies = [], 0, []
    with server(given.k, given.rows) as (url, process):
        for repeat in range(given.repeats):
            used = cpu(process)
            took, seconds, replies = asyncio.run(ask_all(url, asked, given.clients, repeat))
            times.append([took, cpu(process) - used])
            began, used = time.perf_counter(), cpu(psutil.Process())
            records = dps.answer(asked, model, k=given.k, seed=repeat, rows=given.rows)
            times[-1] += [time.perf_counter() - began, cpu(psutil.Process()) - used]
            latencies += seconds
            failures += sum(map(wrong, records, replies))
    columns = np.transpose(times).tolist()
    result = {
        "requests": len(asked) * given.repeats,
        "clients": given.clients,
        "wrong, lost or mixed up": failures,
        "latency_s": {"median": float(np.median(latencies)), "p95": float(np.quantile(latencies, 0.95))},
        "seconds": dict(zip(("served", "served, processor", "alone", "alone, processor"), columns, strict=True)),
        "throughput against dps.answer": float(np.median(np.divide(columns[2], columns[0]))),
        "the same by processor time": float(np.median(np.divide(columns[3], columns[1]))),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
