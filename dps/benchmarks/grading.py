"""Reading responses: which answer one gives, whether that is right, and which answers are the same.

Every kind of benchmark has its grader; a run calls :func:`read_trajectory` for each response. What takes long or could
be hostile (mathematics, programs) runs in processes of its own, so graders may be called from any thread. The graders
for mathematics and for code are in ``mathematics`` and ``programs``; the light ones are here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dps.benchmarks.answers import answer_key
from dps.benchmarks.choices import find_boxed_letter, find_choice, read_choice
from dps.benchmarks.thinking import answer_part

if TYPE_CHECKING:
    from dps.benchmarks.benchmark import Item
    from feature_store.records import Trajectory


class Grader(Protocol):
    """How the responses to a benchmark's questions are read."""

    in_background: bool
    """Whether it takes so long that sampling should go on meanwhile."""

    def extract(self, text: str, item: Item) -> str | None:
        """Return a response's answer in canonical form, wherever it stands; None if it has none."""
        ...

    def extract_strict(self, text: str, item: Item) -> str | None:
        """Return the answer that stands in the form that the prompt asked for, None if there is none."""
        ...

    def grade(self, answer: str | None, item: Item) -> bool | None:
        """Return whether an answer is right; None without a gold answer, and where it cannot be decided."""
        ...

    def classes(self, answers: Sequence[str | None], item: Item) -> list[int]:
        """Return each answer's equivalence class, numbered by first appearance from 0; -1 for no answer."""
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What a response says."""

    answer: str | None
    """Its answer in canonical form."""
    correct: bool | None
    """Whether that is right; None where it is not graded or cannot be."""
    strict_answer: str | None
    """The answer by the strict form alone."""
    strict_correct: bool | None
    """Whether that is right."""


def read(grader: Grader, text: str, item: Item, prompt: str = "") -> Reading:
    """Read one response; what a reasoning model thinks before it answers is no answer, see ``thinking``.

    Args:
        grader: The benchmark's grader.
        text: The response.
        item: The question.
        prompt: What the model was given; some prompts end in an open ``<think>``.
    """
    said = answer_part(text, prompt)
    answer, strict = (None, None) if said is None else (grader.extract(said, item), grader.extract_strict(said, item))
    correct = grader.grade(answer, item)
    return Reading(answer, correct, strict, correct if strict == answer else grader.grade(strict, item))


def read_trajectory(grader: Grader, trajectory: Trajectory, item: Item, prompt: str) -> Reading:
    """Read and grade a stored response; one that was given up has no answer, whatever it says.

    Args:
        grader: The benchmark's grader.
        trajectory: What was sampled.
        item: The question.
        prompt: What the model was given.
    """
    if trajectory.ending != "gave_up":
        return read(grader, trajectory.text, item, prompt)
    correct = grader.grade(None, item)
    return Reading(None, correct, None, correct)


@dataclass(frozen=True, slots=True)
class TextGrader:
    """Answers that are numbers or words: found by a function, compared as exact numbers or normalized texts."""

    flexible: Callable[[str], str | None]
    """Finds an answer wherever it stands."""
    strict: Callable[[str], str | None]
    """Finds it in the form that the prompt asked for."""
    in_background: bool = False

    def extract(self, text: str, item: Item) -> str | None:
        """See :class:`Grader`."""
        return self.flexible(text)

    def extract_strict(self, text: str, item: Item) -> str | None:
        """See :class:`Grader`."""
        return self.strict(text)

    def grade(self, answer: str | None, item: Item) -> bool | None:
        """See :class:`Grader`: no answer is wrong."""
        if item.gold is None:
            return None
        return answer is not None and answer_key(answer) == answer_key(item.gold)

    def classes(self, answers: Sequence[str | None], item: Item) -> list[int]:
        """See :class:`Grader`."""
        return number_classes([None if answer is None else answer_key(answer) for answer in answers])


@dataclass(frozen=True, slots=True)
class ChoiceGrader:
    """Answers that are one of lettered choices; ``item.metadata["choices"]`` has their texts in order.

    The gold answer is a letter too, or the text of a choice; one that is neither leaves the responses ungraded.
    """

    in_background: bool = False

    def extract(self, text: str, item: Item) -> str | None:
        """Return the letter of the choice that the response gives, see :func:`~dps.benchmarks.choices.find_choice`."""
        return find_choice(text, item.metadata["choices"])

    def extract_strict(self, text: str, item: Item) -> str | None:
        r"""Return the letter in the last ``\boxed{}``."""
        return find_boxed_letter(text, item.metadata["choices"])

    def grade(self, answer: str | None, item: Item) -> bool | None:
        """See :class:`Grader`: no answer is wrong."""
        gold = None if item.gold is None else read_choice(item.gold, item.metadata["choices"])
        return None if gold is None else answer == gold

    def classes(self, answers: Sequence[str | None], item: Item) -> list[int]:
        """See :class:`Grader`."""
        return number_classes(answers)


@dataclass(frozen=True, slots=True)
class OpenGrader:
    """Responses that are answers as a whole and are judged elsewhere: by a person, or by an annotator's program."""

    in_background: bool = False

    def extract(self, text: str, item: Item) -> str | None:
        """Return the whole response, None if it is empty."""
        return text.strip() or None

    def extract_strict(self, text: str, item: Item) -> str | None:
        """Return the whole response, None if it is empty."""
        return text.strip() or None

    def grade(self, answer: str | None, item: Item) -> None:
        """Return None: nothing is graded here."""

    def classes(self, answers: Sequence[str | None], item: Item) -> list[int]:
        """Return a class of its own for every different text, so that a vote falls to the best log-probability."""
        return number_classes(answers)


def number_classes(keys: Sequence[Hashable | None]) -> list[int]:
    """Number equal keys by first appearance from 0; -1 for None.

    >>> number_classes(["a", None, "b", "a"])
    [0, -1, 1, 0]
    """
    numbers: dict[Hashable, int] = {}
    return [-1 if key is None else numbers.setdefault(key, len(numbers)) for key in keys]
