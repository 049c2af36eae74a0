"""``dps grade STORE``: read the stored responses again after a grader has changed; no model is needed.

What was sampled stays as it is. Answers, their grades and classes, and the answer of each question are made anew and
written to a store of their own, so that the old verdicts can still be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from dps.benchmarks import grader_of, module_of
from dps.benchmarks.grading import Grader, Item, idle_cores, read_all
from dps.benchmarks.reader_process import Desk
from dps.decide.aggregate import answer_of
from dps.errors import InputError
from feature_store import Question, Store, StoreWriter
from feature_store.files import new_folder

_BATCH = 64
"""Questions that are committed together."""


@dataclass(slots=True)
class Changes:
    """What grading again did."""

    num_questions: int
    num_trajectories: int = 0
    answers: int = 0
    """Responses whose extracted answer is another now."""
    grades: int = 0
    """Responses whose grade is another now."""
    question_grades: int = 0
    """Questions whose grade is another now."""
    ungradable: int = 0
    """Responses that have a gold answer beside them and could not be graded."""

    def add(self, before: Question, after: Question) -> None:
        """Count a question."""
        self.question_grades += before.correct is not after.correct
        for old, new in zip(before.trajectories, after.trajectories, strict=True):
            self.num_trajectories += 1
            self.answers += old.answer != new.answer
            self.grades += old.correct is not new.correct
            self.ungradable += new.correct is None and after.gold is not None


def check_copy(folder: Path, output: Path) -> None:
    """Raise an InputError if the output holds a store already, or the store's benchmark is not known."""
    if (output / "manifest.json").exists() and len(Store.open(output)):
        raise InputError(f"Expected an empty folder for the graded copy, but {output} holds a store: choose another.")
    module_of(str(Store.open(folder).manifest.benchmark["name"]))


def regrade(folder: Path, output: Path, progress: Callable[[int], None] = lambda count: None) -> Changes:
    """Write a copy of a store with everything read and graded again; nothing is left of one that is interrupted.

    InputError as :func:`check_copy`; StoreError if the output holds anything else.
    """
    store = Store.open(folder)
    golds = [question.gold for question in store.scan(hidden=False)]
    identity = store.manifest.benchmark
    grader = grader_of(str(identity["name"]), golds, str(identity.get("plain_template", "")))
    aggregator = store.manifest.aggregator
    changes = Changes(len(store))
    with new_folder(output) as unfinished, Desk(2 * idle_cores(), idle_cores() + 1) as desk:
        writer = StoreWriter.open(unfinished, store.manifest)
        questions = iter(store)
        while old := list(islice(questions, _BATCH)):
            readings = [desk.submit(graded, question, grader, aggregator, desk) for question in old]
            new = [reading.result() for reading in readings]
            writer.commit(new)
            for before, after in zip(old, new, strict=True):
                changes.add(before, after)
            progress(len(old))
    return changes


def graded(question: Question, grader: Grader, aggregator: str, desk: Desk) -> Question:
    """Return a question with its responses read at the desk and graded by this grader."""
    item = Item(question.question_id, question.question, question.gold, question.metadata)
    readings = read_all(grader, [(t.text, question.prompt) for t in question.trajectories], item, desk.read)
    trajectories = tuple(
        replace(trajectory, **asdict(reading), answer_class=number)
        for trajectory, (reading, number) in zip(question.trajectories, readings, strict=True)
    )
    answer, correct = answer_of(trajectories, aggregator)
    return replace(question, trajectories=trajectories, answer=answer, correct=correct)
