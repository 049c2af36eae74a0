"""Responses that came from anywhere, as lines of JSON: read and checked for ``dps grade``.

A line is ``{"id", "kind", "response", "gold"}`` with what its kind needs; docs/benchmarks.md has all fields.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from dps.benchmarks.answers import canonical_answer
from dps.benchmarks.benchmark import Item
from dps.benchmarks.kinds import KINDS, Kind
from dps.benchmarks.records import RecordFile, parse_json
from dps.errors import InputError

Name = str | int
"""An id, or the name of a group."""
_LETTERS = string.ascii_uppercase
_CODE = ("prompt", "test", "entry_point")


@dataclass(frozen=True, slots=True)
class Response:
    """One line."""

    number: int
    """Of the line, from 1; blank lines count."""
    id: Name
    """As it stands there; several lines may have the same."""
    kind: Kind
    """What it is read for."""
    text: str
    """The response."""
    item: Item
    """The question, as graders take it."""
    prompt: str
    """What the model was given, empty where that is not known."""
    group: Name | None
    """Lines of a group answer one question: their answers get classes."""


@dataclass(slots=True)
class Group:
    """The lines of a group."""

    first: int
    """Number of its first line."""
    last: int
    """Number of its last line."""
    size: int
    """Its lines."""
    digest: bytes
    """Of the question that they answer."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a file of responses holds."""

    num_responses: int
    """Its lines, but for blank ones."""
    groups: dict[Name, Group] = field(default_factory=dict)
    """Its groups by name."""


def check_responses(path: Path) -> Checked:
    """Read a file of responses once, keeping only its groups, so that no file with a bad line is graded in part.

    Raises:
        InputError: With the number of the first line that cannot be graded, or if there is no line.
    """
    count = 0
    groups: dict[Name, Group] = {}
    for response in read_responses(path):
        count += 1
        if response.group is None:
            continue
        group = groups.setdefault(response.group, Group(response.number, response.number, 0, _question(response)))
        if group.digest != _question(response):
            raise _error(
                path,
                response.number,
                f"is of the group {response.group!r} like line {group.first}, but has another kind, gold or question: "
                "lines of a group answer the same question.",
            )
        group.last = response.number
        group.size += 1
    if not count:
        raise InputError(f"Expected responses, one JSON object a line, found none in {path}.")
    return Checked(count, groups)


def read_responses(path: Path) -> Iterator[Response]:
    """Yield a file's responses in order, one line in memory at a time.

    Raises:
        InputError: At the first line that cannot be graded.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _response(path, number, line)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check it and its permissions.") from error


def _response(path: Path, number: int, line: bytes) -> Response:
    """Return the response of a line.

    Raises:
        InputError: If it cannot be graded.
    """
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise _error(path, number, "is not UTF-8: save the file as UTF-8.") from error
    record = parse_json(text.strip(), path.name, number)
    if not isinstance(record, dict):
        raise _error(path, number, 'is not a JSON object: a line is {"id": ..., "kind": ..., "response": ...}.')
    place, file = f"line {number}", RecordFile(path.name, "", [])
    name, kind = _name(file, place, record, "id"), file.required(place, record, "kind")
    if name is None:
        raise file.error(place, "has no id: give it a text or an integer.")
    if kind not in KINDS:
        raise file.error(place, f"should have one of {', '.join(KINDS)} as kind, but has {kind!r}.")
    response = file.required(place, record, "response")
    if not isinstance(response, str):
        raise file.error(place, f"should have a text as response, but has {_short(response)}.")
    gold, metadata = _asked(file, place, record, kind)
    question = _text(file, place, record, "question")
    return Response(
        number=number,
        id=name,
        kind=cast(Kind, kind),
        text=response,
        item=Item(str(name), question, gold, metadata),
        prompt=_text(file, place, record, "prompt"),
        group=_name(file, place, record, "group"),
    )


def _asked(file: RecordFile, place: str, record: dict[str, Any], kind: str) -> tuple[str | None, dict[str, Any]]:
    """Return the gold answer in the form that the kind's grader takes, and the metadata that it needs."""
    gold = record.get("gold")
    if gold is not None and (isinstance(gold, bool) or not isinstance(gold, str | int | float)):
        raise file.error(
            place, f"should have a text or a number as gold, but has {_short(gold)}; leave out what is none."
        )
    if kind == "code":  # the test is what decides, so there is always something to grade by
        return str(gold or ""), {name: file.text(place, record, name) for name in _CODE}
    if kind == "choice":
        choices = file.required(place, record, "choices")
        if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
            raise file.error(place, f"should have a list of texts as choices, but has {_short(choices)}.")
        if not 2 <= len(choices) <= len(_LETTERS):
            raise file.error(place, f"should have 2 to {len(_LETTERS)} choices, but has {len(choices)}.")
        return None if gold is None else _letter(file, place, str(gold), choices), {"choices": choices}
    if gold is None:
        return None, {}
    text = str(gold)
    if kind == "number":
        text = text.rpartition("####")[2].strip()  # GSM8K's gold answers are solutions with the answer at their end
    if not text.strip() or (kind == "text" and canonical_answer(text) is None):
        raise file.error(place, f"should have a text or a number as gold, but has {gold!r}; leave out what is none.")
    return text, {}


def _letter(file: RecordFile, place: str, gold: str, choices: list[str]) -> str:
    """Return the letter of the right choice, which may be given by its letter or by its text."""
    letters = _LETTERS[: len(choices)]
    plain = gold.strip().strip("().").strip()
    if len(plain) == 1 and plain in letters:
        return plain
    same = [letter for letter, choice in zip(letters, choices, strict=True) if _same(choice, gold)]
    if len(same) == 1:
        return same[0]
    if len(plain) == 1 and plain.upper() in letters and not same:
        return plain.upper()
    raise file.error(
        place,
        f"should have a letter of {letters[0]} to {letters[-1]}, or one of its choices, as gold, but has {gold!r}.",
    )


def _same(one: str, other: str) -> bool:
    return " ".join(one.split()).casefold() == " ".join(other.split()).casefold()


def _name(file: RecordFile, place: str, record: dict[str, Any], key: str) -> Name | None:
    """Return an id or a group's name, None where there is none."""
    value = record.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int) or value == ""):
        raise file.error(place, f"should have a text or an integer as {key}, but has {_short(value)}.")
    return value


def _text(file: RecordFile, place: str, record: dict[str, Any], key: str) -> str:
    """Return an optional text, empty where there is none."""
    value = record.get(key)
    if value is not None and not isinstance(value, str):
        raise file.error(place, f"should have a text as {key}, but has {_short(value)}.")
    return value or ""


def _question(response: Response) -> bytes:
    """Return a digest of what all lines of a group have in common."""
    item = response.item
    content = json.dumps([response.kind, item.gold, item.question, item.metadata], sort_keys=True)
    return hashlib.sha256(content.encode()).digest()[:16]


def _short(value: Any) -> str:
    """Return a value as a sentence can have it."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _error(path: Path, number: int, problem: str) -> InputError:
    return InputError(f"Line {number} of {path.name} {problem}")
