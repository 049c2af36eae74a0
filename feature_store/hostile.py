"""What a store made by somebody else must not do to whoever opens it.

A store is handed on: unpacked from an archive, copied from a colleague, fetched from the network. So its files are data
that nobody vouches for. A file must be a file and not a link to another one; HDF5 must keep its values in the file
itself and hold about as many as it declares; JSON must be as deep, as long and of the types that the format says.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import h5py

from feature_store.errors import StoreError

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

LARGEST_JSON = 64 * 2**20
"""Bytes of the largest manifest that is read."""

_FILTERS = frozenset({h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32})
"""How the datasets of the format may be packed, each way once; others could load code or pack without bound."""
_MOST_PACKED = 1100
"""Values are at most this many times as large as what holds them: deflate packs at most 1,032 to 1."""
_LARGEST_ATTRIBUTE = 4096
"""Bytes of the largest attribute that is read."""


# -- files -------------------------------------------------------------------------------------------------------------


def check_file(path: Path) -> None:
    """Refuse what is no regular file.

    Raises:
        StoreError: If it is a link, a pipe, a socket or a device.
        OSError: If there is nothing, it is a folder, or it cannot be looked at.
    """
    _check_kind(path, os.lstat(path).st_mode)


def open_in_place(path: Path, flags: int) -> int:
    """Open a file that is written where it stands, without following a link; make it if it is missing.

    Returns:
        The descriptor.

    Raises:
        StoreError: If it is no regular file, or has another name as well, under which it would change, too.
        OSError: If the system refuses.
    """
    if os.path.lexists(path):
        check_file(path)
    # A pipe that takes the file's place meanwhile must not block; on a regular file the flag means nothing.
    descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        found = os.fstat(descriptor)
        _check_kind(path, found.st_mode)
        if found.st_nlink > 1:
            raise StoreError(
                f"Expected {path} to be a file of its own, but it has {found.st_nlink} names (hard links), and writing "
                "to it would change them all: delete it and run the command again."
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_kind(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "none")
        raise StoreError(f"Expected {path} to be a regular file, but it is {kind}: put the file itself there.")


# -- JSON --------------------------------------------------------------------------------------------------------------


def parse_json(text: str | bytes) -> Any:
    """Return a JSON value; raises ValueError for what is none, nested too deep, or too large for the memory."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except MemoryError:
        raise ValueError("it is too large for the memory") from None


def read_json(path: Path) -> Any:
    """Return the JSON value of a regular file of at most :data:`LARGEST_JSON` bytes.

    Raises:
        StoreError: If it is no regular file.
        OSError: If it cannot be read.
        ValueError: If it is no JSON in UTF-8, nested too deep, or too large.
    """
    check_file(path)
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(f"it has {size:,} bytes, more than {LARGEST_JSON:,}")
    return parse_json(path.read_text(encoding="utf-8"))


_TYPES: dict[str, type] = {
    "kind": str,
    "policy": dict,
    "aggregator": str,
    "seed": int,
    "model": dict,
    "benchmark": dict,
    "sampler": dict,
    "calibration": dict,
    "config": dict,
    "fingerprint": str,
    "software": dict,
}
"""Types of a manifest's fields."""
_TYPES_OF_POLICY: dict[str, type] = {"name": str, "start": int, "step": int, "maximum": int, "ks": list}
_TYPES_OF_MODEL: dict[str, type] = {"name": str, "fingerprint": str, "feature_layer": int, "hidden_size": int}
_TYPES_OF_BENCHMARK: dict[str, type] = {"name": str, "source": str, "split": str}
_LARGEST_K = 1 << 20
_IN_WORDS = {str: "a text", dict: "an object", int: "a whole number", list: "a list"}


def check_manifest(content: dict[str, Any], path: Path) -> None:
    """Refuse a manifest whose fields have other types than the format says.

    Raises:
        StoreError: With the first field that is wrong.
    """
    _check_types(content, _TYPES, "", path)
    policy = content["policy"]
    if "name" not in policy:
        raise StoreError(f"{path} names no policy (policy.name): it is damaged; put the original back.")
    _check_types(policy, _TYPES_OF_POLICY, "policy.", path)
    _check_types(content["model"], _TYPES_OF_MODEL, "model.", path)
    _check_types(content["benchmark"], _TYPES_OF_BENCHMARK, "benchmark.", path)
    ks = policy.get("ks")
    numbers = {f"policy.ks[{i}]": k for i, k in enumerate(ks or ())}
    numbers |= {f"policy.{name}": policy[name] for name in ("start", "step", "maximum") if name in policy}
    for name, value in numbers.items():
        if not (_is(value, int) and 1 <= value <= _LARGEST_K):
            raise _wrong(path, name, f"a whole number from 1 to {_LARGEST_K:,}", value)
    if ks == []:
        raise _wrong(path, "policy.ks", "a list of at least one number", ks)
    ids = content.get("question_ids")
    if ids is not None and not (isinstance(ids, list) and all(isinstance(name, str) for name in ids)):
        raise _wrong(path, "question_ids", "a list of texts", ids)
    if not isinstance(content.get("device"), str | None):
        raise _wrong(path, "device", "a text", content["device"])
    for name, value in content["calibration"].items():
        if not (_is(value, int, float) and math.isfinite(value) and value >= 0):
            raise _wrong(path, f"calibration.{name}", "a number of at least 0", value)


def _check_types(content: dict[str, Any], types: dict[str, type], where: str, path: Path) -> None:
    for name, of in types.items():
        # What a run does not have may be missing or null, except the manifest's own fields.
        if where and content.get(name) is None:
            continue
        if not _is(content[name], of):
            raise _wrong(path, where + name, _IN_WORDS[of], content[name])


def _is(value: Any, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def _wrong(path: Path, name: str, expected: str, value: Any) -> StoreError:
    shown = repr(value) if isinstance(value, str | int | float | None) else f"{type(value).__name__} of {len(value)}"
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return StoreError(
        f"Expected {name} of {path} to be {expected}, got {shown}: it is damaged; put the original back, or harvest "
        "again into another folder."
    )


# -- HDF5 --------------------------------------------------------------------------------------------------------------


class HostileFile(ValueError):
    """An HDF5 file reaches beyond itself; the message is the rest of a sentence that begins with its path."""


def dataset_in(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset by its full name, if the file itself holds its values.

    Raises:
        HostileFile: If a link leads elsewhere, the values lie in other files, they are packed in a way that the format
            does not have, or there are far more of them than the file has room for.
        KeyError: If there is no dataset of that name.
    """
    here: Any = file
    for part in name.split("/"):
        link = here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
        if link is None:
            raise KeyError(name)
        if not isinstance(link, h5py.HardLink):
            raise HostileFile(f"reaches {name} by a link, where a store has the data themselves")
        here = here[part]
    if not isinstance(here, h5py.Dataset):
        raise KeyError(name)
    _check_storage(here, name)
    return here


def _check_storage(dataset: h5py.Dataset, name: str) -> None:
    properties = dataset.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count():
        raise HostileFile(f"keeps {name} in other files, where a store has the data themselves")
    filters = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
    if len(set(filters)) < len(filters) or not _FILTERS.issuperset(filters):
        raise HostileFile(f"packs {name} in a way that the format does not have")
    if dataset.size == 0:
        return  # nothing is read
    stored, room = dataset.id.get_storage_size(), os.stat(dataset.file.filename).st_size
    chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if stored > room or max(dataset.nbytes, chunk) > _MOST_PACKED * stored:
        raise HostileFile(
            f"declares {dataset.size:,} values of {name} ({dataset.nbytes:,} bytes), far more than its {room:,} bytes "
            "can hold"
        )


def attribute_in(file: h5py.File, name: str) -> Any:
    """Return a small attribute of a file; None if there is none.

    Raises:
        HostileFile: If it is large.
    """
    if name not in file.attrs:
        return None
    if file.attrs.get_id(name).get_storage_size() > _LARGEST_ATTRIBUTE:
        raise HostileFile(f"has an attribute {name} of more than {_LARGEST_ATTRIBUTE:,} bytes")
    return file.attrs[name]
