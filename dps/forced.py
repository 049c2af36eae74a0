"""Lengths that responses are forced to: random weights never end sensibly, and speed depends on lengths.

`dps bench` and harvests with ``forced_mean_length`` draw them here; the engine keeps a chain to its length.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

_SHORTEST = 8


@dataclass(frozen=True, slots=True)
class ForcedLengths:
    """Log-normal lengths."""

    mean: int
    """Their mean, tokens."""
    spread: float
    """Standard deviation of their logarithm."""
    longest: int
    """T_max, tokens."""

    k: int
    """Trajectories of a question."""
    seed: int
    """With a question's id it decides its lengths."""

    def of(self, question_id: str) -> tuple[int, ...]:
        """Return the length of each trajectory of a question: at least 8 and at most T_max."""
        digest = hashlib.blake2b(f"{self.seed}/{question_id}".encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "little"))
        lengths = self.mean * np.exp(rng.normal(-(self.spread**2) / 2, self.spread, self.k))
        return tuple(np.clip(np.rint(lengths), min(_SHORTEST, self.longest), self.longest).astype(int).tolist())
