"""The runs that `dps metrics` reads: one evaluation each, with a store for every policy.

A folder of an evaluation is a run, and so is a single store; stores that are named one by one belong to one run if they
lie in one folder. What is pooled over runs must be draws of one law, and no draw may count twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dps.analysis.report.write import find_stores
from dps.errors import InputError
from feature_store import Question, Store


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One evaluation (or harvest)."""

    name: str
    """Distinct among the runs that are read together; part of file names."""
    folder: Path
    """The folder that holds its stores."""
    stores: dict[str, Store]
    """By policy, in order of folder name."""

    def questions(self, policies: Sequence[str]) -> Iterator[dict[str, Question]]:
        """Yield each question's records by policy, in order of id; policies without it are left out."""
        stores = {name: store for name, store in self.stores.items() if name in policies}
        held = {name: set(store.question_ids) for name, store in stores.items()}
        # A store yields in order of id, too, so the next of each is the one that is due.
        readers = {name: iter(store) for name, store in stores.items()}
        for question_id in sorted(set().union(*held.values())):
            yield {name: next(reader) for name, reader in readers.items() if question_id in held[name]}


def is_dynamic(store: Store) -> bool:
    """Whether a policy's number of trajectories depends on what they are, so that they cannot be exchanged."""
    return store.manifest.policy.get("family") == "dynamic"


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in these folders, in the order given.

    Args:
        folders: Stores, or folders in which every subfolder with a ``manifest.json`` is a store.

    Raises:
        InputError: If a folder is missing or holds no store, or the runs cannot be read together.
        StoreError: If a store cannot be read.
    """
    if not folders:
        raise InputError("Expected at least one run, got none: name the folder that `dps evaluate` wrote.")
    grouped: dict[Path, dict[Path, Path]] = {}
    for folder in folders:
        for store in find_stores([folder]):
            grouped.setdefault(store.resolve().parent, {})[store.resolve()] = store
    runs = []
    for (parent, stores), name in zip(grouped.items(), _distinct_names(list(grouped)), strict=True):
        opened: dict[str, Store] = {}
        for _, folder in sorted(stores.items()):
            store = Store.open(folder)
            policy = str(store.manifest.policy["name"])
            if policy in opened:
                raise InputError(
                    f"Expected each policy once in a run, but {opened[policy].folder} and {folder} both hold {policy}: "
                    "name one of them."
                )
            opened[policy] = store
        if not any(map(len, opened.values())):
            raise InputError(
                f"Expected complete questions in {parent}, found none yet: let the run go on, then try again."
            )
        runs.append(Run(name, parent, opened))
    _check_together(runs)
    return runs


def _distinct_names(folders: list[Path]) -> list[str]:
    """Name folders by as few of their last parts as tell them apart, by numbers where none do."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["-".join(part.strip("/") for part in folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(number) for number in range(1, len(folders) + 1)]


def _check_together(runs: Sequence[Run]) -> None:
    """Refuse runs whose trajectories of one policy follow different laws, or are the same draws.

    Raises:
        InputError: With one sentence that names two stores and what is wrong.
    """
    first = next(iter(runs[0].stores.values()))
    seen: dict[str, list[Store]] = {}
    for run in runs:
        for policy, store in run.stores.items():
            _check_same(first, store, "model")
            for other in seen.setdefault(policy, []):
                _check_same(other, store, "sampler")
                shared = set(other.question_ids) & set(store.question_ids)
                if other.manifest.seed == store.manifest.seed and shared:
                    raise InputError(
                        f"Expected runs of different seeds, but {other.folder} and {store.folder} both have seed "
                        f"{store.manifest.seed}, so their trajectories of {len(shared):,} questions are the same "
                        "draws: name one of them."
                    )
            seen[policy].append(store)


def _check_same(one: Store, two: Store, what: str) -> None:
    a, b = getattr(one.manifest, what), getattr(two.manifest, what)
    if what == "model":  # layer and embedder of features do not change a draw
        a, b = ({key: values.get(key) for key in ("name", "fingerprint", "dtype")} for values in (a, b))
    for key in sorted({*a, *b}):
        if a.get(key) != b.get(key):
            raise InputError(
                f"Expected runs of one {what}, but {key} is {a.get(key)!r} in {one.folder} and {b.get(key)!r} in "
                f"{two.folder}: read them apart."
            )
