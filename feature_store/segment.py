"""One segment: an immutable HDF5 file of complete questions, and its translation to records and back.

The layout is specified in ``docs/store_format.md``; :data:`COLUMNS` is the same table for the code. Every column is
flat; ragged ones have an offsets column beside them. Strings are UTF-8 bytes with offsets, because HDF5's own strings end at
the first NUL, which a model may well write.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from feature_store.errors import StoreError
from feature_store.records import Decision, Question, Trajectory

FORMAT = "dps-feature-store"
VERSION = 1


class Column(NamedTuple):
    """One column of a table."""

    name: str
    dtype: str
    """NumPy type; ``text`` for UTF-8 bytes with offsets, ``vectors`` for float32 rows of one size."""
    unit: str = ""
    optional: bool = False
    """Text only: may be absent, which a column ``<name>_present`` says."""


COLUMNS: dict[str, tuple[Column, ...]] = {
    "questions": (
        Column("question_id", "text"),
        Column("question", "text"),
        Column("prompt", "text"),
        Column("gold", "text", optional=True),
        Column("metadata", "text"),
        Column("num_prompt_tokens", "int32", "token"),
        Column("embedding", "vectors"),
        Column("prefill_s", "float64", "s"),
        Column("embedding_s", "float64", "s"),
        Column("controller_s", "float64", "s"),
        Column("latency_s", "float64", "s"),
        Column("answer", "text", optional=True),
        Column("correct", "int8"),
    ),
    "decisions": (Column("k", "int32"), Column("p_enough", "float64")),
    "trajectories": (
        Column("index", "int32"),
        Column("text", "text"),
        Column("answer", "text", optional=True),
        Column("answer_class", "int32"),
        Column("correct", "int8"),
        Column("ended_with_eos", "int8"),
        Column("base_logprob", "float64", "nat"),
        Column("proposal_logprob", "float64", "nat"),
        Column("num_generated_tokens", "int64", "token"),
        Column("mh_proposed", "int64"),
        Column("mh_accepted", "int64"),
        Column("compute_s", "float64", "s"),
        Column("started_s", "float64", "s"),
        Column("finished_s", "float64", "s"),
    ),
    "tokens": (Column("tokens", "int32"),),
    "blocks": (
        Column("block_num_tokens", "int32", "token"),
        Column("block_logprob", "float64", "nat"),
        Column("block_entropy", "float64", "nat"),
        Column("block_top1", "float64"),
        Column("hidden", "vectors"),
    ),
}
"""The tables, in order. ``questions`` has offsets into ``decisions`` and ``trajectories``; ``trajectories`` has offsets
into ``tokens`` and ``blocks``."""

_OFFSETS = {"questions": ("decisions", "trajectories"), "trajectories": ("tokens", "blocks")}


def write_segment(path: Path, questions: Sequence[Question]) -> None:
    """Write complete questions as a new HDF5 file at ``path``.

    Raises:
        StoreError: If questions or trajectories of the segment have vectors of different sizes.
    """
    arrays = to_arrays(questions)
    with h5py.File(path, "x") as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file.attrs["sha256"] = checksum(arrays)
        for name, array in arrays.items():
            # Small columns gain nothing from compression and cost a chunk each.
            options: dict[str, Any] = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
            dataset = file.create_dataset(name, data=array, **(options if array.nbytes > 4096 else {}))
            if unit := _UNITS.get(name):
                dataset.attrs["unit"] = unit
        file.flush()


def read_segment(path: Path) -> list[Question]:
    """Read all questions of a segment.

    Raises:
        StoreError: If the file is not a whole segment of this version.
    """
    with _opened(path) as file:
        return _from_arrays({name: file[name][...] for name in _names()}, path)


def read_question_ids(path: Path) -> list[str]:
    """Read only the question ids of a segment.

    Raises:
        StoreError: If the file is not a segment of this version.
    """
    with _opened(path) as file:
        data, offsets = file["questions/question_id"][...], file["questions/question_id_offset"][...]
        return _texts(data, offsets)


def verify_segment(path: Path) -> str | None:
    """Return what is wrong with a segment as one sentence, None if nothing is.

    Reads everything and compares the checksum of the logical content with the stored one.
    """
    try:
        with _opened(path) as file:
            arrays = {name: file[name][...] for name in _names()}
            stored = file.attrs["sha256"]
            _from_arrays(arrays, path)
    except StoreError as error:
        return str(error)
    if checksum(arrays) != stored:
        return f"The content of {path.name} does not match its checksum: it was changed after it was written."
    return None


def checksum(arrays: dict[str, np.ndarray]) -> str:
    """Return the SHA-256 over the logical content: every dataset's name, type, shape and values, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}|{array.dtype.newbyteorder('<').str}|{array.shape}|".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


# -- records to arrays and back ----------------------------------------------------------------------------------------


def to_arrays(questions: Sequence[Question]) -> dict[str, np.ndarray]:
    """Return every dataset of a segment of these questions, by its full name."""
    trajectories = [t for q in questions for t in q.trajectories]
    arrays: dict[str, np.ndarray] = {}
    _put(arrays, "questions", [_question_values(q) for q in questions])
    _put(arrays, "decisions", [{"k": d.k, "p_enough": d.p_enough} for q in questions for d in q.decisions])
    _put(arrays, "trajectories", [_trajectory_values(t) for t in trajectories])
    arrays["tokens/tokens"] = _joined([t.tokens for t in trajectories], np.int32)
    for column in COLUMNS["blocks"]:
        values = [getattr(t, column.name) for t in trajectories]
        dtype = np.float32 if column.dtype == "vectors" else np.dtype(column.dtype)
        arrays[f"blocks/{column.name}"] = _joined(values, dtype, vectors=column.dtype == "vectors")
    arrays["questions/decisions_offset"] = _offsets([len(q.decisions) for q in questions])
    arrays["questions/trajectories_offset"] = _offsets([len(q.trajectories) for q in questions])
    arrays["trajectories/tokens_offset"] = _offsets([len(t.tokens) for t in trajectories])
    arrays["trajectories/blocks_offset"] = _offsets([len(t.block_num_tokens) for t in trajectories])
    return arrays


def _question_values(question: Question) -> dict[str, Any]:
    values = {column.name: getattr(question, column.name) for column in COLUMNS["questions"]}
    return values | {"metadata": json.dumps(question.metadata), "correct": _flag(question.correct)}


def _trajectory_values(trajectory: Trajectory) -> dict[str, Any]:
    values = {column.name: getattr(trajectory, column.name) for column in COLUMNS["trajectories"]}
    return values | {"correct": _flag(trajectory.correct)}


def _flag(value: bool | None) -> int:
    """1 for True, 0 for False, -1 for None."""
    return -1 if value is None else int(value)


def _unflag(value: int) -> bool | None:
    return None if value < 0 else bool(value)


def _put(arrays: dict[str, np.ndarray], table: str, rows: list[dict[str, Any]]) -> None:
    """Turn rows into the columns of a table."""
    for column in COLUMNS[table]:
        values = [row[column.name] for row in rows]
        name = f"{table}/{column.name}"
        if column.dtype == "text":
            encoded = [b"" if value is None else value.encode("utf-8", "surrogatepass") for value in values]
            arrays[name] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
            arrays[f"{name}_offset"] = _offsets([len(value) for value in encoded])
            if column.optional:
                arrays[f"{name}_present"] = np.array([value is not None for value in values], dtype=np.int8)
        elif column.dtype == "vectors":
            arrays[name] = _joined([value[None] for value in values], np.float32, vectors=True)
        else:
            arrays[name] = np.array(values, dtype=column.dtype)


def _joined(parts: list[np.ndarray], dtype: Any, *, vectors: bool = False) -> np.ndarray:
    if not parts:
        return np.zeros((0, 0) if vectors else (0,), dtype)
    if vectors and len({part.shape[1] for part in parts}) > 1:
        sizes = ", ".join(map(str, sorted({part.shape[1] for part in parts})))
        raise StoreError(f"Expected vectors of one size in a segment, got sizes {sizes}: commit them to stores apart.")
    return np.concatenate(parts).astype(dtype, copy=False)


def _offsets(sizes: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _texts(data: np.ndarray, offsets: np.ndarray) -> list[str]:
    content = data.tobytes()
    pairs = itertools.pairwise(offsets)
    return [content[start:stop].decode("utf-8", "surrogatepass") for start, stop in pairs]


def _from_arrays(arrays: dict[str, np.ndarray], path: Path) -> list[Question]:
    _check_shapes(arrays, path)
    columns = {table: _columns(arrays, table) for table in COLUMNS}
    tokens = arrays["tokens/tokens"]
    trajectories = []
    for row, ((t0, t1), (b0, b1)) in enumerate(
        zip(_ranges(arrays, "trajectories/tokens"), _ranges(arrays, "trajectories/blocks"), strict=True)
    ):
        values = {name: values[row] for name, values in columns["trajectories"].items()}
        blocks = {name: values[b0:b1] for name, values in columns["blocks"].items()}
        values |= {"correct": _unflag(values["correct"]), "ended_with_eos": bool(values["ended_with_eos"])}
        trajectories.append(Trajectory(**values, tokens=tokens[t0:t1], **blocks))
    decisions = [
        Decision(k, p) for k, p in zip(columns["decisions"]["k"], columns["decisions"]["p_enough"], strict=True)
    ]
    questions = []
    for row, ((d0, d1), (t0, t1)) in enumerate(
        zip(_ranges(arrays, "questions/decisions"), _ranges(arrays, "questions/trajectories"), strict=True)
    ):
        values = {name: values[row] for name, values in columns["questions"].items()}
        values |= {"metadata": json.loads(values["metadata"]), "correct": _unflag(values["correct"])}
        questions.append(Question(**values, decisions=tuple(decisions[d0:d1]), trajectories=tuple(trajectories[t0:t1])))
    return questions


def _columns(arrays: dict[str, np.ndarray], table: str) -> dict[str, Any]:
    """Return a table's columns as lists of Python values, or as arrays where rows are ranges of them."""
    found: dict[str, Any] = {}
    for column in COLUMNS[table]:
        name = f"{table}/{column.name}"
        values: Any = arrays[name]
        if column.dtype == "text":
            values = _texts(values, arrays[f"{name}_offset"])
            if column.optional:
                values = [v if here else None for v, here in zip(values, arrays[f"{name}_present"], strict=True)]
        elif table not in ("blocks", "tokens") and column.dtype != "vectors":
            values = values.tolist()
        found[column.name] = values
    return found


def _ranges(arrays: dict[str, np.ndarray], name: str) -> list[tuple[int, int]]:
    offsets = arrays[f"{name}_offset"].tolist()
    return list(itertools.pairwise(offsets))


def _check_shapes(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Refuse a segment whose offsets and lengths do not fit together."""
    rows = {table: len(arrays[f"{table}/{COLUMNS[table][-1].name}"]) for table in COLUMNS}
    problem = f"{path.name} is damaged: its columns do not fit together. Delete it; its questions are sampled again."
    for table, columns in COLUMNS.items():
        for column in columns:
            name = f"{table}/{column.name}"
            if column.dtype == "text":
                _check_offsets(arrays[f"{name}_offset"], rows[table], len(arrays[name]), problem)
            elif len(arrays[name]) != rows[table]:
                raise StoreError(problem)
        for inner in _OFFSETS.get(table, ()):
            _check_offsets(arrays[f"{table}/{inner}_offset"], rows[table], rows[inner], problem)


def _check_offsets(offsets: np.ndarray, rows: int, total: int, problem: str) -> None:
    if len(offsets) != rows + 1 or offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
        raise StoreError(problem)


def _names() -> list[str]:
    """Return every dataset of a segment."""
    names = []
    for table, columns in COLUMNS.items():
        for column in columns:
            names.append(f"{table}/{column.name}")
            names += [f"{table}/{column.name}_offset"] if column.dtype == "text" else []
            names += [f"{table}/{column.name}_present"] if column.optional else []
        names += [f"{table}/{inner}_offset" for inner in _OFFSETS.get(table, ())]
    return names


_UNITS = {f"{table}/{column.name}": column.unit for table, columns in COLUMNS.items() for column in columns}


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open a segment for reading; whatever h5py finds wrong becomes a sentence that names the file."""
    again = "Delete it; the next run samples its questions again."
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise StoreError(f"{path.name} is not a segment of a {FORMAT}. Move it out of the store's folder.")
            if file.attrs.get("version") != VERSION:
                raise StoreError(
                    f"{path.name} is a segment of version {file.attrs.get('version')}, but this program reads version "
                    f"{VERSION}: use the release that wrote it, or harvest again into another folder."
                )
            yield file
    except (OSError, KeyError, RuntimeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(f"{path.name} cannot be read: it is truncated or damaged. {again}") from error
