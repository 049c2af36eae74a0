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
    return next(filter(None, map(normalize, _contents(before_next_question(text)))), None)


def strict_math(text: str) -> str | None:
    r"""Return what stands in the last ``\boxed{}``, or in the boxes that one sentence lists."""
    boxes = _boxed_lists(before_next_question(text))
    return (normalize(boxes[-1]) or None) if boxes else None


def extract_number(text: str, *, flexible: bool = True, percent: bool = False) -> str | None:
    r"""Return a response's numeric answer in canonical form; with ``percent`` a percent sign that stands behind it.

    Looked for are the last ``\boxed{}`` with a number, the first ``####`` with nothing but a number, a number with
    words after a ``####`` that ends the response, the last "answer is", any ``####`` that begins with a number, since
    ``#### 2 boxes of pencils`` may be a heading, and if ``flexible`` the last number of all.
    """
    number = next(filter(None, _numbers(before_next_question(text), flexible)), None)
    return number if percent or number is None else number.removesuffix("%")


def strict_number(text: str, *, percent: bool = False) -> str | None:
    r"""Return the number in the last ``\boxed{}`` or, without a box, after the first ``####``; None otherwise."""
    response = before_next_question(text)
    contents = boxed_contents(response) or [line[1] for line in [HASHES.search(response)] if line]
    number = _final_number(contents[-1]) if contents else None
    return number if percent or number is None else number.removesuffix("%")


def before_next_question(text: str) -> str:
    """Return the response without a next question that the model asked itself."""
    question = _NEXT_QUESTION.search(text)
    return text[: question.start()] if question and text[: question.start()].strip() else text


def tagged_answers(text: str) -> list[str]:
    """Return what stands in the last ``<answer>`` tags, a list of none or one."""
    start = text.lower().rfind("<answer>", -TAIL)
    if start < 0:
        return []
    content, *closed = re.split(r"</answer>|<\|", text[start + 8 : start + LONGEST_ANSWER], flags=re.IGNORECASE)
    return [content.strip() if closed else content.strip().partition("\n")[0]]


def boxed_contents(text: str) -> list[str]:
    r"""Return what stands in each of the last ``\boxed{}`` and ``\fbox{}``, in order of the closing brace.

    One pass over the text, at most the last 32, and no content (an empty one) of more than 1,000 characters, because
    a model that is stuck may open thousands of boxes and close none, or put one within another.
    """
    return [content for content, _, _ in _boxes(text)]


def _boxed_lists(text: str) -> list[str]:
    """Return the contents as :func:`boxed_contents`, boxes that are joined by a comma, "and" or "or" as one list."""
    contents: list[str] = []
    last_end = len(text)
    for content, opened, end in _boxes(text):
        joined = last_end < opened <= last_end + 41 and _CONNECTION.fullmatch(text[last_end + 1 : opened])
        if not joined:
            contents.append(content)
        elif content.strip() != contents[-1].strip():
            contents[-1] = f"{contents[-1]}, {content}"
        last_end = end
    return contents


def _boxes(text: str) -> list[tuple[str, int, int]]:
    """Return the contents of the last boxes, and where the boxes begin and end."""
    closed: deque[tuple[int, int, int]] = deque(maxlen=_MOST_BOXES)
    opened: list[tuple[int, int] | None] = []
    for brace in _BRACE.finditer(text):
        if brace[0] != "}":
            opened.append(brace.span() if len(brace[0]) > 1 else None)
        elif opened and (span := opened.pop()) is not None:
            closed.append((*span, brace.start()))
    return [(text[start:end] if end - start <= LONGEST_ANSWER else "", first, end) for first, start, end in closed]


def _contents(response: str) -> Iterator[str]:
    """Yield what may be the answer, the best first."""
    yield from reversed(_boxed_lists(response)[-3:])
    yield from tagged_answers(response)
    tail = response[-TAIL:]
    yield from (box[1] for box in _last(_BARE_BOX, tail))
    lines = _last(HASHES, response)
    # What goes on after it may have been a heading.
    yield from (line[1] for line in lines if _ends_with(response, line))
    yield from (_stated(_after(tail, sentence.end())) for sentence in _last(ANSWER_IS, tail))
    yield from (line[1] for line in lines)
    yield from _alone(response)
    yield from (next(filter(None, formula.groups())) for formula in _last(_FORMULA, tail))
    yield from (number[0] for number in _last(_NUMBER, _readable(tail)))


def _numbers(response: str, flexible: bool) -> Iterator[str | None]:
    """Yield what may be the numeric answer, the best first."""
    for content in reversed(boxed_contents(response)[-3:]):
        yield _final_number(content) or _clause_number(content)
    yield from map(_final_number, tagged_answers(response))
    for place, line in enumerate(HASHES.finditer(response)):
        # No words behind it, since those may make a heading of it.
        if place < _MOST_PLACES and not re.search(r"\d[.):]\s|(?<![\\a-zA-Z{])[a-zA-Z]{2,}", line[1]):
            yield _final_number(line[1])
    lines = [line for line in _last(HASHES, response, _MOST_PLACES) if not _HEADING.match(line[1])]
    if lines and _ends_with(response, lines[-1]):
        yield _line_number(lines[-1][1])
    tail = response[-TAIL:]
    for sentence in reversed(_last(ANSWER_IS, tail, _MOST_PLACES)):
        clause = _after(tail, sentence.end())
        # "Answer: 48 clips in April and ..." may begin a solution; there the number must come first.
        if sentence["link"].lower().startswith("is"):
            yield _final_number(_stated(clause)) or _clause_number(_stated(clause))
        else:
            yield _leading_number(clause)
    for line in lines:
        yield _line_number(line[1])
    if flexible:
        yield from map(_final_number, _alone(response))
        yield from map(_phrase, reversed(_last(_NUMBER, _readable(tail), _MOST_PLACES)))


def _last(pattern: re.Pattern[str], text: str, most: int = 1) -> deque[re.Match[str]]:
    return deque(pattern.finditer(text), maxlen=most)


def _ends_with(response: str, line: re.Match[str]) -> bool:
    return not response[line.end() : line.end() + TAIL].strip()


def _stated(clause: str) -> str:
    """Return what a clause states: the formula that it begins with, or all of its sentence."""
    formula = _FIRST_FORMULA.match(clause)
    return formula[1] if formula else _SENTENCE_END.split(clause)[0]


def _alone(response: str) -> list[str]:
    """Return a response that is an answer and nothing else: one short line of mathematics, or one or two words."""
    line = response.strip() if len(response) <= 200 else ""
    if not 0 < len(line) <= 100 or "\n" in line or re.search(r"(?<!\\)\$", line) or "\\(" in line:
        return []
    words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[a-zA-Z]+(?:\{[a-zA-Z ]*\})?", " ", line))
    words = [word for word in words if word.lower() not in ("and", "or")]
    return [line] if len(words) <= 2 and not (words and re.search(r"\d", line)) else []


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


def _clause_number(text: str) -> str | None:
    """Return the number that a clause states: the first one, or the first after the last equals sign."""
    clause = _SENTENCE_END.split(text[:LONGEST_ANSWER])[0]
    numbers = _NUMBER.finditer(_readable(clause.rpartition("=")[2]))
    return next(filter(None, map(_phrase, numbers)), None)


def _line_number(line: str) -> str | None:
    """Return the number that a line with words is about: what it computes, or begins with."""
    return _final_number(line) or _leading_number(line)


def _leading_number(text: str) -> str | None:
    """Return the number that a text begins with."""
    number = _NUMBER.match(_readable(text[:LONGEST_ANSWER]).lstrip(" $("))
    return _phrase(number) if number else None


def _phrase(phrase: re.Match[str]) -> str | None:
    number = parse_number(phrase[0])
    return None if number is None else _written(number, phrase["percent"] is not None)


def _written(number: Fraction, percent: bool) -> str | None:
    form = format_number(number) + ("%" if percent else "")
    return form if len(form) <= LONGEST_ANSWER // 2 else None


def _readable(text: str) -> str:
    """Return running text with plain characters and without the markup that separates a number's parts."""
    return _MARKUP.sub("", plain_characters(text).replace("{,}", ",").replace(r",\!", ","))


_NEXT_QUESTION = re.compile(
    r"\n[ \t]{0,8}(?:(?:Problem|Question|Q)\s{0,3}[0-9]{0,6}\s{0,3}:|Answer the following multiple choice question\b)"
)
"""What a model begins a question of its own with, after its answer; the last is our own prompt's beginning."""
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]")
_CONNECTION = re.compile(
    r"\s*(?:\$|\\\)|\\\])?\s*(?:,|;|(?:,\s*)?(?:\\text\s*\{\s*)?(?:and|or)\b\s*\}?)\s*(?:\$|\\\(|\\\[)?"
    r"\s*(?:[a-zA-Z](?:_\{?\w\}?)?\s*=\s*)?"
)
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s+([^\s${}]+)")
HASHES = re.compile(r"#{4,}\s*([^\n]{0,2000})")
_MIXED = re.compile(r"(?<![\w.,/])([0-9]{1,100}) and ([0-9]{1,100}/[0-9]{1,100})(?![\d/])")
"""A mixed number where one number is asked for; elsewhere it may be a list."""
_RESTATED = re.compile(r"(?<=\w) \([^()]*\)[. ]*$")
"""What brackets say again: ``four (4)``."""
_HEADING = re.compile(r"[0-9]+\s?[.):](?:\s|$)")
ANSWER_IS = re.compile(r"\banswer\b[^.\n:=]{0,40}?(?P<link>\bis\b:?|[:=])\s*", re.IGNORECASE)
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
