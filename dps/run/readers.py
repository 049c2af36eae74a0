"""Reading and grading responses beside the sampling, which never waits for it.

What is little work is done at once. What other processes do (programs, in their sandbox) is waited for in threads. Long
work in Python would hold up the sampling thread at every look, since one thread of a process runs Python at a time: it
is done in processes. They start when a thread has read for longer than their start takes: a small evaluation has none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import LifoQueue
from typing import TYPE_CHECKING

from dps.benchmarks.grading import Answers, Grader, Item, Reading, idle_cores
from dps.benchmarks.reader_process import ReaderProcess

if TYPE_CHECKING:
    from dps.run.live import LiveQuestion, QuestionPolicy, Read

GRADING_THREADS = 8
"""Most questions whose responses are read at a time, where that is not done at once."""
READING_WAIT_S = 0.2
"""Longest wait for a response to be read while there is nothing to decode."""
PROCESSES_PAY_S = 0.25
"""Seconds of reading in a thread after which processes start: about what a start takes."""
MOST_BEHIND = 2
"""Responses that may wait for each row of the engine, or questions for each thread: behind both, none is admitted."""


class Readers:
    """Read the responses of questions: at once, in threads, or in processes, as the grader says."""

    def __init__(self, grader: Grader, *, workers: int = 1) -> None:
        """Begin with nothing to read; ``workers`` share the cores of the machine."""
        self._threads = ThreadPoolExecutor(GRADING_THREADS) if grader.background != "none" else None
        self._desk = _Desk(grader, idle_cores(workers)) if grader.background == "processes" else None
        self._read: Read = self._desk.read if self._desk is not None else partial(_read_here, grader)
        self._running: dict[Future[None], list[QuestionPolicy]] = {}
        self._done: list[QuestionPolicy] = []

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._desk is not None:
            self._desk.stop()
        if self._threads is not None:
            self._threads.shutdown()
        if self._desk is not None:
            self._desk.close()

    def submit(self, policies: Iterable[QuestionPolicy]) -> None:
        """Have the trajectories of these policies read; a question's by one reader, however many policies share it."""
        groups: dict[LiveQuestion, list[QuestionPolicy]] = {}
        for policy in policies:
            groups.setdefault(policy.question, []).append(policy)
        for question, group in groups.items():
            ks = {policy.requested for policy in group}
            if self._threads is None:
                question.read(ks, self._read)
                self._done += group
            else:
                self._running[self._threads.submit(question.read, ks, self._read)] = group

    def done(self, *, wait: bool) -> list[QuestionPolicy]:
        """Return what has been read since the last call; with ``wait``, at least one if any is left."""
        if wait and self._running and not self._done:
            futures.wait(self._running, timeout=READING_WAIT_S, return_when=futures.FIRST_COMPLETED)
        for future in [future for future in self._running if future.done()]:
            group = self._running.pop(future)
            future.result()
            self._done += group
        done, self._done = self._done, []
        return done

    @property
    def behind(self) -> int:
        """Questions whose responses wait to be read."""
        return len({policy.question for group in self._running.values() for policy in group})

    def has_room(self, rows: int) -> bool:
        """Whether so little waits to be read that an engine of that many rows may take another question."""
        responses = sum(max(policy.requested for policy in group) for group in self._running.values())
        return responses < MOST_BEHIND * rows or len(self._running) < MOST_BEHIND * GRADING_THREADS


def _read_here(grader: Grader, texts: Sequence[str], item: Item, prompt: str, answers: Answers) -> list[Reading]:
    return answers.add(grader, texts, item, prompt)


class _Desk:
    """Reads in the threads that ask, one at a time, until that has taken as long as processes take to start."""

    def __init__(self, grader: Grader, processes: int) -> None:
        self._grader = grader
        self._processes = [ReaderProcess(grader) for _ in range(min(processes, GRADING_THREADS))]
        self._idle: LifoQueue[ReaderProcess] = LifoQueue()  # those that run already are taken before others start
        for process in self._processes:
            self._idle.put(process)
        self._one_thread = threading.Lock()
        self._thread_s = 0.0
        self._stopped = False

    def read(self, texts: Sequence[str], item: Item, prompt: str, answers: Answers) -> list[Reading]:
        """See :meth:`dps.benchmarks.reader_process.ReaderProcess.read`."""
        if self._thread_s < PROCESSES_PAY_S:
            with self._one_thread:
                if self._thread_s < PROCESSES_PAY_S and not self._stopped:
                    started = time.monotonic()
                    readings = answers.add(self._grader, texts, item, prompt)
                    self._thread_s += time.monotonic() - started
                    return readings
        process = self._idle.get()
        try:
            return process.read(texts, item, prompt, answers)
        finally:
            self._idle.put(process)

    def stop(self) -> None:
        """Let every reading end soon, if by an exception."""
        self._stopped = True
        for process in self._processes:
            process.stop()

    def close(self) -> None:
        """Take away the processes, when no thread reads any more."""
        for process in self._processes:
            process.close()
