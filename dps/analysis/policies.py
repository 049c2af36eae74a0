"""Every policy over a table: what it gives on each question, its curve, and its honest operating point.

A policy that asks at checkpoints is an array of scores ``p_inc`` (Q, O, C), whoever made them: a trained controller, a
rule. The threshold of the operating point is chosen for each question on the other folds' questions. A live policy has
one point: what it did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from dps.analysis.table import Outcome, StoreTable
from dps.analysis.words import listing
from dps.decide.bounds import best_on_votes, corners, held_out_on_votes, perfect, vote_states
from dps.decide.labels import continue_score
from dps.decide.ladder import POWER, Ladder
from dps.decide.orders import Walk, at_stop, in_order, walk
from dps.decide.splits import other_folds
from dps.decide.thresholds import NEVER_STOP, cheapest_without_loss, effective_margin, spread_thresholds, stops
from dps.estimates import loss_is_below

CURVE_POINTS = 61
"""Most thresholds of a curve; they are spread evenly over its tokens."""
ORDERS = 32
"""Orders of a question's trajectories that everything is averaged over, if nothing else is set."""
SURE = 2
"""Votes by which the leading answer of a policy that stops is ahead where it is called sure, else it gave up."""
_QUESTIONS = 256
"""Questions that are averaged over orders at a time: bounds the memory, changes no result."""


@dataclass(frozen=True, slots=True, eq=False)
class ReplayedPolicy:
    """One policy on one source of trajectories."""

    name: str
    """``fixed``, ``gbdt``, ``adaptive-consistency``, ..."""
    family: str
    """``fixed``, ``controller``, ``rule``, ``chance`` or ``oracle`` (bounds that nobody can run live)."""
    series: str
    """What is climbed: the name of a ladder; of a fixed budget the arm (``power``, ``plain``, ...), or the main ladder
    where that climbs the arm alone."""
    thresholds: np.ndarray
    """Threshold (k of a fixed policy, rate of a bound) of each point of the curve, which are in increasing order of
    tokens: shape (M,)."""
    curve: tuple[Outcome, ...]
    """M points."""
    listed: np.ndarray
    """Which points of a fixed policy are rows of the table; the others serve comparisons: shape (M,), bool."""
    chosen: Outcome | None = None
    """The operating point; None where nothing is chosen (fixed budgets, bounds)."""
    chosen_thresholds: np.ndarray | None = None
    """The threshold that each question was given there: shape (Q,)."""
    natural_k: np.ndarray | None = None
    """k of each question there, in the natural order: shape (Q,), int64."""
    natural_correct: np.ndarray | None = None
    """Whether its answer is right there: shape (Q,), bool."""
    p_enough: np.ndarray | None = None
    """How sure the policy was at each checkpoint: shape (Q, O, C), float64; None where it is not asked."""
    p_inc: dict[int, float] | None = None
    """Mean of ``1 - p_enough`` at each k, over the questions that were asked there."""
    own: Outcome | None = None
    """What a trained controller gives at the threshold that it came with."""
    own_threshold: float | np.ndarray | None = None
    """That threshold; of the controllers of a cross-validation, that of each question's fold: shape (Q,)."""
    main: str = POWER
    """The series of the result that the policy is in: its own ladder comes first and is not named in labels."""
    ladder: Ladder | None = None
    """What ``series`` stands for."""
    aggregator: str = "majority"
    """How answers became one."""
    controller: str | None = None
    """Where a controller is from."""
    rule: dict[str, Any] | None = None
    """Settings of a rule, but for its threshold."""
    reached: np.ndarray | None = None
    """The most responses that any question gets at each point of a rule's or controller's curve: shape (M,), int64."""
    shares: np.ndarray | None = None
    """Share of the questions, over all orders, that end after each rung there: shape (C + 1,)."""
    gave_up: float | None = None
    """Share of the questions that ended there before the ladder's end with a lead of fewer than 2 votes."""
    source: str = ""
    """What a fixed budget draws from: an arm, a ladder of several, or what an evaluation calls its policy."""
    alone: bool = False
    """Whether a fixed budget has one row, which is called by the source alone: ``lowtemp-16`` of an evaluation."""

    @property
    def label(self) -> str:
        """Name and ladder, as a reader sees them; of fixed budgets what they draw from, and how else it is answered."""
        if self.family == "fixed":
            return self.source if self.name == "fixed" else f"{self.name} of {self.source}"
        return self.name if self.series == self.main else f"{self.name} ({self.series})"

    @property
    def is_main(self) -> bool:
        """Whether it climbs the ladder that the result is about."""
        return self.series == self.main

    @property
    def responses(self) -> dict[str, float] | None:
        """Mean responses of each arm at the operating point."""
        if self.shares is None or self.ladder is None:
            return None
        after = [Counter(arm for arm, _ in self.ladder.sequence(k)) for k in self.ladder.ks]
        pairs = list(zip(self.shares.tolist(), after, strict=True))
        return {arm: sum(part * count[arm] for part, count in pairs) for arm in self.ladder.arms}

    def row_name(self, threshold: float) -> str:
        """Return the name of a point as a row of the table: ``plain 16``, ``plain 4 and power 2``, or its policy's."""
        if self.family != "fixed" or self.alone:
            return self.label
        if self.ladder is None or len(self.ladder.arms) == 1:
            return f"{self.label} {threshold:g}"
        counts = Counter(arm for arm, _ in self.ladder.sequence(int(threshold)))
        return listing(f"{arm} {count}" for arm, count in counts.items())


def fixed(
    table: StoreTable,
    orders: np.ndarray,
    ladder: Ladder,
    listed: Sequence[int],
    source: str,
    aggregator: str = "",
) -> ReplayedPolicy:
    """Return the fixed budgets of a ladder over orders (Q, O, n) of columns.

    The listed ones are rows of the table. The series is called by the source. The name is ``fixed``, of another
    aggregator than the store's the aggregator's.
    """
    samples, ks, at = table.samples, ladder.ks, np.asarray(ladder.ks) - 1
    own = table.manifest.aggregator
    assert samples is not None
    parts = []
    for start in range(0, len(samples.question_ids), _QUESTIONS):
        rows = np.arange(start, min(start + _QUESTIONS, len(samples.question_ids)))
        some, order = samples.select(rows), orders[rows]
        walked = walk(some, order, ks, aggregator or own)
        compute_s = np.cumsum(in_order(some.compute_s, order), axis=2)[..., at] + some.prefill_s[:, None, None]
        latency_s = np.maximum.accumulate(in_order(some.finished_s, order), axis=2)[..., at]
        correct = np.where(some.has_grade[:, None, None], walked.correct, np.nan)
        each = (correct, walked.tokens, walked.accepted, compute_s, latency_s)
        parts.append(np.stack([values.mean(axis=1) for values in each]))
    correct, tokens, accepted, compute_s, latency_s = np.concatenate(parts, axis=1).transpose(0, 2, 1)
    curve = tuple(
        Outcome(correct[i], tokens[i], accepted[i], np.full(len(tokens[i]), float(k)), compute_s[i], latency_s[i])
        for i, k in enumerate(ks)
    )
    return ReplayedPolicy(
        name="fixed" if (aggregator or own) == own else aggregator,
        family="fixed",
        series=source,
        thresholds=np.asarray(ks, dtype=float),
        curve=curve,
        listed=np.isin(ks, np.asarray(listed)),
        ladder=ladder,
        aggregator=aggregator or own,
        source=source,
    )


def live(table: StoreTable, series: str = POWER) -> ReplayedPolicy:
    """Return what a live policy did, as one point of the result's main ``series``."""
    of = table.live
    assert of is not None
    point = of.outcome
    asked: dict[int, list[float]] = {}
    for k, p_enough in sorted(decision for decisions in of.decisions for decision in decisions):
        asked.setdefault(k, []).append(1 - p_enough)
    threshold = table.manifest.policy.get("threshold")
    at = np.full(1, np.nan if threshold is None else float(threshold))
    return ReplayedPolicy(
        name=table.series,
        family="chance" if table.series == "random" else "rule" if "rule" in table.manifest.policy else "controller",
        series=series,
        thresholds=at,
        curve=(point,),
        listed=np.ones(1, bool),
        chosen=point,
        chosen_thresholds=at[~np.isnan(at)],
        natural_k=point.k.astype(np.int64),
        natural_correct=point.correct == 1,
        p_inc={k: float(np.mean(values)) for k, values in asked.items()},
        main=series,
        ladder=table.ladder,
        aggregator=table.manifest.aggregator,
        shares=np.array([np.mean(point.k == k) for k in table.ks]),
        gave_up=float(np.mean((of.ahead < SURE) & (point.k < table.ks[-1]))),
    )


def dynamic(
    name: str,
    family: str,
    series: str,
    walked: Walk,
    p_enough: np.ndarray,
    folds: np.ndarray,
    margin: float,
    own_threshold: float | np.ndarray | None = None,
    reference: np.ndarray | None = None,
) -> ReplayedPolicy:
    """Return a policy that goes on while ``p_inc = 1 - p_enough`` is above a threshold.

    Args:
        name: The policy; ``family`` and ``series`` as :class:`ReplayedPolicy` has them.
        walked: Q questions in O orders.
        p_enough: Shape (Q, O, C).
        folds: Fold of each question, shape (Q,), from 0.
        margin: See :func:`cross_fitted`; ``reference``, too.
        own_threshold: The threshold that a trained controller came with; of several, of each question: shape (Q,).
    """
    p_inc = continue_score(p_enough)
    thresholds = spread_thresholds(p_inc, walked.correct, walked.tokens, CURVE_POINTS)[::-1]  # the higher, the cheaper
    curve, reached = [], []
    for threshold in thresholds.tolist():
        stop = stops(p_inc, threshold)
        curve.append(outcome_at(walked, stop))
        reached.append(walked.ks[stop.max()])
    chosen = cross_fitted(thresholds, curve, walked, folds, margin, reference)
    stop = stops(p_inc, chosen[:, None, None])
    own = None if own_threshold is None else outcome_at(walked, stops(p_inc, np.reshape(own_threshold, (-1, 1, 1))))
    return ReplayedPolicy(
        name=name,
        family=family,
        series=series,
        thresholds=thresholds,
        curve=tuple(curve),
        listed=np.zeros(len(curve), bool),
        reached=np.array(reached),
        chosen_thresholds=chosen,
        **_chosen_at(walked, stop),
        p_enough=p_enough,
        p_inc=dict(zip(walked.ks, p_inc.mean(axis=(0, 1)).tolist(), strict=False)),
        own=own,
        own_threshold=own_threshold,
    )


def at_threshold(name: str, series: str, walked: Walk, p_enough: np.ndarray, threshold: float) -> ReplayedPolicy:
    """Return a rule at a threshold that nothing chose: one point, from p_enough (Q, O, C)."""
    stop, at = stops(continue_score(p_enough), threshold), np.full(1, threshold)
    of_stop, reached = _chosen_at(walked, stop), np.full(1, walked.ks[stop.max()])
    point = {"chosen_thresholds": at, "reached": reached, **of_stop}
    return ReplayedPolicy(name, "rule", series, at, (of_stop["chosen"],), np.ones(1, bool), **point)


def _chosen_at(walked: Walk, stop: np.ndarray) -> dict[str, Any]:
    """Return what a policy's operating point is: over all orders, and in the one that was sampled."""
    close = [(seen.top - seen.runner_up < SURE).reshape(stop.shape) for seen in walked.seen]
    before = [unsure & (stop == c) for c, unsure in enumerate(close)]
    return {
        "chosen": outcome_at(walked, stop),
        "natural_k": np.asarray(walked.ks)[stop[:, 0]],
        "natural_correct": at_stop(walked.correct[:, 0], stop[:, 0]),
        "shares": np.bincount(stop.reshape(-1), minlength=len(walked.ks)) / stop.size,
        "gave_up": float(np.mean(np.sum(before, axis=0))) if before else None,
    }


def outcome_at(walked: Walk, stop: np.ndarray) -> Outcome:
    """Return what stopping at these indices into ``walked.ks`` gives: ``stop`` has shape (Q, O)."""
    correct, tokens, accepted = (
        at_stop(values, stop).mean(axis=1) for values in (walked.correct, walked.tokens, walked.accepted)
    )
    unmeasured = np.full(len(tokens), np.nan)
    k = np.asarray(walked.ks, dtype=np.float64)[stop].mean(axis=1)
    return Outcome(correct, tokens, accepted, k, unmeasured, unmeasured)


def cross_fitted(
    thresholds: np.ndarray,
    curve: Sequence[Outcome],
    walked: Walk,
    folds: np.ndarray,
    margin: float,
    reference: np.ndarray | None = None,
) -> np.ndarray:
    """Choose a threshold for each question on the questions of the other folds: shape (Q,).

    The choice is the cheapest threshold at which those questions show no loss, with an error that holds for all
    thresholds together, see :func:`dps.decide.thresholds.cheapest_without_loss`. The loss is against the ``reference``,
    each question's accuracy there (Q,), if the ladder's end shows none against that; else against the ladder's end.
    With one fold only, there is nothing else to choose on, and its own questions are taken. With too few questions for
    the margin, a wider one is excluded, see :func:`dps.decide.thresholds.effective_margin`.
    """
    maximum = walked.correct[..., -1].mean(axis=1)
    correct = np.stack([point.correct for point in curve])
    tokens = np.stack([point.tokens for point in curve])
    chosen = np.empty(len(folds))
    for mine, others in other_folds(folds):
        excluded = effective_margin(int(others.sum()), margin)
        reached = reference is not None and loss_is_below((maximum - reference)[others], excluded)
        against = reference if reached else maximum
        cheapest = cheapest_without_loss((correct - against)[:, others], tokens[:, others], excluded)
        # The last point is the ladder's end for every question.
        chosen[mine] = thresholds[-1 if cheapest is None else cheapest]
    return chosen


def bounds(
    series: str, walked: Walk, folds: np.ndarray, margin: float, reference: np.ndarray | None = None
) -> list[ReplayedPolicy]:
    """Return what no rule can beat, over rates of accuracy against tokens, see :mod:`dps.decide.bounds`.

    ``oracle`` knows the answers. ``votes-bound`` is the best rule on vote counts, fitted to the questions that it is
    judged on; ``votes-dp`` is that rule for each question fitted to the other folds' questions, and its operating point
    is chosen like that of a controller. ``giving-up`` is fitted to others, too, and also knows whether the answer at
    the ladder's end is right: what knowing the question could save beside votes. Their thresholds are the rates; -1 is
    the ladder's end.
    """
    states, shape = vote_states(walked.seen), walked.correct.shape[:2]
    # One k after the other in memory, as the functions go through them.
    correct, tokens = (np.asfortranarray(of.reshape(-1, len(walked.ks))) for of in (walked.correct, walked.tokens))
    row_folds = np.repeat(folds, shape[1])

    def drawn(name: str, stop: dict[float, np.ndarray]) -> ReplayedPolicy:
        points = {rate: outcome_at(walked, where.reshape(shape)) for rate, where in stop.items()}
        costs = {float(point.tokens.mean()): rate for rate, point in points.items()}  # equal ones once
        rates = np.array([costs[cost] for cost in sorted(costs)])
        return ReplayedPolicy(name, "oracle", series, rates, tuple(points[rate] for rate in rates), rates == 0)

    known = drawn("oracle", corners(partial(perfect, correct, tokens), correct, tokens))
    best = corners(partial(best_on_votes, states, correct, tokens), correct, tokens)
    # Twice as many states: those of the questions that end right, and those of the others.
    told = [
        (2 * fine + correct[:, -1], np.repeat(2 * coarse, 2) + np.tile([0, 1], len(coarse))) for fine, coarse in states
    ]
    quitting = drawn("giving-up", {r: held_out_on_votes(told, correct, tokens, r, row_folds) for r in best})
    stop = {rate: held_out_on_votes(states, correct, tokens, rate, row_folds) for rate in best}
    other = drawn("votes-dp", stop)
    stop[NEVER_STOP] = np.full(len(correct), len(states))
    rates = np.append(other.thresholds, NEVER_STOP)
    curve = (*other.curve, outcome_at(walked, stop[NEVER_STOP].reshape(shape)))
    chosen = cross_fitted(rates, curve, walked, folds, margin, reference)
    where = np.stack([stop[rate].reshape(shape)[q] for q, rate in enumerate(chosen)])
    operating = replace(
        other,
        thresholds=rates,
        curve=curve,
        listed=np.zeros(len(rates), bool),
        chosen_thresholds=chosen,
        **_chosen_at(walked, where),
    )
    return [operating, drawn("votes-bound", best), replace(quitting, listed=quitting.listed & False), known]


def graded_alike(policy: ReplayedPolicy, graded: np.ndarray) -> ReplayedPolicy:
    """Return a policy whose accuracies are those of the graded questions of all policies: a mask of shape (Q,)."""
    return _each(policy, lambda point: replace(point, correct=np.where(graded, point.correct, np.nan)))


def restricted(policy: ReplayedPolicy, rows: np.ndarray) -> ReplayedPolicy:
    """Return a policy on some questions only: a mask of shape (Q,)."""
    return _each(policy, lambda point: point.on(rows))


def _each(policy: ReplayedPolicy, change: Callable[[Outcome], Outcome]) -> ReplayedPolicy:
    """Return a policy with all that it gives changed."""
    points = {name: of and change(of) for name, of in (("chosen", policy.chosen), ("own", policy.own))}
    return replace(policy, curve=tuple(map(change, policy.curve)), **points)
