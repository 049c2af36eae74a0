"""Policies: how many trajectories a question gets.

A policy starts a question with ``start`` trajectories; when these have ended, the policy is asked how many
more the question should get. Light: the controllers are passed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dps.decide.features import CheckpointFeatures
from dps.decide.seen import Seen
from dps.errors import InputError


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
        """Return self if the maximum can be reached, raise InputError otherwise."""
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

    def check_known(self, controller: Controller) -> None:
        """Raise InputError if a controller would be asked at a k that it has never seen."""
        asked, known = set(self.values[:-1]), set(controller.ks[:-1])
        if asked - known or self.maximum > controller.ks[-1]:
            raise InputError(
                f"The controller {controller.name} was trained to be asked at k = {sorted(known)} of at most "
                f"{controller.ks[-1]}, but k.start {self.start}, k.step {self.step} and k.maximum "
                f"{self.maximum} would ask it at k = {sorted(asked)}: change k, or train on such a harvest."
            )


class Controller(Protocol):
    """What a trained controller offers; ``lightning_modules.load_controller`` returns one."""

    name: str
    """``gbdt``, ``mlp-h``, ``mlp-hq``, ..."""
    threshold: float
    """More trajectories are added while ``1 - p_enough`` is above this."""
    calibration: Mapping[str, float]
    """The clock of the run that the controller was trained on."""
    ks: Sequence[int]
    """Checkpoints of the training, then the largest k of the harvest."""
    parts: frozenset[str]
    """The parts of the features that are needed, of :data:`dps.decide.features.PARTS`."""
    label: str
    """What ``p_enough`` is the probability of, one of :data:`dps.decide.labels.LABELS`."""

    def predict_enough(self, features: Sequence[CheckpointFeatures]) -> np.ndarray:
        """Return the probability that the current k is enough, one per question, shape (N,)."""

    def check_model(self, identity: Mapping[str, Any], embedding_size: int | None = None) -> None:
        """Raise InputError if the controller was trained on features of another model, layer or embedder."""


class Rule(Protocol):
    """A stopping rule that needs no training: only the answers and how sure the model was decide."""

    @property
    def name(self) -> str:
        """``adaptive-consistency``, ``esc``, ..."""

    @property
    def threshold(self) -> float:
        """More trajectories are added while ``1 - p_enough`` is above this."""

    def enough(self, seen: Seen) -> np.ndarray:
        """Return how sure the rule is that k is enough, in [0, 1], for N questions: shape (N,)."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Add trajectories while a controller or a rule is not sure enough (METHOD section 4); without either, never."""

    range: KRange
    """Where the policy may stop."""
    controller: Controller | None = None
    """The trained controller that is asked; None for no controller."""
    rule: Rule | None = None
    """The rule that is asked where no controller is; None for no rule."""

    def __post_init__(self) -> None:
        """Raise InputError if the controller has never seen a checkpoint of the range."""
        if self.controller is not None:
            self.range.check_known(self.controller)

    @property
    def start(self) -> int:
        """Trajectories at the beginning."""
        return self.range.start

    def asks(self, k: int) -> bool:
        """Whether the controller or the rule is asked when k trajectories have ended."""
        return (self.controller or self.rule) is not None and k < self.range.maximum

    def more(self, k: int, p_enough: float | None) -> int:
        """Return ``step`` while ``1 - p_enough > threshold`` and ``k < maximum``, else 0, which ends the question."""
        asker = self.controller or self.rule
        if asker is None or p_enough is None or k >= self.range.maximum:
            return 0
        return self.range.step if 1.0 - p_enough > asker.threshold else 0


def FixedK(k: int) -> Policy:
    """Return the policy that gives every question k trajectories."""
    return Policy(KRange(k, 1, k))


def DynamicK(k_range: KRange, controller: Controller) -> Policy:
    """Return the policy that asks a controller; raises InputError if that does not know the range."""
    return Policy(k_range, controller=controller)


def RuleK(k_range: KRange, rule: Rule) -> Policy:
    """Return the policy that asks a rule."""
    return Policy(k_range, rule=rule)
