"""Files of JSON objects, a line each or as one list, with errors that name the line; and files of the hub.

Files of the Hugging Face hub are read at pinned revisions, so that the same command reads the same questions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from dps.arguments import check_text
from dps.benchmarks.config import BenchmarkConfig
from dps.errors import InputError
from dps.hub import offline_if_silent, quiet_hub


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object of a file."""

    file: str
    """The file's name without its folder."""
    place: str
    """``line 3``, or ``entry 3`` of a list, or ``row 3`` of a table."""
    index: int
    """Position among the records, from 0; blank lines do not count."""
    fields: dict[str, Any]

    @property
    def number(self) -> int:
        """Number of the line, entry or row, from 1; blank lines count."""
        return int(self.place.split()[1])

    def error(self, problem: str) -> InputError:
        """Return the error of this record, to be raised."""
        return InputError(f"{self.place.capitalize()} of {self.file} {problem}")

    def required(self, name: str) -> Any:
        """Return a field that every record must have."""
        if name not in self.fields:
            others = ", ".join(self.fields) or "no fields at all"
            raise self.error(f"has no field {name}, only: {others}. Rename or add the field.")
        return self.fields[name]

    def text(self, *names: str) -> str:
        """Return a field that must be a text and not empty; with several names, the first that the record has."""
        name = next((name for name in names if name in self.fields), names[0])
        value = self.required(name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"should have a text as {name}, but has {value!r}.")
        return value

    def name(self, key: str) -> str | int | None:
        """Return an optional id: a text or an integer."""
        value = self.fields.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int) or value == ""):
            raise self.error(f"should have a text or an integer as {key}, but has {shortened(value)}.")
        return value


@dataclass(frozen=True, slots=True)
class RecordFile:
    """The objects of a file."""

    name: str
    """The file's name without its folder, so that an identity does not depend on where it lies."""
    sha256: str
    records: list[Record]


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a data set on the hub."""

    title: str
    """The benchmark's name."""
    repository: str
    revision: str
    filename: str
    """Path in the repository: Parquet, CSV, JSON or JSON lines."""
    licence: str
    gated: bool = False
    """Whether one must ask for access."""
    shown: bool = True
    """Whether the authors let the questions be shown online."""

    @property
    def source(self) -> str:
        """Name that stores keep."""
        return f"{self.repository}/{self.filename}@{self.revision}"


def read_source(config: BenchmarkConfig, file: HubFile, fields: str) -> RecordFile:
    """Read a benchmark's records from ``config.path``, or from the hub where no path is set.

    ``fields`` says in words what a local file's records must have. InputError if they cannot be read.
    """
    if config.path is not None:
        return read_records(config.path)
    path = fetch(file, f"set benchmark.path to a file with one JSON object {{{fields}}} a line")
    if path.suffix not in (".parquet", ".csv"):
        records = read_records(path).records
    else:
        import pandas

        table = pandas.read_parquet(path) if path.suffix == ".parquet" else pandas.read_csv(path, keep_default_na=False)
        rows = table.to_dict("records")
        records = [Record(file.source, f"row {index + 1}", index, row) for index, row in enumerate(rows)]
    return RecordFile(file.source, hashlib.sha256(path.read_bytes()).hexdigest(), records)


def fetch(file: HubFile, advice: str) -> Path:
    """Return the local copy of a hub file, fetched if it is not in the cache; ``advice`` is what else a user can do.

    InputError if it cannot be fetched; of a gated data set the sentence says how to get access.
    """
    if file.filename.endswith(".parquet"):
        try:
            import pyarrow  # noqa: F401  (what pandas reads Parquet with)
        except ImportError as error:
            raise InputError(
                f"Reading {file.title} from the hub needs pyarrow: pip install pyarrow, or {advice}."
            ) from error
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError

    try:
        with quiet_hub(), offline_if_silent():
            return Path(hf_hub_download(file.repository, file.filename, repo_type="dataset", revision=file.revision))
    except GatedRepoError as error:
        raise InputError(
            f"{file.title} is a gated data set: accept its terms on the page of {file.repository} on the Hugging Face "
            f"hub, then log in with `hf auth login` (or set HF_TOKEN), or {advice}."
        ) from error
    except OSError as error:
        raise InputError(
            f"{file.title} could not be fetched from the Hugging Face hub ({type(error).__name__}): connect, "
            f"or {advice}."
        ) from error


def read_records(path: str | Path) -> RecordFile:
    """Read a file of questions with one JSON object a line, or one JSON list of objects.

    InputError if there is no such file, it holds no object, or a line is not one.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there"
        raise InputError(f"Expected a file of questions, but {path} is {what}: check benchmark.path.")
    content, form = path.read_bytes(), 'each question is {"question": ..., "answer": ...}'
    if content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        values = _parsed(content, path.name, 1)
        records = [_record(path.name, f"entry {i + 1}", i, value, form) for i, value in enumerate(values)]
    else:
        records = list(read_lines(path, form))
    if not records:
        raise InputError(f"Expected questions, one JSON object a line, found none in {path}.")
    for record in records:
        check_text({f"{record.place} of {path.name}": record.fields})
    return RecordFile(path.name, hashlib.sha256(content).hexdigest(), records)


def read_lines(path: Path, form: str) -> Iterator[Record]:
    """Yield the objects of a file of JSON lines, one line in memory at a time; blank lines are passed over.

    ``form`` says in words what a line should be. InputError at the first line that is no object.
    """
    index = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _record(path.name, f"line {number}", index, _parsed(line, path.name, number), form)
                index += 1


def shortened(value: Any) -> str:
    """Return a JSON value as a sentence can have it."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _record(name: str, place: str, index: int, value: Any, form: str) -> Record:
    record = Record(name, place, index, value)
    if not isinstance(value, dict):
        raise record.error(f"is not a JSON object: {form}.")
    return record


def _parsed(content: bytes, name: str, first_line: int) -> Any:
    """Return the JSON value of a file's bytes that begin on a line; floats that JSON does not have are refused."""
    line = first_line
    try:
        return json.loads(content.decode("utf-8-sig").rstrip(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        line += content[: error.start].count(b"\n")
        raise InputError(f"Line {line} of {name} is not UTF-8: save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        problem = f"is not JSON ({error.msg}, column {error.colno})"
    except RecursionError:
        problem = "is nested too deeply"
    except ValueError as error:
        problem = f"is not JSON ({error})"
    raise InputError(f"Line {line} of {name} {problem}: expected one JSON object a line.")


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
