"""Reading a segment for its features only, in little memory whatever its size, and never a changed value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from feature_store.columns import DATASETS, LONG
from feature_store.records import Question
from feature_store.segment import (
    add_values,
    changed,
    column_digests,
    damaged,
    dataset_of,
    decode,
    digest_of,
    kept,
    load,
    reading,
)

_HIDDEN = "blocks/hidden"
_PIECE = 32 * 2**20
"""Bytes of hidden states that a scan reads at a time."""


def scan_segment(path: Path, *, hidden: bool = True, piece: int = _PIECE) -> Iterator[Question]:
    """Yield the questions of a segment with what features need: no text, tokens, per-token values and steps.

    Args:
        path: The segment.
        hidden: Whether trajectories get their hidden states; without, D is 0 and they are not read.
        piece: Most bytes of hidden states to hold at a time; a question that has more is a piece of its own.

    Raises:
        StoreError: As :func:`read_segment`; for changed hidden states when the last of them has been read.
    """
    arrays = load(path, [name for name in DATASETS if name != _HIDDEN and not name.startswith(LONG)])
    count, num_blocks = len(arrays["trajectories/index"]), len(arrays["blocks/block_num_tokens"])
    for name, (dtype, dimensions) in DATASETS.items():  # what is left out is empty
        if name not in arrays:
            size = count + 1 if name.endswith("_offset") else num_blocks if name == _HIDDEN else 0
            arrays[name] = np.zeros((size, 0)[:dimensions], dtype)
    questions = decode(arrays, path)
    if not hidden:
        yield from questions
        return
    ends = arrays["trajectories/blocks_offset"][arrays["questions/trajectories_offset"]]
    with reading(path) as file:
        dataset = dataset_of(file, _HIDDEN, path)
        if len(dataset) != ends[-1]:
            raise damaged(path)
        digest = digest_of(_HIDDEN, dataset.dtype, dataset.shape)
        most = max(1, piece // max(1, 4 * dataset.shape[1]))
        first = 0
        while first < len(questions):
            last = max(first + 1, int(np.searchsorted(ends, ends[first] + most, side="right")) - 1)
            vectors = dataset[ends[first] : ends[last]]
            add_values(digest, vectors)
            for row in range(first, last):
                yield _with_hidden(questions[row], vectors[ends[row] - ends[first] : ends[row + 1] - ends[first]])
            first = last
        if digest.digest() != column_digests(file, path)[_HIDDEN]:
            raise changed(path)


def _with_hidden(question: Question, vectors: np.ndarray) -> Question:
    """Return the question with these rows as the hidden states of its trajectories' blocks."""
    ends = accumulate((len(t.hidden) for t in question.trajectories), initial=0)
    parts = zip(question.trajectories, pairwise(ends), strict=True)
    return replace(question, trajectories=tuple(replace(t, hidden=kept(vectors[i:j])) for t, (i, j) in parts))
