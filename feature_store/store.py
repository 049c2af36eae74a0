"""A store: a folder with a manifest and immutable segments of complete questions.

A run writes a segment whenever questions are complete, so that it can be killed at any moment: what a segment holds is
whole, what it does not hold is sampled again. Several processes may write to one store under different names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from feature_store.errors import StoreError
from feature_store.files import make_folder, remove_leftovers, write_once
from feature_store.index import INDEX, contents, read_index
from feature_store.manifest import MANIFEST, differences, read_manifest, write_manifest
from feature_store.records import Manifest, Question
from feature_store.scan import scan_segment
from feature_store.segment import Content, encode_segment, read_content, read_segment

if TYPE_CHECKING:
    import pandas as pd

SEGMENT = "segment-*.h5"
"""What segments' names look like."""
ReadSegment = Callable[[Path], Iterable[Question]]
"""Gives the questions of a segment, or as much of each as is wanted."""


def segments(folder: Path) -> list[Path]:
    """Return the segments of a store in order of name."""
    return sorted(folder.glob(SEGMENT))


class Store:
    """A store opened for reading. Opening reads the manifest and the ids of all questions, from the index if it can.

    Iterating gives a :class:`Question` each, in order of id; ``len`` is their number.

    Example:
        >>> store = Store.open("runs/quickstart/harvest")  # doctest: +SKIP
        >>> sum(question.correct for question in store) / len(store)  # doctest: +SKIP
    """

    def __init__(self, folder: Path | str) -> None:
        """Open a store; raises StoreError if it is absent, of another version, or a segment cannot be read.

        It has the questions that it has now, also while a run adds others, and while segments are joined.
        """
        self.folder = Path(folder)
        """Its folder."""
        self.manifest = read_manifest(self.folder)
        """What all of its questions have in common."""
        self.contents = contents(self.folder)
        """What each segment holds, in order of name."""
        self._where = _places(self.contents)

    @classmethod
    def open(cls, folder: Path | str) -> Store:
        """Return ``Store(folder)``."""
        return cls(folder)

    @property
    def question_ids(self) -> list[str]:
        """Every question's id, sorted."""
        return list(self._where)

    @property
    def num_wanted(self) -> int | None:
        """How many questions it is to have; None where its manifest does not say."""
        ids = self.manifest.question_ids
        return None if ids is None else len(set(ids) | self._where.keys())

    def shortfall(self) -> str | None:
        """Return in a sentence how many questions are missing; None where none is, or nothing says so."""
        return _shortfall(self.folder, self.manifest, self._where.keys())

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self) -> Iterator[Question]:
        """Yield every question in order of id, whatever the order in which they were sampled."""
        return self.read(self._where)

    def read(self, question_ids: Iterable[str]) -> Iterator[Question]:
        """Yield questions in the order asked for; a segment is read when the first of its questions is.

        Questions of a segment that come later are held until then: at most what is asked for. Raises StoreError if a
        question is not in the store, or a segment cannot be read.
        """
        wanted = list(question_ids)
        asked = set(wanted)
        held: dict[str, Question] = {}
        for question_id in wanted:
            if question_id not in self._where:
                raise StoreError(f"The store {self.folder} has no question {question_id}.")
            if question_id not in held:
                held |= {q.question_id: q for q in self._with(question_id, read_segment) if q.question_id in asked}
            yield held.pop(question_id)

    def counting(self, path: Path) -> list[str]:
        """Return the ids of a segment's questions whose copies count."""
        return [name for name in self.contents[path].question_ids if self._where.get(name) == path]

    def read_counting(self, path: Path, read: ReadSegment = read_segment) -> Iterator[Question]:
        """Yield the questions of a segment whose copies count; refuses others than those that opening has seen."""
        names = iter(self.contents[path].question_ids)
        for question in read(path):
            if question.question_id != next(names, None):
                raise other_questions(path)
            if self._where.get(question.question_id) == path:
                yield question
        if next(names, None) is not None:
            raise other_questions(path)

    def scan(self, *, hidden: bool = True) -> Iterator[Question]:
        """Yield every question once with what features need, in little memory.

        Nothing is held beyond a piece of one segment, so questions do not come in order of id. Trajectories have no
        text, tokens, per-token values and steps; without ``hidden`` they have no hidden states either: D is 0.
        """
        return self.by_segment(partial(scan_segment, hidden=hidden))

    def by_segment(self, read: ReadSegment = read_segment) -> Iterator[Question]:
        """Yield every question once, segment by segment, each as ``read`` gives it; errors as :meth:`read`."""
        left = set(self._where)
        for question_id in sorted(left, key=lambda name: (self._where[name].name, name)):
            if question_id in left:
                for question in self._with(question_id, read):
                    if question.question_id in left:  # a joined segment also has some that have been yielded
                        left.remove(question.question_id)
                        yield question

    def _with(self, question_id: str, read: ReadSegment) -> Iterator[Question]:
        """Yield the questions of the segment with this one, wherever it is now; some twice if it moves meanwhile."""
        path = self._where[question_id]
        try:
            yield from self.read_counting(path, read)
        except StoreError:
            if not self._moved(path):
                raise
            yield from self._with(question_id, read)

    def _moved(self, path: Path) -> bool:
        """Whether a segment was joined with others since it was listed; if so, all questions are looked up again."""
        now = contents(self.folder)
        where = _places(now)
        if now.get(path) == self.contents[path] or not self._where.keys() <= where.keys():
            return False
        self.contents, self._where = now, {name: where[name] for name in self._where}
        return True

    def checksum(self) -> str:
        """Return a digest of the segments that the questions come from, by the checksums that they state."""
        digest = hashlib.sha256()
        for path in self._sources():
            digest.update(f"{path.name}|{self.contents[path].checksum}|".encode())
        return digest.hexdigest()

    def _sources(self) -> list[Path]:
        return sorted(set(self._where.values()))

    def verify(self) -> list[str]:
        """Read everything and return what is wrong or missing, one sentence each; empty if nothing is."""
        damaged, missing = examine(self.folder)
        return damaged + missing

    def to_frame(
        self, rows: Literal["trajectories", "questions"] = "trajectories", *, text: bool = False
    ) -> pd.DataFrame:
        """Return the scalar values of a harvest, an evaluation or an imported store as a table, in order of id.

        Args:
            rows: One row a trajectory, or one a question.
            text: Whether questions, prompts and responses are columns, too; otherwise responses are not read.

        Returns:
            A frame whose ``attrs["units"]`` has the unit of each column that has one. ``correct`` and
            ``strict_correct`` are nullable booleans, so that their mean is over what has a grade. What a store does
            not hold is 0, NaN or missing.

            A trajectory has ``question_id``, ``arm`` and ``index``; ``num_tokens`` of the accepted response;
            ``num_prompt_tokens`` and ``prefill_s`` (seconds) of its question; ``entropy`` (nats) and ``top1``, sums
            over the accepted tokens; and the other scalar fields of :class:`feature_store.Trajectory`: answers and
            grades, ``base_logprob`` and ``proposal_logprob`` (nats), tokens, counts of steps, seconds.

            A question has ``question_id``, ``gold``, ``answer``, ``correct``, ``k``; ``num_prompt_tokens``,
            ``num_tokens`` of the accepted responses, ``num_sampled_tokens`` with what was rejected or cancelled,
            ``num_cancelled_tokens``; ``mh_proposed`` and ``mh_accepted`` steps; ``num_decisions`` and the last
            ``p_enough`` (NaN where nobody was asked); ``prefill_s``, ``embedding_s``, ``controller_s``,
            ``cancelled_s``, their sum with the decoding ``compute_s``, and ``latency_s`` (seconds).

        Raises:
            StoreError: If a segment cannot be read.

        Example:
            >>> frame = Store.open("runs/quickstart/harvest").to_frame()  # doctest: +SKIP
            >>> frame.groupby("arm")["correct"].mean()  # doctest: +SKIP
        """
        from feature_store.frames import frame_of

        return frame_of(iter(self) if text else self.scan(hidden=False), rows, text)

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r}: {len(self):,} questions, {self.manifest!r})"


def _places(found: Mapping[Path, Content]) -> dict[str, Path]:
    """Return the segment of each question whose copy counts, in order of id."""
    where: dict[str, Path] = {}
    for path, content in found.items():
        for question_id in content.question_ids:
            where.setdefault(question_id, path)  # of two copies, the first segment's counts
    return dict(sorted(where.items()))


class StoreWriter:
    """A store opened for writing."""

    def __init__(self, folder: Path | str) -> None:
        """Open a store that :meth:`open` has created, as one of several writers; errors as :class:`Store`."""
        store = Store.open(folder)
        self.folder, self.manifest = store.folder, store.manifest
        self._numbers: dict[str, int] = {}
        """Of the next segment of each writer, if the name is free."""
        self.committed = set(store.question_ids)
        """Ids of the questions that are in the store."""

    @classmethod
    def open(cls, folder: Path | str, manifest: Manifest) -> StoreWriter:
        """Create a store, or open the one that stands there if it is of the same run.

        The stored manifest is the one that counts from then on, its calibration in particular; only the ids of the
        questions that the store is to have grow. Raises StoreError if the folder holds a store of another run or
        version, or cannot be written.
        """
        folder = Path(folder)
        try:
            make_folder(folder)
            if not (folder / MANIFEST).exists():
                _create(folder, manifest)
            check_same_run(folder, manifest)
            for pattern in (MANIFEST, SEGMENT, INDEX):  # only now: a folder that is refused is left as it is
                remove_leftovers(folder, pattern)
            writer = cls.attach(folder)
            stored = writer.manifest
            if manifest.question_ids is not None:
                wanted = sorted({*(stored.question_ids or ()), *manifest.question_ids, *writer.committed})
                if wanted != stored.question_ids:
                    writer.manifest = replace(stored, question_ids=wanted)
                    write_manifest(folder, writer.manifest, replacing=True)
        except OSError as error:
            raise StoreError(f"Cannot write a store to {folder} ({error.strerror}): choose another output.") from error
        return writer

    @classmethod
    def attach(cls, folder: Path | str) -> StoreWriter:
        """Return ``StoreWriter(folder)``."""
        return cls(folder)

    def commit(self, questions: Sequence[Question], writer: str = "w0") -> Path:
        """Write complete questions as a new segment of this writer; when this returns the path, they are on disk."""
        if not questions:
            raise ValueError("expected at least one question to commit")
        content = encode_segment(questions)
        number = self._numbers.get(writer) or len(list(self.folder.glob(f"segment-{writer}-*.h5")))
        while True:
            path = self.folder / f"segment-{writer}-{number:06d}.h5"
            try:
                write_once(path, content)
            except FileExistsError:
                number += 1
                continue
            except OSError as error:
                raise StoreError(
                    f"Cannot write to the store {self.folder} ({error.strerror}): what it held is kept; make room or "
                    "access for it and run the command again."
                ) from error
            self._numbers[writer] = number + 1
            self.committed.update(question.question_id for question in questions)
            return path


def _create(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a new store."""
    if (stray := segments(folder)) and not (folder / MANIFEST).exists():  # another process may write them just now
        raise StoreError(
            f"{folder} holds segments ({stray[0].name}, ...) but no {MANIFEST}, so nothing says of which run they are: "
            f"put its {MANIFEST} back, or choose another output."
        )
    try:
        write_manifest(folder, manifest)
    except FileExistsError:
        return  # another process was first; the caller compares what stands there now


def check_same_run(folder: Path, manifest: Manifest) -> None:
    """Raise StoreError if a store's trajectories come from other settings than this manifest's, and say which."""
    stored = read_manifest(folder)
    if stored.fingerprint != manifest.fingerprint:
        what = differences(stored, manifest)
        raise StoreError(f"The store {folder} is of another run: {what}. Choose another output, or delete the folder.")


def examine(folder: Path) -> tuple[list[str], list[str]]:
    """Read every segment of a store; return what is damaged and what is missing, one sentence each.

    Raises StoreError only if the store has no readable manifest.
    """
    manifest = read_manifest(folder)
    damaged, held = [], set()
    known = read_index(folder)
    for path in segments(folder):
        try:
            names = [question.question_id for question in read_segment(path)]
            held.update(names)
            if path.name in known and known[path.name] != (read_content(path).checksum, names):
                damaged.append(str(other_questions(path)))
        except StoreError as error:
            damaged.append(str(error))
    missing = _shortfall(folder, manifest, held)
    return damaged, [] if missing is None else [missing]


def other_questions(path: Path) -> StoreError:
    """Return the error of a segment that holds something else than the index says, or than it held before."""
    return StoreError(
        f"{path} holds other questions than {INDEX} beside it says: delete {INDEX}, which is made anew from the "
        "segments."
    )


def _shortfall(folder: Path, manifest: Manifest, held: Collection[str]) -> str | None:
    """Return in a sentence how many of the questions that a store is to have it does not hold; None for none."""
    wanted = {*(manifest.question_ids or ()), *held}
    if len(wanted) == len(held):
        return None
    return (
        f"{folder} holds {len(held):,} of {len(wanted):,} questions: the command that began it samples the others when "
        "it is run again."
    )
