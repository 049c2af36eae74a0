"""The manifest: what a whole store has in common, as JSON beside its segments."""

from __future__ import annotations

import hashlib
import json
import reprlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from feature_store.columns import FORMAT, VERSION
from feature_store.errors import StoreError
from feature_store.files import replace_file, write_once
from feature_store.hostile import check_manifest, read_json
from feature_store.records import Manifest

MANIFEST = "manifest.json"
"""Its file name."""
_DIGEST = "sha256"
_IDS = "question_ids"
_OPTIONAL = (_IDS, "device")
"""Entries that are left out where they are None."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a new store's manifest.

    Raises:
        FileExistsError: If there is one.
    """
    content = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    for name in _OPTIONAL:
        if content[name] is None:
            del content[name]
    write_once(folder / MANIFEST, _encoded(json.loads(json.dumps(content, default=str))))


def set_question_ids(folder: Path, question_ids: list[str]) -> None:
    """Put other ids of the questions that the store is to have into its manifest; the rest stays as it is."""
    path = folder / MANIFEST
    content = json.loads(path.read_text(encoding="utf-8"))
    content.pop(_DIGEST, None)
    replace_file(path, _encoded({**content, _IDS: question_ids}))


def _encoded(content: dict[str, Any]) -> bytes:
    """Return a manifest's entries as its file, the ids of the questions on one line at the end."""
    ids = {_IDS: content[_IDS]} if _IDS in content else {}
    others = {name: value for name, value in content.items() if name != _IDS} | {_DIGEST: _digest(content)}
    text = json.dumps(others, indent=2, sort_keys=True)
    if ids:
        text = f'{text[:-2]},\n  "{_IDS}": {json.dumps(ids[_IDS])}\n}}'
    return f"{text}\n".encode()


def read_manifest(folder: Path) -> Manifest:
    """Read a store's manifest.

    Raises:
        StoreError: If there is no store, or it is of another format or version.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise StoreError(f"Expected a store, but there is no folder {folder}: run dps harvest or dps evaluate first.")
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise StoreError(f"Expected a store, but {folder} has no {MANIFEST}: give the folder of a harvest.") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be opened ({error.strerror}): check it and its permissions.") from error
    except StoreError:
        raise
    except ValueError as error:
        raise StoreError(
            f"{path} cannot be read as JSON: it is damaged; delete the store and harvest again."
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StoreError(f"{path} is not the manifest of a {FORMAT}: give the folder of a harvest or of an evaluation.")
    version = content.get("version")
    if version != VERSION:
        raise StoreError(
            f"The store {folder} is of version {version} by its {MANIFEST}, but this program reads version "
            f"{VERSION}: use the release that wrote it, or harvest again into another folder."
        )
    known = {field.name for field in fields(Manifest)}
    if missing := known - {*_OPTIONAL} - content.keys():
        raise StoreError(
            f"{path} lacks {', '.join(sorted(missing))}: it is damaged; delete the store and harvest again."
        )
    if content.pop(_DIGEST, None) != _digest(content):
        raise StoreError(
            f"The content of {path} does not match its checksum: it was changed after it was written; put the "
            "original back, or harvest again into another folder."
        )
    for name in _OPTIONAL:
        content.setdefault(name, None)
    check_manifest(content, path)
    return Manifest(**{name: content[name] for name in known})


def _digest(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's entries as compact JSON with sorted keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def differences(stored: Manifest, wanted: Manifest) -> list[str]:
    """Return what distinguishes two runs, ``name: stored, now wanted``, as far as it decides the trajectories."""
    found = []
    for name in ("kind", "policy", "sampler", "model", "benchmark", "seed", "aggregator"):
        a, b = (json.loads(json.dumps(getattr(m, name), default=str)) for m in (stored, wanted))
        found += differing(name, a, b)
    return found


def differing(name: str, stored: Any, wanted: Any) -> list[str]:
    """Return in words how two JSON values differ, one entry for each that does; ``name`` is that of the whole."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = [*stored, *(key for key in wanted if key not in stored)]
        return [text for key in keys for text in differing(f"{name}.{key}", stored.get(key), wanted.get(key))]
    # Prompt templates and lists can be long; a sentence must stay one.
    return [] if stored == wanted else [f"{name} was {reprlib.repr(stored)} and is now {reprlib.repr(wanted)}"]
