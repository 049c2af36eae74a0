"""The stopping rules that need no training, with their published thresholds where there are any.

A rule says how sure it is that k trajectories are enough; more are added while ``1 - p_enough`` is above its threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import comb

import numpy as np

from dps.decide.policy import Rule
from dps.decide.seen import Seen, by_votes
from dps.errors import InputError


@dataclass(frozen=True)
class AdaptiveConsistency:
    """``p_enough`` is the posterior probability that the leading answer is more likely than the runner-up.

    With v1 and v2 votes and a uniform prior on the leading answer's share p of the two, that is P(p > 1/2) under
    Beta(v1 + 1, v2 + 1). The published rule stops at 0.95.

    Source:
        Aggarwal et al., "Let's Sample Step by Step: Adaptive-Consistency for Efficient Reasoning and Coding with
        LLMs", EMNLP 2023, the Beta criterion.
    """

    name: str = "adaptive-consistency"
    threshold: float = 0.05

    def enough(self, seen: Seen) -> np.ndarray:
        """Return p_enough of N questions: shape (N,)."""
        return by_votes(beta_posterior, seen.top, seen.runner_up)


@cache
def beta_posterior(top: int, runner_up: int) -> float:
    """Return P(p > 1/2) under Beta(top + 1, runner_up + 1).

    It is the chance of at most ``top`` heads in ``top + runner_up + 1`` throws of a fair coin: a sum of whole numbers.
    """
    throws = top + runner_up + 1
    return sum(comb(throws, heads) for heads in range(top + 1)) / 2**throws


@dataclass(frozen=True)
class EarlyStoppingConsistency:
    """``p_enough`` is the share of the window that the latest run of equal answers fills.

    At the threshold 0 the rule is the published one: stop when the last ``window`` trajectories agree. A threshold of
    ``1 - w / window`` is the rule with the shorter window w, so one sweep tries them all. A response without an answer
    ends a run.

    Source:
        Li et al., "Escape Sky-high Cost: Early-stopping Self-Consistency for Multi-step Reasoning", ICLR 2024.
    """

    name: str = "esc"
    threshold: float = 0.0
    window: int = 4

    def enough(self, seen: Seen) -> np.ndarray:
        """Return p_enough of N questions: shape (N,)."""
        return np.minimum(seen.run, self.window) / self.window


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

    def enough(self, seen: Seen) -> np.ndarray:
        """Return p_enough of N questions: shape (N,)."""
        ratio = by_votes(mixture_ratio, seen.top, seen.runner_up)
        return ratio / (1 + ratio)


@cache
def mixture_ratio(top: int, runner_up: int) -> float:
    """Return L; 1 where nothing was seen."""
    votes = top + runner_up
    # The integral of p^top (1 - p)^runner_up over (1/2, 1), times its density 2, is 2 B(top + 1, runner_up + 1) times
    # the posterior mass above 1/2; B is a whole number's inverse.
    return 2 ** (votes + 1) * beta_posterior(top, runner_up) / ((votes + 1) * comb(votes, top))


@dataclass(frozen=True)
class Certificate:
    """Stop when the leading answer is certified to be the model's single most likely one, whatever answers there are.

    At any time, an answer that is not the single most likely one has been certified with a probability of at most
    ``level``. Let M(x, y) be L of :class:`MixtureSPRT` for x and y votes, the mean of (2p)^x (2 - 2p)^y over p uniform
    on (1/2, 1). From any moment that the past decides, M of the later votes for a and b is a nonnegative
    supermartingale that starts at 1 if b is at least as likely as a. M falls with y, so M(x, largest y) is at most
    M(x, y) for every rival b, also for one that nobody has seen; that it ever reaches 1/e has a probability of at most
    e (Ville). The j-th distinct answer counts from its first vote, which is not counted itself, and has the share
    1 / (j (j + 1)) of the level; these shares add up to 1. So E = M(x, y) / (j (j + 1)) of the leading answer certifies
    it at E >= 1 / level, and ``p_enough`` is ``level E / (1 + level E)``. Of answers with equally many votes the first
    one leads; a tie is never certified.

    Of responses from several arms, this holds for every answer that one and the same other answer equals or beats in
    each arm.

    Source:
        Ota et al., "CITE: Anytime-Valid Statistical Inference in LLM Self-Consistency", arXiv 2605.05873: the smallest
        of the pairwise e-processes against all rivals, for one answer named beforehand. Cordero-Encinar and Duncan,
        "Certified Self-Consistency", arXiv 2510.17472: mixtures over p > 1/2 for the leading answer. Counting from
        the first vote with shares of the level, so that the votes may choose the answer, is ours.
    """

    name: str = "certificate"
    threshold: float = 0.5
    level: float = 0.05

    def __post_init__(self) -> None:
        """Raise InputError if the level is no probability."""
        if not 0 < self.level < 1:
            raise InputError(f"rules.{self.name}.level must be above 0 and below 1, got {self.level:g}.")

    def enough(self, seen: Seen) -> np.ndarray:
        """Return p_enough of N questions: shape (N,)."""
        classes = np.stack(seen.history, axis=1)
        (rows, k), most = classes.shape, int(classes.max(initial=0)) + 1
        cells = np.arange(rows)[:, None] * most + classes

        def votes(counted: np.ndarray) -> np.ndarray:
            return np.bincount(cells[counted], minlength=rows * most).reshape(rows, most)

        first = np.full((rows, most), k)
        for place in range(k - 1, -1, -1):
            first.flat[cells[classes[:, place] >= 0, place]] = place
        every = np.arange(rows)
        leader = (votes(classes >= 0) * (k + 1) - first).argmax(axis=1)
        since = first[every, leader]
        later = votes((np.arange(k) > since[:, None]) & (classes >= 0))
        own = later[every, leader]
        later[every, leader] = 0
        j = 1 + (first < since[:, None]).sum(axis=1)
        evidence = self.level * by_votes(mixture_ratio, own, later.max(axis=1)) / (j * (j + 1))
        return np.where(since < k, evidence / (1 + evidence), 0.0)


@dataclass(frozen=True)
class LowEntropy:
    """``p_enough`` is exp(-H), H the mean next-token entropy of the base model over all accepted tokens (nats)."""

    name: str = "entropy"
    threshold: float = 0.2  # none is published for this use

    def enough(self, seen: Seen) -> np.ndarray:
        """Return p_enough of N questions: shape (N,)."""
        return np.exp(-seen.entropy / seen.num_tokens)


@dataclass(frozen=True)
class SelfConfidence:
    """``p_enough`` is the base model's mean top-1 probability over all accepted tokens."""

    name: str = "self-confidence"
    threshold: float = 0.1  # none is published for this use

    def enough(self, seen: Seen) -> np.ndarray:
        """Return p_enough of N questions: shape (N,)."""
        return seen.top1 / seen.num_tokens


@dataclass(frozen=True)
class BudgetAllocation:
    """``1 - p_enough`` is what one more trajectory is expected to add to a question's coverage.

    The first trajectory's mean log p gives the question's uncertainty ``u = 1 - exp(mean log p)``, for good; with k
    trajectories its coverage is taken to be ``1 - u^k``. The gain ``u^k (1 - u)`` of each further trajectory falls with
    k, so sharing a total out greedily (always to the question that gains most) is exact, and is the same as going on
    with every question until its gain falls to one level. The threshold is that level; a sweep over it goes through
    all totals.

    Source:
        Nguyen, Gupta and Le, "Uncertainty-Aware Budget Allocation for Adaptive Test-Time Reasoning", arXiv 2605.26849.
    """

    name: str = "uab"
    threshold: float = 0.01  # none is published, it follows from the total

    def enough(self, seen: Seen) -> np.ndarray:
        """Return p_enough of N questions: shape (N,)."""
        uncertainty = -np.expm1(seen.probe)
        return 1.0 - uncertainty**seen.k * (1.0 - uncertainty)


@dataclass(frozen=True)
class LeadingVotes:
    """``p_enough`` is the share of the margin by which the leading answer is ahead of the second.

    At the threshold 0 the leading answer must be ahead by ``margin`` votes; lead-1, lead-2 and lead-3 are the margins
    1, 2 and 3. A threshold of ``1 - m / margin`` is the rule with the smaller margin m, so one sweep tries them all. A
    response without an answer has no vote.
    """

    name: str = "lead"
    threshold: float = 0.0
    margin: int = 2

    def enough(self, seen: Seen) -> np.ndarray:
        """Return p_enough of N questions: shape (N,)."""
        return np.minimum(seen.top - seen.runner_up, self.margin) / self.margin


@dataclass(frozen=True)
class RandomEscalation:
    """``p_enough`` is a uniform random number that depends on seed, question and k only: what a rule has to beat."""

    name: str = "random"
    threshold: float = 0.5  # the probability of stopping at a checkpoint

    def enough(self, seen: Seen) -> np.ndarray:
        """Return p_enough of N questions: shape (N,), inside [0, 1)."""
        with np.errstate(over="ignore"):  # SplitMix64: arithmetic modulo 2^64
            z = seen.keys.astype(np.uint64) + np.uint64(seen.k + 1) * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


LEADS = {f"lead-{margin}": LeadingVotes(f"lead-{margin}", margin=margin) for margin in (1, 2, 3)}
"""Points of the sweep of ``lead``, by name."""
_ALL: tuple[Rule, ...] = (
    AdaptiveConsistency(), EarlyStoppingConsistency(), MixtureSPRT(), LowEntropy(), SelfConfidence(),
    Certificate(), BudgetAllocation(), LeadingVotes(), *LEADS.values(),
    RandomEscalation(),
)  # fmt: skip
RULES: dict[str, Rule] = {rule.name: rule for rule in _ALL}
WIDTHS = {"esc": "window", "lead": "margin"}
"""The setting, at least 1, that a rule's threshold goes through: a sweep at its largest value has the smaller ones."""
