"""Who has which questions: the one queue that all workers of a run pull from. Pure bookkeeping, no processes.

``pool`` keeps one in the parent of local workers, ``ray_pool`` in an actor of a cluster. Workers take a few questions
at a time, so that none is left with a pile; what a dead worker had goes back to the front of the queue.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Take:
    """What a worker is told."""

    task: int
    """Number of the store's task."""
    question_ids: tuple[str, ...]
    """Questions to sample; none where there are none for this worker now."""
    finished: bool = False
    """Whether nothing is left anywhere, so that the worker may end."""


class Ledger:
    """Hands out the questions of several tasks in order, and remembers who has them."""

    def __init__(self, tasks: Sequence[Sequence[str]], num_workers: int) -> None:
        """Fill the queue.

        Args:
            tasks: The missing questions of each task, in order.
            num_workers: Workers that will pull.
        """
        self._waiting = [deque(task) for task in tasks]
        self._held: dict[tuple[int, str], int] = {}
        self._complete: defaultdict[int, Counter[int]] = defaultdict(Counter)
        """Of each worker, by task."""
        self._deaths: dict[tuple[int, str], int] = {}
        self._num_workers = num_workers

    @property
    def finished(self) -> bool:
        """Whether every question was reported."""
        return not self._held and not any(self._waiting)

    def take(self, worker: int, task: int | None, wanted: int, complete: Mapping[int, int] | None = None) -> Take:
        """Hand out questions.

        Args:
            worker: Who asks.
            task: The task whose rows it has, which comes first; None if it has none.
            wanted: Questions that it could start now.
            complete: How many questions of each task it has sampled and not committed yet.

        Returns:
            At most ``wanted`` questions of one task, and no more than leaves the worker with its even share of what is
            still to be sampled of it: on a CPU one worker's rows could hold all of a small run while the others are
            still starting.
        """
        self._complete[worker] = Counter(complete)
        for found in ([] if task is None else [task]) + [of for of in range(len(self._waiting)) if of != task]:
            waiting = self._waiting[found]
            ids = tuple(waiting.popleft() for _ in range(min(wanted, self._share(worker, found))))
            for question_id in ids:
                self._held[found, question_id] = worker
            if ids:
                return Take(found, ids)
        return Take(task or 0, (), finished=self.finished)

    def _share(self, worker: int, task: int) -> int:
        """Return how many of a task's waiting questions are for this worker."""
        waiting = len(self._waiting[task])
        working = Counter(holder for (of, _), holder in self._held.items() if of == task)
        for holder in working:
            working[holder] = max(0, working[holder] - self._complete[holder][task])
        even = -(-(waiting + working.total()) // max(1, self._num_workers))
        return max(0, min(waiting, even - working[worker]))

    def done(self, task: int, question_id: str) -> bool:
        """Note that a question was committed; False if that was known."""
        holder = self._held.pop((task, question_id), None)
        if holder is None:
            return False
        self._complete[holder][task] = max(0, self._complete[holder][task] - 1)
        return True

    def held_by(self, worker: int) -> list[tuple[int, str]]:
        """Return the tasks and questions that a worker has."""
        return [key for key, holder in self._held.items() if holder == worker]

    def lost(self, worker: int) -> list[tuple[int, str]]:
        """Put what a dead worker had back to the front of the queue.

        Returns:
            Its questions with their tasks. :meth:`deadly` names one that was in the hands of several dead workers.
        """
        self._num_workers -= 1
        self._complete[worker].clear()
        lost = self.held_by(worker)
        for task, question_id in reversed(lost):
            del self._held[task, question_id]
            self._deaths[task, question_id] = self._deaths.get((task, question_id), 0) + 1
            self._waiting[task].appendleft(question_id)
        return lost

    def deadly(self) -> str | None:
        """Return a question that three workers died over, if there is one."""
        return next((question_id for (_, question_id), count in self._deaths.items() if count >= 3), None)
