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

_KINDS = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}

LARGEST_JSON = 64 * 2**20
"""Bytes of the largest manifest that is read."""

_FILTERS = frozenset({h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32})
"""How the datasets of the format may be packed, each way once; others could load code or pack without bound."""
_MOST_PACKED = 1100
"""Values are at most this many times as large as what holds them: deflate packs at most 1,032 to 1."""
_LARGEST_ATTRIBUTE = 4096
"""Bytes of the largest attribute that is read."""


def check_file(path: Path) -> None:
    """Raise StoreError for a link, a pipe, a socket or a device; OSError for a folder and where nothing can be read."""
    _check_kind(path, os.lstat(path).st_mode)


def open_in_place(path: Path, flags: int) -> int:
    """Return the descriptor of a file that is written where it stands, without following a link; make a missing one.

    Raises StoreError if it is no regular file, or has another name as well, under which it would change, too.
    """
    if os.path.lexists(path):
        check_file(path)
    # A pipe that takes the file's place meanwhile must not block; on a regular file the flag means nothing.
    descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        status = os.fstat(descriptor)
        _check_kind(path, status.st_mode)
        if (names := status.st_nlink) > 1:
            raise StoreError(
                f"Expected {path} to be a file of its own, but it has {names} names (hard links), and writing to it "
                "would change them all: delete it and run the command again."
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_kind(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a device")
        raise StoreError(f"Expected {path} to be a regular file, but it is {kind}: put the file itself there.")


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

    Raises StoreError if it is no regular file, OSError if it cannot be read, ValueError as :func:`parse_json`.
    """
    check_file(path)
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(f"it has {size:,} bytes, more than {LARGEST_JSON:,}")
    return parse_json(path.read_text(encoding="utf-8"))


class HostileFile(ValueError):
    """An HDF5 file reaches beyond itself; the message is the rest of a sentence that begins with its path."""


def dataset_in(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset by its full name, if the file itself holds its values.

    Raises HostileFile if a link leads elsewhere, the values lie in other files, are packed in a way that the format
    does not have, or are far more than the file has room for; KeyError if there is no dataset of that name.
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
    """Return a small attribute of a file; None if there is none; raises HostileFile if it is large."""
    if name not in file.attrs:
        return None
    if file.attrs.get_id(name).get_storage_size() > _LARGEST_ATTRIBUTE:
        raise HostileFile(f"has an attribute {name} of more than {_LARGEST_ATTRIBUTE:,} bytes")
    return file.attrs[name]
