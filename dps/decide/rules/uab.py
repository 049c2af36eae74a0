"""Uncertainty-aware budget allocation: one look at every question, then a total shared out greedily."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dps.decide.seen import Seen


@dataclass(frozen=True)
class BudgetAllocation:
    """``1 - p_enough`` is what one more trajectory is expected to add to a question's coverage.

    The first trajectory's mean log p gives the question's uncertainty ``u = 1 - exp(mean log p)``, for good; with k
    trajectories its coverage is taken to be ``1 - u^k``. The gain ``u^k (1 - u)`` of each further trajectory falls with
    k, so sharing a total out greedily (always to the question that gains most) is exact, and is the same as going on
    with every question until its gain falls to one level. The threshold is that level; a sweep over it goes through
    all totals.

    Source:
        Nguyen, Gupta and Le, "Uncertainty-Aware Budget Allocation for Adaptive Test-Time Reasoning", arXiv 2605.26849.
    """

    name: str = "uab"
    threshold: float = 0.01
    """More trajectories while the gain is above this; none is published, it follows from the total."""

    def enough(self, seen: Seen) -> np.ndarray:
        """Return p_enough of N questions: shape (N,)."""
        uncertainty = -np.expm1(seen.probe)
        return 1.0 - uncertainty**seen.k * (1.0 - uncertainty)
