"""Writing files so that a reader never sees half of one, whatever happens to the writer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

TEMPORARY = ".tmp"
"""Ending of a file that is being written; readers pass over it."""


def write_once(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file under a temporary name, bring it to the disk, then give it its own name.

    Args:
        path: The final name; nothing may stand there.
        write: Writes the whole file at the path that it is given.

    Raises:
        FileExistsError: If ``path`` exists.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        write(temporary)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        # A link fails where the name is taken; a rename would silently replace what another writer has put there.
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's own entries to the disk, so that a new name survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
