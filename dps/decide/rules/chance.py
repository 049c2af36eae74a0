"""Escalation by chance: what a rule has to beat at the same cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dps.decide.seen import Seen


@dataclass(frozen=True)
class RandomEscalation:
    """``p_enough`` is a uniform random number that depends on seed, question and k only."""

    name: str = "random"
    threshold: float = 0.5
    """The probability of stopping at a checkpoint is this."""

    def enough(self, seen: Seen) -> np.ndarray:
        """Return p_enough of N questions: shape (N,), inside [0, 1)."""
        with np.errstate(over="ignore"):  # SplitMix64: arithmetic modulo 2^64
            z = seen.keys.astype(np.uint64) + np.uint64(seen.k + 1) * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
