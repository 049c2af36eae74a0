"""Running counts over the trajectories of many questions at once: their answers, and what a training-free rule sees.

Live runs and replays both count with :class:`Tally`, so a rule cannot say one thing live and another in replay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dps.decide.features import sums_of
from feature_store.records import Trajectory


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
    """A number that names how many votes the classes have, whichever they are, uint64: see :data:`_NAMES`."""


_NAMES = np.random.default_rng(0).integers(2**64, size=4097, dtype=np.uint64)
_NAMES[0] = 0
"""A random number for each number of votes. Their sum over the classes, modulo 2^64, names the votes of all classes in
any order; that some two of a million different ones share a name has a probability of 3e-8."""


class Tally:
    """Counts the trajectories of N questions as they come, all questions at the same k."""

    def __init__(self, num_questions: int, num_classes: int) -> None:
        """Start with k = 0; answer classes are below ``num_classes``."""
        self._rows = np.arange(num_questions)
        self._counts = np.zeros((num_questions, max(2, num_classes)), np.int64)
        self._weights = np.full(self._counts.shape, -np.inf)
        self._best = np.full(self._counts.shape, -np.inf)
        self._member = np.full(self._counts.shape, -1)
        self._latest = np.full(num_questions, -1)
        self._history: list[np.ndarray] = []
        self._state = np.zeros(num_questions, np.uint64)
        self._run = np.zeros(num_questions, np.int64)
        self._sums = np.zeros((4, num_questions))
        self._probe = np.zeros(num_questions)
        self.k = 0
        """Trajectories counted so far."""

    def add(self, classes: np.ndarray, logprobs: np.ndarray, sums: np.ndarray) -> None:
        """Count one more trajectory of every question: its class (N,), -1 for no answer, and log p (N,), nats.

        ``sums`` of accepted tokens, entropies and top-1 probabilities have shape (3, N).
        """
        answered = classes >= 0
        rows, labels, logp = self._rows[answered], classes[answered], logprobs[answered]
        self._history.append(classes)
        votes = self._counts[rows, labels] = self._counts[rows, labels] + 1
        self._state[rows] += _NAMES[votes] - _NAMES[votes - 1]
        self._weights[rows, labels] = np.logaddexp(self._weights[rows, labels], logp)
        better = logp > self._best[rows, labels]
        self._best[rows[better], labels[better]] = logp[better]
        self._member[rows[better], labels[better]] = self.k
        self._run = np.where(answered, np.where(classes == self._latest, self._run, 0) + 1, 0)
        self._latest = np.where(answered, classes, -1)
        self._sums += np.stack([sums[0], logprobs, *sums[1:]])
        if self.k == 0:
            self._probe = logprobs / sums[0]
        self.k += 1

    def winners(self, aggregator: str) -> np.ndarray:
        """Return which trajectory, in order of coming, has the answer of them all; -1 where none has one: shape (N,).

        See :func:`dps.decide.aggregate.representative`, which is this for one question.
        """
        strength = {"majority": self._counts, "weighted": self._weights, "best_logprob": self._best}[aggregator]
        present = self._counts > 0
        strength = np.where(present, strength, -np.inf)
        strongest = present & (strength == strength.max(axis=1, keepdims=True))
        label = np.where(strongest, self._best, -np.inf).argmax(axis=1)
        return np.where(present.any(axis=1), self._member[self._rows, label], -1)

    def seen(self, keys: np.ndarray) -> Seen:
        """Return what a rule sees now."""
        largest = np.partition(self._counts, -2, axis=1)[:, -2:]
        counted = (self.k, largest[:, 1], largest[:, 0], self._run, *self._sums.copy(), self._probe)
        return Seen(*counted, keys, tuple(self._history), self._state.copy())


def columns_of(trajectory: Trajectory) -> tuple[int, float, float, float, float]:
    """Return what :meth:`Tally.add` needs of a trajectory: class, log p, tokens, entropy and top-1 sums."""
    sums = sums_of(trajectory)
    return sums.answer_class, sums.base_logprob, float(sums.tokens), sums.entropy, sums.top1


def seen_of(questions: Sequence[Sequence[Trajectory]], keys: Sequence[int]) -> Seen:
    """Return what questions have shown, all with equally many trajectories; for ``keys`` see :func:`question_key`."""
    table = np.array([[columns_of(t) for t in trajectories] for trajectories in questions]).transpose(1, 2, 0)
    tally = Tally(len(questions), int(table[:, 0].max()) + 1)
    for column in table:
        tally.add(column[0].astype(np.int64), column[1], column[2:])
    return tally.seen(np.array(keys, dtype=np.uint64))


def by_votes(function: Callable[[int, int], float], top: np.ndarray, runner_up: np.ndarray) -> np.ndarray:
    """Return a function of two numbers of votes of N questions, called once for each pair that occurs: shape (N,)."""
    pairs, where = np.unique(np.stack([top, runner_up]), axis=1, return_inverse=True)
    return np.array([function(int(first), int(second)) for first, second in pairs.T])[where.reshape(-1)]


def question_key(seed: int, question_id: str, order: int = 0) -> int:
    """Return a number that names a question, and an order of its trajectories, under a seed: 64 bits."""
    text = f"rule\x1f{seed}\x1f{question_id}\x1f{order}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
