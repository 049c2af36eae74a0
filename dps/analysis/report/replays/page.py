"""The page of one replay or of several: dictionaries and figures go in, HTML that needs nothing else comes out.

Scripts are in the page, and its Content-Security-Policy names their digests: nothing else runs, nothing is loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dps.analysis.report import words
from dps.analysis.report.page import VARIABLES, inline_svg, settings_words, tie
from dps.analysis.report.replays import charts, views
from dps.analysis.report.replays.figure import describe
from dps.analysis.report.replays.glossary import explained
from dps.analysis.report.replays.marks import Mark, marks_of

_HERE = Path(__file__).parent
_SCRIPTS = ("theme.js", "curves.js", "questions.js")


def render_replay(report: Mapping[str, Any], figure: str) -> str:
    """Return the page of one replay.

    Args:
        report: What ``replay.json`` holds.
        figure: The SVG document of ``replay.svg``.
    """
    columns, tests = views.mcnemar_table(report)
    return _render(
        "replay.html.j2",
        report=report,
        groups=views.grouped(views.operating_rows(report)),
        marks=_marks(report),
        figure=inline_svg(figure, "curve", f"Accuracy against tokens. {describe(report)}"),
        curves=_curves("curves", report),
        matched=views.matched(report),
        mcnemar_columns=columns,
        mcnemar=tests,
        spending=views.spending(report),
        calibration=[(entry, charts.reliability(entry)) for entry in report["calibration"]],
        labels=charts.LABELS,
        glossary=explained(report),
    )


def render_replays(reports: Mapping[str, Mapping[str, Any]], figure: str, title: str) -> str:
    """Return the page of several replays side by side.

    Args:
        reports: What each ``replay.json`` holds, by the run's name.
        figure: The SVG document of ``replays.svg``.
        title: Title of the page.
    """
    described = "; ".join(f"{name}: {describe(report)}" for name, report in reports.items())
    return _render(
        "replays.html.j2",
        title=title,
        reports=reports,
        table=views.side_by_side(reports),
        marks=_marks(*reports.values()),
        figure=inline_svg(figure, "runs", f"Accuracy against tokens of each run. {described}"),
        curves={name: _curves(f"curves-{i}", report) for i, (name, report) in enumerate(reports.items())},
    )


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader([_HERE, _HERE.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        number=words.number,
        seconds=words.seconds,
        tie=tie,
        settings=settings_words,
        interval=lambda entry: tie(words.interval(entry)),
        points=lambda entry: tie(words.points_interval(entry)),
        accuracy=words.percent_interval,
        thresholds=views.thresholds,
        signed=lambda value: words.signed_points(value, None),
        nats=words.nats,
        nothing=views.is_nothing,
    )
    scripts = [(_HERE / name).read_text(encoding="utf-8").strip() for name in _SCRIPTS]
    return environment.get_template(template).render(
        scripts=[Markup(script) for script in scripts],
        policy="; ".join(
            [
                "default-src 'none'",
                "style-src 'unsafe-inline'",  # bars have their lengths as styles of their own
                f"script-src {' '.join(map(_digest, scripts))}",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
        **values,
    )


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _marks(*reports: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return how each policy is drawn, for the page: colours are variables of its style."""
    marks = marks_of([policy for report in reports for policy in report["policies"]])
    return {name: _drawn(mark) for name, mark in marks.items()}


def _drawn(mark: Mark) -> dict[str, Any]:
    return {
        "color": f"var({VARIABLES[mark.color]})",
        "shape": mark.shape,
        "dashes": " ".join(f"{length:g}" for length in mark.dashes),
        "hollow": mark.hollow,
    }


def _curves(name: str, report: Mapping[str, Any]) -> Markup:
    """Return the data that the script draws from, as an element of the page."""
    marks = _marks(report)
    data = {
        "title": report["title"],
        "costs": [{"name": "tokens", "axis": "generated tokens per question, rejected ones included"}]
        + ([{"name": "time", "axis": "calibrated seconds per question"}] if report["clock"] else []),
        "policies": [{**curve, **marks[curve["name"]]} for curve in views.curves(report)],
        "groups": {group: views.GROUPS[group] for group in views.GROUPS},
        "front": [views.with_seconds(report, *point) for point in views.front_of_curves(report)],
        "level": report["policies"][0]["curve"][-1]["accuracy"],
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # "<" as an escape, so that no text of the data can end the element.
    return Markup(f'<script type="application/json" id="{name}">{text.replace("<", chr(92) + "u003c")}</script>')
