"""The report of an evaluation: tables, figures, a page and JSON, from stores alone; in ``replays`` of a replay."""

from dps.report.table import render_table
from dps.report.write import read_report, write_report

__all__ = ["read_report", "render_table", "write_report"]
