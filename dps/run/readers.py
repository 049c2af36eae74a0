"""Reading and grading responses beside the sampling, which never waits for it.

Little work is done at once, the rest in the threads and processes of a desk (``dps.benchmarks.reader_process``).
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent import futures
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from dps.benchmarks.grading import Grader, idle_cores
from dps.benchmarks.reader_process import Desk

if TYPE_CHECKING:
    from dps.run.live import LiveQuestion, QuestionPolicy

GRADING_THREADS = 8
"""Most questions whose responses are read at a time, where that is not done at once."""
READING_WAIT_S = 0.2
"""Longest wait for a response to be read while there is nothing to decode."""
MOST_BEHIND = 2
"""Responses that may wait for each row of the engine, or questions for each thread: behind both, none is admitted."""


class Readers:
    """Read the responses of questions: at once, in threads, or in processes, as the run's or their own grader says."""

    def __init__(self, grader: Grader, *, workers: int = 1) -> None:
        """Begin with nothing to read; ``workers`` share the cores of the machine."""
        self._desk = Desk(GRADING_THREADS, min(idle_cores(workers), GRADING_THREADS))
        self._grader = grader
        self._running: dict[Future[None], list[QuestionPolicy]] = {}
        self._done: list[QuestionPolicy] = []

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *error: object) -> None:
        self._desk.__exit__(*error)

    def submit(self, policies: Iterable[QuestionPolicy]) -> None:
        """Have the trajectories of these policies read; a question's by one reader, however many policies share it."""
        groups: dict[LiveQuestion, list[QuestionPolicy]] = {}
        for policy in policies:
            groups.setdefault(policy.question, []).append(policy)
        for question, group in groups.items():
            keys = {policy.keys for policy in group}
            grader = question.source.own.grader or self._grader
            read = partial(self._desk.read, grader)
            if grader.background == "none":
                question.read(keys, read)
                self._done += group
            else:
                self._running[self._desk.submit(question.read, keys, read)] = group

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
        responses = sum(len({key for policy in group for key in policy.keys}) for group in self._running.values())
        return responses < MOST_BEHIND * rows or len(self._running) < MOST_BEHIND * GRADING_THREADS
