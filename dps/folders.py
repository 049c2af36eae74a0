"""Whose results a folder holds: a run's settings are saved beside its results, and another run is refused.

Every command that writes results into a folder asks :func:`claim` first, before anything heavy is loaded.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dps.errors import InputError
from feature_store.files import make_folder, replace_file
from feature_store.manifest import MANIFEST, differing, read_manifest

SETTINGS = "settings.json"
"""The file in a folder of results that says of which run they are."""


def claim(
    folder: Path, command: str, settings: Mapping[str, Any], results: Sequence[str], option: str = "--output"
) -> bool:
    """Note in a folder which run writes there; return whether results of the same run stand there.

    A folder whose run left no results yet is free for another run. An InputError if the folder holds another run's
    results or a store, or cannot be written.

    Args:
        folder: Where results will be written; made if missing.
        command: The command, such as ``dps replay``.
        settings: Everything that decides the results, as JSON values.
        results: What the results are called, as glob patterns below the folder.
        option: The option that names the folder, for the message.
    """
    wanted = json.loads(json.dumps({"command": command, "results": list(results), **settings}, default=str))
    instead = f"give another {option}, or delete the folder"
    if (folder / MANIFEST).exists():
        raise InputError(f"Expected a folder for the results of {command}, but {folder} is a store: {instead}.")
    path = folder / SETTINGS
    stored = _read(path, instead)
    names = stored.get("results", results) if stored is not None else results
    standing = _standing(folder, names)
    if standing and stored is None:
        raise InputError(f"{folder} holds {standing[0]}, but no {SETTINGS} says of which run it is: {instead}.")
    if stored == wanted:
        return bool(standing)
    if standing and stored is not None:
        if stored.get("command") != command:
            raise InputError(f"{folder} holds results of {stored.get('command')}: {instead}.")
        what = [text for key in wanted for text in differing(key, stored.get(key), wanted[key])]
        raise InputError(f"{folder} holds results of {command} with other settings: {'; '.join(what[:3])}; {instead}.")
    try:
        make_folder(folder)
        replace_file(path, (json.dumps(wanted, indent=1) + "\n").encode())
    except OSError as error:
        raise InputError(f"Cannot write to {folder} ({error.strerror}): give another {option}.") from error
    return False


def place_of(path: Path | str, folder: Path) -> str:
    """Return where something lies as seen from a folder of results, which holds wherever both are moved together."""
    return os.path.relpath(Path(path).resolve(), Path(folder).resolve())


def store_identity(store: Path | str, folder: Path) -> dict[str, str]:
    """Return what says of which store the results in a folder are: where it lies, and the fingerprint of its run."""
    return {"folder": place_of(store, folder), "fingerprint": read_manifest(Path(store)).fingerprint}


def _read(path: Path, instead: str) -> dict[str, Any] | None:
    """Return the settings in a folder; None where there are none."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read, so nothing says whose results these are: {instead}.") from error
    if not isinstance(stored, dict) or not isinstance(stored.get("results", []), list):
        raise InputError(f"{path} is not what a command of dps wrote: {instead}.")
    return stored


def _standing(folder: Path, patterns: Sequence[str]) -> list[str]:
    """Return the names of what stands in a folder of these patterns."""
    return [
        os.path.relpath(path, folder) for name in patterns for path in glob.glob(f"{glob.escape(str(folder))}/{name}")
    ]
