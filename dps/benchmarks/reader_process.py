"""Processes that read responses: Python's work on them does not hold up the threads of the run.

One thread of a process runs Python at a time, so long work in Python would hold up the sampling thread at every look. A
desk reads in a thread until that has taken as long as a process takes to start, then in processes: few responses need
none. What waits for other processes (programs, in their sandbox) stays in threads, and the answers to one question are
decided side by side.

A process is started as a program of its own, never forked (the run may hold a GPU and many threads) and never through
``multiprocessing``, which forbids daemons to have children and imports a user's script again. It imports graders, not
PyTorch, and ends by itself when the run is gone, whatever it is doing.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from queue import LifoQueue
from typing import TypeVar

from dps.benchmarks.grading import Answers, Grader, Item, Reading
from dps.errors import WorkersDied

PROCESSES_PAY_S = 0.25
"""Seconds of reading in a thread after which processes start: about what a start takes."""
_MOST_DEATHS = 3
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

_Result = TypeVar("_Result")


class Desk:
    """Threads in which responses are read, and the processes behind them; both start as they are needed."""

    def __init__(self, threads: int, processes: int) -> None:
        """Begin with none of them; there will be at most so many."""
        self._threads, self._deciding = ThreadPoolExecutor(threads), ThreadPoolExecutor(processes)
        self._processes = [ReaderProcess() for _ in range(processes)]
        self._idle: LifoQueue[ReaderProcess] = LifoQueue()  # those that run already are taken before others start
        for process in self._processes:
            self._idle.put(process)
        self._one_thread = threading.Lock()
        self._thread_s = 0.0
        self._stopped = False

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *error: object) -> None:
        """End every reading soon, if by an exception, and take away the processes."""
        self._stopped = True
        for pool in (self._threads, self._deciding):
            pool.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.stop()
        for pool in (self._threads, self._deciding):
            pool.shutdown()
        for process in self._processes:
            process.close()

    def submit(self, work: Callable[..., _Result], *given: object) -> Future[_Result]:
        """Have a thread do work that reads."""
        return self._threads.submit(work, *given)

    def read(self, grader: Grader, responses: Sequence[tuple[str, str]], item: Item, answers: Answers) -> list[Reading]:
        """Read where the grader is best read; from any thread, errors as of :meth:`ReaderProcess.read`."""
        if grader.background != "processes":
            each = map if grader.background == "none" else self._deciding.map
            return answers.add(grader, responses, item, each)
        if self._thread_s < PROCESSES_PAY_S:
            with self._one_thread:
                if self._thread_s < PROCESSES_PAY_S and not self._stopped:
                    started = time.monotonic()
                    readings = answers.add(grader, responses, item)
                    self._thread_s += time.monotonic() - started
                    return readings
        process = self._idle.get()
        try:
            return process.read(grader, responses, item, answers)
        finally:
            self._idle.put(process)


class ReaderProcess:
    """Reads responses in a process, which starts when it is first needed and again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Connection | None = None
        self._changing = threading.Lock()
        self._stopped = False

    def read(self, grader: Grader, responses: Sequence[tuple[str, str]], item: Item, answers: Answers) -> list[Reading]:
        """Read responses; ``answers`` knows their answers afterwards, with keys. For one thread at a time.

        Raises:
            WorkersDied: If three processes died over them, or this reader was stopped.
            Exception: What the grader raised.
        """
        death: Exception | None = None
        for _ in range(_MOST_DEATHS):
            try:
                line = self._started()
                line.send((grader, responses, item, answers))
                result = line.recv()
            except (EOFError, OSError) as error:
                self._end()
                death = error
                continue
            if isinstance(result, Exception):
                raise result
            readings, known = result
            answers.grades.update(known.grades)
            answers.keys.update(known.keys)
            return readings
        raise WorkersDied(
            f"Three processes died that read the responses to the question {item.question_id}; what was committed is "
            "kept. If they ran out of memory, leave more of it."
        ) from death

    def _started(self) -> Connection:
        """Return the line to the process, which is started if there is none."""
        with self._changing:
            if self._stopped:
                raise WorkersDied("The reading of responses was stopped.")
            if self._line is not None:
                return self._line
            self._line, theirs = Pipe()
            with theirs:
                start = (
                    f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve({theirs.fileno()})"
                )
                self._process = subprocess.Popen(
                    [sys.executable, "-c", start],
                    stdin=subprocess.PIPE,  # whose end tells the process that this one is gone
                    stdout=subprocess.DEVNULL,
                    env=os.environ | _ONE_THREAD,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C is for the run, which stops its readers
                )
            return self._line

    def stop(self) -> None:
        """Kill the process; from any thread, and a reading under way ends in an exception."""
        with self._changing:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def _end(self) -> None:
        """Take away what is left of the process."""
        with self._changing:
            process, line, self._process, self._line = self._process, self._line, None, None
        if line is not None:
            line.close()
        if process is not None:
            process.kill()
            with suppress(OSError):
                process.stdin.close()
            process.wait()

    def close(self) -> None:
        """Stop and take away the process, when no thread reads any more."""
        self.stop()
        self._end()


def serve(descriptor: int) -> None:
    """Body of the process: answer what comes over the line."""
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    with Connection(descriptor) as line, suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            line.send_bytes(_answer(line.recv_bytes()))


def _answer(request: bytes) -> bytes:
    """Return readings and answers, or the exception instead of them, pickled; an exception that cannot be as text."""
    try:
        grader, *asked, answers = pickle.loads(request)
        return pickle.dumps((answers.add(grader, *asked), answers))
    except Exception as error:
        text = f"In a process that read responses:\n{traceback.format_exc()}"
        error.add_note(text)
        try:
            return pickle.dumps(pickle.loads(pickle.dumps(error)))
        except Exception:
            return pickle.dumps(RuntimeError(text))


def _end_with_the_run() -> None:
    sys.stdin.buffer.read()
    os._exit(0)
