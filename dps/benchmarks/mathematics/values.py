r"""Expressions in normal form as trees and what they are worth; texts that are numbers as :class:`fractions.Fraction`.

A number must be one in every reading: ``1/2/3`` may be a date, ``2 3`` two numbers. An expression is taken as school
takes it. Sums, products, limits, integrals and functions of lists are not evaluated: answers with them are undecided.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from itertools import takewhile

from dps.benchmarks.mathematics.evaluation import Scale, Tree, Undecided, Worth, evaluate, rational_value
from dps.benchmarks.mathematics.spelling import normalize

MAX_NUMBER_LENGTH = 400
"""Longest text that is read as a number. A response may be thousands of digits, which Python refuses to convert."""
_MOST_BITS = 12_000
"""Size of a numerator or denominator; below the 4,300 digits that Python converts to text."""


class _Doubt(Exception):
    """The text is no expression, or one that may be meant in another way."""


def parse_number(text: str) -> Fraction | None:
    r"""Return the exact number that a text is, or None if it is not a number and nothing else.

    Currency, percent signs and markup are taken off; decimals, exponents, fractions, mixed numbers, products, powers,
    ``2 million`` are read. Words (``seven``) and sums are not: ``2020-05-01`` is a date, :func:`value_of` reads sums.

    >>> parse_number("$1,000.00"), parse_number(r"2\frac12"), parse_number("12 apples")
    (Fraction(1000, 1), Fraction(5, 2), None)
    """
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    normal = normalize(text, words=False).removesuffix("%").removesuffix("\\").rstrip()
    return value_of(normal, sums=False)


def value_of(normal: str, *, sums: bool = True) -> Fraction | None:
    r"""Return the exact value of an expression in normal form, None where it is not rational by inspection.

    >>> value_of(r"4\cdot5-\frac{1}{2}"), value_of("x"), value_of(r"\sqrt{2}")
    (Fraction(39, 2), None, None)
    """
    reader = _Reader.of(normal, strict=True) if _NUMERIC.fullmatch(normal) else None
    if reader is None or (reader.is_sum and not sums):
        return None
    value = rational_value(reader.tree)
    if value is None or value.numerator.bit_length() + value.denominator.bit_length() > _MOST_BITS:
        return None
    return value


def format_number(number: Fraction) -> str:
    """Return the canonical form of a number: an integer, else an exact decimal, else a fraction in lowest terms.

    >>> format_number(Fraction(1000)), format_number(Fraction(-1, 8)), format_number(Fraction(2, 6))
    ('1000', '-0.125', '1/3')
    """
    places = next((n for n in range(MAX_NUMBER_LENGTH // 2) if 10**n % number.denominator == 0), None)
    if places is None:
        return f"{number.numerator}/{number.denominator}"
    digits = str(abs(number.numerator) * 10**places // number.denominator).rjust(places + 1, "0")
    whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :]
    return ("-" if number < 0 else "") + whole + ("." + decimals if places else "")


def canonical_number(text: str) -> str | None:
    """Return the canonical form of a text that is a number, None for any other."""
    number = parse_number(text)
    return None if number is None else format_number(number)


def worth(normal: str, scale: Scale = "none") -> Worth | None:
    """Return what an expression in normal form is worth, see :func:`evaluate`; None for any other text.

    Undecided if it takes too much, or is of a kind that is not evaluated; that is remembered as well.
    """
    value = _worth(normal, scale)
    if value is Undecided:
        raise Undecided
    return value


@lru_cache(maxsize=10_000)
def _worth(normal: str, scale: Scale) -> Worth | type[Undecided] | None:
    if normal in (r"\infty", r"-\infty"):
        return Worth(normal.replace(r"\infty", "oo"))
    tree = read_expression(normal)
    try:
        return evaluate(tree, scale) if tree is not None else Undecided if _TAKES_MORE.search(normal) else None
    except Undecided:
        return Undecided


def read_expression(normal: str) -> Tree | None:
    r"""Return an expression in normal form as a tree (see ``evaluation``), None for any other text.

    >>> read_expression(r"2x+\sqrt{3}"), read_expression("f(x)")
    (('+', ('*', Fraction(2, 1), 'x'), ('^', Fraction(3, 1), Fraction(1, 2))), None)
    """
    reader = None if "," in normal and not _NUMERIC.fullmatch(normal) else _Reader.of(normal)
    return None if reader is None else reader.tree


class _Reader:
    """Reads tokens from left to right, as school does: powers, products, sums; recurses with the brackets."""

    def __init__(self, tokens: list[str], strict: bool) -> None:
        self.tokens, self.place, self._depth, self._in_bars = tokens, 0, 0, False
        self._strict = strict
        """Whether what may be meant in two ways is none."""
        self.is_sum = False
        """Whether terms are added outside all brackets."""
        self.tree = self._sum()

    @classmethod
    def of(cls, normal: str, *, strict: bool = False) -> _Reader | None:
        """Read a whole text, None where that cannot be done or leaves a doubt."""
        tokens = _TOKEN.findall(normal)
        if not 0 < len(normal) <= 2 * MAX_NUMBER_LENGTH or _WORD.search(normal):
            return None
        if sum(map(len, tokens)) != len(normal) - normal.count(" "):
            return None
        try:
            reader = cls(tokens, strict)
        except (_Doubt, IndexError, RecursionError):
            return None
        return reader if reader.place == len(tokens) else None

    def _sum(self) -> Tree:
        terms = [self._term(self._skip("-", "+") == "-")]
        while (sign := self._skip("+", "-")) is not None:
            self.is_sum |= self._depth == 0
            terms.append(self._term((sign == "-") != (self._skip("-") is not None)))  # 1+-2
        return terms[0] if len(terms) == 1 else ("+", *terms)

    def _term(self, is_negative: bool) -> Tree:
        product = self._product()
        return self._negative(product) if is_negative else product

    @property
    def _next(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def _take(self) -> str:
        self.place += 1
        return self.tokens[self.place - 1]

    def _skip(self, *tokens: str) -> str | None:
        return self._take() if self._next and self._next in tokens else None

    @staticmethod
    def _negative(tree: Tree) -> Tree:
        return -tree if isinstance(tree, Fraction) else ("*", Fraction(-1), tree)

    def _ends(self) -> bool:
        return self._next in _ENDS or (self._next == "|" and self._in_bars)

    def _product(self) -> Tree:
        factors = [self._factor()]
        divided = in_divisor = False
        while not self._ends():
            operator = self._skip(r"\cdot", r"\times", *_DIVISIONS)
            after_numeral = _is_numeral(self.tokens[self.place - 1])
            if self._next == "{" and after_numeral and operator is None:
                raise _Doubt
            if _is_numeral(self._next) and operator is None and (after_numeral or self._strict):
                raise _Doubt  # two numerals side by side
            if divided and self._strict and (operator is None or operator in _DIVISIONS):
                raise _Doubt  # 1/2(3) may be meant either way, 1/2/3 is a date as often as a number
            # 1/2x is 1/(2x), but 1/2(x) is x/2.
            in_divisor = operator in _DIVISIONS or (in_divisor and operator is None and self._next != "(")
            divided |= in_divisor
            negative = operator is not None and self._skip("-") is not None
            factor = self._factor()
            factor = self._negative(factor) if negative else factor
            factors.append(("^", factor, Fraction(-1)) if in_divisor else factor)
        return factors[0] if len(factors) == 1 else ("*", *factors)

    def _factor(self) -> Tree:
        """Read a power: a function of what follows, or an atom with its factorials and its exponent."""
        if self._next in _FUNCTIONS:
            return self._function()
        base = self._atom()
        return self._raised(("factorial", base) if self._skip("!") else base)

    def _raised(self, base: Tree) -> Tree:
        power = base
        if self._skip("^"):
            power = ("^", base, Fraction(self._take()) if self._next.isdigit() else self._group())
        if self._next in ("^", "_", "!"):
            raise _Doubt
        return power

    def _function(self) -> Tree:
        r"""Read a function: of brackets, or of the factors up to the next function: \sin 2x\cos y."""
        command = self._take()
        base: tuple[Tree, ...] = ()
        exponent = None
        if command == r"\log":
            base = (self._group() if self._skip("_") else Fraction(10),)
        elif command == r"\ln":
            base = (("e",),)
        if self._skip("^"):
            exponent = self._group()
            if exponent == -1:
                raise _Doubt
        if self._next == "(":
            if self.tokens[self.place - 1] != command:
                raise _Doubt
            return self._raised((_FUNCTIONS[command], self._atom(), *base))
        factors = [self._argument()]
        while not self._ends() and self._next not in _FUNCTIONS:
            if _is_numeral(self._next):
                raise _Doubt
            factors.append(self._argument())
        value = (_FUNCTIONS[command], factors[0] if len(factors) == 1 else ("*", *factors), *base)
        return value if exponent is None else ("^", value, exponent)

    def _argument(self) -> Tree:
        if self._next in (*_FUNCTIONS, r"\cdot", r"\times", *_DIVISIONS, "{"):
            raise _Doubt
        return self._factor()

    def _atom(self) -> Tree:
        token = self._take()
        if _is_numeral(token):
            if "," in token and self._depth:  # (100,200) is a point
                raise _Doubt
            return Fraction(token.replace(",", ""))
        if token in _BRACKETS:
            return self._within(_BRACKETS[token])
        if token in _ROUNDED:
            return (_ROUNDED[token], self._within(token.replace(r"\l", r"\r")))
        if token == r"\frac":
            return ("*", self._group(), ("^", self._group(), Fraction(-1)))
        if token == r"\binom":
            return ("binomial", self._group(), self._group())
        if token == r"\sqrt":
            degree = self._within("]") if self._skip("[") else Fraction(2)
            if not isinstance(degree, Fraction) or degree.denominator != 1 or not 2 <= degree <= 100:
                raise _Doubt
            return ("^", self._group(), 1 / degree)
        if token == "|" and not self._in_bars:
            return ("abs", self._within("|"))
        if _SYMBOL.fullmatch(token):
            in_brackets = takewhile(lambda inner: inner != ")", self.tokens[self.place :])
            if self._next == "[" or (self._next == "(" and {"+", "-"}.isdisjoint(in_brackets)):  # f(x)
                raise _Doubt
            return (token,) if token in ("e", "I") else token.removeprefix("\\")
        if token == r"\pi" and self._next != "_":
            return ("pi",)
        raise _Doubt

    def _group(self) -> Tree:
        """Read what a command or an exponent takes: braces, or a single digit or letter."""
        token = self._take()
        if token == "{":
            return self._within("}")
        if len(token) == 1 and token.isdigit():
            return Fraction(int(token))
        if token in ("e", r"\pi"):
            return (token.removeprefix("\\"),)
        if len(token) == 1 and token.isalpha():
            return token
        raise _Doubt

    def _within(self, closing: str) -> Tree:
        self._depth += 1
        outer, self._in_bars = self._in_bars, closing == "|"
        value = self._sum()
        self._in_bars = outer
        self._depth -= 1
        if self._take() != closing:
            raise _Doubt
        return value


def _is_numeral(token: str) -> bool:
    return token[:1].isdigit() or token[:1] == "."


_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_ENDS = ("", "+", "-", ")", "]", "}", r"\rfloor", r"\rceil")
_ROUNDED = {r"\lfloor": "floor", r"\lceil": "ceiling"}
_DIVISIONS = ("/", r"\div", ":")
_FUNCTIONS = {r"\sin": "sin", r"\cos": "cos", r"\tan": "tan", r"\cot": "cot", r"\sec": "sec", r"\csc": "csc",
              r"\arcsin": "asin", r"\arccos": "acos", r"\arctan": "atan", r"\log": "log", r"\ln": "log",
              r"\exp": "exp", r"\sinh": "sinh", r"\cosh": "cosh", r"\tanh": "tanh"}  # fmt: skip
_SYMBOL = re.compile(
    r"(?:[a-zA-Z]|\\(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi|omega"
    r"|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega)(?![a-zA-Z]))"
    r"(?:_(?:[a-zA-Z0-9](?![0-9])|\{[a-zA-Z0-9]+\}))?"
)
_NUMERIC = re.compile(r"(?:[-+0-9.,/^!(){}\[\] ]|\\(?:frac|cdot|times|div|sqrt|binom)(?![a-zA-Z]))+")
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{5,}")
_TAKES_MORE = re.compile(r"\\(?:sum|prod|i*int|lim|gcd|lcm|max|min)")
_TOKEN = re.compile(
    rf"[0-9]{{1,3}}(?:,[0-9]{{3}})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|{_SYMBOL.pattern}|\\[a-zA-Z]+"
    r"|[-+/:^!(){}\[\]|_]"
)
