"""Harvests and evaluations: which stores there are, and filling them with one worker or several.

``harvest`` and ``evaluate`` check everything that can be checked, load the model once to know its identity and clock,
write each store's manifest, and hand the stores to the workers, which commit questions on their own.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dps.benchmarks import load_benchmark
from dps.config import EARLY_STOPS, EvaluateConfig, HarvestConfig, is_file
from dps.decide import RULES, Controller, Ladder, Policy, Rung
from dps.decide.features import EMBEDDING
from dps.decide.ladder import POWER
from dps.decide.policy import check_arms
from dps.decide.policy_file import PolicyFile, checkpoint_path, read_policy
from dps.errors import InputError
from dps.model import load_model
from dps.model_config import check_there
from dps.run.clock import Clock, clock_store, measure_clock
from dps.run.ledger import Missing
from dps.run.pool import Pool, for_worker
from dps.run.progress import track
from dps.run.progress_log import Display
from dps.run.worker import (
    EngineCache,
    LoadController,
    Report,
    StoreTask,
    WorkSettings,
    check_layers,
    identity_of,
    open_embedder,
    prompts_of,
    warn_of_endless_turns,
    work_alone,
)
from dps.sampler.settings import SamplerConfig
from dps.start import WORKERS, stage, starting
from feature_store import Manifest, Store, StoreWriter
from feature_store.errors import StoreError
from feature_store.index import MANY
from feature_store.joining import join_segments
from feature_store.lock import held
from feature_store.manifest import MANIFEST
from feature_store.store import check_same_run

if TYPE_CHECKING:
    from dps.run.ray_pool import RayPool

MeasureClock = Callable[[SamplerConfig], Clock]
"""Measures the calibrated clock of a sampler, or takes it over."""
FillStores = Callable[[list[StoreTask], Sequence[Missing], Report], None]
"""Fills stores with what groups of them lack, and reports every committed question."""

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
    responses: int = 0
    """Trajectories in it."""
    cut: int = 0
    """How many of them ended at T_max."""

    @classmethod
    def of(cls, folder: Path, complete: int, sampled: int) -> Summary:
        """Return the summary of a store; its grades are read from it."""
        counted = {"graded": 0, "right": 0, "responses": 0, "cut": 0}
        # What was damaged before is said where it is read for its content: the run itself is done.
        with suppress(StoreError):
            for question in Store.open(folder).scan(hidden=False):
                counted["graded"] += question.correct is not None
                counted["right"] += bool(question.correct)
                counted["responses"] += question.k
                counted["cut"] += sum(each.ending == "length" for each in question.trajectories)
        return cls(folder, complete, sampled, **counted)


@dataclass(frozen=True, slots=True)
class StorePlan:
    """A store that is to be filled."""

    kind: str
    policy: dict[str, Any]
    task: StoreTask
    controller: Controller | None = None
    """Of a dynamic policy that has one; workers load it again."""
    file: PolicyFile | None = None
    """The policy file that it comes from."""

    @property
    def folder(self) -> Path:
        """Folder of the store."""
        return self.task.folder


def harvest(config: HarvestConfig) -> Summary:
    """Sample every question to the end of the ladder with features and write a store for training.

    Args:
        config: What to sample, and the folder of the store. A run that was stopped goes on where it was.

    Returns:
        The store's folder, and how many questions it has, were sampled now, have a grade and are right.

    Raises:
        InputError: If the settings, the questions, the model or the folder cannot be used.
        StoreError: If the folder holds a store of other settings.

    Example:
        >>> short = SamplerConfig(block_size=24, max_new_tokens=48, num_mh_steps=2)
        >>> questions = BenchmarkConfig(name="arithmetic", split="train", limit=64)
        >>> harvest(HarvestConfig(output="runs/small", benchmark=questions, sampler=short))  # doctest: +SKIP
    """
    config.check()
    return _fill([plan_of_harvest(config)], settings_of(config), asdict(config), None)[0]


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
    check_layers(settings.features, model.num_layers)
    identity = identity_of(model, benchmark, settings)
    check_same_run(folder, _manifest(plan_of_harvest(config), settings, asdict(config), identity, Clock({}, None), []))


def plan_of_harvest(config: HarvestConfig) -> StorePlan:
    """Return the store of a harvest. Its trajectories stand by arm, whatever the ladder."""
    ladder = config.climbed()
    name = POWER if ladder.arms == (POWER,) else "harvest"
    by_arm = Ladder(tuple(Rung(arm, count) for arm, count in ladder.totals.items()))
    policy = {"name": name, "family": "fixed", "ladder": ladder.texts()}
    return StorePlan("harvest", policy, StoreTask(Path(config.output), config.samplers(), by_arm, features=True))


def evaluate(config: EvaluateConfig, load_controller: LoadController | None = None) -> list[Summary]:
    """Run every policy live on the model and write one store for each, in subfolders of ``output``.

    Args:
        config: What to run.
        load_controller: Loads the controllers of dynamic policies from their paths: :func:`dps.load_controller`.

    Returns:
        What was done to the store of each policy, see :func:`harvest`.

    Raises:
        InputError: If the settings, the questions, a controller, the model or a folder cannot be used.
        StoreError: If a folder holds a store of other settings.

    Example:
        >>> evaluate(EvaluateConfig(policies=("power", "lowtemp", "lead-2")), load_controller)  # doctest: +SKIP
    """
    config.check()
    plans = [_plan(config, name, load_controller) for name in config.policies]
    return _fill(plans, settings_of(config), asdict(config), load_controller)


def _plan(config: EvaluateConfig, name: str, load_controller: LoadController | None) -> StorePlan:
    """Return the store of one policy of an evaluation."""
    file = read_policy(name) if is_file(name) else None
    law: dict[str, Any] = {}
    if file is not None:
        name, path = file.name, str(file.controller) if file.controller is not None else None
        of_file = dict(controller=path, rule=file.rule, aggregator=file.aggregator)
        task = StoreTask(Path(config.output) / name, file.arms, file.ladder, **of_file)
    else:
        ladder, samplers = config.ladder_for(name), config.samplers()
        arms = {arm: samplers.get(arm, config.sampler) for arm in ladder.arms}
        task = StoreTask(Path(config.output) / name, arms, ladder, controller=config.controllers.get(name))
    if name == "max-swap":  # no file has the name of one of these
        task = replace(task, arms={POWER: replace(config.sampler, accept_rule="max_swap")})
        law["law"] = "a search for likely responses, which accepts only what is more likely"
    elif name in EARLY_STOPS:
        metric = EARLY_STOPS[name]
        threshold = config.early_stop_thresholds.get(metric)
        sampler = replace(config.sampler, early_stop=metric, early_stop_threshold=threshold)
        task = replace(task, arms={POWER: sampler})
        sign = ">=" if metric == "self_confidence" else "<="
        law["law"] = f"chains end after a stage once {metric} {sign} {sampler.early_stop_threshold_in_force:g}"
    elif name in RULES:
        task = replace(task, rule=replace(RULES[name], **config.rules.get(name, {})))
    controller, path, rule = None, task.controller, task.rule
    policy: dict[str, Any] = {"name": name, "family": "fixed", "ladder": task.ladder.texts(), **law}
    if path is not None:
        if load_controller is None:
            raise InputError(f"The policy {name} needs a controller: give evaluate dps.load_controller, too.")
        controller = load_controller(path)
        policy.update(family="dynamic", controller=path, threshold=controller.threshold, digest=_digest(path))
    elif rule is not None:
        policy.update(family="dynamic", rule=asdict(rule), threshold=rule.threshold)
    if file is not None:
        file.policy(controller)  # refuses a controller of another ladder, other arms or another threshold
    elif controller is not None:
        Policy(task.ladder, controller)
        check_arms(controller, task.arms)
    return StorePlan("evaluation", policy, task, controller, file)


def _digest(path: str) -> str:
    """Return a digest of a controller's checkpoint, so that a retrained one is another policy."""
    return hashlib.sha256(checkpoint_path(path).read_bytes()).hexdigest()[:16]


def settings_of(config: HarvestConfig | EvaluateConfig) -> WorkSettings:
    """Return what all stores of a run have in common."""
    of_harvest = isinstance(config, HarvestConfig)
    return WorkSettings(
        model=config.model,
        benchmark=config.benchmark,
        features=config.features,
        aggregator=config.aggregator,
        seed=config.seed,
        compute=config.compute,
        forced_lengths=config.forced_lengths(max(config.climbed().totals.values())) if of_harvest else None,
        by_prompt=not of_harvest and config.streams == "prompt",
    )


def _fill(
    plans: Sequence[StorePlan],
    settings: WorkSettings,
    resolved: dict[str, Any],
    load_controller: LoadController | None,
) -> list[Summary]:
    """Check what can be checked, write the manifests, fill the stores; their folders are held meanwhile."""
    controllers = [plan.controller for plan in plans if plan.controller is not None]
    check_there(settings.model)
    if any(plan.task.features for plan in plans) or any(EMBEDDING in each.parts for each in controllers):
        open_embedder(settings.features.embedder).check_there()
    with ExitStack() as stack:
        stack.enter_context(starting(plans[0].kind))
        for plan in plans:
            stack.enter_context(held(plan.folder))
        benchmark = load_benchmark(settings.benchmark, settings.model.name)
        _check_standing([plan.folder for plan in plans], settings.compute.clock_store)
        # Worker processes start first, so that they import while this one loads the model.
        with stage(WORKERS):
            pool = _pool(settings, load_controller)
        workers = stack.enter_context(ExitStack())
        if pool is None:
            settings = for_worker(settings, 0)
        else:
            workers.callback(pool.close)
        model = settings.load_model()
        warn_of_endless_turns(model, benchmark)
        identity = identity_of(model, benchmark, settings)
        for controller in controllers:
            controller.check_model(identity["model"])
        for file in (plan.file for plan in plans if plan.file is not None):
            for remark in (*file.check_model(identity["model"]), *file.check_benchmark(identity["benchmark"])):
                warnings.warn(remark, stacklevel=2)
        check_layers(settings.features, model.num_layers)
        for sampler in {plan.task.sampler: None for plan in plans}:
            prompts_of(model, benchmark, sampler)  # refuses prompts that leave no room
        measure: MeasureClock
        run: FillStores
        tasks = [plan.task for plan in plans]
        if pool is None:
            cache = EngineCache(model, tasks, settings, load_controller)
            measure, run = partial(measure_clock, cache), partial(work_alone, cache=cache)
        else:
            measure, run = partial(pool.clock, tasks), pool.run
            del model
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # a worker plans with the memory that is free
        wanted = [item.question_id for item in benchmark.items[settings.compute.part]]
        writers = _open_stores(plans, settings, resolved, identity, measure, wanted)
        counts = _fill_stores(plans, settings, writers, wanted, run)
        workers.close()
        for plan in plans:
            _join(plan.folder)
        return [Summary.of(plan.folder, len(wanted), count) for plan, count in zip(plans, counts, strict=True)]


def _join(folder: Path) -> None:
    """Join the segments of a store that is done, where there are many; the run holds it still."""
    try:
        join_segments(folder, least=MANY, track=track)
    except (StoreError, OSError) as error:  # the run itself is done
        warnings.warn(f"{folder} is complete, but its segments were not joined: {error}", stacklevel=2)


def _fill_stores(
    plans: Sequence[StorePlan],
    settings: WorkSettings,
    writers: Sequence[StoreWriter],
    wanted: Sequence[str],
    run: FillStores,
) -> list[int]:
    """Have the workers sample what the stores lack of the questions wanted, and show it; return how many for each."""
    tasks = [plan.task for plan in plans]
    lacking = [[name for name in wanted if name not in writer.committed] for writer in writers]
    before = [len(wanted) - len(names) for names in lacking]
    counts = [0] * len(plans)
    if any(lacking):
        groups = settings.groups(tasks)
        missing: list[Missing] = []
        for group in groups:
            stores = {name: tuple(n for n in group if name not in writers[n].committed) for name in wanted}
            missing.append({name: lack for name, lack in stores.items() if lack})
        shown = [(plan.folder, plan.policy["name"], count) for plan, count in zip(plans, before, strict=True)]
        tensorboard = settings.compute.tensorboard
        with Display(plans[0].kind, shown, len(wanted), groups, tensorboard=tensorboard) as display:
            run(tasks, missing, display.show)
            counts = display.counts
        if counts != [len(names) for names in lacking]:
            raise RuntimeError(f"expected to sample {[len(names) for names in lacking]} questions, sampled {counts}")
    return counts


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
    measure: MeasureClock,
    wanted: Sequence[str],
) -> list[StoreWriter]:
    """Write every store's manifest, or check that the one that stands is of the same run.

    Stores that stand come first: one of another run is refused before anything is written, and a new store over the
    same sampler takes over the clock of one that stands.
    """
    clocks: dict[SamplerConfig, Clock] = {}
    writers = {}
    for plan in sorted(plans, key=lambda plan: not (plan.folder / MANIFEST).exists()):
        sampler = plan.task.sampler
        if sampler not in clocks:
            stands = (plan.folder / MANIFEST).exists()
            clocks[sampler] = Clock({}, None) if stands else measure(sampler)
        manifest = _manifest(plan, settings, resolved, identity, clocks[sampler], wanted)
        writer = writers[plan.folder] = StoreWriter.open(plan.folder, manifest)
        clocks[sampler] = Clock(writer.manifest.calibration, writer.manifest.device)
    return [writers[plan.folder] for plan in plans]


def _manifest(
    plan: StorePlan,
    settings: WorkSettings,
    resolved: dict[str, Any],
    identity: dict[str, Any],
    clock: Clock,
    wanted: Sequence[str],
) -> Manifest:
    """Return the manifest of a store; ``wanted`` are questions that are to be in it beside those that are."""
    arms = {name: asdict(sampler) for name, sampler in plan.task.arms.items()}
    aggregator = plan.task.aggregator or settings.aggregator
    decides = {**identity, "aggregator": aggregator, "arms": arms, "policy": plan.policy, "kind": plan.kind}
    return Manifest(
        kind=plan.kind,
        policy=plan.policy,
        aggregator=aggregator,
        seed=settings.seed,
        model=identity["model"],
        benchmark=identity["benchmark"],
        arms=arms,
        calibration=clock.constants,
        device=clock.device,
        config=resolved,
        fingerprint=hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:16],
        software={name: metadata.version(name) for name in _PACKAGES},
        question_ids=sorted(wanted),
    )
