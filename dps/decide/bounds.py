"""What no stopping rule can beat on given trajectories: perfect knowledge, and the best rule that sees votes only.

Both weigh accuracy against tokens by a rate, in points (hundredths) of accuracy per 1,000 tokens: a policy's worth is
``100 correct - rate tokens / 1000`` on average, so a sweep over rates draws the whole front. All functions are pure.
Rows are N questions in orders of their trajectories, ``correct`` and ``tokens`` have shape (N, C + 1): C checkpoints,
then the maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dps.decide.orders import at_stop
from dps.decide.seen import Seen
from dps.decide.splits import other_folds

TOLERANCE = 0.05
"""Points of accuracy by which the best of a kind may lie above the line that is drawn through its corners."""
_POINT = 100 * 1000
"""One right answer in the unit of rate times tokens."""

States = Sequence[tuple[np.ndarray, np.ndarray]]
"""For each checkpoint the number of each row's vote state, (N,), int64 from 0, and each state's coarser one: (S,)."""


def corners(stop_at: Callable[[float], np.ndarray], correct: np.ndarray, tokens: np.ndarray) -> dict[float, np.ndarray]:
    """Return where the best of a kind stops, at the rates at which its front has corners: (N,) by rate, falling.

    ``stop_at`` says where it stops at a rate. Between two corners the rate of the line through them is tried, and taken
    where more is gained at that rate than :data:`TOLERANCE`; so if each stop is the best of its kind at its rate, none
    of that kind lies further above the lines.
    """
    step = max(int(np.diff(tokens, axis=-1).min()), 1)
    found: dict[float, tuple[np.ndarray, float, float]] = {}

    def reach(rate: float) -> tuple[np.ndarray, float, float]:
        stop = stop_at(rate)
        return stop, float(_POINT * at_stop(correct, stop).mean()), float(at_stop(tokens, stop).mean())

    ends = (1.0 + _POINT / step, 0.0)  # at the first rate nothing pays, at the last any answer does
    found = {rate: reach(rate) for rate in ends}
    pending = [ends]
    while pending:
        high, low = pending.pop()
        (_, right, spent), (_, more_right, more_spent) = found[high], found[low]
        if more_right <= right or more_spent <= spent:
            continue
        rate = (more_right - right) / (more_spent - spent)
        made = reach(rate)
        if low < rate < high and made[1] - right - rate * (made[2] - spent) > 1000 * TOLERANCE:
            found[rate] = made
            pending += [(high, rate), (rate, low)]
    return {rate: found[rate][0] for rate in sorted(found, reverse=True)}


def perfect(correct: np.ndarray, tokens: np.ndarray, rate: float) -> np.ndarray:
    """Return where one stops who knows what every k will answer: the best worth, row by row: shape (N,), int64.

    At rate 0 that is the first k that is right, and the first k of all where none is: the best accuracy that stopping
    somewhere can have, with the least tokens. O(N C).
    """
    best, stop = _worth(correct, tokens, rate, 0), np.zeros(len(correct), np.int64)
    for c in range(1, correct.shape[1]):
        now = _worth(correct, tokens, rate, c)
        stop[now > best] = c
        np.maximum(now, best, out=best)
    return stop


def _worth(correct: np.ndarray, tokens: np.ndarray, rate: float, c: int) -> np.ndarray:
    """Return what stopping at one k is worth: shape (N,). One at a time, as large arrays of all take longer to make."""
    return _POINT * correct[:, c] - rate * tokens[:, c]


def vote_states(seen: Sequence[Seen]) -> States:
    """Return what a rule on votes can tell apart at each checkpoint: the numbers of votes of each arm in the classes.

    Trajectories of one arm are exchangeable, so neither the order of the votes nor which class has which numbers says
    more; k and the votes say how many responses of each arm had no answer. The coarser state is the two largest
    numbers of votes of all arms. O(C N log N).
    """
    return _states(np.stack([one.votes for one in seen], axis=1) if seen else np.zeros((0, 0, 2), np.int64))


def _states(votes: np.ndarray) -> States:
    """Return the states that ``votes`` (N, C, 2) name, see :attr:`dps.decide.seen.Seen.votes`."""
    states = []
    for c in range(votes.shape[1]):
        _, first, fine = np.unique(votes[:, c, 0], return_index=True, return_inverse=True)
        states.append((fine.reshape(-1), np.unique(votes[first, c, 1], return_inverse=True)[1].reshape(-1)))
    return states


def best_on_votes(states: States, correct: np.ndarray, tokens: np.ndarray, rate: float) -> np.ndarray:
    """Return where the best rule on vote states stops: shape (N,), int64.

    Dynamic programming from the last checkpoint back: in each state going on is worth, on average over the rows that
    are in it, what the rule will do later; the rule goes on where that is worth more than stopping.

    If the rows are all orders of each question's trajectories, what comes after a state does not depend on what came
    before, and no rule that sees votes, past ones and their order included, is worth more than this one at this rate
    (on these rows, to which it is fitted). With orders that are drawn, rows that stopped earlier count in a state's
    average all the same, and this holds but for the noise of the orders. O(N C).

    Args:
        states: Of :func:`vote_states`, C of them.
        correct: Shape (N, C + 1), bool.
        tokens: Shape (N, C + 1), int64.
        rate: Points of accuracy per 1,000 tokens.
    """
    return held_out_on_votes(states, correct, tokens, rate, np.zeros(len(correct)))


def held_out_on_votes(
    states: States, correct: np.ndarray, tokens: np.ndarray, rate: float, folds: np.ndarray
) -> np.ndarray:
    """Return where :func:`best_on_votes` stops, fitted for each row to the rows of the other ``folds`` (N,): (N,).

    A state that those rows lack is decided by the coarser state, and stops where they lack that, too.
    """
    worth = [_worth(correct, tokens, rate, c) for c in range(correct.shape[1])]
    stop = np.full(len(correct), len(states))
    for mine, others in other_folds(folds):
        gains = _gains(states, worth, np.flatnonzero(others))
        for c in range(len(states) - 1, -1, -1):
            going = _known(*gains[c], states[c][1]) > 0
            stop[mine & ~going[states[c][0]]] = c
    return stop


def _gains(states: States, worth: Sequence[np.ndarray], rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return what going on gains on average over some rows, by state: at each checkpoint (S,), and of coarser ones.

    In the unit of ``worth``, of stopping now. NaN for states that none of the rows is in.
    """
    later, made = worth[-1][rows], []
    for now, (fine, coarse) in zip(worth[-2::-1], reversed(states), strict=True):
        known, here = fine[rows], now[rows]
        gains = np.bincount(known, later - here, len(coarse))
        number = np.bincount(known, minlength=len(coarse)).astype(np.float64)
        by_state = [
            np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
            for total, count in ((gains, number), (np.bincount(coarse, gains), np.bincount(coarse, number)))
        ]
        made.append((by_state[0], by_state[1]))
        later = np.where(by_state[0][known] > 0, later, here)
    return made[::-1]


def _known(fine: np.ndarray, coarse: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Return the gains of states, those of their coarser ones (numbers ``of``) where they have none of their own."""
    return np.where(np.isnan(fine), coarse[of], fine)


@dataclass(frozen=True, slots=True, eq=False)
class VoteTable:
    """What the best rule on votes gains by going on, as some rows teach: by vote state, see :func:`best_on_votes`."""

    states: np.ndarray
    """The states that were met, after any rung, see :attr:`dps.decide.seen.Seen.votes`: shape (S,), int64, rising."""
    gains: np.ndarray
    """What going on gains in each, points of accuracy less the price of the tokens: shape (S,), float64."""
    coarse_states: np.ndarray
    """The coarser states: shape (S',), int64, rising."""
    coarse_gains: np.ndarray
    """The same of them: shape (S',), float64."""

    @classmethod
    def fit(cls, votes: np.ndarray, correct: np.ndarray, tokens: np.ndarray, rate: float) -> VoteTable:
        """Learn from rows what votes say.

        Args:
            votes: Of rows at their checkpoints: shape (..., C, 2); a table's, or ``Seen.votes``.
            correct: Shape (..., C + 1), bool.
            tokens: Shape (..., C + 1), int64.
            rate: Points of accuracy that 1,000 tokens are worth.
        """
        votes = votes.reshape(-1, *votes.shape[-2:])
        correct, tokens = (of.reshape(len(votes), -1) for of in (correct, tokens))
        worth = [_worth(correct, tokens, rate, c) for c in range(correct.shape[1])]
        made = _gains(_states(votes), worth, np.arange(len(votes)))
        # No state is one of two checkpoints: k is in its name. Gains of a checkpoint are in order of its states.
        columns = []
        for which in (0, 1):
            names = np.concatenate([np.unique(votes[:, c, which]) for c in range(votes.shape[1])])
            gains, order = np.concatenate([gain[which] for gain in made]) / 1000, np.argsort(names)
            columns += [names[order], gains[order]]
        return cls(*columns)

    def gain(self, votes: np.ndarray) -> np.ndarray:
        """Return what going on gains, points: ``votes`` of any rows and checkpoints (..., 2) gives shape (...).

        A state that was not met is worth what its coarser state is, and 0 if that was not met either.
        """
        gains = np.zeros(votes.shape[:-1])
        tables = ((self.coarse_states, self.coarse_gains), (self.states, self.gains))
        for which, (names, known) in zip((1, 0), tables, strict=True):
            if len(names):
                place = np.minimum(np.searchsorted(names, votes[..., which]), len(names) - 1)
                gains = np.where(names[place] == votes[..., which], known[place], gains)
        return gains
