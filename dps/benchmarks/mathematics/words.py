r"""Numbers in words: ``twenty-one`` is 21, ``two and a half`` is 2 1/2, ``2.5 million`` is 2500000.

Magnitudes behind digits are always read. Words are read where an answer is nothing else, and with a unit behind them
where a number is asked for; in a running text "one" is seldom a number.
"""

from __future__ import annotations

import re
from fractions import Fraction

_ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ZEROS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7,
          "eighth": 8, "ninth": 9, "tenth": 10}  # fmt: skip
_VALUES = (
    {"zero": 0, "a": 1}
    | {word: value for value, word in enumerate(_ONES + _TEENS, 1)}
    | {word: 10 * value for value, word in enumerate(_TENS, 2)}
)
BASES = {word: str(value) for value, word in enumerate(_ONES + _TEENS, 1) if value > 1}
"""Bases of numerals by their names."""

_ONE = "(?:" + "|".join(_ONES) + ")"
_BELOW_HUNDRED = rf"(?:(?:{'|'.join(_TENS)})(?:[ -]{_ONE})?|{'|'.join(_TEENS)}|{_ONE})"
_BELOW_THOUSAND = rf"(?:(?:{_BELOW_HUNDRED}|a)[ -]hundred(?: (?:and )?{_BELOW_HUNDRED})?|{_BELOW_HUNDRED})"
_SCALE = "(?:thousand|million|billion|trillion)"
_PART = "(?:" + "|".join(_PARTS) + ")s?"
# Not in brackets, which repeat the number before them; not the first word of "three-digit"; not the end of a word.
_ALONE = r"(?<![a-zA-Z\\_(-]){}(?![a-zA-Z]|-[a-zA-Z])"
_FRACTION = re.compile(
    _ALONE.format(rf"(?:(?P<whole>[0-9]+|{_BELOW_THOUSAND}) and )?(?P<top>{_ONE}|a)[ -](?P<part>{_PART})"), re.I
)
_NUMBER = re.compile(
    _ALONE.format(rf"(?:zero|{_BELOW_THOUSAND}(?: {_SCALE}(?:,? (?:and )?{_BELOW_THOUSAND})?)*|a {_SCALE})"), re.I
)
_HALF = re.compile(rf"^((?:\\text *\{{)? *)half(?: a(?= (?:hundred|{_SCALE}))| *(?=\}}?$)|(?= an? | of ))", re.I)
_MAGNITUDE = re.compile(
    r"(?<![\w.,^/{])(?P<number>[0-9][0-9,]*(?:\.[0-9]+)?|(?:[0-9]+ )?[0-9]+/[0-9]+"
    r"|\\[dtc]?frac\{[0-9]+\}\{[0-9]+\})"
    rf"(?P<text> *(?:\\text *\{{)?) *(?P<scale>{'|'.join(_ZEROS)})s?(?![a-zA-Z])",
    re.I,
)
_ASKED_MAGNITUDE = re.compile(
    rf"\bhow many (?:more )?(?P<many>{'|'.join(_ZEROS)})s?\b|\bin (?P<unit>{'|'.join(_ZEROS)})s\b", re.I
)


def digits_for_words(text: str) -> str:
    r"""Return an answer with its numbers in digits; single spaces are expected.

    >>> digits_for_words("one hundred and five apples"), digits_for_words(r"2.5\text{ million dollars}")
    ('105 apples', '2500000\\text{ dollars}')
    >>> digits_for_words("two and a half hours"), digits_for_words("two and three"), digits_for_words("one-to-one")
    ('2 1/2 hours', '2 and 3', 'one-to-one')
    """
    text = _HALF.sub(r"\g<1>1/2", text)
    # Halves and thirds first: "one third" is no one.
    return multiplied(_NUMBER.sub(_in_digits, _FRACTION.sub(_fraction, text)))


def spelt_number(text: str) -> str:
    r"""Return an answer that is numbers in words and nothing else in digits, any other with its magnitudes multiplied.

    >>> spelt_number(r"\text{twenty-one}"), spelt_number("one or two"), spelt_number("twelve monkeys, 3 million fleas")
    ('\\text{21}', '1 or 2', 'twelve monkeys, 3000000 fleas')
    """
    digits = digits_for_words(text)
    others = re.search(r"[a-zA-Z]", re.sub(r"\\text|\b(?:and|or|minus|negative)\b", "", digits))
    return multiplied(text) if others else digits


def multiplied(text: str) -> str:
    """Return a text in which digits before a magnitude are multiplied by it: ``1 1/2 thousand`` is 1500."""
    return _MAGNITUDE.sub(_multiplied, text)


def magnitude_asked(question: str) -> str:
    """Return the magnitude in which a question asks for its answer ("how many millions"), empty for none."""
    asked = _ASKED_MAGNITUDE.search(question)
    return (asked["many"] or asked["unit"]).lower() if asked else ""


def without_magnitude(text: str, magnitude: str) -> str:
    """Return a text without a magnitude that the question has named already: ``5 million`` is 5 of its millions."""
    return re.sub(rf"(?<![a-zA-Z]){magnitude}s?(?![a-zA-Z])", "", text, flags=re.I) if magnitude else text


def _in_digits(number: re.Match[str]) -> str:
    total = group = 0
    for word in re.findall(r"[a-z]+", number[0].lower()):
        if word == "hundred":
            group *= 100
        elif word in _ZEROS:
            total, group = total + group * 10 ** _ZEROS[word], 0
        else:
            group += _VALUES.get(word, 0)
    return str(total + group)


def _fraction(number: re.Match[str]) -> str:
    whole = _NUMBER.sub(_in_digits, number["whole"] or "")
    bottom = _PARTS[number["part"].lower().removesuffix("s")]
    return f"{whole} {_VALUES[number['top'].lower()]}/{bottom}".lstrip()


def _multiplied(number: re.Match[str]) -> str:
    zeros = _ZEROS[number["scale"].lower()]
    terms = re.sub(r"\\[dtc]?frac\{(.*)\}\{(.*)\}", r"\1/\2", number["number"]).replace(",", "").split()
    quotients = [Fraction(top) / (int(bottom or 1) or 1) for top, _, bottom in (term.partition("/") for term in terms)]
    value = sum(quotients) * 10**zeros
    if value.denominator > 1 and "." in terms[0]:
        whole, _, places = terms[0].partition(".")
        return f"{whole}{places[:zeros]}.{places[zeros:]}" + number["text"].rstrip()
    return str(value) + number["text"].rstrip()
