"""Reading a file of JSON objects, with errors that name the line."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from dps.arguments import check_text
from dps.errors import InputError


@dataclass(frozen=True, slots=True)
class RecordFile:
    """The objects of a file and where each stands."""

    name: str
    """The file's name without its folder, so that an identity does not depend on where it lies."""
    sha256: str
    """Digest of its content."""
    records: list[tuple[str, dict[str, Any]]]
    """``("line 3", {...})`` of each object; of a JSON list ``("entry 3", {...})``."""

    def error(self, place: str, problem: str) -> InputError:
        """Return the error of one record, to be raised."""
        return InputError(f"{place[0].upper()}{place[1:]} of {self.name} {problem}")

    def question(self, place: str, record: dict[str, Any]) -> str:
        """Return a record's question.

        Raises:
            InputError: If there is none, or it is not a text.
        """
        return self.text(place, record, "question")

    def text(self, place: str, record: dict[str, Any], *names: str) -> str:
        """Return a field that must be a text; with several names, the first that the record has.

        Raises:
            InputError: If the record has none of them, or it is not a text or an empty one.
        """
        name = next((name for name in names if name in record), names[0])
        value = self.required(place, record, name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(place, f"should have a text as {name}, but has {value!r}.")
        return value

    def required(self, place: str, record: dict[str, Any], name: str) -> Any:
        """Return a field that every record must have.

        Raises:
            InputError: If it is missing.
        """
        if name not in record:
            found = ", ".join(record) or "no fields at all"
            raise self.error(place, f"has no field {name}, only: {found}. Rename or add the field.")
        return record[name]


def read_records(path: str | Path) -> RecordFile:
    """Read a file with one JSON object a line, or one JSON list of objects; blank lines are passed over.

    Raises:
        InputError: If there is no such file, it holds no object, or a line is not one.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there"
        raise InputError(f"Expected a file of questions, but {path} is {what}: check benchmark.path.")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"Expected UTF-8 text in {path.name}, but line {line} is not: save the file as UTF-8."
        ) from error
    if text.lstrip().startswith("["):
        values = parse_json(text, path.name, 1)
        placed = [(f"entry {number}", value) for number, value in enumerate(values, 1)]
    else:
        # Not splitlines: a JSON text may contain other line separators (U+2028) as they are.
        lines = enumerate(text.split("\n"), 1)
        placed = [(f"line {number}", parse_json(line, path.name, number)) for number, line in lines if line.strip()]
    if not placed:
        raise InputError(f"Expected questions, one JSON object a line, found none in {path}.")
    file = RecordFile(path.name, hashlib.sha256(content).hexdigest(), placed)
    for place, value in placed:
        if not isinstance(value, dict):
            raise file.error(place, 'is not a JSON object: each question is {"question": ..., "answer": ...}.')
        check_text({f"{place} of {file.name}": value})
    return file


def parse_json(text: str, name: str, first_line: int) -> Any:
    """Return the JSON value of a text; floats that JSON does not have are refused.

    Args:
        text: One line, or a whole file.
        name: Of the file.
        first_line: Number of the text's first line in it.

    Raises:
        InputError: If it is not JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(
            f"Line {line} of {name} is not JSON ({error.msg}, column {error.colno}): expected one JSON object a line."
        ) from error
    except RecursionError as error:
        raise InputError(
            f"Line {first_line} of {name} is nested too deeply: expected one JSON object a line."
        ) from error
    except ValueError as error:
        raise InputError(
            f"Line {first_line} of {name} is not JSON ({error}): expected one JSON object a line."
        ) from error


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
