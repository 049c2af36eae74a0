"""The graders of answers that are mathematics, or numbers, which are mathematics."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from dps.benchmarks.grading import Grader, Item
from dps.benchmarks.mathematics.comparing import equal, key_of
from dps.benchmarks.mathematics.convention import convention_of
from dps.benchmarks.mathematics.reading import extract_math, extract_number, strict_math, strict_number
from dps.benchmarks.mathematics.words import without_magnitude


@dataclass(frozen=True, slots=True)
class MathGrader(Grader):
    """Reads responses whose answers are mathematics: extracts a text in normal form, compares by meaning."""

    background = "processes"

    def extract(self, text: str, item: Item) -> str | None:
        """Return the last boxed answer, else what follows ``####`` or "answer is", the last formula or number."""
        return extract_math(_in_asked_magnitude(text, item))

    def extract_strict(self, text: str, item: Item) -> str | None:
        r"""Return what stands in the last ``\boxed{}``, or in the boxes that one sentence lists."""
        return strict_math(_in_asked_magnitude(text, item))

    def is_right(self, answer: str, item: Item) -> bool | None:
        """Return whether an answer equals the gold one; None if that cannot be decided within the limits."""
        return equal(_in_asked_magnitude(item.gold, item), answer, asked=convention_of(item.question).formulas)

    def key(self, answer: str, item: Item) -> Hashable:
        """Return what equal answers have in common; what one leaves out the question says, see ``convention``."""
        return key_of(answer, convention_of(item.question))


@dataclass(frozen=True, slots=True)
class NumberGrader(MathGrader):
    """Reads responses whose answers are numbers: with the same reader, but an answer must have a rational value."""

    background = "none"

    def extract(self, text: str, item: Item) -> str | None:
        """Return the number that a response gives, in canonical form, a percent sign behind it."""
        return extract_number(_in_asked_magnitude(text, item), percent=True)

    def extract_strict(self, text: str, item: Item) -> str | None:
        r"""Return the number in the last ``\boxed{}`` or, without a box, after the first ``####``."""
        return strict_number(_in_asked_magnitude(text, item), percent=True)


def _in_asked_magnitude(text: str, item: Item) -> str:
    """Return a text without the magnitude that the question names: "how many millions" asks for the 5 of 5 million."""
    return without_magnitude(text, convention_of(item.question).magnitude)
