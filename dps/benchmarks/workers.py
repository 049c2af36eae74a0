"""Processes that do what may hang or grow without bound: a call ends within its limit, or its process does.

The parent may hold a GPU and many threads, so nothing is forked: workers are started as commands and exchange lines of
JSON. A worker that overruns is killed and replaced. One whose parent has died ends by itself: at the end of its input,
or by the alarm that it sets for every call.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_START_S = 120.0
"""Longest wait for a worker to import what it needs; on a busy machine that takes seconds."""
_GRACE_S = 1.0
"""How much later than its limit a worker's own alarm rings."""
_LONGEST_REPLY = 1 << 20


class WorkerFailed(Exception):
    """A call that ran out of time or memory, or whose worker died."""


class WorkerPool:
    """A few processes that run the same script; started when they are first needed, safe to call from any thread."""

    def __init__(self, script: Path, *, workers: int = 2, limit_s: float = 5.0, memory_bytes: int = 2 << 30) -> None:
        """Prepare; nothing is started.

        Args:
            script: A Python file that hands a function to :func:`serve`.
            workers: Processes.
            limit_s: Seconds that a call may take.
            memory_bytes: Address space that a worker may have.
        """
        self._script, self._limit_s, self._memory_bytes = script, limit_s, memory_bytes
        self._free: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(workers):
            self._free.put(None)
        atexit.register(self.close)

    def call(self, payload: dict[str, Any]) -> Any:
        """Run the script's function on a payload of JSON values; waits for a free worker.

        Raises:
            WorkerFailed: If the call took too long or too much memory, or the worker died of it.
        """
        worker = self._free.get()
        try:
            if worker is None or not worker.alive:
                worker = _Worker(self._script, self._limit_s, self._memory_bytes)
            reply = worker.ask(payload, self._limit_s)
        except WorkerFailed:
            if worker is not None:
                worker.stop()
            worker = None
            raise
        finally:
            self._free.put(worker)
        if "error" in reply:
            raise WorkerFailed(reply["error"])
        return reply["result"]

    def close(self) -> None:
        """Stop the workers that are free; later calls start new ones."""
        stopped = 0
        while True:
            try:
                worker = self._free.get_nowait()
            except queue.Empty:
                break
            if worker is not None:
                worker.stop()
            stopped += 1
        for _ in range(stopped):
            self._free.put(None)


class _Worker:
    """One process."""

    def __init__(self, script: Path, limit_s: float, memory_bytes: int) -> None:
        # -P keeps the script's folder off the path, where a module may have the name of a standard one.
        command = [sys.executable, "-P", str(script), str(limit_s + _GRACE_S), str(memory_bytes)]
        environment = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "LANG": "C.UTF-8"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
        self._received = b""
        if self._read(_START_S) != {"ready": True}:
            self.stop()
            raise WorkerFailed(f"the worker {script.name} did not start")

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, payload: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Send a payload and return the reply."""
        line = json.dumps(payload).encode() + b"\n"
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerFailed("the worker had died") from error
        reply = self._read(limit_s)
        if reply is None:
            raise WorkerFailed(f"no reply within {limit_s:g} s")
        return reply

    def _read(self, limit_s: float) -> dict[str, Any] | None:
        """Return the next line, None if there is none within the limit or the process has ended."""
        end = time.monotonic() + limit_s
        file = self._process.stdout.fileno()
        while b"\n" not in self._received:
            left = end - time.monotonic()
            if left <= 0 or not select.select([file], [], [], left)[0]:
                return None
            part = os.read(file, 1 << 16)
            self._received += part
            if not part or len(self._received) > _LONGEST_REPLY:
                return None
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def stop(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def serve(function: Any, arguments: Sequence[str]) -> None:
    """Answer lines of JSON from standard input until it ends: the body of a worker's script.

    Args:
        function: From a payload to a JSON value.
        arguments: Seconds after which a call kills the process, and bytes of its address space.
    """
    import resource
    import signal

    limit_s, memory_bytes = float(arguments[0]), int(arguments[1])
    replies = os.fdopen(os.dup(1), "wb")  # what libraries print must not get between the replies
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def send(reply: dict[str, Any]) -> None:
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()

    send({"ready": True})
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_REAL, limit_s)  # ends the process, whatever it is doing
        try:
            reply = {"result": function(json.loads(line))}
        except MemoryError:
            reply = {"error": "out of memory"}
        except RecursionError:
            reply = {"error": "nested too deeply"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(reply)
