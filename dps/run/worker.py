"""What one worker does: load the model, sample the questions that it is given, commit them.

A run has one worker in the calling process or several processes; all call :func:`work` and pull questions from one
queue (``ledger``). Heavy imports stand at the top on purpose: a fork server imports this module once and every worker
process starts from there.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dps.benchmarks import Benchmark, BenchmarkConfig, Item, load_benchmark
from dps.chat import end_of_turn
from dps.config import AskConfig, ComputeConfig, FeaturesConfig, InRunConfig
from dps.decide import Controller, DynamicK, FixedK, InRun, KRange, Policy, Rule, RuleK, in_run
from dps.decide.features import EMBEDDING, HIDDEN, PARTS
from dps.device import peak_gib
from dps.embedding import QuestionEmbedder
from dps.errors import InputError
from dps.forced import ForcedLengths
from dps.model import LanguageModel, load_model
from dps.model_config import EMBEDDED, ModelConfig, embedded_path
from dps.run.ledger import Ledger, Take
from dps.run.scheduler import PreparedQuestion, Treatment, run_policies
from dps.sampler.engine import Engine
from dps.sampler.open import open_engine
from dps.sampler.settings import SamplerConfig, check_room
from feature_store import Question, StoreWriter
from feature_store.errors import StoreError

_PAUSE_S = 0.2
"""Pause of a worker that has nothing to do while others still have questions."""

_THREADS_BESIDE_A_GPU = 4
"""Most PyTorch threads of a worker whose model is on a GPU."""

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
    """Blocks of whose ends snapshots are taken: a harvest stores them, a policy is asked there."""
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
        # A GPU's worker has little to compute on the CPU, and threads that wait for more cost the other workers theirs.
        most = _THREADS_BESIDE_A_GPU if self.model.device != "cpu" and torch.cuda.is_available() else None
        if self.compute.workers == 1:
            return most
        share = max(1, len(os.sched_getaffinity(0)) // self.compute.workers)
        return share if most is None else min(share, most)


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


def open_embedder(name: str, device: torch.device | None = None) -> QuestionEmbedder:
    """Open the question embedder of that name.

    Args:
        name: ``features.embedder``.
        device: Of the model; the embedder goes to the same GPU, so that no row waits for it. None keeps it on the CPU.
    """
    place = str(device) if device is not None and device.type == "cuda" else "cpu"
    return QuestionEmbedder(str(embedded_path("embedder")) if name == EMBEDDED else name, place)


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


def warn_of_endless_turns(model: LanguageModel, benchmark: Benchmark) -> None:
    """Warn where the chat template ends an answer by a token that would not end a response."""
    token = end_of_turn(model.tokenizer) if benchmark.chats(model.tokenizer) else None
    if token is None or token in model.eos_ids:
        return
    text = str(model.tokenizer.added_tokens_decoder[token])
    if text not in benchmark.stop_strings(model.tokenizer):
        warnings.warn(
            f"The chat template ends an answer by {text} (token {token}), which is none of the tokens that end a "
            f"response ({', '.join(map(str, model.eos_ids))}), so responses may go on behind their answers: add it by "
            f"--model.eos='[\"{text}\"]'.",
            stacklevel=2,
        )


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


TakeQuestions = Callable[[int | None, int, Mapping[int, int]], "Take | Stop"]
"""Asks for questions: the task whose rows the worker has (None for none), how many it could start, and how many of each
task it has complete but not committed."""


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
    benchmark = load_benchmark(settings.benchmark, settings.model.name)
    bench = _Bench(model, benchmark, tasks, settings, load_controller)
    with _Committer(tasks, f"w{number}", settings.compute.commit_interval_s, report) as committer:

        def ended() -> bool:
            committer.look()
            return stopping()

        given: Take | Stop | None = None
        while not stopping():
            given = given or take(None, bench.wanted, committer.complete)
            if isinstance(given, Stop) or given.finished:
                return
            if not given.question_ids:  # others have the last questions, which come back if one of them dies
                committer.commit()
                time.sleep(_PAUSE_S)
                given = None
                continue
            bench.turn_to(given.task)
            queue = _Queue(given, bench, take, committer)
            for task, question in bench.sample(queue, ended):
                committer.add(task, question)
            given = queue.left


def take_all(missing: list[list[str]]) -> TakeQuestions:
    """Return what hands one worker everything: the queue of a run without other processes."""
    ledger = Ledger(missing, 1)

    def take(task: int | None, wanted: int, complete: Mapping[int, int]) -> Take:
        found = ledger.take(0, task, wanted, complete)
        for question_id in found.question_ids:  # nobody else could take them
            ledger.done(found.task, question_id)
        return found

    return take


class _Queue:
    """The questions that one engine samples in a row, as they are given: those of a task, then of the next like it."""

    def __init__(self, first: Take, bench: _Bench, take: TakeQuestions, committer: _Committer) -> None:
        """Begin.

        Args:
            first: What was given already.
            bench: Has the engine.
            take: Asks for more.
            committer: Knows what is complete.
        """
        self._next: Take | Stop = first
        self._bench = bench
        self._take = take
        self._committer = committer

    def __iter__(self) -> Iterator[Take]:
        """Yield what is given, until there is nothing for now or it is for another engine: see :attr:`left`."""
        while isinstance(self._next, Take) and self._next.question_ids and self._bench.has_rows_for(self._next.task):
            found = self._next
            self._bench.turn_to(found.task)
            yield found
            self._next = self._take(found.task, self._bench.wanted, self._committer.complete)

    @property
    def left(self) -> Take | Stop | None:
        """What was given last and not sampled, if it was anything."""
        return self._next if isinstance(self._next, Stop) or self._next.question_ids else None


class _Bench:
    """What a worker keeps between batches: the engine, and what becomes of each task's questions."""

    def __init__(
        self,
        model: LanguageModel,
        benchmark: Benchmark,
        tasks: list[StoreTask],
        settings: WorkSettings,
        load_controller: LoadController | None,
    ) -> None:
        self._model = model
        self._benchmark = benchmark
        self._tasks = tasks
        self._settings = settings
        self._load_controller = load_controller
        self._items = {item.question_id: item for item in benchmark.items}
        self._embedder: QuestionEmbedder | None = None
        self._treatments: dict[int, Treatment] = {}
        self._embeds: set[int] = set()
        """Tasks whose questions are embedded."""
        self._task: int | None = None
        self._engine: Engine | None = None

    @property
    def wanted(self) -> int:
        """How many questions fill a quarter of the rows, which is what the scheduler keeps ready ahead."""
        if self._engine is None or self._task is None:
            return 1
        return max(1, self._engine.rows // (4 * self._treatments[self._task].policy.start))

    def has_rows_for(self, number: int) -> bool:
        """Whether a task's chains can take the rows of the engine at hand: policies over one sampler share them."""
        engine, wanted = self._engine, (self._tasks[number].sampler, self._tasks[number].checkpoint_blocks)
        return engine is not None and engine.config == wanted[0]

    def turn_to(self, number: int) -> None:
        """Make ready for a task, unless it is the one at hand. A new engine is made only for other rows."""
        if self._task == number:
            return
        settings, model, task = self._settings, self._model, self._tasks[number]
        self._treatment(number)  # loads what it needs before the rows take the memory
        if not self.has_rows_for(number):
            self._engine = None  # its rows' memory is free before the next engine asks for some
            self._prompts = prompts_of(model, self._benchmark, task.sampler)
            self._engine = open_engine(
                model,
                task.sampler,
                settings.compute,
                benchmark=self._benchmark,
                prompts=[tokens for _, tokens in self._prompts.values()],
                memory_share=settings.memory_share,
            )
        self._task = number

    def _treatment(self, number: int) -> Treatment:
        """Return what becomes of a task's questions; its controllers are loaded once."""
        if number in self._treatments:
            return self._treatments[number]
        settings, task = self._settings, self._tasks[number]
        policy = _policy(task, self._load_controller)
        inside: InRun | None = None
        if task.in_run is not None and isinstance(task.k, KRange) and self._load_controller is not None:
            inside = open_in_run(task.in_run, task.k, task.sampler, self._load_controller)
        asked = [] if policy.controller is None else [policy.controller]
        if inside is not None:
            asked += [*inside.escalation.values(), *inside.give_up.values()]
        # A harvest stores everything; a live run computes what its controllers look at.
        parts = frozenset(PARTS if task.features else ()).union(*(controller.parts for controller in asked))
        if EMBEDDING in parts:
            self._embeds.add(number)
            if self._embedder is None:
                self._embedder = open_embedder(settings.features.embedder, self._model.device)
        identity = feature_identity(self._model, self._embedder, settings.features.layer)
        for controller in asked:
            controller.check_model(identity, self._embedder.size if self._embedder is not None else None)
        layer = settings.features.layer if HIDDEN in parts else None
        return self._treatments.setdefault(number, Treatment(policy, inside, layer))

    def sample(self, given: Iterable[Take], stopping: Callable[[], bool]) -> Iterator[tuple[int, Question]]:
        """Sample questions as they are given; yields each with the number of its task when it is complete."""
        assert self._engine is not None

        def questions() -> Iterator[tuple[Treatment, PreparedQuestion]]:
            for found in given:
                treatment = self._treatments[found.task]
                embedder = self._embedder if found.task in self._embeds else None
                items = [self._items[name] for name in found.question_ids]
                for question in prepare(items, self._prompts, embedder, self._settings.forced_lengths):
                    yield treatment, question

        for treatment, question in run_policies(
            self._model,
            self._engine,
            questions(),
            grader=self._benchmark.grader,
            seed=self._settings.seed,
            aggregator=self._settings.aggregator,
            at_a_time=self._settings.compute.questions_at_a_time,
            stopping=stopping,
        ):
            yield next(number for number, its in self._treatments.items() if its is treatment), question


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
    return found


class _Committer:
    """Commits questions as they complete, several at a time, while the worker goes on sampling.

    A thread compresses and writes, which holds up nobody; the questions of a commit are reported when it is on the
    disk, by the thread that samples. A run that is stopped commits what is complete.
    """

    def __init__(
        self, tasks: Sequence[StoreTask], name: str, interval_s: float, report: Callable[[Done], None]
    ) -> None:
        """Prepare.

        Args:
            tasks: The stores.
            name: Of this worker among the writers of a store.
            interval_s: Seconds between two commits.
            report: Called for every committed question.
        """
        self._tasks = tasks
        self._name = name
        self._interval_s = interval_s
        self._report = report
        self._writers: dict[int, StoreWriter] = {}
        self._thread = ThreadPoolExecutor(1)
        self._held: list[_Complete] = []
        self._under_way: tuple[list[_Complete], Future[None]] | None = None
        self._last = time.monotonic()

    def __enter__(self) -> _Committer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with self._thread:
            if not isinstance(error, StoreError):  # a store that could not be written is not tried again
                self.commit()

    @property
    def complete(self) -> Counter[int]:
        """How many questions of each task are complete and not committed."""
        waiting = self._held + (self._under_way[0] if self._under_way is not None else [])
        return Counter(found.task for found in waiting)

    def add(self, task: int, question: Question) -> None:
        """Take in a complete question."""
        self._held.append(_Complete(task, question, time.monotonic()))
        self.look()

    def look(self) -> None:
        """Report what has been committed, and begin the next commit if it is time.

        Raises:
            StoreError: If a store could not be written.
        """
        if self._under_way is not None and self._under_way[1].done():
            self._settle()
        if self._held and self._under_way is None and time.monotonic() - self._last >= self._interval_s:
            self._begin()

    def commit(self) -> None:
        """Commit and report everything that is complete; waits for it.

        Raises:
            StoreError: If a store could not be written.
        """
        self._settle()
        if self._held:
            self._begin()
            self._settle()

    def _begin(self) -> None:
        """Hand what is complete to the thread."""
        held, self._held = self._held, []
        self._under_way = held, self._thread.submit(self._write, held)
        self._last = time.monotonic()

    def _write(self, held: Sequence[_Complete]) -> None:
        """Commit to each task's store; runs in the thread."""
        for task in dict.fromkeys(found.task for found in held):
            if task not in self._writers:
                self._writers[task] = StoreWriter.attach(self._tasks[task].folder)
            self._writers[task].commit([found.question for found in held if found.task == task], writer=self._name)

    def _settle(self) -> None:
        """Wait for the commit under way, if there is one, and report its questions."""
        if self._under_way is None:
            return
        (held, future), self._under_way = self._under_way, None
        future.result()
        now = time.monotonic()
        for found in held:
            self._report(done(found.task, found.question, waited_s=now - found.completed, gpu_gib=peak_gib()))


@dataclass(frozen=True, slots=True, eq=False)
class _Complete:
    """A question that is complete and not committed."""

    task: int
    question: Question
    completed: float
    """When, on the clock of ``time.monotonic``."""


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
