"""The figure of pass@k, in the style of the report's figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from dps.analysis.metrics.pass_at_k import shown_ks
from dps.analysis.report import look
from dps.analysis.report.labels import Label, finish, plain_axes


def draw_pass_at_k(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw pass@k against k, one line per policy with a band of one standard error on either side.

    Args:
        rows: What :func:`dps.analysis.metrics.pass_at_k.curves` returned; at least one.
    """
    with matplotlib.rc_context(look.STYLE):
        figure = Figure(figsize=(7.6, 4.9), layout="constrained")
        FigureCanvasAgg(figure)
        panel = plain_axes(figure.add_subplot())
        axes = panel.axes
        for policy in dict.fromkeys(row["policy"] for row in rows):
            color, marker, line, name = look.SERIES.get(policy, (look.OTHER, "X", "-.", policy))
            curve = [row for row in rows if row["policy"] == policy]
            ks = [row["k"] for row in curve]
            values = np.array([row["pass_at_k"] for row in curve])
            error = np.array([row["stderr"] or 0.0 for row in curve])
            marked = [k - 1 for k in shown_ks(ks[-1])]
            axes.fill_between(ks, values - error, values + error, color=color, alpha=0.16, linewidth=0, zorder=2)
            axes.plot(
                ks,
                values,
                color=color,
                linestyle=line,
                linewidth=1.6,
                marker=marker,
                markersize=6,
                markevery=marked,
                markeredgecolor=look.SURFACE,
                markeredgewidth=0.9,
                zorder=3,
            )
            path = [(float(k), float(value)) for k, value in zip(ks, values, strict=True)]
            panel.points += [path[i] for i in marked]
            panel.lines.append(path)
            panel.bars += [(x, y - e, y + e) for (x, y), e in zip(path, error.tolist(), strict=True)]
            panel.labels.append(Label(name.removesuffix(", fixed k"), path, color, 9.5, "bold"))
        _scales(axes, rows)
        finish(figure, [panel])
    return figure


def _scales(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Set limits and ticks: powers of two, and percent."""
    largest = max(row["k"] for row in rows)
    axes.set_xscale("log", base=2)
    axes.set_xlim(2**-0.12, largest * 2**0.12)
    axes.xaxis.set_major_locator(FixedLocator(shown_ks(largest)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    low = min(row["pass_at_k"] - (row["stderr"] or 0.0) for row in rows)
    high = max(row["pass_at_k"] + (row["stderr"] or 0.0) for row in rows)
    room = max(0.08 * (high - low), 0.015)
    axes.set_ylim(low - room, high + 1.6 * room)
    axes.yaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]))
    # No tick above 100 %: the room there is for labels.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: "" if y > 1 + 1e-9 or y < -1e-9 else f"{100 * y:.4g} %"))
    axes.set_xlabel("k, trajectories of a question")
    axes.set_ylabel("pass@k: at least one of them is right")
