"""Labels of checkpoints (METHOD section 4): what a controller's probability is the probability of."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Label = Literal["no_gain", "correct"]
LABELS: tuple[str, ...] = get_args(Label)


def labels_of(correct: np.ndarray, label: str) -> np.ndarray:
    """Return the label of every checkpoint (..., C) from whether the answer of each k is right (..., C + 1).

    ``correct``: the answer of this k is right. ``no_gain``: no larger k up to the maximum turns a wrong answer right,
    so a hopeless question is also enough. A ValueError for any other label.
    """
    if label not in LABELS:
        raise ValueError(f"expected a label among {', '.join(LABELS)}, got {label!r}")
    now = correct[..., :-1]
    if label == "correct":
        return now
    later = np.logical_or.accumulate(correct[..., :0:-1], axis=-1)[..., ::-1]
    return now | ~later


def continue_score(p_enough: np.ndarray) -> np.ndarray:
    """Return ``p_inc = 1 - p_enough``, which must be above the threshold for a question to continue."""
    return 1.0 - p_enough
