"""Joins the many small segments of a long run into few large ones, in little memory, safe against kills."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

from feature_store.errors import StoreError
from feature_store.files import sync_folder
from feature_store.index import INDEX
from feature_store.records import Question
from feature_store.store import Store, StoreWriter, segments

MOST_QUESTIONS = 512
"""Most questions of a segment that is written here."""
MOST_BYTES = 32 * 2**20
"""And about the most bytes of their arrays, which take four times as much memory while they are written."""

_SMALL = 4 * 2**20
"""A segment of so many bytes is large enough to stay as it is."""
_HELD = 4 * MOST_BYTES
"""Most bytes of questions that wait in memory until it is their turn."""

Track = Callable[[str, int], AbstractContextManager[Any]]
"""Shows progress: takes what is done and how many questions there are, gives what ``advance(number)`` is called on."""


def is_small(num_questions: float, num_bytes: float, most: int = MOST_QUESTIONS) -> bool:
    """Whether a segment of that size is to be joined with others into segments of at most ``most`` questions."""
    return 2 * num_questions <= most and num_bytes < _SMALL


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
    if (before := len(segments(folder))) < least:
        return before, before
    store = Store.open(folder)
    before = len(store.contents)
    names = {path: store.counting(path) for path in store.contents}
    # What holds a copy that does not count goes, too: it could count once the first copy is gone.
    repeats = [path for path, content in store.contents.items() if len(names[path]) < len(content.question_ids)]
    small = [path for path in names if is_small(len(names[path]), path.stat().st_size, questions)]
    sources = sorted({*small, *repeats})
    if len(sources) < least or (len(sources) == 1 and not repeats):
        return before, before
    writer, written = StoreWriter.attach(folder), []
    count = sum(len(names[path]) for path in sources)
    try:
        with track(f"join the segments of {folder}", count) if track else nullcontext() as bar:
            read = (question for path in sources for question in store.read_counting(path))
            for batch in batches(in_order(read, folder), questions):
                written.append(writer.commit(batch, writer="all"))
                if bar is not None:
                    bar.advance(len(batch))
    except BaseException:
        # Where no lock has refused another joining, that may have removed old copies because of these new ones.
        if all(path.exists() for path in sources):
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


def in_order(questions: Iterable[Question], folder: Path) -> Iterator[tuple[Question, int]]:
    """Yield questions in order of id, each once, with the bytes that it takes.

    They wait packed, in memory as long as they are few, else in a file without a name in ``folder``, which no kill
    leaves behind. Raises StoreError if the file cannot be written.
    """
    places: dict[str, tuple[int, int]] = {}
    try:
        with SpooledTemporaryFile(max_size=_HELD, dir=folder) as waiting:
            for question in questions:
                # An array of an unpacked question is a part of its whole segment's.
                packed = pickle.dumps(question, pickle.HIGHEST_PROTOCOL)
                places.setdefault(question.question_id, (waiting.tell(), len(packed)))
                waiting.write(packed)
            for question_id in sorted(places):
                start, size = places[question_id]
                waiting.seek(start)
                yield pickle.loads(waiting.read(size)), size
    except OSError as error:
        raise StoreError(
            f"Cannot write a temporary file to {folder} ({error.strerror}): make room or access for it and run the "
            "command again."
        ) from error


def batches(questions: Iterator[tuple[Question, int]], most: int) -> Iterator[list[Question]]:
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
