r"""Whether an answer is the gold one, part by part.

The gold answer decides what is asked for: units, percent signs, the base of a numeral and the name of a variable may be
missing in an answer, but must not be others; a text that may be a list or a number with thousands (``100,200``) is what
the gold answer is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from dps.benchmarks.mathematics.forms import APPROXIMATELY, Form, as_list, name_of, read_form, stated_value
from dps.benchmarks.mathematics.library import Budget, Undecided, Worth, is_close, same_worth, worth
from dps.benchmarks.mathematics.spelling import normalize

LABELLED = re.compile(r"(\\text\{\([A-H]\)\s*\}(?=.)|\([A-H]\)(?=\d|\\frac|\\sqrt))\s*(.+)")
r"""An answer behind the letter of its choice: ``\textbf{(B)}\ 12`` is 12 where 12 is right, and B where B is."""


def equal(gold: str, answer: str, *, asked: frozenset[str] = frozenset(), budget: Budget | None = None) -> bool | None:
    """Return whether an answer is the gold one; None if it cannot be decided.

    Rational numbers are compared exactly, other values to 30 digits; a decimal may stand for an irrational number if it
    agrees to a relative 1e-6. Lists and sets have no order, tuples and intervals do.

    Args:
        gold: The gold answer.
        answer: The other.
        asked: Formulas of the question in normal form; an answer may repeat one before an equals sign.
        budget: Time that is left for the question; without one, that of a question is allowed.
    """
    budget = Budget() if budget is None else budget
    if not normalize(gold) or not normalize(answer):  # too long, too deep, or nothing
        return gold.strip() == answer.strip() != ""
    right, given = read_form(gold), read_form(answer)
    if labelled := LABELLED.fullmatch(normalize(answer)):
        if also := LABELLED.fullmatch(normalize(gold)):
            return labelled[1] == also[1] and _same(read_form(also[2]), read_form(labelled[2]), asked, budget)
        given = read_form(labelled[1 if re.fullmatch(r"[A-Ha-h]", word_of(right)) else 2])
    return _same(right, given, asked, budget)


def _same(gold: Form, answer: Form, asked: frozenset[str], budget: Budget) -> bool | None:
    if gold == answer:
        return True
    if gold.kind == "equation" or answer.kind == "equation":
        return _same_equations(gold, answer, asked, budget)
    if gold.kind == "words" or answer.kind == "words":
        return word_of(gold) == word_of(answer)
    if gold.kind == "list" and answer.kind == "value" and (listed := as_list(answer)) is not None:
        answer = listed
    if gold.kind != answer.kind:
        return False
    match = lambda a, b: _same(a, b, asked, budget)  # noqa: E731
    if gold.kind == "value":
        return _same_values(gold, answer, budget)
    if gold.kind in ("list", "union"):
        return _matched(gold.parts, answer.parts, match)
    if gold.kind in ("tuple", "matrix"):
        if gold.mark != answer.mark or len(gold.parts) != len(answer.parts):
            return False
        return _all(match(a, b) for a, b in zip(gold.parts, answer.parts, strict=True))
    if gold.kind == "relation":
        return gold.mark == answer.mark and _same_difference(gold, answer, budget)
    return gold.text == answer.text


def _same_values(gold: Form, answer: Form, budget: Budget) -> bool | None:
    if (answer.unit and gold.unit and answer.unit != gold.unit) or (answer.base and gold.base != answer.base):
        return False
    if gold.text == answer.text:
        return True
    if gold.base or answer.base:
        return _same_numeral(gold, answer)
    if gold.value is not None and answer.value is not None:
        if gold.value == answer.value:
            return True
        return answer.percent and not gold.percent and gold.value == answer.value / 100
    try:
        left = worth_of(gold, budget)
        if left is None:
            return None
        right = worth_of(answer, budget)
    except Undecided:
        return None
    if right is None:
        return False
    if same_worth(left, right):
        return True
    return _decimal_of(answer, right, left) or _decimal_of(gold, left, right)


def _same_numeral(gold: Form, answer: Form) -> bool:
    """Compare digits where a base is given."""
    return gold.text.lstrip("0") == answer.text.replace(",", "").lstrip("0")


def _decimal_of(form: Form, value: Worth, other: Worth) -> bool:
    """Whether a decimal stands for an irrational number."""
    return "." in form.text and value.exact is not None and is_close(other, Fraction(value.exact))


def worth_of(form: Form, budget: Budget) -> Worth | None:
    """Return what a value is worth without its unit and percent sign, None if it cannot be read.

    Raises:
        Undecided: If that takes too long.
    """
    return Worth.of(form.value) if form.value is not None else worth(form.text, budget)


def difference(form: Form) -> str:
    """Return the difference of the two sides of an equation or relation."""
    left, right = form.parts
    return left.text if right.value == 0 else f"{left.text}-({right.text})"


def _same_equations(gold: Form, answer: Form, asked: frozenset[str], budget: Budget) -> bool | None:
    if gold.text == answer.text:
        return True
    if gold.kind != "equation":
        if answer.mark == APPROXIMATELY and _same(gold, answer.parts[-1], asked, budget):
            return True
        stated = stated_value(answer, asked)
        return False if stated is None else _same(gold, stated, asked, budget)
    stated = stated_value(gold, asked)
    if answer.kind != "equation":
        return False if stated is None else _same(stated, answer, asked, budget)
    if name_of(gold) and name_of(gold) == name_of(answer):
        return _same(stated_value(gold), stated_value(answer), asked, budget)
    if stated is not None and stated.value is not None:  # x = 5 is neither y = 5 nor 2x = 10
        return False
    return _same_difference(gold, answer, budget)


def _same_difference(gold: Form, answer: Form, budget: Budget) -> bool | None:
    """Compare equations and relations: the differences of their sides are multiples of each other."""
    if len(gold.parts) != 2 or len(answer.parts) != 2:
        return gold.text == answer.text
    scale = "any" if gold.kind == "equation" else "positive"
    try:
        left = worth(difference(gold), budget, scale)
        if left is None:
            return None
        right = worth(difference(answer), budget, scale)
    except Undecided:
        return None
    return right is not None and same_worth(left, right)


def _matched(gold: Sequence[Form], answer: Sequence[Form], match: Callable[[Form, Form], bool | None]) -> bool | None:
    """Return whether every part of one has a part of its own in the other."""
    if len(gold) != len(answer):
        return False
    left, undecided = list(answer), False
    for part in gold:
        verdicts = [match(part, other) for other in left]
        if True in verdicts:
            left.pop(verdicts.index(True))
        elif None in verdicts:
            undecided = True
        else:
            return False
    return None if undecided else True


def _all(verdicts: Sequence[bool | None]) -> bool | None:
    found = list(verdicts)
    return False if False in found else None if None in found else True


def word_of(form: Form) -> str:
    r"""Return words without case, brackets and ``\text``."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r"\1", form.text)
    return " ".join(plain.casefold().strip("() .").split()).replace(", ", ",")
