"""What one does with a finished store: look at it, verify it, merge several, join its segments, export its scalars."""

from __future__ import annotations

import gzip
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from feature_store.errors import StoreError
from feature_store.files import new_file, new_folder
from feature_store.importing import joined_classes
from feature_store.joining import MOST_QUESTIONS, Track, batches, in_order, join_segments
from feature_store.lock import held
from feature_store.manifest import differences, read_manifest
from feature_store.records import Manifest, Question, Trajectory
from feature_store.store import Store, StoreWriter, examine

Progress = Callable[[int], None]
"""Is called with the number of questions that were written since the last call."""


Answer = Callable[[Sequence[Trajectory], str], tuple[str | None, bool | None]]
"""Gives the answer of some trajectories by an aggregator, and whether it is right."""


def info(folder: Path, answer: Answer | None = None) -> dict[str, Any]:
    """Return what a store holds: its manifest's main entries, counts, means and size, as JSON values.

    With ``answer``, what says the answer of some trajectories, each arm has the accuracy of its votes.
    """
    store = Store.open(folder)
    counts, endings, grades = Counter(), Counter(), Counter()
    arms: dict[str, Counter[str]] = {arm: Counter() for arm in store.manifest.arms}
    for question in store.by_segment():
        grades[question.correct] += 1
        counts["cancelled_tokens"] += question.num_cancelled_tokens
        for arm in {t.arm: None for t in question.trajectories}:
            _count_arm(
                arms.setdefault(arm, Counter()), [t for t in question.trajectories if t.arm == arm], answer, store
            )
        for t in question.trajectories:
            endings[t.ending] += 1
            counts["tokens"] += t.num_tokens
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
        "arms": {arm: _of_arm(counted) for arm, counted in arms.items()},
        **{name: counts[name] for name in names},
        "endings": dict(sorted(endings.items())),
        "acceptance_ratio": counts["mh_accepted"] / counts["mh_proposed"] if counts["mh_proposed"] else None,
        "graded_questions": grades[True] + grades[False],
        "right_questions": grades[True],
        "segments": len(store.contents),
        "bytes": sum(path.stat().st_size for path in store.contents),
    }


def _count_arm(counted: Counter[str], of_arm: list[Trajectory], answer: Answer | None, store: Store) -> None:
    """Count the responses of an arm to a question."""
    grades = [t.correct for t in of_arm if t.correct is not None]
    counted["questions"] += 1
    counted["responses"] += len(of_arm)
    counted["graded"] += len(grades)
    counted["right"] += sum(grades)
    counted["tokens"] += sum(t.num_generated_tokens for t in of_arm)
    if answer is not None and (correct := answer(of_arm, store.manifest.aggregator)[1]) is not None:
        counted["voted"] += 1
        counted["voted_right"] += correct


def _of_arm(counted: Mapping[str, int]) -> dict[str, float | None]:
    """Return means of an arm; None where there is nothing to take one of."""

    def mean(name: str, of: str) -> float | None:
        return counted[name] / counted[of] if counted[of] else None

    return {
        "responses_per_question": mean("responses", "questions"),
        "generated_tokens_per_response": mean("tokens", "responses"),
        "accuracy_of_a_response": mean("right", "graded"),
        "accuracy_of_votes": mean("voted_right", "voted"),
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


Settle = Callable[[Question, str], Question]
"""Gives a question its answer by an aggregator, from all of its trajectories."""


def merge(
    folders: Sequence[Path], output: Path, progress: Progress = lambda count: None, settle: Settle | None = None
) -> Merged:
    """Write one store with the questions of several parts of one run, such as shards, or with the arms of several runs.

    Runs that differ in nothing but their arms are joined question by question; the ladder of the first is followed by
    that of the next. Answers are of one class where their texts are the same, or where one run has found them so.

    Args:
        folders: The stores.
        output: The folder to make.
        progress: Called with the number of questions that were written since the last call.
        settle: Answers anew the questions whose arms were joined; without it they keep the first run's answer.

    Raises:
        StoreError: If the stores are of different runs, a question that is in several has other trajectories in one
            than in another or is not in all of the runs, or something but an empty folder stands in the place of the
            output.
    """
    if not folders:
        raise StoreError("Expected at least one store to merge, got none.")
    runs: dict[str, list[Store]] = {}
    for folder in folders:
        store = Store.open(folder)
        runs.setdefault(store.manifest.fingerprint, []).append(store)
    parts, repeated = list(runs.values()), 0
    counting: list[dict[str, Store]] = []
    for stores in parts:
        first: dict[str, Store] = {}
        for store in stores:
            again = [name for name in store.question_ids if name in first]
            for name in again:
                _check_same(name, store, first[name])
            repeated += len(again)
            first = dict.fromkeys(store.question_ids, store) | first
        counting.append(first)
    ids = {name for s in parts[0] for name in (*(s.manifest.question_ids or ()), *s.question_ids)}
    wanted = sorted(ids) if any(store.manifest.question_ids is not None for store in parts[0]) else None
    manifest = replace(_joined_manifest(parts, counting), question_ids=wanted)
    with new_folder(output) as folder, ExitStack() as stack:
        writer = StoreWriter.open(folder, manifest)
        ordered = [
            stack.enter_context(closing(in_order(_counting(stores, first), folder)))
            for stores, first in zip(parts, counting, strict=True)
        ]
        joined = (
            (_joined_arms([question for question, _ in each], manifest, settle), sum(size for _, size in each))
            for each in zip(*ordered, strict=True)
        )
        for batch in batches(joined, MOST_QUESTIONS):
            writer.commit(batch)
            progress(len(batch))
    return Merged(len(counting[0]), repeated)


def _counting(stores: Sequence[Store], first: Mapping[str, Store]) -> Iterator[Question]:
    """Yield each question of a run's parts from the first part that has it."""
    return (q for store in stores for q in store.by_segment() if first[q.question_id] is store)


def _joined_manifest(parts: Sequence[Sequence[Store]], counting: Sequence[Mapping[str, Store]]) -> Manifest:
    """Return the manifest of runs that differ in their arms only, or are one."""
    stores = [part[0] for part in parts]
    first = stores[0].manifest
    arms, ladder, fixed = dict(first.arms), list(first.policy.get("ladder") or ()), first.policy.get("family")
    for store, names in zip(stores[1:], counting[1:], strict=True):
        other = store.manifest
        same = {arm: settings for arm, settings in other.arms.items() if arm in arms}
        others = replace(other, arms=first.arms | same, policy=first.policy)
        alike = others.arms == first.arms and all(
            getattr(others, name) == getattr(first, name)
            for name in ("kind", "model", "benchmark", "seed", "aggregator")
        )
        if not alike or (fixed, other.policy.get("family")) != ("fixed", "fixed"):
            what = differences(first, other if alike else others)
            raise StoreError(
                f"{store.folder} is of another run than {stores[0].folder}: {what}. Merge parts of one run, or runs "
                "that differ in their arms only."
            )
        if odd := sorted(set(names) ^ set(counting[0])):
            lacks = store if odd[0] in counting[0] else stores[0]
            raise StoreError(
                f"Expected the same questions in {stores[0].folder} and {store.folder}, but {len(odd):,} are in one of "
                f"them only: {lacks.folder} lacks {odd[0]}; run the command that began it again."
            )
        arms |= other.arms
        ladder += other.policy.get("ladder") or ()
    if len(stores) == 1:
        return first
    policy = {"name": "harvest" if len(arms) > 1 else first.policy["name"], "family": "fixed", "ladder": ladder}
    digest = hashlib.sha256("|".join(store.manifest.fingerprint for store in stores).encode()).hexdigest()[:16]
    return replace(first, arms=arms, policy=policy, fingerprint=digest)


def _joined_arms(questions: Sequence[Question], manifest: Manifest, settle: Settle | None) -> Question:
    """Return a question with the trajectories of several runs, in the order of the arms."""
    if len(questions) == 1:
        return questions[0]
    arms = list(manifest.arms)
    found = [(t, (run, t.answer_class)) for run, question in enumerate(questions) for t in question.trajectories]
    found.sort(key=lambda one: (arms.index(one[0].arm), one[0].index))
    for (one, _), (other, _) in pairwise(found):
        if (one.arm, one.index) == (other.arm, other.index):
            raise StoreError(
                f"{questions[0].question_id} has the response {one.index} of the arm {one.arm} in several of the "
                "stores: name stores of other arms, or one of these only."
            )
    classes = joined_classes([t.answer for t, _ in found], [name if name[1] >= 0 else None for _, name in found])
    trajectories = tuple(replace(t, answer_class=number) for (t, _), number in zip(found, classes, strict=True))
    sums = {
        name: sum(getattr(q, name) for q in questions) for name in ("num_cancelled_tokens", "prefill_s", "cancelled_s")
    }
    latency = max(question.latency_s for question in questions)
    question = replace(questions[0], trajectories=trajectories, latency_s=latency, **sums)
    return settle(question, manifest.aggregator) if settle is not None else question


def _check_same(question_id: str, one: Store, other: Store) -> None:
    """Refuse a question that has other responses in one store than in another; times may differ."""
    [responses, others] = (
        [
            (t.arm, t.index, t.tokens.tobytes(), t.num_generated_tokens)
            for t in next(store.read([question_id])).trajectories
        ]
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
