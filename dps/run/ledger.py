"""Who has which questions: the one queue that all workers of a run pull from. Pure bookkeeping, no processes.

Stores whose policies share trajectories form a group, and a question is handed out for all stores of a group that miss
it. ``pool`` keeps a ledger in the parent of local workers, ``ray_pool`` in an actor of a cluster. Workers take a few
questions at a time, so that none is left with a pile; what a dead worker had goes back to the front of the queue.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

Missing = Mapping[str, Collection[int]]
"""The questions that a group's stores lack, in order: question id -> numbers of the stores that miss it."""


@dataclass(frozen=True, slots=True)
class Take:
    """What a worker is told."""

    group: int
    """Number of the group of stores."""
    questions: tuple[tuple[str, tuple[int, ...]], ...]
    """Ids of questions to sample, each with the stores that miss it; none where there are none for this worker now."""
    finished: bool = False
    """Whether nothing is left anywhere, or the run is to end, so that the worker ends."""


NOTHING_MORE = Take(0, (), finished=True)
"""What a worker is told when the run is to end."""


class Ledger:
    """Hands out the questions of several groups in order, and remembers who has them."""

    def __init__(self, groups: Sequence[Missing], num_workers: int) -> None:
        """Fill the queue with what each group lacks."""
        self._waiting = [deque((name, tuple(stores)) for name, stores in group.items()) for group in groups]
        self._group_of = {store: n for n, group in enumerate(groups) for stores in group.values() for store in stores}
        self._held: dict[tuple[int, str], tuple[int, set[int]]] = {}
        """By group and question: the worker, and the stores whose question was not reported."""
        self._complete: defaultdict[int, Counter[int]] = defaultdict(Counter)
        """Of each worker, by group."""
        self._deaths: Counter[tuple[int, str]] = Counter()
        self._num_workers = num_workers

    @property
    def finished(self) -> bool:
        """Whether every question was reported for every store."""
        return not self._held and not any(self._waiting)

    def take(self, worker: int, group: int | None, wanted: int, complete: Mapping[int, int] | None = None) -> Take:
        """Hand out questions.

        Args:
            worker: Who asks.
            group: The group whose rows it has, which comes first; None if it has none.
            wanted: Questions that it could start now.
            complete: How many questions of each group it has sampled for all stores and not committed yet.

        Returns:
            At most ``wanted`` questions of one group, and no more than leaves the worker with its even share of what is
            still to be sampled: on a CPU one worker's rows could hold all of a small run while the others are still
            starting.
        """
        self._complete[worker] = Counter(complete)
        others = [number for number in range(len(self._waiting)) if number != group]
        for number in others if group is None else [group, *others]:
            waiting = self._waiting[number]
            questions = tuple(waiting.popleft() for _ in range(min(wanted, self._share(worker, number))))
            for name, stores in questions:
                self._held[number, name] = worker, set(stores)
            if questions:
                return Take(number, questions)
        return Take(group or 0, (), finished=self.finished)

    def _share(self, worker: int, group: int) -> int:
        """Return how many of a group's waiting questions are for this worker."""
        waiting = len(self._waiting[group])
        working = Counter(holder for (of, _), (holder, _) in self._held.items() if of == group)
        for holder in working:
            working[holder] = max(0, working[holder] - self._complete[holder][group])
        even = -(-(waiting + working.total()) // max(1, self._num_workers))
        return max(0, min(waiting, even - working[worker]))

    def done(self, store: int, question_id: str) -> bool:
        """Note that a question was committed to a store; False if that was known."""
        group = self._group_of[store]
        holder, stores = self._held.get((group, question_id), (-1, set()))
        if store not in stores:
            return False
        stores.remove(store)
        if not stores:
            del self._held[group, question_id]
            self._complete[holder][group] = max(0, self._complete[holder][group] - 1)
        return True

    def held_by(self, worker: int) -> list[tuple[int, str]]:
        """Return the stores and questions that a worker has."""
        return [
            (store, name) for (_, name), (holder, stores) in self._held.items() if holder == worker for store in stores
        ]

    def lost(self, worker: int) -> list[str]:
        """Put what a dead worker had back to the front of the queue, for the stores that miss it; return the ids."""
        self._num_workers -= 1
        self._complete[worker].clear()
        lost = [key for key, (holder, _) in self._held.items() if holder == worker]
        for group, name in reversed(lost):
            _, stores = self._held.pop((group, name))
            self._deaths[group, name] += 1
            self._waiting[group].appendleft((name, tuple(sorted(stores))))
        return [name for _, name in lost]

    def deadly(self) -> str | None:
        """Return a question that three workers died over, if there is one."""
        return next((name for (_, name), count in self._deaths.items() if count >= 3), None)
