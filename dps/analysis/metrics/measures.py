"""The three metrics of one response, from the sums that its trajectory keeps.

All are of the base model, whatever drew the response (METHOD section 3). The published code takes them from the
tempered probabilities of the sampled tokens alone; that is a different quantity, so values must not be compared across
the two.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from feature_store import Trajectory

METRICS = ("entropy", "perplexity", "self_confidence")
"""Their published names."""


class Measures(NamedTuple):
    """The metrics of one response; NaN where the store does not have them."""

    entropy: float
    """Mean entropy of the base model's next-token distribution, nats."""
    perplexity: float
    """exp of the mean of -log p(x_t) under the base model."""
    self_confidence: float
    """Mean of the base model's largest next-token probability."""


def measure(trajectory: Trajectory) -> Measures:
    """Return the metrics of a response over its accepted tokens, EOS included.

    Source:
        METHOD section 3, for one trajectory instead of k pooled.
    """
    count = int(trajectory.block_num_tokens.sum())
    if count == 0:
        return Measures(np.nan, np.nan, np.nan)
    return Measures(
        entropy=float(trajectory.block_entropy.sum()) / count,
        perplexity=float(np.exp(-trajectory.block_logprob.sum() / count)),
        self_confidence=float(trajectory.block_top1.sum()) / count,
    )


def acceptance_ratio(trajectory: Trajectory) -> float:
    """Return accepted over proposed Metropolis-Hastings steps; 0 of 0 is 1."""
    return trajectory.mh_accepted / trajectory.mh_proposed if trajectory.mh_proposed else 1.0
