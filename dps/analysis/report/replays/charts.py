"""Small charts of the page as SVG text of our own: the reliability of a policy's ``p_enough``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

SIZE, LEFT, TOP, BOTTOM = 172, 30, 6, 30
"""Of the square, and the room around it, in units of the chart."""
LABELS = {"no_gain": "no larger k gains", "correct": "the answer is right"}
"""What p_enough may be the probability of, in words."""


def reliability(entry: Mapping[str, Any]) -> Markup:
    """Return the reliability diagram of a policy: what came true over what it said, with 95 % intervals.

    Filled circles are the share of rows in which no larger k gains, hollow squares that in which the answer is right;
    the bars at the bottom say how many rows each bin has.
    """
    most = max(cell["count"] for cell in entry["bins"])
    parts = [_frame()]
    for cell in entry["bins"]:
        height = 0.22 * SIZE * cell["count"] / most
        x0, x1 = _x(cell["low"]), _x(cell["high"])
        parts.append(
            f'<rect class="rows" x="{x0 + 0.5:.1f}" y="{TOP + SIZE - height:.1f}" width="{max(x1 - x0 - 1, 1):.1f}" '
            f'height="{height:.1f}"/>'
        )
    for name in LABELS:
        # A bin of few rows is paler than its neighbours would make it look.
        path = " ".join(f"{_x(cell['p_enough']):.1f},{_y(cell[name]['value']):.1f}" for cell in entry["bins"])
        parts.append(f'<polyline class="{name}" points="{path}"/>')
        for cell in entry["bins"]:
            x, y = _x(cell["p_enough"]), _y(cell[name]["value"])
            low, high = _y(cell[name]["low"]), _y(cell[name]["high"])
            parts.append(f'<path class="{name}" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
            if name == "no_gain":
                parts.append(f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>')
            else:
                parts.append(f'<rect class="{name}" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>')
    view = f"0 0 {LEFT + SIZE + 14} {TOP + SIZE + BOTTOM}"
    return Markup(
        f'<svg class="reliability" viewBox="{view}" role="img" aria-label="{escape(_words(entry))}">'
        f"{''.join(parts)}</svg>"
    )


def _frame() -> str:
    """Return axes from 0 to 100 % and the diagonal on which p_enough is what it says."""
    lines = []
    for share in (0, 0.5, 1):
        lines.append(f'<path class="grid" d="M{_x(0)} {_y(share)}H{_x(1)}M{_x(share)} {_y(0)}V{_y(1)}"/>')
        lines.append(f'<text x="{LEFT - 5}" y="{_y(share) + 3.5:.1f}" text-anchor="end">{100 * share:g}</text>')
        lines.append(f'<text x="{_x(share)}" y="{TOP + SIZE + 13}" text-anchor="middle">{100 * share:g}</text>')
    lines.append(f'<path class="diagonal" d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}"/>')
    lines.append(f'<text x="{_x(0.5)}" y="{TOP + SIZE + 26}" text-anchor="middle">p_enough, %</text>')
    return "".join(lines)


def _x(share: float) -> float:
    return LEFT + SIZE * share


def _y(share: float) -> float:
    return TOP + SIZE * (1 - share)


def _words(entry: Mapping[str, Any]) -> str:
    """Return the diagram in words."""
    cells = "; ".join(
        f"p_enough {100 * cell['p_enough']:.0f} %: "
        + ", ".join(f"{words} {100 * cell[name]['value']:.0f} %" for name, words in LABELS.items())
        for cell in entry["bins"]
    )
    return f"Reliability of {entry['policy']}. {cells}"
