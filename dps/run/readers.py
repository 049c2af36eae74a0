"""Reading and grading responses beside the sampling: at once, or in threads where the grader takes long."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor

from dps.benchmarks.grading import Grader
from dps.run.live import LiveQuestion, QuestionPolicy

GRADING_THREADS = 8
"""Questions whose responses are read at a time, where a grader takes long."""
READING_WAIT_S = 0.2
"""Longest wait for a response to be read while there is nothing to decode."""


class Readers:
    """Read the responses of questions: at once, or in threads where the grader takes long."""

    def __init__(self, grader: Grader) -> None:
        """Begin with nothing to read."""
        self._grader = grader
        self._threads = ThreadPoolExecutor(GRADING_THREADS) if grader.in_background else None
        self._running: dict[Future[None], list[QuestionPolicy]] = {}
        self._done: list[QuestionPolicy] = []

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def submit(self, policies: Iterable[QuestionPolicy]) -> None:
        """Have the trajectories of these policies read; a question's by one thread, however many policies share it."""
        groups: dict[LiveQuestion, list[QuestionPolicy]] = {}
        for policy in policies:
            groups.setdefault(policy.question, []).append(policy)
        for question, group in groups.items():
            ks = {policy.requested for policy in group}
            if self._threads is None:
                question.read(ks, self._grader)
                self._done += group
            else:
                self._running[self._threads.submit(question.read, ks, self._grader)] = group

    def done(self, *, wait: bool) -> list[QuestionPolicy]:
        """Return what has been read since the last call; with ``wait``, at least one if any is left."""
        if self._running:
            timeout = READING_WAIT_S if wait and not self._done else 0.0
            finished, _ = futures.wait(self._running, timeout=timeout, return_when=futures.FIRST_COMPLETED)
            for future in finished:
                future.result()
                self._done += self._running.pop(future)
        done, self._done = self._done, []
        return done
