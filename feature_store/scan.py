"""Reading a segment for its features only, in little memory whatever its size, and never a changed value."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from feature_store.columns import LONG
from feature_store.records import Question
from feature_store.segment import (
    _damaged,
    _dataset,
    _decode,
    _load,
    _reading,
    _word,
    add_column,
    add_values,
    changed,
    column_digests,
)

_PATHS = {
    "blocks/hidden": ("trajectories/blocks_offset",),
    "snapshot_blocks/hidden": ("trajectories/snapshots_offset", "snapshots/snapshot_blocks_offset"),
}
"""The offsets that lead from a row of ``trajectories`` to its vectors."""
_PIECE = 32 * 2**20
"""Bytes of hidden states that a scan reads at a time."""


def scan_segment(path: Path, *, hidden: bool = True, piece: int = _PIECE) -> Iterator[Question]:
    """Yield the questions of a segment with what features need, in little memory whatever the segment's size.

    Args:
        path: The segment.
        hidden: Whether trajectories get their hidden states; without, D is 0 and they are not read.
        piece: Most bytes of hidden states to hold at a time; a question that has more is a piece of its own.

    Yields:
        Questions whose trajectories have no text, tokens, per-token values and steps.

    Raises:
        StoreError: As :func:`read_segment`.

    Note:
        What is read is compared with its checksums, column by column; hidden states when the last of them has been
        read. The segment of an earlier release has one checksum for everything, so it is read as a whole first.
    """
    with _reading(path) as (file, layout):
        digests = column_digests(file, layout, path)
        if digests is None:
            _check_whole(file, layout, path, piece)
    names = [name for name in layout if not name.startswith(LONG)]
    arrays, _ = _load(path, [name for name in names if not name.endswith("/hidden")])
    count = len(arrays["trajectories/index"])
    arrays |= {f"trajectories/{name}_offset": np.zeros(count + 1, np.int64) for name in ("text", "tokens")}
    arrays |= {"trajectories/text": np.zeros(0, np.uint8), "tokens/tokens": np.zeros(0, np.int32)}
    paths = {name: columns for name, columns in _PATHS.items() if name in names}
    for name in paths:
        arrays[name] = np.zeros((len(arrays[name.replace("hidden", "block_num_tokens")]), 0), np.float32)
    questions = _decode(arrays, path)
    if not hidden:
        yield from questions
        return
    yield from _with_vectors(path, questions, arrays, paths, digests, piece)


def _with_vectors(
    path: Path,
    questions: Sequence[Question],
    arrays: dict[str, np.ndarray],
    paths: dict[str, tuple[str, ...]],
    digests: dict[str, bytes] | None,
    piece: int,
) -> Iterator[Question]:
    """Yield the questions of a segment with their hidden states, which are read a piece at a time.

    Args:
        path: The segment.
        questions: Its questions without hidden states.
        arrays: Its other columns.
        paths: The datasets of hidden states, see :data:`_PATHS`.
        digests: Their checksums; None where everything was compared before.
        piece: Most bytes to hold at a time.
    """
    ends = {}  # rows of each dataset of vectors that precede a question's
    for name, columns in paths.items():
        ends[name] = arrays["questions/trajectories_offset"]
        for column in columns:
            ends[name] = arrays[column][ends[name]]
    with _reading(path) as (file, layout):
        datasets = {name: _dataset(file, name, layout, path) for name in ends}
        if any(len(dataset) != ends[name][-1] for name, dataset in datasets.items()):
            raise _damaged(path)
        running = {name: hashlib.sha256() for name in datasets}
        for name, dataset in datasets.items():
            add_column(running[name], name, dataset.dtype, dataset.shape, ())
        most = max(1, piece // max(1, 4 * max(dataset.shape[1] for dataset in datasets.values())))
        total = sum(ends.values())
        first = 0
        while first < len(questions):
            last = first + 1
            while last < len(questions) and total[last + 1] - total[first] <= most:
                last += 1
            vectors = {name: dataset[ends[name][first] : ends[name][last]] for name, dataset in datasets.items()}
            for name, rows in vectors.items():
                add_values(running[name], rows)
            for row in range(first, last):
                starts = {name: rows[row : row + 2] - rows[first] for name, rows in ends.items()}
                own = {name: vectors[name][i:j] for name, (i, j) in starts.items()}
                of_snapshots = own.get("snapshot_blocks/hidden", np.zeros((0, 0), np.float32))
                yield _with_hidden(questions[row], own["blocks/hidden"], of_snapshots)
            first = last
        if digests is not None and any(running[name].digest() != digests[name] for name in running):
            raise changed(path)


def _with_hidden(question: Question, vectors: np.ndarray, of_snapshots: np.ndarray) -> Question:
    """Return the question with these rows as the hidden states of its trajectories' blocks and of its snapshots'."""
    blocks = _pieces(vectors, [len(t.hidden) for t in question.trajectories])
    kept = _pieces(of_snapshots, [len(s.hidden) for t in question.trajectories for s in t.snapshots])
    return replace(
        question,
        trajectories=tuple(
            replace(t, hidden=next(blocks), snapshots=tuple(replace(s, hidden=next(kept)) for s in t.snapshots))
            for t in question.trajectories
        ),
    )


def _pieces(rows: np.ndarray, sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield successive pieces of an array, as views."""
    return (rows[i:j] for i, j in itertools.pairwise(itertools.accumulate(sizes, initial=0)))


def _check_whole(file: h5py.File, layout: dict[str, tuple[np.dtype, int]], path: Path, piece: int) -> None:
    """Compare a whole segment with its checksum, a piece of a dataset at a time.

    Raises:
        StoreError: If it was changed.
    """
    digest = hashlib.sha256()
    for name in sorted(layout):
        dataset = _dataset(file, name, layout, path)
        rows = max(1, piece // max(1, dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))))
        pieces = (dataset[first : first + rows] for first in range(0, len(dataset), rows))
        add_column(digest, name, dataset.dtype, dataset.shape, pieces)
    if digest.hexdigest() != _word(file.attrs["sha256"]):
        raise changed(path)
