"""Runs a policy live on a model, many questions at once.

``engine`` samples chains; this module decides which chains there are. It admits questions while there are rows,
asks the policy whenever all trajectories of a question have ended, adds trajectories ahead of new questions, and yields
every question as soon as it is complete. Harvests, evaluations and :func:`dps.answer` all go through it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from dps.aggregate import answer_of
from dps.benchmarks.benchmark import Item
from dps.benchmarks.grading import Grader, read
from dps.features import CheckpointFeatures, checkpoint_features
from dps.model import LanguageModel
from dps.policies import Controller, Policy, Rule
from dps.policies.seen import question_key, seen_of
from dps.sampler.engine import Chain, ChainRequest, Engine
from dps.sampler.stop import before_stop
from dps.sampler.streams import stream_key
from dps.sampler.teacher import block_hidden, block_sizes
from feature_store.records import Decision, Question, Trajectory

FEATURE_PATIENCE_S = 2.0
"""How long ended chains may wait on a GPU for others to share a feature pass with, where no controller is asked."""
GRADING_THREADS = 8
"""Questions whose responses are read at a time, where a grader takes long."""
READING_WAIT_S = 0.2
"""Longest wait for a response to be read while there is nothing to decode."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedQuestion:
    """A question ready to be sampled."""

    item: Item
    """The question as the benchmark states it; its id, unique in the run, names the random streams."""
    prompt: str
    """What the model is given."""
    tokens: tuple[int, ...]
    """The tokenized prompt."""
    embedding: np.ndarray
    """Question embedding, shape (E,); E is 0 where none is needed."""
    embedding_s: float
    """Measured seconds of its embedding."""
    forced_lengths: tuple[int, ...] | None = None
    """Length of each trajectory, whatever the model says: for measuring speed with random weights."""

    @property
    def question_id(self) -> str:
        """The question's id."""
        return self.item.question_id


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
    num_read: int = 0
    decisions: list[Decision] = field(default_factory=list)


def run_policy(
    model: LanguageModel,
    engine: Engine,
    questions: Iterable[PreparedQuestion],
    policy: Policy,
    *,
    grader: Grader,
    seed: int,
    aggregator: str = "majority",
    feature_layer: int | None = None,
    account: Account | None = None,
    at_a_time: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
) -> Iterator[Question]:
    """Sample questions under a policy and yield each one when it is complete.

    Args:
        model: The language model.
        engine: An idle engine of that model.
        questions: What to sample; drawn from as rows come free.
        policy: How many trajectories each gets.
        grader: Reads the responses.
        seed: The run's seed; with question id and trajectory index it names each random stream.
        aggregator: How k answers become one.
        feature_layer: Layer of the hidden states. None reads none; a policy with a controller needs them.
        account: Filled with where the time went, if given.
        at_a_time: Questions that are worked on at a time; None takes as many as keep the rows busy.
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
    patience = _patience(policy, model)
    ended: list[_Live] = []
    ended_since = 0.0
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

    with _Readers(grader) as readers:
        while (live or not exhausted) and not stopping():
            # More wait than rows can come free before the next look here, so that no row goes without a chain.
            while (
                not exhausted
                and engine.num_running + engine.num_pending < engine.rows + ahead
                and (at_a_time is None or len(live) < at_a_time)
            ):
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
            for chain in chains:
                entry = live[chain.request.key[0]]
                entry.waiting.append(chain)
                entry.admitted = min(entry.admitted, chain.admitted)
                entry.prefill_s += chain.prefill_s
                if len(entry.trajectories) + len(entry.waiting) == entry.requested:
                    ended_since = ended_since if ended else time.perf_counter()
                    ended.append(entry)
            if ended and (engine.idle or time.perf_counter() - ended_since >= patience):
                account.other += charge()
                means: list[np.ndarray | None] = [None] * sum(len(entry.waiting) for entry in ended)
                if feature_layer is not None:
                    pairs = [(entry.source.tokens, chain.tokens.tolist()) for entry in ended for chain in entry.waiting]
                    means = list(block_hidden(model, pairs, layer=feature_layer, block_size=engine.config.block_size))
                feature_s = charge()
                if feature_layer is None:
                    account.other += feature_s
                else:
                    account.features += feature_s
                found = iter(means)
                for entry in ended:
                    hidden = [next(found) for _ in entry.waiting]
                    _absorb(entry, hidden, feature_s / len(means), model, engine)
                    readers.submit(entry)
                ended = []
            ready = readers.done(wait=engine.idle)
            account.other += charge()
            if not ready:
                continue

            asked = [entry for entry in ready if policy.asks(len(entry.trajectories))]
            probabilities = _ask(asked, policy, seed)
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


def _patience(policy: Policy, model: LanguageModel) -> float:
    """Return how many seconds ended chains may wait for others to share a feature pass with.

    A pass of a few chains costs a GPU as much as one of many, and nobody waits for it but a controller.
    """
    return 0.0 if policy.controller is not None or model.device.type != "cuda" else FEATURE_PATIENCE_S


class _Readers:
    """Read the responses of questions: at once, or in threads where the grader takes long."""

    def __init__(self, grader: Grader) -> None:
        self._grader = grader
        self._threads = ThreadPoolExecutor(GRADING_THREADS) if grader.in_background else None
        self._running: dict[Future[None], _Live] = {}
        self._done: list[_Live] = []

    def __enter__(self) -> _Readers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def submit(self, entry: _Live) -> None:
        """Have the question's new trajectories read."""
        if self._threads is None:
            _read(entry, self._grader)
            self._done.append(entry)
        else:
            self._running[self._threads.submit(_read, entry, self._grader)] = entry

    def done(self, *, wait: bool) -> list[_Live]:
        """Return the questions that have been read since the last call; with ``wait``, at least one if any is left."""
        if self._running:
            timeout = READING_WAIT_S if wait and not self._done else 0.0
            finished, _ = futures.wait(self._running, timeout=timeout, return_when=futures.FIRST_COMPLETED)
            for future in finished:
                future.result()
                self._done.append(self._running.pop(future))
        found, self._done = self._done, []
        return found


def _read(entry: _Live, grader: Grader) -> None:
    """Fill in the answers of the trajectories that have none yet, and the classes of them all."""
    item = entry.source.item
    found = entry.trajectories[: entry.num_read]
    for trajectory in entry.trajectories[entry.num_read :]:
        reading = read(grader, trajectory.text, item)
        found.append(
            replace(
                trajectory,
                answer=reading.answer,
                correct=reading.correct,
                strict_answer=reading.strict_answer,
                strict_correct=reading.strict_correct,
            )
        )
    classes = grader.classes([t.answer for t in found], item)
    entry.trajectories = [replace(t, answer_class=c) for t, c in zip(found, classes, strict=True)]
    entry.num_read = len(entry.trajectories)


def _ask(entries: list[_Live], policy: Policy, seed: int) -> list[float]:
    """Ask the policy's controller or rule about these questions at once; p_enough of each."""
    if not entries:
        return []
    if policy.rule is not None:
        return _ask_rule(entries, policy.rule, seed)
    if policy.controller is None:
        raise ValueError("a policy that asks needs a controller or a rule")
    controller = policy.controller
    features = [
        features_for(controller, entry.trajectories, len(entry.source.tokens), entry.source.embedding)
        for entry in entries
    ]
    return [float(p) for p in controller.predict_enough(features)]


def features_for(
    controller: Controller, trajectories: Sequence[Trajectory], num_prompt_tokens: int, embedding: np.ndarray
) -> CheckpointFeatures:
    """Return the features of a question as this controller wants them."""
    return checkpoint_features(
        trajectories,
        num_prompt_tokens=num_prompt_tokens,
        embedding=embedding,
        calibration=controller.calibration,
        pooling=controller.pooling,
    )


def _ask_rule(entries: list[_Live], rule: Rule, seed: int) -> list[float]:
    """Ask a rule, about all questions with the same number of trajectories at once."""
    found: dict[str, float] = {}
    for k in sorted({len(entry.trajectories) for entry in entries}):
        group = [entry for entry in entries if len(entry.trajectories) == k]
        names = [entry.source.question_id for entry in group]
        seen = seen_of([entry.trajectories for entry in group], [question_key(seed, name) for name in names])
        found |= dict(zip(names, rule.enough(seen).tolist(), strict=True))
    return [found[entry.source.question_id] for entry in entries]


def _absorb(
    entry: _Live,
    hidden_of: list[np.ndarray | None],
    feature_s: float,
    model: LanguageModel,
    engine: Engine,
) -> None:
    """Turn a question's newly ended chains into trajectories, in order of index; their answers are read later."""
    pairs = sorted(zip(entry.waiting, hidden_of, strict=True), key=lambda pair: pair[0].request.key[1])
    entry.waiting = []
    for chain, hidden in pairs:
        sizes = block_sizes(len(chain.tokens), engine.config.block_size)
        starts = np.cumsum(sizes) - sizes
        entry.trajectories.append(
            Trajectory(
                index=chain.request.key[1],
                tokens=chain.tokens,
                text=before_stop(model.decode(chain.tokens.tolist()), engine.stop_strings),
                answer=None,
                answer_class=-1,
                correct=None,
                ending=chain.ending,
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
                token_logprob=chain.base_logprobs.astype(np.float32),
                token_entropy=chain.entropies.astype(np.float32),
                token_top1=chain.top_probabilities.astype(np.float32),
            )
        )


def _complete(entry: _Live, aggregator: str) -> Question:
    """Return the finished record of a question."""
    answer, correct = answer_of(entry.trajectories, aggregator)
    source = entry.source
    return Question(
        question_id=source.item.question_id,
        question=source.item.question,
        prompt=source.prompt,
        gold=source.item.gold,
        metadata=source.item.metadata,
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
