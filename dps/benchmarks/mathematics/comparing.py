r"""Whether an answer is the gold one, and a key that equivalent answers share: by texts, numbers, then fingerprints.

The gold answer decides what is asked for: units, percent signs, the base of a numeral and the name of a variable may be
missing in an answer, but must not be others; a text that may be a list or a number with thousands (``100,200``) is what
the gold answer is.

A key is made of one answer and the question alone, so that classes do not depend on the order or number of answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction

from dps.benchmarks.mathematics.convention import Convention
from dps.benchmarks.mathematics.evaluation import Undecided, Worth, same_worth
from dps.benchmarks.mathematics.forms import APPROXIMATELY, Form, as_list, name_of, read_answer, stated_value
from dps.benchmarks.mathematics.values import worth

_TOLERANCE = Fraction(1, 10**6)
"""Relative tolerance between an irrational number and a decimal."""


def equal(gold: str, answer: str, *, asked: frozenset[str] = frozenset()) -> bool | None:
    """Return whether an answer is the gold one; None if it cannot be decided.

    Rational numbers are compared exactly, other values to 30 digits; a decimal may stand for an irrational number if it
    agrees to a relative 1e-6. Lists and sets have no order, tuples and intervals do. An answer may repeat a formula of
    the question (``asked``, in normal form) before an equals sign.
    """
    right, given = read_answer(gold), read_answer(answer)  # normalize and parse, once for every text
    if not right.normal or not given.normal:  # too long, too deep, or nothing
        return gold.strip() == answer.strip() != ""
    left, other = right.form, given.form
    if given.letter is not None and right.letter is not None:
        if given.letter != right.letter:
            return False
        left, other = right.content, given.content
    elif given.letter is not None:  # \textbf{(B)}\ 12 is 12 where 12 is right, and B where B is
        other = given.letter if re.fullmatch(r"[A-Ha-h]", word_of(left)) else given.content
    return _same(left, other, asked)


def key_of(answer: str, convention: Convention) -> Hashable:
    """Return what equivalent answers to a question have in common.

    An answer that cannot be decided within the limits has its text as key: it is a class of its own.
    """
    read = read_answer(answer)
    if not read.content.text:  # too long, too deep, or nothing
        return ("text", answer.strip())
    try:
        return _key(read.content, convention)
    except Undecided:
        return ("undecided", read.content.text)


def _same(gold: Form, answer: Form, asked: frozenset[str]) -> bool | None:
    if gold == answer:
        return True
    if gold.kind == "equation" or answer.kind == "equation":
        return _same_equations(gold, answer, asked)
    if gold.kind == "words" or answer.kind == "words":
        return word_of(gold) == word_of(answer)
    if gold.kind == "list" and answer.kind == "value":
        answer = as_list(answer) or answer
    if gold.kind != answer.kind:
        return False
    match = lambda a, b: _same(a, b, asked)  # noqa: E731
    if gold.kind == "value":
        return _same_values(gold, answer)
    if gold.kind in ("list", "union"):
        return _matched(gold.parts, answer.parts, match)
    if gold.kind in ("tuple", "matrix"):
        if gold.mark != answer.mark or len(gold.parts) != len(answer.parts):
            return False
        verdicts = [match(a, b) for a, b in zip(gold.parts, answer.parts, strict=True)]
        return False if False in verdicts else None if None in verdicts else True
    if gold.kind == "relation":
        return gold.mark == answer.mark and _same_difference(gold, answer)
    return gold.text == answer.text


def _same_values(gold: Form, answer: Form) -> bool | None:
    if (answer.unit and gold.unit and answer.unit != gold.unit) or (answer.base and gold.base != answer.base):
        return False
    if gold.text == answer.text:
        return True
    if gold.base or answer.base:
        return gold.text.lstrip("0") == answer.text.replace(",", "").lstrip("0")
    if gold.value is not None and answer.value is not None:
        return gold.value == answer.value or (answer.percent and not gold.percent and gold.value == answer.value / 100)
    try:
        left = _worth_of(gold)
        right = None if left is None else _worth_of(answer)
    except Undecided:
        return None
    if left is None or right is None:
        return None if left is None else False
    return same_worth(left, right) or _decimal_of(answer, right, left) or _decimal_of(gold, left, right)


def _decimal_of(form: Form, value: Worth, other: Worth) -> bool:
    """Whether a decimal stands for an irrational number."""
    if "." not in form.text or value.exact is None or other.exact is not None or len(other.points) != 1:
        return False
    real, imaginary = map(Fraction, other.points[0])
    return imaginary == 0 and abs(real - Fraction(value.exact)) <= abs(real) * _TOLERANCE


def _worth_of(form: Form) -> Worth | None:
    """Return what a value is worth without its unit and percent sign, None if it cannot be read."""
    return Worth.of(form.value) if form.value is not None else worth(form.text)


def _difference(form: Form) -> str:
    """Return the difference of the two sides of an equation or relation."""
    left, right = form.parts
    return left.text if right.value == 0 else f"{left.text}-({right.text})"


def _same_equations(gold: Form, answer: Form, asked: frozenset[str]) -> bool | None:
    if gold.text == answer.text:
        return True
    if gold.kind != "equation":
        if answer.mark == APPROXIMATELY and _same(gold, answer.parts[-1], asked):
            return True
        stated = stated_value(answer, asked)
        return False if stated is None else _same(gold, stated, asked)
    stated = stated_value(gold, asked)
    if answer.kind != "equation":
        return False if stated is None else _same(stated, answer, asked)
    if name_of(gold) and name_of(gold) == name_of(answer):
        return _same(stated_value(gold), stated_value(answer), asked)
    if stated is not None and stated.value is not None:  # x = 5 is neither y = 5 nor 2x = 10
        return False
    return _same_difference(gold, answer)


def _same_difference(gold: Form, answer: Form) -> bool | None:
    """Compare equations and relations: the differences of their sides are multiples of each other."""
    if len(gold.parts) != 2 or len(answer.parts) != 2:
        return gold.text == answer.text
    scale = "any" if gold.kind == "equation" else "positive"
    try:
        left = worth(_difference(gold), scale)
        right = None if left is None else worth(_difference(answer), scale)
    except Undecided:
        return None
    return None if left is None else right is not None and same_worth(left, right)


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


def word_of(form: Form) -> str:
    r"""Return words without case, brackets and ``\text``."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r"\1", form.text)
    return " ".join(plain.casefold().strip("() .").split()).replace(", ", ",")


def _key(form: Form, convention: Convention) -> Hashable:
    if form.kind == "words":
        return ("words", word_of(form))
    if form.kind == "value":
        return _value_key(form, convention)
    if form.kind == "equation":
        return _equation_key(form, convention)
    if form.kind == "relation":
        return ("relation", form.mark, worth(_difference(form), "positive") or form.text)
    keys = [_key(part, convention) for part in form.parts]
    if form.kind in ("tuple", "matrix"):
        return (form.kind, form.mark, *keys)
    return (form.kind, *sorted(keys, key=repr)) if form.kind in ("list", "union") else ("text", form.text)


def _value_key(form: Form, convention: Convention) -> Hashable:
    digits = form.text.replace(",", "").lstrip("0") or "0"
    if form.base or (convention.base and digits.isdigit() and not form.unit and not form.percent):
        return ("numeral", digits, form.base or convention.base)
    value = _worth_of(form)
    if value is None:
        return ("text", form.text, form.unit, form.percent)
    percent = form.percent or convention.percent is True
    if percent and convention.percent is False and form.value is not None:
        percent, value = False, Worth.of(form.value / 100)
    unit = "" if not form.unit or convention.asks_for_unit(form.unit) else form.unit
    return ("value", value, percent, unit)


def _equation_key(form: Form, convention: Convention) -> Hashable:
    stated, name = stated_value(form, convention.formulas), name_of(form)
    is_line = stated is not None and stated.kind == "value" and re.search(r"(?<![\\a-zA-Z])[a-zA-Z]", stated.text)
    asked = convention.asks_for_function(name) if is_line else convention.asks_for_name(name)
    if stated is not None and (not name or asked):
        return _key(stated, convention)
    if stated is not None and not is_line:
        return ("named", name, _key(stated, convention))
    value = worth(_difference(form), "any") if len(form.parts) == 2 else None
    return ("equation", value or form.text)
