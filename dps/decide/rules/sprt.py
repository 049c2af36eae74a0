"""Mixture sequential probability ratio test: is the leading answer ahead of the second, or is it a coin's throw."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import comb

import numpy as np

from dps.decide.rules.adaptive_consistency import leads
from dps.decide.seen import Seen, by_votes


@dataclass(frozen=True)
class MixtureSPRT:
    """``p_enough`` is L / (1 + L), where L compares "the leading answer is ahead" with "the two are equally likely".

    L is the likelihood of the votes under p uniform on (1/2, 1) over that under p = 1/2, where p is the leading
    answer's share of the top two. The test at level 0.05 stops at L >= 20.

    Source:
        Lee et al., "ConSol: Sequential Probability Ratio Testing to Find Consistent LLM Reasoning Paths Efficiently",
        arXiv 2503.17587; the mixture here is uniform.
    """

    name: str = "sprt"
    threshold: float = 1 / 21
    """More trajectories while ``1 - p_enough = 1 / (1 + L)`` is above this."""

    def enough(self, seen: Seen) -> np.ndarray:
        """Return p_enough of N questions: shape (N,)."""
        return by_votes(ahead, seen)


@cache
def ahead(top: int, runner_up: int) -> float:
    """Return L / (1 + L); 1/2 where nothing was seen."""
    votes = top + runner_up
    # The integral of p^top (1 - p)^runner_up over (1/2, 1), times its density 2, is 2 B(top + 1, runner_up + 1) times
    # the posterior mass above 1/2; B is a whole number's inverse.
    ratio = 2 ** (votes + 1) * leads(top, runner_up) / ((votes + 1) * comb(votes, top))
    return ratio / (1 + ratio)
