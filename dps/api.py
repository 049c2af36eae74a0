"""The Python interface: answer questions with power sampling and a controller, in a few lines."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from dps.arguments import check_policy_alone, check_seed
from dps.benchmarks import Benchmark, Item
from dps.benchmarks.given import Style, check_questions, given
from dps.config import ComputeConfig
from dps.decide import RULES, Controller, FixedK, KRange, Ladder, Policy, Rule
from dps.decide.aggregate import AGGREGATORS
from dps.decide.features import EMBEDDING, HIDDEN, PROMPT
from dps.decide.ladder import POWER
from dps.decide.policy import check_arms
from dps.decide.policy_file import PolicyFile, read_policy
from dps.defaults import EMBEDDED_SAMPLER
from dps.embedding import QuestionEmbedder
from dps.errors import InputError
from dps.model import LanguageModel, load_model
from dps.model_config import EMBEDDED, ModelConfig
from dps.run.live import Checkpoint, PolicyRun, PreparedQuestion
from dps.run.scheduler import run_policies
from dps.run.worker import Prompts, feature_identity, open_embedder, prepare, warn_of_endless_turns
from dps.sampler.arms import Arm, arms_of
from dps.sampler.engine import Engine
from dps.sampler.open import open_engine
from dps.sampler.settings import SamplerConfig, check_room, check_rows
from dps.sampler.streams import prompt_name
from dps.sampler.teacher import prompt_states
from dps.threads import num_threads, torch_threads
from feature_store.records import Question

_PAUSE_S = 0.01
"""Pause where nothing is sampled and the questions say that there is none for now."""


def answer(
    questions: Sequence[str] | str,
    model: LanguageModel | ModelConfig | str | Path = EMBEDDED,
    **settings: Any,
) -> list[Question]:
    """Answer questions with as many trajectories as the controller asks for: :func:`stream`, in the order given.

    Args:
        questions: The questions as text, or a single one; a prompt is put around each.
        model: A loaded model, or its name (hub id, folder, GGUF file) or settings.
        settings: As :func:`stream` takes them.

    Returns:
        One record per question in the order given: ``.answer``, ``.k``, ``.decisions``, ``.trajectories`` and times.

    Raises:
        InputError: If model, controller and settings do not fit together.

    Example:
        >>> controller = "runs/quickstart/controllers/mlp-hq"  # doctest: +SKIP
        >>> answer("From left to right: 14+23*3", controller=controller)[0].answer
        '111'
    """
    texts = [questions] if isinstance(questions, str) else list(questions)
    return sorted(stream(texts, model, **settings), key=lambda record: record.metadata["position"])


def stream(
    questions: Iterable[str | None] | str,
    model: LanguageModel | ModelConfig | str | Path = EMBEDDED,
    *,
    controller: Controller | str | Path | None = None,
    k: KRange | int | None = None,
    ladder: Ladder | Sequence[str] | None = None,
    arms: Mapping[str, Arm] | None = None,
    rule: Rule | str | None = None,
    policy: str | Path | None = None,
    sampler: SamplerConfig | None = None,
    style: Style | None = None,
    aggregator: str | None = None,
    embedder: str = EMBEDDED,
    feature_layer: int = 11,
    seed: int = 0,
    rows: int | None = 64,
    eager: bool = True,
    prompt_room: int = 1024,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
) -> Records:
    """Answer questions, each record as soon as it is complete; ``async for`` and ``await`` work, too.

    A question's random streams are named by the seed and the prompt, so its answer does not depend on the others. The
    same question again has streams of its own.

    Args:
        questions: The questions as text; what is no list is drawn from as rows come free, and may have no end. None
            says that there is no question for now.
        model: A loaded model, or its name (hub id, folder, GGUF file) or settings.
        controller: Decides whether more trajectories are needed, or the path of a trained one (a checkpoint, a run
            folder or a folder of ``dps ship``); without one every question gets k.
        k: The range of a controller or a rule (a controller climbs the ladder that it was trained on and a rule 2, 4,
            6, 8 if not given), or a fixed number (8 without either).
        ladder: Rungs of several arms instead of k, for instance ``["plain 2", "plain 2", "power 2"]``: without a
            controller or a rule every question gets all of them.
        arms: How the arms of the ladder draw a response, where not as by default.
        rule: Decides where there is no controller: one of :data:`dps.decide.RULES`, or its name.
        policy: A policy file of ``dps recommend``, or its folder, instead of whatever else says what is sampled.
        sampler: Power sampling settings; by default those of the controller's harvest, or the published ones.
        style: How the answer is asked for and read, see :data:`dps.benchmarks.given.Style`.
        aggregator: How k answers become one; by majority if not given.
        embedder: The question embedder that the controller was trained with.
        feature_layer: The hidden layer that the controller was trained with.
        seed: Names the random streams.
        rows: Chains that run at a time, at least 8; None as many as memory allows.
        eager: Whether rows that would idle begin what the controller may ask for, see ``ComputeConfig.eager``.
        prompt_room: Tokens of the longest prompt, where ``questions`` is no list.
        on_checkpoint: Called whenever all trajectories of a question that were asked for have ended.

    Returns:
        The records; ``.metadata["position"]`` is the question's place among those given, from 0.

    Raises:
        InputError: If model, controller and settings do not fit together.

    Example:
        >>> for record in stream(["14+23", "9*9"], k=2):  # doctest: +SKIP
        ...     print(record.question, record.answer)
    """
    check_rows(rows, "rows")
    check_seed(seed)
    questions = [questions] if isinstance(questions, str) else questions
    listed = questions if isinstance(questions, Sequence) else None
    if listed is not None:
        check_questions(listed)
    options = {"controller": controller, "k": k, "ladder": ladder, "arms": arms, "rule": rule, "policy": policy}
    options |= {"sampler": sampler, "style": style, "aggregator": aggregator, "embedder": embedder}
    asker = open_asker(model, **options, feature_layer=feature_layer)
    groups: Iterable[Sequence[str | None]] = ([question] for question in questions)
    room = min(prompt_room, max(1, asker.model.max_positions - asker.sampler.max_new_tokens))
    if listed is not None:
        texts = [asker.benchmark.render(item, asker.model.tokenizer) for item in _items(listed)]
        groups, room = [listed], max(map(len, asker.model.encode_all(texts)))
        check_room(room, asker.sampler, asker.model.max_positions)
    engine = asker.open_rows(ComputeConfig(rows=rows), room)
    waiting = _waiting(asker, engine, groups)
    options = {"grader": asker.benchmark.grader, "seed": seed, "aggregator": asker.aggregator, "eager": eager}
    completed = run_policies(asker.model, engine, waiting, **options, on_checkpoint=on_checkpoint)
    return Records((each.question for each in completed), num_threads(asker.model.num_parameters))


class Records(Iterator[Question], AsyncIterator[Question]):
    """The records of a stream: an iterator, an asynchronous iterator, and ``await`` gives the list of all of them."""

    def __init__(self, records: Iterator[Question], threads: int) -> None:
        """Take the records as they come, with so many PyTorch threads."""
        self._records, self._threads = records, threads
        self._worker = ThreadPoolExecutor(1)  # starts no thread until it is asked

    def __next__(self) -> Question:
        """Sample until a question is complete."""
        with torch_threads(self._threads):
            return next(self._records)

    async def __anext__(self) -> Question:
        """Sample in a thread of its own until a question is complete."""
        record = await asyncio.get_running_loop().run_in_executor(self._worker, partial(next, self, None))
        if record is None:
            raise StopAsyncIteration
        return record

    def __await__(self) -> Generator[Any, None, list[Question]]:
        """Return all records, in the order of completion."""

        async def collect() -> list[Question]:
            return [record async for record in self]

        return collect().__await__()


@dataclass(frozen=True, eq=False)
class Asker:
    """A model, the policy by which it is asked, and how questions are put to it."""

    model: LanguageModel
    run: PolicyRun
    """The policy; its arms are numbered in the order of ``samplers``."""
    samplers: dict[str, SamplerConfig]
    """The settings of the ladder's arms."""
    sampler: SamplerConfig
    """The settings from which those of further arms are made."""
    aggregator: str
    benchmark: Benchmark
    """Prompts and grader of the style."""
    embedder: QuestionEmbedder | None
    name: str
    """The policy's."""

    def prepare(self, items: Sequence[Item], prompts: Prompts) -> Iterator[PreparedQuestion]:
        """Yield questions as the scheduler takes them, with what the controller looks at."""
        controller = self.run.policy.controller
        layers = controller.prompt_layers if controller is not None and self.run.reads_prompt else ()
        read = partial(prompt_states, self.model, layers=layers) if layers else None
        return prepare(items, prompts, self.embedder, read_prompts=read)

    def open_rows(
        self, compute: ComputeConfig, room: int, more: Sequence[SamplerConfig] = (), **options: Any
    ) -> Engine:
        """Open the engine for prompts of up to ``room`` tokens and, besides the ladder's, ``more`` settings."""
        samplers = [*self.samplers.values(), *more]
        options |= {"benchmark": self.benchmark, "prompts": [range(room)], "memory_share": 1.0}
        options["layer"] = self.run.feature_layer
        return open_engine(self.model, samplers, compute, **options)


def open_asker(
    model: LanguageModel | ModelConfig | str | Path,
    *,
    controller: Controller | str | Path | None = None,
    k: KRange | int | None = None,
    ladder: Ladder | Sequence[str] | None = None,
    arms: Mapping[str, Arm] | None = None,
    rule: Rule | str | None = None,
    policy: str | Path | None = None,
    sampler: SamplerConfig | None = None,
    style: Style | None = None,
    aggregator: str | None = None,
    embedder: str = EMBEDDED,
    feature_layer: int = 11,
) -> Asker:
    """Return what these settings of :func:`stream` mean together; raises its InputErrors before a model loads."""
    _check_aggregator(aggregator)
    embedded = EMBEDDED in (str(model), getattr(model, "name", None))
    benchmark = given(style or ("arithmetic" if embedded else "number"))
    settings = {"controller": controller, "k": k, "ladder": ladder, "arms": arms, "rule": rule, "sampler": sampler}
    check_policy_alone(policy, {**settings, "aggregator": aggregator})
    file = None if policy is None else read_policy(policy)
    controller = _loaded(controller if file is None else file.controller)
    base = sampler or _of_harvest(controller) or SamplerConfig(**EMBEDDED_SAMPLER if embedded else {})
    base = base.check()
    if file is not None:
        climbs, samplers, aggregator = file.policy(controller), file.arms, file.aggregator
        first = next(iter(samplers.values()))
        base = replace(base, block_size=first.block_size, max_new_tokens=first.max_new_tokens)
        base = next((own for own in samplers.values() if own.num_mh_steps), base)
    else:
        climbs = _policy(controller, rule, k, ladder)
        samplers = arms_of(arms or {}, [climbs.ladder], base)
        if controller is not None:
            check_arms(controller, samplers)
    loaded = model if isinstance(model, LanguageModel) else load_model(model)
    warn_of_endless_turns(loaded, benchmark)
    parts = controller.parts if controller is not None else frozenset()
    encoder = open_embedder(embedder, loaded.device) if EMBEDDING in parts else None
    _check_model(loaded, controller, file, encoder, feature_layer)
    numbers = {arm: number for number, arm in enumerate(samplers)}
    layer = feature_layer if HIDDEN in parts else None
    run = PolicyRun(climbs, layer, EMBEDDING in parts, numbers, PROMPT in parts)
    name = file.name if file is not None else climbs.asker.name if climbs.asker is not None else str(climbs.ladder)
    return Asker(loaded, run, samplers, base, aggregator or "majority", benchmark, encoder, name)


def _items(questions: Iterable[str]) -> list[Item]:
    return [Item("", question, None) for question in questions]


def _waiting(
    asker: Asker, engine: Engine, groups: Iterable[Sequence[str | None]]
) -> Iterator[tuple[list[PolicyRun], PreparedQuestion] | None]:
    """Yield the questions of a stream for the scheduler, those of a group prepared together."""
    repeats: Counter[tuple[int, ...]] = Counter()
    position = count()
    for group in groups:
        if group == [None]:
            if engine.idle:
                time.sleep(_PAUSE_S)
            yield None
            continue
        check_questions(group)
        texts = [asker.benchmark.render(item, asker.model.tokenizer) for item in _items(group)]
        items, prompts = [], {}
        for question, text, tokens in zip(group, texts, map(tuple, asker.model.encode_all(texts)), strict=True):
            name = prompt_name(tokens, repeats[tokens])
            repeats[tokens] += 1
            items.append(Item(name, question, None, {"position": next(position)}))
            prompts[name] = text, tokens
        for ready in asker.prepare(items, prompts):
            yield [asker.run], ready


def _check_aggregator(aggregator: str | None) -> None:
    if aggregator not in (None, *AGGREGATORS):
        raise InputError(f"Expected one of {', '.join(AGGREGATORS)} as aggregator, got {aggregator!r}.")


def _check_model(
    model: LanguageModel,
    controller: Controller | None,
    file: PolicyFile | None,
    embedder: QuestionEmbedder | None,
    layer: int,
) -> None:
    """Refuse a model that the controller or the policy file is not for; warn of what differs besides."""
    for remark in file.check_model(model.identity(layer)) if file is not None else ():
        warnings.warn(remark, stacklevel=3)
    if controller is not None:
        identity = feature_identity(model, embedder, layer, controller.prompt_layers)
        controller.check_model(identity, embedder.size if embedder else None)


def _loaded(controller: Controller | str | Path | None) -> Controller | None:
    """Return a controller, loaded if it is given as a path."""
    if not isinstance(controller, str | Path):
        return controller
    from lightning_modules.load import load_controller

    return load_controller(controller)


def _of_harvest(controller: Controller | None) -> SamplerConfig | None:
    """Return power sampling as the harvest of a controller had it; where it had none, with the harvest's lengths."""
    given = controller.arms if controller is not None else {}
    arms = {name: SamplerConfig(**arm) for name, arm in given.items() if "max_new_tokens" in arm}  # imported ones vary
    if POWER in arms or not arms:
        return arms.get(POWER)
    first = next(iter(arms.values()))
    return SamplerConfig(block_size=first.block_size, max_new_tokens=first.max_new_tokens)


def _policy(
    controller: Controller | None,
    rule: Rule | str | None,
    k: KRange | int | None,
    ladder: Ladder | Sequence[str] | None,
) -> Policy:
    """Return the policy that these mean together."""
    if controller is not None and rule is not None:
        raise InputError("controller and rule both say when to stop: leave one of them out.")
    if isinstance(rule, str):
        if rule not in RULES:
            raise InputError(f"Expected one of {', '.join(RULES)} as rule, got {rule!r}.")
        rule = RULES[rule]
    if ladder is not None:
        if k is not None:
            raise InputError("k and ladder both say how far to go: leave one of them out.")
        return Policy(ladder if isinstance(ladder, Ladder) else Ladder.parse(ladder), controller, rule)
    if controller is not None and k is None:
        return Policy(controller.ladder, controller)
    if controller is None and rule is None:
        k = k.check().maximum if isinstance(k, KRange) else 8 if k is None else k
        return FixedK(KRange(k, 1, k).check().start)
    k = KRange(min(2, k), 2, k) if isinstance(k, int) else k or KRange()
    return Policy(k.check().ladder(), controller, rule)
