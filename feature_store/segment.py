"""One segment: an immutable HDF5 file of complete questions, and its translation to records and back.

The layout is specified in ``docs/store_format.md``; ``columns`` has the same tables for the code. Every column is flat;
ragged ones have an offsets column beside them. Strings are UTF-8 bytes with offsets, because HDF5's own strings end at
the first NUL, which a model may well write.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from feature_store.columns import (
    COLUMNS,
    FORMAT,
    IN_RUN,
    LAYOUTS,
    LONG,
    OFFSETS,
    UNITS,
    VERSION,
    VERSIONS,
    VERSIONS_IN_WORDS,
    dtype_of,
)
from feature_store.errors import StoreError
from feature_store.hdf5 import hdf5_in_memory, image_of, open_hdf5
from feature_store.hostile import HostileFile, attribute_in, check_file, dataset_in, parse_json
from feature_store.records import (
    ENDINGS,
    SUBJECTS,
    Decision,
    Question,
    Snapshot,
    StepTrace,
    Trajectory,
)

_IDS = ("questions/question_id", "questions/question_id_offset")
"""What opening a store reads of a segment."""
_COLUMN_DIGESTS = "column_sha256"
"""Attribute with a checksum of every column on its own, for those that read only some; earlier releases had none."""
_DIGEST_SIZE = 32
"""Bytes of a SHA-256."""


def encode_segment(questions: Sequence[Question]) -> bytes:
    """Return the HDF5 file of complete questions, of version 4 if they have what it added, else of version 3.

    Raises:
        StoreError: If questions or trajectories of the segment have vectors of different sizes, a trajectory's
            steps are not those that it counts, its per-token values not those of its tokens, its ending unknown, or its
            snapshots not in order of block.
    """
    arrays = to_arrays(questions)
    version = VERSION if _need_newest(questions) else VERSION - 1  # every dataset takes its part of a small segment
    arrays = {name: arrays[name] for name in LAYOUTS[version]}
    with hdf5_in_memory() as file:
        # Strings of fixed length: others are kept in a heap without a checksum, where a flipped bit can hang a reader.
        file.attrs["format"] = np.bytes_(FORMAT)
        file.attrs["version"] = version
        file.attrs["sha256"] = np.bytes_(checksum(arrays))
        digests = [column_checksum(name, arrays[name]) for name in sorted(arrays)]
        file.attrs[_COLUMN_DIGESTS] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST_SIZE)
        for name, array in arrays.items():
            # Small columns gain nothing from compression and cost a chunk each.
            options: dict[str, Any] = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
            chosen = options if array.nbytes > 4096 else {}
            # Columns that are read without the others have a checksum each: zlib's if they are compressed, else this.
            if array.size and (name in _IDS or not (chosen or name.startswith(LONG))):
                chosen = {**chosen, "fletcher32": True}
            dataset = file.create_dataset(name, data=array, **chosen)
            if unit := UNITS.get(name):
                dataset.attrs["unit"] = np.bytes_(unit)
        return image_of(file)


def read_segment(path: Path) -> list[Question]:
    """Read all questions of a segment, and compare its content with its checksum.

    Raises:
        StoreError: If the file is not a whole segment of a version that is read, or was changed.
    """
    arrays, stored = _load(path)
    questions = _decode(arrays, path)
    if checksum(arrays) != stored:
        raise changed(path)
    return questions


def read_checksum(path: Path) -> str:
    """Read the checksum that a segment states of its content, see :func:`checksum`; nothing else is read.

    Raises:
        StoreError: If the file is not a segment of a version that is read.
    """
    return _load(path, ())[1]


def read_question_ids(path: Path) -> list[str]:
    """Read only the question ids of a segment.

    Raises:
        StoreError: If the file is not a segment of a version that is read.
    """
    arrays, _ = _load(path, _IDS)
    data, offsets = (arrays[name] for name in _IDS)
    if not _fit(offsets, len(offsets) - 1, len(data)):
        raise _damaged(path)
    try:
        return _texts(data, offsets)
    except UnicodeDecodeError as error:
        raise _damaged(path) from error


def checksum(arrays: dict[str, np.ndarray]) -> str:
    """Return the SHA-256 over the logical content: every dataset's name, type, shape and values, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        add_column(digest, name, arrays[name].dtype, arrays[name].shape, [arrays[name]])
    return digest.hexdigest()


def column_checksum(name: str, array: np.ndarray) -> bytes:
    """Return the SHA-256 over one dataset's name, type, shape and values."""
    digest = hashlib.sha256()
    add_column(digest, name, array.dtype, array.shape, [array])
    return digest.digest()


def add_column(
    digest: hashlib._Hash, name: str, dtype: np.dtype, shape: tuple[int, ...], pieces: Iterable[np.ndarray]
) -> None:
    """Add a dataset to a digest.

    Args:
        digest: What it is added to.
        name: Its full name.
        dtype: Its type.
        shape: Its shape.
        pieces: Its values, as successive pieces along the first axis.
    """
    digest.update(f"{name}|{dtype.newbyteorder('<').str}|{shape}|".encode())
    for piece in pieces:
        add_values(digest, piece)


def add_values(digest: hashlib._Hash, piece: np.ndarray) -> None:
    """Add the values of a piece of a dataset to a digest."""
    digest.update(np.ascontiguousarray(piece).astype(piece.dtype.newbyteorder("<"), copy=False).tobytes())


# -- records to arrays and back ----------------------------------------------------------------------------------------


def to_arrays(questions: Sequence[Question]) -> dict[str, np.ndarray]:
    """Return every dataset of a segment of these questions, by its full name."""
    trajectories = [t for q in questions for t in q.trajectories]
    for trajectory in trajectories:
        _check_ending(trajectory)
        _check_series(trajectory)
        _check_steps(trajectory)
        _check_snapshots(trajectory)
    snapshots = [s for t in trajectories for s in t.snapshots]
    arrays: dict[str, np.ndarray] = {}
    _put(arrays, "questions", [_question_values(q) for q in questions])
    _put(arrays, "decisions", [_decision_values(d) for q in questions for d in q.decisions])
    _put(arrays, "trajectories", [_trajectory_values(t) for t in trajectories])
    arrays["tokens/tokens"] = _joined([t.tokens for t in trajectories], np.int32)
    _put(arrays, "snapshots", [{c.name: getattr(s, c.name) for c in COLUMNS["snapshots"]} for s in snapshots])
    for table, holders in (("blocks", trajectories), ("snapshot_blocks", snapshots)):
        for column in COLUMNS[table]:
            values = [getattr(holder, column.name) for holder in holders]
            dtype = np.float32 if column.dtype == "vectors" else np.dtype(column.dtype)
            arrays[f"{table}/{column.name}"] = _joined(values, dtype, vectors=column.dtype == "vectors")
    for column in COLUMNS["series"]:
        values = [getattr(t, column.name) for t in trajectories]
        arrays[f"series/{column.name}"] = _joined(values, np.dtype(column.dtype))
    for column in COLUMNS["steps"]:
        values = [getattr(t.steps, column.name) for t in trajectories]
        arrays[f"steps/{column.name}"] = _joined(values, np.dtype(column.dtype))
    arrays["questions/decisions_offset"] = _offsets([len(q.decisions) for q in questions])
    arrays["questions/trajectories_offset"] = _offsets([len(q.trajectories) for q in questions])
    arrays["trajectories/tokens_offset"] = _offsets([len(t.tokens) for t in trajectories])
    arrays["trajectories/series_offset"] = _offsets([len(t.token_logprob) for t in trajectories])
    arrays["trajectories/blocks_offset"] = _offsets([len(t.block_num_tokens) for t in trajectories])
    arrays["trajectories/steps_offset"] = _offsets([len(t.steps.logprob) for t in trajectories])
    arrays["trajectories/snapshots_offset"] = _offsets([len(t.snapshots) for t in trajectories])
    arrays["snapshots/snapshot_blocks_offset"] = _offsets([len(s.block_num_tokens) for s in snapshots])
    return arrays


def _need_newest(questions: Sequence[Question]) -> bool:
    """Whether questions have anything that version 3 could not hold."""
    trajectories = [t for q in questions for t in q.trajectories]
    inside = any(d.block is not None or d.about != SUBJECTS[0] for q in questions for d in q.decisions)
    return inside or any(t.snapshots or t.ending == "gave_up" for t in trajectories)


def _check_ending(trajectory: Trajectory) -> None:
    if trajectory.ending not in ENDINGS:
        raise StoreError(
            f"Expected the ending of trajectory {trajectory.index} to be one of {', '.join(ENDINGS)}, got "
            f"{trajectory.ending!r}: name one of these."
        )


def _check_series(trajectory: Trajectory) -> None:
    """Refuse per-token values that are not one per token; none at all may stand for any number."""
    sizes = [len(getattr(trajectory, column.name)) for column in COLUMNS["series"]]
    if set(sizes) not in ({0}, {len(trajectory.tokens)}):
        raise StoreError(
            f"Expected the per-token values of trajectory {trajectory.index} to be {len(trajectory.tokens)} each, one "
            f"per token, got {', '.join(map(str, sizes))}: record all of them, or none."
        )


def _check_steps(trajectory: Trajectory) -> None:
    """Refuse a trace that is not of all the steps that the trajectory counts; none at all may stand for any number."""
    sizes = {len(getattr(trajectory.steps, column.name)) for column in COLUMNS["steps"]}
    accepted = int(trajectory.steps.accepted.sum())
    if sizes != {0} and (sizes, accepted) != ({trajectory.mh_proposed}, trajectory.mh_accepted):
        raise StoreError(
            f"Expected the trace of trajectory {trajectory.index} to have its {trajectory.mh_proposed} steps, "
            f"{trajectory.mh_accepted} of them accepted, got columns of {', '.join(map(str, sorted(sizes)))} steps, "
            f"{accepted} accepted: record every step, or none."
        )


def _check_snapshots(trajectory: Trajectory) -> None:
    """Refuse snapshots that are not in order of block."""
    blocks = [snapshot.block for snapshot in trajectory.snapshots]
    if blocks != sorted({block for block in blocks if block >= 1}):
        raise StoreError(
            f"Expected the snapshots of trajectory {trajectory.index} in increasing order of block, from 1, got blocks "
            f"{', '.join(map(str, blocks))}: put them in order."
        )


def _decision_values(decision: Decision) -> dict[str, Any]:
    block = 0 if decision.block is None else decision.block
    return {"k": decision.k, "p_enough": decision.p_enough, "block": block, "about": SUBJECTS.index(decision.about)}


def _question_values(question: Question) -> dict[str, Any]:
    values = {column.name: getattr(question, column.name) for column in COLUMNS["questions"]}
    return values | {"metadata": json.dumps(question.metadata), "correct": _flag(question.correct)}


def _trajectory_values(trajectory: Trajectory) -> dict[str, Any]:
    values = {column.name: getattr(trajectory, column.name) for column in COLUMNS["trajectories"]}
    flags = {name: _flag(values[name]) for name in ("correct", "strict_correct")}
    return values | flags | {"ending": ENDINGS.index(trajectory.ending)}


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


def _decode(arrays: dict[str, np.ndarray], path: Path) -> list[Question]:
    arrays = _upgraded(arrays)
    _check_shapes(arrays, path)
    try:
        return _from_arrays(arrays)
    except (ValueError, MemoryError) as error:  # of texts, and of JSON that is none or nested too deep
        raise _damaged(path) from error


def _upgraded(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the datasets of any version as those of the newest: what was not recorded is empty or absent."""
    count = len(arrays["trajectories/index"])
    found = dict(arrays)
    for table in ("steps", "series"):
        if f"trajectories/{table}_offset" not in found:
            found |= {f"{table}/{column.name}": np.zeros(0, column.dtype) for column in COLUMNS[table]}
            found[f"trajectories/{table}_offset"] = np.zeros(count + 1, np.int64)
    if "trajectories/ended_with_eos" in found:  # before version 3
        eos = found.pop("trajectories/ended_with_eos")
        found["trajectories/ending"] = np.where(eos, ENDINGS.index("eos"), ENDINGS.index("length")).astype(np.int8)
        found["trajectories/strict_answer"] = np.zeros(0, np.uint8)
        found["trajectories/strict_answer_offset"] = np.zeros(count + 1, np.int64)
        found["trajectories/strict_answer_present"] = np.zeros(count, np.int8)
        found["trajectories/strict_correct"] = np.full(count, -1, np.int8)
    if "decisions/block" not in found:  # before version 4
        found |= {f"decisions/{name}": np.zeros(len(found["decisions/k"]), of) for name, of in IN_RUN.items()}
        found["trajectories/snapshots_offset"] = np.zeros(count + 1, np.int64)
        found["snapshots/snapshot_blocks_offset"] = np.zeros(1, np.int64)
        for table in ("snapshots", "snapshot_blocks"):
            for column in COLUMNS[table]:
                vectors = column.dtype == "vectors"
                found[f"{table}/{column.name}"] = np.zeros((0, 0) if vectors else 0, dtype_of(column))
    return found


def _from_arrays(arrays: dict[str, np.ndarray]) -> list[Question]:
    columns = {table: _columns(arrays, table) for table in COLUMNS}
    columns["steps"]["accepted"] = columns["steps"]["accepted"].astype(bool)
    tokens = arrays["tokens/tokens"]
    snapshots = []
    for row, (b0, b1) in enumerate(_ranges(arrays, "snapshots/snapshot_blocks")):
        values = {name: values[row] for name, values in columns["snapshots"].items()}
        snapshots.append(Snapshot(**values, **{n: of[b0:b1] for n, of in columns["snapshot_blocks"].items()}))
    trajectories = []
    inner = (_ranges(arrays, f"trajectories/{name}") for name in OFFSETS["trajectories"])
    for row, ((t0, t1), (v0, v1), (b0, b1), (s0, s1), (k0, k1)) in enumerate(zip(*inner, strict=True)):
        values = {name: values[row] for name, values in columns["trajectories"].items()}
        blocks = {name: values[b0:b1] for name, values in columns["blocks"].items()}
        series = {name: values[v0:v1] for name, values in columns["series"].items()}
        values |= {name: _unflag(values[name]) for name in ("correct", "strict_correct")}
        values |= {"ending": ENDINGS[values["ending"]]}
        steps = StepTrace(**{name: values[s0:s1] for name, values in columns["steps"].items()})
        values |= {"tokens": tokens[t0:t1], "steps": steps, "snapshots": tuple(snapshots[k0:k1])}
        trajectories.append(Trajectory(**values, **series, **blocks))
    decisions = [
        Decision(k, p, block or None, SUBJECTS[about])
        for k, p, block, about in zip(*columns["decisions"].values(), strict=True)
    ]
    questions = []
    for row, ((d0, d1), (t0, t1)) in enumerate(
        zip(_ranges(arrays, "questions/decisions"), _ranges(arrays, "questions/trajectories"), strict=True)
    ):
        values = {name: values[row] for name, values in columns["questions"].items()}
        values |= {"metadata": _metadata(values["metadata"]), "correct": _unflag(values["correct"])}
        questions.append(Question(**values, decisions=tuple(decisions[d0:d1]), trajectories=tuple(trajectories[t0:t1])))
    return questions


def _metadata(text: str) -> dict[str, Any]:
    """Return a question's metadata; raises ValueError for what is no JSON object."""
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError(f"expected metadata to be an object, got {type(found).__name__}")
    return found


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
        elif table not in ("blocks", "tokens", "series", "steps", "snapshot_blocks") and column.dtype != "vectors":
            values = values.tolist()
        found[column.name] = values
    return found


def _ranges(arrays: dict[str, np.ndarray], name: str) -> list[tuple[int, int]]:
    offsets = arrays[f"{name}_offset"].tolist()
    return list(itertools.pairwise(offsets))


def _check_shapes(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Refuse a segment whose offsets and lengths do not fit together."""
    rows = {table: len(arrays[f"{table}/{COLUMNS[table][-1].name}"]) for table in COLUMNS}
    for table, columns in COLUMNS.items():
        fits = [_fit(arrays[f"{table}/{inner}_offset"], rows[table], rows[inner]) for inner in OFFSETS.get(table, ())]
        for column in columns:
            name = f"{table}/{column.name}"
            if column.dtype == "text":
                fits.append(_fit(arrays[f"{name}_offset"], rows[table], len(arrays[name])))
                fits.append(not column.optional or len(arrays[f"{name}_present"]) == rows[table])
            else:
                fits.append(len(arrays[name]) == rows[table])
        if not all(fits):
            raise _damaged(path)
    for name, known in (("trajectories/ending", ENDINGS), ("decisions/about", SUBJECTS)):
        if not ((arrays[name] >= 0) & (arrays[name] < len(known))).all():
            raise _damaged(path)
    num_tokens, num_values = (np.diff(arrays[f"trajectories/{name}_offset"]) for name in ("tokens", "series"))
    if not ((num_values == num_tokens) | (num_values == 0)).all():
        raise _damaged(path)
    offsets = arrays["trajectories/steps_offset"]
    counted = np.diff(offsets)
    accepted = np.diff(np.concatenate([[0], np.cumsum(arrays["steps/accepted"], dtype=np.int64)])[offsets])
    whole = (counted == arrays["trajectories/mh_proposed"]) & (accepted == arrays["trajectories/mh_accepted"])
    if not (whole | (counted == 0)).all():
        raise _damaged(path)


def _fit(offsets: np.ndarray, rows: int, total: int) -> bool:
    """Whether offsets cut ``total`` entries into that many rows."""
    return bool(
        0 < len(offsets) == rows + 1
        and offsets[0] == 0
        and offsets[-1] == total
        and (offsets[1:] >= offsets[:-1]).all()
    )


def _load(path: Path, names: Iterable[str] | None = None) -> tuple[dict[str, np.ndarray], str]:
    """Read datasets of a segment (all that its version has, if no names are given), and its checksum.

    Where names are given, each dataset is compared with its own checksum, if the segment has those.

    Raises:
        StoreError: For whatever h5py finds wrong, as a sentence that names the file; if a dataset was changed.
    """
    with _reading(path) as (file, layout):
        wanted = layout if names is None else names
        arrays = {name: _dataset(file, name, layout, path)[...] for name in wanted}
        digests = column_digests(file, layout, path) if names is not None else None
        if digests is not None and any(column_checksum(name, of) != digests[name] for name, of in arrays.items()):
            raise changed(path)
        return arrays, _word(attribute_in(file, "sha256"))


def column_digests(file: h5py.File, layout: Iterable[str], path: Path) -> dict[str, bytes] | None:
    """Return the checksum of each column of a segment by name; None where an earlier release wrote it without."""
    stored = attribute_in(file, _COLUMN_DIGESTS)
    if stored is None:
        return None
    names = sorted(layout)
    if (stored.dtype, stored.shape) != (np.uint8, (len(names), _DIGEST_SIZE)):
        raise _damaged(path)
    return {name: row.tobytes() for name, row in zip(names, stored, strict=True)}


def _dataset(file: h5py.File, name: str, layout: dict[str, tuple[np.dtype, int]], path: Path) -> h5py.Dataset:
    """Return a dataset that is of the type that the format says."""
    dataset = dataset_in(file, name)
    if (dataset.dtype, dataset.ndim) != layout[name]:
        raise _damaged(path)
    return dataset


@contextmanager
def _reading(path: Path) -> Iterator[tuple[h5py.File, dict[str, tuple[np.dtype, int]]]]:
    """Open a segment and give it with the datasets of its version.

    Raises:
        StoreError: For whatever h5py finds wrong until the end, as a sentence that names the file.
    """
    try:
        check_file(path)
        with open_hdf5(path) as file:
            if _word(attribute_in(file, "format")) != FORMAT:
                raise StoreError(f"{path} is not a segment of a {FORMAT}. Move it out of the store's folder.")
            version = attribute_in(file, "version")
            if version not in VERSIONS:
                raise StoreError(
                    f"{path} is a segment of version {version}, but this program reads versions "
                    f"{VERSIONS_IN_WORDS}: use the release that wrote it, or harvest again into "
                    "another folder."
                )
            yield file, LAYOUTS[int(version)]
    except StoreError:
        raise
    except HostileFile as error:
        raise StoreError(f"{path} {error}: it was not written by this program; delete it.") from error
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError, OverflowError) as error:
        # h5py raises any of these for damage.
        if isinstance(error, OSError) and error.errno:  # the system's word, not HDF5's: the content may well be whole
            raise StoreError(
                f"{path} cannot be opened ({os.strerror(error.errno)}): check it and its permissions."
            ) from error
        raise _damaged(path) from error


def _word(value: Any) -> str:
    """Return a string attribute, which h5py reads as bytes where its length is fixed."""
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


def _damaged(path: Path) -> StoreError:
    return StoreError(
        f"{path} cannot be read: it is truncated or damaged. Delete it; the next run samples its questions again."
    )


def changed(path: Path) -> StoreError:
    """Return the error of a segment whose content is not that of its checksum."""
    return StoreError(
        f"The content of {path} does not match its checksum: it was changed after it was written. "
        "Delete it; the next run samples its questions again."
    )
