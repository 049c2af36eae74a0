"""How often a recorded batch is settled and looked at: whatever the engine's rows are doing just now decides.

A row whose proposal has ended waits for the next settling, a row whose chain has ended for the host's next look; both
cost all rows some time. Short answers end within tens of steps and need both often; long ones go thousands of steps and
need them rarely. The mean lengths come from what the rows did of late.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SETTLE_COST = 0.06
"""A settling, in steps: 0.1 to 0.2 ms beside steps of 1.3 to 7.5 ms."""
LOOK_COST = 0.3
"""A look, in steps: the device waits while the host copies some numbers, takes chains away and seats others."""
MOST_STEPS_PER_SETTLE = 4
MOST_STEPS_PER_LOOK = 32
_MEMORY = 0.9
"""What a look's counts weigh at the next look."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a batch's ended proposals are settled, and how often the host looks."""

    steps_per_settle: int
    settles_per_look: int

    @property
    def steps_per_look(self) -> int:
        """Steps between two looks."""
        return self.steps_per_settle * self.settles_per_look


def best_pace(proposal_length: float, chain_length: float) -> Pace:
    """Return the pace that wastes least, from the mean tokens of a row's proposals and of its whole chain.

    With an event every ``n`` steps of a row, noticed every ``s`` steps at a cost of ``c`` steps, a row waits ``s / 2``
    steps in ``n`` and the cost is ``c / s``: least at ``s = sqrt(2 c n)``.

    >>> best_pace(10, 70), best_pace(45, 900), best_pace(300, 9000)
    (Pace(steps_per_settle=1, settles_per_look=6), Pace(steps_per_settle=2, settles_per_look=12), \
Pace(steps_per_settle=4, settles_per_look=8))
    """
    settle = math.sqrt(2 * SETTLE_COST * proposal_length)
    steps = min(MOST_STEPS_PER_SETTLE, max(1, 2 ** round(math.log2(max(settle, 1.0)))))
    look = min(MOST_STEPS_PER_LOOK, math.sqrt(2 * LOOK_COST * chain_length))
    return Pace(steps, max(1, round(look / steps)))


class Pacer:
    """Keeps running means of how long proposals and chains are, and says the pace that suits them."""

    def __init__(self, block_size: int, num_mh_steps: int) -> None:
        """Begin with what a first block would be."""
        self._proposal_tokens, self._proposals = block_size / 2, 1.0
        self._chain_tokens, self._chains = block_size * (1 + num_mh_steps / 2), 1.0

    def note(self, tokens: int, proposals: int, chains: int) -> None:
        """Take in the tokens generated, the proposals decided and the chains ended between two looks."""
        self._proposal_tokens = _MEMORY * self._proposal_tokens + tokens
        self._proposals = _MEMORY * self._proposals + proposals
        self._chain_tokens = _MEMORY * self._chain_tokens + tokens
        self._chains = _MEMORY * self._chains + chains

    @property
    def pace(self) -> Pace:
        """The pace for the next look."""
        # Where nothing has ended for long, next to nothing of an event is left.
        return best_pace(
            self._proposal_tokens / max(self._proposals, 1e-3), self._chain_tokens / max(self._chains, 1e-3)
        )
