"""Questions and graders: which answer a response gives, whether that is right, and which answers are the same.

Every kind of answer has its grader (``kinds``). Runs and ``dps grade`` read by a desk (``reader_process``). What could
be hostile (programs) runs in processes of its own, so graders work in any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, ClassVar, Literal

from dps.benchmarks.thinking import answer_part
from dps.threads import num_cores


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a benchmark."""

    question_id: str
    """Unique in the benchmark, and independent of limit, offset and shuffling."""
    question: str
    """The question as the benchmark states it."""
    gold: str | None
    """The gold answer in canonical form; None where there is none."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What else the benchmark says of it: JSON values."""


class Grader:
    """How the responses to a benchmark's questions are read; answers are the same where their keys are equal."""

    __slots__ = ()
    background: ClassVar[Literal["none", "threads", "processes"]] = "none"
    """Where responses are read while sampling goes on: ``threads`` where the work waits for other processes,
    ``processes`` where Python itself works long, ``none`` where that is done at once. For processes the grader is
    pickled: its class must be importable."""

    def extract(self, text: str, item: Item) -> str | None:
        """Return a response's answer in canonical form, wherever it stands; None if it has none."""
        raise NotImplementedError

    def extract_strict(self, text: str, item: Item) -> str | None:
        """Return the answer that stands in the form that the prompt asked for, None if there is none."""
        return self.extract(text, item)

    def is_right(self, answer: str, item: Item) -> bool | None:
        """Return whether an answer is the gold one; None where it cannot be decided."""
        return self.key(answer, item) == self.key(item.gold, item)

    def key(self, answer: str, item: Item) -> Hashable:
        """Return what equivalent answers have in common."""
        return answer

    def grade(self, answer: str | None, item: Item) -> bool | None:
        """Return whether an answer is right, no answer is wrong; None without a gold answer, and where undecided."""
        if item.gold is None:
            return None
        return False if answer is None else self.is_right(answer, item)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a response says."""

    answer: str | None
    """The answer in canonical form."""
    correct: bool | None
    """Whether that is right; None where it is not graded or cannot be."""
    strict_answer: str | None
    """The answer by the strict form alone."""
    strict_correct: bool | None
    """Whether that is right."""


Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""Applies a function to each of some answers, in their order: ``map``, or the map of an executor."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What is known of the answers to one question: each is graded and gets its key once, also if it is undecided."""

    grades: dict[str | None, bool | None] = field(default_factory=dict)
    keys: dict[str | None, Hashable] = field(default_factory=lambda: {None: None})

    def read(self, grader: Grader, text: str, item: Item, prompt: str = "") -> Reading:
        """Read one response to a prompt.

        What a reasoning model thinks before it answers is no answer, see ``thinking``.
        """
        return self._read(grader, [(text, prompt)], item, map)[0]

    def add(self, grader: Grader, responses: Sequence[tuple[str, str]], item: Item, each: Each = map) -> list[Reading]:
        """Read responses, each a text and its prompt, and let their answers have keys; ``each`` decides them."""
        readings = self._read(grader, responses, item, each)
        new = [answer for answer in dict.fromkeys(reading.answer for reading in readings) if answer not in self.keys]
        self.keys.update(zip(new, each(partial(grader.key, item=item), new), strict=True))
        return readings

    def _read(self, grader: Grader, responses: Sequence[tuple[str, str]], item: Item, each: Each) -> list[Reading]:
        parts = [answer_part(text, prompt) for text, prompt in responses]
        both = [
            (None, None) if said is None else (grader.extract(said, item), grader.extract_strict(said, item))
            for said in parts
        ]
        new = [answer for answer in dict.fromkeys(chain.from_iterable(both)) if answer not in self.grades]
        self.grades.update(zip(new, each(partial(grader.grade, item=item), new), strict=True))
        return [Reading(answer, self.grades[answer], strict, self.grades[strict]) for answer, strict in both]


def read(grader: Grader, text: str, item: Item, prompt: str = "") -> Reading:
    """Read one response, see :meth:`Answers.read`."""
    return Answers().read(grader, text, item, prompt)


Read = Callable[[Grader, Sequence[tuple[str, str]], Item, Answers], list[Reading]]
"""Reads as :meth:`Answers.add` does, here or elsewhere; the answers are among the known ones afterwards, with keys."""


def read_all(grader: Grader, responses: Sequence[tuple[str, str]], item: Item, by: Read) -> list[tuple[Reading, int]]:
    """Read the responses to one question, each a text and its prompt; with each reading comes its answer's class."""
    answers = Answers()
    readings = by(grader, responses, item, answers)
    return list(zip(readings, number_classes([answers.keys[each.answer] for each in readings]), strict=True))


def number_classes(keys: Sequence[Hashable | None]) -> list[int]:
    """Number equal keys by first appearance from 0; -1 for None.

    >>> number_classes(["a", None, "b", "a"])
    [0, -1, 1, 0]
    """
    numbers: dict[Hashable, int] = {}
    return [-1 if key is None else numbers.setdefault(key, len(numbers)) for key in keys]


def idle_cores(workers: int = 1) -> int:
    """Return how many processes may grade at a time for each of so many workers, at least one.

    They share the cores that this process may use; each worker's sampling has one for itself.
    """
    return max(1, num_cores() // workers - 1)
