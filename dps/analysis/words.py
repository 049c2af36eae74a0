"""How numbers are written, in one place for sentences, tables, page, figures and JSON. None is "there is none"."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TypeVar

from dps.estimates import Estimate

NONE = "–"
T = TypeVar("T")


def json_number(value: float) -> float | None:
    """Return a number that JSON has: None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None


def plain(value: Estimate) -> dict[str, float | None]:
    """Return an estimate as JSON values: ``value``, ``stderr`` and the ends ``low`` and ``high`` of its interval."""
    return {name: json_number(getattr(value, name)) for name in ("value", "stderr", "low", "high")}


def _signed(value: float, decimals: int, *, plus: bool = False) -> str:
    """Return a number with a real minus sign; what is written as 0 has none."""
    text = f"{value:{'+' if plus else ''}.{decimals}f}"
    return text.lstrip("+-") if not float(text) else text.replace("-", "−")


def percent(value: float | None) -> str:
    """Return a fraction as percent with one decimal: ``97.1 %``."""
    return NONE if value is None else f"{100 * value:.1f} %"


def percent_with_error(value: float | None, stderr: float | None) -> str:
    """Return a fraction and its standard error in percent, without the sign: ``97.1 ± 1.1``."""
    if value is None:
        return NONE
    return f"{100 * value:.1f}" + ("" if stderr is None else f" ± {100 * stderr:.1f}")


def signed_points(value: float | None, stderr: float | None = None) -> str:
    """Return a difference of fractions in percentage points with its sign: ``−0.4 ± 0.6``."""
    if value is None:
        return NONE
    return _signed(100 * value, 1, plus=True) + ("" if stderr is None else f" ± {100 * stderr:.1f}")


def between(entry: Mapping[str, float | None]) -> str:
    """Return an interval of percentage points: ``[−0.9, +0.1]``; nothing where there is none."""
    if entry["low"] is None or entry["high"] is None:
        return ""
    return f"[{signed_points(entry['low'])}, {signed_points(entry['high'])}]"


def points_interval(entry: Mapping[str, float | None] | None) -> str:
    """Return a difference of fractions in percentage points with its interval: ``−0.4 [−0.9, +0.1]``."""
    return NONE if entry is None else f"{signed_points(entry['value'])} {between(entry)}".rstrip()


def interval(entry: Mapping[str, float | None] | None) -> str:
    """Return a ratio with the ends of its interval: ``0.53 [0.52, 0.54]``."""
    if entry is None or entry["value"] is None:
        return NONE
    if entry["low"] is None:
        return f"{entry['value']:.2f}"
    return f"{entry['value']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def share(value: float | None, stderr: float | None = None) -> str:
    """Return a ratio with two decimals: ``0.55 ± 0.01``; an error that would be written as 0.00 is left out."""
    if value is None:
        return NONE
    return _signed(value, 2) + ("" if stderr is None or stderr < 0.005 else f" ± {stderr:.2f}")


def nats(value: float | None, stderr: float | None = None) -> str:
    """Return a log-probability to two digits of its error, or of itself: ``0.021 ± 0.013``, ``−1.3``, ``0.00031``."""
    if value is None:
        return NONE
    smallest = abs(stderr or value)
    decimals = 1 if smallest == 0 else min(max(1 - math.floor(math.log10(smallest)), 0), 6)
    return _signed(value, decimals) + ("" if stderr is None else f" ± {stderr:.{decimals}f}")


def number(value: float | None) -> str:
    """Return a count or a mean of counts: ``1,204``, ``18.3``."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def seconds(value: float | None) -> str:
    """Return seconds with about three digits: ``263``, ``12.3``, ``0.021``."""
    if value is None:
        return NONE
    decimals = next((d for least, d in ((100, 0), (10, 1), (1, 2)) if value >= least), 3)
    return f"{value:,.{decimals}f}"


def thresholds(values: Sequence[float]) -> str:
    """Return the thresholds of the folds to two digits: one value, or the smallest and the largest."""
    if not values:
        return ""
    low, high = (f"{end:.2g}".replace("-", "−") for end in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


def turn(texts: Sequence[T]) -> Sequence[T]:
    """Return the shortest beginning of a sequence that gives all of it when repeated."""
    sizes = (size for size in range(1, len(texts) + 1) if len(texts) % size == 0)
    return next(texts[:size] for size in sizes if list(texts[:size]) * (len(texts) // size) == list(texts))


def rungs(texts: Sequence[str]) -> str:
    """Return a ladder in few words: ``16 × plain 1, power 2``, ``8 × (plain 1, lowtemp 1)``."""
    once = turn(texts)
    if 1 < len(once) < len(texts):
        return f"{len(texts) // len(once)} × ({rungs(once)})"
    runs = [(text, len(list(same))) for text, same in groupby(texts)]
    return ", ".join(text if count == 1 else f"{count} × {text}" for text, count in runs)


def listing(names: Iterable[str]) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    items = list(names)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def distinct(names: Sequence[str]) -> list[str]:
    """Return names, those that come several times with their place: ``a``, ``b (2)``, ``b (3)``."""
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]


def questions(count: int) -> str:
    """Return ``1 question``, ``1,200 questions``."""
    return f"{count:,} question{'' if count == 1 else 's'}"


def points_of(margin: float) -> str:
    """Return a margin of accuracy: ``1 point``, ``0.5 points``."""
    return f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"
