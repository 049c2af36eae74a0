"""The figures that stand in files: accuracy against tokens, and pass@k, drawn from results as JSON has them.

The same result gives the same bytes where the same versions of matplotlib and FreeType draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from dps.analysis.findings import rows_of
from dps.analysis.marks import GRID, INK, MUTED, POWER, SURFACE, Mark, mark_of_series, marks_of
from dps.analysis.published import shown_ks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib, so labels are measured alike everywhere
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.4,
    "text.color": INK,
    "text.parse_math": False,  # names of policies are no formulas
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "path",
}
_MOST_NAMED = 8
"""Curves that a reader of a figure can tell apart."""
COST_WORDS = {
    "tokens": "generated tokens per question, rejected ones included",
    "compute_s": "compute seconds per question",
    "latency_s": "latency, seconds from admission to answer",
    "calibrated_s": "calibrated seconds per question",
}
"""What the costs of a point are called on an axis."""


def png(figure: Figure) -> bytes:
    """Return a figure as PNG at 200 dots per inch, without date or version."""
    out = BytesIO()
    figure.savefig(out, format="png", dpi=200, facecolor=SURFACE, metadata={"Software": None})
    return out.getvalue()


def svg(figure: Figure, salt: str) -> str:
    """Return a figure as SVG text, without date; ``salt`` decides the generated ids."""
    out = StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", facecolor=SURFACE, metadata=nothing)
    return out.getvalue()


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


# -- accuracy against costs --------------------------------------------------------------------------------------------


def draw_accuracy(results: Mapping[str, Mapping[str, Any]], costs: Sequence[str] = ("tokens",)) -> Figure:
    """Draw accuracy against costs: every policy with its 95 % interval, and the Pareto front.

    Each of several results, by name, and each cost has a panel, a policy in the same mark everywhere.
    """
    marks = marks_of([policy for result in results.values() for policy in result["policies"]])
    panels = [(name, result, cost) for name, result in results.items() for cost in costs]
    single, columns = len(panels) == 1, min(2, len(panels))
    lines = -(-len(panels) // columns)
    with matplotlib.rc_context(_STYLE):
        figure, grid = _figure(*((9.2, 6.4) if single else (6.4 * columns, 4.9 * lines + 0.8)), lines, columns)
        handles: dict[str, Any] = {}
        for axes, (name, result, cost) in zip(grid.flat, panels, strict=False):
            handles |= _accuracy(axes, result, marks, cost)
            if len(results) > 1:
                axes.set_title(name, loc="left", fontsize=9.5, fontweight="bold")
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[:, 0]:
            axes.set_ylabel("accuracy")
        if handles:
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4 if single else 6)
    return figure


def _accuracy(axes: Axes, result: Mapping[str, Any], marks: Mapping[str, Mark], cost: str) -> dict[str, Any]:
    """Draw all policies of a result against one cost, and return what stands in the legend."""
    axes.set_xscale("log")
    axes.set_xlabel(COST_WORDS[cost])
    handles: dict[str, Any] = {}
    ends: list[tuple[float, float, float]] = []
    front = front_of(result, cost)
    if front:
        axes.plot(*zip(*front, strict=True), color=INK, alpha=0.1, linewidth=7, solid_capstyle="round", zorder=1)
    level = level_of(result)
    if level is not None:
        axes.axhline(level, color=POWER, linewidth=0.8, alpha=0.45, zorder=1)
    named = named_of(result)
    for policy in result["policies"]:
        mark, label = marks[policy["policy"]], policy["policy"]
        points = [p for p in policy["curve"] if p["accuracy"] is not None and p[cost]]
        rows = [row for row in rows_of(policy) if row["accuracy"] is not None and row[cost]]
        if label not in named or (not points and not rows):
            continue
        x, y, low, high = ([point[key] for point in points] for key in (cost, "accuracy", "low", "high"))
        if policy["family"] == "fixed":  # the bands of all would cover one another; these show how wide they are
            axes.fill_between(x, low, high, color=mark.color, alpha=0.07, linewidth=0, zorder=0.5)
        # Between two points a curve is a mixture of both: straight in cost, so bent on the logarithmic axis.
        places = np.arange(12 * max(len(x) - 1, 0) + 1) / 12
        bent = [np.interp(places, np.arange(len(x)), values) for values in (x, y) if values]
        bound = policy["family"] == "oracle"
        width = 0.7 if bound else 1.2
        axes.plot(*bent, color=mark.color, linestyle=mark.line, linewidth=width, zorder=2)
        ends += [(point[cost], point["low"], point["high"]) for point in points]
        if policy["family"] == "fixed":
            for row in rows:
                place = (row[cost], row["accuracy"])
                axes.annotate(
                    f"{row['threshold']:g}", place, (4, -9), textcoords="offset points", color=mark.color, fontsize=7.5
                )
        chosen = policy["operating_point"] is not None and not bound
        drawn = [_row(axes, row, cost, mark, chosen=chosen) for row in rows]
        if drawn:
            handles[label] = drawn[-1]
        ends += [(point[cost], point["low"], point["high"]) for point in rows]
    _scales(axes, ends)
    return handles


def named_of(result: Mapping[str, Any]) -> set[str]:
    """Return the policies that the static figure of a result shows, so that a reader sees what decides.

    Of more than :data:`_MOST_NAMED` curves these are, until there are so many: majority votes of each arm, the best
    controller, ``lead`` where it saves most, ``votes-dp`` and ``oracle`` of that ladder, the best controller of another
    ladder, then ``lead`` on the other ladders. The interactive figure has all.
    """
    policies = result["policies"]
    if sum(len(policy["curve"]) > 1 for policy in policies) <= _MOST_NAMED:
        return {policy["policy"] for policy in policies}

    def best(**wanted: str) -> list[Mapping[str, Any]]:
        """Return the policies with operating points, those that exclude a loss first and the cheapest of them first."""
        some = [p for p in policies if p["operating_point"] and all(p[key] == value for key, value in wanted.items())]
        return sorted(some, key=lambda p: (not p["operating_point"].get("no_loss"), p["operating_point"]["tokens"]))

    controllers, leads = best(family="controller"), best(name="lead")
    decides = [*controllers[:1], *leads[:1]]
    series = [policy["series"] for policy in decides]
    bounds = [p for p in policies if p["name"] in ("votes-dp", "oracle") and p["series"] in series[-1:]]
    budgets = [p for p in policies if p["name"] == "fixed" and len(p["arms"]) == 1]
    elsewhere = [p for p in controllers if p["series"] != series[0]][:1]
    ordered = [*budgets[: _MOST_NAMED - 4], *decides, *bounds, *elsewhere, *leads[1:], *controllers[1:]]
    return set([policy["policy"] for policy in ordered][:_MOST_NAMED])


def _row(axes: Axes, row: Mapping[str, Any], cost: str, mark: Mark, *, chosen: bool) -> Any:
    """Draw a row of the table with its interval."""
    value = row["accuracy"]
    return axes.errorbar(
        [row[cost]],
        [value],
        yerr=[[max(value - row["low"], 0)], [max(row["high"] - value, 0)]],
        color=mark.color,
        linestyle=mark.line,
        marker=mark.marker,
        markersize=9 if mark.marker == "*" else 7 if chosen else 5,
        markerfacecolor=SURFACE if mark.hollow else mark.color,
        markeredgecolor=mark.color if mark.hollow else SURFACE,
        markeredgewidth=1.3 if mark.hollow else 0.8,
        elinewidth=1.0 if chosen else 0.7,
        capsize=0,
        zorder=5 if chosen else 3,
    )


def level_of(result: Mapping[str, Any]) -> float | None:
    """Return the accuracy of the reference; None without one."""
    rows = rows_of(result["policies"][0])
    return next((row["accuracy"] for row in rows if row["name"] == result["reference"]), None)


def front_of(result: Mapping[str, Any], cost: str) -> list[tuple[float, float]]:
    """Return the Pareto front over every point of every policy but the bounds, as (cost, accuracy)."""
    return pareto_front(
        [
            (point[cost], point["accuracy"])
            for policy in result["policies"]
            if policy["family"] != "oracle"
            for point in policy["curve"]
            if point["accuracy"] is not None and point[cost] is not None
        ]
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (cost, accuracy) than which none is both as cheap and as accurate, in order of costs."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def _scales(axes: Axes, ends: Sequence[tuple[float, float, float]]) -> None:
    """Set limits and ticks: 1, 2, 5 steps on the logarithmic axis, percent on the other."""
    if not ends:
        axes.text(0.5, 0.5, "no graded answers", transform=axes.transAxes, ha="center", color=MUTED)
        axes.xaxis.set_major_locator(NullLocator())
        return
    costs = [x for x, _, _ in ends]
    axes.set_xlim(min(costs) / 1.3, max(costs) * 1.3)
    low, high = min(low for _, low, _ in ends), max(high for _, _, high in ends)
    room = max(0.06 * (high - low), 0.01)
    axes.set_ylim(max(low - room, -room), high + room)
    span = max(costs) / min(costs)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if span < 8 else (1, 2, 5) if span < 300 else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"))
    _percent_axis(axes)


def _percent_axis(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]))
    # No tick above 100 %: the room there is for intervals.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: "" if y > 1 + 1e-9 or y < -1e-9 else f"{100 * y:.4g} %"))


# -- pass@k ------------------------------------------------------------------------------------------------------------


def draw_pass_at_k(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the rows of pass@k, one line per policy with a band of one standard error on either side."""
    largest = max(row["k"] for row in rows)
    with matplotlib.rc_context(_STYLE):
        figure, grid = _figure(7.6, 4.9)
        axes = grid[0, 0]
        for policy in dict.fromkeys(row["policy"] for row in rows):
            mark, curve = mark_of_series(policy), [row for row in rows if row["policy"] == policy]
            ks, values, errors = (np.array([row[key] or 0.0 for row in curve]) for key in ("k", "pass_at_k", "stderr"))
            axes.fill_between(ks, values - errors, values + errors, color=mark.color, alpha=0.16, linewidth=0, zorder=2)
            marked = [k - 1 for k in shown_ks(curve[-1]["k"])]
            style = {"linestyle": mark.line, "marker": mark.marker, "markersize": 5, "markeredgecolor": SURFACE}
            axes.plot(ks, values, color=mark.color, markevery=marked, label=policy, zorder=3, **style)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(shown_ks(largest)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
        _percent_axis(axes)
        axes.set_xlabel("k, trajectories of a question")
        axes.set_ylabel("pass@k: at least one of them is right")
        axes.legend(loc="best")
    return figure
