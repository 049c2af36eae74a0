"""Commits complete questions to their stores while a worker goes on sampling, and reports them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dps.device import peak_gib
from feature_store import Question, StoreWriter
from feature_store.errors import StoreError

_SHARE = 0.01
"""A worker writes after this share of the time that it has sampled, so that a long run does not make small files."""
_LONGEST_S = 60.0
"""But at least this often, unless it is asked to write less often."""


@dataclass(frozen=True, slots=True)
class Done:
    """One committed question, as a worker reports it."""

    store: int
    """Number of the store."""
    question_id: str
    tokens: tuple[int, ...]
    """Tokens sampled for each trajectory."""
    correct: bool | None
    accepted: int
    proposed: int
    age_s: float
    """Seconds from its admission to this report."""
    gpu_gib: float | None = None
    """Most GPU memory that the worker has had in use, GiB; None on a CPU."""
    worker: int = 0
    """Number of the worker."""
    spent: dict[str, float] | None = None
    """What the worker's time went into so far (``scheduler.Account.numbers``)."""
    behind: int = 0
    """Questions of the worker whose responses wait to be read."""
    cancelled: int = 0
    """Tokens of the question's cancelled trajectories."""

    @classmethod
    def of(cls, store: int, question: Question, *, waited_s: float = 0.0, gpu_gib: float | None = None) -> Done:
        """Return the report of a question that has waited so long since it was complete."""
        return cls(
            store=store,
            question_id=question.question_id,
            tokens=tuple(t.num_generated_tokens for t in question.trajectories),
            correct=question.correct,
            accepted=sum(t.mh_accepted for t in question.trajectories),
            proposed=sum(t.mh_proposed for t in question.trajectories),
            age_s=question.latency_s + waited_s,
            gpu_gib=gpu_gib,
            cancelled=question.num_cancelled_tokens,
        )


@dataclass(frozen=True, slots=True)
class Died:
    """A worker died; what it had committed was reported."""

    worker: int


@dataclass(frozen=True, slots=True, eq=False)
class _Complete:
    """A question that is complete and not committed."""

    store: int
    question: Question
    last_of: int | None
    """The group of stores that are all complete with it; None where some still work on it."""
    since: float
    """When it was complete, on the clock of ``time.monotonic``."""


def commit_interval(least_s: float, elapsed_s: float) -> float:
    """Return the time between two commits of a worker that has sampled for ``elapsed_s``, all in seconds; 0 stays 0."""
    return max(least_s, min(_LONGEST_S, _SHARE * elapsed_s)) if least_s else 0.0


def num_commits(least_s: float, sampled_s: float, questions: int) -> int:
    """Return about how often a worker commits that completes so many questions in ``sampled_s`` seconds."""
    commits, at_s = 0, commit_interval(least_s, 0.0)
    while least_s and at_s < sampled_s and commits < questions:
        commits, at_s = commits + 1, at_s + commit_interval(least_s, at_s)
    return min(questions, commits + 1) if least_s else questions


class Committer:
    """Commits questions as they complete, several at a time, less often as the run gets longer.

    A thread compresses and writes, which holds up nobody; the questions of a commit are reported when it is on the
    disk, by the thread that samples. A run that is stopped commits what is complete.
    """

    def __init__(self, folders: Sequence[Path], writer: str, interval_s: float, report: Callable[[Done], None]) -> None:
        """Prepare; ``folders`` are the stores in order of their numbers, ``writer`` names this worker's segments.

        ``interval_s`` is the least time between two commits, see :func:`commit_interval`.
        """
        self._folders = folders
        self._writer = writer
        self._interval_s = interval_s
        self._report = report
        self._writers: dict[int, StoreWriter] = {}
        self._thread = ThreadPoolExecutor(1)
        self._held: list[_Complete] = []
        self._under_way: tuple[list[_Complete], Future[None]] | None = None
        self._began = self._last = time.monotonic()

    def __enter__(self) -> Committer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with self._thread:
            if not isinstance(error, StoreError):  # a store that could not be written is not tried again
                self.commit()

    @property
    def complete(self) -> Counter[int]:
        """How many questions of each group are complete for all stores, and not committed."""
        waiting = self._held + (self._under_way[0] if self._under_way is not None else [])
        return Counter(each.last_of for each in waiting if each.last_of is not None)

    def add(self, store: int, question: Question, last_of: int | None) -> None:
        """Take in a complete question; ``last_of`` is its group if all stores of the group have theirs now."""
        self._held.append(_Complete(store, question, last_of, time.monotonic()))
        self.look()

    def look(self) -> None:
        """Report what has been committed, and begin the next commit if it is time.

        Raises:
            StoreError: If a store could not be written.
        """
        if self._under_way is not None and self._under_way[1].done():
            self._settle()
        now = time.monotonic()
        wait_s = commit_interval(self._interval_s, now - self._began)
        if self._held and self._under_way is None and now - self._last >= wait_s:
            self._begin()

    def commit(self) -> None:
        """Commit and report everything that is complete; waits for it.

        Raises:
            StoreError: If a store could not be written.
        """
        self._settle()
        if self._held:
            self._begin()
            self._settle()

    def _begin(self) -> None:
        """Hand what is complete to the thread."""
        held, self._held = self._held, []
        self._under_way = held, self._thread.submit(self._write, held)
        self._last = time.monotonic()

    def _write(self, held: Sequence[_Complete]) -> None:
        """Commit to each store; runs in the thread."""
        for store in dict.fromkeys(each.store for each in held):
            if store not in self._writers:
                self._writers[store] = StoreWriter.attach(self._folders[store])
            self._writers[store].commit([each.question for each in held if each.store == store], writer=self._writer)

    def _settle(self) -> None:
        """Wait for the commit under way, if there is one, and report its questions."""
        if self._under_way is None:
            return
        (held, future), self._under_way = self._under_way, None
        future.result()
        now = time.monotonic()
        for each in held:
            self._report(Done.of(each.store, each.question, waited_s=now - each.since, gpu_gib=peak_gib()))
