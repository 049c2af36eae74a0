"""The progress of a store as lines of JSON in its folder, and as TensorBoard scalars, for who watches from elsewhere.

A line is written after the questions that it counts are on the disk, so a line never says more than the store holds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from dps.run.progress import Progress
from feature_store.errors import StoreError
from feature_store.hostile import open_in_place

PROGRESS = "progress.jsonl"
"""Name of the file beside the manifest; every run of the store appends to it."""
TENSORBOARD = "tensorboard"
"""Name of the folder of TensorBoard's events; every run of the store adds a file."""
_EVERY_S = 1.0
"""Seconds between two lines, at least."""
_NEVER_S = 1 << 30


class ProgressLog:
    """Appends lines while a store is being filled."""

    def __init__(self, folder: Path, before: int, total: int, *, tensorboard: bool = False) -> None:
        """Open the file.

        Args:
            folder: The store.
            before: Questions that it held when the run started.
            total: Questions that it will hold.
            tensorboard: Whether the numbers become TensorBoard scalars, too, which needs that package.

        Raises:
            StoreError: If the file cannot be written; so do the other methods.
        """
        self._folder = folder
        with _writing(folder):
            # Unbuffered, so that what a full disk refuses is not tried again when the file is closed.
            self._file = FileIO(open_in_place(folder / PROGRESS, os.O_RDWR | os.O_APPEND), "r+")
            _drop_half_line(self._file)
            self._scalars = _Scalars(_own_folder(folder / TENSORBOARD)) if tensorboard else None
        self._before = before
        self._progress = Progress(str(folder), total - before)
        self._last = float("-inf")
        self._pending: dict[str, Any] | None = None

    def __enter__(self) -> ProgressLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _writing(self._folder), ExitStack() as stack:
            stack.callback(self._file.close)
            if self._scalars is not None:
                stack.callback(self._scalars.close)
            if self._pending is not None:
                self._write(self._pending)

    def note(self, done: int, values: dict[str, Any], age_s: float = 0.0) -> None:
        """Say how far the run is; a line is written if the last is a second old, or when the run ends.

        Args:
            done: Questions that this run has committed.
            values: What else there is to say: JSON values.
            age_s: Seconds since the last of these questions was admitted; the run's time is counted from the first
                admission.
        """
        progress = self._progress
        progress.began_before(age_s)
        progress.done = done
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "questions": self._before + done,
            "total": self._before + progress.total,
            "elapsed_s": round(progress.elapsed_s, 3),
            "questions_per_min": round(60 * progress.per_second, 3),
            "left_s": round((progress.total - done) / progress.per_second, 1) if done else None,
            **values,
        }
        self._pending = line
        if progress.elapsed_s - self._last >= _EVERY_S:
            self._last = progress.elapsed_s
            self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        with _writing(self._folder):
            content = json.dumps(line).encode() + b"\n"
            while content:  # a disk that is nearly full takes a part, and refuses the rest
                content = content[self._file.write(content) :]
            if self._scalars is not None:
                self._scalars.write(line)
        self._pending = None


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Let what goes wrong with a store's progress be a sentence."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"Cannot write the progress of the store {folder} ({error.strerror or error}): what it held is kept; make "
            "room or access for it and run the command again."
        ) from error


def _drop_half_line(file: FileIO) -> None:
    """Remove what a killed run, or a full disk, left of a line at the end."""
    content = file.read()
    if content and not content.endswith(b"\n"):
        file.truncate(content.rfind(b"\n") + 1)


def _own_folder(folder: Path) -> Path:
    """Return the folder; refuse one that is a link to another."""
    if folder.is_symlink():
        raise StoreError(f"Expected {folder} to be a folder, but it is a symbolic link: put the folder itself there.")
    return folder


class _Scalars:
    """The lines as TensorBoard scalars: one for each number, its step the questions done."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Every line is flushed here: a background thread could only print what a full disk makes it raise.
        self._writer = SummaryWriter(str(folder), flush_secs=_NEVER_S)

    def write(self, line: dict[str, Any]) -> None:
        """Write the numbers of a line; what it has no number for is left out."""
        step = line["questions"]
        wall_time = datetime.fromisoformat(line["time"]).timestamp()
        for name, value in line.items():
            if name not in ("time", "questions", "total") and value is not None:
                self._writer.add_scalar(name, value, step, walltime=wall_time)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
