"""Adaptive-Consistency: stop when the leading answer is surely ahead of the second, by a Beta posterior."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import comb

import numpy as np

from dps.decide.seen import Seen, by_votes


@dataclass(frozen=True)
class AdaptiveConsistency:
    """``p_enough`` is the posterior probability that the leading answer is more likely than the runner-up.

    With v1 and v2 votes and a uniform prior on the leading answer's share p of the two, that is P(p > 1/2) under
    Beta(v1 + 1, v2 + 1). The published rule stops at 0.95.

    Source:
        Aggarwal et al., "Let's Sample Step by Step: Adaptive-Consistency for Efficient Reasoning and Coding with
        LLMs", EMNLP 2023, the Beta criterion.
    """

    name: str = "adaptive-consistency"
    threshold: float = 0.05
    """More trajectories while ``1 - p_enough`` is above this."""

    def enough(self, seen: Seen) -> np.ndarray:
        """Return p_enough of N questions: shape (N,)."""
        return by_votes(leads, seen)


@cache
def leads(top: int, runner_up: int) -> float:
    """Return P(p > 1/2) under Beta(top + 1, runner_up + 1).

    It is the chance of at most ``top`` heads in ``top + runner_up + 1`` throws of a fair coin: a sum of whole numbers.
    """
    throws = top + runner_up + 1
    return sum(comb(throws, heads) for heads in range(top + 1)) / 2**throws
