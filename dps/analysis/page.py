"""The page of a result, or of several: dictionaries and figures go in, HTML that needs nothing else comes out.

Scripts are in the page, and its Content-Security-Policy names their digests: nothing else runs, nothing is loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dps.analysis import words
from dps.analysis.figures import COST_WORDS, describe, describe_mixing, front_of, level_of, named_of, pareto_front
from dps.analysis.findings import rows_of
from dps.analysis.marks import VARIABLES, marks_of
from dps.analysis.mixing import FROZEN, SMALL

_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPTS = ("theme.js", "curves.js", "questions.js")
GROUPS = {
    "controller": "A trained controller decides",
    "rule": "A rule without training decides",
    "fixed": "Fixed budgets",
    "bound": "Bounds that nobody can run, and chance",
}
"""Headings of the table, in order."""
COSTS = {"tokens": "tokens", "calibrated_s": "time", "compute_s": "compute", "latency_s": "latency"}
"""Costs that the interactive figure can show, with the words of its buttons."""
Result = Mapping[str, Any]


def render_page(result: Result, figures: Mapping[str, str]) -> str:
    """Return the page of one result with its SVG documents: ``tokens``, and ``time`` and ``mixing`` if there."""
    columns, tests = mcnemar_table(result)
    told = {
        "tokens": f"Accuracy against tokens. {describe(result)}",
        "time": f"Accuracy against compute seconds. {describe(result, 'compute_s')}",
        "mixing": "Mixing. " + " ".join(map(describe_mixing, result["mixing"])),
    }
    rows = operating_rows(result)
    return _render(
        "result.html.j2",
        report=result,
        groups=grouped(rows),
        costs={name for name in COSTS if all(row[name] is not None for row in rows)},
        marks=_marks(result),
        figures=dict.fromkeys(told) | {name: inline_svg(svg, name, told[name]) for name, svg in figures.items()},
        curves=_curves("curves", result),
        matched=matched(result),
        mcnemar_columns=columns,
        mcnemar=tests,
        spending=spending(result),
        ladders={policy["series"]: policy["ladder"] for policy in result["policies"] if policy["ladder"]},
        small=SMALL,
        frozen=FROZEN,
    )


def render_several(results: Mapping[str, Result], figure: str, title: str) -> str:
    """Return the page of several results side by side, by the run's name."""
    described = "; ".join(f"{name}: {describe(result)}" for name, result in results.items())
    return _render(
        "several.html.j2",
        title=title,
        reports=results,
        table=side_by_side(results),
        marks=_marks(*results.values()),
        figure=inline_svg(figure, "runs", f"Accuracy against tokens of each run. {described}"),
        curves={name: _curves(f"curves-{i}", result) for i, (name, result) in enumerate(results.items())},
    )


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        tie=tie,
        number=words.number,
        seconds=words.seconds,
        rungs=words.rungs,
        thresholds=words.thresholds,
        settings=lambda values: ", ".join(f"{key} {value}" for key, value in values.items() if value is not None),
        in_percent=lambda value, stderr=None: tie(words.percent_with_error(value, stderr)),
        interval=lambda entry: tie(words.interval(entry)),
        points=lambda entry: tie(words.points_interval(entry)),
        share=lambda value, stderr=None: tie(words.share(value, stderr)),
        nats=lambda value, stderr=None: tie(words.nats(value, stderr)),
        nothing=_is_nothing,
    )
    scripts = [(_TEMPLATES / name).read_text(encoding="utf-8").strip() for name in _SCRIPTS]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = [
        "default-src 'none'",
        "style-src 'unsafe-inline'",  # bars have their lengths as styles of their own
        f"script-src {allowed}",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return environment.get_template(template).render(
        scripts=[Markup(script) for script in scripts], policy="; ".join(policy), **values
    )


def inline_svg(document: str, name: str, description: str) -> Markup:
    """Turn what matplotlib wrote into an element of the page, described for readers who do not see it.

    Its colours follow the page's light or dark style, its ids begin with ``name`` so that they cannot clash with those
    of another figure, and what an element of a page does not need (declarations, name spaces, metadata, size) goes.
    """
    text = re.sub(r"<metadata>.*?</metadata>", "", document[document.index("<svg") :], flags=re.DOTALL)
    head, body = text.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    if view is None:
        raise ValueError("expected an SVG with a viewBox")
    body = re.sub(r'\bid="', f'id="{name}-', body.replace("xlink:href=", "href="))
    body = body.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    for color, variable in VARIABLES.items():
        body = body.replace(color, f"var({variable})")
    return Markup(f'<svg {view.group()} role="img" aria-label="{escape(description)}">{body}')


def tie(text: str) -> str:
    """Keep numbers together with their unit and error, and the ends of an interval, when lines break."""
    tied = r"(?<=\d) (?=%|points)| ± |(?<=k) = |(?<=\d,) (?=[+−-]?[\d.]+\])"
    return re.sub(tied, lambda m: m.group().replace(" ", "\u00a0"), text)


def _marks(*results: Result) -> dict[str, dict[str, Any]]:
    """Return how each policy is drawn."""
    marks = marks_of([policy for result in results for policy in result["policies"]])
    return {name: mark.on_page() for name, mark in marks.items()}


# -- rows of tables ----------------------------------------------------------------------------------------------------

_BLANK = dict.fromkeys(
    ("accuracy_difference", "tokens_ratio", "time_ratio", "share_at_k", "thresholds", "no_loss", "responses", "gave_up")
)


def group_of(policy: Mapping[str, Any]) -> str:
    """Return which of :data:`GROUPS` a policy belongs to."""
    return "bound" if policy["family"] in ("chance", "oracle") else str(policy["family"])


def operating_rows(result: Result) -> list[dict[str, Any]]:
    """Return a row for each operating point, each named k of fixed policies, and the bounds.

    A row is the point as the result has it (:mod:`dps.analysis.result`), with ``policy``, ``family``, ``group``, and
    whether it is on the Pareto ``front`` of the rows.
    """
    rows = []
    for policy in result["policies"]:
        shared = {name: policy[name] for name in ("policy", "family", "series", "ladder")} | {"group": group_of(policy)}
        # Where nothing was chosen, no single loss was tested for a choice.
        shared["chosen"] = policy["operating_point"] is not None
        rows += [{**_BLANK, **row, **shared} for row in rows_of(policy)]
    compared = [row for row in rows if row["family"] != "oracle" and row["accuracy"] is not None]
    front = pareto_front([(row["tokens"], row["accuracy"]) for row in compared])
    for row in rows:
        row["front"] = row["family"] != "oracle" and (row["tokens"], row["accuracy"]) in front
    return rows


def grouped(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the rows under their headings; groups without rows are left out."""
    groups = [(heading, [row for row in rows if row["group"] == name]) for name, heading in GROUPS.items()]
    return [(heading, members) for heading, members in groups if members]


def matched(result: Result) -> list[dict[str, Any]]:
    """Return the comparisons at equal tokens by policy, with how many rivals it beats, loses to, equals, or neither."""
    by_policy: dict[str, list[Mapping[str, Any]]] = {}
    for entry in result["matched_tokens"]:
        by_policy.setdefault(entry["policy"], []).append(entry)
    return [
        {
            "policy": name,
            "rivals": entries,
            "same": (same := sum(_is_nothing(entry["difference"]) for entry in entries)),
            **{verdict: sum(entry["verdict"] == verdict for entry in entries) for verdict in ("above", "below")},
            "undecided": sum(entry["verdict"] == "undecided" for entry in entries) - same,
        }
        for name, entries in by_policy.items()
    ]


def _is_nothing(difference: Mapping[str, Any]) -> bool:
    """Return whether a difference is 0, but for rounding, in every resample: both are the same on every question."""
    return max(abs(difference["low"]), abs(difference["high"])) < 1e-9


def mcnemar_table(result: Result) -> tuple[list[str], list[tuple[str, list[Mapping[str, Any] | None]]]]:
    """Return the names of the columns and, for each policy, its test against every earlier one (None: not tested)."""
    tests = {(test["policy"], test["rival"]): test for test in result["mcnemar"]}
    names = list(dict.fromkeys(name for test in result["mcnemar"] for name in (test["rival"], test["policy"])))
    return names[:-1], [(name, [tests.get((name, other)) for other in names[:-1]]) for name in names[1:]]


def spending(result: Result) -> list[dict[str, Any]]:
    """Return where each policy's tokens and time go, at its operating point or at the largest k.

    ``accepted`` are the tokens of a question's responses, ``others`` all else that was drawn for it and ``share`` their
    share, ``prefill`` the share of its time that goes into reading the prompt (None without a clock), ``width`` the
    tokens against the most of all.
    """
    last = {row["policy"]: row for row in operating_rows(result) if row["family"] != "oracle"}
    most = max(row["tokens"] for row in last.values())
    clock = result["clock"]
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


def side_by_side(results: Mapping[str, Result]) -> list[tuple[str, list[tuple[str, list[Any]]]]]:
    """Return the rows of several results under their headings: each row's name and its row in every run, or None."""
    of_run = {name: {row["name"]: row for row in operating_rows(result)} for name, result in results.items()}
    table: dict[str, dict[str, list[Any]]] = {group: {} for group in GROUPS}
    for rows in of_run.values():
        for name, row in rows.items():
            table[row["group"]][name] = [others.get(name) for others in of_run.values()]
    return [(GROUPS[group], sorted(rows.items(), key=_by_k)) for group, rows in table.items() if rows]


def _by_k(entry: tuple[str, list[Any]]) -> tuple[str, float]:
    """Return what sorts rows: fixed k by source and k, then the others as they come."""
    row = next(row for row in entry[1] if row is not None)
    return (row["policy"], row["mean_k"]) if row["family"] == "fixed" else ("\uffff", 0.0)


# -- the interactive figure --------------------------------------------------------------------------------------------


def _curves(name: str, result: Result) -> Markup:
    """Return the data that the script draws from, as an element of the page.

    A point is ``[accuracy, low, high, lines of text, cost, cost, ...]``.
    """
    marks = _marks(result)
    graded = [policy for policy in result["policies"] if policy["curve"][0]["accuracy"] is not None]
    points = [point for policy in graded for point in policy["curve"]]
    decide = named_of(result)
    costs = [cost for cost in COSTS if points and all(point[cost] is not None for point in points)]
    data = {
        "title": result["title"],
        "costs": [{"name": COSTS[cost], "axis": COST_WORDS[cost]} for cost in costs],
        "policies": [
            {**_curve(policy, costs), **marks[policy["policy"]], "decides": policy["policy"] in decide}
            for policy in graded
        ],
        "main": result["main_series"],
        "groups": GROUPS,
        "fronts": [front_of(result, cost) for cost in costs],
        "level": level_of(result),
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # "<" as an escape, so that no text of the data can end the element.
    return Markup(f'<script type="application/json" id="{name}">{text.replace("<", chr(92) + "u003c")}</script>')


def _curve(policy: Mapping[str, Any], costs: Sequence[str]) -> dict[str, Any]:
    """Return a policy's points; ``marked`` says which are policies of their own (a fixed k of the table)."""
    chosen = policy["operating_point"]
    alone = chosen is not None and len(policy["curve"]) == 1
    return {
        "name": policy["policy"],
        "group": group_of(policy),
        "series": policy["series"],
        "marked": [] if chosen is not None else [point["name"] is not None for point in policy["curve"]],
        "points": [] if alone else [_point(point, costs, _what(policy, point)) for point in policy["curve"]],
        "at": None if chosen is None else _point(chosen, costs, *_operating(chosen)),
    }


def _what(policy: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    if point["threshold"] is None:
        return ""
    if policy["family"] == "oracle":
        return f"going on pays at {point['threshold']:.3g} points per 1,000 tokens"
    return f"k = {point['threshold']:g}" if policy["family"] == "fixed" else f"threshold {point['threshold']:.3g}"


def _operating(row: Mapping[str, Any]) -> list[str]:
    lines = ["operating point" + (f", threshold {words.thresholds(row['thresholds'])}" if row["thresholds"] else "")]
    if row.get("tokens_ratio") is not None:
        lines.append(
            f"{words.interval(row['tokens_ratio'])} of the tokens, {words.points_interval(row['accuracy_difference'])} "
            "points against the reference"
        )
    return lines


def _point(point: Mapping[str, Any], costs: Sequence[str], what: str, *more: str) -> list[Any]:
    time = "" if point["calibrated_s"] is None else f", {words.seconds(point['calibrated_s'])} s"
    spent = f"{words.number(point['tokens'])} tokens{time}, mean k {point['mean_k']:.2f}"
    text = [words.percent_interval(point), what, spent, *more]
    return [*(point[name] for name in ("accuracy", "low", "high")), text, *(point[cost] for cost in costs)]
