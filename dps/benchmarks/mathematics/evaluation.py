r"""What an expression is worth at fixed points: exactly where that is rational, to many digits where it is not.

Two expressions are equal where their values are: a test of identity by random points, which needs no simplification.
A tree is a :class:`~fractions.Fraction`, the name of a variable, or a tuple of an operation and its trees: ``"+"``,
``"*"``, ``"^"``, a constant of :data:`CONSTANTS` or a function of :data:`FUNCTIONS`. Numbers that are not rational are
found to 80 and again to 160 digits; where 30 digits of the two differ, rounding errors have grown too large.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

import mpmath

Tree = Fraction | str | tuple
Scale = Literal["none", "any", "positive"]
Number = Any
"""A Fraction, or a real or complex number of mpmath."""

_PRECISIONS = (80, 160)
_DIGITS = 30
"""Digits to which values are compared."""
_LARGEST = 10**6
"""Largest exponent of ten of a value."""
_MOST_BITS = 20_000
"""Largest numerator or denominator of a power that is kept exact."""
_NUM_POINTS = 4

_mp = mpmath.mp.clone()
_TINY = _mp.mpf(10) ** -50
_lock = threading.Lock()  # the precision belongs to the context, not to a thread


class Undecided(Exception):
    """A number on the way is too large or too inexact, or the expression is of a kind that is not evaluated."""


@dataclass(frozen=True, slots=True)
class Worth:
    """What an expression is worth: the same for equal expressions, and hashable."""

    exact: str | None
    """Numerator/denominator of a rational constant."""
    points: tuple[tuple[str, str] | None, ...] = ()
    """Real and imaginary part to 30 digits at the points, None where there is no value; one point of a constant."""

    @classmethod
    def of(cls, value: Fraction) -> Worth:
        """Return the worth of a rational number; of a very large one a digest."""
        if value.numerator.bit_length() + value.denominator.bit_length() <= 12_000:
            return cls(f"{value.numerator}/{value.denominator}")
        return cls(hashlib.sha256(f"{value.numerator:x}/{value.denominator:x}".encode()).hexdigest())


def same_worth(gold: Worth, answer: Worth) -> bool:
    """Return whether two expressions are equal: rational numbers exactly, other values to 30 digits.

    Expressions with variables must agree wherever both are real: of roots and logarithms of negative numbers, only the
    conventions would be compared.
    """
    if gold == answer:
        return True
    if gold.exact is not None or answer.exact is not None or len(gold.points) != len(answer.points):
        return False
    pairs = zip(gold.points, answer.points, strict=True)
    real = [(a, b) for a, b in pairs if a and b and Decimal(a[1]) == Decimal(b[1]) == 0]
    return len(gold.points) > 1 and len(real) > 0 and all(a == b for a, b in real)


def evaluate(tree: Tree, scale: Scale = "none") -> Worth | None:
    """Return what an expression is worth, None if it has no value at any point.

    The scale ``any`` divides the values by the first that is not zero (an equation's sides may be multiplied by
    anything), ``positive`` by its absolute value. Undecided if a number on the way is too large, or too inexact.
    """
    with _lock:
        results = [_evaluated(tree, scale, precision) for precision in _PRECISIONS]
    if results[0] != results[1]:
        raise Undecided
    return results[0]


def rational_value(tree: Tree) -> Fraction | None:
    """Return the value of an expression of numbers whose every part is rational; None for any other."""
    inexact_parts: list[Number] = []
    try:
        with _lock, _mp.workdps(_PRECISIONS[0]):
            value = _value(tree, 0, inexact_parts)
    except (ZeroDivisionError, Undecided):
        return None
    return None if inexact_parts else value


def _evaluated(tree: Tree, scale: Scale, precision: int) -> Worth | None:
    names = _names_of(tree)
    with _mp.workdps(precision):
        pairs = [_value_at(tree, point) for point in range(_NUM_POINTS if names - {"i"} else 1)]
        values = [value for value, _ in pairs]
        # The square root of a negative number has no value among the real ones, even if it is squared later on.
        real = [value if is_real else None for value, is_real in pairs]
        if "i" not in names and any(value is not None for value in real):
            values = real
        if all(value is None for value in values):
            return None
        first = values[0]
        if scale == "none" and isinstance(first, Fraction) and all(value == first for value in values):
            return Worth.of(first)
        unit = next((value for value in values if value), None)
        if scale != "none" and unit is not None:
            inverse = _power(abs(unit) if scale == "positive" else unit, Fraction(-1))
            values = [None if value is None else _snapped(_product([value, inverse])) for value in values]
        return Worth(None, tuple(None if value is None else _digits(value) for value in values))


def _names_of(tree: Tree) -> set[str]:
    if isinstance(tree, str):
        return {tree}
    return set().union(*map(_names_of, tree[1:])) if isinstance(tree, tuple) else set()


def _value_at(tree: Tree, point: int) -> tuple[Number | None, bool]:
    """Return the value at a point, None where there is none (a division by zero), and whether all parts are real."""
    inexact_parts: list[Number] = []
    try:
        value = _value(tree, point, inexact_parts)
    except ZeroDivisionError:
        return None, True
    return _snapped(value), not any(isinstance(part, _mp.mpc) for part in inexact_parts)


def _value(tree: Tree, point: int, inexact_parts: list[Number]) -> Number:
    if isinstance(tree, Fraction):
        return tree
    if isinstance(tree, str):
        return _mp.mpc(0, 1) if tree == "i" else _coordinate(tree, point)
    operation, *arguments = tree
    if operation in CONSTANTS:
        return +CONSTANTS[operation]
    values = [_value(argument, point, inexact_parts) for argument in arguments]
    apply = _OPERATIONS.get(operation)
    value = apply(values) if apply else _applied(operation, values)
    if not isinstance(value, Fraction):
        inexact_parts.append(value)
    return value


@lru_cache(maxsize=1_000)
def _coordinate(name: str, point: int) -> Fraction:
    """Return a variable's value: between 1 and 4, of either sign, of either sign, between 0 and 1."""
    digest = int.from_bytes(hashlib.sha256(f"{name} {point}".encode()).digest()[:8], "big")
    part = Fraction(digest % 997 + 1, 999)
    if point == 0:
        return 1 + 3 * part
    return part if point == 3 else (1 + 2 * part) * (-1 if digest % 2 else 1)


def _sum(values: list[Number]) -> Number:
    if all(isinstance(value, Fraction) for value in values):
        total: Number = Fraction(0)
        for value in values:
            total = _kept(total + value)
            if not isinstance(total, Fraction):
                break
        else:
            return total
    terms = [_inexact(value) for value in values]
    total = _mp.fsum(terms)
    is_zero = abs(total) <= max(map(abs, terms)) * _mp.mpf(10) ** (20 - _mp.dps)
    return Fraction(0) if is_zero else _checked(total)


def _product(values: list[Number]) -> Number:
    result: Number = Fraction(1)
    for value in values:
        if isinstance(result, Fraction) and isinstance(value, Fraction):
            result = _kept(result * value)
        elif result == 0 or value == 0:
            result = Fraction(0)
        else:
            result = _checked(_inexact(result) * _inexact(value))
    return result


def _power(base: Number, exponent: Number) -> Number:
    is_fraction = isinstance(exponent, Fraction) and exponent.denominator > 1
    if is_fraction and exponent.denominator % 2 and _mp.im(_inexact(base)) == 0 and base < 0:
        # The cube root of -8 is -2, as school has it, not the principal value.
        root = _power(-base, exponent)
        return -root if exponent.numerator % 2 else root
    if isinstance(exponent, Fraction) and isinstance(base, Fraction):
        exact = _exact_power(base, exponent)
        if exact is not None:
            return exact
    if base == 0:
        raise ZeroDivisionError
    base, exponent = _inexact(base), _inexact(exponent)
    if abs(_mp.log(base) * exponent) > _LARGEST * 3:
        raise Undecided
    return _checked(_mp.power(base, exponent))


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    """Return a power that is rational; None where it is not, or too large to be kept."""
    if base == 0:
        if exponent > 0:
            return base
        raise ZeroDivisionError
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent.numerator) * bits > _MOST_BITS:
        return None
    if exponent.denominator == 1:
        return base**exponent.numerator
    if base < 0:
        return None
    roots = [_integer_root(part, exponent.denominator) for part in (base.numerator, base.denominator)]
    return None if None in roots else Fraction(*roots) ** exponent.numerator


def _integer_root(number: int, degree: int) -> int | None:
    """Return a positive number's root by Newton's steps from above, None where it is no integer."""
    if degree >= number.bit_length():
        return 1 if number == 1 else None
    root = 1 << -(-number.bit_length() // degree)
    while (nearer := ((degree - 1) * root + number // root ** (degree - 1)) // degree) < root:
        root = nearer
    return root if root**degree == number else None


def _applied(name: str, values: list[Number]) -> Number:
    if name in ("factorial", "binomial") and all(isinstance(v, Fraction) and v.denominator == 1 for v in values):
        top, bottom = int(values[0]), int(values[-1])
        if name == "factorial" and 0 <= top <= 500:
            return Fraction(math.factorial(top))
        if name == "binomial" and 0 <= top <= _LARGEST and 0 <= bottom <= 500:
            return _kept(Fraction(math.comb(top, bottom)))
    arguments = [_inexact(value) for value in values]
    if any(abs(argument) > 10**9 for argument in arguments):
        raise Undecided
    try:
        result = FUNCTIONS[name](*arguments)
    except (ValueError, TypeError) as error:  # a pole, or a function of real numbers only
        raise ZeroDivisionError from error
    if not _mp.isfinite(result):
        raise ZeroDivisionError
    return Fraction(0) if result == 0 else _checked(result)


def _checked(value: Number) -> Number:
    if abs(_mp.log10(abs(value))) > _LARGEST:
        raise Undecided
    return value.real if isinstance(value, _mp.mpc) and value.imag == 0 else value


def _kept(value: Fraction) -> Number:
    """Return a fraction, as an inexact number where it has become large."""
    return value if value.numerator.bit_length() + value.denominator.bit_length() <= 4 * _MOST_BITS else _inexact(value)


def _inexact(value: Number) -> Number:
    return _mp.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _snapped(value: Number) -> Number:
    r"""Return the rational number that an expression of irrational ones is: \sqrt{3+2\sqrt{2}}-\sqrt{2} is 1."""
    if isinstance(value, Fraction):
        return value
    real, imaginary = _mp.re(value), _mp.im(value)
    if abs(imaginary) > abs(value) * _TINY:
        return _mp.mpc(0, imaginary) if abs(real) <= abs(value) * _TINY else value
    if _mp.mpf(10) ** -12 < abs(real) < _mp.mpf(10) ** 12:
        near = Fraction(int(_mp.nint(real * 10**70)), 10**70).limit_denominator(10**6)
        if abs(real - _inexact(near)) <= abs(real) * _TINY:
            return near
    return real


def _digits(value: Number) -> tuple[str, str]:
    number = _inexact(value)
    parts = (_mp.nstr(part, _DIGITS, min_fixed=0, max_fixed=0) for part in (_mp.re(number), _mp.im(number)))
    return tuple(parts)


def _logarithm(value: Number, base: Number = _mp.e) -> Number:
    return _mp.log(value) / _mp.log(base)


def _whole(function: Callable[[Number], Number]) -> Callable[[Number], Number]:
    def apply(value: Number) -> Number:
        if _mp.im(value) != 0:
            raise ValueError
        near = _mp.nint(_mp.re(value))
        return near if abs(near - _mp.re(value)) < _TINY else function(_mp.re(value))

    return apply


CONSTANTS = {"pi": _mp.pi, "e": _mp.e, "I": _mp.mpc(0, 1)}
_OPERATIONS = {"+": _sum, "*": _product, "^": lambda values: _power(*values)}
FUNCTIONS: dict[str, Callable[..., Number]] = {
    "abs": abs, "log": _logarithm, "floor": _whole(_mp.floor), "ceiling": _whole(_mp.ceil),
    **{name: getattr(_mp, name) for name in (
        "exp", "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh",
        "factorial", "binomial")},
}  # fmt: skip
