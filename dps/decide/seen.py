"""Running counts over the trajectories of many questions at once: their answers, and what a training-free rule sees.

Live runs and replays both count with :class:`Tally`, so a rule cannot say one thing live and another in replay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dps.decide.ladder import MOST_RESPONSES
from feature_store.records import Trajectory

SHOWN: dict[str, type] = {
    "classes": np.int64,
    "logprobs": np.float64,
    "kept": np.float64,
    "entropies": np.float64,
    "top1": np.float64,
    "token_logprobs": np.float64,
    "accepted": np.int64,
    "proposed": np.int64,
    "generated": np.int64,
    "cut": np.bool_,
}
"""What rules and controllers need of a trajectory, see :class:`dps.decide.samples.Samples`."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What N questions have shown after k trajectories each. All arrays have shape (N,)."""

    k: int
    """Trajectories that have ended."""
    top: np.ndarray
    """Votes of the largest class of equivalent answers, int64."""
    runner_up: np.ndarray
    """Votes of the second largest; 0 where all answers agree, int64."""
    run: np.ndarray
    """How many of the latest trajectories in a row gave the latest answer; 0 where the latest has none, int64."""
    num_tokens: np.ndarray
    """Accepted tokens of the k responses, float64."""
    logprob: np.ndarray
    """Their log p under the base model, summed, nats, float64."""
    entropy: np.ndarray
    """Sum of the base model's next-token entropies over them, nats, float64."""
    top1: np.ndarray
    """Sum of the base model's top-1 probabilities over them, float64."""
    probe: np.ndarray
    """Mean log p of the first response's tokens, nats, float64."""
    keys: np.ndarray
    """A number that names the question (and its order, in replay) under the run's seed, uint64."""
    history: tuple[np.ndarray, ...] = ()
    """The class of each trajectory, in order of coming; -1 for no answer: k arrays of int64."""
    state: np.ndarray | None = None
    """A number that names how many votes of each arm the classes have, whichever they are, uint64: see
    :data:`_NAMES`."""

    @property
    def votes(self) -> np.ndarray:
        """Two numbers that name all that votes tell: shape (N, 2), int64.

        The first is of k with :attr:`state`, the other, coarser one of k with the two largest numbers of votes. They
        are the same on every machine.
        """
        assert self.state is not None
        fine = (self.state + _mixed(np.full(1, self.k, np.uint64))).view(np.int64)
        return np.stack([fine, (self.k << 32) + (self.top << 16) + self.runner_up], axis=1)


_NAMES = np.random.PCG64(0).random_raw(MOST_RESPONSES + 1)
_NAMES[0] = 0
"""A random number for each number of votes of a class. Their sum over the classes, modulo 2^64, names the votes of all
classes in any order; that some two of a million different ones share a name has a probability of 3e-8. Votes of a
ladder's first arm count 1 in that number, those of the others random numbers, and what they add up to is mixed."""


def _mixed(codes: np.ndarray) -> np.ndarray:
    """Return numbers that look random (the end of splitmix64), one to one: uint64 in and out."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        codes = (codes ^ (codes >> np.uint64(shift))) * np.uint64(factor)
    return codes ^ (codes >> np.uint64(31))


def _names(codes: np.ndarray) -> np.ndarray:
    """Return the names of the votes of single classes."""
    alone = codes <= MOST_RESPONSES
    return np.where(alone, _NAMES[np.where(alone, codes, 0).astype(np.int64)], _mixed(codes))


class Tally:
    """Counts the trajectories of N questions as they come, all questions at the same k and of the same arm."""

    def __init__(self, num_questions: int, num_classes: int, aggregator: str = "majority") -> None:
        """Start with k = 0; answer classes are below ``num_classes``. ``aggregator`` says how k answers become one."""
        self._rows = np.arange(num_questions)
        self._method = aggregator.removesuffix("_per_token")
        self._per_token = aggregator != self._method
        self.counts = np.zeros((num_questions, max(2, num_classes)), np.int64)
        """Votes of each class: shape (N, classes)."""
        self.best = np.full(self.counts.shape, -np.inf)
        """Highest log p in each class, nats (a token, where the aggregator says so): shape (N, classes)."""
        self._codes = np.zeros(self.counts.shape, np.uint64)
        self._weights = np.full(self.counts.shape if self._method == "weighted" else (0, 0), -np.inf)
        self._member = np.full(self.counts.shape, -1)
        self._leader = np.full(num_questions, -1)
        self._latest = np.full(num_questions, -1)
        self._history: list[np.ndarray] = []
        self._state = np.zeros(num_questions, np.uint64)
        self._run = np.zeros(num_questions, np.int64)
        self.sums = np.zeros((4, num_questions))
        """Accepted tokens, log p, entropies and top-1 probabilities of all responses, summed: shape (4, N)."""
        self._probe = np.zeros(num_questions)
        self.k = 0
        """Trajectories counted so far."""

    def add(self, classes: np.ndarray, logprobs: np.ndarray, sums: np.ndarray, arm: int = 0) -> None:
        """Count one more trajectory of every question: its class (N,), -1 for no answer, and log p (N,), nats.

        ``sums`` of accepted tokens, entropies and top-1 probabilities have shape (3, N); ``arm`` is the number of the
        arm, by first appearance.
        """
        answered = classes >= 0
        strength = logprobs / sums[0] if self._per_token else logprobs
        rows, labels, logp = self._rows[answered], classes[answered], strength[answered]
        self._history.append(classes)
        self.counts[rows, labels] += 1
        codes = self._codes[rows, labels]
        more = self._codes[rows, labels] = codes + (_NAMES[arm] if arm else np.uint64(1))
        self._state[rows] += _names(more) - _names(codes)
        if self._method == "weighted":
            self._weights[rows, labels] = np.logaddexp(self._weights[rows, labels], logp)
        better = logp > self.best[rows, labels]
        self.best[rows[better], labels[better]] = logp[better]
        self._member[rows[better], labels[better]] = self.k
        self._lead(rows, labels)
        self._run = np.where(answered, np.where(classes == self._latest, self._run, 0) + 1, 0)
        self._latest = np.where(answered, classes, -1)
        self.sums += np.stack([sums[0], logprobs, *sums[1:]])
        if self.k == 0:
            self._probe = logprobs / sums[0]
        self.k += 1

    def _lead(self, rows: np.ndarray, labels: np.ndarray) -> None:
        """Let classes lead that have become the strongest: no class grows weaker, so only these can have."""
        strength = {"majority": self.counts, "weighted": self._weights, "best_logprob": self.best}[self._method]
        first = self._leader[rows]
        (mine, its), (best, other) = ((of[rows, labels], of[rows, first]) for of in (strength, self.best))
        ahead = (best > other) | ((best == other) & (labels < first))
        ahead = (first < 0) | (mine > its) | ((mine == its) & ahead)
        self._leader[rows[ahead]] = labels[ahead]

    def leaders(self) -> np.ndarray:
        """Return the class of the answer of them all; -1 where none has one: shape (N,)."""
        return self._leader.copy()

    def winners(self) -> np.ndarray:
        """Return which trajectory, in order of coming, has the answer of them all; -1 where none has one: shape (N,).

        See :func:`dps.decide.aggregate.representative`, which is this for one question.
        """
        leaders = self.leaders()
        return np.where(leaders >= 0, self._member[self._rows, leaders], -1)

    def seen(self, keys: np.ndarray) -> Seen:
        """Return what a rule sees now."""
        largest = np.partition(self.counts, -2, axis=1)[:, -2:]
        counted = (self.k, largest[:, 1], largest[:, 0], self._run, *self.sums.copy(), self._probe)
        return Seen(*counted, keys, tuple(self._history), self._state.copy())


def columns_of(trajectory: Trajectory) -> tuple[float, ...]:
    """Return what :data:`SHOWN` names of a trajectory, in that order; all are exact as float64."""
    return (
        trajectory.answer_class,
        trajectory.base_logprob,
        int(trajectory.block_num_tokens.sum()),
        float(trajectory.block_entropy.sum()),
        float(trajectory.block_top1.sum()),
        float(trajectory.block_logprob.sum()),
        trajectory.mh_accepted,
        trajectory.mh_proposed,
        trajectory.num_generated_tokens,
        trajectory.ending == "length",
    )


def numbered(arms: Sequence[str]) -> list[int]:
    """Return the number of the arm of each of several trajectories, by first appearance."""
    names = list(dict.fromkeys(arms))
    return [names.index(arm) for arm in arms]


def seen_of(questions: Sequence[Sequence[Trajectory]], keys: Sequence[int]) -> Seen:
    """Return what questions have shown, all with equally many trajectories, of the same arms in the same order.

    For ``keys`` see :func:`question_key`.
    """
    table = np.array([[columns_of(t)[:5] for t in trajectories] for trajectories in questions]).transpose(1, 2, 0)
    tally = Tally(len(questions), int(table[:, 0].max()) + 1)
    for column, arm in zip(table, numbered([t.arm for t in questions[0]]), strict=True):
        tally.add(column[0].astype(np.int64), column[1], column[2:], arm)
    return tally.seen(np.array(keys, dtype=np.uint64))


def by_votes(function: Callable[[int, int], float], top: np.ndarray, runner_up: np.ndarray) -> np.ndarray:
    """Return a function of two numbers of votes of N questions, called once for each pair that occurs: shape (N,)."""
    width = int(runner_up.max(initial=0)) + 1
    codes = top * width + runner_up
    table = np.zeros(int(codes.max(initial=0)) + 1)
    for code in np.flatnonzero(np.bincount(codes)).tolist():
        table[code] = function(*divmod(code, width))
    return table[codes]


def question_key(seed: int, question_id: str, order: int = 0) -> int:
    """Return a number that names a question, and an order of its trajectories, under a seed: 64 bits."""
    text = f"rule\x1f{seed}\x1f{question_id}\x1f{order}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
