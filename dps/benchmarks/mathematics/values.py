r"""Exact values: a numeral, a fraction, a mixed number, a product or a sum of such as a :class:`~fractions.Fraction`.

The library's parser rounds decimals to 53 bits, reads ``3(4)`` as a mixed number and takes tens of milliseconds, so
what is rational by inspection is read here, exactly and without a process. Everything is bounded: the text's length,
the nesting, and the size of every intermediate number.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from dps.benchmarks.mathematics.spelling import normalize

MAX_NUMBER_LENGTH = 400
"""Longest text that is read as a number. A response may be thousands of digits, which Python refuses to convert."""
_MOST_BITS = 12_000
"""Size of a numerator or denominator; below the 4,300 digits that Python converts to text."""


class _NoValue(Exception):
    """The text is no rational number that can be read here."""


def parse_number(text: str) -> Fraction | None:
    r"""Return the exact number that a text is, or None if it is not a number and nothing else.

    Thousands separators, currency and percent signs, a final full stop and the usual markup are taken off; decimals,
    exponents, fractions, mixed numbers, products, powers, ``2 million`` are read. Words (``seven``) and sums are not:
    ``2020-05-01`` is a date, and :func:`value_of` is for what is known to be mathematics.

    >>> parse_number("$1,000.00"), parse_number(r"2\frac12"), parse_number("12 apples")
    (Fraction(1000, 1), Fraction(5, 2), None)
    """
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    return _value(_without_percent(normalize(text, words=False)), sums=False)


def value_of(normal: str) -> Fraction | None:
    r"""Return the exact value of an expression in normal form, None where it is not rational by inspection.

    >>> value_of(r"4\cdot5-\frac{1}{2}"), value_of("x"), value_of(r"\sqrt{2}")
    (Fraction(39, 2), None, None)
    """
    return _value(normal, sums=True)


def format_number(number: Fraction) -> str:
    """Return the canonical form of a number: an integer, else an exact decimal, else a fraction in lowest terms.

    >>> format_number(Fraction(1000)), format_number(Fraction(-1, 8)), format_number(Fraction(2, 6))
    ('1000', '-0.125', '1/3')
    """
    twos, rest = _multiplicity(number.denominator, 2)
    fives, rest = _multiplicity(rest, 5)
    places = max(twos, fives)
    if rest != 1 or places > MAX_NUMBER_LENGTH // 2:
        return f"{number.numerator}/{number.denominator}"
    if places == 0:
        return str(number.numerator)
    digits = str(abs(int(number * 10**places))).rjust(places + 1, "0")
    return f"{'-' if number < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def canonical_number(text: str) -> str | None:
    """Return the canonical form of a text that is a number, None for any other."""
    number = parse_number(text)
    return None if number is None else format_number(number)


def _value(normal: str, *, sums: bool) -> Fraction | None:
    if not normal or len(normal) > 2 * MAX_NUMBER_LENGTH or not _POSSIBLE.fullmatch(normal):
        return None
    tokens = _TOKEN.findall(normal)
    if sum(map(len, tokens)) != len(normal) - normal.count(" "):
        return None
    reader = _Reader(tokens, sums)
    try:
        value = reader.sum()
    except (_NoValue, IndexError):
        return None
    return value if reader.place == len(tokens) else None


class _Reader:
    """Reads tokens from left to right, as school does: powers, products, sums.

    It recurses with the brackets, of which a normal form has few within one another.
    """

    def __init__(self, tokens: list[str], sums: bool) -> None:
        self.tokens, self.place, self._sums, self._depth = tokens, 0, sums, 0

    def sum(self) -> Fraction:
        value = self._signed_product()
        while self._next in ("+", "-"):
            if not self._sums and self._depth == 0:
                raise _NoValue
            sign = -1 if self._take() == "-" else 1
            value = _bounded(value + sign * self._product())
        return value

    @property
    def _next(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def _take(self) -> str:
        self.place += 1
        return self.tokens[self.place - 1]

    def _signed_product(self) -> Fraction:
        if self._next in ("+", "-"):
            return -self._product() if self._take() == "-" else self._product()
        return self._product()

    def _product(self) -> Fraction:
        value = self._power()
        divided = False
        while (operator := self._next) and operator not in "+-)]}":
            explicit = operator in (r"\cdot", r"\times", "/", r"\div")
            if explicit:
                self._take()
            elif _is_numeral(operator) or divided or (operator == "{" and _is_numeral(self.tokens[self.place - 1])):
                raise _NoValue  # two numerals side by side, or 1/2(3): it may be meant either way
            factor = self._signed_power() if explicit else self._power()
            if operator in ("/", r"\div"):
                if divided or factor == 0:  # 1/2/3 is a date as often as a number
                    raise _NoValue
                divided, value = True, value / factor
            else:
                value *= factor
            _bounded(value)
        return value

    def _signed_power(self) -> Fraction:
        if self._next == "-":
            self._take()
            return -self._power()
        return self._power()

    def _power(self) -> Fraction:
        base = self._atom()
        while self._next == "!":
            self._take()
            if base.denominator != 1 or not 0 <= base <= 500:
                raise _NoValue
            base = Fraction(math.factorial(base.numerator))
        if self._next != "^":
            return base
        self._take()
        exponent = self._group()
        if self._next == "^" or exponent.denominator != 1:
            raise _NoValue
        return _raised(base, exponent.numerator)

    def _atom(self) -> Fraction:
        token = self._take()
        if _is_numeral(token):
            if "," in token and self._depth:  # (100,200) is a point
                raise _NoValue
            return Fraction(token.replace(",", ""))
        if token in ("(", "[", "{"):
            return self._within({"(": ")", "[": "]", "{": "}"}[token])
        if token == r"\frac":
            top, bottom = self._group(), self._group()
            if bottom == 0:
                raise _NoValue
            return _bounded(top / bottom)
        if token == r"\binom":
            top, bottom = self._group(), self._group()
            if top.denominator != 1 or bottom.denominator != 1 or not 0 <= bottom <= 500 or not 0 <= top <= 10**6:
                raise _NoValue
            return _bounded(Fraction(math.comb(top.numerator, bottom.numerator)))
        if token == r"\sqrt":
            degree = 2
            if self._next == "[":
                self._take()
                index = self._within("]")
                if index not in (2, 3, 4, 5):
                    raise _NoValue
                degree = int(index)
            return _root(self._group(), degree)
        raise _NoValue

    def _group(self) -> Fraction:
        """Read what a command or an exponent takes: braces, or a single digit."""
        if self._next == "{":
            self._take()
            return self._within("}")
        token = self._take()
        if len(token) == 1 and token.isdigit():
            return Fraction(int(token))
        raise _NoValue

    def _within(self, closing: str) -> Fraction:
        self._depth += 1
        value = self.sum()
        self._depth -= 1
        if self._take() != closing:
            raise _NoValue
        return value


def _is_numeral(token: str) -> bool:
    return token[0].isdigit() or token[0] == "."


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > _MOST_BITS:
        raise _NoValue
    return value


def _raised(base: Fraction, exponent: int) -> Fraction:
    if base == 0:
        if exponent <= 0:
            raise _NoValue
        return base
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * bits > _MOST_BITS:
        raise _NoValue
    return _bounded(base**exponent)


def _root(value: Fraction, degree: int) -> Fraction:
    """Return a root that is rational."""
    roots = [_integer_root(abs(part), degree) for part in (value.numerator, value.denominator)]
    if None in roots or (value < 0 and degree % 2 == 0):
        raise _NoValue
    return Fraction(roots[0], roots[1]) * (-1 if value < 0 else 1)


def _integer_root(number: int, degree: int) -> int | None:
    low, high = 0, 1 << (number.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**degree < number:
            low = middle + 1
        else:
            high = middle
    return low if low**degree == number else None


def _multiplicity(number: int, prime: int) -> tuple[int, int]:
    """Return how often a prime divides a number, and what is left."""
    count = 0
    while number % prime == 0:
        number //= prime
        count += 1
    return count, number


def _without_percent(normal: str) -> str:
    return normal.removesuffix("%").removesuffix("\\").rstrip()


_POSSIBLE = re.compile(r"(?:[-+0-9.,/^!(){}\[\] ]|\\(?:frac|cdot|times|div|sqrt|binom)(?![a-zA-Z]))+")
_TOKEN = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|\\[a-z]+|[-+/^!(){}\[\]]")
