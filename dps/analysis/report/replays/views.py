"""The numbers of a replay as rows of tables and points of curves: pure functions of what ``replay.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dps.analysis.report import words

GROUPS = {
    "fixed": "Power sampling, fixed k",
    "controller": "Power sampling, a trained controller decides k",
    "rule": "Power sampling, a rule without training decides k",
    "bound": "Bounds: by chance, and with the answer known",
    "cheap": "Self-consistency over cheap samples",
}
"""Headings of the table, in order."""
_GROUP_OF_KIND = {"fixed": "fixed", "controller": "controller", "rule": "rule", "chance": "bound", "oracle": "bound"}


def group_of(policy: Mapping[str, Any]) -> str:
    """Return which of :data:`GROUPS` a policy belongs to."""
    return _GROUP_OF_KIND[policy["kind"]] if policy["series"] == "power" else "cheap"


def operating_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each operating point, each k of fixed policies, and the oracle, with whether it is on the front.

    A row has ``policy`` (as the curve is named), ``name`` (as the row is), ``group``, ``accuracy``, ``tokens``,
    ``calibrated_s``, ``difference``, ``ratio`` and ``time_ratio`` (intervals), ``mean_k``, ``accepted``, ``shares``,
    ``thresholds`` and ``no_loss`` (both None where nothing was chosen) and ``front``.
    """
    rows = []
    for policy in report["policies"]:
        at = policy.get("operating_point")
        shared = {"policy": policy["policy"], "kind": policy["kind"], "group": group_of(policy)}
        if at is not None:
            seconds = None
            if report["clock"] is not None:
                clock = report["clock"]
                seconds = at["tokens"]["value"] * clock["seconds_per_token"] + clock["prefill_s"]
            rows.append(
                {
                    **shared,
                    "name": policy["policy"],
                    "accuracy": at["accuracy"],
                    "tokens": at["tokens"]["value"],
                    "calibrated_s": seconds,
                    "difference": at["accuracy_difference"],
                    "ratio": at["tokens_ratio"],
                    "time_ratio": at["time_ratio"],
                    "mean_k": at["mean_k"],
                    "accepted": at["accepted"],
                    "shares": at["share_at_k"],
                    "thresholds": at["thresholds"],
                    "no_loss": at["no_loss"],
                }
            )
            continue
        for point in policy["curve"]:
            series = "fixed" if policy["series"] == "power" else policy["series"]
            rows.append(
                {
                    **shared,
                    "name": policy["policy"] if policy["kind"] == "oracle" else f"{series}-k{point['threshold']:g}",
                    "accuracy": {"value": point["accuracy"], "low": point["low"], "high": point["high"]},
                    "tokens": point["tokens"],
                    "calibrated_s": point["calibrated_s"],
                    "difference": point["accuracy_difference"],
                    "ratio": point["tokens_ratio"],
                    "time_ratio": point["time_ratio"],
                    "mean_k": point["mean_k"],
                    "accepted": point["accepted"],
                    "shares": None,
                    "thresholds": None,
                    "no_loss": None,
                }
            )
    front = pareto_front([(row["tokens"], row["accuracy"]["value"]) for row in rows if row["kind"] != "oracle"])
    for row in rows:
        row["front"] = row["kind"] != "oracle" and (row["tokens"], row["accuracy"]["value"]) in front
    return rows


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (tokens, accuracy) than which none is both as cheap and as accurate, in order of tokens."""
    front: list[tuple[float, float]] = []
    for tokens, accuracy in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if not front or accuracy > front[-1][1]:
            front.append((tokens, accuracy))
    return front


def front_of_curves(report: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return the Pareto front over every point of every policy but the oracle, as (tokens, accuracy)."""
    return pareto_front(
        [
            (point["tokens"], point["accuracy"])
            for policy in report["policies"]
            if policy["kind"] != "oracle"
            for point in policy["curve"]
        ]
    )


def grouped(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the rows under their headings; groups without rows are left out."""
    found = [(heading, [row for row in rows if row["group"] == name]) for name, heading in GROUPS.items()]
    return [(heading, members) for heading, members in found if members]


def curves(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every policy's points, with what is said of each: ``[tokens, seconds, accuracy, low, high, text]``.

    ``at`` is the operating point in the same form, None where there is none; ``marked`` says that every point of the
    curve is a policy of its own (a fixed k).
    """
    found = []
    for policy in report["policies"]:
        at = policy.get("operating_point")
        row = next((r for r in operating_rows(report) if at is not None and r["policy"] == policy["policy"]), None)
        found.append(
            {
                "name": policy["policy"],
                "group": group_of(policy),
                "marked": policy["kind"] in ("fixed", "oracle"),
                "points": [_point(policy, point) for point in policy["curve"]],
                "at": None if row is None else _chosen(row),
            }
        )
    return found


def _point(policy: Mapping[str, Any], point: Mapping[str, Any]) -> list[Any]:
    what = ""
    if policy["kind"] == "fixed":
        what = f"k = {point['threshold']:g}"
    elif policy["kind"] == "oracle":
        what = "smallest k that is right"
    elif point["threshold"] is not None:
        what = f"threshold {point['threshold']:.3g}"
    text = [what, *_cost(point["tokens"], point["calibrated_s"], point["mean_k"])]
    return [
        *(point[name] for name in ("tokens", "calibrated_s", "accuracy", "low", "high")),
        [percent_interval(point, "accuracy"), *text],
    ]


def _chosen(row: Mapping[str, Any]) -> list[Any]:
    accuracy = row["accuracy"]
    text = [
        percent_interval(accuracy),
        f"operating point, threshold {thresholds(row['thresholds'])}",
        *_cost(row["tokens"], row["calibrated_s"], row["mean_k"]),
        f"{words.interval(row['ratio'])} of the tokens, {words.points_interval(row['difference'])} points against the "
        "largest k",
    ]
    return [row["tokens"], row["calibrated_s"], *(accuracy[name] for name in ("value", "low", "high")), text]


def _cost(tokens: float, seconds: float | None, mean_k: float) -> list[str]:
    time = "" if seconds is None else f", {words.seconds(seconds)} s"
    return [f"{words.number(tokens)} tokens{time}, mean k {mean_k:.2f}"]


def percent_interval(entry: Mapping[str, Any], name: str = "value") -> str:
    """Return an accuracy with its interval: ``36.1 % [33.8, 38.4]``."""
    return f"{100 * entry[name]:.1f} % [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"


def thresholds(values: Sequence[float]) -> str:
    """Return the thresholds of the folds to two digits: one value, or the smallest and the largest."""
    low, high = f"{min(values):.2g}".replace("-", "−"), f"{max(values):.2g}".replace("-", "−")
    return low if low == high else f"{low}–{high}"


def matched(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the comparisons at equal tokens by policy, with how many rivals it beats, loses to, equals, or neither."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in report["matched_tokens"]:
        found.setdefault(entry["policy"], []).append(entry)
    return [
        {
            "policy": name,
            "rivals": entries,
            "same": (same := sum(is_nothing(e["difference"]) for e in entries)),
            **{verdict: sum(e["verdict"] == verdict for e in entries) for verdict in ("above", "below")},
            "undecided": sum(e["verdict"] == "undecided" for e in entries) - same,
        }
        for name, entries in found.items()
    ]


def is_nothing(difference: Mapping[str, Any]) -> bool:
    """Return whether a difference is 0, but for rounding, in every resample: both are the same on every question."""
    return max(abs(difference["low"]), abs(difference["high"])) < 1e-9


def mcnemar_table(report: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[Mapping[str, Any] | None]]]]:
    """Return the names of the columns and, for each policy, its test against every earlier one (None: not tested)."""
    tests = {(t["policy"], t["rival"]): t for t in report["mcnemar"]}
    names = list(dict.fromkeys(name for t in report["mcnemar"] for name in (t["rival"], t["policy"])))
    return names[:-1], [(name, [tests.get((name, other)) for other in names[:-1]]) for name in names[1:]]


def spending(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return where each policy's tokens and time go, at its operating point or at the largest k.

    ``accepted`` are the tokens of a question's responses, ``others`` all else that was drawn for it, ``prefill`` is the
    share of its time that goes into reading the prompt (None without a clock), ``share`` the others' share, ``width``
    the tokens against the most of all.
    """
    rows = operating_rows(report)
    last: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["kind"] != "oracle":
            last[row["policy"]] = row
    most = max(row["tokens"] for row in last.values())
    clock = report["clock"]
    return [
        {
            "name": row["name"],
            "accepted": row["accepted"],
            "others": row["tokens"] - row["accepted"],
            "share": 1 - row["accepted"] / row["tokens"],
            "width": row["tokens"] / most,
            "seconds": row["calibrated_s"],
            "prefill": None if clock is None else clock["prefill_s"] / row["calibrated_s"],
        }
        for row in last.values()
    ]


def with_seconds(report: Mapping[str, Any], tokens: float, accuracy: float) -> list[float | None]:
    """Return a point as tokens, calibrated seconds (None without a clock) and accuracy."""
    clock = report["clock"]
    seconds = None if clock is None else tokens * clock["seconds_per_token"] + clock["prefill_s"]
    return [tokens, seconds, accuracy]


def side_by_side(reports: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, list[Any]]]]]:
    """Return the rows of several replays under their headings: each row's name and its row in every run, or None."""
    of_run = {name: {row["name"]: row for row in operating_rows(report)} for name, report in reports.items()}
    found: dict[str, dict[str, list[Any]]] = {group: {} for group in GROUPS}
    for rows in of_run.values():
        for name, row in rows.items():
            found[row["group"]][name] = [others.get(name) for others in of_run.values()]
    return [(GROUPS[group], sorted(rows.items(), key=_by_k)) for group, rows in found.items() if rows]


def _by_k(entry: tuple[str, list[Any]]) -> tuple[str, float]:
    """Return what sorts rows: fixed k by source and k, then the others as they come."""
    row = next(row for row in entry[1] if row is not None)
    return (row["policy"], row["mean_k"]) if row["kind"] == "fixed" else ("\uffff", 0.0)
