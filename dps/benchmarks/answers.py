"""Answers that are words, found in a response and compared as exact numbers or normalized texts.

Numbers are read by ``mathematics``, the one reader for them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from dps.benchmarks.grading import Grader, Item
from dps.benchmarks.mathematics.reading import (
    ANSWER_IS,
    HASHES,
    TAIL,
    before_next_question,
    boxed_contents,
    tagged_answers,
)
from dps.benchmarks.mathematics.spelling import LONGEST_ANSWER, one_line
from dps.benchmarks.mathematics.values import canonical_number, parse_number

_MOST_LINES = 1_000
"""So many lines, and so many ``####``, are looked at from a response's end."""
_LONGEST_NORMALIZED = 20_000
"""Characters; what is longer is no answer that anyone compares, and keeps its Unicode spelling."""
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_MARKUP = str.maketrans(
    {"−": "-", "’": "'", "‘": "'", "“": '"', "”": '"', "\u00a0": " ", "\u202f": " ", "*": None, "`": None}
)
_SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bProf)[.!?](?:\s|$)")


def canonical_answer(text: str) -> str | None:
    """Return the form in which an answer is stored: of a number its canonical form, else the normalized text.

    Normalized text has no markup, no case, single spaces, and no quotation marks or punctuation around it; a raised
    digit is an exponent (``10^2``), never another digit of the number before it. None if nothing is left.
    """
    number = canonical_number(text)
    if number is not None:
        return number
    # A single character may become 18 of them.
    plain = unicodedata.normalize("NFKC", one_line(text)) if len(text) <= _LONGEST_NORMALIZED else text
    plain = _TEXT_COMMAND.sub(r"\1", plain).translate(_MARKUP)
    plain = " ".join(plain.casefold().split()).strip(" .,;:!?\"'_$")
    # Some texts become numbers only by being normalized: one in quotation marks.
    return (canonical_number(plain) or plain) if plain else None


def answer_key(answer: str) -> Hashable:
    """Return what two equivalent answers have in common: a number's exact value, or the normalized text."""
    canonical = canonical_answer(answer)
    number = None if canonical is None else parse_number(canonical)
    return canonical if number is None else number


def extract_text(text: str) -> str | None:
    r"""Return a response's answer of any kind in canonical form.

    It is what stands after the last ``####``, in the last ``\boxed{}``, in ``<answer>`` tags, after the last "answer
    is" up to the end of the sentence, or else the last line; what is longer than 1,000 characters is no answer. From
    the next "Question:" or "Problem:" on, a response is left out.
    """
    response = before_next_question(text)
    tail = response[-TAIL:]
    stated = [
        _SENTENCE_END.split(tail[match.end() : match.end() + 200].partition("\n")[0])[0]
        for match in ANSWER_IS.finditer(tail)
    ]
    candidates = [
        *reversed(_after_hashes(response)),
        *reversed(boxed_contents(response)),
        *tagged_answers(response),
        *reversed(stated),
        *reversed(response.rstrip().rsplit("\n", _MOST_LINES)),
    ]
    short = (candidate for candidate in candidates if len(candidate) <= LONGEST_ANSWER)
    return next((answer for answer in map(canonical_answer, short) if answer is not None), None)


def strict_text(text: str) -> str | None:
    r"""Return what stands in the last ``\boxed{}`` or, without a box, after the last ``####``; None otherwise."""
    response = before_next_question(text)
    contents = boxed_contents(response) or _after_hashes(response)
    return canonical_answer(contents[-1]) if contents and len(contents[-1]) <= LONGEST_ANSWER else None


def _after_hashes(response: str) -> list[str]:
    """Return the rest of the last lines with ``####``."""
    return [match[1] for match in deque(HASHES.finditer(response), maxlen=_MOST_LINES)]


@dataclass(frozen=True, slots=True)
class TextGrader(Grader):
    """Answers that are numbers or words: found by a function, compared as exact numbers or normalized texts."""

    flexible: Callable[[str], str | None] = extract_text
    """Finds an answer wherever it stands."""
    strict: Callable[[str], str | None] = strict_text
    """Finds an answer in the form that the prompt asked for."""

    def extract(self, text: str, item: Item) -> str | None:
        """See :class:`Grader`."""
        return self.flexible(text)

    def extract_strict(self, text: str, item: Item) -> str | None:
        """See :class:`Grader`."""
        return self.strict(text)

    def key(self, answer: str, item: Item) -> Hashable:
        """See :func:`answer_key`."""
        return answer_key(answer)


@dataclass(frozen=True, slots=True)
class OpenGrader(Grader):
    """Responses that are answers as a whole and are judged elsewhere: by a person, or by an annotator's program.

    Every different text is a class of its own, so that a vote falls to the best log-probability.
    """

    def extract(self, text: str, item: Item) -> str | None:
        """Return the whole response, None if it is empty."""
        return text.strip() or None

    def grade(self, answer: str | None, item: Item) -> None:
        """Return None: nothing is graded here."""
