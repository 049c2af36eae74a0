"""What one does with a finished store: look at it, verify it, merge several, join its segments, export its scalars."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from feature_store.errors import StoreError
from feature_store.files import new_file, new_folder
from feature_store.joining import MOST_QUESTIONS, Track, batches, in_order, join_segments
from feature_store.lock import held
from feature_store.manifest import differences, read_manifest
from feature_store.store import Store, StoreWriter, examine

Progress = Callable[[int], None]
"""Is called with the number of questions that were written since the last call."""


def info(folder: Path) -> dict[str, Any]:
    """Return what a store holds: its manifest's main entries, counts, means and size, as JSON values."""
    store = Store.open(folder)
    counts, endings, grades = Counter(), Counter(), Counter()
    for question in store.by_segment():
        grades[question.correct] += 1
        counts["cancelled_tokens"] += question.num_cancelled_tokens
        for t in question.trajectories:
            endings[t.ending] += 1
            counts["tokens"] += len(t.tokens)
            counts["generated_tokens"] += t.num_generated_tokens
            counts["mh_proposed"] += t.mh_proposed
            counts["mh_accepted"] += t.mh_accepted
            counts["trajectories_with_features"] += t.hidden.shape[1] > 0
    manifest = store.manifest
    names = (
        "tokens",
        "generated_tokens",
        "cancelled_tokens",
        "mh_proposed",
        "mh_accepted",
        "trajectories_with_features",
    )
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
        "trajectories": endings.total(),
        **{name: counts[name] for name in names},
        "endings": dict(sorted(endings.items())),
        "acceptance_ratio": counts["mh_accepted"] / counts["mh_proposed"] if counts["mh_proposed"] else None,
        "graded_questions": grades[True] + grades[False],
        "right_questions": grades[True],
        "segments": len(store.contents),
        "bytes": sum(path.stat().st_size for path in store.contents),
    }


def verify(folder: Path) -> list[str]:
    """Return what is wrong with a store or missing from it, one sentence each; empty if nothing is."""
    damaged, missing = examine(Path(folder))
    return damaged + missing


def damage(folder: Path) -> list[str]:
    """Return what is damaged in a store that may still be short of questions, as an interrupted run leaves it."""
    return examine(Path(folder))[0]


class Merged(NamedTuple):
    """What a merge did."""

    questions: int
    """Questions of the merged store."""
    repeated: int
    """Questions that were in several of the stores."""


def merge(folders: Sequence[Path], output: Path, progress: Progress = lambda count: None) -> Merged:
    """Write one store with the questions of several parts of one run, such as shards.

    Raises StoreError if the stores are of different runs, a question that is in several has other trajectories in one
    than in another, or something but an empty folder stands in the place of the output.
    """
    if not folders:
        raise StoreError("Expected at least one store to merge, got none.")
    stores = [Store.open(folder) for folder in folders]
    manifest = stores[0].manifest
    for folder, store in zip(folders, stores, strict=True):
        if store.manifest.fingerprint != manifest.fingerprint:
            what = differences(manifest, store.manifest)
            raise StoreError(f"{folder} is of another run than {folders[0]}: {what}. Merge parts of one run only.")
    wanted = None
    if any(store.manifest.question_ids is not None for store in stores):
        wanted = sorted({name for s in stores for name in (*(s.manifest.question_ids or ()), *s.question_ids)})
    first: dict[str, Store] = {}
    repeated = 0
    with new_folder(output) as folder:
        writer = StoreWriter.open(folder, replace(manifest, question_ids=wanted))
        for store in stores:
            again = [name for name in store.question_ids if name in first]
            for name in again:
                _check_same(name, store, first[name])
            repeated += len(again)
            first = dict.fromkeys(store.question_ids, store) | first
            new = (question for question in store.by_segment() if first[question.question_id] is store)
            for batch in batches(in_order(new, folder), MOST_QUESTIONS):
                writer.commit(batch)
                progress(len(batch))
    return Merged(len(first), repeated)


def _check_same(question_id: str, one: Store, other: Store) -> None:
    """Refuse a question that has other responses in one store than in another; times may differ."""
    [responses, others] = (
        [(t.index, t.tokens.tobytes(), t.num_generated_tokens) for t in next(store.read([question_id])).trajectories]
        for store in (one, other)
    )
    if responses != others:
        raise StoreError(
            f"{question_id} has other trajectories in {one.folder} than in {other.folder}: these are not parts of one "
            "run."
        )


def compact(folder: Path, questions: int = MOST_QUESTIONS, track: Track | None = None) -> tuple[int, int]:
    """Join a store's segments as :func:`join_segments` does; refused while a run holds the store."""
    read_manifest(Path(folder))  # a folder that holds no store is left as it is
    with held(Path(folder)):
        return join_segments(Path(folder), questions=questions, track=track)


def export(folder: Path, output: Path) -> int:
    """Write one row per trajectory with its scalar values; return the number of rows.

    The output's ending says how: ``.csv``, ``.csv.gz`` or ``.parquet``. The same store gives the same bytes of CSV.
    Raises StoreError for another ending, without pyarrow for Parquet, or where a file with other content stands.
    """
    if not output.name.endswith((".csv", ".csv.gz", ".parquet")):
        raise StoreError(f"Expected an output that ends in .csv, .csv.gz or .parquet, got {output.name}.")
    frame = Store.open(folder).to_frame()
    with new_file(output) as file:
        file.unlink(missing_ok=True)  # a link that somebody has put there is replaced, not followed
        if output.suffix == ".parquet":
            try:
                frame.to_parquet(file)
            except ImportError as error:
                raise StoreError("Writing Parquet needs pyarrow: pip install pyarrow, or export to .csv.") from error
        else:
            exact = frame.astype(dict.fromkeys(frame.select_dtypes("float"), str))  # every digit
            content = exact.to_csv(index=False, lineterminator="\r\n").encode("utf-8", "backslashreplace")
            # Packed without a time, which would make the bytes differ.
            file.write_bytes(gzip.compress(content, mtime=0) if output.suffix == ".gz" else content)
    return len(frame)
