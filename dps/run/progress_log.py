"""How far the stores of a run are: one bar on stderr, and for each store lines of JSON in its folder.

A line is written after the questions that it counts are on the disk, so a line never says more than the store holds.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

from dps.run.committer import Died, Done
from dps.run.progress import Progress, track
from dps.start import Started, current, words
from feature_store.errors import StoreError
from feature_store.hostile import open_in_place

PROGRESS = "progress.jsonl"
"""Name of the file beside the manifest; every run of the store appends to it."""
TENSORBOARD = "tensorboard"
"""Name of the folder of TensorBoard's events; every run of the store adds a file."""
_EVERY_S = 1.0
"""Seconds between two lines, at least."""
_NEVER_S = 1 << 30


class Display:
    """One bar over all stores with running totals, and their logs."""

    def __init__(
        self,
        kind: str,
        stores: Sequence[tuple[Path, str, int]],
        total: int,
        groups: Sequence[Sequence[int]],
        *,
        tensorboard: bool = False,
    ) -> None:
        """Prepare.

        ``stores`` are folder and policy of each store, and the questions that it held when the run began; ``total`` is
        what each will hold; ``groups`` are the numbers of the stores whose policies share their trajectories.
        """
        self._stores = stores
        self._group_of = {store: number for number, group in enumerate(groups) for store in group}
        self._open = partial(ProgressLog, total=total, tensorboard=tensorboard)
        self._logs: dict[int, ProgressLog] = {}
        self._sampled = 0
        self._counted: dict[tuple[int, str], tuple[int, int]] = {}
        """By group and question: the trajectories whose tokens are in the sum, the first so many."""
        self._behind: dict[int, int] = {}
        """By worker: questions whose responses waited to be read when it last reported."""
        names = ", ".join(name for _, name, before in stores if before < total)
        self._track = track(f"{kind} ({names})", sum(total - before for _, _, before in stores))
        self._kind = kind
        self._start: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Display:
        self._bar = self._stack.enter_context(self._track)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)

    @property
    def counts(self) -> list[int]:
        """Questions that were shown, of each store."""
        return [self._logs[n].progress.done if n in self._logs else 0 for n in range(len(self._stores))]

    def show(self, done: Done | Started | Died) -> None:
        """Count one committed question; its tokens once, however many policies share them.

        When a worker's first tokens are there, keep what the start took: of several workers, until the last has some.
        """
        if isinstance(done, Started):
            return self._note_start(done)
        if isinstance(done, Died):  # what it was behind with goes back to the queue
            self._behind.pop(done.worker, None)
            return None
        key = self._group_of[done.store], done.question_id
        counted, cancelled = self._counted.get(key, (0, 0))
        self._sampled += sum(done.tokens[counted:]) + max(0, done.cancelled - cancelled)
        self._counted[key] = max(counted, len(done.tokens)), max(cancelled, done.cancelled)
        folder, name, before = self._stores[done.store]
        if done.store not in self._logs:
            self._logs[done.store] = self._stack.enter_context(self._open(folder, before))
            self._logs[done.store].start = self._start
        log = self._logs[done.store]
        self._behind[done.worker] = done.behind
        behind = sum(self._behind.values())
        log.add(done, behind)
        self._bar.advance(1)
        grading = f"{behind:,} question{'s' * (behind > 1)} behind" if behind else None
        self._bar.note(policy=name, tokens=self._sampled, **log.words(), grading=grading)
        log.write()

    def _note_start(self, worker: Started) -> None:
        start = current()
        if start is None or start.total_s is None:
            return
        if not self._start:
            print(f"{self._kind}: {words(start.total_s, start.seconds)}", file=sys.stderr, flush=True)
        self._start |= {"start_s": round(start.total_s, 3), "start": start.summary()}
        if worker.seconds != self._start["start"]:
            self._start["worker_start"] = {"worker": worker.worker, "start_s": worker.total_s, **worker.seconds}


class ProgressLog:
    """Running totals of a store, of the questions of this run, and the log in its folder that they are appended to."""

    def __init__(self, folder: Path, before: int, total: int, *, tensorboard: bool = False) -> None:
        """Open the log of a store that held ``before`` questions when the run began, and will hold ``total``.

        Raises:
            StoreError: If the log cannot be written; so do the other methods.
        """
        self._folder, self._before = folder, before
        self.progress = Progress(str(folder), total - before)
        self._tokens = self._trajectories = self._graded = self._correct = self._proposed = self._accepted = 0
        self._gpu_gib: float | None = None
        """Of the worker that has had most in use."""
        self._spent: dict[int, dict[str, float]] = {}
        """By worker, as it said last; what a killed one spent stays."""
        self._behind = 0
        self.start: dict[str, Any] = {}
        """What the start took, for every line: in all, and by stage."""
        self._last = float("-inf")
        self._pending = False
        with _writing(folder):
            # Unbuffered, so that what a full disk refuses is not tried again when the file is closed.
            self._file = FileIO(open_in_place(folder / PROGRESS, os.O_RDWR | os.O_APPEND), "r+")
            content = self._file.read()
            if content and not content.endswith(b"\n"):  # what a killed run, or a full disk, left of a line
                self._file.truncate(content.rfind(b"\n") + 1)
            self._scalars = _Scalars(folder / TENSORBOARD) if tensorboard else None

    def __enter__(self) -> ProgressLog:
        return self

    def __exit__(self, *error: object) -> None:
        with _writing(self._folder), ExitStack() as stack:
            stack.callback(self._file.close)
            if self._scalars is not None:
                stack.callback(self._scalars.close)
            if self._pending:
                self._write_line()

    def add(self, done: Done, behind: int = 0) -> None:
        """Count a question, while the responses of so many wait to be read; the time runs from the first admission."""
        self._behind = behind
        self.progress.began_before(done.age_s)
        self.progress.advance()
        self._tokens += sum(done.tokens) + done.cancelled
        self._trajectories += len(done.tokens)
        self._graded += done.correct is not None
        self._correct += bool(done.correct)
        self._proposed += done.proposed
        self._accepted += done.accepted
        if done.gpu_gib is not None:
            self._gpu_gib = max(done.gpu_gib, self._gpu_gib or 0.0)
        if done.spent is not None:
            self._spent[done.worker] = done.spent

    def words(self) -> dict[str, str]:
        """Return the totals in words."""
        words = {"mean k": f"{self._trajectories / self.progress.done:.2f}"}
        if self._graded:
            words["right"] = f"{self._correct / self._graded:.1%}"
        if self._proposed:
            words["accepted"] = f"{self._accepted / self._proposed:.0%}"
        if self._gpu_gib is not None:
            words["GPU GiB"] = f"{self._gpu_gib:.1f}"
        return words

    def write(self) -> None:
        """Write a line if the last is a second old; otherwise later, at the end of the run at the latest."""
        self._pending = True
        if self.progress.elapsed_s - self._last >= _EVERY_S:
            self._last = self.progress.elapsed_s
            with _writing(self._folder):
                self._write_line()

    def _write_line(self) -> None:
        progress = self.progress
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "questions": self._before + progress.done,
            "total": self._before + progress.total,
            "elapsed_s": round(progress.elapsed_s, 3),
            "questions_per_min": round(60 * progress.per_second, 3),
            "left_s": round((progress.total - progress.done) / progress.per_second, 1),
            "tokens": self._tokens,
            "mean_k": round(self._trajectories / progress.done, 3),
            "accuracy": round(self._correct / self._graded, 4) if self._graded else None,
            "acceptance_ratio": round(self._accepted / self._proposed, 4) if self._proposed else None,
            "grading_behind": self._behind,
            "gpu_gib": round(self._gpu_gib, 2) if self._gpu_gib is not None else None,
            "spent": self._spent_by_all(),
            **self.start,
        }
        content = json.dumps(line).encode() + b"\n"
        while content:  # a disk that is nearly full takes a part, and refuses the rest
            content = content[self._file.write(content) :]
        if self._scalars is not None:
            self._scalars.write(line)
        self._pending = False

    def _spent_by_all(self) -> dict[str, float] | None:
        """Return what the workers spent together, and how many they are; None before any has said so."""
        total: Counter[str] = Counter()
        for numbers in self._spent.values():
            total.update(numbers)
        rounded = {name: round(value, 3) for name, value in total.items()}
        return {"workers": len(self._spent), **rounded} if self._spent else None


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


class _Scalars:
    """The lines as TensorBoard scalars: one for each number, its step the questions done."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if folder.is_symlink():
            raise StoreError(
                f"Expected {folder} to be a folder, but it is a symbolic link: put the folder itself there."
            )
        # Every line is flushed here: a background thread could only print what a full disk makes it raise.
        self._writer = SummaryWriter(str(folder), flush_secs=_NEVER_S)

    def write(self, line: dict[str, Any]) -> None:
        """Write the numbers of a line; what it has no number for is left out."""
        wall_time = datetime.fromisoformat(line["time"]).timestamp()
        for name, value in line.items():
            if name not in ("time", "questions", "total") and isinstance(value, int | float):
                self._writer.add_scalar(name, value, line["questions"], walltime=wall_time)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
