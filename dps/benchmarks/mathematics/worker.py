r"""Runs in a worker process: reads an expression with the library's LaTeX parser and evaluates it at fixed points.

math-verify's own comparison is not used. It rounds both sides to six decimals, so that all small numbers are equal; its
verdicts on pairs are not transitive, so that a vote would depend on the order; and it expands and simplifies, which may
take minutes. Its parser builds the tree without evaluating anything; here the tree is evaluated, exactly where it is
rational and to 80 digits where it is not, at four points that depend on the variables' names alone. Two expressions are
equal where their values are: a test of identity by random points, which needs no simplification.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import mpmath
import sympy
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig

logging.disable(logging.CRITICAL)
mpmath.mp.dps = 80
sys.setrecursionlimit(5_000)  # the parser recurses some ten frames for a bracket

_CONFIG = ConversionConfig(lowercase_symbols=False, interpret_contains_as_eq=False)
_DIGITS = 30
"""Digits to which values are compared."""
_LOST = mpmath.mpf(10) ** 40
"""How much an error may have grown before the digits compared are noise."""
_LARGEST = 10**6
"""Largest exponent of ten of a value."""
_MOST_BITS = 20_000
"""Largest numerator or denominator that is kept exact."""


class _Unreadable(Exception):
    """No value: the text is no expression, or of a kind that is not evaluated."""


class _TooLarge(Exception):
    """A value beyond any bound: nothing can be said of it."""


@dataclass(frozen=True, slots=True)
class _Inexact:
    """A number to 80 digits."""

    value: Any
    """mpf or mpc."""
    growth: Any
    """By how much its relative error may exceed the rounding of a single operation."""


Number = Fraction | _Inexact
_not_real: list[bool] = []
"""Filled where a number of the evaluation under way is not real."""


def evaluate(payload: dict[str, Any]) -> dict[str, Any]:
    r"""Return what an expression is worth at the points.

    Args:
        payload: ``{"latex": expression, "scale": how}``; ``how`` is "none", "any" (values are divided by the first that
            is not zero: an equation's sides may be multiplied by anything) or "positive" (by its absolute value).

    Returns:
        ``status``: ``read``, ``unreadable`` or ``too large``; of a constant ``exact`` (numerator/denominator) if it is
        rational or infinite; ``points``: real and imaginary part at each point to 30 digits, or None where there
        is no value; ``cpu_s``: processor seconds taken.
    """
    started = time.process_time()
    try:
        found = _evaluate(payload["latex"], payload["scale"])
    except _TooLarge:
        found = {"status": "too large"}
    except _Unreadable:
        found = {"status": "unreadable"}
    return found | {"cpu_s": time.process_time() - started}


def _evaluate(latex: str, scale: str) -> dict[str, Any]:
    tree = _parsed(latex)
    if tree in (sympy.oo, -sympy.oo):
        return {"status": "read", "exact": str(tree), "points": []}
    names = sorted({symbol.name for symbol in tree.free_symbols} - {"i"})
    values, real = [], []
    for point in range(4 if names else 1):
        _not_real.clear()
        values.append(_value_at(tree, point))
        # The square root of a negative number has no value among the real ones, even if it is squared later on.
        real.append(None if _not_real else values[-1])
    if "i" not in (symbol.name for symbol in tree.free_symbols) and any(value is not None for value in real):
        values = real
    if scale != "none":
        values = _scaled(values, positive=scale == "positive")
    if all(value is None for value in values):
        raise _Unreadable
    is_constant = isinstance(values[0], Fraction) and all(value == values[0] for value in values)
    exact = values[0] if is_constant and scale == "none" else None
    if exact is not None:
        return {"status": "read", "exact": _digest(exact), "points": []}
    return {"status": "read", "exact": None, "points": [None if v is None else _written(v) for v in values]}


def _parsed(latex: str) -> sympy.Basic:
    # The parser keeps 15 digits of a decimal, and reads 3(4) as a mixed number.
    plain = re.sub(r"(\d*)\.(\d+)", lambda m: rf"{{\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}}}", latex)
    plain = re.sub(r"(?<=\d)\(", r"\\cdot(", plain)
    try:
        tree = latex2sympy(plain, conversion_config=_CONFIG)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # the parser raises whatever happens to it
        raise _Unreadable from error
    if not isinstance(tree, sympy.Expr):
        raise _Unreadable
    return tree


def _value_at(tree: sympy.Basic, point: int) -> Number | None:
    """Return the value at a point, None where there is none (a division by zero)."""
    try:
        value = _value(tree, point)
    except ZeroDivisionError:
        return None
    return _snapped(value) if isinstance(value, _Inexact) else value


def _value(node: sympy.Basic, point: int) -> Number:
    if isinstance(node, sympy.Rational):
        if node.q == 0:
            raise ZeroDivisionError
        return Fraction(int(node.p), int(node.q))
    if isinstance(node, sympy.Symbol):
        return _Inexact(mpmath.mpc(0, 1), mpmath.mpf(1)) if node.name == "i" else _coordinate(node.name, point)
    if node in _CONSTANTS:
        return _Inexact(+_CONSTANTS[node], mpmath.mpf(1))
    if node in (sympy.zoo, sympy.nan):
        raise ZeroDivisionError
    if isinstance(node, sympy.Add | sympy.Mul | sympy.Pow):
        values = [_value(arg, point) for arg in node.args]
        return _OPERATIONS[node.func](values)
    if isinstance(node, sympy.UnevaluatedExpr):
        return _value(node.args[0], point)
    if node.func in (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative):
        done = node.doit()
        if done.has(node.func):
            raise _Unreadable
        return _value(done, point)
    function = _FUNCTIONS.get(node.func)
    if function is None:
        raise _Unreadable
    return _applied(function, [_value(arg, point) for arg in node.args])


def _coordinate(name: str, point: int) -> Fraction:
    """Return a variable's value: between 1 and 4, of either sign, of either sign, between 0 and 1."""
    digest = int.from_bytes(hashlib.sha256(f"{name} {point}".encode()).digest()[:8], "big")
    part = Fraction(digest % 997 + 1, 999)
    if point == 0:
        return 1 + 3 * part
    if point == 3:
        return part
    return (1 + 2 * part) * (-1 if digest % 2 else 1)


def _sum(values: list[Number]) -> Number:
    if all(isinstance(value, Fraction) for value in values):
        return _kept(sum(values, Fraction(0)))
    terms = [_inexact(value) for value in values]
    total = mpmath.fsum(term.value for term in terms)
    error = mpmath.fsum(abs(term.value) * term.growth for term in terms)
    if abs(total) <= error * mpmath.mpf(10) ** -60:
        return Fraction(0)
    return _checked(total, error / abs(total))


def _product(values: list[Number]) -> Number:
    result: Number = Fraction(1)
    for value in values:
        if isinstance(result, Fraction) and isinstance(value, Fraction):
            result = _kept(result * value)
        else:
            left, right = _inexact(result), _inexact(value)
            if left.value == 0 or right.value == 0:
                result = Fraction(0)
            else:
                result = _checked(left.value * right.value, left.growth + right.growth)
    return result


def _power(values: list[Number]) -> Number:
    base, exponent = values
    if isinstance(exponent, Fraction) and exponent.denominator % 2 and exponent.denominator > 1 and _is_negative(base):
        # The cube root of -8 is -2, as school has it, not the principal value.
        root = _power([_product([Fraction(-1), base]), exponent])
        return _product([Fraction(-1), root]) if exponent.numerator % 2 else root
    if isinstance(exponent, Fraction) and isinstance(base, Fraction):
        exact = _exact_power(base, exponent)
        if exact is not None:
            return exact
    if base == 0:
        raise ZeroDivisionError
    left, right = _inexact(base), _inexact(exponent)
    size = abs(mpmath.log(left.value) * right.value)
    if size > _LARGEST * 3:
        raise _TooLarge
    growth = left.growth * (1 + abs(right.value)) + right.growth * (1 + size)
    return _checked(mpmath.power(left.value, right.value), growth)


def _is_negative(number: Number) -> bool:
    if isinstance(number, Fraction):
        return number < 0
    return mpmath.im(number.value) == 0 and mpmath.re(number.value) < 0


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    """Return a power that is rational; None where it is not, or too large to be kept."""
    if base == 0 and exponent > 0:
        return base
    if base == 0:
        raise ZeroDivisionError
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent.numerator) * bits > _MOST_BITS:
        return None
    if exponent.denominator == 1:
        return base**exponent.numerator
    if base < 0:
        return None
    top, first = sympy.integer_nthroot(base.numerator, exponent.denominator)
    bottom, second = sympy.integer_nthroot(base.denominator, exponent.denominator)
    return Fraction(int(top), int(bottom)) ** exponent.numerator if first and second else None


def _applied(function: Callable[..., Any], values: list[Number]) -> Number:
    arguments = [_inexact(value) for value in values]
    if any(abs(argument.value) > mpmath.mpf(10) ** 9 for argument in arguments):
        raise _TooLarge
    try:
        result = function(*(argument.value for argument in arguments))
    except (ValueError, TypeError) as error:  # a pole, or a function of real numbers only
        raise ZeroDivisionError from error
    if not mpmath.isfinite(result):
        raise ZeroDivisionError
    if result == 0:
        return Fraction(0)
    return _checked(result, 10 * max(argument.growth for argument in arguments))


def _checked(value: Any, growth: Any) -> _Inexact:
    if abs(mpmath.log10(abs(value))) > _LARGEST or growth > _LOST:
        raise _TooLarge
    if isinstance(value, mpmath.mpc) and value.imag == 0:
        value = value.real
    elif isinstance(value, mpmath.mpc):
        _not_real.append(True)
    return _Inexact(value, growth + 1)


def _kept(value: Fraction) -> Number:
    """Return a fraction, as a number to 80 digits where it has become large."""
    bits = value.numerator.bit_length() + value.denominator.bit_length()
    return value if bits <= 4 * _MOST_BITS else _inexact(value)


def _inexact(value: Number) -> _Inexact:
    if isinstance(value, _Inexact):
        return value
    return _Inexact(mpmath.mpf(value.numerator) / value.denominator, mpmath.mpf(1))


def _snapped(number: _Inexact) -> Number:
    r"""Return the rational number that an expression of irrational ones is: \sqrt{3+2\sqrt{2}}-\sqrt{2} is 1."""
    value, precision = number.value, mpmath.mpf(10) ** -50
    real, imaginary = mpmath.re(value), mpmath.im(value)
    if abs(imaginary) > abs(value) * precision:
        if abs(real) <= abs(value) * precision:
            return _Inexact(mpmath.mpc(0, imaginary), number.growth)
        return number
    if not mpmath.mpf(10) ** -12 < abs(real) < mpmath.mpf(10) ** 12:
        return _Inexact(real, number.growth)
    near = Fraction(int(mpmath.nint(real * mpmath.mpf(10) ** 70)), 10**70).limit_denominator(10**6)
    if abs(real - mpmath.mpf(near.numerator) / near.denominator) <= abs(real) * precision:
        return near
    return _Inexact(real, number.growth)


def _scaled(values: list[Number | None], *, positive: bool) -> list[Number | None]:
    first = next((value for value in values if value is not None and value != 0), None)
    if first is None:
        return values
    if positive:
        first = abs(first) if isinstance(first, Fraction) else _Inexact(abs(first.value), first.growth)
    inverse = 1 / first if isinstance(first, Fraction) else _Inexact(1 / first.value, first.growth)
    scaled = [None if value is None else _product([value, inverse]) for value in values]
    return [_snapped(value) if isinstance(value, _Inexact) else value for value in scaled]


def _written(value: Number) -> list[str]:
    number = _inexact(value).value
    parts = mpmath.re(number), mpmath.im(number)
    return [mpmath.nstr(part, _DIGITS, strip_zeros=True, min_fixed=0, max_fixed=0) for part in parts]


def _digest(value: Fraction) -> str:
    """Return a fraction as text; of a very large one a digest."""
    if value.numerator.bit_length() + value.denominator.bit_length() <= 12_000:
        return f"{value.numerator}/{value.denominator}"
    return hashlib.sha256(f"{value.numerator:x}/{value.denominator:x}".encode()).hexdigest()


def _logarithm(value: Any, base: Any = mpmath.e) -> Any:
    return mpmath.log(value) / mpmath.log(base)


def _whole(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(value: Any) -> Any:
        if mpmath.im(value) != 0:
            raise ValueError
        near = mpmath.nint(mpmath.re(value))
        return near if abs(near - mpmath.re(value)) < mpmath.mpf(10) ** -50 else function(mpmath.re(value))

    return apply


_CONSTANTS = {sympy.pi: mpmath.pi, sympy.E: mpmath.e, sympy.EulerGamma: mpmath.euler, sympy.I: mpmath.mpc(0, 1)}
_OPERATIONS = {sympy.Add: _sum, sympy.Mul: _product, sympy.Pow: _power}
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    sympy.exp: mpmath.exp, sympy.log: _logarithm, sympy.sin: mpmath.sin, sympy.cos: mpmath.cos, sympy.tan: mpmath.tan,
    sympy.cot: mpmath.cot, sympy.sec: mpmath.sec, sympy.csc: mpmath.csc, sympy.asin: mpmath.asin,
    sympy.acos: mpmath.acos, sympy.atan: mpmath.atan, sympy.acot: mpmath.acot, sympy.sinh: mpmath.sinh,
    sympy.cosh: mpmath.cosh,
    sympy.tanh: mpmath.tanh, sympy.Abs: abs, sympy.factorial: mpmath.factorial, sympy.gamma: mpmath.gamma,
    sympy.binomial: mpmath.binomial, sympy.floor: _whole(mpmath.floor), sympy.ceiling: _whole(mpmath.ceil),
    sympy.conjugate: mpmath.conj, sympy.re: mpmath.re, sympy.im: mpmath.im, sympy.Max: max, sympy.Min: min,
}  # fmt: skip


if __name__ == "__main__":
    from dps.benchmarks.workers import serve

    serve(evaluate, sys.argv[1:])
