"""What one worker does: load the model, sample the questions that it is given, commit them.

A run has one worker in the calling process or several processes; all call :func:`work` and pull questions from one
queue (``ledger``). Heavy imports stand at the top on purpose: a fork server imports this module once and every worker
process starts from there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dps.benchmarks import Benchmark, BenchmarkConfig, Item, load_benchmark
from dps.config import AskConfig, ComputeConfig, FeaturesConfig, InRunConfig
from dps.device import peak_gib
from dps.embedding import QuestionEmbedder
from dps.errors import InputError
from dps.features import EMBEDDING, HIDDEN, PARTS
from dps.forced import ForcedLengths
from dps.ledger import Ledger, Take
from dps.model import LanguageModel, load_model
from dps.model_config import EMBEDDED, ModelConfig, embedded_path
from dps.policies import Controller, DynamicK, FixedK, InRun, KRange, Policy, Rule, RuleK, in_run
from dps.sampler.engine import Engine, check_room
from dps.sampler.settings import SamplerConfig
from dps.scheduler import PreparedQuestion, run_policy
from feature_store import Question, StoreWriter

_PAUSE_S = 0.2
"""Pause of a worker that has nothing to do while others still have questions."""

LoadController = Callable[[str], Controller]
"""Loads a controller from a path; handed in by the composition root."""


@dataclass(frozen=True)
class StoreTask:
    """One store to fill: one policy over the questions."""

    folder: Path
    """Folder of the store; its manifest has been written."""
    sampler: SamplerConfig
    """How its chains are sampled."""
    k: int | KRange
    """A fixed number of trajectories, or the range of a dynamic policy."""
    controller: str | None
    """Path of the dynamic policy's controller, if it has one."""
    features: bool
    """Whether to store features and embeddings; a policy with a controller computes them anyway."""
    rule: Rule | None = None
    """The dynamic policy's rule, if it has no controller."""
    checkpoint_blocks: tuple[int, ...] = ()
    """Blocks of which a harvest stores snapshots."""
    in_run: InRunConfig | None = None
    """Who is asked while trajectories run."""

    @property
    def controllers(self) -> tuple[str, ...]:
        """Paths of all controllers that the policy asks."""
        inside = self.in_run.paths if self.in_run is not None else ()
        return ((self.controller,) if self.controller is not None else ()) + inside


@dataclass(frozen=True)
class WorkSettings:
    """What all stores of a run have in common."""

    model: ModelConfig
    benchmark: BenchmarkConfig
    features: FeaturesConfig
    aggregator: str
    seed: int
    compute: ComputeConfig
    memory_share: float = 1.0
    """Share of its device's memory that a worker's rows may plan with."""
    forced_lengths: ForcedLengths | None = None
    """Lengths of the responses, where speed is measured."""

    @property
    def threads(self) -> int | None:
        """PyTorch threads of a worker; None leaves PyTorch's own choice."""
        if self.compute.threads is not None:
            return self.compute.threads
        if self.compute.workers == 1:
            return None
        return max(1, len(os.sched_getaffinity(0)) // self.compute.workers)


@dataclass(frozen=True, slots=True)
class Done:
    """One committed question, as a worker reports it."""

    task: int
    """Number of the store's task."""
    question_id: str
    k: int
    tokens: int
    correct: bool | None
    accepted: int
    proposed: int
    age_s: float
    """Seconds from its admission to this report."""
    gpu_gib: float | None
    """Most GPU memory that the worker has had in use, GiB; None on a CPU."""


def open_embedder(name: str) -> QuestionEmbedder:
    """Open the question embedder of that name."""
    return QuestionEmbedder(str(embedded_path("embedder")) if name == EMBEDDED else name)


def prompts_of(
    model: LanguageModel, benchmark: Benchmark, sampler: SamplerConfig
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Render and tokenize every question's prompt.

    Returns:
        question_id -> (prompt, token ids).

    Raises:
        InputError: If a prompt leaves no room for a response; the sentence names the question.
    """
    found = {}
    for item in benchmark.items:
        prompt = benchmark.render(item, model.tokenizer)
        tokens = tuple(model.encode(prompt))
        try:
            check_room(len(tokens), sampler, model.max_positions)
        except InputError as error:
            raise InputError(f"Question {item.question_id}: {error}") from None
        found[item.question_id] = (prompt, tokens)
    return found


def prepare(
    items: list[Item],
    prompts: dict[str, tuple[str, tuple[int, ...]]],
    embedder: QuestionEmbedder | None,
    forced: ForcedLengths | None = None,
) -> list[PreparedQuestion]:
    """Bring questions into the form that the scheduler takes; embeds them all at once where an embedder is given.

    Args:
        items: The questions.
        prompts: Prompt and token ids of each, as :func:`prompts_of` gives them.
        embedder: Embeds the questions.
        forced: Lengths of the responses, where speed is measured.
    """
    started = time.perf_counter()
    embeddings = (
        embedder.embed([item.question for item in items])
        if embedder is not None and items
        else np.zeros((len(items), 0), np.float32)
    )
    embedding_s = (time.perf_counter() - started) / max(1, len(items)) if embedder is not None else 0.0
    return [
        PreparedQuestion(
            item=item,
            prompt=prompts[item.question_id][0],
            tokens=prompts[item.question_id][1],
            embedding=embedding,
            embedding_s=embedding_s,
            forced_lengths=forced.of(item.question_id) if forced is not None else None,
        )
        for item, embedding in zip(items, embeddings, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Stop:
    """What a worker is told instead of questions when the run is to end."""


TakeQuestions = Callable[[int | None, int, int], "Take | Stop"]
"""Asks for questions: the task that the worker is at (None for any), how many it could start, and how many it has
complete but not committed."""


def work(
    number: int,
    tasks: list[StoreTask],
    settings: WorkSettings,
    load_controller: LoadController | None,
    *,
    take: TakeQuestions,
    report: Callable[[Done], None],
    stopping: Callable[[], bool],
    model: LanguageModel | None = None,
) -> None:
    """Fill the stores with the questions that this worker is given, until none is left anywhere.

    Args:
        number: Number of this worker; its segments bear it.
        tasks: The stores, in order.
        settings: What they have in common.
        load_controller: Loads the controllers of dynamic policies.
        take: Asks for questions.
        report: Called for every question after it was committed.
        stopping: Asked every few steps; True ends the work after committing what is complete.
        model: A loaded model, if the process has one.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    model = model or load_model(settings.model)
    benchmark = load_benchmark(settings.benchmark)
    bench = _Bench(model, benchmark, settings, load_controller)
    while not stopping():
        given = take(None, bench.wanted, 0)
        if isinstance(given, Stop) or given.finished:
            return
        if not given.question_ids:
            time.sleep(_PAUSE_S)  # others have the last questions, which come back if one of them dies
            continue
        bench.turn_to(given.task, tasks[given.task])
        held: list[tuple[Question, float]] = []
        complete = bench.sample(_batches(given, take, bench.wanted, held), stopping)
        writer = StoreWriter.attach(tasks[given.task].folder)
        _commit_all(complete, held, writer, f"w{number}", settings.compute.commit_interval_s, given.task, report)


def take_all(missing: list[list[str]]) -> TakeQuestions:
    """Return what hands one worker everything: the queue of a run without other processes."""
    ledger = Ledger(missing, 1)

    def take(task: int | None, wanted: int, complete: int) -> Take:
        found = ledger.take(0, task, wanted, complete)
        for question_id in found.question_ids:  # nobody else could take them
            ledger.done(found.task, question_id)
        return found

    return take


def _batches(first: Take, take: TakeQuestions, wanted: int, held: Sized) -> Iterator[tuple[str, ...]]:
    """Yield the ids of a task's questions as they are given, a few at a time, until there are none for now.

    Args:
        first: What was given already.
        take: Asks for more.
        wanted: How many to ask for.
        held: The worker's questions that are complete but not committed.
    """
    found: Take | Stop = first
    while not isinstance(found, Stop) and found.question_ids:
        yield found.question_ids
        found = take(first.task, wanted, len(held))


class _Bench:
    """What a worker keeps between batches: the engine, policy and prompts of the task that it is at."""

    def __init__(
        self,
        model: LanguageModel,
        benchmark: Benchmark,
        settings: WorkSettings,
        load_controller: LoadController | None,
    ) -> None:
        self._model = model
        self._benchmark = benchmark
        self._settings = settings
        self._load_controller = load_controller
        self._items = {item.question_id: item for item in benchmark.items}
        self._embedder: QuestionEmbedder | None = None
        self._task: int | None = None
        self._engine: Engine | None = None

    @property
    def wanted(self) -> int:
        """How many questions fill a quarter of the rows, which is what the scheduler keeps ready ahead."""
        if self._engine is None:
            return 1
        return max(1, self._engine.rows // (4 * self._policy.start))

    def turn_to(self, number: int, task: StoreTask) -> None:
        """Make ready for a task, unless it is the one at hand."""
        if self._task == number:
            return
        settings, model, benchmark = self._settings, self._model, self._benchmark
        self._policy = _policy(task, self._load_controller)
        self._in_run: InRun | None = None
        if task.in_run is not None and isinstance(task.k, KRange) and self._load_controller is not None:
            self._in_run = open_in_run(task.in_run, task.k, task.sampler, self._load_controller)
        asked = [] if self._policy.controller is None else [self._policy.controller]
        if self._in_run is not None:
            asked += [*self._in_run.escalation.values(), *self._in_run.give_up.values()]
        # A harvest stores everything; a live run computes what its controllers look at.
        self._parts = frozenset(PARTS if task.features else ()).union(*(controller.parts for controller in asked))
        if EMBEDDING in self._parts and self._embedder is None:
            self._embedder = open_embedder(settings.features.embedder)
        identity = feature_identity(model, self._embedder, settings.features.layer)
        for controller in asked:
            controller.check_model(identity, self._embedder.size if self._embedder is not None else None)
        # Policies over the same sampler take turns on one engine, whose rows and recordings are made once.
        snapshot_blocks = task.checkpoint_blocks if self._in_run is None else self._in_run.blocks
        engine = self._engine
        if engine is None or (engine.config, engine.snapshot_blocks) != (task.sampler, tuple(snapshot_blocks)):
            self._engine = engine = None  # its rows' memory is free before the next engine asks for some
            self._prompts = prompts_of(model, benchmark, task.sampler)
            self._engine = Engine(
                model,
                task.sampler,
                rows=settings.compute.rows,
                prompt_room=max(len(tokens) for _, tokens in self._prompts.values()),
                memory_share=settings.memory_share,
                path=settings.compute.forward,
                stop_strings=benchmark.stop_strings(model.tokenizer),
                snapshot_blocks=snapshot_blocks,
            )
        self._task = number

    def sample(self, batches: Iterator[tuple[str, ...]], stopping: Callable[[], bool]) -> Iterator[Question]:
        """Sample questions as they come; yields each when it is complete."""
        assert self._engine is not None
        embedder = self._embedder if EMBEDDING in self._parts else None
        forced = self._settings.forced_lengths
        questions = (
            question
            for ids in batches
            for question in prepare([self._items[name] for name in ids], self._prompts, embedder, forced)
        )
        return run_policy(
            self._model,
            self._engine,
            questions,
            self._policy,
            grader=self._benchmark.grader,
            seed=self._settings.seed,
            aggregator=self._settings.aggregator,
            feature_layer=self._settings.features.layer if HIDDEN in self._parts else None,
            at_a_time=self._settings.compute.questions_at_a_time,
            in_run=self._in_run,
            stopping=stopping,
        )


def _policy(task: StoreTask, load_controller: LoadController | None) -> Policy:
    """Return the task's policy."""
    if isinstance(task.k, int):
        return FixedK(task.k)
    if task.rule is not None:
        return RuleK(task.k, task.rule)
    if load_controller is None or task.controller is None:
        raise ValueError("a dynamic policy needs a controller and something to load it with")
    return DynamicK(task.k, load_controller(task.controller))


def open_in_run(config: InRunConfig, k_range: KRange, sampler: SamplerConfig, load_controller: LoadController) -> InRun:
    """Load the controllers that are asked while trajectories run.

    Raises:
        InputError: If one cannot be loaded, was trained for something else, or its block is no block of the sampler.
    """
    uses = [ask if ask is not None else AskConfig() for ask in (config.escalate_early, config.give_up)]
    escalation, give_up = ([load_controller(path) for path in ask.controllers] for ask in uses)
    found = in_run(
        k_range,
        escalation=escalation,
        escalation_threshold=uses[0].threshold,
        give_up=give_up,
        give_up_threshold=uses[1].threshold,
        block_size=sampler.block_size,
    )
    sampler.check_snapshot_blocks(found.blocks)
    return found


def _commit_all(
    complete: Iterator[Question],
    held: list[tuple[Question, float]],
    writer: StoreWriter,
    name: str,
    interval_s: float,
    task: int,
    report: Callable[[Done], None],
) -> None:
    """Commit questions as they complete, several at a time; a run that is stopped commits what is complete.

    Until then they are in ``held``, with the time of their completion.
    """
    last = time.monotonic()

    def commit() -> None:
        nonlocal last
        if held:
            writer.commit([question for question, _ in held], writer=name)
            committed, now = list(held), time.monotonic()
            held.clear()
            for question, completed in committed:
                report(done(task, question, waited_s=now - completed, gpu_gib=peak_gib()))
        last = time.monotonic()

    try:
        for question in complete:
            held.append((question, time.monotonic()))
            if time.monotonic() - last >= interval_s:
                commit()
    finally:
        commit()


def done(task: int, question: Question, *, waited_s: float = 0.0, gpu_gib: float | None = None) -> Done:
    """Return what a progress display shows of a question.

    Args:
        task: Number of the store's task.
        question: The committed question.
        waited_s: Seconds from its completion to this report, as far as they are known.
        gpu_gib: Most GPU memory that its worker has had in use, GiB.
    """
    return Done(
        task=task,
        question_id=question.question_id,
        k=question.k,
        tokens=sum(t.num_generated_tokens for t in question.trajectories),
        correct=question.correct,
        accepted=sum(t.mh_accepted for t in question.trajectories),
        proposed=sum(t.mh_proposed for t in question.trajectories),
        age_s=question.latency_s + waited_s,
        gpu_gib=gpu_gib,
    )


def feature_identity(model: LanguageModel, embedder: QuestionEmbedder | None, layer: int) -> dict[str, Any]:
    """Return the identity of model, layer and embedder, if there is one: what a controller's features come from."""
    return model.identity(layer) | ({"embedder": embedder.identity} if embedder is not None else {})


def identity_of(model: LanguageModel, benchmark: Benchmark, settings: WorkSettings) -> dict[str, Any]:
    """Return what decides the trajectories of a run, apart from sampler and policy."""
    forced = settings.forced_lengths
    return ({"forced_lengths": asdict(forced)} if forced is not None else {}) | {
        "model": feature_identity(model, open_embedder(settings.features.embedder), settings.features.layer),
        "benchmark": benchmark.identity() | {"stop_strings": list(benchmark.stop_strings(model.tokenizer))},
        "seed": settings.seed,
        "aggregator": settings.aggregator,
    }
