"""The report as one HTML page: the dictionary and the figures go in, a page that needs nothing else comes out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dps.analysis.report import words
from dps.analysis.report.figures import describe, describe_mixing
from dps.analysis.report.look import CONTROLLER, GRID, INK, LOWTEMP, MUTED, OTHER, PLAIN, POWER, RULE, SURFACE
from dps.analysis.report.mixing import FROZEN, SMALL

VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    SURFACE: "--surface",
    POWER: "--power",
    CONTROLLER: "--controller",
    PLAIN: "--plain",
    LOWTEMP: "--lowtemp",
    OTHER: "--other",
    RULE: "--rule",
}
"""Colours of the figures become variables of the page's style, which has a light and a dark value for each."""
_GROUPS = {
    "power": "Power sampling, fixed k",
    "controller": "A trained controller decides k",
    "rule": "A rule without training decides k",
    "plain": "Plain sampling (temperature 1)",
    "lowtemp": "Low-temperature sampling",
}


def render_page(report: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        report: What ``report.json`` holds.
        figures: SVG documents, ``report`` (against tokens), ``report_time`` (against time) and, if the report has
            an entry of ``mixing``, ``report_mixing``.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        percent_with_error=lambda row: tie(words.percent_with_error(row["accuracy"], row["accuracy_stderr"])),
        points=lambda value, stderr: tie(words.signed_points(value, stderr)),
        share=lambda value, stderr=None: tie(words.share(value, stderr)),
        number=words.number,
        in_percent=lambda value, stderr=None: tie(words.percent_with_error(value, stderr)),
        nats=lambda value, stderr=None: tie(words.nats(value, stderr)),
        seconds=words.seconds,
        tie=tie,
        settings=settings_words,
    )
    mixing = "Mixing. " + " ".join(describe_mixing(entry) for entry in report["mixing"])
    return environment.get_template("page.html.j2").render(
        report=report,
        groups=_grouped(report["policies"]),
        ks=words.share_ks(report["policies"]),
        tokens_figure=inline_svg(figures["report"], "tokens", f"Accuracy against tokens. {describe(report, 'tokens')}"),
        mixing_figure=inline_svg(figures["report_mixing"], "mixing", mixing) if report["mixing"] else None,
        small=SMALL,
        frozen=FROZEN,
        time_figure=inline_svg(
            figures["report_time"], "time", f"Accuracy against compute seconds. {describe(report, 'compute_s')}"
        ),
    )


def _grouped(rows: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the table's rows under their headings, in order."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(words.group_of(row), []).append(row)
    return [(_GROUPS.get(name, name), members) for name, members in groups.items()]


def inline_svg(document: str, name: str, description: str) -> Markup:
    """Turn an SVG document into an element of the page.

    Its colours follow the page's light or dark style, its ids cannot clash with those of another figure, and what an
    element of a page does not need (declarations, name spaces, metadata, fixed size) goes.

    Args:
        document: What matplotlib wrote.
        name: Prefix of the ids.
        description: What readers hear who do not see the figure.
    """
    text = document[document.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, body = text.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    if view is None:
        raise ValueError("expected an SVG with a viewBox")
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'href="#', f'href="#{name}-', body)
    body = body.replace("url(#", f"url(#{name}-")
    for color, variable in VARIABLES.items():
        body = body.replace(color, f"var({variable})")
    return Markup(f'<svg {view.group()} role="img" aria-label="{escape(description)}">{body}')


def tie(text: str) -> str:
    """Keep numbers together with their unit and error, and the ends of an interval, when lines break."""
    tied = r"(?<=\d) (?=%|points)| ± |(?<=k) = |(?<=\d,) (?=[+−-]?[\d.]+\])"
    return re.sub(tied, lambda m: m.group().replace(" ", "\u00a0"), text)


def settings_words(settings: Mapping[str, Any]) -> str:
    """Return settings as ``alpha 4.0, block_size 24, ...``, without those that are not set."""
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)
