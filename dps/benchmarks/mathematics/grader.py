r"""The graders of answers that are mathematics, or numbers, which are mathematics."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dps.benchmarks.mathematics.comparing import equal
from dps.benchmarks.mathematics.convention import convention_of
from dps.benchmarks.mathematics.library import budget_of
from dps.benchmarks.mathematics.reading import extract_math, number_in, strict_math, strict_number_in
from dps.benchmarks.mathematics.voting import key_of
from dps.benchmarks.mathematics.words import without_magnitude

if TYPE_CHECKING:
    from dps.benchmarks.benchmark import Item


@dataclass(frozen=True, slots=True)
class MathGrader:
    """Reads responses whose answers are mathematics."""

    in_background: bool = True

    def extract(self, text: str, item: Item) -> str | None:
        """Return the last boxed answer, else what follows ``####`` or "answer is", the last formula or number."""
        return extract_math(_in_asked_magnitude(text, item))

    def extract_strict(self, text: str, item: Item) -> str | None:
        r"""Return what stands in the last ``\boxed{}``, or in the boxes that one sentence lists."""
        return strict_math(_in_asked_magnitude(text, item))

    def grade(self, answer: str | None, item: Item) -> bool | None:
        """Return whether an answer equals the gold one; None if that cannot be decided within the limits."""
        return _grade(answer, item)

    def classes(self, answers: Sequence[str | None], item: Item) -> list[int]:
        """Return each answer's class; what an answer leaves out is what the question says, see ``convention``."""
        return _classes(answers, item)


@dataclass(frozen=True, slots=True)
class NumberGrader:
    """Reads responses whose answers are numbers: with the same reader, but an answer must have a rational value."""

    in_background: bool = False

    def extract(self, text: str, item: Item) -> str | None:
        """Return the number that a response gives, in canonical form, a percent sign behind it."""
        return number_in(_in_asked_magnitude(text, item))

    def extract_strict(self, text: str, item: Item) -> str | None:
        r"""Return the number in the last ``\boxed{}`` or, without a box, after the first ``####``."""
        return strict_number_in(_in_asked_magnitude(text, item))

    def grade(self, answer: str | None, item: Item) -> bool | None:
        """Return whether an answer is the gold number; no answer is wrong."""
        return _grade(answer, item)

    def classes(self, answers: Sequence[str | None], item: Item) -> list[int]:
        """See :class:`MathGrader`."""
        return _classes(answers, item)


def _in_asked_magnitude(text: str, item: Item) -> str:
    """Return a text without the magnitude that the question names: "how many millions" asks for the 5 of 5 million."""
    return without_magnitude(text, convention_of(item.question).magnitude)


def _grade(answer: str | None, item: Item) -> bool | None:
    if item.gold is None:
        return None
    if answer is None:
        return False
    gold = _in_asked_magnitude(item.gold, item)
    return equal(gold, answer, asked=convention_of(item.question).formulas, budget=budget_of(item))


def _classes(answers: Sequence[str | None], item: Item) -> list[int]:
    convention, budget = convention_of(item.question), budget_of(item)
    numbers: dict[Hashable, int] = {}
    found = []
    for answer in answers:
        if answer is None:
            found.append(-1)
        else:
            found.append(numbers.setdefault(key_of(answer, convention, budget), len(numbers)))
    return found
