"""A store as one table: every trajectory's numbers, and what only its reader of records can say of it.

The first step of every analysis. Stores with a fixed number of trajectories become :class:`dps.decide.samples.Samples`;
of live policies the recorded answers, costs and decisions are kept. ``policies`` runs policies over the tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from dps.analysis.mixing import ChainTrace, traces_of
from dps.analysis.words import plain
from dps.decide.aggregate import has_grade
from dps.decide.ladder import Ladder
from dps.decide.samples import Samples, fixed_ladder, samples_of
from dps.errors import InputError
from dps.estimates import estimate
from feature_store import Manifest, Question, Store, Trajectory

_READINGS = ("flexible", "strict", "without_strict", "ungradable")
"""Shares of a question's responses: right wherever the answer stands, right in the form that was asked for alone,
without an answer in that form, with an answer that the grader could not decide."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a policy gives on each of Q questions, averaged over their orders. All arrays have shape (Q,), float64."""

    correct: np.ndarray
    """Share of the orders whose answer is right; NaN where the question has no grade."""
    tokens: np.ndarray
    """Sampled tokens, rejected ones and those of cancelled trajectories included."""
    accepted: np.ndarray
    """How many of them are in the responses."""
    k: np.ndarray
    """Trajectories."""
    compute_s: np.ndarray
    """Measured compute seconds; NaN of a replayed policy."""
    latency_s: np.ndarray
    """Seconds from admission to answer; NaN of a replayed policy."""

    def on(self, rows: np.ndarray | Sequence[int]) -> Outcome:
        """Return some questions only: indices, or a mask of shape (Q,)."""
        return Outcome(*(getattr(self, column.name)[rows] for column in fields(self)))


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """What a live policy did on each of Q questions."""

    question_ids: tuple[str, ...]
    """Q of them."""
    outcome: Outcome
    """The recorded answers and costs; the question's embedding, the controller's calls and what was cancelled count."""
    cancelled: np.ndarray
    """Tokens of trajectories that were begun early and not needed, of each question: shape (Q,)."""
    prompt_tokens: np.ndarray
    """Length of each prompt: shape (Q,)."""
    ahead: np.ndarray
    """Votes by which its leading answer was ahead: shape (Q,)."""
    ungradable: np.ndarray
    """Whether the question has a grade, but the grader could not decide on the recorded answer: shape (Q,), bool."""
    decisions: tuple[tuple[tuple[int, float], ...], ...]
    """k and ``p_enough`` of every decision, by question."""


@dataclass(frozen=True, slots=True, eq=False)
class StoreTable:
    """One store, reduced to numbers."""

    name: str
    """Name of its folder."""
    series: str
    """Name of its policy: that of an arm (``power``, ``plain``), of a live controller or rule, or ``harvest``."""
    manifest: Manifest
    """Its manifest."""
    ladder: Ladder
    """What its policy climbs: to the end where it is fixed."""
    samples: Samples | None
    """The trajectories of a fixed policy."""
    live: Live | None
    """What a live policy did."""
    traces: dict[str, list[ChainTrace]]
    """The recorded steps of each question's chains, where they were read."""
    readings: dict[str, tuple[float, ...]]
    """The shares of :data:`_READINGS` of each graded question whose strict answers were looked for."""

    @property
    def ks(self) -> tuple[int, ...]:
        """Responses after each rung."""
        return self.ladder.ks

    @property
    def question_ids(self) -> tuple[str, ...]:
        """Its complete questions, sorted."""
        return (self.samples or self.live).question_ids  # type: ignore[union-attr]

    @property
    def graded(self) -> tuple[str, ...]:
        """Those that count where answers are right or wrong."""
        known = self.samples.has_grade if self.samples is not None else ~np.isnan(self.live.outcome.correct)  # type: ignore
        return tuple(name for name, is_graded in zip(self.question_ids, known, strict=True) if is_graded)

    def on(self, question_ids: Sequence[str]) -> StoreTable:
        """Return these questions only, all of which must be there, in this order."""
        if self.samples is not None:
            return replace(self, samples=self.samples.on(question_ids))
        place = {name: i for i, name in enumerate(self.question_ids)}
        rows, of = [place[name] for name in question_ids], self.live
        assert of is not None
        some = {name: getattr(of, name)[rows] for name in ("cancelled", "prompt_tokens", "ahead", "ungradable")}
        some["decisions"] = tuple(of.decisions[i] for i in rows)
        return replace(self, live=replace(of, question_ids=tuple(question_ids), outcome=of.outcome.on(rows), **some))


def read_table(store: Store, folder: str, *, everything: bool) -> StoreTable:
    """Read a store once, with steps and strict answers (``everything``) or by a quick scan without them.

    Raises:
        InputError: If a question of a fixed policy has fewer trajectories than its manifest says.
    """
    policy = store.manifest.policy
    traces: dict[str, list[ChainTrace]] = {}
    readings: dict[str, tuple[float, ...]] = {}
    questions: Iterable[Question] = iter(store) if everything else store.scan(hidden=False)
    if everything:
        questions = _keeping(questions, traces, readings)
    samples = live = None
    if policy.get("family") == "dynamic":
        ladder = Ladder.parse(policy.get("ladder", ()))
        live = _live(questions)
    else:
        ladder = fixed_ladder(store.manifest, folder)
        samples = samples_of(questions, ladder.totals, folder)
        samples = samples.on(sorted(samples.question_ids))
    name = store.folder.resolve().name
    return StoreTable(name, str(policy["name"]), store.manifest, ladder, samples, live, traces, readings)


def _keeping(
    questions: Iterable[Question], traces: dict[str, list[ChainTrace]], readings: dict[str, tuple[float, ...]]
) -> Iterator[Question]:
    """Yield questions as they come; keep their chains' steps and how their responses were read, by id."""
    for question in questions:
        each = question.trajectories
        traces[question.question_id] = traces_of(question)
        looked = any(t.strict_answer is not None or t.strict_correct is not None for t in each)
        if question.gold is not None and looked:
            shares = [
                (t.correct is True, t.strict_correct is True, t.strict_answer is None, t.correct is None) for t in each
            ]
            readings[question.question_id] = tuple(np.mean(shares, axis=0).tolist())
        yield question


def _live(questions: Iterable[Question]) -> Live:
    rows = []
    for question in questions:
        used, is_graded = question.trajectories, has_grade(question)
        values = (
            float(bool(question.correct)) if is_graded else np.nan,
            question.num_sampled_tokens,
            sum(t.num_tokens for t in used),
            question.k,
            question.compute_s,
            question.latency_s,
            question.num_cancelled_tokens,
            question.num_prompt_tokens,
            is_graded and question.correct is None,
            _lead(used),
        )
        rows.append((question.question_id, values, tuple((d.k, d.p_enough) for d in question.decisions)))
    rows.sort(key=lambda row: row[0])
    columns = np.array([values for _, values, _ in rows], dtype=np.float64).reshape(len(rows), 10).T
    ids, decisions = tuple(row[0] for row in rows), tuple(row[2] for row in rows)
    return Live(ids, Outcome(*columns[:6]), columns[6], columns[7], columns[9], columns[8] > 0, decisions)


def _lead(trajectories: Sequence[Trajectory]) -> int:
    """Return by how many votes the leading answer is ahead of the second."""
    votes = Counter(t.answer_class for t in trajectories if t.answer_class >= 0)
    top, second, *_ = [*sorted(votes.values(), reverse=True), 0, 0]
    return top - second


def describe_source(table: StoreTable, whole: StoreTable) -> list[dict[str, Any]]:
    """Return what a result says of a store, of the compared questions in ``table`` and of its whole, JSON values.

    A live policy is one entry, each arm of other stores is one.
    """
    entry: dict[str, Any] = {
        "store": table.name,
        "series": table.series,
        "num_questions": len(table.question_ids),
        "num_questions_in_store": len(whole.question_ids),
        "num_ungraded": len(whole.question_ids) - len(whole.graded),
    }
    samples = table.samples
    if samples is None:
        return [{**entry, "num_ungradable": int(table.live.ungradable.sum())}]  # type: ignore[union-attr]
    entries = []
    for arm in dict.fromkeys(samples.arms):
        of = np.array(samples.arms) == arm
        entries.append(
            {
                **entry,
                "series": table.series if len(table.ladder.arms) == 1 else arm,
                "num_ungradable": int((~samples.gradable[:, of])[samples.has_grade].sum()),
                "num_trajectories": int(of.sum()),
                "accuracy_one": plain(estimate(samples.right[samples.has_grade][:, of].mean(axis=1)))["value"],
                "tokens_one": float(samples.generated[:, of].mean()),
                "no_answer": float((samples.classes[:, of] < 0).mean()),
            }
        )
    return entries


def describe_readings(table: StoreTable) -> dict[str, Any] | None:
    """Return how a store's single responses were read, means over its questions; None where that is not known."""
    kept = [table.readings[name] for name in table.question_ids if name in table.readings]
    if not kept:
        return None
    shares = {name: plain(estimate(column)) for name, column in zip(_READINGS, np.transpose(kept), strict=True)}
    return {"series": table.series, "num_questions": len(kept), **shares}


def common_questions(tables: Sequence[StoreTable], *, graded: bool) -> list[str]:
    """Return the ids of the (graded) questions that all tables have, sorted."""
    return sorted(set.intersection(*(set(table.graded if graded else table.question_ids) for table in tables)))


def check_graded(table: StoreTable, folder: str) -> StoreTable:
    """Return a table for a replay.

    Raises:
        InputError: If it is of a live policy, or no question has a grade.
    """
    if table.samples is None:
        fixed_ladder(table.manifest, folder)
    if not table.graded:
        raise InputError(
            f"Expected graded questions in {folder}, but it has none: policies are compared by the grades of a "
            "benchmark with gold answers."
        )
    return table
