r"""An answer parsed: a value with its unit, words, a list, a point or interval, a matrix, an equation, a relation.

What an answer consists of is read here, from its normal form; the expressions that are left are read by ``values`` and
get a fingerprint (``evaluation``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from dps.benchmarks.mathematics.spelling import normalize
from dps.benchmarks.mathematics.units import unit_of
from dps.benchmarks.mathematics.values import value_of
from dps.benchmarks.mathematics.words import BASES

APPROXIMATELY = "~"
"""Mark of an equation whose last side is a decimal near the one before."""
_MOST_PARTS = 100
"""Longest list, tuple or matrix that is taken apart."""
_MOST_LEVELS = 4
"""Lists of points of ... nested deeper than this are compared as texts."""

Kind = Literal["value", "words", "list", "tuple", "matrix", "union", "equation", "relation", "opaque"]


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer, or a part of one, consists of."""

    kind: Kind
    """What it is; ``opaque`` is compared as text alone."""
    text: str
    """Normal form, of a value without what follows."""
    value: Fraction | None = None
    """Exact value of a value, None where it is not rational by inspection."""
    unit: str = ""
    """Unit or words behind a value, empty for none."""
    percent: bool = False
    """Whether a percent sign stands behind a value."""
    base: str = ""
    """Base of a numeral, empty for none."""
    parts: tuple[Form, ...] = ()
    """Of lists, tuples, matrices (row by row) and unions; the sides of an equation or relation."""
    mark: str = ""
    """Brackets of a tuple, shape of a matrix, sign of an equation or relation."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer normalized and parsed."""

    normal: str
    """Normal form, empty if the text is too long, too deep, or nothing."""
    form: Form
    """All of it."""
    letter: Form | None
    r"""Letter of a choice before the rest, None where there is none: ``B`` of ``\textbf{(B)}\ 12``."""
    content: Form
    """What stands behind the letter, or all of it."""


def read_answer(text: str) -> Answer:
    """Normalize and parse a text: an answer, a gold answer. Equal texts are read once."""
    return _parsed(normalize(text))


@lru_cache(maxsize=10_000)
def _parsed(normal: str) -> Answer:
    form = _form(normal, 0)
    labelled = _LABELLED.fullmatch(normal)
    if labelled is None:
        return Answer(normal, form, None, form)
    letter, content = (_form(normalize(part), 0) for part in labelled.groups())
    return Answer(normal, form, letter, content)


def as_list(form: Form) -> Form | None:
    """Return the list that a number with thousands may be as well (``100,200``), None for any other value."""
    listed = _form(form.text.replace(",", ", "), 0) if "," in form.text else form
    return listed if listed.kind == "list" else None


def stated_value(form: Form, asked: frozenset[str] = frozenset()) -> Form | None:
    """Return what an equation states: the other side of a name or of a computation; None if it states nothing.

    ``x = 5``, ``5 = x``, ``f(2) = 5`` and ``2 + 3 = 5`` state 5, and so does what the question asks for (``m+n = 5``);
    ``2x = 5`` and ``x^2 = 5`` do not. What is no equation states itself.
    """
    if form.kind != "equation":
        return form
    *left, right = form.parts
    if len(left) == 1 and _is_name(right.text) and not _is_name(left[0].text):
        return left[0]  # 5 = x
    if form.mark == APPROXIMATELY and not _is_name(left[0].text):
        return left[-1]  # the exact value, not its decimal
    if all(_is_name(side.text) or _is_computed(side) or side.text in asked for side in left):
        return right if right.kind != "equation" else None
    return None


def name_of(form: Form) -> str:
    """Return the name whose value an equation states, empty where there is none."""
    ends = (form.parts[0].text, form.parts[-1].text) if form.kind == "equation" else ()
    return next(filter(_is_name, ends), "")


def _form(text: str, level: int) -> Form:
    if text and level <= _MOST_LEVELS:
        if _WORDS.fullmatch(text):
            return Form("words", text)
        if not _OPAQUE.fullmatch(text):
            readers = (_listed, _signed_twice, _contained, _matrix, _bracketed, _related, _equated, _united)
            forms = (read(text, level + 1) for read in readers)
            return next((form for form in forms if form is not None), None) or _valued(text)
    return Form("opaque", text)


def _composed(kind: Kind, text: str, parts: list[str], level: int, mark: str = "") -> Form:
    """Parse all parts; too many, or one that is empty, make the whole opaque."""
    if len(parts) > _MOST_PARTS or level > _MOST_LEVELS or not all(part.strip() for part in parts):
        return Form("opaque", text)
    forms = tuple(_form(normalize(part), level) for part in parts)
    if kind == "union":
        forms = tuple(inner for form in forms for inner in (form.parts if form.kind == "union" else (form,)))
    return Form(kind, text, parts=_without_repeated_names(forms) if kind == "list" else forms, mark=mark)


def _without_repeated_names(forms: tuple[Form, ...]) -> tuple[Form, ...]:
    """Leave out the name of a list's values where it is one: ``x = 1, x = 2`` and ``x = 1, 2``."""
    names = {name_of(form) for form in forms} - {""}
    if len(names) != 1 or any(form.kind == "equation" and not name_of(form) for form in forms):
        return forms
    return tuple(stated_value(form) or form for form in forms)


def _listed(text: str, level: int) -> Form | None:
    parts = _split(text, ", ")
    if len(parts) == 1:
        return None
    listed = _composed("list", text, parts, level)
    are_intervals = all(form.kind in ("tuple", "union") for form in listed.parts)
    if listed.parts and are_intervals and all(map(_RELATION.search, parts)):  # x < 1 or x > 2
        return _composed("union", text, parts, level)
    return listed


def _signed_twice(text: str, level: int) -> Form | None:
    if _DOUBLE_SIGN.search(text) is None:
        return None
    upper, lower = (
        _DOUBLE_SIGN.sub(lambda sign, plus=plus: "+" if sign[1] == plus else "-", text) for plus in ("pm", "mp")
    )
    # The plus of +3 stands where nothing is added.
    forms = tuple(_form(_LEADING_PLUS.sub("", one), level) for one in (upper, lower))
    return Form("list", text, parts=_without_repeated_names(forms))


def _contained(text: str, level: int) -> Form | None:
    name, _, rest = text.partition(r"\in")
    if not _is_name(name) or rest[:1] not in ("(", "[", "\\", " ") or rest[:2] == r"\t":
        return None
    return replace(_form(rest.strip(), level), text=text)


def _matrix(text: str, level: int) -> Form | None:
    matrix = _MATRIX.fullmatch(text)
    if matrix is None:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\", matrix[1].strip().removesuffix("\\\\")) if row.strip()]
    if len({len(row) for row in rows}) != 1:
        return Form("opaque", text)
    entries = [entry.strip() for row in rows for entry in row]
    return _composed("matrix", text, entries, level, f"{len(rows)}x{len(rows[0])}")


def _related(text: str, level: int) -> Form | None:
    pieces = _RELATION.split(text)
    sides, signs = [piece.strip() for piece in pieces[::2]], [_SIGNS[sign] for sign in pieces[1::2]]
    if not signs:
        return None
    if len(signs) > 2 or "=" in text or not all(sides):
        return Form("opaque", text)
    if signs[0] in (">", ">="):  # one direction
        sides, signs = sides[::-1], [_FLIPPED[sign] for sign in reversed(signs)]
    named = [_is_name(side) for side in sides]
    if len(signs) == 2:
        if not named[1] or not set(signs) <= {"<", "<="}:
            return Form("opaque", text)
        low = "(" if sides[0] == r"-\infty" else "(["[signs[0] == "<="]
        high = ")" if sides[2] == r"\infty" else ")]"[signs[1] == "<="]
        return _interval(text, low, sides[0], sides[2], high)
    if named[0] == named[1]:
        return Form("relation", text, parts=tuple(_form(side, level) for side in sides), mark=signs[0])
    value = sides[named[0]]
    if signs == ["!="]:
        return _real_numbers_without(text, [value])
    closed = signs == ["<="]
    if named[0]:
        return _interval(text, "(", r"-\infty", value, ")]"[closed])
    return _interval(text, "(["[closed], value, r"\infty", ")")


def _interval(text: str, opening: str, low: str, high: str, closing: str) -> Form:
    return Form("tuple", text, parts=(_valued(low), _valued(high)), mark=opening + closing)


def _real_numbers_without(text: str, points: list[str]) -> Form:
    ends = pairwise([r"-\infty", *points, r"\infty"])
    return Form("union", text, parts=tuple(_interval(text, "(", low, high, ")") for low, high in ends))


def _equated(text: str, level: int) -> Form | None:
    mark = APPROXIMATELY if _APPROXIMATE.search(text) else "="
    sides = [side.strip() for side in _split(_APPROXIMATE.sub("=", text), "=")]
    if len(sides) == 1:
        return None
    if len(sides) > 6 or not all(sides):
        return Form("opaque", text)
    return Form("equation", text, parts=tuple(_form(side, level) for side in sides), mark=mark)


def _united(text: str, level: int) -> Form | None:
    r"""Read unions, and all numbers but some: ``\mathbb{R}\setminus\{0\}`` is a union of intervals."""
    everything, sign, rest = text.partition(r"\setminus")
    if sign and everything.strip() == r"(-\infty,\infty)":
        left_out = _form(rest.strip(), level)
        points = left_out.parts if left_out.kind == "list" else (left_out,)
        if not points or any(point.value is None for point in points):
            return Form("opaque", text)
        return _real_numbers_without(text, [point.text for point in sorted(points, key=lambda point: point.value)])
    parts = text.split(r"\cup")
    return None if len(parts) == 1 else _composed("union", text, [part.strip() for part in parts], level)


def _bracketed(text: str, level: int) -> Form | None:
    r"""Read sets (``\{1,2\}``), which are lists, and tuples and intervals."""
    is_set = text.startswith(r"\{") and text.endswith(r"\}")
    start = 2 if is_set else 1
    if not (is_set or (text[0] in "([" and text[-1] in ")]")) or _closes(text[start - 1 :]) != len(text) - start:
        return None
    parts = _split(text[start:-start], ",")
    if not is_set:
        return None if len(parts) == 1 else _composed("tuple", text, parts, level, text[0] + text[-1])
    if re.search(r"[|:]|\\mid", text):
        return None
    elements = _composed("list", text, parts, level)
    return elements.parts[0] if len(elements.parts) == 1 else elements


def _valued(text: str) -> Form:
    """Read a single value: its percent sign, its unit, its base."""
    plain, percent, unit, base = text, False, "", ""
    if (sign := _PERCENT.search(plain)) is not None:
        plain, percent = plain[: sign.start()], True
    elif (measured := _UNIT.fullmatch(plain)) is not None:
        plain, unit = measured[1].strip(), unit_of(measured[2])
    if (numeral := _BASED.fullmatch(plain)) is not None:
        plain, base = numeral[1], numeral[2] or numeral[3]
    return Form("value", plain, None if base else value_of(plain), unit, percent, BASES.get(base, base))


def _split(text: str, separator: str) -> list[str]:
    """Return the parts between separators that are in no bracket."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text if separator in text else ""):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and place >= start and text.startswith(separator, place):
            parts.append(text[start:place])
            start = place + len(separator)
    return [*parts, text[start:]]


def _closes(text: str) -> int:
    """Return where the first bracket of a text is closed, -1 if nowhere."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0:
            return place
    return -1


def _is_name(text: str) -> bool:
    """Whether a text names something: a variable, a function's value, a segment, a word."""
    return _NAME.fullmatch(text) is not None


def _is_computed(form: Form) -> bool:
    """Whether a side of an equation is a computation without variables."""
    plain = _FUNCTION.sub("", form.text)
    return form.kind == "value" and (form.value is not None or not re.search(r"[a-zA-Z]", plain))


_LABELLED = re.compile(r"(\\text\{\([A-H]\)\s*\}(?=.)|\([A-H]\)(?=\d|\\frac|\\sqrt))\s*(.+)")
_WORDS = re.compile(
    r"\\text\{\(?[a-zA-Z][a-zA-Z0-9 .,'()-]*\)?\}|\(?\\text\{[A-Z]\}\)?|\([A-Z]\)|[A-Z]|[A-Za-z]{3,}(?: [A-Za-z]+)*"
)
_OPAQUE = re.compile(r"\\mathbb\{?[A-Z]\}?|[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{1,2}/[0-9]{1,2}/[0-9]{4}")
_NAME = re.compile(
    r"(?:[a-zA-Z]|\\(?!frac|sqrt|text|pi\b|infty|sin|cos|tan|log|ln|cdot|times|in\b)[a-zA-Z]+)"
    r"(?:'|_\w|_\{\w+\})*(?:\([-a-z0-9,]{1,9}\))?|[fghpqFGHPQ]'*(?:\^\{-1\})?\((?:[^()=]|\([^()=]*\))*\)"
    r"|m?\\(?:angle|measuredangle|triangle|det|dim|deg|operatorname)\s*[a-zA-Z]{1,4}|\[[A-Z]{3,5}\]"
    r"|[A-Z]{2,4}|\|?\\?(?:overline|angle|triangle|mathbb)?\{?[A-Z]{1,4}\}?(?:\([A-Z]\))?\|?"
    r"|[a-zA-Z]{3,}(?: [a-zA-Z]+)*|\\text\{[^{}]*\}(?:_\w|_\{[^{}]*\})?"
    r"|\([a-zA-Z](?:_\w)?(?:,[a-zA-Z](?:_\w)?){1,5}\)"
)
_FUNCTION = re.compile(r"\\(?:frac|sqrt|sin|cos|tan|cot|log|ln|pi|cdot|times|div|binom)(?![a-zA-Z])")
_APPROXIMATE = re.compile(r"\\(?:approx|simeq|doteq)(?![a-zA-Z])|≈")
_DOUBLE_SIGN = re.compile(r"\\(pm|mp)(?![a-zA-Z])")
_LEADING_PLUS = re.compile(r"(?:(?<==)|(?<=^))\+")
_MATRIX = re.compile(r"[(\[]?\\begin\{pmatrix\}((?:(?!\\begin).)*)\\end\{pmatrix\}[)\]]?")
_RELATION = re.compile(r"(<|>|\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|\\ne(?![a-zA-Z]))")
_SIGNS = {"<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "!="}
_FLIPPED = {">": "<", ">=": "<=", "<": ">", "<=": ">=", "!=": "!="}
_PERCENT = re.compile(r"\s*\\?%\s*$|\s*(?:\\text\{\s*)?(?:percent|per cent)\}?\s*$")
_UNIT = re.compile(
    r"([-+\d.,/]+|[^a-zA-Z]*\\[a-zA-Z].*?|.*[\d})])"
    r"\s*((?:\\text\{[^{}]*\}(?:\^\{?-?\d\}?)?(?:\\cdot|/)?)*\\text\{[^{}]*\}(?:\^\{?-?\d\}?)?|(?<=[\d})])\s*"
    r"(?:(?:[kc]?m|ft|mi)/(?:s|h|hr|min)|[a-zA-Z]{2,}(?:[ /-][a-zA-Z]+)*(?:\^\{?\d\}?)?))"
)
_BASED = re.compile(r"(?:\\text\{)?(-?[0-9A-F]+)\}?_(?:\{(?:\\text\{)?(\d+|[a-z]+)\}?\}|(\d+))")
