"""``replay.html``, ``.png`` and ``.svg`` from ``replay.json`` alone, and a page for several replays side by side."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dps.analysis.report.files import output_folder, read_result
from dps.folders import claim, place_of
from feature_store.files import replace_file

SCHEMA_VERSION = 2
"""Of the ``replay.json`` that the page shows."""


def is_replay(folder: Path) -> bool:
    """Return whether a folder holds a replay."""
    return (Path(folder) / "replay.json").is_file()


def read_replay(folder: Path) -> dict[str, Any]:
    """Return what a folder's ``replay.json`` holds.

    Raises:
        InputError: If it cannot be read, or another version wrote it.
    """
    return read_result(Path(folder) / "replay.json", "dps replay", SCHEMA_VERSION)


def write_replay_page(report: Mapping[str, Any], output: Path) -> None:
    """Write ``replay.html``, ``replay.png`` and ``replay.svg``. The same report gives the same bytes.

    Args:
        report: What ``replay.json`` holds, as JSON gives it back.
        output: The folder; made if missing.
    """
    from dps.analysis.report.look import png, svg
    from dps.analysis.report.replays.figure import draw_replay
    from dps.analysis.report.replays.page import render_replay

    output = output_folder(output)
    figure = draw_replay(report)
    replace_file(output / "replay.png", png(figure))
    vector = svg(figure, salt="replay")
    replace_file(output / "replay.svg", vector)
    replace_file(output / "replay.html", render_replay(report, vector))


def write_replays(folders: Sequence[Path], output: Path, title: str | None = None) -> list[dict[str, Any]]:
    """Write the pages of folders that hold a ``replay.json``, and return what these hold.

    Args:
        folders: One, whose ``replay.html``, ``.png`` and ``.svg`` are made again, byte for byte the same; or several,
            which make ``replays.html``, ``replays.png`` and ``replays.svg``.
        output: Folder of these files; made if missing.
        title: Title of the page; the replay's own, or one for several, if None.

    Raises:
        InputError: If one cannot be read, or the output holds another run's results.
    """
    reports = [read_replay(folder) for folder in folders]
    if len(reports) == 1:
        (folder,) = folders
        if Path(output).resolve() != Path(folder).resolve():
            claim(Path(output), "dps report", {"replays": [place_of(folder, output)]}, ("replay.json", "replay.html"))
            shutil.copyfile(Path(folder) / "replay.json", output_folder(output) / "replay.json")
        write_replay_page(reports[0] if title is None else {**reports[0], "title": title}, output)
        return reports
    from dps.analysis.report.look import png, svg
    from dps.analysis.report.replays.figure import draw_replays
    from dps.analysis.report.replays.page import render_replays

    claim(Path(output), "dps report", {"replays": [place_of(folder, output) for folder in folders]}, ("replays.html",))
    output = output_folder(output)
    named = dict(zip(_names(folders), reports, strict=True))
    figure = draw_replays(named)
    replace_file(output / "replays.png", png(figure))
    vector = svg(figure, salt="replays")
    replace_file(output / "replays.svg", vector)
    page = render_replays(named, vector, title or f"{len(named)} replays side by side")
    replace_file(output / "replays.html", page)
    return reports


def _names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each run: its folder's, with a number where two have the same."""
    names = [Path(folder).resolve().name for folder in folders]
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]
