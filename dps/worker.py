"""What one worker does: load the model, sample its share of the questions of each store, commit them.

A run has one worker in the calling process (on a GPU) or several processes (on a CPU); both call :func:`work`. Heavy
imports stand at the top on purpose: a fork server imports this module once and every worker process starts from there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dps.benchmarks import Benchmark, BenchmarkConfig, Item, load_benchmark
from dps.config import ComputeConfig, FeaturesConfig
from dps.embedding import QuestionEmbedder
from dps.errors import InputError
from dps.model import LanguageModel, load_model
from dps.model_config import EMBEDDED, ModelConfig, embedded_path
from dps.policies import Controller, DynamicK, FixedK, KRange, Policy, Rule, RuleK
from dps.sampler.engine import Engine, check_room
from dps.sampler.settings import SamplerConfig
from dps.scheduler import PreparedQuestion, run_policy
from feature_store import Question, StoreWriter

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


@dataclass(frozen=True)
class WorkSettings:
    """What all stores of a run have in common."""

    model: ModelConfig
    benchmark: BenchmarkConfig
    features: FeaturesConfig
    aggregator: str
    seed: int
    compute: ComputeConfig

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
    k: int
    tokens: int
    correct: bool | None
    accepted: int
    proposed: int


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
    items: list[Item], prompts: dict[str, tuple[str, tuple[int, ...]]], embedder: QuestionEmbedder | None
) -> list[PreparedQuestion]:
    """Bring questions into the form that the scheduler takes; embeds them all at once where an embedder is given."""
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
        )
        for item, embedding in zip(items, embeddings, strict=True)
    ]


def work(
    shard: int,
    tasks: list[StoreTask],
    settings: WorkSettings,
    load_controller: LoadController | None,
    *,
    report: Callable[[Done], None],
    stopping: Callable[[], bool],
    model: LanguageModel | None = None,
) -> None:
    """Fill this worker's share of every store: of each ``workers``-th question, those that are missing.

    Args:
        shard: Number of this worker.
        tasks: The stores, in order.
        settings: What they have in common.
        load_controller: Loads the controllers of dynamic policies.
        report: Called for every question after it was committed.
        stopping: Asked every few steps; True ends the work after committing what is complete.
        model: A loaded model, if the process has one.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    model = model or load_model(settings.model)
    benchmark = load_benchmark(settings.benchmark)
    embedder: QuestionEmbedder | None = None
    for number, task in enumerate(tasks):
        writer = StoreWriter.attach(task.folder)
        # The shares must not depend on what others have committed by now, or a question would fall between two workers.
        share = benchmark.items[shard :: settings.compute.workers]
        mine = [item for item in share if item.question_id not in writer.committed]
        if not mine:
            continue
        policy, needs_features = _policy(task, load_controller)
        if needs_features and embedder is None:
            embedder = open_embedder(settings.features.embedder)
        if policy.controller is not None and embedder is not None:
            identity = feature_identity(model, embedder, settings.features.layer)
            policy.controller.check_model(identity, embedder.size)
        prompts = prompts_of(model, benchmark, task.sampler)
        room = max(len(tokens) for _, tokens in prompts.values())
        engine = Engine(
            model,
            task.sampler,
            rows=settings.compute.rows,
            prompt_room=room,
            memory_share=1 / settings.compute.workers,
            path=settings.compute.forward,
            stop_strings=benchmark.stop_strings(model.tokenizer),
        )
        complete = run_policy(
            model,
            engine,
            prepare(mine, prompts, embedder if needs_features else None),
            policy,
            grader=benchmark.grader,
            seed=settings.seed,
            aggregator=settings.aggregator,
            feature_layer=settings.features.layer if needs_features else None,
            stopping=stopping,
        )
        _commit_all(complete, writer, f"w{shard}", settings.compute.commit_interval_s, number, report)
        if stopping():
            return


def _policy(task: StoreTask, load_controller: LoadController | None) -> tuple[Policy, bool]:
    """Return the task's policy and whether it needs features."""
    if isinstance(task.k, int):
        return FixedK(task.k), task.features
    if task.rule is not None:
        return RuleK(task.k, task.rule), task.features
    if load_controller is None or task.controller is None:
        raise ValueError("a dynamic policy needs a controller and something to load it with")
    return DynamicK(task.k, load_controller(task.controller)), True


def _commit_all(
    complete: Iterator[Question],
    writer: StoreWriter,
    name: str,
    interval_s: float,
    task: int,
    report: Callable[[Done], None],
) -> None:
    """Commit questions as they complete, several at a time; a run that is stopped commits what is complete."""
    held: list[Question] = []
    last = time.monotonic()

    def commit() -> None:
        nonlocal last
        if held:
            writer.commit(held, writer=name)
            for question in held:
                report(done(task, question))
            held.clear()
        last = time.monotonic()

    try:
        for question in complete:
            held.append(question)
            if time.monotonic() - last >= interval_s:
                commit()
    finally:
        commit()


def done(task: int, question: Question) -> Done:
    """Return what a progress display shows of a question."""
    return Done(
        task=task,
        k=question.k,
        tokens=sum(t.num_generated_tokens for t in question.trajectories),
        correct=question.correct,
        accepted=sum(t.mh_accepted for t in question.trajectories),
        proposed=sum(t.mh_proposed for t in question.trajectories),
    )


def feature_identity(model: LanguageModel, embedder: QuestionEmbedder, layer: int) -> dict[str, Any]:
    """Return the identity of model, layer and embedder: what a controller's features come from."""
    return {**model.identity(layer), "embedder": embedder.identity}


def identity_of(model: LanguageModel, benchmark: Benchmark, settings: WorkSettings) -> dict[str, Any]:
    """Return what decides the trajectories of a run, apart from sampler and policy."""
    return {
        "model": feature_identity(model, open_embedder(settings.features.embedder), settings.features.layer),
        "benchmark": benchmark.identity() | {"stop_strings": list(benchmark.stop_strings(model.tokenizer))},
        "seed": settings.seed,
        "aggregator": settings.aggregator,
    }
