"""The static figures of a replay: accuracy against tokens with every policy's interval, and one panel for each run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from dps.analysis.report.labels import Label, Panel, finish, plain_axes
from dps.analysis.report.look import GRID, INK, POWER, SERIES, STYLE, SURFACE
from dps.analysis.report.replays.marks import Mark, marks_of
from dps.analysis.report.replays.views import front_of_curves, operating_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_replay(report: Mapping[str, Any]) -> Figure:
    """Draw accuracy against tokens: every policy of a replay with its 95 % interval, and the Pareto front."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 6.0), layout="constrained")
        FigureCanvasAgg(figure)
        panel = _panel(figure.add_subplot(), report, marks_of(report["policies"]))
        panel.axes.set_ylabel("accuracy")
        finish(figure, [panel])
    return figure


def draw_replays(reports: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw several replays, two panels a row, every policy in the same marks everywhere."""
    marks = marks_of([policy for report in reports.values() for policy in report["policies"]])
    columns = min(2, len(reports))
    lines = -(-len(reports) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4 * columns, 4.9 * lines), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        panels = []
        for axes, (name, report) in zip(grid, reports.items(), strict=False):
            panels.append(_panel(axes, report, marks))
            axes.set_title(name, loc="left", fontsize=9.5, fontweight="bold")
        for axes in grid[len(reports) :]:
            axes.set_axis_off()
        for axes in grid[::columns]:
            axes.set_ylabel("accuracy")
        finish(figure, panels)
    return figure


def _panel(axes: Axes, report: Mapping[str, Any], marks: Mapping[str, Mark]) -> Panel:
    """Draw all policies of a replay against tokens."""
    panel = plain_axes(axes)
    axes.set_xscale("log")
    rows = operating_rows(report)
    axes.plot(
        *zip(*front_of_curves(report), strict=True), color=INK, alpha=0.1, linewidth=7, solid_capstyle="round", zorder=1
    )
    panel.level = report["policies"][0]["curve"][-1]["accuracy"]
    axes.axhline(panel.level, color=POWER, linewidth=0.8, alpha=0.45, zorder=1)
    for policy in report["policies"]:
        mark = marks[policy["policy"]]
        path = [(point["tokens"], point["accuracy"]) for point in policy["curve"]]
        x, y = zip(*path, strict=True)
        low, high = [p["low"] for p in policy["curve"]], [p["high"] for p in policy["curve"]]
        if policy["kind"] == "fixed":  # the bands of all would cover one another; these show how wide they are
            axes.fill_between(x, low, high, color=mark.color, alpha=0.07, linewidth=0, zorder=0.5)
        axes.plot(x, y, color=mark.color, linestyle=mark.line, linewidth=1.2, zorder=2)
        panel.lines.append(path)
        panel.bars += list(zip(x, low, high, strict=True))
        for row in (row for row in rows if row["policy"] == policy["policy"]):
            _point(panel, row, mark)
        if policy["kind"] == "fixed":
            name = SERIES[policy["series"]][3] if policy["series"] in SERIES else policy["policy"]
            panel.labels.append(Label(name, path, mark.color, 9, "bold"))
            panel.labels += [
                Label(f"{point['threshold']:g}", [at], mark.color, 7.5)
                for point, at in zip(policy["curve"], path, strict=True)
            ]
    _scales(panel)
    return panel


def _point(panel: Panel, row: Mapping[str, Any], mark: Mark) -> None:
    """Draw a row of the table with its interval, and name it."""
    x, accuracy = row["tokens"], row["accuracy"]
    named = row["thresholds"] is not None or row["kind"] == "oracle"
    panel.axes.errorbar(
        [x],
        [accuracy["value"]],
        yerr=[[max(accuracy["value"] - accuracy["low"], 0)], [max(accuracy["high"] - accuracy["value"], 0)]],
        color=mark.color,
        marker=mark.marker,
        markersize=9 if mark.marker == "*" else 7 if named else 5,
        markerfacecolor=SURFACE if mark.hollow else mark.color,
        markeredgecolor=mark.color if mark.hollow else SURFACE,
        markeredgewidth=1.3 if mark.hollow else 0.8,
        elinewidth=1.0 if named else 0.7,
        capsize=0,
        zorder=5 if named else 3,
    )
    panel.points.append((x, accuracy["value"]))
    if named:
        panel.labels.append(Label(row["name"], [(x, accuracy["value"])], mark.color, 8, "bold", pinned=True))


def _scales(panel: Panel) -> None:
    """Set limits and ticks: 1, 2, 5 steps on the logarithmic axis, percent on the other."""
    axes = panel.axes
    costs = [x for x, _ in panel.points]
    axes.set_xlim(min(costs) / 1.3, max(costs) * 1.6)
    low, high = min(low for _, low, _ in panel.bars), max(high for _, _, high in panel.bars)
    room = max(0.06 * (high - low), 0.01)
    axes.set_ylim(max(low - room, -room), high + 1.4 * room)
    span = max(costs) / min(costs)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if span < 8 else (1, 2, 5) if span < 300 else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: "" if y > 1 + 1e-9 or y < -1e-9 else f"{100 * y:.4g} %"))
    axes.set_xlabel("generated tokens per question, rejected ones included")
    axes.grid(True, color=GRID, linewidth=0.8)


def describe(report: Mapping[str, Any]) -> str:
    """Return the figure's content in words, for readers who do not see it."""
    return "; ".join(
        f"{row['name']}: {100 * row['accuracy']['value']:.1f} % at {row['tokens']:,.0f} tokens"
        for row in operating_rows(report)
    )
