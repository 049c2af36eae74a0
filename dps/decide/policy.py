"""Policies: how many trajectories a question gets.

A policy climbs a ladder: a question gets the responses of the first rung; when these have ended, the policy is asked
whether they are enough, and so on. Light: the controllers are passed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from dps.decide.features import CheckpointFeatures
from dps.decide.ladder import POWER, KRange, Ladder, from_ks
from dps.decide.seen import Seen
from dps.errors import InputError


class Controller(Protocol):
    """What a trained controller offers; ``lightning_modules.load_controller`` returns one."""

    name: str
    """``gbdt``, ``mlp-h``, ``mlp-hq``, ..."""
    threshold: float
    """More trajectories are added while ``1 - p_enough`` is above this."""
    calibration: Mapping[str, float]
    """The clock of the run that the controller was trained on."""
    ladder: Ladder
    """The ladder of the training, with a checkpoint after each rung but the last."""
    arms: Mapping[str, Any]
    """The settings of the ladder's arms in the harvest, by name."""
    parts: frozenset[str]
    """The parts of the features that are needed, of :data:`dps.decide.features.PARTS`."""
    prompt_layers: Sequence[int]
    """The layers of the prompt's hidden states in its harvest."""
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


@dataclass(frozen=True, slots=True, repr=False)
class Policy:
    """Climb while a controller or a rule is not sure enough; without either, to the end.

    Example:
        >>> from dps import RULES, Ladder, Policy
        >>> Policy(Ladder.parse(["lowtemp 2", "lowtemp 2", "power 4"]), rule=RULES["lead-2"])
        Policy([lowtemp 2, lowtemp 2, power 4], rule lead-2, threshold 0)
    """

    ladder: Ladder
    """What is climbed. The responses after each rung name the rung."""
    controller: Controller | None = None
    """The trained controller that is asked; None for no controller."""
    rule: Rule | None = None
    """The rule that is asked where no controller is; None for no rule."""

    def __post_init__(self) -> None:
        """Raise InputError if the controller has never seen a checkpoint of the ladder."""
        if self.controller is not None:
            check_known(self.ladder, self.controller)

    def __repr__(self) -> str:
        kind = "rule" if self.controller is None else "controller"
        asked = "" if self.asker is None else f", {kind} {self.asker.name}, threshold {self.asker.threshold:g}"
        return f"Policy({self.ladder}{asked})"

    @property
    def start(self) -> int:
        """Responses at the beginning: those of the first rung, or all where nobody is asked."""
        return self.ladder.maximum if self.asker is None else self.ladder.ks[0]

    @property
    def asker(self) -> Controller | Rule | None:
        """The controller or the rule that is asked."""
        return self.controller or self.rule

    def asks(self, k: int) -> bool:
        """Whether the controller or the rule is asked when k responses have ended."""
        return self.asker is not None and k < self.ladder.maximum

    def more(self, k: int, p_enough: float | None) -> int:
        """Return how many responses are added after k: those of the next rung while ``1 - p_enough > threshold``.

        0 ends the question.
        """
        rung = self.ladder.rung_after(k)
        if self.asker is None or p_enough is None or rung is None:
            return 0
        return rung.count if 1.0 - p_enough > self.asker.threshold else 0


def check_known(ladder: Ladder, controller: Controller) -> None:
    """Raise InputError if a controller would be asked after responses that it has never seen together.

    It knows the beginnings of its own ladder; where that has one arm only, also ladders that leave out some of its k.
    """
    own = controller.ladder
    if ladder.arms != own.arms or len(ladder.arms) > 1:
        last, count = ladder.rungs[-1], len(ladder.rungs)
        at = own.rungs[count - 1] if count <= len(own.rungs) else None
        begins = ladder.rungs[:-1] == own.rungs[: count - 1]
        if not (at is not None and begins and at.arm == last.arm and last.count <= at.count):
            raise InputError(
                f"The controller {controller.name} was trained on the ladder {own}, but the ladder is {ladder}: use "
                "its ladder or a beginning of it, or train on this one (data.init_args.ladder)."
            )
        return
    asked, known = set(ladder.ks[:-1]), set(own.ks[:-1])
    if asked - known or ladder.maximum > own.maximum:
        raise InputError(
            f"The controller {controller.name} was trained to be asked at k = {sorted(known)} of at most "
            f"{own.maximum}, but k up to {ladder.maximum} would ask it at k = {sorted(asked)}: change k.start, "
            "k.step and k.maximum or the ladder, or train on such a harvest."
        )


def check_arms(controller: Controller, arms: Mapping[str, Any]) -> None:
    """Raise InputError if responses are drawn in another way than those that a controller was trained on.

    Args:
        controller: What will be asked.
        arms: The sampler of each arm that is climbed, by name: its settings, or what a manifest has of them.
    """
    for arm in sorted(controller.arms.keys() & arms.keys()):
        trained, here = _drawn_by(controller.arms[arm]), _drawn_by(arms[arm])
        if name := next((name for name in trained if trained[name] != here[name]), None):
            raise InputError(
                f"The controller {controller.name} was trained on the arm {arm} with {name} {trained[name]}, but here "
                f"it has {here[name]}: set arms.{arm} or the sampler as its harvest has them, or train on this arm."
            )


def _drawn_by(sampler: Any) -> dict[str, Any]:
    """Return what arms may differ in, see :class:`dps.sampler.arms.Arm`."""
    settings = sampler if isinstance(sampler, Mapping) else asdict(sampler)
    drawn = {name: settings.get(name) for name in ("alpha", "proposal_temperature", "num_mh_steps")}
    if drawn["proposal_temperature"] is None and drawn["alpha"]:
        drawn["proposal_temperature"] = 1 / drawn["alpha"]
    return drawn


def FixedK(k: int) -> Policy:
    """Return the policy that gives every question k trajectories."""
    return Policy(from_ks(POWER, [k]))


def DynamicK(k_range: KRange | Ladder, controller: Controller) -> Policy:
    """Return the policy that asks a controller; raises InputError if that does not know the ladder."""
    return Policy(k_range if isinstance(k_range, Ladder) else k_range.ladder(), controller=controller)


def RuleK(k_range: KRange | Ladder, rule: Rule) -> Policy:
    """Return the policy that asks a rule."""
    return Policy(k_range if isinstance(k_range, Ladder) else k_range.ladder(), rule=rule)
