"""Harvests and evaluations: which stores there are, and filling them with one worker or several.

``harvest`` and ``evaluate`` check everything that can be checked, load the model once to know its identity and clock,
write each store's manifest, and hand the stores to the workers, which commit questions on their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dps.benchmarks import load_benchmark
from dps.config import EARLY_STOPS, EvaluateConfig, HarvestConfig
from dps.decide import RULES, DynamicK
from dps.decide.features import EMBEDDING
from dps.decide.files import controller_file
from dps.errors import InputError
from dps.forced import ForcedLengths
from dps.model import load_model
from dps.model_config import check_there
from dps.run.clock import Clock, clock_store, measure_clock
from dps.run.pool import Pool, for_worker
from dps.run.progress import track
from dps.run.progress_log import ProgressLog
from dps.run.worker import (
    Done,
    LoadController,
    StoreTask,
    WorkSettings,
    identity_of,
    open_embedder,
    open_in_run,
    prompts_of,
    take_all,
    warn_of_endless_turns,
    work,
)
from dps.sampler.settings import SamplerConfig
from dps.sampler.teacher import check_layer
from feature_store import Manifest, Store, StoreWriter
from feature_store.errors import StoreError
from feature_store.lock import held
from feature_store.manifest import MANIFEST
from feature_store.store import check_same_run

if TYPE_CHECKING:
    from dps.run.ray_pool import RayPool

MeasureClock = Callable[[SamplerConfig, tuple[int, ...]], Clock]
"""Measures the calibrated clock of a sampler and the blocks of its snapshots, or takes it over."""

_PACKAGES = ("torch", "transformers", "sentence-transformers", "lightning", "lightgbm", "h5py", "numpy")


@dataclass(frozen=True, slots=True)
class Summary:
    """What a command did to one store."""

    folder: Path
    """The store."""
    complete: int
    """Questions in it now."""
    sampled: int
    """Questions that this command added."""
    graded: int
    """Questions in it that have a grade."""
    right: int
    """How many of them are right."""

    @classmethod
    def of(cls, folder: Path, complete: int, sampled: int) -> Summary:
        """Return the summary of a store; its grades are read from it."""
        try:
            grades = [question.correct for question in Store.open(folder).scan(hidden=False)]
        except StoreError:  # what was damaged before is said where it is read for its content: the run itself is done
            grades = []
        return cls(folder, complete, sampled, sum(grade is not None for grade in grades), sum(map(bool, grades)))


def harvest(config: HarvestConfig) -> Summary:
    """Sample every question ``k.maximum`` times with features and write a store for training.

    Raises:
        InputError: If the settings, the questions, the model or the folder cannot be used.
    """
    config.check()
    return _fill([_plan_harvest(config)], settings_of(config), asdict(config), None)[0]


def check_harvest_folder(config: HarvestConfig) -> None:
    """Refuse a folder that holds a store of other settings, as :func:`harvest` would; nothing is written.

    Raises:
        StoreError: With what differs.
    """
    folder = Path(config.output)
    _check_standing([folder], config.compute.clock_store)
    if not (folder / MANIFEST).exists():
        return
    settings, benchmark = settings_of(config), load_benchmark(config.benchmark, config.model.name)
    model = load_model(config.model)
    check_layer(settings.features.layer, model.num_layers)
    identity = identity_of(model, benchmark, settings)
    check_same_run(folder, _manifest(_plan_harvest(config), settings, asdict(config), identity, Clock({}, None), []))


def _plan_harvest(config: HarvestConfig) -> StorePlan:
    """Return the store of a harvest."""
    blocks = tuple(config.checkpoint_blocks)
    return StorePlan(
        folder=Path(config.output),
        kind="harvest",
        policy={"name": "power", "family": "fixed", **asdict(config.k)}
        | ({"checkpoint_blocks": list(blocks)} if blocks else {}),
        task=StoreTask(
            Path(config.output), config.sampler, config.k.maximum, None, features=True, checkpoint_blocks=blocks
        ),
    )


def evaluate(config: EvaluateConfig, load_controller: LoadController | None = None) -> list[Summary]:
    """Run every policy live on the model and write one store for each, in subfolders of ``output``.

    Args:
        config: What to run.
        load_controller: Loads the controllers of dynamic policies from their paths.

    Raises:
        InputError: If the settings, the questions, a controller, the model or a folder cannot be used.
    """
    config.check()
    plans = [_plan(config, name, load_controller) for name in config.policies]
    return _fill(plans, settings_of(config), asdict(config), load_controller)


@dataclass(frozen=True, slots=True)
class StorePlan:
    """A store that is to be filled."""

    folder: Path
    kind: str
    policy: dict[str, Any]
    task: StoreTask


def _plan(config: EvaluateConfig, name: str, load_controller: LoadController | None) -> StorePlan:
    """Return the store of one policy of an evaluation."""
    folder = Path(config.output) / name
    if name in config.in_run:
        return _plan_in_run(config, name, load_controller)
    policy: dict[str, Any] = {"name": name, "family": "fixed", **asdict(config.k)}
    if name == "power":
        task = StoreTask(folder, config.sampler, config.k.maximum, None, features=False)
    elif name in ("plain", "lowtemp"):
        sampler = config.sampler.plain(1.0 if name == "plain" else config.low_temperature)
        policy = {"name": name, "family": "fixed", "ks": list(config.plain_ks)}
        task = StoreTask(folder, sampler, config.plain_max_k, None, features=False)
    elif name == "max-swap":
        sampler = replace(config.sampler, accept_rule="max_swap", num_tries=1, anneal_blocks=1)
        policy["law"] = "a search for likely responses, which accepts only what is more likely"
        task = StoreTask(folder, sampler, config.k.maximum, None, features=False)
    elif name in EARLY_STOPS:
        metric = EARLY_STOPS[name]
        sampler = replace(
            config.sampler, early_stop=metric, early_stop_threshold=config.early_stop_thresholds.get(metric)
        )
        sign = ">=" if metric == "self_confidence" else "<="
        policy["law"] = f"chains end after a stage once {metric} {sign} {sampler.early_stop_threshold_in_force:g}"
        task = StoreTask(folder, sampler, config.k.maximum, None, features=False)
    elif name in RULES:
        rule = replace(RULES[name], **config.rules.get(name, {}))
        policy.update(family="dynamic", rule=asdict(rule), threshold=rule.threshold)
        task = StoreTask(folder, config.sampler, config.k, None, features=False, rule=rule)
    else:
        if load_controller is None:
            raise InputError(f"The policy {name} needs a controller, and nothing was given to load it with.")
        path = config.controllers[name]
        controller = load_controller(path)
        DynamicK(config.k, controller)  # refuses a range that the controller does not know
        policy.update(family="dynamic", controller=path, threshold=controller.threshold, digest=_digest(path))
        task = StoreTask(folder, config.sampler, config.k, path, features=False)
    return StorePlan(folder, "evaluation", policy, task)


def _plan_in_run(config: EvaluateConfig, name: str, load_controller: LoadController | None) -> StorePlan:
    """Return the store of a policy that is also asked while trajectories run."""
    inside, folder = config.in_run[name], Path(config.output) / name
    base = _plan(config, inside.policy, load_controller)
    if load_controller is None:
        raise InputError(f"The policy {name} needs controllers, and nothing was given to load them with.")
    opened = open_in_run(inside, config.k, config.sampler, load_controller)  # refuses controllers that do not fit
    asks = {**asdict(inside), "digests": [_digest(path) for path in inside.paths]}
    policy = {**base.policy, "name": name, "in_run": asks}
    task = replace(base.task, folder=folder, in_run=inside, checkpoint_blocks=opened.blocks)
    return StorePlan(folder, "evaluation", policy, task)


def _digest(path: str) -> str:
    """Return a digest of a controller's checkpoint, so that a retrained one is another policy."""
    return hashlib.sha256(controller_file(path).read_bytes()).hexdigest()[:16]


def settings_of(config: HarvestConfig | EvaluateConfig) -> WorkSettings:
    """Return what all stores of a run have in common."""
    return WorkSettings(
        model=config.model,
        benchmark=config.benchmark,
        features=config.features,
        aggregator=config.aggregator,
        seed=config.seed,
        compute=config.compute,
        forced_lengths=_forced_lengths(config) if isinstance(config, HarvestConfig) else None,
    )


def _forced_lengths(config: HarvestConfig) -> ForcedLengths | None:
    """Return the lengths that a measurement of speed forces, if it is one."""
    if config.forced_mean_length is None:
        return None
    return ForcedLengths(
        config.forced_mean_length, config.forced_spread, config.sampler.max_new_tokens, config.k.maximum, config.seed
    )


def _fill(
    plans: Sequence[StorePlan],
    settings: WorkSettings,
    resolved: dict[str, Any],
    load_controller: LoadController | None,
) -> list[Summary]:
    """Fill the stores; their folders are held against other runs meanwhile."""
    paths = list(dict.fromkeys(path for plan in plans for path in plan.task.controllers))
    controllers = [load_controller(path) for path in paths] if load_controller is not None else []
    check_there(settings.model)
    if any(plan.task.features for plan in plans) or any(EMBEDDING in controller.parts for controller in controllers):
        open_embedder(settings.features.embedder).check_there()
    with ExitStack() as stack:
        for plan in plans:
            stack.enter_context(held(plan.folder))
        return _fill_held(plans, settings, resolved, load_controller, controllers)


def _fill_held(
    plans: Sequence[StorePlan],
    settings: WorkSettings,
    resolved: dict[str, Any],
    load_controller: LoadController | None,
    controllers: Sequence[Any],
) -> list[Summary]:
    """Write the manifests, fill the stores, report progress."""
    benchmark = load_benchmark(settings.benchmark, settings.model.name)
    _check_standing([plan.folder for plan in plans], settings.compute.clock_store)
    # Worker processes start first, so that they import while this one loads the model.
    pool = _pool(settings, load_controller)
    settings = for_worker(settings, 0) if pool is None else settings
    try:
        model = load_model(settings.model)
        warn_of_endless_turns(model, benchmark)
        identity = identity_of(model, benchmark, settings)
        for controller in controllers:
            controller.check_model(identity["model"])
        check_layer(settings.features.layer, model.num_layers)
        for sampler in {plan.task.sampler: None for plan in plans}:
            prompts_of(model, benchmark, sampler)  # refuses prompts that leave no room
        clock: MeasureClock = pool.clock if pool is not None else partial(measure_clock, model, benchmark, settings)
        if pool is not None:
            del model
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # a worker plans with the memory that is free
        wanted = [item.question_id for item in benchmark.items[settings.compute.part]]
        writers = _open_stores(plans, settings, resolved, identity, clock, wanted)
        missing = [[name for name in wanted if name not in writer.committed] for writer in writers]
        before = [len(wanted) - len(names) for names in missing]
        tasks = [plan.task for plan in plans]
        counts = [0] * len(plans)
        if any(missing):
            with _Display(plans, before, len(wanted), tensorboard=settings.compute.tensorboard) as display:
                if pool is None:
                    work(
                        0,
                        tasks,
                        settings,
                        load_controller,
                        take=take_all(missing),
                        report=display.show,
                        stopping=lambda: False,
                        model=model,
                    )
                else:
                    pool.run(tasks, missing, display.show)
                counts = display.counts
            if counts != [len(names) for names in missing]:
                raise RuntimeError(f"expected to sample {[len(n) for n in missing]} questions, sampled {counts}")
    finally:
        if pool is not None:
            pool.close()
    return [Summary.of(p.folder, n + c, c) for p, n, c in zip(plans, before, counts, strict=True)]


def _check_standing(folders: Sequence[Path], earlier: str | None) -> None:
    """Check, before a model loads, the stores that stand there already and the one whose clock is to be taken over.

    Raises:
        StoreError: If one cannot be read.
        InputError: If the earlier store has no clock to take over, or a standing store has another one.
    """
    clock = clock_store(earlier).calibration if earlier is not None else None
    for folder in folders:
        if not (folder / MANIFEST).exists():
            continue
        stored = Store.open(folder).manifest.calibration
        if clock is not None and clock != stored:
            raise InputError(
                f"Expected compute.clock_store with the clock that {folder} has, but that of {earlier} is another, and "
                "a store that was begun keeps its own: leave the setting out, or choose another output."
            )


def _pool(settings: WorkSettings, load_controller: LoadController | None) -> Pool | RayPool | None:
    """Return the workers of a run; None where this process does the work."""
    if settings.compute.backend == "ray":
        from dps.run.ray_pool import RayPool

        return RayPool(settings, load_controller)
    return Pool(settings, load_controller) if settings.compute.workers > 1 else None


def _open_stores(
    plans: Sequence[StorePlan],
    settings: WorkSettings,
    resolved: dict[str, Any],
    identity: dict[str, Any],
    clock: MeasureClock,
    wanted: Sequence[str],
) -> list[StoreWriter]:
    """Write every store's manifest, or check that the one that stands is of the same run.

    Args:
        plans: The stores.
        settings: What they have in common.
        resolved: The whole configuration of the command.
        identity: What decides the trajectories, see ``identity_of``.
        clock: Measures the clock or takes it over, once for every engine that the run opens.
        wanted: Ids of the questions that this command adds to those that the stores are to have.
    """
    clocks: dict[tuple[SamplerConfig, tuple[int, ...]], Clock] = {}
    writers = []
    for plan in plans:
        engine = plan.task.sampler, plan.task.checkpoint_blocks
        if (plan.folder / MANIFEST).exists():
            stored = Store.open(plan.folder).manifest
            clocks[engine] = Clock(stored.calibration, stored.device)
        elif engine not in clocks:
            clocks[engine] = clock(*engine)
        manifest = _manifest(plan, settings, resolved, identity, clocks[engine], wanted)
        writers.append(StoreWriter.open(plan.folder, manifest))
    return writers


def _manifest(
    plan: StorePlan,
    settings: WorkSettings,
    resolved: dict[str, Any],
    identity: dict[str, Any],
    clock: Clock,
    wanted: Sequence[str],
) -> Manifest:
    """Return the manifest of a store, see :func:`_open_stores`."""
    sampler = asdict(plan.task.sampler)
    decides = {**identity, "sampler": sampler, "policy": plan.policy, "kind": plan.kind}
    if settings.forced_lengths is not None:
        decides["forced_lengths"] = asdict(settings.forced_lengths)
    return Manifest(
        kind=plan.kind,
        policy=plan.policy,
        aggregator=settings.aggregator,
        seed=settings.seed,
        model=identity["model"],
        benchmark=identity["benchmark"],
        sampler=sampler,
        calibration=clock.constants,
        device=clock.device,
        config=resolved,
        fingerprint=hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:16],
        software={name: metadata.version(name) for name in _PACKAGES},
        question_ids=sorted(wanted),
    )


class _Display:
    """Progress of a run: one bar over all its stores with running totals, and a log in each store's folder."""

    def __init__(
        self, plans: Sequence[StorePlan], before: Sequence[int], total: int, *, tensorboard: bool = False
    ) -> None:
        """Prepare.

        Args:
            plans: The stores.
            before: Questions that each holds already.
            total: Questions that each will hold.
            tensorboard: Whether each store also gets TensorBoard scalars.
        """
        self.counts = [0] * len(plans)
        self._names = [plan.policy["name"] for plan in plans]
        self._seen = [_Totals() for _ in plans]
        names = ", ".join(name for name, count in zip(self._names, before, strict=True) if count < total)
        self._track = track(f"{plans[0].kind} ({names})", sum(total - count for count in before))
        self._open = [
            partial(ProgressLog, plan.folder, count, total, tensorboard=tensorboard)
            for plan, count in zip(plans, before, strict=True)
        ]
        self._logs: dict[int, ProgressLog] = {}
        self._stack = ExitStack()

    def __enter__(self) -> _Display:
        self._bar = self._stack.enter_context(self._track)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)

    def show(self, done: Done) -> None:
        """Count one committed question."""
        self.counts[done.task] += 1
        seen = self._seen[done.task]
        seen.add(done)
        self._bar.advance(1)
        self._bar.note(policy=self._names[done.task], **seen.note())
        if done.task not in self._logs:
            self._logs[done.task] = self._stack.enter_context(self._open[done.task]())
        self._logs[done.task].note(self.counts[done.task], seen.values(), done.age_s)


@dataclass(slots=True)
class _Totals:
    """Running totals of one store."""

    questions: int = 0
    tokens: int = 0
    trajectories: int = 0
    graded: int = 0
    correct: int = 0
    proposed: int = 0
    accepted: int = 0
    gpu_gib: float | None = None
    """Of the worker that has had most in use."""

    def add(self, done: Done) -> None:
        self.questions += 1
        self.tokens += done.tokens
        self.trajectories += done.k
        self.graded += done.correct is not None
        self.correct += bool(done.correct)
        self.proposed += done.proposed
        self.accepted += done.accepted
        if done.gpu_gib is not None:
            self.gpu_gib = max(done.gpu_gib, self.gpu_gib or 0.0)

    def values(self) -> dict[str, Any]:
        """Return them as the log has them: of the questions of this run."""
        return {
            "tokens": self.tokens,
            "mean_k": round(self.trajectories / self.questions, 3),
            "accuracy": round(self.correct / self.graded, 4) if self.graded else None,
            "acceptance_ratio": round(self.accepted / self.proposed, 4) if self.proposed else None,
            "gpu_gib": round(self.gpu_gib, 2) if self.gpu_gib is not None else None,
        }

    def note(self) -> dict[str, str]:
        """Return them in words."""
        note = {"tokens": f"{self.tokens:,}", "mean k": f"{self.trajectories / self.questions:.2f}"}
        if self.graded:
            note["right"] = f"{self.correct / self.graded:.1%}"
        if self.proposed:
            note["accepted"] = f"{self.accepted / self.proposed:.0%}"
        if self.gpu_gib is not None:
            note["GPU GiB"] = f"{self.gpu_gib:.1f}"
        return note
