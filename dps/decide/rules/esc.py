"""Early-stopping self-consistency: stop when the latest answers in a row are one answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dps.decide.seen import Seen


@dataclass(frozen=True)
class EarlyStoppingConsistency:
    """``p_enough`` is the share of the window that the latest run of equal answers fills.

    At the threshold 0 the rule is the published one: stop when the last ``window`` trajectories agree. A threshold of
    ``1 - w / window`` is the rule with the shorter window w, so one sweep tries them all. A response without an answer
    ends a run.

    Source:
        Li et al., "Escape Sky-high Cost: Early-stopping Self-Consistency for Multi-step Reasoning", ICLR 2024.
    """

    name: str = "esc"
    threshold: float = 0.0
    """More trajectories while ``1 - p_enough`` is above this."""
    window: int = 4
    """Trajectories that have to agree."""

    def enough(self, seen: Seen) -> np.ndarray:
        """Return p_enough of N questions: shape (N,)."""
        return np.minimum(seen.run, self.window) / self.window
