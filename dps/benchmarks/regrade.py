"""``dps grade``: read the stored responses again after a grader has changed; no model is needed.

What was sampled stays as it is. Answers, their grades and classes, and the answer of each question are made anew and
written to a store of their own, so that the old verdicts can still be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from dps.benchmarks import grader_of
from dps.benchmarks.benchmark import Item
from dps.benchmarks.grading import Grader, read_trajectory
from dps.decide.aggregate import answer_of
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
        output: Folder of the copy; nothing is left of one that is interrupted.
        progress: Called with the number of questions that were graded since the last call.

    Raises:
        InputError: If the output holds a store already, or the store's benchmark is not known.
        StoreError: If the output holds anything else.
    """
    store = Store.open(folder)
    if (output / "manifest.json").exists() and len(Store.open(output)):
        raise InputError(f"Expected an empty folder for the graded copy, but {output} holds a store: choose another.")
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
            new = list(threads.map(lambda q: graded(q, grader, aggregator), old))
            writer.commit(new)
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
