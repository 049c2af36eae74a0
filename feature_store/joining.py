"""Joins the many small segments of a long run into few large ones, in little memory, safe against kills."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from feature_store.errors import StoreError
from feature_store.files import sync_folder
from feature_store.index import INDEX
from feature_store.records import Question
from feature_store.store import Store, StoreWriter

MOST_QUESTIONS = 512
"""Most questions of a segment that is written here."""
MOST_BYTES = 32 * 2**20
"""And about the most bytes of their arrays, which take four times as much memory while they are written."""

_SMALL = 4 * 2**20
"""A segment of so many bytes is large enough to stay as it is."""
_HELD = 4 * MOST_BYTES
"""Most bytes of questions that were read together with others and are written later."""

Track = Callable[[str, int], AbstractContextManager[Any]]
"""Shows progress: takes what is done and how many questions there are, gives what ``advance(number)`` is called on."""


def join_segments(
    folder: Path, *, least: int = 1, questions: int = MOST_QUESTIONS, track: Track | None = None
) -> tuple[int, int]:
    """Join a store's small segments into few large ones, in order of question id; the caller holds the folder.

    The new segments are on the disk before an old one goes. A kill in between leaves some questions twice, with the
    same content, which readers count once and another call clears away; whatever else ends the work before the first
    old segment goes removes the new ones.

    Args:
        folder: The store.
        least: With fewer segments to join, nothing is done.
        questions: Most questions of a segment.
        track: See :data:`Track`.

    Returns:
        Segments before and after.

    Raises:
        StoreError: If a segment cannot be read or written; the store is as it was.
    """
    store = Store.open(folder)
    before = len(store.contents)
    names: dict[Path, list[str]] = {path: [] for path in store.contents}
    for name in store.question_ids:
        names[store.segment_of(name)].append(name)
    # What holds a copy that does not count goes, too: it could count once the first copy is gone.
    repeats = [path for path, content in store.contents.items() if len(names[path]) < len(content.question_ids)]
    small = [path for path in names if 2 * len(names[path]) <= questions and path.stat().st_size < _SMALL]
    sources = sorted({*small, *repeats})
    if len(sources) < least or (len(sources) == 1 and not repeats):
        return before, before
    wanted = sorted(name for path in sources for name in names[path])
    writer, written = StoreWriter.attach(folder), []
    try:
        with track(f"join the segments of {folder}", len(wanted)) if track else nullcontext() as bar:
            for batch in _batches(_in_order(store, wanted), questions):
                written.append(writer.commit(batch, writer="all"))
                if bar is not None:
                    bar.advance(len(batch))
    except BaseException:
        _remove(folder, written)
        raise
    # The last first: as long as an old copy of a question is left, the first one is, which is the one that counts.
    _remove(folder, [*reversed(sources), folder / INDEX])
    return before, before - len(sources) + len(written)


def _remove(folder: Path, paths: list[Path]) -> None:
    try:
        for path in paths:
            path.unlink(missing_ok=True)
        sync_folder(folder)
    except OSError as error:
        raise StoreError(
            f"Cannot remove what was joined in {folder} ({error.strerror}): its questions are whole, some of them "
            "twice; get access to it and run dps store compact."
        ) from error


def _in_order(store: Store, wanted: list[str]) -> Iterator[tuple[Question, int]]:
    """Yield questions in order of id with the bytes that each takes.

    A segment holds questions from anywhere in that order. Those that come later are held packed, since an array of an
    unpacked one is a part of the whole segment's. Where they become too many, those that come last are dropped, and
    their segments read again.
    """
    held: dict[str, bytes] = {}
    size = 0
    for question_id in wanted:
        if question_id not in held:
            for question in store.read_counting(store.segment_of(question_id)):
                if question.question_id >= question_id and question.question_id not in held:
                    held[question.question_id] = pickle.dumps(question, pickle.HIGHEST_PROTOCOL)
                    size += len(held[question.question_id])
            for last in sorted(held, reverse=True)[:-1] if size > _HELD else ():
                size -= len(held.pop(last))
                if 2 * size <= _HELD:
                    break
        packed = held.pop(question_id)
        size -= len(packed)
        yield pickle.loads(packed), len(packed)


def _batches(questions: Iterator[tuple[Question, int]], most: int) -> Iterator[list[Question]]:
    """Yield questions in lists of at most so many, and of about :data:`MOST_BYTES`."""
    batch: list[Question] = []
    size = 0
    for question, each in questions:
        if batch and (len(batch) == most or size + each > MOST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(question)
        size += each
    if batch:
        yield batch
