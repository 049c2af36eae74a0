"""What no stopping rule can beat on given trajectories: perfect knowledge, and the best rule that sees votes only.

Both weigh accuracy against tokens by a rate, in points (hundredths) of accuracy per 1,000 tokens: a policy's worth is
``100 correct - rate tokens / 1000`` on average, so a sweep over rates draws the whole front. All functions are pure.
Rows are N questions in orders of their trajectories, ``correct`` and ``tokens`` have shape (N, C + 1): C checkpoints,
then the maximum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dps.decide.seen import Seen
from dps.decide.splits import other_folds

NUM_RATES = 24
"""Rates of a sweep above 0."""
_POINT = 100 * 1000
"""One right answer in the unit of rate times tokens."""

States = Sequence[tuple[np.ndarray, np.ndarray]]
"""For each checkpoint the number of each row's vote state, and of a coarser one: (N,), int64, each from 0."""


def rates_for(tokens: np.ndarray) -> np.ndarray:
    """Return the rates of a sweep: 0, then from hardly any to three times one right answer for the tokens of a step.

    They are spread evenly over their logarithms: shape (NUM_RATES + 1,). ``tokens`` has shape (..., C + 1), C >= 1.
    """
    step = max(float(np.diff(tokens, axis=-1).mean()), 1e-9)
    return np.concatenate([[0.0], _POINT / step * np.logspace(-3.5, 0.5, NUM_RATES)])


def perfect(correct: np.ndarray, tokens: np.ndarray, rate: float) -> np.ndarray:
    """Return where one stops who knows what every k will answer: the best worth, row by row: shape (N,), int64.

    At rate 0 that is the first k that is right, and the first k of all where none is: the best accuracy that stopping
    somewhere can have, with the least tokens. O(N C).
    """
    return (_POINT * correct - rate * tokens).argmax(axis=-1)


def vote_states(seen: Sequence[Seen]) -> States:
    """Return what a rule on votes can tell apart at each checkpoint: which numbers of votes the classes have.

    Trajectories of one sampler are exchangeable, so neither the order of the votes nor which class has which number
    says more; k and the votes say how many responses had no answer. The coarser state is the two largest numbers.
    O(C N log N).
    """
    states = []
    for one in seen:
        assert one.state is not None
        coarse = one.top * (one.k + 1) + one.runner_up
        states.append(tuple(np.unique(names, return_inverse=True)[1].reshape(-1) for names in (one.state, coarse)))
    return states  # type: ignore[return-value]


def best_on_votes(
    states: States, correct: np.ndarray, tokens: np.ndarray, rate: float, learn: np.ndarray | None = None
) -> np.ndarray:
    """Return where the best rule on vote states stops: shape (N,), int64.

    Dynamic programming from the last checkpoint back: in each state going on is worth, on average over the rows that
    are in it, what the rule will do later; the rule goes on where that is worth more than stopping. A state that no
    learnt row has is decided by the coarser state, and stops where no learnt row has that either.

    If the rows are all orders of each question's trajectories, what comes after a state does not depend on what came
    before, and no rule that sees votes, past ones and their order included, is worth more than this one at this rate
    (on these rows, to which it is fitted). With orders that are drawn, rows that stopped earlier count in a state's
    average all the same, and this holds but for the noise of the orders. O(N C).

    Args:
        states: Of :func:`vote_states`, C of them.
        correct: Shape (N, C + 1), bool.
        tokens: Shape (N, C + 1), int64.
        rate: Points of accuracy per 1,000 tokens.
        learn: The rows that the rule is fitted to: a mask of shape (N,); all, if not given.
    """
    learn = np.ones(len(correct), bool) if learn is None else learn
    stop = np.full(len(correct), len(states))
    right, spent = correct[:, -1].astype(np.int64), tokens[:, -1]
    for c in range(len(states) - 1, -1, -1):
        gain = np.where(learn, _POINT * (right - correct[:, c]) - rate * (spent - tokens[:, c]), 0.0)
        fine, coarse = (np.bincount(state, gain)[state] > 0 for state in states[c])
        goes_on = np.where(np.bincount(states[c][0], learn)[states[c][0]] > 0, fine, coarse)
        right, spent = np.where(goes_on, right, correct[:, c]), np.where(goes_on, spent, tokens[:, c])
        stop = np.where(goes_on, stop, c)
    return stop


def held_out_on_votes(
    states: States, correct: np.ndarray, tokens: np.ndarray, rate: float, folds: np.ndarray
) -> np.ndarray:
    """Return where :func:`best_on_votes` stops, fitted for each row to the rows of the other ``folds`` (N,): (N,)."""
    stop = np.empty(len(correct), np.int64)
    for mine, others in other_folds(folds):
        stop[mine] = best_on_votes(states, correct, tokens, rate, others)[mine]
    return stop
