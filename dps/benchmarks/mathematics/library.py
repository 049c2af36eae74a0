r"""What expressions are worth, found once for every text and remembered: a fingerprint that equal expressions share.

Expressions are read one at a time, not in pairs: n answers take n readings, and equality of fingerprints is an
equivalence relation, whatever the order of the answers. What the own reader (``values``) leaves in doubt is asked of a
worker process with the library's parser, within limits.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from dps.benchmarks.mathematics.evaluation import Scale, TooLarge, Unreadable, evaluate, written
from dps.benchmarks.mathematics.values import read_expression
from dps.benchmarks.workers import WorkerFailed, WorkerPool

if TYPE_CHECKING:
    from dps.benchmarks.benchmark import Item

LIMIT_S = 5.0
"""Seconds for one expression."""
QUESTION_LIMIT_S = 10.0
"""Processor seconds for all expressions of a question; those that are left then have no verdict."""

_REMEMBERED = 10_000
_QUESTIONS = 4_096
_POOL = WorkerPool(Path(__file__).with_name("worker.py"), limit_s=LIMIT_S)


class Undecided(Exception):
    """An expression has no value within the limits of time, memory and size."""


@dataclass(frozen=True, slots=True)
class Worth:
    """What an expression is worth: the same for equal expressions, and hashable."""

    exact: str | None
    """Numerator/denominator of a rational constant."""
    points: tuple[tuple[str, str] | None, ...] = ()
    """Real and imaginary part to 30 digits at the points, None where there is no value; one point of a constant."""

    @classmethod
    def of(cls, value: Fraction) -> Worth:
        """Return the worth of a rational number."""
        return cls(written(value))


@dataclass(slots=True)
class Budget:
    """The processor seconds that the library may still take for a question."""

    left_s: float = QUESTION_LIMIT_S


def budget_of(item: Item) -> Budget:
    """Return the budget of a question, the same for every call that concerns it."""
    key = (item.question_id, item.question, item.gold)
    with _lock:
        return _remember(_budgets, key, _budgets.get(key) or Budget(), _QUESTIONS)


def worth(latex: str, budget: Budget, scale: Scale = "none") -> Worth | None:
    """Return what an expression is worth, None if it cannot be read.

    Raises:
        Undecided: If it takes too much, now or when it was asked before, or the budget is spent.
    """
    if _IMPOSSIBLE.search(latex):
        return None
    key = (latex, scale)
    with _lock:
        known = _known.get(key)
    if known is None:
        known = _read_here(latex, scale)
        if known is None and re.search("[,=]", latex) and not _TAKES_MORE.search(latex):
            known = "unreadable"
        if known is None:
            if budget.left_s <= 0:
                raise Undecided
            known = _ask(latex, scale, budget)
        with _lock:
            _remember(_known, key, known, _REMEMBERED)
    if known == "undecided":
        raise Undecided
    return None if known == "unreadable" else known


def same_worth(gold: Worth, answer: Worth) -> bool:
    """Return whether two expressions are equal.

    Rational numbers are compared exactly, other values to 30 digits. Expressions with variables must agree wherever
    both are real: of roots and logarithms of negative numbers, only the conventions would be compared.
    """
    if gold == answer:
        return True
    if gold.exact is not None or answer.exact is not None or len(gold.points) != len(answer.points):
        return False
    pairs = zip(gold.points, answer.points, strict=True)
    real = [(a, b) for a, b in pairs if a and b and Decimal(a[1]) == Decimal(b[1]) == 0]
    return len(gold.points) > 1 and len(real) > 0 and all(a == b for a, b in real)


def _read_here(latex: str, scale: Scale) -> Worth | str | None:
    """Return what the own reader finds, None where it has doubts."""
    if latex in (r"\infty", r"-\infty"):
        return Worth(latex.replace(r"\infty", "oo"))
    tree = read_expression(latex)
    if tree is None:
        return None
    try:
        exact, points = evaluate(tree, scale)
    except TooLarge:
        return "undecided"
    except Unreadable:
        return "unreadable"
    return Worth(exact, tuple(points))


def _ask(latex: str, scale: Scale, budget: Budget) -> Worth | str:
    try:
        reply = _POOL.call({"latex": latex, "scale": scale})
    except WorkerFailed:
        budget.left_s -= LIMIT_S
        return "undecided"
    budget.left_s -= reply["cpu_s"]
    if reply["status"] != "read":
        return "unreadable" if reply["status"] == "unreadable" else "undecided"
    return Worth(reply["exact"], tuple(None if point is None else tuple(point) for point in reply["points"]))


def _remember(memory: OrderedDict, key: object, value: object, most: int) -> object:
    """Keep a value, and forget those that were needed longest ago."""
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > most:
        memory.popitem(last=False)
    return value


_IMPOSSIBLE = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{5,}|[\"?@#&;]|__|\\(?:text|begin)(?![a-zA-Z])")
"""No expression has a word, or one of these signs, in it; the worker need not be asked."""
_TAKES_MORE = re.compile("gcd|lcm|max|min|sum|prod|int|lim")
"""Functions of numbers between commas, and with bounds; no other expression has a comma or an equals sign."""
_known: OrderedDict[tuple[str, Scale], Worth | str] = OrderedDict()
_budgets: OrderedDict[tuple[str, str, str | None], Budget] = OrderedDict()
_lock = threading.Lock()
