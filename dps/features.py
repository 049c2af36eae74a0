"""Features of a checkpoint (METHOD section 3): pure functions of finished trajectories.

Training reads trajectories from a store, a live run has just finished them; both call :func:`checkpoint_features`, so a
controller sees the same numbers in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from feature_store.records import Trajectory

SCALAR_FEATURES: tuple[str, ...] = (
    "mcmc_perplexity",
    "mcmc_entropy",
    "mcmc_self_confidence",
    "acceptance_ratio",
    "question_time_sec",
    "current_k",
)
"""The published six, in the order of the arrays."""

Pooling = Literal["mean", "last"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


@dataclass(frozen=True, slots=True, eq=False)
class CheckpointFeatures:
    """What a controller sees of one question at one checkpoint."""

    scalars: np.ndarray
    """The features named by :data:`SCALAR_FEATURES`: shape (6,), float64."""
    hidden: np.ndarray
    """Pooled hidden state: shape (D,), float32."""
    embedding: np.ndarray
    """Question embedding: shape (E,), float32."""


def calibrated_seconds(num_tokens: int, num_prompt_tokens: int, calibration: Mapping[str, float]) -> float:
    """Return the calibrated time of that many generated and prompt tokens, seconds (METHOD section 5).

    Args:
        num_tokens: Generated tokens, rejected ones included.
        num_prompt_tokens: Prompt tokens of the question's one shared prefill.
        calibration: ``seconds_per_token`` and ``prefill_seconds_per_token``, as stored with the run.
    """
    return num_tokens * calibration["seconds_per_token"] + num_prompt_tokens * calibration["prefill_seconds_per_token"]


def pool_hidden(trajectory: Trajectory, pooling: str) -> np.ndarray:
    """Pool a trajectory's block averages to one vector.

    Args:
        trajectory: A finished trajectory with hidden states of shape (b, D).
        pooling: ``mean`` weights each block by its tokens (the mean over tokens); ``last`` takes the last block.

    Returns:
        Shape (D,), float32.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"expected a pooling among {', '.join(POOLINGS)}, got {pooling!r}")
    if pooling == "last" or len(trajectory.hidden) == 1:
        return trajectory.hidden[-1]
    weights = trajectory.block_num_tokens / trajectory.block_num_tokens.sum()
    return (weights[:, None] * trajectory.hidden).sum(axis=0).astype(np.float32)


def checkpoint_features(
    trajectories: Sequence[Trajectory],
    *,
    num_prompt_tokens: int,
    embedding: np.ndarray,
    calibration: Mapping[str, float],
    pooling: str = "mean",
) -> CheckpointFeatures:
    """Compute the features of one question from the k trajectories finished so far.

    With the accepted tokens of all k trajectories pooled (each token counts once, N of them): perplexity
    ``exp(-sum log p / N)``, mean entropy, mean top-1 probability; acceptance ratio ``accepted / proposed`` with 0 of 0
    counted as 1; the calibrated time of all generated tokens and one prefill; k. The hidden state is pooled over
    blocks, then averaged over trajectories.

    Args:
        trajectories: The k finished trajectories, k >= 1.
        num_prompt_tokens: Length of the question's prompt.
        embedding: Question embedding, shape (E,).
        calibration: The calibrated clock of the run that trains the controller.
        pooling: How blocks become one vector, see :func:`pool_hidden`.

    Source:
        METHOD section 3.
    """
    num_tokens = sum(int(t.block_num_tokens.sum()) for t in trajectories)
    proposed = sum(t.mh_proposed for t in trajectories)
    accepted = sum(t.mh_accepted for t in trajectories)
    scalars = np.array(
        [
            np.exp(-sum(float(t.block_logprob.sum()) for t in trajectories) / num_tokens),
            sum(float(t.block_entropy.sum()) for t in trajectories) / num_tokens,
            sum(float(t.block_top1.sum()) for t in trajectories) / num_tokens,
            accepted / proposed if proposed else 1.0,
            calibrated_seconds(sum(t.num_generated_tokens for t in trajectories), num_prompt_tokens, calibration),
            float(len(trajectories)),
        ]
    )
    hidden = np.mean([pool_hidden(t, pooling) for t in trajectories], axis=0, dtype=np.float64).astype(np.float32)
    return CheckpointFeatures(scalars, hidden, np.asarray(embedding, dtype=np.float32))
