"""The interactive figures of a page: their data, and Vega-Lite specifications that the page's script draws.

Vega-Lite and its runtime come from the Python package vl-convert-python and stand in the page, which so needs no net.
Plotly would do the same with five times as many bytes a page, and has to evaluate text as code for some of its marks;
Vega has an interpreter, so the page's Content-Security-Policy can forbid that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from dps.analysis import words
from dps.analysis.figures import COST_WORDS, front_of, level_of, named_of

COSTS = {"tokens": "tokens", "calibrated_s": "seconds", "compute_s": "compute", "latency_s": "latency"}
"""Costs that the figure can show, with the words of its buttons."""
LABELS = {"no_gain": "no larger k gains", "correct": "the answer is right"}
"""What ``p_enough`` is compared with."""
_COLORS = ("var(--power)", "var(--plain)")
_KEPT = ("accuracy", "low", "high", "threshold", "mean_k", *COSTS)
_TOLD = {"policy": "name", "series": "series"}
"""What says in a recommendation which policy it is, and in a result."""
Result = Mapping[str, Any]


@cache
def runtime() -> str:
    """Return the JavaScript of Vega, Vega-Lite and vega-embed, which defines ``vegaEmbed``."""
    import vl_convert

    return vl_convert.javascript_bundle()


def group_of(policy: Mapping[str, Any]) -> str:
    """Return the family of a policy that a reader switches on and off: bounds and chance are one."""
    return "bound" if policy["family"] in ("chance", "oracle") else str(policy["family"])


# -- accuracy against costs --------------------------------------------------------------------------------------------


def curves(
    results: Mapping[str, Result], marks: Mapping[str, Mapping[str, Any]], told: Mapping[str, Mapping[str, Any] | None]
) -> dict[str, Any]:
    """Return what the script draws accuracy against costs from.

    ``points`` are all points of all policies with their ``run``; those ``on_curve`` are joined by a line, those that
    are rows of the table have a ``name``. ``costs`` are the ones that every point has, and questions per hour (without
    a clock per million tokens). ``told`` are the tiles of the runs, whose policies stand out.
    """
    points = [p for run, result in results.items() for policy in result["policies"] for p in _points(run, policy)]
    costs = [name for name in COSTS if points and all(point[name] is not None for point in points)]
    axes = [{"name": COSTS[cost], "of": cost, "axis": COST_WORDS[cost]} for cost in costs]
    if axes:
        timed = "calibrated_s" in costs
        axes.append(
            {
                "name": "questions",
                "of": "calibrated_s" if timed else "tokens",
                "per": 3600 if timed else 1e6,
                "axis": "questions an hour, calibrated" if timed else "questions per million tokens",
            }
        )
    return {
        "costs": axes,
        "points": points,
        "policies": marks,
        "runs": [
            {
                "name": run,
                "level": level_of(result),
                "reference": result["reference"],
                "fronts": {cost: front_of(result, cost) for cost in costs},
                "told": None if (one := told[run]) is None else {key: _short(one["point"].get(key)) for key in _KEPT},
            }
            for run, result in results.items()
        ],
    }


def legend(results: Mapping[str, Result]) -> list[dict[str, Any]]:
    """Return the policies of all runs in order, with what the controls of the figure choose by."""
    decide = set().union(*(named_of(result) for result in results.values()))
    entries: dict[str, dict[str, Any]] = {}
    for result in results.values():
        for policy in result["policies"]:
            label = policy["policy"]
            told = result["recommendation"] or {"name": None, "policy": {"policy": None, "series": None}}
            is_told = label == told["name"] or all(told["policy"][key] == policy[of] for key, of in _TOLD.items())
            shown = label in decide or is_told
            entries.setdefault(
                label, {"name": label, "group": group_of(policy), "series": policy["series"], "decides": shown}
            )
    return list(entries.values())


def _points(run: str, policy: Mapping[str, Any]) -> list[dict[str, Any]]:
    chosen = policy["operating_point"]
    shown = [(point, len(policy["curve"]) > 1 or chosen is None, None) for point in policy["curve"]]
    if chosen is not None:
        shown = [*(one for one in shown if one[1]), (chosen, False, chosen)]
    return [
        {
            "run": run,
            "policy": policy["policy"],
            "name": point["name"] if chosen is None or at else None,
            "on_curve": on_curve,
            "setting": _setting(policy, point, at),
            **{key: _short(point.get(key)) for key in _KEPT},
        }
        for point, on_curve, at in shown
        if point["accuracy"] is not None
    ]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _setting(policy: Mapping[str, Any], point: Mapping[str, Any], chosen: Mapping[str, Any] | None) -> str:
    if chosen is not None:
        at = words.thresholds(chosen["thresholds"] or [])
        return "operating point" + (f", threshold {at}" if at else "")
    if point["threshold"] is None:
        return ""
    if policy["family"] == "fixed":
        return f"{point['threshold']:g} response{'' if point['threshold'] == 1 else 's'}"
    if policy["family"] == "oracle":
        return f"going on pays at {point['threshold']:.3g} points per 1,000 tokens"
    return f"threshold {point['threshold']:.3g}"


# -- calibration and mixing --------------------------------------------------------------------------------------------


def _axis(field: str, title: str, form: str = "~g", **scale: Any) -> dict[str, Any]:
    axis = {"format": form, "labelOverlap": True}
    return {"field": field, "type": "quantitative", "title": title, "axis": axis, "scale": {"zero": False, **scale}}


def _kinds(names: Sequence[str], **legend: Any) -> dict[str, Any]:
    scale = {"domain": [*names], "range": list(_COLORS[: len(names)])}
    return {"field": "kind", "type": "nominal", "scale": scale, "title": None, "legend": {"orient": "top", **legend}}


def _with_errors(rows: Sequence[dict[str, Any]], x: Any, y: Any, names: Sequence[str], *more: Any) -> dict[str, Any]:
    """Return a specification of lines with 95 % intervals or standard errors, ``low`` to ``high``, by ``kind``."""
    ends = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    tips = (
        [{"field": key, "type": "quantitative", "format": ".4~g"} for key in rows[0] if key != "kind"] if rows else []
    )
    return {
        "data": {"values": [{key: _short(v) if key != "kind" else v for key, v in row.items()} for row in rows]},
        "encoding": {"x": x, "color": _kinds(names, columns=1)},
        "layer": [
            *more,
            {"mark": "rule", "encoding": ends},
            {"mark": {"type": "line", "strokeWidth": 1.4}, "encoding": {"y": y}},
            {
                "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
                "encoding": {
                    "y": y,
                    "shape": {"field": "kind", "scale": {"domain": [*names], "range": ["circle", "square"]}},
                    "tooltip": tips,
                },
            },
        ],
    }


def calibration(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reliability of one policy: how often each label came true over ``p_enough``, in quantile bins."""
    rows = [
        {"kind": text, "p_enough": cell["p_enough"], "share": cell[name]["value"], "rows": cell["count"]}
        | {end: cell[name][end] for end in ("low", "high")}
        for name, text in LABELS.items()
        for cell in entry["bins"]
    ]
    x, y = _axis("p_enough", "p_enough", ".0%", domain=[0, 1]), _axis("share", "came true", ".0%", domain=[0, 1])
    diagonal = {
        "data": {"values": [{"p_enough": 0, "share": 0}, {"p_enough": 1, "share": 1}]},
        "mark": {"type": "line", "strokeDash": [3, 3], "color": "var(--muted)", "strokeWidth": 1},
        "encoding": {"x": x, "y": y, "color": {"value": "var(--muted)"}},
    }
    return {"height": 190, **_with_errors(rows, x, y, list(LABELS.values()), diagonal)}


def mixing(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the figures of one entry of ``mixing`` by their titles; without several steps, there is no second."""
    kept = [
        {"kind": "steps", "kept": (row["low"] + row["high"]) / 2, **_band(row, "acceptance")}
        for row in entry["acceptance_by_cut"]
        if row["acceptance"] is not None
    ]
    y = _axis("acceptance", "accepted", ".0%", domainMin=0)
    accepted = _with_errors(
        kept, _axis("kept", "share of the response that the step kept", ".0%", domain=[0, 1]), y, ()
    )
    accepted["encoding"]["color"] = {"value": _COLORS[0]}
    accepted["layer"][-1]["encoding"].pop("shape")
    figures = {"Accepted steps by how much of the response they kept": {"height": 240, **accepted}}
    traces = {"last stage of a chain": entry["trace_last_stage"], "every stage": entry["trace_all_stages"]}
    if len(entry["trace_all_stages"]) > 1:
        rows = [
            {"kind": kind, "step": row["step"], **_band(row, "logprob_change")}
            for kind, of in traces.items()
            for row in of
        ]
        x = _axis("step", "Metropolis-Hastings step of a stage", "d")
        x["axis"]["tickMinStep"] = 1
        y = _axis("logprob_change", "log p since the first step, nats")
        changes = _with_errors(rows, x, y, list(traces))
        figures["How log p changes over the steps of a stage"] = {"height": 240, **changes}
    return figures


def _band(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    error = row[f"{name}_stderr"] or 0.0
    return {name: row[name], "low": row[name] - error, "high": row[name] + error}
