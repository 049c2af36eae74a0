"""Which rows read their prompt's keys and values from one row: trajectories of a question hold the same ones."""

from __future__ import annotations

import numpy as np


def share_prompts(prompt: np.ndarray, shared: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Return what ``kernels.attend_rows`` takes as ``sharing``, for the B rows of the next steps.

    Rows of one prompt read it from the lowest of them, in programs that run side by side; the prompts of the longest
    rows come first, so that no long row is left for the end.

    Args:
        prompt: Number of each row's prompt, above 0, or 0 for a row that shares with none: shape (B,).
        shared: How many first positions rows of that prompt have in common, shape (B,).
        reach: How far each row may stand, shape (B,).

    Returns:
        Order of the programs, row to read from, positions to read there: int64, shape (3, B).

    >>> share_prompts(np.array([7, 0, 7, 9]), np.array([5, 0, 5, 3]), np.array([9, 0, 30, 20])).tolist()
    [[2, 0, 3, 1], [0, 1, 0, 3], [5, 0, 5, 3]]
    """
    _, first, group = np.unique(
        np.where(prompt > 0, prompt, -np.arange(len(prompt))), return_index=True, return_inverse=True
    )
    longest = np.zeros(len(first))
    np.maximum.at(longest, group, reach)
    order = np.lexsort((-reach, group, -longest[group]))
    return np.stack((order, first[group], np.where(prompt > 0, shared, 0))).astype(np.int64)
