"""From a response's text to an answer that can be compared: pure functions of strings.

A response is searched for its answer (:func:`extract_number`, :func:`extract_text`); the answer is stored in canonical
form (:func:`canonical_answer`) and compared by its key (:func:`answer_key`): numbers as exact fractions, anything else
as normalized text. Nothing here rounds.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Iterator
from fractions import Fraction

MAX_NUMBER_LENGTH = 400
"""Longest text that is read as a number. A response may be thousands of digits, which Python refuses to convert."""

_CURRENCY = "$€£¥"
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_UNSIGNED = rf"(?:{_DIGITS})(?:[eE][+-]?[0-9]{{1,3}}(?![0-9A-Za-z]))?"
_WHOLE = re.compile(
    rf"(?:(?P<sign>[+-]?)[{_CURRENCY}]?|[{_CURRENCY}](?P<inner_sign>[+-]))\s?(?P<top>{_UNSIGNED})"
    rf"(?:\s?/\s?(?P<bottom>{_UNSIGNED}))?\.?\s?[%{_CURRENCY}]?"
)
"""A text that is a number and nothing else."""
_IN_TEXT = re.compile(
    # A minus after a word, digit or bracket subtracts; it is a sign elsewhere.
    rf"(?<![A-Za-z0-9_])(?:(?:(?<![)\]}}])-)?[{_CURRENCY}]?|[{_CURRENCY}]-)(?:{_UNSIGNED})(?:\s?/\s?(?:{_UNSIGNED}))?"
)
"""A number within running text."""

_FRACTION_COMMAND = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_MARKUP = str.maketrans({"−": "-", "\u00a0": " ", "\u202f": " ", "*": None, "`": None})

_HASHES = re.compile(r"#{4,}\s*([^\n]*)")
_HEADING = re.compile(r"[0-9]+\s?[.):](?:\s|$)")
_ANSWER_IS = re.compile(r"\banswer\b[^.\n:=]{0,40}?(?P<link>\bis\b:?|[:=])\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")
_NEXT_QUESTION = re.compile(r"\n[ \t]*(?:Problem|Question|Q)\s*[0-9]*\s*:")


def parse_number(text: str) -> Fraction | None:
    """Return the exact number that a text is, or None if it is not a number and nothing else.

    Thousands separators, currency and percent signs, a final full stop and the usual markup are taken off; decimals,
    exponents of up to three digits and fractions are read.

    >>> parse_number("$1,000.00"), parse_number("1/2"), parse_number("12 apples")
    (Fraction(1000, 1), Fraction(1, 2), None)
    """
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    found = _WHOLE.fullmatch(_without_markup(text).strip().rstrip("$").strip())
    if found is None:
        return None
    top = Fraction(found["top"].replace(",", ""))
    bottom = Fraction(found["bottom"].replace(",", "")) if found["bottom"] else Fraction(1)
    if bottom == 0:
        return None
    return -top / bottom if "-" in (found["sign"], found["inner_sign"]) else top / bottom


def format_number(number: Fraction) -> str:
    """Return the canonical form of a number: an integer, else an exact decimal, else a fraction in lowest terms.

    >>> format_number(Fraction(1000)), format_number(Fraction(-1, 8)), format_number(Fraction(2, 6))
    ('1000', '-0.125', '1/3')
    """
    twos, rest = _multiplicity(number.denominator, 2)
    fives, rest = _multiplicity(rest, 5)
    if rest != 1:
        return f"{number.numerator}/{number.denominator}"
    places = max(twos, fives)
    if places == 0:
        return str(number.numerator)
    digits = str(abs(int(number * 10**places))).rjust(places + 1, "0")
    return f"{'-' if number < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def canonical_number(text: str) -> str | None:
    """Return the canonical form of a text that is a number, None for any other."""
    number = parse_number(text)
    return None if number is None else format_number(number)


def canonical_answer(text: str) -> str | None:
    """Return the form in which an answer is stored: of a number its canonical form, else the normalized text.

    Normalized text has no markup, no case, single spaces, and no quotation marks or punctuation around it.

    Returns:
        None if nothing is left.
    """
    number = canonical_number(text)
    if number is not None:
        return number
    plain = _TEXT_COMMAND.sub(r"\1", unicodedata.normalize("NFKC", text)).translate(_MARKUP)
    plain = " ".join(plain.casefold().split()).strip(" .,;:!?\"'_$“”‘’")
    # Some texts become numbers only by being normalized: a superscript two, a number in quotation marks.
    return (canonical_number(plain) or plain) if plain else None


def answer_key(answer: str) -> Hashable:
    """Return what two equivalent answers have in common: a number's exact value, or the normalized text."""
    canonical = canonical_answer(answer)
    number = None if canonical is None else parse_number(canonical)
    return canonical if number is None else number


def extract_number(text: str, *, flexible: bool = True) -> str | None:
    r"""Return a response's numeric answer in canonical form.

    Strict forms are looked for first: the first ``####`` with a number, the last ``\boxed{}``, the last "answer is".
    A base model that has answered often goes on with a question of its own, hence the first ``####``; for the other
    forms the text from the next "Question:" or "Problem:" on is left out.

    Args:
        text: The decoded response.
        flexible: Take the last number of the response where no strict form is found.
    """
    tails = [found.group(1).translate(_MARKUP).strip() for found in _HASHES.finditer(text)]
    for tail in tails:
        if (number := canonical_number(tail)) is not None:
            return number
    for tail in tails:
        # "#### 2. Add the rest" is a heading, "#### 72 clips" is an answer.
        if not _HEADING.match(tail) and (number := _leading_number(tail)) is not None:
            return format_number(number)
    response = before_next_question(text)
    for content in reversed(boxed_contents(response)):
        number = parse_number(content)
        number = _clause_number(content) if number is None else number
        if number is not None:
            return format_number(number)
    for link, tail in reversed(list(_stated(response))):
        # "Answer: 48 clips in April and ..." may begin a solution; there the number must come first.
        number = _clause_number(tail) if link.startswith("is") else _leading_number(tail)
        if number is not None:
            return format_number(number)
    if flexible:
        numbers = list(_numbers_in(response))
        return format_number(numbers[-1]) if numbers else None
    return None


def extract_text(text: str) -> str | None:
    r"""Return a response's answer of any kind in canonical form.

    It is what stands after the last ``####``, in the last ``\boxed{}``, after the last "answer is" up to the end of the
    sentence, or else the last line.

    Args:
        text: The decoded response; from the next "Question:" or "Problem:" on it is left out.
    """
    response = before_next_question(text)
    stated = [_SENTENCE_END.split(tail)[0] for _, tail in _stated(response)]
    candidates = [
        *reversed([found.group(1) for found in _HASHES.finditer(response)]),
        *reversed(boxed_contents(response)),
        *reversed(stated),
        *reversed(response.splitlines()),
    ]
    return next((answer for answer in map(canonical_answer, candidates) if answer is not None), None)


def strict_number(text: str) -> str | None:
    r"""Return the number in the last ``\boxed{}`` or, without a box, after the first ``####``; None otherwise."""
    contents = boxed_contents(before_next_question(text))
    if contents:
        return canonical_number(contents[-1])
    found = _HASHES.search(text)
    return canonical_number(found.group(1)) if found else None


def strict_text(text: str) -> str | None:
    r"""Return what stands in the last ``\boxed{}`` or, without a box, after the last ``####``; None otherwise."""
    response = before_next_question(text)
    contents = boxed_contents(response) or [found.group(1) for found in _HASHES.finditer(response)]
    return canonical_answer(contents[-1]) if contents else None


def boxed_contents(text: str) -> list[str]:
    r"""Return what stands in each ``\boxed{}``, braces within it balanced, in order of the closing brace.

    One pass, because a model that is stuck may open thousands of boxes and close none.
    """
    contents: list[str] = []
    opened: list[int | None] = []
    for found in re.finditer(r"\\boxed\s*\{|[{}]", text):
        if found.group() != "}":
            opened.append(found.end() if len(found.group()) > 1 else None)
        elif opened and (start := opened.pop()) is not None:
            contents.append(text[start : found.start()])
    return contents


def before_next_question(text: str) -> str:
    """Return the response without a next question that the model asked itself."""
    found = _NEXT_QUESTION.search(text)
    return text[: found.start()] if found and text[: found.start()].strip() else text


def _multiplicity(number: int, prime: int) -> tuple[int, int]:
    """Return how often a prime divides a number, and what is left."""
    count = 0
    while number % prime == 0:
        number //= prime
        count += 1
    return count, number


def _without_markup(text: str) -> str:
    """Return the text with Markdown emphasis and the LaTeX of numbers taken out; a fraction becomes ``a/b``."""
    text = _FRACTION_COMMAND.sub(r"\1/\2", _TEXT_COMMAND.sub(r"\1", text)).translate(_MARKUP)
    for command, plain in (("{,}", ","), (r"\,", ""), (r"\!", ""), (r"\$", "$"), (r"\%", "%")):
        text = text.replace(command, plain)
    return re.sub(r"\\[()\[\]]", "", text)


def _numbers_in(text: str) -> Iterator[Fraction]:
    """Yield the numbers of a running text in order."""
    for found in _IN_TEXT.finditer(_without_markup(text)):
        number = parse_number(found.group())
        if number is not None:
            yield number


def _leading_number(text: str) -> Fraction | None:
    """Return the number that a text begins with."""
    found = _IN_TEXT.match(_without_markup(text).lstrip())
    return parse_number(found.group()) if found else None


def _clause_number(text: str) -> Fraction | None:
    """Return the number that a clause states: the first one, or the first after the last equals sign.

    >>> _clause_number("2 + 3 = 5 apples. That is 2 more.")
    Fraction(5, 1)
    """
    clause = _SENTENCE_END.split(text)[0]
    return next(_numbers_in(clause.rpartition("=")[2]), None)


def _stated(text: str) -> Iterator[tuple[str, str]]:
    """Yield for each "answer is", "answer:" or "answer =" how it goes on: the link and the rest of the line.

    At most 200 characters of it, since a model that is stuck may say so thousands of times in a line.
    """
    for found in _ANSWER_IS.finditer(text):
        yield found["link"].lower(), text[found.end() : found.end() + 200].partition("\n")[0]
