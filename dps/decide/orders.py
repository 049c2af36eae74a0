"""Orders of a question's exchangeable trajectories, walked through: what each k answers, costs and shows.

Every order is a run that might have been (METHOD sections 2 and 4), so labels, curves and accuracies are averaged over
orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dps.decide.ladder import POWER, Ladder
from dps.decide.policy import Rule
from dps.decide.samples import Samples
from dps.decide.seen import Seen, Tally, numbered, question_key
from dps.decide.splits import stable_number
from dps.errors import InputError


def orders_of(question_id: str, num_trajectories: int, num_orders: int, seed: int, arm: str = POWER) -> np.ndarray:
    """Return orders of a question's trajectories: shape (num_orders, num_trajectories), the first is the natural one.

    The others are permutations drawn from a stream that depends on seed, question and arm only.
    """
    name = (question_id,) if arm == POWER else (question_id, arm)
    rng = np.random.default_rng([seed, stable_number("orders", *name)])
    others = [rng.permutation(num_trajectories) for _ in range(num_orders - 1)]
    return np.stack([np.arange(num_trajectories), *others])


def ladder_orders(
    question_ids: Sequence[str], arms: Sequence[str], ladder: Ladder, num_orders: int, seed: int
) -> np.ndarray:
    """Return the columns in which a ladder's responses come, in several orders of each arm's: shape (Q, O, n).

    Each arm's trajectories are exchangeable, so each arm has orders of its own, of all its columns; the ladder takes
    the first of each. Two ladders meet the same trajectories of an arm that both have. The first order is the natural
    one.

    Args:
        question_ids: Q of them.
        arms: The arm of each of K columns, see :class:`dps.decide.samples.Samples`; with all that the ladder takes.
        ladder: What is climbed; n responses at its end.
        num_orders: O.
        seed: Of the orders.
    """
    columns = {arm: np.flatnonzero(np.array(arms) == arm) for arm in ladder.arms}
    places = {arm: np.array([i for i, key in enumerate(ladder.sequence()) if key[0] == arm]) for arm in ladder.arms}
    result = np.empty((len(question_ids), num_orders, ladder.maximum), np.int64)
    for row, name in zip(result, question_ids, strict=True):
        for arm, place in places.items():
            order = orders_of(name, len(columns[arm]), num_orders, seed, arm)
            row[:, place] = columns[arm][order[:, : len(place)]]
    return result


def in_order(values: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Return a number of every trajectory (Q, K) in every order (Q, O, K): shape (Q, O, K)."""
    return np.take_along_axis(values[:, None], orders, axis=2)


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """What Q questions in O orders each answer, cost and show at every k of ``ks``."""

    ks: tuple[int, ...]
    """C checkpoints, then the maximum."""
    winners: np.ndarray
    """Which of the K trajectories has the answer of the first k; -1 where none has one: shape (Q, O, C + 1), int64."""
    correct: np.ndarray
    """Whether that answer is right: shape (Q, O, C + 1), bool."""
    tokens: np.ndarray
    """Tokens sampled for the first k: shape (Q, O, C + 1), int64."""
    accepted: np.ndarray
    """How many of these are in the responses: shape (Q, O, C + 1), int64."""
    seen: tuple[Seen, ...]
    """What a rule sees at each checkpoint, Q x O questions in C order."""

    def p_enough(self, rule: Rule) -> np.ndarray:
        """Return how sure a rule of :data:`dps.decide.RULES` is at each checkpoint: shape (Q, O, C)."""
        said = [rule.enough(seen) for seen in self.seen]
        return np.stack(said, axis=-1).reshape(*self.correct.shape[:2], len(self.ks) - 1)


def at_stop(values: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Return the values where each row stops: ``values`` has shape (..., C + 1), ``stop`` and the result (...)."""
    return np.take_along_axis(values, stop[..., None], axis=-1)[..., 0]


def walk(
    samples: Samples, orders: np.ndarray, ks: Sequence[int], aggregator: str, rule_seed: int | None = None
) -> Walk:
    """Walk through the trajectories of every question in every order (Q, O, K), stopping at the k's.

    The orders are those of one ladder: at each place all have trajectories of the same arm.

    The k's increase; an InputError if they exceed K. ``rule_seed`` is that of the rule that escalates by chance; None
    where no rule will be asked, and nothing is seen.
    """
    num_questions, num_orders, _ = orders.shape
    if ks[-1] > samples.num_trajectories:
        raise InputError(f"Expected at most {samples.num_trajectories} trajectories of a question, got k {ks[-1]}.")
    rows = np.arange(num_questions * num_orders)
    shown = (samples.classes, samples.logprobs, samples.kept, samples.entropies, samples.top1)
    # One row per question and order, one column per trajectory.
    columns = [in_order(values, orders).reshape(len(rows), -1) for values in shown]
    keys = np.zeros(len(rows), np.uint64)
    if rule_seed is not None:
        keys[:] = [question_key(rule_seed, name, o) for name in samples.question_ids for o in range(num_orders)]
    tally = Tally(len(rows), int(samples.classes.max(initial=0)) + 1, aggregator)
    arms = numbered([samples.arms[column] for column in orders[0, 0]] if len(rows) else [])
    places, seen = [], []
    for k in range(1, ks[-1] + 1):
        classes, logprobs, *sums = (column[:, k - 1] for column in columns)
        tally.add(classes, logprobs, np.stack(sums), arms[k - 1] if arms else 0)
        if k in ks:
            places.append(tally.winners())
            if k != ks[-1] and rule_seed is not None:
                seen.append(tally.seen(keys))
    place = np.stack(places, axis=-1).reshape(num_questions, num_orders, len(ks))
    at = np.asarray(ks) - 1
    winners = np.where(place >= 0, np.take_along_axis(orders, np.maximum(place, 0), axis=2), -1)
    correct = (winners >= 0) & np.take_along_axis(samples.right[:, None], np.maximum(winners, 0), axis=2)
    spent = (
        np.cumsum(in_order(v.astype(np.int64), orders), axis=2)[..., at] for v in (samples.generated, samples.kept)
    )
    return Walk(tuple(ks), winners, correct, *spent, tuple(seen))
