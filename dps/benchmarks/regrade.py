"""``dps grade``: read the stored responses again after a grader has changed; no model is needed.

What was sampled stays as it is. Answers, their grades and classes, and the answer of each question are made anew and
written to a store of their own, so that the old verdicts can still be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from dps.aggregate import answer_of
from dps.benchmarks import grader_of
from dps.benchmarks.benchmark import Item
from dps.benchmarks.grading import Grader, read_trajectory
from dps.errors import InputError
from feature_store import Question, Store, StoreWriter
from feature_store.files import new_folder

_BATCH = 64
"""Questions that are committed together."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What grading again did."""

    num_questions: int
    """Questions of the store."""
    num_trajectories: int
    """Responses that were read."""
    answers: int
    """Responses whose extracted answer is another now."""
    grades: int
    """Responses whose grade is another now."""
    question_grades: int
    """Questions whose grade is another now."""
    ungradable: int
    """Responses that have a gold answer beside them and could not be graded."""


def regrade(folder: Path, output: Path, progress: Callable[[int], None] = lambda count: None) -> Changes:
    """Write a copy of a store with everything read and graded again.

    Args:
        folder: The store.
        output: Folder of the copy; of one that an interrupted run has left, what is missing is added.
        progress: Called with the number of questions that were graded since the last call.

    Raises:
        InputError: If the copy is complete already, or the store's benchmark is not known.
        StoreError: If the output is the copy of another store.
    """
    store = Store.open(folder)
    copy = Store.open(output) if (output / "manifest.json").exists() else None
    if copy is not None and set(store.question_ids) <= set(copy.question_ids):
        raise InputError(f"Expected an empty folder for the graded copy, but {output} holds a store: choose another.")
    there = set(copy.question_ids) if copy is not None else set()
    golds = [question.gold for question in store.scan(hidden=False)]
    identity = store.manifest.benchmark
    grader = grader_of(str(identity["name"]), golds, str(identity.get("plain_template", "")))
    aggregator = store.manifest.aggregator
    counts = [0] * 5
    with new_folder(output) as unfinished, ThreadPoolExecutor(8) as threads:
        writer = StoreWriter.open(unfinished, store.manifest)
        old: list[Question] = []
        for number, question in enumerate(store, 1):
            old.append(question)
            if len(old) < _BATCH and number < len(store):
                continue
            missing = [q for q in old if q.question_id not in there]
            fresh = list(threads.map(lambda q: graded(q, grader, aggregator), missing))
            if fresh:
                writer.commit(fresh)
            known = {q.question_id: q for q in fresh}
            if copy is not None:
                known |= {q.question_id: q for q in copy.read(i.question_id for i in old if i.question_id in there)}
            new = [known[q.question_id] for q in old]
            for before, after in zip(old, new, strict=True):
                counts = [a + b for a, b in zip(counts, _differences(before, after), strict=True)]
            progress(len(old))
            old = []
    return Changes(len(store), *counts)


def graded(question: Question, grader: Grader, aggregator: str) -> Question:
    """Return a question with its responses read and graded by this grader."""
    item = Item(question.question_id, question.question, question.gold, question.metadata)
    readings = [read_trajectory(grader, t, item, question.prompt) for t in question.trajectories]
    classes = grader.classes([reading.answer for reading in readings], item)
    trajectories = tuple(
        replace(
            t,
            answer=r.answer,
            correct=r.correct,
            strict_answer=r.strict_answer,
            strict_correct=r.strict_correct,
            answer_class=c,
        )
        for t, r, c in zip(question.trajectories, readings, classes, strict=True)
    )
    answer, correct = answer_of(trajectories, aggregator)
    return replace(question, trajectories=trajectories, answer=answer, correct=correct)


def _differences(before: Question, after: Question) -> tuple[int, int, int, int, int]:
    """Return the counts of :class:`Changes` from ``num_trajectories`` on, for one question."""
    pairs = list(zip(before.trajectories, after.trajectories, strict=True))
    return (
        len(pairs),
        sum(a.answer != b.answer for a, b in pairs),
        sum(a.correct is not b.correct for a, b in pairs),
        int(before.correct is not after.correct),
        sum(b.correct is None and after.gold is not None for _, b in pairs),
    )
