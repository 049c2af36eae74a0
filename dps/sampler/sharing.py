"""Which rows read their prompt's keys and values from one row: trajectories of a question hold the same ones."""

from __future__ import annotations

import numpy as np


def share_prompts(prompt: np.ndarray, shared: np.ndarray, reach: np.ndarray, count: int) -> np.ndarray:
    """Return what ``kernels.attend_rows`` takes as ``sharing``, for the first ``count`` of R rows.

    Rows of one prompt read it from the lowest of them, in programs that run side by side; the prompts of the longest
    rows come first, so that no long row is left for the end.

    Args:
        prompt: Number of each row's prompt, above 0, or 0 for a row that shares with none: shape (R,).
        shared: How many first positions rows of that prompt have in common, shape (R,).
        reach: How far each row may stand, shape (R,).
        count: Rows that the next steps run; no later row has a chain.

    Returns:
        Order of the programs, row to read from, positions to read there: int64, shape (3, R).

    >>> share_prompts(np.array([7, 0, 7, 9]), np.array([5, 0, 5, 3]), np.array([9, 0, 30, 20]), 4).tolist()
    [[2, 0, 3, 1], [0, 1, 0, 3], [5, 0, 5, 3]]
    """
    row = np.arange(len(prompt))
    _, first, group = np.unique(np.where(prompt > 0, prompt, -row), return_index=True, return_inverse=True)
    longest = np.zeros(len(first))
    np.maximum.at(longest, group, reach)
    order = np.lexsort((-reach[:count], group[:count], -longest[group[:count]]))
    return np.stack((np.concatenate((order, row[count:])), first[group], np.where(prompt > 0, shared, 0))).astype(
        np.int64
    )
