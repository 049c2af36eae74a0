"""Progress of a run: one bar over all its stores with running totals, and a log in each store's folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dps.run.committer import Done
from dps.run.progress import track
from dps.run.progress_log import ProgressLog


@dataclass(slots=True)
class StoreProgress:
    """Running totals of one store: of the questions of this run."""

    folder: Path
    name: str
    """Of the policy."""
    before: int
    """Questions that the store held when the run began."""
    questions: int = 0
    tokens: int = 0
    """What the policy is charged with, whether or not another policy had the tokens sampled, too."""
    trajectories: int = 0
    graded: int = 0
    correct: int = 0
    proposed: int = 0
    accepted: int = 0
    gpu_gib: float | None = None
    """Of the worker that has had most in use."""
    log: ProgressLog | None = None

    def add(self, done: Done) -> None:
        """Count a question."""
        self.questions += 1
        self.tokens += sum(done.tokens)
        self.trajectories += len(done.tokens)
        self.graded += done.correct is not None
        self.correct += bool(done.correct)
        self.proposed += done.proposed
        self.accepted += done.accepted
        if done.gpu_gib is not None:
            self.gpu_gib = max(done.gpu_gib, self.gpu_gib or 0.0)

    def values(self) -> dict[str, Any]:
        """Return them as the log has them."""
        return {
            "tokens": self.tokens,
            "mean_k": round(self.trajectories / self.questions, 3),
            "accuracy": round(self.correct / self.graded, 4) if self.graded else None,
            "acceptance_ratio": round(self.accepted / self.proposed, 4) if self.proposed else None,
            "gpu_gib": round(self.gpu_gib, 2) if self.gpu_gib is not None else None,
        }

    def note(self) -> dict[str, str]:
        """Return them in words."""
        note = {"policy": self.name, "mean k": f"{self.trajectories / self.questions:.2f}"}
        if self.graded:
            note["right"] = f"{self.correct / self.graded:.1%}"
        if self.proposed:
            note["accepted"] = f"{self.accepted / self.proposed:.0%}"
        if self.gpu_gib is not None:
            note["GPU GiB"] = f"{self.gpu_gib:.1f}"
        return note


class Display:
    """Shows every committed question."""

    def __init__(
        self,
        kind: str,
        stores: Sequence[StoreProgress],
        groups: Sequence[Sequence[int]],
        total: int,
        tensorboard: bool = False,
    ) -> None:
        """Prepare.

        Args:
            kind: ``harvest`` or ``evaluation``.
            stores: The stores.
            groups: Numbers of the stores whose policies share their trajectories.
            total: Questions that each store will hold.
            tensorboard: Whether each store also gets TensorBoard scalars.
        """
        self._stores = stores
        self._group_of = {store: number for number, group in enumerate(groups) for store in group}
        self._total = total
        self._tensorboard = tensorboard
        self._sampled = 0
        self._counted: dict[tuple[int, str], int] = {}
        """By group and question: the trajectories whose tokens are in the sum, the first so many."""
        names = ", ".join(store.name for store in stores if store.before < total)
        self._track = track(f"{kind} ({names})", sum(total - store.before for store in stores))
        self._stack = ExitStack()

    def __enter__(self) -> Display:
        self._bar = self._stack.enter_context(self._track)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)

    @property
    def counts(self) -> list[int]:
        """Questions that were shown, of each store."""
        return [store.questions for store in self._stores]

    def show(self, done: Done) -> None:
        """Count one committed question; its tokens once, however many policies share them."""
        store, key = self._stores[done.store], (self._group_of[done.store], done.question_id)
        store.add(done)
        counted = self._counted.get(key, 0)
        self._sampled += sum(done.tokens[counted:])
        self._counted[key] = max(counted, len(done.tokens))
        self._bar.advance(1)
        self._bar.note(tokens=self._sampled, **store.note())
        if store.log is None:
            log = ProgressLog(store.folder, store.before, self._total, tensorboard=self._tensorboard)
            store.log = self._stack.enter_context(log)
        store.log.note(store.questions, store.values(), done.age_s)
