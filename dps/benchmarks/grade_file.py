"""``dps grade FILE``: grade responses that came from anywhere, without a store and without a model.

The file is streamed: verdicts are written in the order of its lines, and in memory are those that wait for a slower
one before them or for the rest of their group. Lines are written as a whole, and the same command goes on from what an
interrupted run has left.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import astuple, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from dps.benchmarks.benchmark import Item
from dps.benchmarks.grading import Grader, Reading, read
from dps.benchmarks.kinds import KINDS, grader_of_kind
from dps.benchmarks.responses import Checked, Name, read_responses
from dps.errors import InputError

_THREADS = 8
_AHEAD = 64
"""Responses that are read ahead of the one that is written next."""

_T = TypeVar("_T")


@dataclass(slots=True)
class Tally:
    """What became of the responses of a kind."""

    responses: int = 0
    right: int = 0
    wrong: int = 0
    ungradable: int = 0
    """Without a gold answer, or with a verdict that could not be reached."""
    without_answer: int = 0
    """In which no answer is found, whatever their grade."""
    disagreements: int = 0
    """Whose grade is another where only the strict form of an answer counts."""

    def add(self, verdict: dict[str, Any]) -> None:
        """Count one."""
        self.responses += 1
        self.right += verdict["correct"] is True
        self.wrong += verdict["correct"] is False
        self.ungradable += verdict["correct"] is None
        self.without_answer += verdict["answer"] is None
        self.disagreements += verdict["correct"] is not verdict["strict_correct"]


@dataclass(frozen=True, slots=True)
class Graded:
    """What grading a file did."""

    tallies: dict[str, Tally]
    """By kind, of the kinds that occur."""
    kept: int
    """Responses that an earlier, interrupted run had graded."""

    def words(self) -> str:
        """Return a table of the counts, a line for each kind."""
        titles = ("kind", "responses", "right", "wrong", "ungradable", "no answer", "strict differs")
        rows = [titles, *((kind, *(f"{count:,}" for count in astuple(t))) for kind, t in self.tallies.items())]
        lines = ["".join(cell.rjust(16) if i else cell.ljust(8) for i, cell in enumerate(row)) for row in rows]
        if self.kept == sum(tally.responses for tally in self.tallies.values()):
            lines.append("All of them were graded before, nothing was done: delete the output to grade them again.")
        elif self.kept:
            lines.append(f"{self.kept:,} of them were graded by a run that was interrupted.")
        return "\n".join(lines)


def grade_file(
    path: Path, output: Path, checked: Checked, progress: Callable[[int], None] = lambda count: None
) -> Graded:
    """Grade a file of responses line by line.

    Args:
        path: The file.
        output: File of the verdicts, a line each, in the same order. If it holds the first of them, the rest is added.
        checked: What :func:`check_responses` found in it.
        progress: Called with the number of lines that were done since the last call.

    Raises:
        InputError: If the output is there and is not the beginning of this, or cannot be written.
    """
    tallies = {kind: Tally() for kind in KINDS}
    kept = size = 0
    for kind, verdict, end in _there(path, output, checked):
        tallies[kind].add(verdict)
        kept, size = kept + 1, end
    progress(kept)
    with _Lines(output, size) as lines, closing(_verdicts(path, checked, kept)) as verdicts:
        for kind, verdict in verdicts:
            lines.write(verdict)
            tallies[kind].add(verdict)
            progress(1)
    return Graded({kind: tally for kind, tally in tallies.items() if tally.responses}, kept)


def _there(path: Path, output: Path, checked: Checked) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yield kind and verdict of each response whose verdict stands in the output already, and where its line ends.

    Raises:
        InputError: If the output is not what an interrupted run of the same responses leaves.
    """
    if not output.exists():
        return
    refusal = f"Expected no file {output}, or one that an interrupted run of the same command left, but it"
    if not output.is_file():
        raise InputError(f"Expected --output to be a file, but {output} is none: choose another.")
    if path.stat().st_mtime > output.stat().st_mtime:
        raise InputError(f"{refusal} is older than {path}: delete it, or choose another --output.")
    count = size = 0
    with output.open("rb") as file:
        for response, line in zip(read_responses(path), file, strict=False):
            if count and not line.endswith(b"\n"):
                break  # a killed run was in the midst of it
            try:
                verdict = json.loads(line)
                fits = verdict["id"] == response.id and {"answer", "correct", "strict_correct"} <= verdict.keys()
            except (ValueError, TypeError, KeyError, AttributeError):
                fits = False
            if not fits:
                raise InputError(f"{refusal} has something else on line {count + 1}: choose another --output.")
            count, size = count + 1, size + len(line)
            yield response.kind, verdict, size


@dataclass(slots=True)
class _Group:
    """The lines of a group, as far as they have been reached."""

    item: Item
    readings: list[Future[Reading]] = field(default_factory=list)
    classes: Future[list[int]] | None = None
    """Set with the last line."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A response whose verdict has not been written."""

    id: Name
    kind: str
    reading: Future[Reading]
    group: _Group | None
    place: int
    """In the group."""

    @property
    def started(self) -> bool:
        """Whether everything that the verdict needs is under way."""
        return self.group is None or self.group.classes is not None

    @property
    def done(self) -> bool:
        """Whether it can be written at once."""
        return self.reading.done() and (self.group is None or (self.started and self.group.classes.done()))

    def verdict(self) -> dict[str, Any]:
        """Return what is written; waits for it."""
        reading = self.reading.result()
        return {
            "id": self.id,
            "answer": reading.answer,
            "correct": reading.correct,
            "strict_answer": reading.strict_answer,
            "strict_correct": reading.strict_correct,
            "class": None if self.group is None else self.group.classes.result()[self.place],
        }


def _verdicts(path: Path, checked: Checked, skipped: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield kind and verdict of each response in order, but for the first ones; of these groups may still need some."""
    waiting: deque[_Waiting] = deque()
    groups: dict[Name, _Group] = {}
    threads = _Threads()
    try:
        begun = islice(read_responses(path), skipped)
        last = max((response.number for response in begun), default=0)
        for response in read_responses(path):
            name = response.group
            if response.number <= last and (name is None or checked.groups[name].last <= last):
                continue
            grader = grader_of_kind(response.kind)
            reading = threads.start(grader, read, grader, response.text, response.item, response.prompt)
            group = groups.setdefault(name, _Group(response.item)) if name is not None else None
            if group is not None:
                group.readings.append(reading)
                if len(group.readings) == checked.groups[name].size:
                    group.classes = threads.start(grader, _classes, grader, group)
                    del groups[name]
            if response.number > last:
                place = len(group.readings) - 1 if group is not None else 0
                waiting.append(_Waiting(response.id, response.kind, reading, group, place))
            while waiting and waiting[0].started and (waiting[0].done or len(waiting) > _AHEAD):
                first = waiting.popleft()
                yield first.kind, first.verdict()
        if groups:
            raise InputError(f"{path} was changed while it was graded: grade it again.")
        while waiting:
            first = waiting.popleft()
            yield first.kind, first.verdict()
    finally:
        threads.close()


def _classes(grader: Grader, group: _Group) -> list[int]:
    """Return the classes of a group's answers; its readings were started before this was."""
    return grader.classes([reading.result().answer for reading in group.readings], group.item)


class _Threads:
    """Runs what graders do: at once, or in threads where that takes long."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS)
        self._running: deque[Future[Any]] = deque()

    def start(self, grader: Grader, function: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Begin something; where too much is under way, wait for the oldest first."""
        if not grader.in_background:
            found: Future[_T] = Future()
            found.set_result(function(*arguments))
            return found
        while len(self._running) >= _AHEAD or (self._running and self._running[0].done()):
            self._running.popleft().result()
        self._running.append(self._threads.submit(function, *arguments))
        return self._running[-1]

    def close(self) -> None:
        """End without beginning anything more."""
        self._threads.shutdown(cancel_futures=True)


class _Lines:
    """A file of whole lines: one that is cut short, by a signal or a full disk, is taken away again."""

    def __init__(self, path: Path, size: int) -> None:
        """Open a file to add lines behind the first bytes, which are kept."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}): choose another --output.") from error
        self._file.truncate(size)
        self._path, self._size = path, size

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.truncate(self._size)
        self._file.close()
        if not self._size:
            self._path.unlink()

    def write(self, record: dict[str, Any]) -> None:
        """Add a line."""
        line = memoryview(json.dumps(record).encode() + b"\n")
        whole = self._size + len(line)
        while line:
            line = line[self._file.write(line) :]
        self._size = whole
