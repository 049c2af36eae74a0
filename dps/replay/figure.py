"""The figure of a replay: all policies over tokens, and the dynamic ones against the largest k, in pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dps.report.figures import CONTROLLER, GRID, LOWTEMP, MUTED, OTHER, PLAIN, POWER, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SERIES = {"power": POWER, "plain": PLAIN, "lowtemp": LOWTEMP}
_MARKERS = "^D*PX<>"
_TICKS = "|x+1234"
_DASHES = ((0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1.2, 1.2)), (0, (6, 2, 1, 2)), (0, (4, 3)), (0, (2, 2)))


def draw(report: Mapping[str, Any]) -> Figure:
    """Draw a replay: what `replay.json` holds. The same report gives the same bytes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12.4, 6.2), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        for axes in (left, right):
            axes.grid(True, color=GRID, linewidth=0.6)
            axes.set_axisbelow(True)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        _everything(left, report)
        _paired(right, report)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure


def _styled(report: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Yield each policy with its colour, line and marker; what a colour says, line and marker say again."""
    controllers = rules = 0
    for policy in report["policies"]:
        kind, series = policy["kind"], policy["series"]
        if kind == "controller":
            line = "-" if controllers == 0 else _DASHES[controllers % len(_DASHES)]
            marker = _MARKERS[controllers % len(_MARKERS)]
            controllers += 1
            yield policy, {"color": CONTROLLER, "linestyle": line, "marker": marker, "linewidth": 1.7}
        elif kind in ("rule", "chance") and series == "power":
            color, marker = MUTED if kind == "rule" else "#a9aeb4", _TICKS[rules % len(_TICKS)]
            yield (
                policy,
                {"color": color, "linestyle": _DASHES[rules % len(_DASHES)], "marker": marker, "linewidth": 1.0},
            )
            rules += 1
        elif kind == "oracle":
            yield policy, {"color": OTHER, "linestyle": "none", "marker": "*", "linewidth": 1.0}
        else:
            line, marker = ("-", "o") if kind == "fixed" else (":", "v")
            yield policy, {"color": _SERIES.get(series, OTHER), "linestyle": line, "marker": marker, "linewidth": 1.6}


def _everything(axes: Axes, report: Mapping[str, Any]) -> None:
    """Draw accuracy over tokens: every curve, the k's of fixed policies with their intervals, operating points."""
    axes.set_xscale("log")
    for policy, style in _styled(report):
        points = policy["curve"]
        tokens, accuracy = [p["tokens"] for p in points], [p["accuracy"] for p in points]
        if policy["kind"] == "fixed":
            errors = np.array([_whiskers(p["accuracy"], p["low"], p["high"]) for p in points]).T
            name = "power sampling, fixed k" if policy["series"] == "power" else f"{policy['series']}, fixed k"
            axes.errorbar(tokens, accuracy, errors, markersize=4.5, elinewidth=0.8, capsize=2, label=name, **style)
        elif policy["kind"] == "oracle":
            axes.plot(tokens, accuracy, markersize=11, label="oracle: the smallest k that is right", **style)
        else:
            at = policy["operating_point"]
            axes.plot(tokens, accuracy, **{**style, "marker": None}, zorder=2.2)
            axes.plot(at["tokens"]["value"], at["accuracy"]["value"], markersize=7, label=policy["policy"], **style)
    axes.set_ylabel("accuracy")
    axes.set_xlabel("generated tokens per question, rejected ones included")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _paired(axes: Axes, report: Mapping[str, Any]) -> None:
    """Draw the accuracy difference against the largest k over the share of its tokens, with paired intervals."""
    reference = report["policies"][0]["curve"][-1]
    for policy, style in _styled(report):
        if policy["series"] != "power" or policy["kind"] == "oracle":
            continue
        shares = [p["tokens"] / reference["tokens"] for p in policy["curve"]]
        differences = [100 * (p["accuracy"] - reference["accuracy"]) for p in policy["curve"]]
        if policy["kind"] == "fixed":
            axes.plot(shares, differences, markersize=4.5, zorder=2.1, **style)
            continue
        axes.plot(shares, differences, **{**style, "marker": None}, zorder=2.2)
        at, gap = policy["operating_point"]["tokens_ratio"], policy["operating_point"]["accuracy_difference"]
        value, low, high = (100 * gap[name] for name in ("value", "low", "high"))
        axes.errorbar(
            at["value"],
            value,
            [[length] for length in _whiskers(value, low, high)],
            markersize=7,
            elinewidth=0.8,
            capsize=2,
            zorder=3,
            **style,
        )
    margin = 100 * report["margin"]
    axes.axhspan(-margin, 0, color=GRID, alpha=0.45, linewidth=0, zorder=0)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    last = report["ks"][-1]
    axes.set_ylabel(f"accuracy minus that of k = {last}, points (paired intervals)")
    axes.set_xlabel(f"share of the tokens of k = {last}; shaded: within {margin:g} point{'' if margin == 1 else 's'}")


def _whiskers(value: float, low: float, high: float) -> tuple[float, float]:
    """Return how far an interval reaches below and above its value; where it has no width, rounding leaves none."""
    return max(0.0, value - low), max(0.0, high - value)
