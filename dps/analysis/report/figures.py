"""The report's figures: accuracy against tokens and against time, and mixing, drawn from the report's dictionary.

One mark per policy with its standard error; the k's of a fixed series are joined by a line. Everything is labelled in
place, so that no legend has to be matched by colour. The same report gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from dps.analysis.report.labels import Label, Panel, finish, plain_axes
from dps.analysis.report.look import (
    CONTROLLER,
    CONTROLLER_MARKERS,
    GRID,
    MUTED,
    OTHER,
    POWER,
    RULE,
    RULE_MARKERS,
    SERIES,
    STYLE,
    SURFACE,
)
from dps.analysis.report.mixing import SMALL
from dps.analysis.report.words import group_of, nats, number, percent, seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SPARE_MARKERS = ("H", "s", "o", "v")
# Controllers often lie close together, so each label repeats its mark.
_SIGNS = dict(zip("^D*PX<>phdvHso", "▲◆★✚✖◀▶⬟⬢♦▼⬣■●", strict=True))


def draw_tokens(report: dict[str, Any]) -> Figure:
    """Draw accuracy against generated tokens per question, rejected ones included."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.9), layout="constrained")
        FigureCanvasAgg(figure)
        panel = _panel(figure.add_subplot(), report, "tokens")
        panel.axes.set_ylabel("accuracy")
        panel.axes.set_xlabel("generated tokens per question, rejected ones included")
        finish(figure, [panel])
    return figure


def draw_time(report: dict[str, Any]) -> Figure:
    """Draw accuracy against measured compute seconds and against latency, side by side."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.4, 4.7), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True)
        panels = [_panel(left, report, "compute_s"), _panel(right, report, "latency_s")]
        left.set_ylabel("accuracy")
        left.set_xlabel("compute seconds per question")
        right.set_xlabel("latency, seconds from admission to answer")
        finish(figure, panels)
    return figure


def draw_mixing(report: dict[str, Any]) -> Figure:
    """Draw acceptance by where a step cut, and log p over the steps of a stage; a row for each entry of ``mixing``."""
    entries = report["mixing"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.4, 4.2 * len(entries)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = []
        for entry, (left, right) in zip(entries, figure.subplots(len(entries), 2, squeeze=False), strict=True):
            panels += [_acceptance(left, entry), _trace(right, entry)]
            if len(entries) > 1:
                left.set_title(entry["store"], loc="left", fontsize=9.5, fontweight="bold")
        finish(figure, panels)
    return figure


# -- drawing -----------------------------------------------------------------------------------------------------------


def _panel(axes: Axes, report: dict[str, Any], cost: str) -> Panel:
    """Draw all policies of a report against one cost."""
    panel = Panel(axes, [], [], [], [])
    rows = [r for r in report["policies"] if r["accuracy"] is not None and r[cost] is not None and r[cost] > 0]
    axes.set_xscale("log")
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    reference = next((r for r in rows if r["policy"] == report["reference"]), None)
    if reference is not None:
        panel.level = reference["accuracy"]
        axes.axhline(panel.level, color=POWER, linewidth=0.8, alpha=0.45, zorder=1)
    for series in dict.fromkeys(r["series"] for r in rows if r["family"] == "fixed"):
        _curve(panel, series, [r for r in rows if r["series"] == series], cost)
    spare = iter(_SPARE_MARKERS)
    for row in (r for r in rows if r["family"] == "dynamic"):
        color = RULE if group_of(row) == "rule" else CONTROLLER
        marker = (CONTROLLER_MARKERS | RULE_MARKERS).get(row["policy"]) or next(spare, "o")
        _mark(panel, row, cost, color, marker, 12 if marker == "*" else 7.5)
        name = f"{_SIGNS[marker]} {row['policy']}"
        panel.labels.append(Label(name, [(row[cost], row["accuracy"])], color, 9.5, "bold", pinned=True))
    _scales(panel, rows, cost)
    return panel


def _curve(panel: Panel, series: str, rows: Sequence[dict[str, Any]], cost: str) -> None:
    """Draw a fixed series: a line through its k's, each labelled with its number, and its name."""
    color, marker, line, name = SERIES.get(series, (OTHER, "X", "-.", series))
    rows = sorted(rows, key=lambda r: r["k"])
    path = [(r[cost], r["accuracy"]) for r in rows]
    panel.axes.plot(*zip(*path, strict=True), color=color, linestyle=line, linewidth=1.6, zorder=2)
    panel.lines.append(path)
    for row in rows:
        _mark(panel, row, cost, color, marker, 6)
        panel.labels.append(Label(f"{row['k']}", [(row[cost], row["accuracy"])], color, 8))
    panel.labels.append(Label(name, path, color, 9.5, "bold"))


def _mark(panel: Panel, row: dict[str, Any], cost: str, color: str, marker: str, size: float) -> None:
    x, y, error = row[cost], row["accuracy"], row["accuracy_stderr"] or 0.0
    panel.axes.errorbar(
        [x],
        [y],
        yerr=[error],
        color=color,
        marker=marker,
        markersize=size,
        markeredgecolor=SURFACE,
        markeredgewidth=0.9,
        elinewidth=1.0,
        capsize=0,
        zorder=5 if row["family"] == "dynamic" else 3,
    )
    panel.points.append((x, y))
    panel.bars.append((x, y - error, y + error))


def _acceptance(axes: Axes, entry: dict[str, Any]) -> Panel:
    """Draw the acceptance in tenths of the response that a step kept."""
    panel = plain_axes(axes)
    bins = [row for row in entry["acceptance_by_cut"] if row["acceptance"] is not None]
    path = [((row["low"] + row["high"]) / 2, row["acceptance"]) for row in bins]
    errors = [row["acceptance_stderr"] or 0.0 for row in bins]
    panel.level = entry["acceptance"]
    axes.axhline(panel.level, color=POWER, linewidth=0.8, alpha=0.45, zorder=1)
    axes.errorbar(
        *zip(*path, strict=True),
        yerr=errors,
        color=POWER,
        marker="o",
        markersize=6,
        markeredgecolor=SURFACE,
        markeredgewidth=0.9,
        linewidth=1.6,
        elinewidth=1.0,
        capsize=0,
        zorder=3,
    )
    panel.points, panel.lines = path, [path]
    panel.bars = [(x, y - error, y + error) for (x, y), error in zip(path, errors, strict=True)]
    spots = [(x, panel.level) for x in np.linspace(0.1, 0.9, 17).tolist()]
    panel.labels.append(Label(f"all steps {percent(panel.level)}", spots, POWER, 8))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, min(1.02, 1.15 * max(high for _, _, high in panel.bars) + 0.02))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.4g} %"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g} %"))
    axes.set_xlabel("share of the response that the step kept")
    axes.set_ylabel("acceptance")
    return panel


def _trace(axes: Axes, entry: dict[str, Any]) -> Panel:
    """Draw the mean change of log p over the steps of a stage, and what would be a small change of its second half."""
    panel = plain_axes(axes)
    axes.set_xlabel("Metropolis-Hastings step of a stage")
    axes.set_ylabel("log p minus that after the first step, nats")
    last, every = entry["trace_last_stage"], entry["trace_all_stages"]
    if len(every) < 2:
        axes.text(0.5, 0.5, "one step a stage: no trace", transform=axes.transAxes, ha="center", color=MUTED)
        axes.xaxis.set_major_locator(NullLocator())
        axes.yaxis.set_major_locator(NullLocator())
        return panel
    curves = [("every stage", every, OTHER, "s", "--")] if every != last else []
    curves.append(("last stage of a chain", last, POWER, "o", "-"))  # above the other
    for name, rows, color, marker, line in curves:
        steps = [row["step"] for row in rows]
        change = np.array([row["logprob_change"] for row in rows])
        error = np.array([row["logprob_change_stderr"] or 0.0 for row in rows])
        axes.fill_between(steps, change - error, change + error, color=color, alpha=0.16, linewidth=0, zorder=2)
        axes.plot(
            steps,
            change,
            color=color,
            linestyle=line,
            marker=marker,
            markersize=5,
            linewidth=1.6,
            markeredgecolor=SURFACE,
            markeredgewidth=0.9,
            zorder=3,
        )
        path = [(float(x), float(y)) for x, y in zip(steps, change, strict=True)]
        panel.points += path
        panel.lines.append(path)
        panel.bars += [(x, y - e, y + e) for (x, y), e in zip(path, error.tolist(), strict=True)]
        panel.labels.append(Label(name, path[1:], color, 9.5, "bold"))
    low, high = min(bar[1] for bar in panel.bars), max(bar[2] for bar in panel.bars)
    room = 0.12 * max(high - low, 1e-3)
    axes.set_ylim(low - room, high + 2 * room)
    axes.set_xlim(1 - 0.03 * len(every), len(every) + 0.05 * len(every))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    ended = entry["last_stage"]
    if ended["spread"] is not None and ended["least_steps"] == ended["most_steps"]:
        half = ended["most_steps"] // 2
        middle, reach = last[half - 1]["logprob_change"], SMALL * ended["spread"]
        axes.fill_between([half, len(last)], middle - reach, middle + reach, color=GRID, linewidth=0, zorder=0.5)
        edges = [(float(x), y) for x in np.linspace(half, len(last), 9) for y in (middle - reach, middle + reach)]
        inside = [edge for edge in edges if low - room < edge[1] < high + 2 * room]
        if inside:
            panel.labels.append(Label(f"{100 * SMALL:.0f} % of the spread around step {half}", inside, MUTED, 8))
    return panel


def _scales(panel: Panel, rows: Sequence[dict[str, Any]], cost: str) -> None:
    """Set limits and ticks: 1, 2, 5 steps on the logarithmic axis, percent on the other."""
    axes = panel.axes
    if not rows:
        axes.text(0.5, 0.5, "no graded answers", transform=axes.transAxes, ha="center", color=MUTED)
        axes.xaxis.set_major_locator(NullLocator())
        return
    costs = [r[cost] for r in rows]
    axes.set_xlim(min(costs) / 1.35, max(costs) * 1.35)
    low, high = min(b[1] for b in panel.bars), max(b[2] for b in panel.bars)
    room = max(0.08 * (high - low), 0.015)
    axes.set_ylim(low - room, high + 1.6 * room)
    decades = np.log10(max(costs) / min(costs))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]))
    # No tick above 100 %: the room there is for labels.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: "" if y > 1 + 1e-9 or y < -1e-9 else f"{100 * y:.4g} %"))


def describe_mixing(entry: dict[str, Any]) -> str:
    """Return one row of the figure on mixing in words."""
    kept = ", ".join(
        f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %: {percent(row['acceptance'])}"
        for row in entry["acceptance_by_cut"]
    )
    steps = ", ".join(f"{row['step']}: {nats(row['logprob_change'])}" for row in entry["trace_last_stage"])
    return f"Acceptance by the share that was kept, {kept}. Change of log p by step of a chain's last stage, {steps}."


def describe(report: dict[str, Any], cost: str) -> str:
    """Return a figure's content in words, for readers who do not see it."""
    unit = {"tokens": number, "compute_s": seconds, "latency_s": seconds}[cost]
    return "; ".join(
        f"{r['policy']}: {100 * r['accuracy']:.1f} % at {unit(r[cost])}"
        for r in report["policies"]
        if r["accuracy"] is not None and r[cost] is not None
    )
