"""What tests of whole harvests share."""

import numpy as np


def same(one, other):
    """Whether two stores hold the same trajectories with the same features."""
    if one.question_ids != other.question_ids:
        return False
    for a, b in zip(one, other, strict=True):
        for t, u in zip(a.trajectories, b.trajectories, strict=True):
            equal = t.tokens.tolist() == u.tokens.tolist() and t.text == u.text and t.correct == u.correct
            if not equal or not np.allclose(t.hidden, u.hidden, rtol=0, atol=1e-5):
                return False
    return True
