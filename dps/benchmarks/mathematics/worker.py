r"""Runs in a worker process: reads an expression with the library's LaTeX parser and evaluates it.

math-verify's own comparison is not used. It rounds both sides to six decimals, so that all small numbers are equal; its
verdicts on pairs are not transitive, so that a vote would depend on the order; and it expands and simplifies, which may
take minutes. Its parser builds the tree without evaluating anything; ``evaluation`` has the values.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from fractions import Fraction
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig

from dps.benchmarks.mathematics.evaluation import FUNCTIONS, TooLarge, Tree, Unreadable, evaluate

logging.disable(logging.CRITICAL)
sys.setrecursionlimit(5_000)  # the parser recurses some ten frames for a bracket

_CONFIG = ConversionConfig(lowercase_symbols=False, interpret_contains_as_eq=False)
_CONSTANTS = {sympy.pi: "pi", sympy.E: "e", sympy.EulerGamma: "gamma", sympy.I: "I"}
_OPERATIONS = {sympy.Add: "+", sympy.Mul: "*", sympy.Pow: "^", sympy.Abs: "abs", sympy.conjugate: "conj"}


def answer(payload: dict[str, Any]) -> dict[str, Any]:
    r"""Evaluate ``{"latex": expression, "scale": how}``, see :func:`~dps.benchmarks.mathematics.evaluation.evaluate`.

    Returns:
        ``status``: ``read``, ``unreadable`` or ``too large``; ``exact`` and ``points`` of what was read (of an infinite
        value ``oo`` and none); ``cpu_s``: processor seconds taken.
    """
    started = time.process_time()
    try:
        tree = _parsed(payload["latex"])
        infinite = tree in (sympy.oo, -sympy.oo)
        exact, points = (str(tree), []) if infinite else evaluate(_tree(tree), payload["scale"])
        result = {"status": "read", "exact": exact, "points": points}
    except TooLarge:
        result = {"status": "too large"}
    except (Unreadable, ZeroDivisionError):
        result = {"status": "unreadable"}
    return result | {"cpu_s": time.process_time() - started}


def _parsed(latex: str) -> sympy.Expr:
    # The parser keeps 15 digits of a decimal, and reads 3(4) as a mixed number.
    plain = re.sub(r"(\d*)\.(\d+)", lambda m: rf"{{\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}}}", latex)
    plain = re.sub(r"(?<=\d)\(", r"\\cdot(", plain)
    try:
        tree = latex2sympy(plain, conversion_config=_CONFIG)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # the parser raises whatever happens to it
        raise Unreadable from error
    if not isinstance(tree, sympy.Expr):
        raise Unreadable
    return tree


def _tree(node: sympy.Basic) -> Tree:
    if isinstance(node, sympy.Rational):
        if node.q == 0:
            raise ZeroDivisionError
        return Fraction(int(node.p), int(node.q))
    if isinstance(node, sympy.Symbol):
        return node.name
    if node in _CONSTANTS:
        return (_CONSTANTS[node],)
    if node in (sympy.zoo, sympy.nan):
        raise ZeroDivisionError
    if isinstance(node, sympy.UnevaluatedExpr):
        return _tree(node.args[0])
    if node.func in (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative):
        done = node.doit()
        if done.has(node.func):
            raise Unreadable
        return _tree(done)
    name = _OPERATIONS.get(node.func) or node.func.__name__.lower()
    if name not in ("+", "*", "^", *FUNCTIONS):
        raise Unreadable
    return (name, *map(_tree, node.args))


if __name__ == "__main__":
    from dps.benchmarks.workers import serve

    serve(answer, sys.argv[1:])
