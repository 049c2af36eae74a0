"""Labels that stand beside what they name: axes that know what they show, and a place for every label on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dps.analysis.report.look import GRID

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(slots=True, eq=False)
class Label:
    """A text that wants to stand near one of some points."""

    text: str
    anchors: list[tuple[float, float]]
    color: str
    size: float
    weight: str = "normal"
    pinned: bool = False
    """Whether a thin line leads to the point where the label stands away from it."""


@dataclass(slots=True, eq=False)
class Panel:
    """An axes with what labels must keep clear of, in data coordinates."""

    axes: Axes
    labels: list[Label]
    points: list[tuple[float, float]]
    lines: list[list[tuple[float, float]]]
    bars: list[tuple[float, float, float]]
    level: float | None = None
    """Accuracy of the reference, drawn as a line across."""


def plain_axes(axes: Axes) -> Panel:
    """Return linear axes in the style of the others."""
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return Panel(axes, [], [], [], [])


def finish(figure: Figure, panels: Sequence[Panel]) -> None:
    """Fix the layout, then place the labels in it."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for panel in panels:
        _place(figure, panel)


def _place(figure: Figure, panel: Panel) -> None:
    """Put every label where it covers the least: greedily, controllers' and series' names first.

    Around its point a label may stand in 16 directions at five distances, or further off where a line leads to it; a
    place costs what it covers of other labels, marks, lines and error bars, and its distance.
    """
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    axes, unit = panel.axes, figure.dpi / 72
    to_pixels = axes.transData.transform
    frame = axes.get_window_extent(renderer)
    marks = to_pixels(panel.points) if panel.points else np.zeros((0, 2))
    obstacles = [marks]
    for line in panel.lines:
        path = to_pixels(line)
        for start, end in pairwise(path):
            steps = max(2, int(np.hypot(*(end - start)) / (3 * unit)))
            obstacles.append(start + np.linspace(0, 1, steps)[:, None] * (end - start))
    for x, low, high in panel.bars:
        start, end = to_pixels([(x, low), (x, high)])
        obstacles.append(start + np.linspace(0, 1, 24)[:, None] * (end - start))
    if panel.level is not None:
        across = np.arange(frame.x0, frame.x1, 12 * unit)
        obstacles.append(np.column_stack([across, np.full(len(across), to_pixels((1, panel.level))[1])]))
    dots = np.concatenate(obstacles)
    taken: list[tuple[float, float, float, float]] = []
    for label in sorted(panel.labels, key=lambda entry: entry.weight == "normal"):
        artist = axes.text(0, 0, label.text, fontsize=label.size, fontweight=label.weight, color=label.color)
        box = artist.get_window_extent(renderer)
        artist.remove()
        width, height = box.width, box.height
        best = at = np.zeros(2)
        point, best_cost = label.anchors[0], np.inf
        for candidate in label.anchors:
            anchor = to_pixels(candidate)
            for distance in (7, 11, 16, 24, 36, 52, 72)[: 7 if label.pinned else 5]:
                for angle in np.arange(16) * np.pi / 8 + np.pi / 2:
                    toward = np.array([np.cos(angle), np.sin(angle)])
                    center = anchor + toward * (distance * unit + np.array([width, height]) / 2 * np.abs(toward))
                    cost = 0.5 * distance + _covered(_area(center, width, height), taken, dots, marks, frame, unit)
                    if cost < best_cost - 1e-9:
                        best, at, point, best_cost = center, anchor, candidate, cost
        taken.append(_area(best, width, height))
        offset = (best - at) / unit
        gap = np.maximum(np.abs(best - at) - (width / 2, height / 2), 0) / unit
        leader = {"arrowstyle": "-", "color": label.color, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 5}
        axes.annotate(
            label.text,
            point,
            xytext=tuple(float(v) for v in offset),
            textcoords="offset points",
            arrowprops=leader if label.pinned and gap.max() > 14 else None,
            ha="center",
            va="center",
            fontsize=label.size,
            fontweight=label.weight,
            color=label.color,
            zorder=6,
        )


def _area(center: np.ndarray, width: float, height: float) -> tuple[float, float, float, float]:
    """Return left, bottom, right, top of a box."""
    x, y = (float(v) for v in center)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _covered(
    area: tuple[float, float, float, float],
    taken: Sequence[tuple[float, float, float, float]],
    dots: np.ndarray,
    marks: np.ndarray,
    frame: Any,
    unit: float,
) -> float:
    """Return what a label at this place, ``(left, bottom, right, top)`` in pixels, would cover."""
    left, bottom, right, top = area
    cost = 0.0
    room = 4 * unit
    if left < frame.x0 + room or right > frame.x1 - room or bottom < frame.y0 + room or top > frame.y1:
        cost += 2000
    for a, b, c, d in taken:
        wide = min(right, c) - max(left, a) + 2 * unit
        tall = min(top, d) - max(bottom, b) + 1 * unit
        if wide > 0 and tall > 0:
            cost += 200 + wide * tall / unit**2
    for cloud, margin, price in ((dots, 1.5 * unit, 6.0), (marks, 5 * unit, 60.0)):
        inside = (
            (cloud[:, 0] > left - margin)
            & (cloud[:, 0] < right + margin)
            & (cloud[:, 1] > bottom - margin)
            & (cloud[:, 1] < top + margin)
        )
        cost += price * float(inside.sum())
    return cost
