"""Writing files so that a reader never sees half of one, whatever happens to the writer."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feature_store.errors import StoreError

TEMPORARY = ".tmp"
"""Ending of a file that is being written, after the writer's process id; readers pass over it."""


def write_once(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, bring it to the disk, then give it its own name, if that is free.

    Raises FileExistsError if ``path`` exists.
    """
    with _on_disk(path, content) as temporary:
        try:
            # A link fails where the name is taken; a rename would silently replace what another writer has put there.
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links, such as FAT and some network folders
            if path.exists():
                raise FileExistsError(f"{path} exists") from None
            os.rename(temporary, path)


def replace_file(path: Path, content: bytes | str) -> None:
    """Write a file that takes the place of what has its name, whole or not at all; a link there is not followed.

    A text is written as UTF-8, lone surrogates (which UTF-8 does not have) as escapes.
    """
    encoded = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with _on_disk(path, encoded) as temporary:
        os.replace(temporary, path)


@contextmanager
def _on_disk(path: Path, content: bytes) -> Iterator[Path]:
    """Give a new file with this content beside ``path``, brought to the disk, to take that name; then sync the name."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    temporary.unlink(missing_ok=True)  # of a predecessor with our process id
    try:
        with open(temporary, "xb") as file:  # never through a link that somebody has put there
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temporary file to write, which gets its own name when it is whole; its folder is made if missing.

    Raises StoreError if a file with other content stands there, which is left as it is.
    """
    if path.is_dir():
        raise StoreError(f"Expected the name of a file, but {path} is a folder: name a file in it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}{TEMPORARY}.{path.name}")  # its ending says what it holds
    try:
        yield temporary
        if path.exists() and not filecmp.cmp(temporary, path, shallow=False):
            raise StoreError(f"{path} is there already, with other content: name another file, or delete it.")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill, which gets its own name when it is whole; otherwise nothing is left of it.

    Raises StoreError if something but an empty folder stands there.
    """
    if path.exists() and not path.is_dir():
        raise StoreError(f"Expected a folder for the new store, but {path} is a file: choose another.")
    if path.is_dir() and (names := sorted(entry.name for entry in path.iterdir())):
        raise StoreError(f"Expected an empty folder for the new store, but {path} holds {names[0]}: choose another.")
    path = Path(os.path.abspath(path))
    unfinished = path.with_name(f"{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    make_folder(unfinished)
    try:
        yield unfinished
        os.rename(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, each of them brought to the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's own entries to the disk, so that a new name survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove the temporary files of killed writers, by the pattern of their final names; those of running ones stay."""
    for leftover in folder.glob(f"{pattern}.*{TEMPORARY}"):
        process = leftover.name.removesuffix(TEMPORARY).rpartition(".")[2]
        if process.isdecimal() and not _runs(int(process)):
            leftover.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether another process of that id runs; our own id on a leftover is that of a predecessor."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # a process of another user
        return True
    return process != os.getpid()
