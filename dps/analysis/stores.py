"""Which stores a command reads, and whether they say anything together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dps.errors import InputError
from feature_store import Manifest, Question, Store


def find_stores(folders: Sequence[Path]) -> list[Path]:
    """Return the store folders that these folders are or hold, sorted by name, each once.

    Raises:
        InputError: If a folder is missing or holds no store.
    """
    stores: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"Expected the folder of an evaluation, but there is no folder {folder}.")
        if (folder / "manifest.json").exists():
            inside = [folder]
        else:
            inside = sorted(path.parent for path in folder.glob("*/manifest.json"))
        if not inside:
            raise InputError(
                f"Expected a store or stores in {folder}, found no manifest.json there or one level below: "
                "name the folder that `dps evaluate` wrote."
            )
        stores.update({path.resolve(): path for path in inside})
    if not stores:
        raise InputError("Expected at least one folder of an evaluation, got none.")
    return sorted(stores.values(), key=lambda path: (path.resolve().name, str(path.resolve())))


def check_comparable(stores: Sequence[tuple[Path, Manifest]]) -> None:
    """Refuse stores that say nothing together: of other questions, of another model, or twice the same policy.

    Raises:
        InputError: With one sentence that names the two stores and what differs.
    """
    first_folder, first = stores[0]
    for folder, manifest in stores[1:]:
        one, two = first.benchmark, manifest.benchmark
        if one != two and not _prompts_agree(one, two, first_folder, folder):
            _check_same("stores of one benchmark", (first_folder, one), (folder, two), "make a report of each")
        models = ((first_folder, model_identity(first)), (folder, model_identity(manifest)))
        _check_same("stores of one model", *models, "make a report of each")
    seen: dict[str, Path] = {}
    for folder, manifest in stores:
        name = str(manifest.policy["name"])
        if name in seen:
            raise InputError(
                f"Expected each policy once, but {seen[name]} and {folder} both hold {name}: make a report of each."
            )
        seen[name] = folder


def _prompts_agree(one: dict[str, Any], two: dict[str, Any], first: Path, second: Path) -> bool:
    """Whether two benchmarks have the same prompts and differ only in who chose their form, ``auto`` or the user.

    What ``auto`` chose depends on the model's tokenizer; the prompt of a question that both stores hold says it.
    """
    if {**one, "prompt": None} != {**two, "prompt": None} or "auto" not in (one.get("prompt"), two.get("prompt")):
        return False
    stores = Store.open(first), Store.open(second)
    shared = sorted(set(stores[0].question_ids) & set(stores[1].question_ids))[:1]
    prompts = [question.prompt for store in stores for question in store.read(shared)]
    return len(prompts) == 2 and prompts[0] == prompts[1]


def model_identity(manifest: Manifest) -> dict[str, Any]:
    """Return what decides a model's probabilities; layer and embedder of features do not matter here."""
    return {key: manifest.model.get(key) for key in ("name", "fingerprint", "dtype")}


def choose_clock(manifests: Sequence[Manifest]) -> tuple[str, Mapping[str, float]] | None:
    """Return the one calibrated clock for all policies, with the policy it comes from; None if no store has one.

    It is that of the first store that has one. One clock for all, because each store measured its own under whatever
    else the machine was doing, and only tokens may tell policies apart here.
    """
    keys = ("seconds_per_token", "prefill_seconds_per_token")
    for manifest in manifests:
        if all(key in manifest.calibration for key in keys):
            return str(manifest.policy["name"]), {key: float(manifest.calibration[key]) for key in keys}
    return None


# -- the runs of `dps metrics`, which are pooled: draws of one law, none of them twice ---------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What a store holds of one policy of :class:`Run`."""

    store: Store
    """The store."""
    arm: str | None
    """The arm whose responses these are; None of a policy that decides, which has them all."""

    @property
    def sampler(self) -> Mapping[str, Any]:
        """How its responses were drawn."""
        return self.store.manifest.sampler if self.arm is None else self.store.manifest.arms[self.arm]

    def of(self, question: Question) -> Question:
        """Return a question with the responses of this part only."""
        if self.arm is None or len(self.store.manifest.arms) == 1:
            return question
        return replace(question, trajectories=tuple(t for t in question.trajectories if t.arm == self.arm))


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One evaluation (or harvest)."""

    name: str
    """Distinct among the runs that are read together; part of file names."""
    folder: Path
    """The folder that holds its stores."""
    parts: dict[str, Part]
    """By policy, in order of folder name; a store of several arms holds each under the arm's name."""

    @property
    def stores(self) -> list[Store]:
        """Its stores, each once."""
        return list({part.store.folder: part.store for part in self.parts.values()}.values())

    def questions(self, policies: Sequence[str]) -> Iterator[dict[str, Question]]:
        """Yield each question's records by policy, in order of id; policies without it are left out."""
        parts = {name: part for name, part in self.parts.items() if name in policies}
        stores = {part.store.folder: part.store for part in parts.values()}
        held = {folder: set(store.question_ids) for folder, store in stores.items()}
        # A store yields in order of id, too, so the next of each is the one that is due.
        readers = {folder: iter(store) for folder, store in stores.items()}
        for question_id in sorted(set().union(*held.values())):
            due = {folder: next(reader) for folder, reader in readers.items() if question_id in held[folder]}
            yield {name: part.of(due[part.store.folder]) for name, part in parts.items() if part.store.folder in due}


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in these folders, in the order given; stores that lie in one folder belong to one run.

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
        parts: dict[str, Part] = {}
        for _, folder in sorted(stores.items()):
            for policy, part in _parts(Store.open(folder)).items():
                if policy in parts:
                    raise InputError(
                        f"Expected each policy once in a run, but {parts[policy].store.folder} and {folder} both hold "
                        f"{policy}: name one of them."
                    )
                parts[policy] = part
        if not any(len(part.store) for part in parts.values()):
            raise InputError(
                f"Expected complete questions in {parent}, found none yet: let the run go on, then try again."
            )
        runs.append(Run(name, parent, parts))
    _check_together(runs)
    return runs


def _parts(store: Store) -> dict[str, Part]:
    """Return what a store holds by policy: of a fixed one its arms, whose only one is called by the policy's name."""
    manifest = store.manifest
    name, arms = str(manifest.policy["name"]), list(manifest.arms)
    if manifest.policy.get("family") == "dynamic":
        return {name: Part(store, None)}
    return {name: Part(store, arms[0])} if len(arms) == 1 else {arm: Part(store, arm) for arm in arms}


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
    first = next(iter(runs[0].parts.values())).store
    seen: dict[str, list[Part]] = {}
    for run in runs:
        for policy, part in run.parts.items():
            store = part.store
            models = ((one.folder, model_identity(one.manifest)) for one in (first, store))
            _check_same("runs of one model", *models, "read them apart")
            for before in seen.setdefault(policy, []):
                samplers = ((one.store.folder, one.sampler) for one in (before, part))
                _check_same("runs of one sampler", *samplers, "read them apart")
                other = before.store
                shared = set(other.question_ids) & set(store.question_ids)
                if other.manifest.seed == store.manifest.seed and shared:
                    raise InputError(
                        f"Expected runs of different seeds, but {other.folder} and {store.folder} both have seed "
                        f"{store.manifest.seed}, so their trajectories of {len(shared):,} questions are the same "
                        "draws: name one of them."
                    )
            seen[policy].append(part)


def _check_same(what: str, one: tuple[Path, Mapping[str, Any]], two: tuple[Path, Mapping[str, Any]], do: str) -> None:
    """Refuse two stores whose values differ, or are named by one of them only."""
    (first, a), (second, b) = one, two
    for key in sorted({*a, *b}):
        if (key in a, a.get(key)) != (key in b, b.get(key)):
            raise InputError(
                f"Expected {what}, but {key} is {a.get(key)!r} in {first} and {b.get(key)!r} in {second}: {do}."
            )
