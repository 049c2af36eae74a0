"""pass@k: the chance that at least one of k trajectories is right, from the n that a run has.

Estimated without bias by the share of all subsets of k that hold a right one. Trajectories of a policy whose number
depends on the answers (a controller's) cannot be exchanged, so such policies have no pass@k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

import numpy as np

from dps.analysis.metrics.samples import Pooled
from dps.analysis.report.words import json_number
from dps.estimates import estimate

COLUMNS = ("policy", "k", "pass_at_k", "stderr", "num_questions", "num_trajectories", "num_ungradable")
"""Columns of the table."""


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Return ``1 - C(n - c, k) / C(n, k)``, the share of subsets of k trajectories with at least one right.

    Args:
        num_samples: n, the trajectories of a question.
        num_right: c, how many of them are right.
        k: Size of the subsets, 1 to n.

    Raises:
        ValueError: Unless ``0 <= c <= n`` and ``1 <= k <= n``.

    Source:
        Chen et al. 2021, "Evaluating Large Language Models Trained on Code", section 2.1.
    """
    if not (0 <= num_right <= num_samples and 1 <= k <= num_samples):
        raise ValueError(f"expected 0 <= c <= n and 1 <= k <= n, got n {num_samples}, c {num_right}, k {k}")
    total = comb(num_samples, k)
    return (total - comb(num_samples - num_right, k)) / total  # whole numbers, so the only rounding is the last


def curves(pooled: Mapping[str, Pooled], policies: Sequence[str]) -> list[dict[str, Any]]:
    """Return pass@k of every policy for every k up to the fewest trajectories that a question has.

    The mean is over the questions that all policies have and that have a gold answer, its standard error over
    questions. A trajectory that could not be graded counts as not right.

    Args:
        pooled: What the runs say, by question id.
        policies: Which policies, in the order wanted.

    Returns:
        Rows with the keys of :data:`COLUMNS`; none if there is no such question.
    """
    entries = [entry for _, entry in sorted(pooled.items()) if all(map(entry.counts, policies))]
    if not entries:
        return []
    result = []
    for policy in policies:
        counts = [(len(entry.correct[policy]), sum(map(bool, entry.correct[policy]))) for entry in entries]
        fewest = min(n for n, _ in counts)
        ungradable = sum(entry.correct[policy].count(None) for entry in entries)
        for k in range(1, fewest + 1):
            found = estimate(np.array([pass_at_k(n, c, k) for n, c in counts]))
            result.append(
                {
                    "policy": policy,
                    "k": k,
                    "pass_at_k": found.value,
                    "stderr": json_number(found.stderr),
                    "num_questions": found.num_questions,
                    "num_trajectories": fewest,
                    "num_ungradable": ungradable,
                }
            )
    return result


def shown_ks(largest: int) -> list[int]:
    """Return the k's of a short table: powers of two, and the largest."""
    powers = [1 << i for i in range(largest.bit_length()) if 1 << i <= largest]
    return sorted({*powers, largest})
