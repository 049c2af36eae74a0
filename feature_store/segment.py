"""One segment: an immutable HDF5 file of complete questions, and its translation to records and back.

The layout is specified in ``docs/store_format.md``; ``columns`` has the same tables for the code. Every column is flat;
ragged ones have an offsets column beside them. Strings are UTF-8 bytes with offsets, because HDF5's own strings end at
the first NUL, which a model may well write.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from feature_store.columns import COLUMNS, DATASETS, FORMAT, LONG, OFFSETS, RAGGED, UNITS, VERSION, Column
from feature_store.errors import StoreError
from feature_store.hdf5 import hdf5_in_memory, image_of, open_hdf5
from feature_store.hostile import HostileFile, attribute_in, check_file, dataset_in, parse_json
from feature_store.records import ENDINGS, Decision, Question, StepTrace, Trajectory

PACKED = 4096
"""Columns of more bytes are compressed: others gain nothing and would cost a chunk each."""
_IDS = ("questions/question_id", "questions/question_id_offset")
"""What opening a store reads of a segment."""
_DIGEST_SIZE = 32
"""Bytes of a SHA-256."""
_FLAGS = (None, False, True)
"""What -1, 0 and 1 stand for, from -1 on."""


class Content(NamedTuple):
    """What opening a store needs of a segment."""

    checksum: str
    """The one that it states of its whole content."""
    question_ids: list[str]
    """Of its questions, in order."""


def encode_segment(questions: Sequence[Question]) -> bytes:
    """Return the HDF5 file of complete questions.

    Raises StoreError if questions or trajectories of the segment have vectors of different sizes, a trajectory's steps
    are not those that it counts, its per-token values not those of its tokens, or its ending is unknown.
    """
    arrays = to_arrays(questions)
    digests = [column_digest(name, arrays[name]) for name in sorted(arrays)]
    with hdf5_in_memory() as file:
        # Strings of fixed length: others are kept in a heap without a checksum, where a flipped bit can hang a reader.
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["version"] = VERSION
        file.attrs["sha256"] = np.bytes_(_joint(digests))
        file.attrs["column_sha256"] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST_SIZE)
        for name, array in arrays.items():
            packed = array.nbytes > PACKED
            options: dict[str, Any] = {"compression": "gzip", "compression_opts": 4, "shuffle": True} if packed else {}
            # Columns that are read without the others have a checksum each: zlib's if they are compressed, else this.
            if array.size and (name in _IDS or not (packed or name.startswith(LONG))):
                options["fletcher32"] = True
            dataset = file.create_dataset(name, data=array, **options)
            if unit := UNITS.get(name):
                dataset.attrs["unit"] = np.bytes_(unit)
        return image_of(file)


def read_segment(path: Path) -> list[Question]:
    """Read all questions of a segment; raises StoreError unless it is a whole one of this version and unchanged."""
    return decode(load(path, DATASETS), path)


def read_content(path: Path) -> Content:
    """Read what opening a store needs of a segment; errors as :func:`read_segment`."""
    arrays, digests = _load(path, _IDS)
    data, offsets = (arrays[name] for name in _IDS)
    if not _fit(offsets, len(offsets) - 1, len(data)):
        raise damaged(path)
    try:
        return Content(_joint(list(digests.values())), _texts(data, offsets))
    except UnicodeDecodeError as error:
        raise damaged(path) from error


# -- checksums ---------------------------------------------------------------------------------------------------------


def column_digest(name: str, array: np.ndarray) -> bytes:
    """Return the SHA-256 over one dataset's name, type, shape and values."""
    digest = digest_of(name, array.dtype, array.shape)
    add_values(digest, array)
    return digest.digest()


def digest_of(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> hashlib._Hash:
    """Return the SHA-256 of a dataset to which its values are still to be added."""
    return hashlib.sha256(f"{name}|{dtype.newbyteorder('<').str}|{shape}|".encode())


def add_values(digest: hashlib._Hash, piece: np.ndarray) -> None:
    """Add the values of the next piece of a dataset, along its first axis, to a digest."""
    digest.update(np.ascontiguousarray(piece).astype(piece.dtype.newbyteorder("<"), copy=False).tobytes())


def _joint(digests: Sequence[bytes]) -> str:
    """Return the checksum of a segment: the SHA-256 over those of its datasets in order of name."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def column_digests(file: h5py.File, path: Path) -> dict[str, bytes]:
    """Return the checksum of each dataset by name as the segment states it; they must be those of its own checksum."""
    stored = attribute_in(file, "column_sha256")
    if stored is None or (stored.dtype, stored.shape) != (np.uint8, (len(DATASETS), _DIGEST_SIZE)):
        raise damaged(path)
    digests = [row.tobytes() for row in stored]
    if _joint(digests) != _word(attribute_in(file, "sha256")):
        raise changed(path)
    return dict(zip(sorted(DATASETS), digests, strict=True))


# -- records to arrays -------------------------------------------------------------------------------------------------


def to_arrays(questions: Sequence[Question]) -> dict[str, np.ndarray]:
    """Return every dataset of a segment of these questions by its full name; errors as :func:`encode_segment`."""
    trajectories = [t for q in questions for t in q.trajectories]
    decisions = [d for q in questions for d in q.decisions]
    arrays: dict[str, np.ndarray] = {}
    for table, records in (("questions", questions), ("decisions", decisions), ("trajectories", trajectories)):
        for column in COLUMNS[table]:
            arrays |= _encoded(f"{table}/{column.name}", column, [getattr(r, column.name) for r in records])
    for table in OFFSETS["questions"]:
        arrays[f"questions/{table}_offset"] = _offsets(getattr(q, table) for q in questions)
    for table in RAGGED:
        holders = [t.steps for t in trajectories] if table == "steps" else trajectories
        columns = [[getattr(holder, column.name) for holder in holders] for column in COLUMNS[table]]
        for trajectory, parts in zip(trajectories, zip(*columns, strict=True), strict=True):
            if len({len(part) for part in parts}) > 1:
                raise StoreError(
                    f"Expected trajectory {trajectory.index} to have as many values in each column of /{table}, got "
                    f"{', '.join(str(len(part)) for part in parts)}: record all of them, or none."
                )
        for column, parts in zip(COLUMNS[table], columns, strict=True):
            arrays[f"{table}/{column.name}"] = _joined(parts, column)
        arrays[f"trajectories/{table}_offset"] = _offsets(columns[0])
    if (rule := _broken_rule(arrays)) is not None:
        raise StoreError(f"Expected {rule}: correct what recorded it.")
    return arrays


def _encoded(name: str, column: Column, values: list[Any]) -> dict[str, np.ndarray]:
    """Return the datasets of a column with one value a row."""
    if column.is_text:
        texts = [json.dumps(value) for value in values] if column.kind == "json" else values
        parts = [b"" if text is None else text.encode("utf-8", "surrogatepass") for text in texts]
        arrays = {name: np.frombuffer(b"".join(parts), np.uint8), f"{name}_offset": _offsets(parts)}
        if column.optional:
            arrays[f"{name}_present"] = np.array([value is not None for value in values], np.int8)
        return arrays
    if column.kind == "vectors":
        return {name: _joined([value[None] for value in values], column)}
    if column.kind == "flag":
        values = [_FLAGS.index(value) - 1 for value in values]
    elif column.kind == "ending":
        values = [ENDINGS.index(value) if value in ENDINGS else -1 for value in values]
    return {name: np.array(values, dtype=column.dtype)}


def _joined(parts: list[np.ndarray], column: Column) -> np.ndarray:
    """Return the entries of all parts one after another."""
    if not parts:
        return np.zeros((0, 0) if column.kind == "vectors" else (0,), column.dtype)
    sizes = {part.shape[1:] for part in parts}
    if column.name == "hidden" and len(sizes) == 2 and (0,) in sizes:  # not kept of all arms
        sizes = {max(sizes)}
        parts = [part if part.shape[1] else np.full((len(part), *max(sizes)), np.nan) for part in parts]
    if len(sizes) > 1:
        shown = ", ".join(str(size) for (size,) in sorted(sizes))
        raise StoreError(f"Expected vectors of one size in a segment, got sizes {shown}: commit them to stores apart.")
    return np.concatenate(parts).astype(column.dtype, copy=False)


def _offsets(parts: Iterable[Any]) -> np.ndarray:
    """Return where each part begins and the last ends, when they lie one after another."""
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)


# -- arrays to records -------------------------------------------------------------------------------------------------


def decode(arrays: dict[str, np.ndarray], path: Path) -> list[Question]:
    """Return the questions of these datasets; raises StoreError if they do not fit together."""
    if not _lengths_fit(arrays) or _broken_rule(arrays) is not None:
        raise damaged(path)
    try:
        questions, decisions, trajectories = (
            _rows(arrays, name) for name in ("questions", "decisions", "trajectories")
        )
    except (ValueError, MemoryError) as error:  # of texts, and of JSON that is none or nested too deep
        raise damaged(path) from error
    ragged = zip(*(_parts(arrays, table) for table in RAGGED), strict=True)
    made = [
        Trajectory(**row, **tokens, **series, **blocks, steps=StepTrace(**steps))
        for row, (tokens, series, blocks, steps) in zip(trajectories, ragged, strict=True)
    ]
    asked = [Decision(**row) for row in decisions]
    inner = zip(
        *(pairwise(arrays[f"questions/{table}_offset"].tolist()) for table in OFFSETS["questions"]), strict=True
    )
    return [
        Question(**row, decisions=tuple(asked[d0:d1]), trajectories=tuple(made[t0:t1]))
        for row, ((d0, d1), (t0, t1)) in zip(questions, inner, strict=True)
    ]


def _rows(arrays: dict[str, np.ndarray], table: str) -> list[dict[str, Any]]:
    """Return a table's rows as Python values."""
    names = [column.name for column in COLUMNS[table]]
    columns = [_decoded(arrays, f"{table}/{column.name}", column) for column in COLUMNS[table]]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _decoded(arrays: dict[str, np.ndarray], name: str, column: Column) -> Any:
    values = arrays[name]
    if column.is_text:
        texts: list[Any] = _texts(values, arrays[f"{name}_offset"])
        if column.kind == "json":
            objects = [parse_json(text) for text in texts]
            if not all(isinstance(value, dict) for value in objects):
                raise ValueError("expected JSON objects")
            return objects
        if column.optional:
            return [text if here else None for text, here in zip(texts, arrays[f"{name}_present"], strict=True)]
        return texts
    if column.kind == "flag":
        return [_FLAGS[value + 1] for value in values.clip(-1, 1).tolist()]
    if column.kind == "ending":
        return [ENDINGS[value] for value in values.tolist()]
    return values if column.kind == "vectors" else values.tolist()


def _parts(arrays: dict[str, np.ndarray], table: str) -> list[dict[str, np.ndarray]]:
    """Return each trajectory's own part of a table of arrays."""
    columns = {
        column.name: values.astype(bool) if column.kind == "yes" else values
        for column in COLUMNS[table]
        for values in (arrays[f"{table}/{column.name}"],)
    }
    ranges = pairwise(arrays[f"trajectories/{table}_offset"].tolist())
    parts = [{name: values[i:j] for name, values in columns.items()} for i, j in ranges]
    return [part | {"hidden": kept(part["hidden"])} for part in parts] if table == "blocks" else parts


def kept(hidden: np.ndarray) -> np.ndarray:
    """Return a trajectory's hidden states (b, D) as they were recorded: (b, 0) where NaN says that none were kept."""
    return hidden[:, :0] if hidden.size and np.isnan(hidden[0, 0]) else hidden


def _texts(data: np.ndarray, offsets: np.ndarray) -> list[str]:
    content = data.tobytes()
    return [content[i:j].decode("utf-8", "surrogatepass") for i, j in pairwise(offsets)]


def _lengths_fit(arrays: dict[str, np.ndarray]) -> bool:
    """Whether a segment's columns have as many entries as their tables rows, and offsets those of what they cut."""
    rows = {table: len(arrays[f"{table}/{columns[-1].name}"]) for table, columns in COLUMNS.items()}
    for table, columns in COLUMNS.items():
        fits = [_fit(arrays[f"{table}/{inner}_offset"], rows[table], rows[inner]) for inner in OFFSETS.get(table, ())]
        for column in columns:
            name = f"{table}/{column.name}"
            if column.is_text:
                fits.append(_fit(arrays[f"{name}_offset"], rows[table], len(arrays[name])))
                fits.append(not column.optional or len(arrays[f"{name}_present"]) == rows[table])
            else:
                fits.append(len(arrays[name]) == rows[table])
        if not all(fits):
            return False
    return True


def _fit(offsets: np.ndarray, rows: int, total: int) -> bool:
    """Whether offsets cut ``total`` entries into that many rows."""
    return bool(
        0 < len(offsets) == rows + 1
        and offsets[0] == 0
        and offsets[-1] == total
        and (offsets[1:] >= offsets[:-1]).all()
    )


def _broken_rule(arrays: dict[str, np.ndarray]) -> str | None:
    """Return which rule a trajectory's parts break, in words; None if all of them fit together."""
    endings = arrays["trajectories/ending"]
    tokens, values, steps = (np.diff(arrays[f"trajectories/{table}_offset"]) for table in ("tokens", "series", "steps"))
    accepted_before = np.concatenate([[0], np.cumsum(arrays["steps/accepted"], dtype=np.int64)])
    accepted = np.diff(accepted_before[arrays["trajectories/steps_offset"]])
    counted = (steps == arrays["trajectories/mh_proposed"]) & (accepted == arrays["trajectories/mh_accepted"])
    owners = np.repeat(np.arange(len(arrays["questions/correct"])), np.diff(arrays["questions/trajectories_offset"]))
    arms, names = arrays["trajectories/arm"].tobytes(), pairwise(arrays["trajectories/arm_offset"].tolist())
    keys = zip(owners.tolist(), (arms[i:j] for i, j in names), arrays["trajectories/index"].tolist(), strict=True)
    first: dict[tuple[int, bytes, int], int] = {}
    rules = {
        "to be the only one of its arm and index": np.array([first.setdefault(k, i) == i for i, k in enumerate(keys)]),
        f"to end in one of {', '.join(ENDINGS)}": (endings >= 0) & (endings < len(ENDINGS)),
        "to have one per-token value of a kind for each token, or none": (values == tokens) | (values == 0),
        "to have a trace of as many steps and acceptances as it counts, or none": counted | (steps == 0),
    }
    for rule, holds in rules.items():
        if not holds.all():
            return f"trajectory {arrays['trajectories/index'][holds.argmin()]} {rule}"
    return None


# -- reading -----------------------------------------------------------------------------------------------------------


def load(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read datasets of a segment and compare each with its checksum; raises StoreError for any fault."""
    return _load(path, names)[0]


def _load(path: Path, names: Iterable[str]) -> tuple[dict[str, np.ndarray], dict[str, bytes]]:
    """Return datasets of a segment, and the checksums that it states of all."""
    with reading(path) as file:
        digests = column_digests(file, path)
        arrays = {name: dataset_of(file, name, path)[...] for name in names}
    if any(column_digest(name, array) != digests[name] for name, array in arrays.items()):
        raise changed(path)
    return arrays, digests


def dataset_of(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """Return a dataset that is of the type that the format says."""
    dataset = dataset_in(file, name)
    if (dataset.dtype, dataset.ndim) != DATASETS[name]:
        raise damaged(path)
    return dataset


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """Open a segment; whatever h5py finds wrong until the end is a StoreError that names the file."""
    try:
        check_file(path)
        with open_hdf5(path) as file:
            if _word(attribute_in(file, "format")) != FORMAT:
                raise StoreError(f"{path} is not a segment of a {FORMAT}. Move it out of the store's folder.")
            version = attribute_in(file, "version")
            if np.ndim(version) or version != VERSION:
                raise StoreError(
                    f"{path} is a segment of version {version}, but this program reads version {VERSION}: use the "
                    "release that wrote it, or harvest again into another folder."
                )
            yield file
    except StoreError:
        raise
    except HostileFile as error:
        raise StoreError(f"{path} {error}: it was not written by this program; delete it.") from error
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError, OverflowError) as error:
        # h5py raises any of these for damage.
        if isinstance(error, OSError) and error.errno:  # the system's word, not HDF5's: the content may well be whole
            why = os.strerror(error.errno)
            raise StoreError(f"{path} cannot be opened ({why}): check it and its permissions.") from error
        raise damaged(path) from error


def _word(value: Any) -> str:
    """Return a string attribute, which h5py reads as bytes where its length is fixed."""
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


def damaged(path: Path) -> StoreError:
    """Return the error of a file that is no whole segment."""
    return StoreError(
        f"{path} cannot be read: it is truncated or damaged. Delete it; the next run samples its questions again."
    )


def changed(path: Path) -> StoreError:
    """Return the error of a segment whose content is not that of its checksums."""
    return StoreError(
        f"The content of {path} does not match its checksum: it was changed after it was written. "
        "Delete it; the next run samples its questions again."
    )
