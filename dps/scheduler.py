"""Runs a policy live on a model, many questions at once.

``engine`` samples chains; this module decides which chains there are. It admits questions while there are rows,
asks the policy whenever all trajectories of a question have ended, adds trajectories ahead of new questions, and yields
every question as soon as it is complete. Harvests, evaluations and :func:`dps.answer` all go through it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from dps.aggregate import answer_of
from dps.features import checkpoint_features
from dps.model import LanguageModel
from dps.policies import Policy
from dps.sampler.engine import Chain, ChainRequest, Engine
from dps.sampler.streams import stream_key
from dps.sampler.teacher import block_hidden, block_sizes
from feature_store.records import Decision, Question, Trajectory


class Grading(Protocol):
    """The side of a benchmark that reads responses."""

    def extract(self, text: str) -> str | None:
        """Return a response's answer in canonical form, None if it has none."""
        ...

    def grade(self, answer: str | None, gold: str | None) -> bool | None:
        """Return whether an answer is right, None if that cannot be said."""
        ...

    def classes(self, answers: Sequence[str | None]) -> list[int]:
        """Return each answer's equivalence class, numbered by first appearance; -1 for no answer."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PreparedQuestion:
    """A question ready to be sampled."""

    question_id: str
    """Unique in the run; names the random streams."""
    question: str
    """The question as the benchmark states it."""
    prompt: str
    """What the model is given."""
    tokens: tuple[int, ...]
    """The tokenized prompt."""
    gold: str | None
    """The gold answer, None where there is none."""
    metadata: dict
    """What else the benchmark says of it."""
    embedding: np.ndarray
    """Question embedding, shape (E,); E is 0 where none is needed."""
    embedding_s: float
    """Measured seconds of its embedding."""
    forced_lengths: tuple[int, ...] | None = None
    """Length of each trajectory, whatever the model says: for measuring speed with random weights."""


@dataclass(slots=True)
class Account:
    """Where a run's wall-clock time went, seconds. Every moment is charged once."""

    decode: float = 0.0
    """Decoding, shared among the chains."""
    prefill: float = 0.0
    """Prefills, charged to the question."""
    features: float = 0.0
    """Teacher-forced passes, shared among the trajectories."""
    controller: float = 0.0
    """Controller calls, shared among the questions asked about."""
    other: float = 0.0
    """Idle time and bookkeeping, charged to nobody."""

    @property
    def total(self) -> float:
        """The whole."""
        return self.decode + self.prefill + self.features + self.controller + self.other


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A moment when all trajectories of a question that were asked for have ended."""

    question_id: str
    """The question."""
    trajectories: tuple[Trajectory, ...]
    """Its trajectories so far, in order of index."""
    p_enough: float | None
    """What the controller said; None where nobody was asked."""
    more: int
    """How many trajectories are added now; 0 ends the question."""


@dataclass(slots=True)
class _Live:
    """A question that is being worked on."""

    source: PreparedQuestion
    requested: int
    admitted: float = float("inf")
    prefill_s: float = 0.0
    controller_s: float = 0.0
    waiting: list[Chain] = field(default_factory=list)
    trajectories: list[Trajectory] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)


def run_policy(
    model: LanguageModel,
    engine: Engine,
    questions: Iterable[PreparedQuestion],
    policy: Policy,
    *,
    grading: Grading,
    seed: int,
    aggregator: str = "majority",
    feature_layer: int | None = None,
    account: Account | None = None,
    stopping: Callable[[], bool] = lambda: False,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
) -> Iterator[Question]:
    """Sample questions under a policy and yield each one when it is complete.

    Args:
        model: The language model.
        engine: An idle engine of that model.
        questions: What to sample; drawn from as rows come free.
        policy: How many trajectories each gets.
        grading: Extracts and grades answers.
        seed: The run's seed; with question id and trajectory index it names each random stream.
        aggregator: How k answers become one.
        feature_layer: Layer of the hidden states. None reads none; a policy with a controller needs them.
        account: Filled with where the time went, if given.
        on_checkpoint: Called at every checkpoint, if given.
        stopping: Asked every few steps; True ends the run, leaving what is not complete.

    Yields:
        Complete questions in the order of completion.

    Source:
        METHOD sections 2, 4 and 5.
    """
    account = account if account is not None else Account()
    waiting = iter(questions)
    live: dict[str, _Live] = {}
    exhausted = False
    ahead = max(policy.start, engine.rows // 4)
    mark = time.perf_counter()

    def charge() -> float:
        nonlocal mark
        now = time.perf_counter()
        elapsed, mark = now - mark, now
        return elapsed

    def request(entry: _Live, count: int, *, first: bool) -> None:
        indices = range(entry.requested, entry.requested + count)
        for index in reversed(indices) if first else indices:
            stream = stream_key(seed, entry.source.question_id, index)
            forced = entry.source.forced_lengths[index] if entry.source.forced_lengths is not None else None
            key = (entry.source.question_id, index)
            engine.submit(ChainRequest(key, entry.source.tokens, stream, forced), first=first)
        entry.requested += count

    while (live or not exhausted) and not stopping():
        # More wait than rows can come free before the next look here, so that no row goes without a chain.
        while not exhausted and engine.num_running + engine.num_pending < engine.rows + ahead:
            source = next(waiting, None)
            if source is None:
                exhausted = True
                break
            live[source.question_id] = _Live(source, 0)
            request(live[source.question_id], policy.start, first=False)
        account.other += charge()

        before = engine.decode_s, engine.prefill_s
        chains = engine.poll()
        decode, prefill = engine.decode_s - before[0], engine.prefill_s - before[1]
        account.decode += decode
        account.prefill += prefill
        account.other += charge() - decode - prefill
        ready: list[_Live] = []
        for chain in chains:
            entry = live[chain.request.key[0]]
            entry.waiting.append(chain)
            entry.admitted = min(entry.admitted, chain.admitted)
            entry.prefill_s += chain.prefill_s
            if len(entry.trajectories) + len(entry.waiting) == entry.requested:
                ready.append(entry)
        if not ready:
            continue
        # Which answers there are does not depend on features, so reading them is bookkeeping.
        account.other += charge()
        read: list[np.ndarray | None] = [None] * sum(len(entry.waiting) for entry in ready)
        if feature_layer is not None:
            pairs = [(entry.source.tokens, chain.tokens.tolist()) for entry in ready for chain in entry.waiting]
            read = list(block_hidden(model, pairs, layer=feature_layer, block_size=engine.config.block_size))
        feature_s = charge()
        if feature_layer is None:
            account.other += feature_s
        else:
            account.features += feature_s
        found = iter(read)
        for entry in ready:
            _absorb(entry, [next(found) for _ in entry.waiting], feature_s / len(read), model, engine, grading)
        account.other += charge()

        asked = [entry for entry in ready if policy.asks(len(entry.trajectories))]
        probabilities = _ask(asked, policy)
        controller_s = charge()
        if asked:
            account.controller += controller_s
        else:
            account.other += controller_s
        for entry, p_enough in zip(asked, probabilities, strict=True):
            entry.controller_s += controller_s / len(asked)
            entry.decisions.append(Decision(len(entry.trajectories), p_enough))
        said = {entry.source.question_id: p for entry, p in zip(asked, probabilities, strict=True)}
        for entry in ready:
            name = entry.source.question_id
            count = policy.more(len(entry.trajectories), said.get(name))
            if on_checkpoint is not None:
                on_checkpoint(Checkpoint(name, tuple(entry.trajectories), said.get(name), count))
            if count:
                request(entry, count, first=True)
            else:
                del live[name]
                yield _complete(entry, aggregator)
        account.other += charge()


def _ask(entries: list[_Live], policy: Policy) -> list[float]:
    """Ask the policy's controller about these questions at once; p_enough of each."""
    if not entries or policy.controller is None:
        return []
    controller = policy.controller
    features = [
        checkpoint_features(
            entry.trajectories,
            num_prompt_tokens=len(entry.source.tokens),
            embedding=entry.source.embedding,
            calibration=controller.calibration,
            pooling=controller.pooling,
        )
        for entry in entries
    ]
    return [float(p) for p in controller.predict_enough(features)]


def _absorb(
    entry: _Live,
    read: list[np.ndarray | None],
    feature_s: float,
    model: LanguageModel,
    engine: Engine,
    grading: Grading,
) -> None:
    """Turn a question's newly ended chains into trajectories, in order of index."""
    pairs = sorted(zip(entry.waiting, read, strict=True), key=lambda pair: pair[0].request.key[1])
    entry.waiting = []
    for chain, hidden in pairs:
        text = model.decode(chain.tokens.tolist())
        answer = grading.extract(text)
        sizes = block_sizes(len(chain.tokens), engine.config.block_size)
        starts = np.cumsum(sizes) - sizes
        entry.trajectories.append(
            Trajectory(
                index=chain.request.key[1],
                tokens=chain.tokens,
                text=text,
                answer=answer,
                answer_class=-1,
                correct=grading.grade(answer, entry.source.gold),
                ended_with_eos=chain.ended_with_eos,
                base_logprob=float(chain.base_logprobs.sum()),
                proposal_logprob=float(chain.proposal_logprobs.sum()),
                num_generated_tokens=chain.num_generated_tokens,
                mh_proposed=chain.mh_proposed,
                mh_accepted=chain.mh_accepted,
                compute_s=chain.decode_s + (feature_s if hidden is not None else 0.0),
                started_s=chain.admitted - entry.admitted,
                finished_s=chain.finished - entry.admitted,
                block_num_tokens=sizes,
                block_logprob=np.add.reduceat(chain.base_logprobs, starts),
                block_entropy=np.add.reduceat(chain.entropies, starts),
                block_top1=np.add.reduceat(chain.top_probabilities, starts),
                hidden=np.zeros((len(sizes), 0), np.float32) if hidden is None else hidden,
                steps=chain.steps,
            )
        )
    labels = grading.classes([t.answer for t in entry.trajectories])
    entry.trajectories = [replace(t, answer_class=c) for t, c in zip(entry.trajectories, labels, strict=True)]


def _complete(entry: _Live, aggregator: str) -> Question:
    """Return the finished record of a question."""
    answer, correct = answer_of(entry.trajectories, aggregator)
    source = entry.source
    return Question(
        question_id=source.question_id,
        question=source.question,
        prompt=source.prompt,
        gold=source.gold,
        metadata=source.metadata,
        num_prompt_tokens=len(source.tokens),
        embedding=source.embedding,
        prefill_s=entry.prefill_s,
        embedding_s=source.embedding_s,
        controller_s=entry.controller_s,
        latency_s=time.perf_counter() - entry.admitted + source.embedding_s,
        answer=answer,
        correct=correct,
        decisions=tuple(entry.decisions),
        trajectories=tuple(entry.trajectories),
    )
