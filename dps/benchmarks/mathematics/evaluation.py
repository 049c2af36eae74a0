r"""What an expression is worth at fixed points: exactly where that is rational, to 80 digits where it is not.

Two expressions are equal where their values are: a test of identity by random points, which needs no simplification.
A tree is a :class:`~fractions.Fraction`, the name of a variable, or a tuple of an operation and its trees: ``"+"``,
``"*"``, ``"^"``, a constant of :data:`CONSTANTS` or a function of :data:`FUNCTIONS`.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

import mpmath

Tree = Fraction | str | tuple
Scale = Literal["none", "any", "positive"]

_DIGITS = 30
"""Digits to which values are compared."""
_LARGEST = 10**6
"""Largest exponent of ten of a value."""
_MOST_BITS = 20_000
"""Largest numerator or denominator of a power that is kept exact."""
_NUM_POINTS = 4

_mp = mpmath.mp.clone()
_mp.dps = 80
_LOST = _mp.mpf(10) ** 40
"""How much an error may have grown before the digits compared are noise."""
_TINY = _mp.mpf(10) ** -50
_lock = threading.Lock()  # some functions of a context change its precision for a moment


class Unreadable(Exception):
    """No value: the text is no expression, or of a kind that is not evaluated."""


class TooLarge(Exception):
    """A value beyond any bound: nothing can be said of it."""


@dataclass(frozen=True, slots=True)
class Inexact:
    """A number to 80 digits."""

    value: Any
    """mpf or mpc."""
    growth: Any
    """By how much its relative error may exceed the rounding of a single operation."""


Number = Fraction | Inexact


def evaluate(tree: Tree, scale: Scale = "none") -> tuple[str | None, list[tuple[str, str] | None]]:
    """Return what an expression is worth.

    Args:
        tree: The expression.
        scale: ``any`` divides the values by the first that is not zero (an equation's sides may be multiplied by
            anything), ``positive`` by its absolute value.

    Returns:
        Of a rational constant numerator/denominator, else None; and real and imaginary part to 30 digits at each
        point (one of a constant), None where there is no value.

    Raises:
        Unreadable: If it has no value at any point.
        TooLarge: If a number on the way is too large, or too inexact.
    """
    names = names_of(tree) - {"i"}
    with _lock:
        pairs = [_value_at(tree, point) for point in range(_NUM_POINTS if names else 1)]
        values = [value for value, _ in pairs]
        # The square root of a negative number has no value among the real ones, even if it is squared later on.
        real = [value if is_real else None for value, is_real in pairs]
        if "i" not in names_of(tree) and any(value is not None for value in real):
            values = real
        if scale != "none":
            values = _scaled(values, positive=scale == "positive")
        if all(value is None for value in values):
            raise Unreadable
        first = values[0]
        if scale == "none" and isinstance(first, Fraction) and all(value == first for value in values):
            return written(first), []
        return None, [None if value is None else _digits(value) for value in values]


def rational_value(tree: Tree) -> Fraction | None:
    """Return the value of a constant whose every part is rational; None for any other."""
    try:
        with _lock:
            value = _value(tree, 0, [])
    except (ZeroDivisionError, TooLarge, Unreadable):
        return None
    return value if isinstance(value, Fraction) and not names_of(tree) else None


def names_of(tree: Tree) -> set[str]:
    """Return the variables of a tree."""
    if isinstance(tree, str):
        return {tree}
    return set().union(*map(names_of, tree[1:])) if isinstance(tree, tuple) else set()


def written(value: Fraction) -> str:
    """Return a fraction as text; of a very large one a digest."""
    if value.numerator.bit_length() + value.denominator.bit_length() <= 12_000:
        return f"{value.numerator}/{value.denominator}"
    return hashlib.sha256(f"{value.numerator:x}/{value.denominator:x}".encode()).hexdigest()


def _value_at(tree: Tree, point: int) -> tuple[Number | None, bool]:
    """Return the value at a point, None where there is none (a division by zero), and whether all parts are real."""
    complex_parts: list[Any] = []
    try:
        value = _value(tree, point, complex_parts)
    except ZeroDivisionError:
        return None, True
    return _snapped(value), not complex_parts


def _value(tree: Tree, point: int, complex_parts: list[Any]) -> Number:
    if isinstance(tree, Fraction):
        return tree
    if isinstance(tree, str):
        return Inexact(_mp.mpc(0, 1), _mp.mpf(1)) if tree == "i" else _coordinate(tree, point)
    operation, *arguments = tree
    if operation in CONSTANTS:
        return Inexact(+CONSTANTS[operation], _mp.mpf(1))
    values = [_value(argument, point, complex_parts) for argument in arguments]
    if operation == "+":
        value = _sum(values)
    elif operation == "*":
        value = _product(values)
    elif operation == "^":
        value = _power(*values)
    else:
        value = _applied(operation, values)
    if isinstance(value, Inexact) and isinstance(value.value, _mp.mpc):
        complex_parts.append(value)
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
        return _kept(sum(values, Fraction(0)))
    terms = [_inexact(value) for value in values]
    total = _mp.fsum(term.value for term in terms)
    error = _mp.fsum(abs(term.value) * term.growth for term in terms)
    if abs(total) <= error * _mp.mpf(10) ** -60:
        return Fraction(0)
    return _checked(total, error / abs(total))


def _product(values: list[Number]) -> Number:
    result: Number = Fraction(1)
    for value in values:
        if isinstance(result, Fraction) and isinstance(value, Fraction):
            result = _kept(result * value)
            continue
        left, right = _inexact(result), _inexact(value)
        if left.value == 0 or right.value == 0:
            result = Fraction(0)
        else:
            result = _checked(left.value * right.value, left.growth + right.growth)
    return result


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(exponent, Fraction) and exponent.denominator % 2 and exponent.denominator > 1 and _is_negative(base):
        # The cube root of -8 is -2, as school has it, not the principal value.
        root = _power(_product([Fraction(-1), base]), exponent)
        return _product([Fraction(-1), root]) if exponent.numerator % 2 else root
    if isinstance(exponent, Fraction) and isinstance(base, Fraction):
        exact = _exact_power(base, exponent)
        if exact is not None:
            return exact
    if base == 0:
        raise ZeroDivisionError
    left, right = _inexact(base), _inexact(exponent)
    size = abs(_mp.log(left.value) * right.value)
    if size > _LARGEST * 3:
        raise TooLarge
    growth = left.growth * (1 + abs(right.value)) + right.growth * (1 + size)
    return _checked(_mp.power(left.value, right.value), growth)


def _is_negative(number: Number) -> bool:
    if isinstance(number, Fraction):
        return number < 0
    return _mp.im(number.value) == 0 and _mp.re(number.value) < 0


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
    if name in _WHOLE and all(isinstance(value, Fraction) and value.denominator == 1 for value in values):
        top, *rest = (int(value) for value in values)
        if name == "factorial" and 0 <= top <= 500:
            return Fraction(math.factorial(top))
        if name == "binomial" and 0 <= top <= _LARGEST and 0 <= rest[0] <= 500:
            return _kept(Fraction(math.comb(top, rest[0])))
    arguments = [_inexact(value) for value in values]
    if any(abs(argument.value) > _mp.mpf(10) ** 9 for argument in arguments):
        raise TooLarge
    try:
        result = FUNCTIONS[name](*(argument.value for argument in arguments))
    except (ValueError, TypeError) as error:  # a pole, or a function of real numbers only
        raise ZeroDivisionError from error
    if not _mp.isfinite(result):
        raise ZeroDivisionError
    if result == 0:
        return Fraction(0)
    return _checked(result, 10 * max(argument.growth for argument in arguments))


def _checked(value: Any, growth: Any) -> Inexact:
    if abs(_mp.log10(abs(value))) > _LARGEST or growth > _LOST:
        raise TooLarge
    return Inexact(value.real if isinstance(value, _mp.mpc) and value.imag == 0 else value, growth + 1)


def _kept(value: Fraction) -> Number:
    """Return a fraction, as a number to 80 digits where it has become large."""
    bits = value.numerator.bit_length() + value.denominator.bit_length()
    return value if bits <= 4 * _MOST_BITS else _inexact(value)


def _inexact(value: Number) -> Inexact:
    if isinstance(value, Inexact):
        return value
    return Inexact(_mp.mpf(value.numerator) / value.denominator, _mp.mpf(1))


def _snapped(number: Number) -> Number:
    r"""Return the rational number that an expression of irrational ones is: \sqrt{3+2\sqrt{2}}-\sqrt{2} is 1."""
    if isinstance(number, Fraction):
        return number
    real, imaginary = _mp.re(number.value), _mp.im(number.value)
    if abs(imaginary) > abs(number.value) * _TINY:
        is_imaginary = abs(real) <= abs(number.value) * _TINY
        return Inexact(_mp.mpc(0, imaginary), number.growth) if is_imaginary else number
    if _mp.mpf(10) ** -12 < abs(real) < _mp.mpf(10) ** 12:
        near = Fraction(int(_mp.nint(real * _mp.mpf(10) ** 70)), 10**70).limit_denominator(10**6)
        if abs(real - _mp.mpf(near.numerator) / near.denominator) <= abs(real) * _TINY:
            return near
    return Inexact(real, number.growth)


def _scaled(values: list[Number | None], *, positive: bool) -> list[Number | None]:
    first = next((value for value in values if value is not None and value != 0), None)
    if first is None:
        return values
    size = abs(first) if isinstance(first, Fraction) else abs(first.value)
    size = size if positive else first if isinstance(first, Fraction) else first.value
    inverse = 1 / size if isinstance(first, Fraction) else Inexact(1 / size, first.growth)
    return [None if value is None else _snapped(_product([value, inverse])) for value in values]


def _digits(value: Number) -> tuple[str, str]:
    number = _inexact(value).value
    real, imaginary = (
        _mp.nstr(part, _DIGITS, strip_zeros=True, min_fixed=0, max_fixed=0) for part in (_mp.re(number), _mp.im(number))
    )
    return real, imaginary


def _logarithm(value: Any, base: Any = _mp.e) -> Any:
    return _mp.log(value) / _mp.log(base)


def _whole(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(value: Any) -> Any:
        if _mp.im(value) != 0:
            raise ValueError
        near = _mp.nint(_mp.re(value))
        return near if abs(near - _mp.re(value)) < _TINY else function(_mp.re(value))

    return apply


CONSTANTS = {"pi": _mp.pi, "e": _mp.e, "gamma": _mp.euler, "I": _mp.mpc(0, 1)}
_WHOLE = ("factorial", "binomial")
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs, "log": _logarithm, "floor": _whole(_mp.floor), "ceiling": _whole(_mp.ceil), "max": max, "min": min,
    **{name: getattr(_mp, name) for name in (
        "exp", "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "sinh", "cosh", "tanh",
        "factorial", "gamma", "binomial", "conj", "re", "im")},
}  # fmt: skip
