"""What one worker does: load the model, sample the questions that it is given, commit them.

A run has one worker in the calling process or several processes; all call :func:`work` and pull questions from one
queue (``ledger``). Heavy imports stand at the top on purpose: a fork server imports this module once and every worker
process starts from there.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from dps.benchmarks import Benchmark, BenchmarkConfig, Item, load_benchmark
from dps.chat import end_of_turn
from dps.config import ComputeConfig, FeaturesConfig
from dps.decide import Controller, Ladder, Policy, Rule
from dps.decide.features import EMBEDDING, HIDDEN, PARTS, PROMPT
from dps.embedding import QuestionEmbedder
from dps.errors import InputError
from dps.forced import ForcedLengths
from dps.model import LanguageModel, load_model
from dps.model_config import EMBEDDED, ModelConfig, embedded_path
from dps.run.committer import Committer, Died, Done
from dps.run.ledger import Ledger, Missing, Take
from dps.run.live import Own
from dps.run.scheduler import Account, Completed, PolicyRun, PreparedQuestion, run_policies
from dps.sampler.engine import Engine
from dps.sampler.open import open_engine
from dps.sampler.settings import SamplerConfig, check_room
from dps.sampler.streams import prompt_name
from dps.sampler.teacher import check_layer, prompt_states
from dps.start import FIRST_STEPS, IDENTITY, PROMPTS, Started, current, stage
from dps.threads import num_threads
from feature_store.records import not_recorded

_PAUSE_S = 0.2
"""Pause of a worker that has nothing to do while others still have questions."""

_THREADS_BESIDE_A_GPU = 4
"""Most PyTorch threads of a worker whose model is on a GPU."""

LoadController = Callable[[str], Controller]
"""Loads a controller from a path; handed in by the composition root."""

Prompts = dict[str, tuple[str, tuple[int, ...]]]
"""question_id -> (prompt, token ids)."""

ReadPrompts = Callable[[Sequence[Sequence[int]]], list[np.ndarray]]
"""Reads the hidden states of prompts, each of shape (L * 2 * D,); see :func:`dps.sampler.teacher.prompt_states`."""


@dataclass(frozen=True)
class StoreTask:
    """One store to fill: one policy over the questions."""

    folder: Path
    """Folder of the store; its manifest has been written."""
    arms: dict[str, SamplerConfig]
    """How the chains of each arm of the ladder are sampled."""
    ladder: Ladder
    """What is climbed: to its end without a controller or a rule."""
    controller: str | None = None
    """Path of the dynamic policy's controller, if it has one."""
    features: bool = False
    """Whether to store features and embeddings; a policy with a controller computes those that it looks at anyway."""
    rule: Rule | None = None
    """The dynamic policy's rule, if it has no controller."""
    aggregator: str | None = None
    """How the answers become one, if not as the run says."""

    @property
    def sampler(self) -> SamplerConfig:
        """The settings of the first arm, whose clock is the store's."""
        return next(iter(self.arms.values()))


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
    by_prompt: bool = False
    """Whether a question's prompt names its random streams, instead of its id."""

    def load_model(self) -> LanguageModel:
        """Load the model, and give this process the threads that a worker with that model has."""
        if self.compute.threads is not None:
            torch.set_num_threads(self.compute.threads)
        model = load_model(self.model)
        torch.set_num_threads(self.threads(model))
        return model

    def threads(self, model: LanguageModel) -> int:
        """Return the PyTorch threads of a worker with that model, see :func:`dps.threads.num_threads`."""
        if self.compute.threads is not None:
            return self.compute.threads
        # A GPU's worker has little to compute on the CPU, and threads that wait for more cost the other workers theirs.
        most = None if model.device.type == "cpu" else _THREADS_BESIDE_A_GPU
        return num_threads(model.num_parameters, self.compute.workers, most)

    def read_prompts(self, model: LanguageModel) -> ReadPrompts | None:
        """Return what reads the hidden states of prompts; None where no layers are asked for."""
        layers = self.features.prompt_layers
        return partial(prompt_states, model, layers=layers) if layers else None

    def groups(self, tasks: Sequence[StoreTask]) -> list[tuple[int, ...]]:
        """Return the numbers of the stores in groups whose policies share trajectories: those of arms in common.

        Groups that share rows follow one another, those of long chains first, whose tail the others then fill.
        """
        if not self.compute.shares:
            return [(number,) for number in range(len(tasks))]
        groups: list[tuple[dict[str, SamplerConfig], tuple[int, ...]]] = []
        for number, task in enumerate(tasks):
            arms, stores, apart = dict(task.arms), (number,), []
            for others, members in groups:
                common = arms.keys() & others.keys()
                if common and all(arms[name] == others[name] for name in common):
                    arms, stores = others | arms, (*members, *stores)
                else:
                    apart.append((others, members))
            groups = [*apart, (arms, tuple(sorted(stores)))]
        samplers = {stores: list(arms.values()) for arms, stores in sorted(groups, key=lambda group: group[1])}

        def place(stores: tuple[int, ...]) -> tuple[int, int]:
            first = [samplers[stores][0].shares_rows(arms[0]) for arms in samplers.values()].index(True)
            return first, -max(sampler.max_mh_steps for sampler in samplers[stores])

        return sorted(samplers, key=place)


def open_embedder(name: str, device: torch.device | None = None) -> QuestionEmbedder:
    """Open the question embedder of that name on the model's device if it is a GPU, so that no row waits for it."""
    place = str(device) if device is not None and device.type == "cuda" else "cpu"
    return QuestionEmbedder(str(embedded_path("embedder")) if name == EMBEDDED else name, place)


def check_layers(features: FeaturesConfig, num_layers: int) -> None:
    """Raise an InputError for a layer of the features that the model lacks."""
    check_layer(features.layer, num_layers)
    for layer in features.prompt_layers:
        check_layer(layer, num_layers, "features.prompt_layers")


_prompts: WeakKeyDictionary[LanguageModel, tuple[Benchmark, Prompts]] = WeakKeyDictionary()
"""What each model was asked last: all samplers of a run have the same prompts."""


@stage(PROMPTS)
def prompts_of(model: LanguageModel, benchmark: Benchmark, sampler: SamplerConfig) -> Prompts:
    """Return every question's prompt; it is rendered and tokenized when a model is first asked these questions.

    Raises:
        InputError: If a prompt leaves no room for a response; the sentence names the question.
    """
    asked, prompts = _prompts.get(model, (None, {}))
    if asked is not benchmark:
        texts = [benchmark.render(item, model.tokenizer) for item in benchmark.items]
        names = [item.question_id for item in benchmark.items]
        prompts = dict(zip(names, zip(texts, map(tuple, model.encode_all(texts)), strict=True), strict=True))
        _prompts[model] = benchmark, prompts
    for question_id, (_, tokens) in prompts.items():
        try:
            check_room(len(tokens), sampler, model.max_positions)
        except InputError as error:
            raise InputError(f"Question {question_id}: {error}") from None
    return prompts


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
    items: Sequence[Item],
    prompts: Prompts,
    embedder: QuestionEmbedder | None,
    forced: ForcedLengths | None = None,
    read_prompts: ReadPrompts | None = None,
) -> Iterator[PreparedQuestion]:
    """Yield questions as the scheduler takes them.

    Before the first, an embedder, if given, embeds all of them, and their prompts are read, where that is asked for.
    """
    started = time.perf_counter()
    embeddings = (
        embedder.embed([item.question for item in items])
        if embedder is not None and items
        else np.zeros((len(items), 0), np.float32)
    )
    embedding_s = (time.perf_counter() - started) / max(1, len(items)) if embedder is not None else 0.0
    started, states, prompt_s = time.perf_counter(), [not_recorded()] * len(items), 0.0
    if read_prompts is not None and items:
        states = read_prompts([prompts[item.question_id][1] for item in items])
        prompt_s = (time.perf_counter() - started) / len(items)
    for item, embedding, hidden in zip(items, embeddings, states, strict=True):
        lengths = forced.of(item.question_id) if forced is not None else None
        yield PreparedQuestion(item, *prompts[item.question_id], embedding, embedding_s, lengths, hidden, prompt_s)


TakeQuestions = Callable[[int | None, int, Mapping[int, int]], Take]
"""Asks for questions: the group whose rows the worker has (None for none), how many it could start, and how many of
each group it has complete but not committed."""


Report = Callable[[Done | Started | Died], None]
"""Takes what there is to tell of a worker: its first tokens, every committed question, its death."""


def work(
    number: int,
    tasks: list[StoreTask],
    cache: EngineCache,
    *,
    take: TakeQuestions,
    report: Report,
    stopping: Callable[[], bool],
) -> None:
    """Fill the stores with the questions that this worker is given, until none is left anywhere.

    Args:
        number: Of this worker, which its segments bear.
        tasks: The stores, in order.
        cache: Of these stores; it may have an idle engine already.
        take: Asks for questions.
        report: Called for every question after it was committed, and when the first tokens are there.
        stopping: Asked every few steps; True ends the work after committing what is complete.
    """
    folders = [task.folder for task in tasks]
    start = current()
    given: Take | None = None

    def feed() -> Iterator[Take]:
        """Yield what is given until there is nothing for now, or it needs another engine."""
        nonlocal given
        while given is not None and given.questions and cache.has_rows_for(given.group):
            cache.turn_to(given.group)
            now, given = given, None
            yield now
            given = take(now.group, cache.wanted, committer.complete)

    def say(done: Done) -> None:
        report(replace(done, worker=number, spent=cache.account.numbers(), behind=cache.behind))

    with Committer(folders, f"w{number}", cache.settings.compute.commit_interval_s, say) as committer:

        def stopped() -> bool:
            if start is not None and start.total_s is None and cache.has_sampled:
                report(start.started(number))
            committer.look()
            return stopping()

        while not stopping():
            given = given or take(None, cache.wanted, committer.complete)
            if given.finished:
                return
            if not given.questions:  # others have the last questions, which come back if one of them dies
                committer.commit()
                time.sleep(_PAUSE_S)
                given = None
                continue
            cache.turn_to(given.group)
            if start is not None:
                start.enter(FIRST_STEPS)
            for store, completed, last_of in cache.sample(feed(), stopped):
                committer.add(store, completed.question, last_of)


def work_alone(tasks: list[StoreTask], missing: Sequence[Missing], report: Report, cache: EngineCache) -> None:
    """Fill the stores with what their groups lack, as the only worker; see :func:`work`."""
    ledger = Ledger(missing, 1)

    def take(group: int | None, wanted: int, complete: Mapping[int, int]) -> Take:
        taken = ledger.take(0, group, wanted, complete)
        for question_id, stores in taken.questions:  # nobody else could take them
            for store in stores:
                ledger.done(store, question_id)
        return taken

    work(0, tasks, cache, take=take, report=report, stopping=lambda: False)


class EngineCache:
    """What a worker keeps from its clock to its last batch: the engine, and the policy of each store."""

    def __init__(
        self,
        model: LanguageModel,
        tasks: Sequence[StoreTask],
        settings: WorkSettings,
        load_controller: LoadController | None,
    ) -> None:
        self._model = model
        self._benchmark = benchmark = load_benchmark(settings.benchmark, settings.model.name)
        self._tasks = tasks
        self._groups = settings.groups(tasks)
        self.settings = settings
        """What all stores have in common."""
        self._load_controller = load_controller
        self._items = {item.question_id: item for item in benchmark.items}
        self._embedder: QuestionEmbedder | None = None
        self._runs: dict[int, PolicyRun] = {}
        """By number of the store."""
        self._group: int | None = None
        self._engine: Engine | None = None
        self._prompts: Prompts = {}
        self.account = Account()
        """Where the time of all that was sampled went."""
        self.behind = 0
        """Questions whose responses wait to be read."""

    @property
    def wanted(self) -> int:
        """How many questions fill a quarter of the rows, which is what the scheduler keeps ready ahead."""
        if self._engine is None or self._group is None:
            return 1
        policies = [self._runs[store].policy for store in self._groups[self._group]]
        start = {key for policy in policies for key in policy.ladder.sequence(policy.start)}
        return max(1, self._engine.rows // (4 * len(start)))

    @property
    def has_sampled(self) -> bool:
        """Whether a step of the work has been made."""
        return self.account.counts["num_steps"] > 0

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """Token ids of every question's prompt, once there is an engine."""
        return [tokens for _, tokens in self._prompts.values()]

    def engine_of(self, sampler: SamplerConfig) -> Engine:
        """Return the engine, idle, on which the chains of one of the stores' samplers run."""
        groups = enumerate(self._groups)
        self.turn_to(next(n for n, group in groups if sampler in [self._tasks[store].sampler for store in group]))
        assert self._engine is not None
        return self._engine

    def _arms(self, group: int) -> list[SamplerConfig]:
        """Return the samplers whose chains run on the rows of a group's engine."""
        own = [self._tasks[store] for store in self._groups[group]]
        shares = self.settings.compute.shares
        tasks = [task for task in self._tasks if task.sampler.shares_rows(own[0].sampler)] if shares else own
        return list(dict.fromkeys(sampler for task in tasks for sampler in task.arms.values()))

    def has_rows_for(self, group: int) -> bool:
        """Whether a group's chains can take the rows of the engine at hand."""
        return self._engine is not None and list(self._engine.arms) == self._arms(group)

    def turn_to(self, group: int) -> None:
        """Make ready for a group, unless it is the one at hand. A new engine is made only for other rows."""
        if self._group == group:
            return
        arms = self._arms(group)
        for store in self._groups[group]:  # loads what they need before the rows take the memory
            if store not in self._runs:
                self._runs[store] = self._open(self._tasks[store], arms)
        if not self.has_rows_for(group):
            self._engine = None  # its rows' memory is free before the next engine asks for some
            self._prompts = prompts_of(self._model, self._benchmark, arms[0])
            looked_at = any(self._runs[store].feature_layer is not None for store in self._groups[group])
            self._engine = open_engine(
                self._model,
                arms,
                self.settings.compute,
                benchmark=self._benchmark,
                prompts=self.prompts,
                memory_share=self.settings.memory_share,
                layer=self.settings.features.layer if looked_at else None,
            )
        self._group = group

    def _open(self, task: StoreTask, arms: Sequence[SamplerConfig]) -> PolicyRun:
        """Load a store's policy."""
        layer = self.settings.features.layer
        controller = self._load_controller(task.controller) if task.controller is not None else None
        policy = Policy(task.ladder, controller, task.rule)
        # A harvest stores everything; a live run computes what its controller looks at.
        parts = frozenset(PARTS if task.features else ())
        parts |= policy.controller.parts if policy.controller is not None else frozenset()
        if EMBEDDING in parts and self._embedder is None:
            self._embedder = open_embedder(self.settings.features.embedder, self._model.device)
        if policy.controller is not None:
            identity = feature_identity(self._model, self._embedder, layer, self.settings.features.prompt_layers)
            policy.controller.check_model(identity, self._embedder.size if self._embedder is not None else None)
        numbers = {name: arms.index(sampler) for name, sampler in task.arms.items()}
        parts_of = (layer if HIDDEN in parts else None, EMBEDDING in parts, numbers, PROMPT in parts)
        kept = self.settings.features.arms if task.features else ()
        return PolicyRun(policy, *parts_of, aggregator=task.aggregator, feature_arms=kept)

    def sample(
        self, given: Iterable[Take], stopping: Callable[[], bool]
    ) -> Iterator[tuple[int, Completed, int | None]]:
        """Sample questions as they are given.

        Yields:
            Number of the store, the complete question, and the group if all of its stores have theirs now.
        """
        assert self._engine is not None
        stores: dict[PolicyRun, tuple[int, int]] = {}

        def questions() -> Iterator[tuple[list[PolicyRun], PreparedQuestion]]:
            for take in given:
                stores.update({self._runs[store]: (store, take.group) for store in self._groups[take.group]})
                runs = {name: [self._runs[store] for store in missed] for name, missed in take.questions}
                embeds = any(run.embeds for each in runs.values() for run in each)
                items = [self._items[name] for name in runs]
                embedder = self._embedder if embeds else None
                reads = any(run.reads_prompt for each in runs.values() for run in each)
                read = self.settings.read_prompts(self._model) if reads else None
                for question in prepare(items, self._prompts, embedder, self.settings.forced_lengths, read):
                    own = Own(name=prompt_name(question.tokens)) if self.settings.by_prompt else question.own
                    yield runs[question.question_id], replace(question, own=own)

        for completed in run_policies(
            self._model,
            self._engine,
            questions(),
            grader=self._benchmark.grader,
            seed=self.settings.seed,
            aggregator=self.settings.aggregator,
            account=self.account,
            at_a_time=self.settings.compute.questions_at_a_time,
            workers=self.settings.compute.workers,
            eager=self.settings.compute.begins_early,
            stopping=stopping,
        ):
            self.behind = completed.behind
            store, group = stores[completed.run]
            yield store, completed, group if completed.last else None


def feature_identity(
    model: LanguageModel, embedder: QuestionEmbedder | None, layer: int, prompt_layers: Sequence[int] = ()
) -> dict[str, Any]:
    """Return the identity of model, layers and embedder, if there is one: what a controller's features come from."""
    identity = model.identity(layer) | ({"prompt_layers": list(prompt_layers)} if prompt_layers else {})
    return identity | ({"embedder": embedder.identity} if embedder is not None else {})


@stage(IDENTITY)
def identity_of(model: LanguageModel, benchmark: Benchmark, settings: WorkSettings) -> dict[str, Any]:
    """Return what decides the trajectories of a run, apart from sampler and policy."""
    forced, features = settings.forced_lengths, settings.features
    source = feature_identity(model, open_embedder(features.embedder), features.layer, features.prompt_layers)
    named = {"streams": "prompt"} if settings.by_prompt else {}
    return (
        named
        | ({"forced_lengths": asdict(forced)} if forced is not None else {})
        | {
            "model": source | ({"feature_arms": list(features.arms)} if features.arms else {}),
            "benchmark": benchmark.identity() | {"stop_strings": list(benchmark.stop_strings(model.tokenizer))},
            "seed": settings.seed,
            "aggregator": settings.aggregator,
        }
    )
