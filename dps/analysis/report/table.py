"""The report's table for a terminal."""

from __future__ import annotations

from io import StringIO
from typing import Any

from dps.analysis.report.words import group_of, number, percent_with_error, seconds, share_ks, signed_points


def render_table(report: dict[str, Any], width: int = 120) -> str:
    """Return the policies of a report as a text table.

    Args:
        report: What :func:`dps.analysis.report.write_report` returned.
        width: Columns of the terminal; the table is never wider.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=Text(report["title"]), title_justify="left", title_style="bold")
    reference = report["reference"]
    table.add_column("policy", no_wrap=True)
    headings = ["accuracy\n%", "tokens", "compute\ns", "latency\ns", "mean\nk"]
    if reference is not None:
        headings[1:2] = [f"minus {reference}\npoints", "tokens", f"tokens ×\n{reference}"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    ks = share_ks(report["policies"])
    if ks:
        shown = "".join(f"{k:4d}" for k in ks).strip()
        table.add_column(f"% of questions\nat k = {shown}", justify="right", no_wrap=True)
    series = None
    for row in report["policies"]:
        group = group_of(row)
        if series not in (None, group):
            table.add_section()
        series = group
        cells = [row["policy"], percent_with_error(row["accuracy"], row["accuracy_stderr"])]
        if reference is not None:
            same = row["policy"] == reference
            cells.append(
                "" if same else signed_points(row["accuracy_minus_reference"], row["accuracy_minus_reference_stderr"])
            )
        cells.append(number(row["tokens"]))
        if reference is not None:
            cells.append(f"{row['tokens_ratio_reference']:.2f}")
        cells += [seconds(row["compute_s"]), seconds(row["latency_s"]), f"{row['mean_k']:.2f}"]
        if ks:
            shares = [f"{100 * row['share_at_k'].get(str(k), 0):3.0f}" for k in ks]
            cells.append(" ".join(shares) if row["family"] == "dynamic" else "")
        table.add_row(*(Text(cell) for cell in cells))
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=False, color_system=None)
    console.print(table)
    for note in report["notes"]:
        console.print(Text(f"Note: {note}"))
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines()) + "\n"
