"""Results in files: one JSON file holds all, and page and figures are made from that alone, at first and again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from dps.analysis.figures import draw_accuracy, png, svg
from dps.analysis.page import render_page
from dps.analysis.result import SCHEMA_VERSION
from dps.analysis.words import distinct
from dps.errors import InputError
from dps.folders import claim, place_of
from feature_store.files import replace_file
from feature_store.hostile import check_file, parse_json

KINDS = {"evaluation": "report", "harvest": "report", "replay": "replay"}
"""What the files of a result are called, by its kind."""
_CSV = ("policy", "family", "series", "threshold", "accuracy", "low", "high", "tokens", "mean_k", "calibrated_s")
_RECOMMENDATION = "recommendation.json"
"""What ``dps recommend`` leaves in a folder; the page there shows it first."""


def write_result(result: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Write a result and what shows it, and return the result as its file has it.

    Args:
        result: See :mod:`dps.analysis.result`.
        output: Folder of ``report.json``, ``.html``, ``.png`` and ``.svg`` (accuracy against tokens); or, of a replay,
            ``replay.json``, ``.html``, ``.png``, ``.svg`` and ``.csv`` (every point of every curve). Made if missing; a
            result of the same stores that stands there is written anew. The same result gives the same bytes.

    Raises:
        InputError: If the folder is a file or holds the report of other stores.
    """
    name = KINDS[result["kind"]]
    if name == "report":
        result = {**result, "recommendation": _recommendation(output)}
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    written = json.loads(text)
    if name == "report":
        _check_own(output, written)
    _check_folder(output)
    files = _shown(name, {"": written})
    if name == "replay":
        files["replay.csv"] = _table(written)
        (Path(output) / _RECOMMENDATION).unlink(missing_ok=True)  # of what stood there before
    _put(output, {**files, f"{name}.json": text})
    return written


def _shown(name: str, results: Mapping[str, Mapping[str, Any]], title: str | None = None) -> dict[str, str | bytes]:
    """Return everything that shows results, the page and its figure, by file name."""
    figure = draw_accuracy(results)
    page = render_page(results, title)
    return {f"{name}.png": png(figure), f"{name}.svg": svg(figure, salt=name), f"{name}.html": page}


def _put(output: Path, files: Mapping[str, str | bytes]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        replace_file(output / file, content)


def _table(result: Mapping[str, Any]) -> str:
    """Return every point of every curve as CSV."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, _CSV, extrasaction="ignore")
    writer.writeheader()
    for policy in result["policies"]:
        writer.writerows({**policy, **point} for point in policy["curve"])
    return table.getvalue()


def _check_folder(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"Expected a folder for the report, but {output} is a file: name another one.")


def _check_own(output: Path, result: Mapping[str, Any]) -> None:
    """Refuse a folder that holds the report of other stores.

    Raises:
        InputError: With the folder.
    """
    path = Path(output) / "report.json"
    if not path.is_file():
        if (Path(output) / "report.html").is_file():
            raise InputError(
                f"{output} holds a report.html, but no report.json says of which stores: give another --output, or "
                "delete it."
            )
        return
    try:
        theirs = _identity(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as a report: give another --output, or delete it.") from error
    others = theirs - _identity(result)  # an evaluation may have got further policies since
    if others:
        raise InputError(
            f"{output} holds the report of other stores ({', '.join(sorted(name for name, _ in others))}): give "
            "another --output, or delete its report.json."
        )


def _identity(result: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(store["folder"], store["fingerprint"]) for store in result["provenance"]["stores"]}


# -- from the JSON file alone ------------------------------------------------------------------------------------------


def is_report(folder: Path) -> bool:
    """Return whether a folder holds a ``report.json`` and no store to make it from."""
    folder = Path(folder)
    stores = (folder / "manifest.json").exists() or any(folder.glob("*/manifest.json"))
    return (folder / "report.json").is_file() and not stores


def is_replay(folder: Path) -> bool:
    """Return whether a folder holds a replay."""
    return (Path(folder) / "replay.json").is_file()


def read_result(folder: Path, name: str) -> dict[str, Any]:
    """Return what a folder's ``report.json`` or ``replay.json`` (``name`` without its end) holds.

    Raises:
        InputError: If it cannot be read, or another version wrote it.
    """
    path, command = Path(folder) / f"{name}.json", f"dps {name}"
    try:
        check_file(path)
        result = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"Expected the result of {command} in {path}, but it cannot be read: {error}.") from error
    version = result.get("schema_version") if isinstance(result, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"Expected {path} of schema_version {SCHEMA_VERSION}, got {version}: run {command} again on its stores "
            "with this version."
        )
    kind, title = result.get("kind"), result.get("title")
    if KINDS.get(str(kind)) != name or not isinstance(title, str):
        raise InputError(
            f"Expected {path} to say of which kind it is and to have a title, got {kind!r} and {title!r}: run "
            f"{command} again on its stores with this version."
        )
    return {**result, "recommendation": _recommendation(folder) or result.get("recommendation")}


def _recommendation(folder: Path) -> Any:
    """Return what ``dps recommend`` has left in a folder; None where it has not."""
    advice = Path(folder) / _RECOMMENDATION
    if not advice.is_file():
        return None
    check_file(advice)
    try:
        return parse_json(advice.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"Expected {advice} as dps recommend wrote it, but it cannot be read: {error}.") from error


def write_again(folder: Path, name: str, output: Path, title: str | None = None) -> dict[str, Any]:
    """Write page and figures again from ``report.json`` or ``replay.json`` alone, and return what that holds.

    Raises:
        InputError: If the file cannot be read, or the output holds another result.
    """
    result = read_result(folder, name)
    with _as_written([folder], name):
        files = _shown(name, {"": result}, title)
    if Path(output).resolve() != Path(folder).resolve():
        if name == "report":
            _check_own(output, result)
        else:
            claim(Path(output), "dps report", {"replays": [place_of(folder, output)]}, ("replay.json", "replay.html"))
        _check_folder(output)
        files[f"{name}.json"] = (Path(folder) / f"{name}.json").read_bytes()
    _put(output, files)
    return result


@contextmanager
def _as_written(folders: Sequence[Path], *kinds: str) -> Iterator[None]:
    """Turn what goes wrong with a result that was not written so into a sentence."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, TemplateError) as error:
        files = " and ".join(str(Path(folder) / f"{kind}.json") for folder, kind in zip(folders, kinds, strict=True))
        commands = " or ".join(f"dps {kind}" for kind in dict.fromkeys(kinds))
        raise InputError(
            f"Expected {files} as {commands} wrote it, but a part is missing or of another type "
            f"({' '.join(str(error).split())}): run {commands} again on its stores."
        ) from error


def write_several(folders: Sequence[Path], output: Path, title: str | None = None) -> list[dict[str, Any]]:
    """Write ``compared.html``, ``.png`` and ``.svg``, several results side by side, and return what they hold.

    Raises:
        InputError: If one cannot be read, or the output holds another run's results.
    """
    kinds = ["replay" if is_replay(folder) else "report" for folder in folders]
    results = [read_result(folder, kind) for folder, kind in zip(folders, kinds, strict=True)]
    names = [Path(folder).resolve().name for folder in folders]
    with _as_written(folders, *kinds):
        named = dict(zip(distinct(names), results, strict=True))
        files = _shown("compared", named, title or f"{len(named)} results side by side")
    claim(Path(output), "dps report", {"shown": [place_of(folder, output) for folder in folders]}, ("compared.html",))
    _check_folder(output)
    _put(output, files)
    return results
