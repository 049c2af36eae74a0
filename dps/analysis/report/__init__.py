"""The report of an evaluation: tables, figures, a page and JSON, from stores alone; in ``replays`` of a replay."""

from dps.analysis.report.files import pages_in, what_varies
from dps.analysis.report.table import render_table
from dps.analysis.report.write import is_report, read_report, write_pages_again, write_report

__all__ = [
    "is_report",
    "pages_in",
    "read_report",
    "render_table",
    "what_varies",
    "write_pages_again",
    "write_report",
]
