"""A store: a folder with a manifest and immutable segments of complete questions.

A run writes a segment whenever questions are complete, so that it can be killed at any moment: what a segment holds is
whole, what it does not hold is sampled again. Several processes may write to one store under different names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from feature_store.errors import StoreError
from feature_store.files import TEMPORARY, write_once
from feature_store.manifest import MANIFEST, differences, read_manifest, write_manifest
from feature_store.records import Manifest, Question
from feature_store.segment import read_question_ids, read_segment, verify_segment, write_segment

if TYPE_CHECKING:
    import pandas as pd


class Store:
    """A store opened for reading. Opening reads the manifest and every segment's question ids."""

    def __init__(self, folder: Path, manifest: Manifest, where: dict[str, Path]) -> None:
        """Use :meth:`open`."""
        self.folder = folder
        self.manifest = manifest
        self._where = where

    @classmethod
    def open(cls, folder: Path | str) -> Store:
        """Open a store.

        Raises:
            StoreError: If it is absent, of another version, or a segment cannot be read.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        where: dict[str, Path] = {}
        for path in segments(folder):
            for question_id in read_question_ids(path):
                where.setdefault(question_id, path)  # of two copies, the first segment's counts
        return cls(folder, manifest, dict(sorted(where.items())))

    @property
    def question_ids(self) -> list[str]:
        """Every question's id, sorted."""
        return list(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self) -> Iterator[Question]:
        """Yield every question in order of id, whatever the order in which they were sampled."""
        return self.read(self._where)

    def read(self, question_ids: Iterable[str]) -> Iterator[Question]:
        """Yield questions in the order asked for; a segment is read when the first of its questions is.

        Raises:
            StoreError: If a question is not in the store, or a segment cannot be read.
        """
        held: dict[str, Question] = {}
        for question_id in question_ids:
            if question_id not in self._where:
                raise StoreError(f"The store {self.folder} has no question {question_id}.")
            if question_id not in held:
                path = self._where[question_id]
                held |= {q.question_id: q for q in read_segment(path) if self._where[q.question_id] == path}
            yield held.pop(question_id)

    def verify(self) -> list[str]:
        """Read everything and return what is wrong, one sentence each; empty if nothing is."""
        return [problem for path in segments(self.folder) if (problem := verify_segment(path)) is not None]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per trajectory with its scalar values; vectors and texts are left out."""
        import pandas as pd

        return pd.DataFrame(
            {
                "question_id": question.question_id,
                "index": t.index,
                "answer": t.answer,
                "answer_class": t.answer_class,
                "correct": t.correct,
                "ended_with_eos": t.ended_with_eos,
                "num_tokens": len(t.tokens),
                "num_generated_tokens": t.num_generated_tokens,
                "base_logprob": t.base_logprob,
                "proposal_logprob": t.proposal_logprob,
                "mh_proposed": t.mh_proposed,
                "mh_accepted": t.mh_accepted,
                "compute_s": t.compute_s,
                "started_s": t.started_s,
                "finished_s": t.finished_s,
            }
            for question in self
            for t in question.trajectories
        )


class StoreWriter:
    """A store opened for writing."""

    def __init__(self, folder: Path, manifest: Manifest, committed: set[str]) -> None:
        """Use :meth:`open` or :meth:`attach`."""
        self.folder = folder
        self.manifest = manifest
        self.committed = committed
        """Ids of the questions that are in the store."""

    @classmethod
    def open(cls, folder: Path | str, manifest: Manifest) -> StoreWriter:
        """Create a store, or open the one that stands there if it is of the same run.

        The stored manifest is the one that counts from then on, its calibration in particular.

        Raises:
            StoreError: If the folder holds a store of another run or version, or cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / MANIFEST).exists():
                write_manifest(folder, manifest)
            for leftover in folder.glob(f"*{TEMPORARY}"):
                leftover.unlink()
        except OSError as error:
            raise StoreError(f"Cannot write a store to {folder} ({error.strerror}): choose another output.") from error
        stored = read_manifest(folder)
        if stored.fingerprint != manifest.fingerprint:
            found = differences(stored, manifest)
            what = "; ".join(found[:3]) or "the settings differ"
            raise StoreError(
                f"The store {folder} is of another run: {what}. Choose another output, or delete the folder."
            )
        return cls.attach(folder)

    @classmethod
    def attach(cls, folder: Path | str) -> StoreWriter:
        """Open a store that :meth:`open` has created, as one of several writers.

        Raises:
            StoreError: As :meth:`Store.open`.
        """
        store = Store.open(folder)
        return cls(store.folder, store.manifest, set(store.question_ids))

    def commit(self, questions: Sequence[Question], writer: str = "w0") -> Path:
        """Write complete questions as a new segment; when this returns they are on the disk.

        Args:
            questions: At least one.
            writer: Name of this writer among those of the store.

        Returns:
            The segment's path.

        Raises:
            StoreError: If the segment cannot be written.
        """
        if not questions:
            raise ValueError("expected at least one question to commit")
        number = len(list(self.folder.glob(f"segment-{writer}-*.h5")))
        while True:
            path = self.folder / f"segment-{writer}-{number:06d}.h5"
            try:
                write_once(path, lambda temporary: write_segment(temporary, questions))
            except FileExistsError:
                number += 1
                continue
            except OSError as error:
                raise StoreError(f"Cannot write to the store {self.folder}: {error}. What it held is kept.") from error
            self.committed.update(question.question_id for question in questions)
            return path


def segments(folder: Path) -> list[Path]:
    """Return the segments of a store in order of name."""
    return sorted(folder.glob("segment-*.h5"))
