"""A result's table for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from itertools import groupby
from typing import Any

from dps.analysis.words import number, percent_with_error, points_interval, seconds, share


def render_rows(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a text table: the first column to the left, the others, which are numbers, to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", no_wrap=not place)
    for row in rows:
        table.add_row(*map(Text, row))
    return _text_of([table], 120)


def _text_of(parts: Iterable[Any], width: int) -> str:
    from rich.console import Console

    out = StringIO()
    Console(file=out, width=width, force_terminal=False, color_system=None).print(*parts, sep="\n")
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines()) + "\n"


def render_table(result: Mapping[str, Any], width: int = 120, *, shares: bool = True) -> str:
    """Return the policies of a result as a text table, never wider than ``width`` columns.

    Where questions ended (``shares``) is left out if it does not fit; the page has it.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from dps.analysis.page import operating_rows

    reference = result["reference"]
    rows = operating_rows(result)
    ks = sorted({int(k) for row in rows if shares and row["chosen"] for k in row["share_at_k"]})
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(result["title"]),
        title_justify="left",
        title_style="bold",
        collapse_padding=True,
    )
    table.add_column("policy", no_wrap=True)
    headings = ["accuracy\n%", "tokens", "compute\ns", "latency\ns", "mean\nk"]
    if reference is not None:
        headings[1:2] = [f"minus\n{reference}", "tokens", f"×\n{reference}"]
    if ks:
        headings.append("% at k =\n" + "".join(f"{k:4d}" for k in ks).strip())
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for _, group in groupby(rows, key=lambda row: row["group"]):
        table.add_section()
        for row in group:
            cells = [row["name"], percent_with_error(row["accuracy"], row["stderr"])]
            if reference is not None:
                cells.append("" if row["name"] == reference else points_interval(row["accuracy_difference"]))
            cells.append(number(row["tokens"]))
            if reference is not None:
                cells.append(share(row["tokens_ratio"]["value"]))
            cells += [seconds(row["compute_s"]), seconds(row["latency_s"]), f"{row['mean_k']:.2f}"]
            if ks:
                of = row["share_at_k"]
                cells.append("" if of is None else " ".join(f"{100 * of.get(str(k), 0):3.0f}" for k in ks))
            table.add_row(*map(Text, cells))
    if ks and "…" in _text_of([table], width):
        return render_table(result, width, shares=False)
    return _text_of([table, *(Text(f"Note: {note}") for note in result["notes"])], width)
