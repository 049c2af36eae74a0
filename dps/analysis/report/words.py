"""How a report writes numbers, in one place for sentences, table, page, figures and JSON. None is "there is none"."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from dps.decide import RULES

NONE = "–"


def percent(value: float | None) -> str:
    """Return a fraction as percent with one decimal: ``97.1 %``."""
    return NONE if value is None else f"{100 * value:.1f} %"


def percent_with_error(value: float | None, stderr: float | None) -> str:
    """Return a fraction and its standard error in percent, without the sign: ``97.1 ± 1.1``."""
    if value is None:
        return NONE
    return f"{100 * value:.1f}" + ("" if stderr is None else f" ± {100 * stderr:.1f}")


def signed_points(value: float | None, stderr: float | None) -> str:
    """Return a difference of fractions in percentage points with its sign: ``−0.4 ± 0.6``."""
    if value is None:
        return NONE
    text = f"{100 * value:+.1f}"
    if text in ("+0.0", "-0.0"):
        text = "0.0"
    return text.replace("-", "−") + ("" if stderr is None else f" ± {100 * stderr:.1f}")


def points(value: float, stderr: float | None) -> str:
    """Return the size of a difference in percentage points, where words say the direction: ``0.4 ± 0.6``."""
    return signed_points(abs(value), stderr).removeprefix("+")


def interval(entry: Mapping[str, float] | None) -> str:
    """Return a ratio with the ends of its interval: ``0.53 [0.52, 0.54]``."""
    if entry is None:
        return NONE
    return f"{entry['value']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def points_interval(entry: Mapping[str, float]) -> str:
    """Return a difference of fractions in percentage points with its interval: ``−0.4 [−0.9, +0.1]``."""
    value, low, high = (signed_points(entry[name], None) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def percent_interval(entry: Mapping[str, float]) -> str:
    """Return a fraction in percent with its interval, without the sign: ``36.1 [33.8, 38.4]``."""
    return f"{100 * entry['value']:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"


def share(value: float | None, stderr: float | None = None) -> str:
    """Return a ratio with two decimals: ``0.55 ± 0.01``; an error that would be written as 0.00 is left out."""
    if value is None:
        return NONE
    text = f"{value:.2f}"
    text = text.removeprefix("-") if not float(text) else text.replace("-", "−")
    return text + ("" if stderr is None or stderr < 0.005 else f" ± {stderr:.2f}")


def nats(value: float | None, stderr: float | None = None) -> str:
    """Return a log-probability to two digits of its error, or of itself: ``0.021 ± 0.013``, ``−1.3``, ``0.00031``."""
    if value is None:
        return NONE
    smallest = abs(stderr or value)
    decimals = 1 if smallest == 0 else min(max(1 - math.floor(math.log10(smallest)), 0), 6)
    text = f"{value:.{decimals}f}"
    text = text.removeprefix("-") if not float(text) else text.replace("-", "−")
    return text + ("" if stderr is None else f" ± {stderr:.{decimals}f}")


def number(value: float | None) -> str:
    """Return a count or a mean of counts: ``1,204``, ``18.3``."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def seconds(value: float | None) -> str:
    """Return seconds with about three digits: ``263``, ``12.3``, ``0.021``."""
    if value is None:
        return NONE
    for least, decimals in ((100, 0), (10, 1), (1, 2)):
        if value >= least:
            return f"{value:,.{decimals}f}"
    return f"{value:.3f}"


def share_ks(rows: Iterable[Mapping[str, Any]]) -> list[int]:
    """Return the k's at which the questions of controllers ended, in order."""
    return sorted({int(k) for row in rows if row["family"] == "dynamic" for k in row["share_at_k"]})


def group_of(row: Mapping[str, Any]) -> str:
    """Return what a policy of a report belongs to: a fixed k's series, ``controller``, or ``rule``."""
    return row["series"] if row["family"] == "fixed" else "rule" if row["policy"] in RULES else "controller"


def listing(names: Iterable[str]) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    items = list(names)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def json_number(value: float) -> float | None:
    """Return a number that JSON has: None for NaN."""
    return None if math.isnan(value) else float(value)
