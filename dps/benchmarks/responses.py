"""``dps grade FILE``: grade responses that came from anywhere, as lines of JSON, without a store and without a model.

A line is ``{"id", "kind", "response", "gold"}`` with what its kind needs; docs/benchmarks.md has all fields. The file
is streamed: verdicts are written in the order of its lines, and in memory are those that wait for a slower one before
them or for the rest of their group. Lines are written as a whole, and the same command goes on from what an
interrupted run has left.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from dps.benchmarks.answers import canonical_answer
from dps.benchmarks.choices import choices_of
from dps.benchmarks.grading import Item, Reading, idle_cores, read, read_all
from dps.benchmarks.kinds import KINDS, grader_of_kind
from dps.benchmarks.reader_process import Desk
from dps.benchmarks.records import Record, read_lines, shortened
from dps.errors import InputError

Name = str | int
"""An id, or the name of a group."""
_AHEAD = 64
"""Responses that are read ahead of the one that is written next."""
_CODE = ("prompt", "test", "entry_point")
_NO_GOLD = "leave out what is none."


@dataclass(frozen=True, slots=True)
class Response:
    """One line."""

    number: int
    """Of the line, from 1; blank lines count."""
    id: Name
    """As it stands there; several lines may have the same."""
    kind: str
    text: str
    item: Item
    """The question, as graders take it."""
    prompt: str
    """What the model was given, empty where that is not known."""
    group: Name | None
    """Lines of a group answer one question: their answers get classes."""


_COUNTED: dict[str, Callable[[dict[str, Any]], bool]] = {
    "responses": lambda verdict: True,
    "right": lambda verdict: verdict["correct"] is True,
    "wrong": lambda verdict: verdict["correct"] is False,
    "ungradable": lambda verdict: verdict["correct"] is None,
    "no answer": lambda verdict: verdict["answer"] is None,
    "strict differs": lambda verdict: verdict["correct"] is not verdict["strict_correct"],
}
"""What is counted of the responses of a kind: ungradable are those without a gold answer, too."""


@dataclass(slots=True)
class Graded:
    """What grading a file did."""

    tallies: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})
    """By kind, by what is counted."""
    kept: int = 0
    """Responses that an earlier, interrupted run had graded."""

    def add(self, kind: str, verdict: dict[str, Any]) -> None:
        """Count a response."""
        self.tallies[kind].update(name for name, holds in _COUNTED.items() if holds(verdict))

    def words(self) -> str:
        """Return a table of the counts, a line for each kind that occurs."""
        rows = [["kind", *_COUNTED]]
        rows += [[kind, *(f"{tally[name]:,}" for name in _COUNTED)] for kind, tally in self.tallies.items() if tally]
        lines = ["".join(cell.rjust(16) if i else cell.ljust(8) for i, cell in enumerate(row)) for row in rows]
        if self.kept == sum(tally["responses"] for tally in self.tallies.values()):
            lines.append("All of them were graded before, nothing was done: delete the output to grade them again.")
        elif self.kept:
            lines.append(f"{self.kept:,} of them were graded by a run that was interrupted.")
        return "\n".join(lines)


def check_responses(path: Path) -> Counter[Name | None]:
    """Read a file of responses once, so that no file with a bad line is graded in part.

    Returned is the number of responses of each group, under None of those without one. InputError with the number of
    the first line that cannot be graded, or if there is no line.
    """
    sizes: Counter[Name | None] = Counter()
    questions: dict[Name, tuple[int, bytes]] = {}
    for response in read_responses(path):
        sizes[response.group] += 1
        if response.group is None:
            continue
        item = response.item
        asked = json.dumps([response.kind, item.gold, item.question, item.metadata], sort_keys=True)
        digest = hashlib.sha256(asked.encode()).digest()[:16]
        first, question = questions.setdefault(response.group, (response.number, digest))
        if question != digest:
            raise InputError(
                f"Line {response.number} of {path.name} is of the group {response.group!r} like line {first}, "
                "but has another kind, gold or question: lines of a group answer the same question."
            )
    if not sizes:
        raise InputError(f"Expected responses, one JSON object a line, found none in {path}.")
    return sizes


def read_responses(path: Path) -> Iterator[Response]:
    """Yield a file's responses in order, one line in memory at a time.

    InputError at the first line that cannot be graded.
    """
    try:
        for record in read_lines(path, 'a line is {"id": ..., "kind": ..., "response": ...}'):
            yield _response(record)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check it and its permissions.") from error


def _response(record: Record) -> Response:
    name, kind = record.name("id"), record.required("kind")
    if name is None:
        raise record.error("has no id: give it a text or an integer.")
    if kind not in KINDS:
        raise record.error(f"should have one of {', '.join(KINDS)} as kind, but has {kind!r}.")
    record.required("response")
    texts = {key: record.fields.get(key) for key in ("response", "question", "prompt")}
    for key, value in texts.items():
        if not isinstance(value, str) and (value is not None or key == "response"):
            raise record.error(f"should have a text as {key}, but has {shortened(value)}.")
    gold, metadata = _asked(record, kind)
    item = Item(str(name), texts["question"] or "", gold, metadata)
    return Response(record.number, name, kind, texts["response"], item, texts["prompt"] or "", record.name("group"))


def _asked(record: Record, kind: str) -> tuple[str | None, dict[str, Any]]:
    """Return the gold answer in the form that the kind's grader takes, and the metadata that it needs."""
    gold = record.fields.get("gold")
    if gold is not None and (isinstance(gold, bool) or not isinstance(gold, str | int | float)):
        raise record.error(f"should have a text or a number as gold, but has {shortened(gold)}; {_NO_GOLD}")
    if kind == "code":  # the test is what decides, so there is always something to grade by
        return str(gold or ""), {name: record.text(name) for name in _CODE}
    if kind == "choice":
        return choices_of(record, gold, "gold")
    if gold is None:
        return None, {}
    text = str(gold)
    if kind == "number":
        text = text.rpartition("####")[2].strip()  # GSM8K's gold answers are solutions with the answer at their end
    if not text.strip() or (kind == "text" and canonical_answer(text) is None):
        raise record.error(f"should have a text or a number as gold, but has {gold!r}; {_NO_GOLD}")
    return text, {}


def grade_file(
    path: Path, output: Path, sizes: Counter[Name | None], progress: Callable[[int], None] = lambda count: None
) -> Graded:
    """Grade a file of responses of checked sizes, into a file of verdicts in the same order.

    If the output holds the first of them, the rest is added. ``progress`` is called with numbers of lines done.
    InputError if the output is there and is not the beginning of this, or cannot be written.
    """
    graded, size = Graded(), 0
    for kind, verdict, end in _there(path, output):
        graded.add(kind, verdict)
        graded.kept, size = graded.kept + 1, end
    progress(graded.kept)
    with _opened(output) as file, closing(_verdicts(path, sizes, graded.kept)) as verdicts:
        file.truncate(size)  # a line that a killed run was in the midst of goes
        for kind, verdict in verdicts:
            file.write(json.dumps(verdict).encode() + b"\n")
            file.flush()
            graded.add(kind, verdict)
            progress(1)
    return graded


def _there(path: Path, output: Path) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yield kind and verdict of each response whose verdict stands in the output already, and where its line ends.

    InputError if the output is not what an interrupted run of the same responses leaves.
    """
    if not output.exists():
        return
    refusal = f"Expected no file {output}, or one that an interrupted run of the same command left, but it"
    if not output.is_file():
        raise InputError(f"Expected --output to be a file, but {output} is none: choose another.")
    if output.stat().st_size and path.stat().st_mtime > output.stat().st_mtime:
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
class _Unit:
    """What is graded at once: a response, or all of a group."""

    responses: list[tuple[str, str]] = field(default_factory=list)
    result: Future[list[tuple[Reading, int | None]]] | None = None
    """Readings and classes; set when the unit is complete."""


def _verdicts(path: Path, sizes: Counter[Name | None], skipped: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield kind and verdict of each response in order, but for the first ones; of these groups may still need some."""
    waiting: deque[tuple[Response, _Unit, int]] = deque()
    units: dict[Name, _Unit] = {}
    with Desk(2 * idle_cores(), idle_cores() + 1) as desk:  # nothing samples beside
        for count, response in enumerate(read_responses(path), 1):
            name = response.group
            unit = _Unit() if name is None else units.setdefault(name, _Unit())
            unit.responses.append((response.text, response.prompt))
            if count > skipped:
                waiting.append((response, unit, len(unit.responses) - 1))
            if name is None or len(unit.responses) == sizes[name]:
                units.pop(name, None)
                if count > skipped:
                    unit.result = desk.submit(_graded, response, unit.responses, desk)
            while waiting and (result := waiting[0][1].result) and (result.done() or len(waiting) > _AHEAD):
                yield _verdict(*waiting.popleft())
        if units:
            raise InputError(f"{path} was changed while it was graded: grade it again.")
        while waiting:
            yield _verdict(*waiting.popleft())


def _graded(last: Response, responses: list[tuple[str, str]], desk: Desk) -> list[tuple[Reading, int | None]]:
    """Grade the responses of a unit, of which this is the last."""
    grader = grader_of_kind(last.kind)
    if last.group is None and grader.background == "threads":  # a program's class, which nobody asks for, takes runs
        return [(read(grader, last.text, last.item, last.prompt), None)]
    found = read_all(grader, responses, last.item, desk.read)
    return found if last.group is not None else [(reading, None) for reading, _ in found]


def _verdict(response: Response, unit: _Unit, place: int) -> tuple[str, dict[str, Any]]:
    """Return a response's kind and what is written of it; waits for that."""
    reading, number = unit.result.result()[place]
    return response.kind, {"id": response.id, **asdict(reading), "class": number}


def _opened(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): choose another --output.") from error
