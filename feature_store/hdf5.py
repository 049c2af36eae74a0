"""The one place that opens HDF5 files: never with a lock, which some file systems lack and no file here needs.

What is written gets its name only when it is whole, and does not change afterwards; so a reader needs no lock.
"""

from __future__ import annotations

from pathlib import Path

import h5py


def open_hdf5(path: Path | str, mode: str = "r") -> h5py.File:
    """Open an HDF5 file on any file system; arguments and errors are those of ``h5py.File``."""
    return h5py.File(path, mode, locking=False)


def hdf5_in_memory() -> h5py.File:
    """Return a new HDF5 file in memory, because HDF5 itself does not survive a disk that fills up under it.

    The format of HDF5 1.10 is smaller than the older default and has checksums of its own over all headers.
    """
    return h5py.File("in-memory", "w", driver="core", backing_store=False, libver=("v110", "v110"))


def image_of(file: h5py.File) -> bytes:
    """Return the bytes of a file in memory."""
    file.flush()
    return file.id.get_file_image()
