"""Processes that do what may hang or grow without bound: a call ends within its limit, or its process does.

The parent may hold a GPU and many threads, so nothing is forked: processes are started as commands and exchange lines
of JSON. A worker that overruns is killed and replaced. One whose parent has died ends by itself: at the end of its
input, or by the alarm that it sets for every call.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import select
import signal
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
_LONGEST_LINE = 1 << 20
"""Bytes of a reply: as Python's objects they are some fifteen times as many."""


def idle_cores() -> int:
    """Return how many processes may grade at a time: the cores that this process may use but one, at least one."""
    known = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return max(1, len(known) - 1)


class WorkerFailed(Exception):
    """A call that ran out of time or memory, or whose worker died."""


class LineProcess:
    """A process in a session of its own that is asked and that answers with lines of JSON."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: str,
        env: dict[str, str],
        answers: bool = True,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        """Start the process; ``answers`` is False where standard output goes nowhere.

        Raises:
            OSError: If there is no descriptor, process or memory left.
        """
        self._received = b""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if answers else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=cwd,
            env=env,
            pass_fds=pass_fds,
            start_new_session=True,
        )

    @property
    def alive(self) -> bool:
        """Whether the process can be asked."""
        return self._process.poll() is None

    def send(self, message: Any) -> None:
        """Write a line; OSError if the process has died."""
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def receive(self, limit_s: float) -> Any:
        """Return the next line's value.

        Raises:
            TimeoutError: If there is none within the limit.
            EOFError: If the process has ended, or the line is too long.
        """
        end, file = time.monotonic() + limit_s, self._process.stdout.fileno()
        ready = select.poll()  # select() cannot wait for descriptors over 1,023
        ready.register(file, select.POLLIN)
        while b"\n" not in self._received:
            left = end - time.monotonic()
            if left <= 0 or not ready.poll(1000 * left):
                raise TimeoutError
            part = os.read(file, 1 << 16)
            self._received += part
            if not part or len(self._received) > _LONGEST_LINE:
                raise EOFError
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def stop(self) -> None:
        """Kill the process and its children."""
        if self.alive:  # a number that was given back may be another's
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout):
            if file is not None:
                with contextlib.suppress(OSError):  # what was not written any more
                    file.close()


class WorkerPool:
    """A few processes that run the same script; started when they are first needed, safe to call from any thread."""

    def __init__(
        self, script: Path, *, workers: int | None = None, limit_s: float = 5.0, memory_bytes: int = 2 << 30
    ) -> None:
        """Prepare; nothing is started.

        Args:
            script: A Python file that hands a function to :func:`serve`.
            workers: Processes, as many as :func:`idle_cores` if None.
            limit_s: Seconds that a call may take.
            memory_bytes: Address space that a worker may have.
        """
        self._script, self._limit_s, self._memory_bytes = script, limit_s, memory_bytes
        self._free: queue.LifoQueue[LineProcess | None] = queue.LifoQueue()
        for _ in range(workers or idle_cores()):
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
                worker = self._start()
            worker.send(payload)
            reply = worker.receive(self._limit_s)
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            if worker is not None:
                worker.stop()
            worker = None
            raise WorkerFailed(f"no reply within {self._limit_s:g} s") from error
        finally:
            self._free.put(worker)
        if "error" in reply:
            raise WorkerFailed(reply["error"])
        return reply["result"]

    def close(self) -> None:
        """Stop the workers that are free; later calls start new ones."""
        free = []
        while not self._free.empty():
            try:
                free.append(self._free.get_nowait())
            except queue.Empty:
                break
        for worker in free:
            if worker is not None:
                worker.stop()
            self._free.put(None)

    def _start(self) -> LineProcess:
        # -P keeps the script's folder off the path, where a module may have the name of a standard one.
        command = [sys.executable, "-P", str(self._script), str(self._limit_s + _GRACE_S), str(self._memory_bytes)]
        path = os.pathsep.join(p for p in sys.path if p)
        worker = LineProcess(command, cwd="/", env={"PYTHONPATH": path, "LANG": "C.UTF-8"})
        try:
            worker.receive(_START_S)
        except (OSError, EOFError) as error:
            worker.stop()
            raise WorkerFailed(f"the worker {self._script.name} did not start") from error
        return worker


def serve(function: Any, arguments: Sequence[str]) -> None:
    """Answer lines of JSON from standard input until it ends: the body of a worker's script.

    Args:
        function: From a payload to a JSON value.
        arguments: Seconds after which a call kills the process, and bytes of its address space.
    """
    import resource

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
