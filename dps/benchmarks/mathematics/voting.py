r"""Which answers are the same: a key for every answer, and equal keys are a class.

A key is made of one answer and the question alone. Keys are equal or not, so the classes are an equivalence relation
whatever the order of the answers, and those of a few answers are the same when more come.
"""

from __future__ import annotations

import re
from collections.abc import Hashable

from dps.benchmarks.mathematics.comparing import LABELLED, difference, word_of, worth_of
from dps.benchmarks.mathematics.convention import Convention
from dps.benchmarks.mathematics.forms import Form, name_of, read_form, stated_value
from dps.benchmarks.mathematics.library import Budget, Undecided, Worth, worth
from dps.benchmarks.mathematics.spelling import normalize


def key_of(answer: str, convention: Convention, budget: Budget) -> Hashable:
    """Return what equivalent answers to a question have in common.

    An answer that cannot be decided within the limits has its text as key: it is a class of its own.
    """
    form = read_form(answer)
    if labelled := LABELLED.fullmatch(normalize(answer)):
        form = read_form(labelled[2])
    if not form.text:  # too long, too deep, or nothing
        return ("text", answer.strip())
    try:
        return _key(form, convention, budget)
    except Undecided:
        return ("undecided", form.text)


def _key(form: Form, convention: Convention, budget: Budget) -> Hashable:
    if form.kind == "words":
        return ("words", word_of(form))
    if form.kind == "value":
        return _value_key(form, convention, budget)
    if form.kind in ("tuple", "matrix"):
        return (form.kind, form.mark, *(_key(part, convention, budget) for part in form.parts))
    if form.kind in ("list", "union"):
        return (form.kind, *sorted((_key(part, convention, budget) for part in form.parts), key=repr))
    if form.kind == "equation":
        return _equation_key(form, convention, budget)
    if form.kind == "relation":
        found = worth(difference(form), budget, "positive")
        return ("relation", form.mark, form.text if found is None else found)
    return ("text", form.text)


def _value_key(form: Form, convention: Convention, budget: Budget) -> Hashable:
    digits = form.text.replace(",", "").lstrip("0") or "0"
    if form.base or (convention.base and digits.isdigit() and not form.unit and not form.percent):
        return ("numeral", digits, form.base or convention.base)
    value = worth_of(form, budget)
    if value is None:
        return ("text", form.text, form.unit, form.percent)
    percent = form.percent
    if convention.percent:
        percent = True
    elif percent and convention.percent is False and form.value is not None:
        percent, value = False, Worth.of(form.value / 100)
    unit = "" if not form.unit or convention.asks_for_unit(form.unit) else form.unit
    return ("value", value, percent, unit)


def _equation_key(form: Form, convention: Convention, budget: Budget) -> Hashable:
    stated, name = stated_value(form, convention.formulas), name_of(form)
    is_line = stated is not None and stated.kind == "value" and re.search(r"(?<![\\a-zA-Z])[a-zA-Z]", stated.text)
    asked = convention.asks_for_function(name) if is_line else convention.asks_for_name(name)
    if stated is not None and (not name or asked):
        return _key(stated, convention, budget)
    if stated is not None and not is_line:
        return ("named", name, _key(stated, convention, budget))
    found = worth(difference(form), budget, "any") if len(form.parts) == 2 else None
    return ("equation", form.text if found is None else found)
