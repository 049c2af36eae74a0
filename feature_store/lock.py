"""One run at a time in a folder: the second is refused while the first runs, and nothing is left of a killed one."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feature_store.errors import StoreError
from feature_store.files import make_folder
from feature_store.hostile import open_in_place

LOCK = "run.lock"
"""Name of the file that is locked; it stays, and says who holds or held it."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder for this process and its children.

    The kernel keeps the lock (``flock``) and drops it when the process ends, however it ends; so there is no lock to
    clean up. On a network file system it is as good as that system's locks; on one without locks nobody is refused.

    Raises StoreError if another run holds the folder, or it cannot be written.
    """
    try:
        make_folder(folder)
        descriptor = open_in_place(folder / LOCK, os.O_RDWR)
    except OSError as error:
        raise StoreError(f"Cannot write to {folder} ({error.strerror}): choose another output.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            raise StoreError(
                f"Another run writes to {folder} just now ({holder}): wait for it, stop it, or choose another output."
            ) from None
        except OSError:
            pass  # a file system without locks: nothing says whether another run writes here
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError as error:
            raise StoreError(
                f"Cannot write to {folder} ({error.strerror}): make room or access for it, or choose another output."
            ) from error
        yield
    finally:
        os.close(descriptor)
