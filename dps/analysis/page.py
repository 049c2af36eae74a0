"""The page of a result, or of several: dictionaries go in, HTML that needs nothing else comes out.

Scripts are in the page, and its Content-Security-Policy names their digests: nothing else runs, nothing is loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dps.analysis import charts, words
from dps.analysis.figures import pareto_front
from dps.analysis.findings import rows_of
from dps.analysis.marks import marks_of
from dps.analysis.mixing import FROZEN, SMALL
from dps.analysis.provenance import provenance
from dps.analysis.tile import tile

_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPTS = ("theme.js", "tables.js", "figures.js", "questions.js")
GROUPS = {
    "controller": "controllers",
    "rule": "rules without training",
    "fixed": "fixed budgets",
    "bound": "bounds and chance",
}
"""Families of policies, in the order of the table and of the figure's controls."""
KINDS = {"evaluation": "evaluation report", "harvest": "harvest report", "replay": "replay of every policy"}
Result = Mapping[str, Any]


def render_page(results: Mapping[str, Result], title: str | None = None) -> str:
    """Return the page of one result, or of several side by side by the run's name."""
    marks = {
        name: mark.on_page()
        for name, mark in marks_of([one for result in results.values() for one in result["policies"]]).items()
    }
    single = len(results) == 1
    only = next(iter(results.values()))
    runs = [_run("" if single else f"run{i}-", name, result) for i, (name, result) in enumerate(results.items())]
    return _render(
        title=title or only["title"],
        single=single,
        runs=runs,
        rows=_side_by_side(runs),
        marks=marks,
        groups=GROUPS,
        kinds=KINDS,
        legend=charts.legend(results),
        curves=charts.curves(results, marks, {run["name"]: run["tile"] for run in runs}),
        labels=charts.LABELS,
        small=SMALL,
        frozen=FROZEN,
    )


def _run(at: str, name: str, result: Result) -> dict[str, Any]:
    """Return what the templates need of one run; ``at`` begins its ids."""
    rows = operating_rows(result)
    return {
        "at": at,
        "name": name,
        "report": result,
        "tile": tile(result),
        "rows": rows,
        "costs": [cost for cost in charts.COSTS if all(row[cost] is not None for row in rows)],
        "matched": matched(result),
        "spending": spending(result),
        "ladders": {policy["series"]: policy["ladder"] for policy in result["policies"] if policy["ladder"]},
        "calibration": [(entry, charts.calibration(entry)) for entry in result["calibration"]],
        "mixing": [(entry, charts.mixing(entry)) for entry in result["mixing"]],
        "provenance": provenance(result),
    }


def _side_by_side(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of all runs, those of one policy beside each other."""
    rows = [{**row, "run": run["name"], "report": run["report"]} for run in runs for row in run["rows"]]
    place = {name: i for i, name in enumerate(dict.fromkeys(row["policy"] for row in rows))}
    rows.sort(key=lambda row: (place[row["policy"]], row["mean_k"] if row["family"] == "fixed" else 0))
    return sorted(rows, key=_family)


def _family(row: Mapping[str, Any]) -> int:
    return [*GROUPS].index(row["group"])


def _render(**values: Any) -> str:
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
        data=_data,
        number=words.number,
        seconds=words.seconds,
        rungs=words.rungs,
        thresholds=words.thresholds,
        exact=lambda value: "" if value is None else f"{value:.6g}",
        in_percent=lambda value, stderr=None: tie(words.percent_with_error(value, stderr)),
        interval=lambda entry: tie(words.interval(entry)),
        points=lambda entry: tie(words.points_interval(entry)),
        share=lambda value, stderr=None: tie(words.share(value, stderr)),
        nats=lambda value, stderr=None: tie(words.nats(value, stderr)),
        nothing=_is_nothing,
    )
    scripts = [charts.runtime(), *((_TEMPLATES / name).read_text(encoding="utf-8").strip() for name in _SCRIPTS)]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = [
        "default-src 'none'",
        "style-src 'unsafe-inline'",  # bars have their lengths as styles of their own
        f"script-src {allowed}",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return environment.get_template("page.html.j2").render(
        scripts=[Markup(script) for script in scripts], policy="; ".join(policy), **values
    )


def _data(value: Any) -> Markup:
    """Return JSON for a script element: "<" as an escape, so that no text of the data can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def tie(text: str) -> str:
    """Keep numbers together with their unit and error, and the ends of an interval, when lines break."""
    tied = r"(?<=\d) (?=%|points)| ± |(?<=k) = |(?<=\d,) (?=[+−-]?[\d.]+\])"
    return re.sub(tied, lambda m: m.group().replace(" ", "\u00a0"), text)


# -- rows of tables ----------------------------------------------------------------------------------------------------

_BLANK = dict.fromkeys(
    ("accuracy_difference", "tokens_ratio", "time_ratio", "share_at_k", "thresholds", "no_loss", "responses", "gave_up")
)


def operating_rows(result: Result) -> list[dict[str, Any]]:
    """Return a row for each operating point, each named k of fixed policies, and the bounds, by family.

    A row is the point as the result has it (:mod:`dps.analysis.result`), with ``policy``, ``family``, ``group``, and
    whether it is on the Pareto ``front`` of the rows.
    """
    rows = []
    for policy in result["policies"]:
        shared = {name: policy[name] for name in ("policy", "family", "series", "ladder")} | {
            "group": charts.group_of(policy)
        }
        # Where nothing was chosen, no single loss was tested for a choice.
        shared["chosen"] = policy["operating_point"] is not None
        rows += [{**_BLANK, **row, **shared} for row in rows_of(policy)]
    compared = [row for row in rows if row["family"] != "oracle" and row["accuracy"] is not None]
    front = pareto_front([(row["tokens"], row["accuracy"]) for row in compared])
    for row in rows:
        row["front"] = row["family"] != "oracle" and (row["tokens"], row["accuracy"]) in front
    return sorted(rows, key=_family)


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
            "policy": row["policy"],
            "accepted": row["accepted"],
            "others": row["tokens"] - row["accepted"],
            "share": 1 - row["accepted"] / row["tokens"],
            "width": row["tokens"] / most,
            "seconds": row["calibrated_s"],
            "prefill": None if clock is None else clock["prefill_s"] / row["calibrated_s"],
        }
        for row in last.values()
    ]
