"""Reading responses: which answer one gives, whether that is right, and which answers are the same.

Every kind of benchmark has its grader; a run calls :func:`read_trajectory` for each response. What takes long or could
be hostile (mathematics, programs) runs in processes of its own, so graders may be called from any thread. The graders
for mathematics and for code are in ``mathematics`` and ``programs``; the light ones are here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dps.benchmarks.answers import answer_key, before_next_question, boxed_contents
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
    """Answers that are one of lettered choices; ``item.metadata["choices"]`` has their texts in order."""

    in_background: bool = False

    def extract(self, text: str, item: Item) -> str | None:
        r"""Return the letter: in the last box, after the last "answer", in the last brackets, or alone on a last line.

        A box may hold the choice's text instead of its letter.
        """
        response = before_next_question(text)
        strict = self.extract_strict(text, item)
        if strict is not None:
            return strict
        letters = _letters(item)
        for content in reversed(boxed_contents(response)):
            if (letter := _choice_of(content, item)) is not None:
                return letter
        stated = _STATED_CHOICE.findall(response)
        bracketed = _BRACKETED_CHOICE.findall(response)
        last = response.strip().splitlines()[-1:] or [""]
        alone = [last[0].strip(" .*:")] if len(last[0].strip(" .*:")) == 1 else []
        found = [letter for group in (stated, bracketed, alone) for letter in group[-1:]]
        return next((letter for letter in found if letter in tuple(letters)), None)

    def extract_strict(self, text: str, item: Item) -> str | None:
        r"""Return the letter in the last ``\boxed{}``."""
        contents = boxed_contents(before_next_question(text))
        letter = _TEXT_COMMAND.sub(r"\1", contents[-1]).strip(" .()$") if contents else None
        return letter if letter in tuple(_letters(item)) else None

    def grade(self, answer: str | None, item: Item) -> bool | None:
        """See :class:`Grader`."""
        return None if item.gold is None else answer == item.gold

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


_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_STATED_CHOICE = re.compile(r"\banswer\b[^\n.:]{0,30}?(?:\bis\b:?|:)\s*[*\s($]*([A-J])\b", re.IGNORECASE)
_BRACKETED_CHOICE = re.compile(r"\(([A-J])\)")


def _letters(item: Item) -> str:
    """Return the letters of a question's choices."""
    return "ABCDEFGHIJ"[: len(item.metadata["choices"])]


def _choice_of(content: str, item: Item) -> str | None:
    """Return the letter of the choice that a text is: its letter with or without the text, or the text alone."""
    plain = _TEXT_COMMAND.sub(r"\1", content).strip(" .$")
    letters = _letters(item)
    if (found := re.match(r"\(?([A-J])\)?(?:[.):]|\s|$)", plain)) and found[1] in letters:
        return found[1]
    choices = [" ".join(choice.split()).casefold() for choice in item.metadata["choices"]]
    same = [letters[i] for i, choice in enumerate(choices) if choice == " ".join(plain.split()).casefold()]
    return same[0] if len(same) == 1 else None
