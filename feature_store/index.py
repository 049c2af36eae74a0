"""The index of a store: what opening needs of all segments, in one file that is made from them and never outweighs one.

A segment does not change, so an entry holds as long as the segment's size and time of change are those of the entry.
Everything else is opened: segments that are newer than the index, and all of them where it is missing or damaged.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from feature_store.columns import VERSION
from feature_store.errors import StoreError
from feature_store.files import replace_file
from feature_store.hostile import LARGEST_JSON, read_json
from feature_store.manifest import digest_of_entries
from feature_store.segment import Content, read_content

INDEX = "index.json"
"""Its file name."""
MANY = 64
"""An index is made when a store is opened that has at least so many segments that no index knows."""

_FORMAT = "dps-feature-store-index"
_DIGEST = "sha256"
_ATTEMPTS = 5
_CHECKSUM = re.compile("[0-9a-f]{64}")


def contents(folder: Path, attempts: int = _ATTEMPTS) -> dict[Path, Content]:
    """Return what each segment of a store holds, in order of name; where many had to be opened, the index is made anew.

    Raises StoreError if a segment that no index knows cannot be read.
    """
    found = _segments(folder)
    known = read_index(folder, found)
    held = dict.fromkeys(found, Content("", []))
    for name in found:
        try:
            held[name] = known.get(name) or read_content(folder / name)
        except StoreError:
            if attempts <= 1 or os.path.lexists(folder / name):
                raise
            return contents(folder, attempts - 1)  # it was joined with others just now
    if len(found) - len(known) >= MANY:
        with suppress(OSError):  # a folder that cannot be written is read as before
            _write(folder, found, held)
    return {folder / name: content for name, content in held.items()}


def read_index(folder: Path, found: Mapping[str, os.stat_result] | None = None) -> dict[str, Content]:
    """Return what the index says of those segments that it knows; nothing where it is missing, damaged or a link."""
    found = _segments(folder) if found is None else found
    try:
        content = read_json(folder / INDEX)
        if (content["format"], content["version"]) != (_FORMAT, VERSION):
            return {}
        if content.pop(_DIGEST) != digest_of_entries(content):
            return {}
        entries = ((name, _checked(content["segments"].get(name), status)) for name, status in found.items())
        return {name: entry for name, entry in entries if entry is not None}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):  # StoreError is a ValueError
        return {}


def _segments(folder: Path) -> dict[str, os.stat_result]:
    """Return the names of the segments in order, with the state of each file, links not followed."""
    found = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("segment-") and entry.name.endswith(".h5"):
                    with suppress(FileNotFoundError):  # it was joined with others just now
                        found[entry.name] = entry.stat(follow_symlinks=False)
    except OSError as error:
        raise StoreError(f"{folder} cannot be opened ({error.strerror}): check it and its permissions.") from error
    return dict(sorted(found.items()))


def _checked(entry: Any, status: os.stat_result) -> Content | None:
    """Return an entry of the index, if it is one of the file of that state."""
    match entry:
        case {"size": int(size), "mtime_ns": int(changed), "sha256": str(checksum), "question_ids": list(names)}:
            same = stat.S_ISREG(status.st_mode) and (size, changed) == (status.st_size, status.st_mtime_ns)
            if same and _CHECKSUM.fullmatch(checksum) and all(isinstance(name, str) for name in names):
                return Content(checksum, names)
    return None


def _write(folder: Path, found: Mapping[str, os.stat_result], held: Mapping[str, Content]) -> None:
    """Write the index whole or not at all; of two processes that do, the last one's stays."""
    entries = {
        name: {
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "sha256": held[name].checksum,
            "question_ids": held[name].question_ids,
        }
        for name, status in found.items()
    }
    content = {"format": _FORMAT, "version": VERSION, "segments": entries}
    text = json.dumps(content | {_DIGEST: digest_of_entries(content)})
    if len(text) <= LARGEST_JSON:
        replace_file(folder / INDEX, text)
