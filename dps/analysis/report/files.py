"""Results in files: a page is made again from the JSON that was written with it, where the stores are gone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dps.analysis.report.look import drawn_with
from dps.errors import InputError
from feature_store.hostile import check_file, parse_json

_PAGES = (".html", ".png", ".svg")


def output_folder(output: Path) -> Path:
    """Return the folder of a report, made if missing.

    Raises:
        InputError: If it is a file.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise InputError(f"Expected a folder for the report, but {output} is a file: name another one.")
    output.mkdir(parents=True, exist_ok=True)
    return output


def read_result(path: Path, command: str, version: int) -> dict[str, Any]:
    """Return what ``report.json`` or ``replay.json`` holds.

    Args:
        path: The file.
        command: What wrote it, for messages.
        version: Its ``schema_version``.

    Raises:
        InputError: If it cannot be read, or has another version.
    """
    try:
        check_file(path)
        report = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"Expected the result of {command} in {path}, but it cannot be read: {error}.") from error
    found = report.get("schema_version") if isinstance(report, dict) else None
    if found != version:
        raise InputError(
            f"Expected {path} of schema_version {version}, got {found}: run {command} again on its stores with this "
            "version."
        )
    return report


def pages_in(folder: Path, start: str) -> dict[str, bytes]:
    """Return the pages and figures in a folder whose names start so, by name."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob(f"{start}*")) if path.suffix in _PAGES}


def what_varies(report: Mapping[str, Any], before: Mapping[str, bytes], after: Mapping[str, bytes]) -> str:
    """Return a sentence on pages and figures that were made again from a result alone.

    Args:
        report: The result; ``figures`` says what drew its figures at first.
        before: The pages that stood there, see :func:`pages_in`.
        after: Those that stand there now.
    """
    drawn, now = report.get("figures"), drawn_with()
    changed = [name for name, content in before.items() if after.get(name) != content]
    if before and not changed:
        return f"Made again, byte for byte as before: {', '.join(before)}."
    said = f"{', '.join(changed)} {'has' if len(changed) == 1 else 'have'} other bytes than before" if changed else ""
    if drawn is None:
        why = "what drew the figures at first is not recorded"
    elif drawn != now:
        why = f"the figures were drawn by {_versions(drawn)} at first, by {_versions(now)} now, so bytes may differ"
    else:
        why = "" if not changed else "the title or this toolkit's pages are others now"
    return f"Made again from JSON alone{'; ' if said else ''}{said}{': ' if why else ''}{why}."


def _versions(names: Mapping[str, str]) -> str:
    return f"matplotlib {names['matplotlib']} with FreeType {names['freetype']}"
