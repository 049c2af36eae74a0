"""The manifest: what a whole store has in common, as JSON beside its segments."""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from feature_store.columns import FORMAT, VERSION
from feature_store.errors import StoreError
from feature_store.files import replace_file, write_once
from feature_store.hostile import read_json
from feature_store.records import Manifest

MANIFEST = "manifest.json"
"""Its file name."""
_DIGEST = "sha256"
_IDS = "question_ids"
_OPTIONAL = (_IDS, "device")
"""Entries that are left out where they are None."""


def _is_number(value: Any, least: float, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool) and least <= value < math.inf


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


_RULES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    ("an object", lambda v: isinstance(v, dict), ("policy", "model", "benchmark", "arms", "config", "software")),
    (
        "an object of one object an arm",
        lambda v: v != {} and all(isinstance(arm, dict) for arm in v.values()),
        ("arms",),
    ),
    (
        "an object of numbers of at least 0",
        lambda v: isinstance(v, dict) and all(_is_number(number, 0, int, float) for number in v.values()),
        ("calibration",),
    ),
    ("a text", lambda v: isinstance(v, str), ("kind", "aggregator", "fingerprint", "device", "policy.name")),
    ("a text", lambda v: isinstance(v, str), ("model.name", "model.fingerprint")),
    ("a text", lambda v: isinstance(v, str), ("benchmark.name", "benchmark.source", "benchmark.split")),
    ("a whole number", lambda v: _is_number(v, -math.inf, int), ("seed", "model.feature_layer", "model.hidden_size")),
    ("a list of texts", _is_texts, (_IDS, "policy.ladder")),
)
"""What a manifest's entries and their parts must be, in words and as a test; objects stand before their parts."""


def write_manifest(folder: Path, manifest: Manifest, *, replacing: bool = False) -> None:
    """Write a store's manifest; raises FileExistsError if there is one that is not to be replaced."""
    entries = {name: value for name, value in asdict(manifest).items() if name not in _OPTIONAL or value is not None}
    content = json.loads(json.dumps({"format": FORMAT, "version": VERSION, **entries}, default=str))
    (replace_file if replacing else write_once)(folder / MANIFEST, _encoded(content))


def _encoded(content: dict[str, Any]) -> bytes:
    """Return a manifest's entries as its file, the ids of the questions on one line at the end."""
    others = {name: content[name] for name in sorted(content) if name != _IDS} | {_DIGEST: digest_of_entries(content)}
    text = json.dumps(others, indent=2)  # unsorted: arms have an order
    if _IDS in content:
        text = f'{text[:-2]},\n  "{_IDS}": {json.dumps(content[_IDS])}\n}}'
    return f"{text}\n".encode()


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest; raises StoreError if there is no store, it is of another version, or the manifest is damaged."""
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
    if (version := content.get("version")) != VERSION:
        raise StoreError(
            f"The store {folder} is of version {version} by its {MANIFEST}, but this program reads version "
            f"{VERSION}: use the release that wrote it, or harvest again into another folder."
        )
    known = {field.name for field in fields(Manifest)}
    if missing := known - {*_OPTIONAL} - content.keys():
        raise StoreError(
            f"{path} lacks {', '.join(sorted(missing))}: it is damaged; delete the store and harvest again."
        )
    if content.pop(_DIGEST, None) != digest_of_entries(content):
        raise StoreError(
            f"The content of {path} does not match its checksum: it was changed after it was written; put the "
            "original back, or harvest again into another folder."
        )
    _check(content, path)
    return Manifest(**{name: content.get(name) for name in known})


def _check(content: dict[str, Any], path: Path) -> None:
    """Refuse a manifest whose entries are not what the format says."""
    for expected, holds, names in _RULES:
        for name in names:
            entry, _, part = name.partition(".")
            value = content[entry].get(part) if part else content.get(entry)
            # What a run does not have may be missing or null: a part of an object, and the optional entries.
            optional = name in _OPTIONAL or (part and name != "policy.name")
            if not (holds(value) or (optional and value is None)):
                raise StoreError(
                    f"Expected {name} of {path} to be {expected}, got {reprlib.repr(value)}: it is damaged; put the "
                    "original back, or harvest again into another folder."
                )


def digest_of_entries(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a file's entries as compact JSON with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(stored: Manifest, wanted: Manifest) -> str:
    """Return in words what distinguishes two runs, as far as it decides the trajectories, at most three entries."""
    texts = []
    for name in ("kind", "policy", "arms", "model", "benchmark", "seed", "aggregator"):
        one, other = (json.loads(json.dumps(getattr(m, name), default=str)) for m in (stored, wanted))
        texts += differing(name, one, other)
    return "; ".join(texts[:3]) or "the settings differ"


def differing(name: str, stored: Any, wanted: Any) -> list[str]:
    """Return in words how two JSON values differ, one entry for each that does; ``name`` is that of the whole."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = [*stored, *(key for key in wanted if key not in stored)]
        return [text for key in keys for text in differing(f"{name}.{key}", stored.get(key), wanted.get(key))]
    # Prompt templates and lists can be long; a sentence must stay one.
    return [] if stored == wanted else [f"{name} was {reprlib.repr(stored)} and is now {reprlib.repr(wanted)}"]
