"""Policies: how many trajectories a question gets.

A policy starts a question with ``start`` trajectories; when they have ended it is asked, with the question's features
if it needs any, how many more there should be. Light: the controllers behind it are passed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dps.errors import InputError
from dps.features import CheckpointFeatures


@dataclass(frozen=True)
class KRange:
    """The numbers of trajectories at which a policy may stop."""

    start: int = 2
    """Trajectories that every question gets."""
    step: int = 2
    """Trajectories that are added at a time."""
    maximum: int = 8
    """The most that a question gets."""

    def check(self) -> KRange:
        """Return self if the maximum can be reached.

        Raises:
            InputError: With one sentence that says which values would do.
        """
        if self.start < 1 or self.step < 1 or self.maximum < self.start:
            raise InputError(
                f"Expected 1 <= k.start <= k.maximum and k.step >= 1, got start {self.start}, step {self.step}, "
                f"maximum {self.maximum}."
            )
        if (self.maximum - self.start) % self.step:
            below = self.start + (self.maximum - self.start) // self.step * self.step
            raise InputError(
                f"k.maximum {self.maximum} cannot be reached from k.start {self.start} in steps of {self.step}: "
                f"set it to {below} or {below + self.step}."
            )
        return self

    @property
    def values(self) -> tuple[int, ...]:
        """Every k of the range, in order."""
        return tuple(range(self.start, self.maximum + 1, self.step))


class Controller(Protocol):
    """What a trained controller offers; ``lightning_modules.load_controller`` returns one."""

    name: str
    """``gbdt``, ``mlp-h``, ``mlp-hq``, ..."""
    threshold: float
    """More trajectories are added while ``1 - p_enough`` is above this."""
    calibration: Mapping[str, float]
    """The calibrated clock of the run it was trained on."""
    ks: Sequence[int]
    """Checkpoints that it was trained on, then the largest k of its harvest."""
    pooling: str
    """How it wants hidden states pooled, see :func:`dps.features.pool_hidden`."""

    def predict_enough(self, features: Sequence[CheckpointFeatures]) -> np.ndarray:
        """Return the probability that the current k is enough, one per question, shape (N,)."""
        ...

    def check_model(self, identity: Mapping[str, Any], embedding_size: int | None = None) -> None:
        """Raise InputError if it was trained on features of another model, layer or embedder."""
        ...


class Policy(Protocol):
    """How many trajectories a question gets."""

    start: int
    """Trajectories at the beginning."""
    controller: Controller | None
    """Who is asked at a checkpoint; None if nobody is."""

    def asks(self, k: int) -> bool:
        """Whether the controller is asked when k trajectories have ended."""
        ...

    def more(self, k: int, p_enough: float | None) -> int:
        """Return how many trajectories to add to the k that have ended; 0 ends the question."""
        ...


@dataclass(frozen=True, slots=True)
class FixedK:
    """Always k trajectories."""

    start: int
    """k."""
    controller: None = None

    def asks(self, k: int) -> bool:
        """Return False."""
        return False

    def more(self, k: int, p_enough: float | None) -> int:
        """Return 0."""
        return 0


@dataclass(frozen=True, slots=True)
class DynamicK:
    """Add trajectories while the controller thinks that more are needed (METHOD section 4)."""

    range: KRange
    """Where it may stop."""
    controller: Controller
    """Whom it asks."""

    def __post_init__(self) -> None:
        """Refuse checkpoints that the controller has never seen.

        Raises:
            InputError: With the numbers of trajectories that it knows.
        """
        asked, known = set(self.range.values[:-1]), set(self.controller.ks[:-1])
        if asked - known or self.range.maximum > self.controller.ks[-1]:
            raise InputError(
                f"The controller {self.controller.name} was trained to be asked at k = {sorted(known)} of at most "
                f"{self.controller.ks[-1]}, but k.start {self.range.start}, k.step {self.range.step} and k.maximum "
                f"{self.range.maximum} would ask it at k = {sorted(asked)}: change k, or train on such a harvest."
            )

    @property
    def start(self) -> int:
        """Trajectories at the beginning."""
        return self.range.start

    def asks(self, k: int) -> bool:
        """Return whether more could be added."""
        return k < self.range.maximum

    def more(self, k: int, p_enough: float | None) -> int:
        """Return ``step`` while ``1 - p_enough > threshold`` and ``k < maximum``, else 0."""
        if p_enough is None or not self.asks(k):
            return 0
        return self.range.step if 1.0 - p_enough > self.controller.threshold else 0
