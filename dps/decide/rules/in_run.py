"""Asking inside a run: what happens while the trajectories of a question still run.

A policy is asked when all k trajectories have ended. Beside it, controllers may be asked as soon as the k have all
ended or reached the end of a given block (a checkpoint (k, block)): to escalate early, so that more trajectories start
while the first still run, or to give the question up, so that nothing more is spent on it. What they see at a
checkpoint is what the trajectories were at the end of that block, whenever they are asked: it depends on seed and
question only. Where all had ended by then, nobody is asked: the policy itself is, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dps.decide.policy import Controller, KRange
from dps.errors import InputError


@dataclass(frozen=True, slots=True)
class InRun:
    """Who is asked after which blocks, below the largest k, and what follows."""

    range: KRange
    """Of the policy beside which they are asked."""
    escalation: Mapping[int, Controller] = field(default_factory=dict)
    """Controllers by the block after which each is asked whether k is enough."""
    escalation_threshold: float | None = None
    """``step`` trajectories more start at once if ``1 - p_enough`` is above this; each controller's own if None."""
    give_up: Mapping[int, Controller] = field(default_factory=dict)
    """Controllers by the block after which each is asked whether this or a larger k will give the right answer."""
    give_up_threshold: float | None = None
    """The question is given up if that probability is not above this; each controller's own if None."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks after which somebody is asked, in order."""
        return tuple(sorted({*self.escalation, *self.give_up}))

    def asks(self, k: int) -> bool:
        """Return whether anybody is asked while k trajectories run."""
        return k < self.range.maximum

    def escalates(self, block: int, p_enough: float) -> bool:
        """Return whether more trajectories start now."""
        threshold = self.escalation_threshold
        return 1.0 - p_enough > (self.escalation[block].threshold if threshold is None else threshold)

    def gives_up(self, block: int, p_solvable: float) -> bool:
        """Return whether the question is given up."""
        threshold = self.give_up_threshold
        return p_solvable <= (self.give_up[block].threshold if threshold is None else threshold)


def in_run(
    k_range: KRange,
    *,
    escalation: Sequence[Controller] = (),
    escalation_threshold: float | None = None,
    give_up: Sequence[Controller] = (),
    give_up_threshold: float | None = None,
    block_size: int,
) -> InRun:
    """Return what is asked inside a run, each controller after the block that it was trained for.

    Args:
        k_range: Where the policy beside them may stop.
        escalation: Controllers that say whether k is enough.
        escalation_threshold: See :class:`InRun`.
        give_up: Controllers that say whether the question is solvable.
        give_up_threshold: See :class:`InRun`.
        block_size: Tokens of a block of the run.

    Raises:
        InputError: If a controller was trained to be asked elsewhere, or about something else.
    """
    found = []
    for use, controllers, labels in (
        ("escalate early", escalation, ("no_gain", "correct")),
        ("give up", give_up, ("solvable",)),
    ):
        by_block: dict[int, Controller] = {}
        for controller in controllers:
            if controller.block is None:
                raise InputError(
                    f"The controller {controller.name} was trained to be asked at the end of k trajectories, so it "
                    f"cannot {use} while they run: train one with data.block set to a block of a harvest with "
                    "checkpoint_blocks."
                )
            if controller.label not in labels:
                raise InputError(
                    f"To {use} needs a controller trained with data.label {' or '.join(labels)}, but "
                    f"{controller.name} was trained with {controller.label}: train another, or name it elsewhere."
                )
            if controller.block_size != block_size:
                raise InputError(
                    f"The controller {controller.name} was trained to be asked after blocks of "
                    f"{controller.block_size} tokens, but sampler.block_size is {block_size}: set it to that, or train "
                    "on such a harvest."
                )
            if controller.block in by_block:
                raise InputError(
                    f"Two controllers to {use} were both trained to be asked after block {controller.block}: leave "
                    "one of them out."
                )
            k_range.check_known(controller)
            by_block[controller.block] = controller
        found.append(by_block)
    return InRun(k_range, found[0], escalation_threshold, found[1], give_up_threshold)
