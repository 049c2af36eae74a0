r"""Where the answer stands in a response: in a box, after ``####``, after "the answer is", in the last formula.

Boxes and ``####`` are looked for in the whole response, in one pass; the weaker signs only in its last
:data:`TAIL` characters, so that a million characters of anything are read in well under a second.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from fractions import Fraction

from dps.benchmarks.mathematics.forms import read_answer, stated_value
from dps.benchmarks.mathematics.spelling import LONGEST_ANSWER, normalize, plain_characters
from dps.benchmarks.mathematics.values import format_number, parse_number
from dps.benchmarks.mathematics.words import digits_for_words

TAIL = 20_000
"""Characters at the end of a response, in which sentences, formulas and numbers are looked for."""
_MOST_BOXES = 32
_MOST_PLACES = 200
"""So many lines with ``####``, sentences and numbers are tried."""


def extract_math(text: str) -> str | None:
    r"""Return a response's answer in normal form; None if it has none, or a far too long one.

    Boxes come first; several that one sentence lists (``\boxed{3} and \boxed{5}``) are one list. Then what follows
    ``####`` or "answer is", a response that is nothing but an answer, the last formula, the last number.
    """
    response = before_next_question(text)
    return next((answer for content in _contents(response) if (answer := normalize(content))), None)


def strict_math(text: str) -> str | None:
    r"""Return what stands in the last ``\boxed{}``, or in the boxes that one sentence lists."""
    boxes = boxed_lists(before_next_question(text))
    return (normalize(boxes[-1]) or None) if boxes else None


def extract_number(text: str, *, flexible: bool = True) -> str | None:
    r"""Return a response's numeric answer in canonical form.

    Looked for are the last ``\boxed{}`` with a number, the first ``####`` with nothing but a number, a number with
    words after a ``####`` that ends the response, the last "answer is", and then any ``####`` that begins with a
    number, since ``#### 2 boxes of pencils`` may be a heading.

    Args:
        text: The decoded response.
        flexible: Take the last number of the response where none of these is found.
    """
    number = number_in(text, flexible=flexible)
    return None if number is None else number.removesuffix("%")


def strict_number(text: str) -> str | None:
    r"""Return the number in the last ``\boxed{}`` or, without a box, after the first ``####``; None otherwise."""
    number = strict_number_in(text)
    return None if number is None else number.removesuffix("%")


def number_in(text: str, *, flexible: bool = True) -> str | None:
    """Return what :func:`extract_number` does, with a percent sign where one stands behind the number (``50%``)."""
    return next(_numbers(before_next_question(text), flexible=flexible), None)


def strict_number_in(text: str) -> str | None:
    """Return what :func:`strict_number` does, with a percent sign where one stands behind the number."""
    contents = boxed_contents(before_next_question(text))
    if contents:
        return _final_number(contents[-1])
    found = _HASHES.search(text)
    return _final_number(found[1]) if found else None


def before_next_question(text: str) -> str:
    """Return the response without a next question that the model asked itself."""
    found = _NEXT_QUESTION.search(text)
    return text[: found.start()] if found and text[: found.start()].strip() else text


def tagged_answers(text: str) -> list[str]:
    """Return what stands in the last ``<answer>`` tags, a list of none or one."""
    start = text.lower().rfind("<answer>", -TAIL)
    if start < 0:
        return []
    content, *closed = re.split(r"</answer>|<\|", text[start + 8 : start + LONGEST_ANSWER], flags=re.IGNORECASE)
    return [content.strip() if closed else content.strip().partition("\n")[0]]


def boxed_contents(text: str) -> list[str]:
    r"""Return what stands in each of the last ``\boxed{}`` and ``\fbox{}``, in order of the closing brace.

    One pass, because a model that is stuck may open thousands of boxes and close none; and at most the last 32, each
    of at most :data:`LONGEST_ANSWER` characters (the content of a longer one is empty), because boxes within boxes
    would repeat the response as often as there are boxes.
    """
    return [_content(text, start, end) for _, start, end in _boxes(text)]


def boxed_lists(text: str) -> list[str]:
    r"""Return the contents as :func:`boxed_contents`, boxes that are joined by a comma, "and" or "or" as one list."""
    contents: list[str] = []
    last_end = None
    for opened, start, end in _boxes(text):
        content = _content(text, start, end)
        joined = last_end is not None and last_end < opened and _joins(text[last_end + 1 : opened])
        if joined and content.strip() != contents[-1].strip():
            contents[-1] = f"{contents[-1]}, {content}"
        elif not joined:
            contents.append(content)
        last_end = end
    return contents


def _boxes(text: str) -> deque[tuple[int, int, int]]:
    """Return where the last boxes begin, and where their contents do and end."""
    found: deque[tuple[int, int, int]] = deque(maxlen=_MOST_BOXES)
    opened: list[tuple[int, int] | None] = []
    for brace in _BRACE.finditer(text):
        if brace[0] != "}":
            opened.append(brace.span() if len(brace[0]) > 1 else None)
        elif opened and (span := opened.pop()) is not None:
            found.append((*span, brace.start()))
    return found


def _content(text: str, start: int, end: int) -> str:
    return text[start:end] if end - start <= LONGEST_ANSWER else ""


def _joins(between: str) -> bool:
    return len(between) <= 40 and _CONNECTION.fullmatch(between) is not None


def _contents(response: str) -> Iterator[str]:
    """Yield what may be the answer, the best first."""
    yield from reversed(boxed_lists(response)[-3:])
    yield from tagged_answers(response)
    tail = response[-TAIL:]
    yield from (found[1] for found in deque(_BARE_BOX.finditer(tail), maxlen=1))
    hashes = [(found[1], found.end()) for found in deque(_HASHES.finditer(response), maxlen=1)]
    # What goes on after it may have been a heading.
    yield from (line for line, end in hashes if not response[end : end + TAIL].strip())
    yield from (_stated(_after(tail, found.end())) for found in deque(_ANSWER_IS.finditer(tail), maxlen=1))
    yield from (line for line, _ in hashes)
    if len(response) <= 200:
        yield from _alone(response)
    yield from (next(filter(None, found.groups())) for found in deque(_FORMULA.finditer(tail), maxlen=1))
    yield from (found[0] for found in deque(_NUMBER.finditer(_readable(tail)), maxlen=1))


def _stated(clause: str) -> str:
    """Return what a clause states: the formula that it begins with, or all of its sentence."""
    formula = _FIRST_FORMULA.match(clause)
    return formula[1] if formula else _SENTENCE_END.split(clause)[0]


def _alone(response: str) -> list[str]:
    """Return a response that is an answer and nothing else: one short line of mathematics, or one or two words."""
    line = response.strip()
    if "\n" in line or re.search(r"(?<!\\)\$", line) or "\\(" in line or len(line) > 100:
        return []
    words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[a-zA-Z]+(?:\{[a-zA-Z ]*\})?", " ", line))
    words = [word for word in words if word.lower() not in ("and", "or")]
    return [line] if len(words) <= 2 and not (words and re.search(r"\d", line)) else []


def _numbers(response: str, *, flexible: bool) -> Iterator[str]:
    for content in reversed(boxed_contents(response)[-3:]):
        if (number := _final_number(content) or _clause_number(content)) is not None:
            yield number
    yield from filter(None, map(_final_number, tagged_answers(response)))
    lines: deque[tuple[str, int]] = deque(maxlen=_MOST_PLACES)
    for place, found in enumerate(_HASHES.finditer(response)):
        if place < _MOST_PLACES and (number := _bare_number(found[1])) is not None:
            yield number
        lines.append((found[1], found.end()))
    if lines and not response[lines[-1][1] : lines[-1][1] + TAIL].strip() and not _HEADING.match(lines[-1][0]):
        yield from _line_number(lines[-1][0])
    tail = response[-TAIL:]
    for found in reversed(deque(_ANSWER_IS.finditer(tail), maxlen=_MOST_PLACES)):
        clause = _after(tail, found.end())
        # "Answer: 48 clips in April and ..." may begin a solution; there the number must come first.
        if found["link"].lower().startswith("is"):
            sentence = _stated(clause)
            number = _final_number(sentence) or _clause_number(sentence)
            if number is not None:
                yield number
        else:
            yield from _leading_number(clause)
    for line, _ in lines:
        if not _HEADING.match(line):
            yield from _line_number(line)
    if flexible:
        yield from filter(None, map(_final_number, _alone(response)))
        phrases = deque(_NUMBER.finditer(_readable(tail)), maxlen=_MOST_PLACES)
        yield from (number for found in reversed(phrases) if (number := _phrase(found)) is not None)


def _after(tail: str, place: int) -> str:
    """Return the rest of the line, at most 200 characters: a model that is stuck may say so thousands of times."""
    return tail[place : place + 200].partition("\n")[0]


def _final_number(content: str) -> str | None:
    """Return the number that a final answer is, with or without a name before it and a unit behind; None for others."""
    if len(content) > LONGEST_ANSWER:
        return None
    content = _RESTATED.sub("", _MIXED.sub(r"\1 \2", " ".join(content.split())))
    form = stated_value(read_answer(digits_for_words(content)).form)
    return _written(form.value, form.percent) if form is not None and form.value is not None else None


def _bare_number(line: str) -> str | None:
    """Return the number that a line is: no words behind it, since those may make a heading of it."""
    return None if re.search(r"\d[.):]\s|(?<![\\a-zA-Z{])[a-zA-Z]{2,}", line) else _final_number(line)


def _clause_number(text: str) -> str | None:
    """Return the number that a clause states: the first one, or the first after the last equals sign.

    >>> _clause_number("2 + 3 = 5 apples. That is 2 more.")
    '5'
    """
    clause = _SENTENCE_END.split(text[:LONGEST_ANSWER])[0]
    return next(_numbers_in(clause.rpartition("=")[2]), None)


def _line_number(line: str) -> Iterator[str]:
    """Yield the number that a line with words is about: what it computes, or begins with."""
    number = _final_number(line)
    yield from _leading_number(line) if number is None else [number]


def _leading_number(text: str) -> Iterator[str]:
    """Yield the number that a text begins with, if any."""
    found = _NUMBER.match(_readable(text[:LONGEST_ANSWER]).lstrip(" $("))
    if found and (number := _phrase(found)) is not None:
        yield number


def _numbers_in(text: str) -> Iterator[str]:
    """Yield the numbers of a running text in order."""
    return (number for found in _NUMBER.finditer(_readable(text)) if (number := _phrase(found)) is not None)


def _phrase(found: re.Match[str]) -> str | None:
    number = parse_number(found[0])
    return None if number is None else _written(number, found["percent"] is not None)


def _written(number: Fraction, percent: bool) -> str | None:
    form = format_number(number) + ("%" if percent else "")
    return form if len(form) <= LONGEST_ANSWER // 2 else None


def _readable(text: str) -> str:
    """Return running text with plain characters and without the markup that separates a number's parts."""
    text = plain_characters(text).replace("{,}", ",").replace(r",\!", ",")
    return _MARKUP.sub("", text)


_NEXT_QUESTION = re.compile(r"\n[ \t]{0,8}(?:Problem|Question|Q)\s{0,3}[0-9]{0,6}\s{0,3}:")
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]")
_CONNECTION = re.compile(
    r"\s*(?:\$|\\\)|\\\])?\s*(?:,|;|(?:,\s*)?(?:\\text\s*\{\s*)?(?:and|or)\b\s*\}?)\s*(?:\$|\\\(|\\\[)?"
    r"\s*(?:[a-zA-Z](?:_\{?\w\}?)?\s*=\s*)?"
)
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s+([^\s${}]+)")
_HASHES = re.compile(r"#{4,}\s*([^\n]{0,2000})")
_MIXED = re.compile(r"(?<![\w.,/])([0-9]{1,100}) and ([0-9]{1,100}/[0-9]{1,100})(?![\d/])")
"""A mixed number where one number is asked for; elsewhere it may be a list."""
_RESTATED = re.compile(r"(?<=\w) \([^()]*\)[. ]*$")
"""What brackets say again: ``four (4)``."""
_HEADING = re.compile(r"[0-9]+\s?[.):](?:\s|$)")
_ANSWER_IS = re.compile(r"\banswer\b[^.\n:=]{0,40}?(?P<link>\bis\b:?|[:=])\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<!\\)[.!?](?:\s|$)")
_FIRST_FORMULA = re.compile(r"\s*\$([^$]{1,200})\$(?!\w|\s*(?:,|;|and\b|or\b|%))")
_FORMULA = re.compile(r"\$([^$\n]{1,200})\$|\\\((.{1,200}?)\\\)|\\\[(.{1,400}?)\\\]", re.DOTALL)
_MARKUP = re.compile(
    r"\*\*|(?<!\w)__|__(?!\w)|`|\\[$!,]|(?<=[\d])\*(?!\S)|\\[()\[\]]|\\(?:text|textbf|mathrm|mathbf)\b"
)

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,400})(?![0-9])(?:\.[0-9]{1,400}(?![0-9]))?|\.[0-9]{1,400}(?![0-9])"
_FRAC = r"\\[dtc]?frac\s?(?:\{-?[0-9]{1,99}\}\s?\{-?[0-9]{1,99}\}|[0-9]\s?[0-9])"
_NUMBER = re.compile(
    # A minus after a word, digit or bracket subtracts; it is a sign elsewhere.
    r"(?<![A-Za-z0-9_^])(?:(?:negative|minus)\s|(?:(?<![)\]}])-\s?)?[$€£¥]?|[$€£¥]-)"
    rf"(?:(?:{_DIGITS})(?:[eE][+-]?[0-9]{{1,3}}(?![0-9A-Za-z]))?"
    rf"(?:\s?/\s?(?:{_DIGITS})|\s[0-9]{{1,9}}/[0-9]{{1,9}}(?![0-9/])|\s?{_FRAC}"
    r"|\s?(?:\\times|\\cdot|×|x|\*)\s?10\s?(?:\^|\*\*)\s?(?:\{-?[0-9]{1,3}\}|-?[0-9]{1,3})"
    r"|\s(?:hundred|thousand|million|billion|trillion)s?\b)?"
    rf"|{_FRAC})(?P<percent>\s?\\?%)?"
)
"""A number within running text."""
