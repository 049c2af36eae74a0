"""Thresholds on how sure the model was of its own tokens: entropy and self-confidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dps.decide.seen import Seen


@dataclass(frozen=True)
class LowEntropy:
    """``p_enough`` is exp(-H), H the mean next-token entropy of the base model over all accepted tokens (nats)."""

    name: str = "entropy"
    threshold: float = 0.2
    """More trajectories while ``1 - p_enough`` is above this; none is published for this use."""

    def enough(self, seen: Seen) -> np.ndarray:
        """Return p_enough of N questions: shape (N,)."""
        return np.exp(-seen.entropy / seen.num_tokens)


@dataclass(frozen=True)
class SelfConfidence:
    """``p_enough`` is the base model's mean top-1 probability over all accepted tokens."""

    name: str = "self-confidence"
    threshold: float = 0.1
    """More trajectories while ``1 - p_enough`` is above this; none is published for this use."""

    def enough(self, seen: Seen) -> np.ndarray:
        """Return p_enough of N questions: shape (N,)."""
        return seen.top1 / seen.num_tokens
