"""The graders of answers that are mathematics, or numbers, which are mathematics."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dps.benchmarks.mathematics.comparing import equal, key_of
from dps.benchmarks.mathematics.convention import convention_of
from dps.benchmarks.mathematics.reading import extract_math, number_in, strict_math, strict_number_in
from dps.benchmarks.mathematics.words import without_magnitude

if TYPE_CHECKING:
    from dps.benchmarks.benchmark import Item


@dataclass(frozen=True, slots=True)
class MathGrader:
    """Reads responses whose answers are mathematics: extracts a text in normal form, compares by meaning."""

    in_background: bool = True

    def extract(self, text: str, item: Item) -> str | None:
        """Return the last boxed answer, else what follows ``####`` or "answer is", the last formula or number."""
        return extract_math(_in_asked_magnitude(text, item))

    def extract_strict(self, text: str, item: Item) -> str | None:
        r"""Return what stands in the last ``\boxed{}``, or in the boxes that one sentence lists."""
        return strict_math(_in_asked_magnitude(text, item))

    def grade(self, answer: str | None, item: Item) -> bool | None:
        """Return whether an answer equals the gold one; None if that cannot be decided within the limits."""
        if item.gold is None or answer is None:
            return None if item.gold is None else False
        gold = _in_asked_magnitude(item.gold, item)
        return equal(gold, answer, asked=convention_of(item.question).formulas)

    def classes(self, answers: Sequence[str | None], item: Item) -> list[int]:
        """Return each answer's class; what an answer leaves out is what the question says, see ``convention``."""
        convention = convention_of(item.question)
        numbers: dict[Hashable, int] = {}
        keys = {text: key_of(text, convention) for text in dict.fromkeys(answers) if text is not None}
        return [-1 if text is None else numbers.setdefault(keys[text], len(numbers)) for text in answers]


@dataclass(frozen=True, slots=True)
class NumberGrader(MathGrader):
    """Reads responses whose answers are numbers: with the same reader, but an answer must have a rational value."""

    in_background: bool = False

    def extract(self, text: str, item: Item) -> str | None:
        """Return the number that a response gives, in canonical form, a percent sign behind it."""
        return number_in(_in_asked_magnitude(text, item))

    def extract_strict(self, text: str, item: Item) -> str | None:
        r"""Return the number in the last ``\boxed{}`` or, without a box, after the first ``####``."""
        return strict_number_in(_in_asked_magnitude(text, item))


def _in_asked_magnitude(text: str, item: Item) -> str:
    """Return a text without the magnitude that the question names: "how many millions" asks for the 5 of 5 million."""
    return without_magnitude(text, convention_of(item.question).magnitude)
