"""What one does with a finished store: look at it, merge several, join its segments, export its scalars."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from feature_store.errors import StoreError
from feature_store.files import new_file, new_folder, sync_folder
from feature_store.lock import held
from feature_store.manifest import differences, read_manifest
from feature_store.records import Question, Trajectory
from feature_store.store import FRAME, Store, StoreWriter, examine, problems, segments

_BATCH = 64
"""Questions that are written together."""


def info(folder: Path) -> dict[str, Any]:
    """Return what a store holds: its manifest's main entries, counts, means and size, as JSON values.

    Raises:
        StoreError: If it cannot be read.
    """
    store = Store.open(folder)
    counts = dict.fromkeys(("trajectories", "tokens", "generated_tokens", "mh_proposed", "mh_accepted"), 0)
    graded = right = with_features = 0
    endings: dict[str, int] = {}
    for question in store:
        graded += question.correct is not None
        right += question.correct is True
        for t in question.trajectories:
            counts["trajectories"] += 1
            counts["tokens"] += len(t.tokens)
            counts["generated_tokens"] += t.num_generated_tokens
            counts["mh_proposed"] += t.mh_proposed
            counts["mh_accepted"] += t.mh_accepted
            with_features += t.hidden.shape[1] > 0
            endings[t.ending] = endings.get(t.ending, 0) + 1
    manifest, paths = store.manifest, segments(Path(folder))
    return {
        "folder": str(folder),
        "kind": manifest.kind,
        "policy": manifest.policy["name"],
        "model": manifest.model.get("name"),
        "benchmark": manifest.benchmark.get("name"),
        "split": manifest.benchmark.get("split"),
        "seed": manifest.seed,
        "fingerprint": manifest.fingerprint,
        "questions": len(store),
        "questions_wanted": store.num_wanted,
        **counts,
        "trajectories_with_features": with_features,
        "endings": dict(sorted(endings.items())),
        "acceptance_ratio": counts["mh_accepted"] / counts["mh_proposed"] if counts["mh_proposed"] else None,
        "graded_questions": graded,
        "right_questions": right,
        "segments": len(paths),
        "bytes": sum(path.stat().st_size for path in paths),
    }


def verify(folder: Path) -> list[str]:
    """Return what is wrong with a store or missing from it, one sentence each; empty if nothing is.

    Raises:
        StoreError: If it has no readable manifest.
    """
    read_manifest(Path(folder))
    return problems(Path(folder))


def damage(folder: Path) -> list[str]:
    """Return what is damaged in a store that may still be short of questions, as an interrupted run leaves it.

    Raises:
        StoreError: If it has no readable manifest.
    """
    read_manifest(Path(folder))
    return examine(Path(folder))[0]


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did."""

    questions: int
    """Questions of the merged store."""
    repeated: int
    """Questions that were in several of the stores."""


def merge(folders: Sequence[Path], output: Path, progress: Callable[[int], None] = lambda count: None) -> Merged:
    """Write one store with the questions of several parts of one run, such as shards.

    Args:
        folders: Stores of the same run; a question that is in several must have the same trajectories in all.
        output: Folder of the new store; nothing or an empty folder may stand there.
        progress: Called with the number of questions that were written since the last call.

    Raises:
        StoreError: If the stores are of different runs, disagree on a question, or the output is not empty.
    """
    if not folders:
        raise StoreError("Expected at least one store to merge, got none.")
    stores = [Store.open(folder) for folder in folders]
    first = stores[0]
    for folder, store in zip(folders[1:], stores[1:], strict=True):
        if store.manifest.fingerprint != first.manifest.fingerprint:
            what = "; ".join(differences(first.manifest, store.manifest)[:3]) or "the settings differ"
            raise StoreError(f"{folder} is of another run than {folders[0]}: {what}. Merge parts of one run only.")
    with new_folder(output) as folder:
        return _merge(stores, StoreWriter.open(folder, replace(first.manifest, question_ids=_wanted(stores))), progress)


def _wanted(stores: Sequence[Store]) -> list[str] | None:
    """Return the ids of the questions that parts of a run are to have together; None where none of them says."""
    if all(store.manifest.question_ids is None for store in stores):
        return None
    return sorted({name for store in stores for name in (*(store.manifest.question_ids or ()), *store.question_ids)})


def _merge(stores: Sequence[Store], writer: StoreWriter, progress: Callable[[int], None]) -> Merged:
    """Copy the questions of stores, each once, and compare those that several have."""
    where: dict[str, int] = {}
    repeated = 0
    for number, store in enumerate(stores):
        fresh = []
        for question_id in store.question_ids:
            if question_id not in where:
                where[question_id] = number
                fresh.append(question_id)
                continue
            repeated += 1
            [here], [there] = list(store.read([question_id])), list(stores[where[question_id]].read([question_id]))
            if not _same_trajectories(here, there):
                raise StoreError(
                    f"{question_id} has other trajectories in {store.folder} than in "
                    f"{stores[where[question_id]].folder}: these are not parts of one run."
                )
        for batch in _batches(store.read(fresh)):
            writer.commit(batch)
            progress(len(batch))
    return Merged(len(where), repeated)


def compact(
    folder: Path, questions: int = 512, progress: Callable[[int], None] = lambda count: None
) -> tuple[int, int]:
    """Join a store's segments into few large ones, in order of question id.

    The new segments are on the disk before an old one goes; a store that a kill left in between holds some questions
    twice, which readers count once, and another call finishes the work.

    Args:
        folder: The store; no other run may write to it.
        questions: Questions of a segment.
        progress: Called with the number of questions that were written since the last call.

    Returns:
        Segments before and after.

    Raises:
        StoreError: If a segment cannot be read or written, or another run holds the folder.
    """
    folder = Path(folder)
    with held(folder):
        store, before = Store.open(folder), segments(folder)
        if len(before) <= max(1, -(-len(store) // questions)):
            return len(before), len(before)
        writer = StoreWriter.attach(folder)
        written = []
        for batch in _batches(iter(store), questions):
            written.append(writer.commit(batch, writer="all"))
            progress(len(batch))
        for path in before:
            path.unlink()
        sync_folder(folder)
        return len(before), len(written)


def export(folder: Path, output: Path) -> int:
    """Write one row per trajectory with its scalar values, as CSV, packed CSV or Parquet, by the file's ending.

    Args:
        folder: The store.
        output: ``.csv``, ``.csv.gz`` or ``.parquet``. The same store gives the same bytes of CSV.

    Returns:
        The number of rows.

    Raises:
        StoreError: If the ending is another, Parquet cannot be written here, or a file with other content stands
            there.
    """
    if not output.name.endswith((".csv", ".csv.gz", ".parquet")):
        raise StoreError(f"Expected an output that ends in .csv, .csv.gz or .parquet, got {output.name}.")
    store = Store.open(folder)
    with new_file(output) as file:
        return _export_parquet(store, file) if output.suffix == ".parquet" else _export_csv(store, file)


def _export_parquet(store: Store, output: Path) -> int:
    frame = store.to_frame()
    try:
        frame.to_parquet(output)
    except ImportError as error:
        raise StoreError("Writing Parquet needs pyarrow: pip install pyarrow, or export to .csv.") from error
    return len(frame)


def _export_csv(store: Store, output: Path) -> int:
    rows = 0
    with ExitStack() as stack:
        output.unlink(missing_ok=True)  # a link there is replaced, not followed
        raw = stack.enter_context(open(output, "xb"))
        if output.suffix == ".gz":  # without a name and a time, which would make the bytes differ
            raw = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
        file = stack.enter_context(io.TextIOWrapper(raw, newline="", encoding="utf-8", errors="backslashreplace"))
        writer = csv.writer(file)
        writer.writerow(["question_id", "index", "num_tokens", *FRAME[1:]])
        for question in store:
            for t in question.trajectories:
                values = [getattr(t, name) for name in FRAME[1:]]
                writer.writerow([question.question_id, t.index, len(t.tokens), *map(_cell, values)])
                rows += 1
    return rows


def _cell(value: Any) -> Any:
    """Return a value as a CSV cell: nothing for None, every digit of a float."""
    return "" if value is None else repr(value) if isinstance(value, float) else value


def _same_trajectories(one: Question, other: Question) -> bool:
    """Whether two records hold the same responses, whatever the time they took."""

    def content(t: Trajectory) -> tuple[int, bytes, int]:
        return t.index, t.tokens.tobytes(), t.num_generated_tokens

    return [content(t) for t in one.trajectories] == [content(t) for t in other.trajectories]


def _batches(questions: Iterator[Question], size: int = _BATCH) -> Iterator[list[Question]]:
    while batch := list(islice(questions, size)):
        yield batch
