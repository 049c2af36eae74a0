"""Runs policies live on a model, many questions at once.

``engine`` samples chains; this module decides which chains there are. It admits questions while there are rows, asks
a question's policy whenever all of its trajectories have ended, adds trajectories ahead of new questions, and yields
every question as soon as it is complete. Where controllers are asked inside a run (``policies.in_run``), it asks them
as soon as all trajectories of a question have come to the end of a block. Harvests, evaluations and :func:`dps.answer`
all go through it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dps.benchmarks.benchmark import Item
from dps.benchmarks.grading import Grader, read
from dps.decide import Controller, InRun, Policy, Rule
from dps.decide.aggregate import answer_of
from dps.decide.features import CheckpointFeatures, checkpoint_features
from dps.decide.seen import question_key, seen_of
from dps.model import LanguageModel
from dps.sampler.engine import Cancelled, Chain, ChainRequest, Engine, Snapshot
from dps.sampler.rows import Finished
from dps.sampler.stop import before_stop
from dps.sampler.streams import stream_key
from dps.sampler.teacher import block_hidden, block_sizes
from feature_store import records
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


@dataclass(frozen=True, slots=True, eq=False)
class Treatment:
    """What becomes of a question: who decides how many trajectories it gets, and what is read of them."""

    policy: Policy
    """How many trajectories there are."""
    in_run: InRun | None = None
    """Who is asked while trajectories run; the engine must take snapshots of its blocks."""
    feature_layer: int | None = None
    """Layer of the hidden states. None reads none; a policy with a controller needs them."""


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
    """A moment when all trajectories of a question that were asked for have ended, or come to the end of a block."""

    question_id: str
    """The question."""
    trajectories: tuple[Trajectory | records.Snapshot, ...]
    """Its trajectories so far, in order of index; as they were at the end of ``block``."""
    p_enough: float | None
    """What the policy's controller or rule said; None where it was not asked."""
    more: int
    """How many trajectories are added now; where all have ended, 0 ends the question."""
    block: int | None = None
    """The block after which the question was looked at while trajectories ran; None where all have ended."""
    gave_up: bool = False
    """Whether the question was given up."""


_END = 0
"""Stands for a block where all trajectories have ended."""


@dataclass(slots=True)
class _Live:
    """A question that is being worked on; dictionaries are by index of the trajectory (and block)."""

    number: int
    """Tells it from others of the run: the same question may be under way for two policies."""
    source: PreparedQuestion
    treatment: Treatment
    requested: int = 0
    admitted: float = float("inf")
    prefill_s: float = 0.0
    controller_s: float = 0.0
    ended: dict[int, Chain] = field(default_factory=dict)
    """Chains of which there is no trajectory yet."""
    trajectories: dict[int, Trajectory] = field(default_factory=dict)
    costs: dict[int, Chain | Cancelled] = field(default_factory=dict)
    """What was spent on those that have ended or were given up."""
    unread: set[int] = field(default_factory=set)
    """Trajectories whose answers have not been read."""
    passed: dict[tuple[int, int], Snapshot] = field(default_factory=dict)
    """What chains were at the ends of blocks."""
    kept: dict[tuple[int, int], records.Snapshot] = field(default_factory=dict)
    """Those of them whose features were computed."""
    feature_s: dict[int, float] = field(default_factory=dict)
    """What that took."""
    asked: int = 0
    """The last block after which this many trajectories were looked at."""
    at: int | None = None
    """The checkpoint that is in work: a block, or :data:`_END`; None between checkpoints."""
    decisions: list[Decision] = field(default_factory=list)

    def charge(self, index: int, cost: Chain | Cancelled) -> None:
        """Note what was spent on a trajectory."""
        self.costs[index] = cost
        self.admitted = min(self.admitted, cost.admitted)
        self.prefill_s += cost.prefill_s

    def reached(self, blocks: Sequence[int]) -> int | None:
        """Return the next checkpoint that all trajectories have come to: a block, :data:`_END`, or None for none yet.

        A trajectory that has ended at or before a block has come to it. Where all have, they have come to the end.

        Args:
            blocks: After which of them somebody is asked, in order.
        """
        indices = range(self.requested)
        there = [index in self.ended or index in self.trajectories for index in indices]
        for block in blocks:
            if block <= self.asked:
                continue
            on = [(index, block) in self.passed for index in indices]
            if not all(ended or passed for ended, passed in zip(there, on, strict=True)):
                return None
            if any(on):
                return block
        return _END if all(there) else None

    def seen(self) -> list[Trajectory | records.Snapshot]:
        """Return the trajectories as they are to be seen at the checkpoint in work, in order of index."""
        return [self.kept.get((i, self.at)) or self.trajectories[i] for i in range(self.requested)]


def run_policy(
    model: LanguageModel,
    engine: Engine,
    questions: Iterable[PreparedQuestion],
    policy: Policy,
    *,
    in_run: InRun | None = None,
    feature_layer: int | None = None,
    **options: Any,
) -> Iterator[Question]:
    """Sample questions under one policy and yield each one when it is complete.

    Args:
        model: The language model.
        engine: An idle engine of that model.
        questions: What to sample; drawn from as rows come free.
        policy: How many trajectories each gets.
        in_run: See :class:`Treatment`.
        feature_layer: See :class:`Treatment`.
        options: As for :func:`run_policies`.

    Yields:
        Complete questions in the order of completion.
    """
    treatment = Treatment(policy, in_run, feature_layer)
    for _, question in run_policies(model, engine, ((treatment, source) for source in questions), **options):
        yield question


def run_policies(
    model: LanguageModel,
    engine: Engine,
    questions: Iterable[tuple[Treatment, PreparedQuestion]],
    *,
    grader: Grader,
    seed: int,
    aggregator: str = "majority",
    account: Account | None = None,
    at_a_time: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
) -> Iterator[tuple[Treatment, Question]]:
    """Sample questions, each under the policy that comes with it, and yield each one when it is complete.

    Policies share the rows: where the questions of one come after those of another, its first chains take the rows that
    the last chains of the other leave free.

    Args:
        model: The language model.
        engine: An idle engine of that model. Where it takes snapshots and nobody is asked inside the run, they are
            stored.
        questions: What to sample and how; drawn from as rows come free. A question may come once for each treatment.
        grader: Reads the responses.
        seed: The run's seed; with question id and trajectory index it names each random stream.
        aggregator: How k answers become one.
        account: Filled with where the time went, if given.
        at_a_time: Questions that are worked on at a time; None takes as many as keep the rows busy.
        stopping: Asked every few steps; True ends the run, leaving what is not complete.
        on_checkpoint: Called at every checkpoint, if given.

    Yields:
        Complete questions in the order of completion, each with the treatment that it came with.

    Source:
        METHOD sections 2 to 5.
    """
    account = account if account is not None else Account()
    waiting = iter(questions)
    live: dict[int, _Live] = {}
    numbers = itertools.count()
    exhausted = False
    ahead = engine.rows // 4
    reached: list[_Live] = []
    reached_since = 0.0
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
            engine.submit(ChainRequest((entry.number, index), entry.source.tokens, stream, forced), first=first)
        entry.requested += count
        entry.asked = 0

    def look(entry: _Live) -> None:
        """Put a question into work if it has come to its next checkpoint."""
        nonlocal reached_since
        if entry.at is not None:
            return
        in_run = entry.treatment.in_run
        asks = in_run is not None and in_run.asks(entry.requested)
        entry.at = entry.reached(in_run.blocks if asks else ())
        if entry.at is not None:
            reached_since = reached_since if reached else time.perf_counter()
            reached.append(entry)

    with _Readers(grader) as readers:
        while (live or not exhausted) and not stopping():
            # More wait than rows can come free before the next look here, so that no row goes without a chain.
            while (
                not exhausted
                and engine.num_running + engine.num_pending < engine.rows + ahead
                and (at_a_time is None or len(live) < at_a_time)
            ):
                found = next(waiting, None)
                if found is None:
                    exhausted = True
                    break
                treatment, source = found
                if treatment.in_run is not None and not set(treatment.in_run.blocks) <= set(engine.snapshot_blocks):
                    raise ValueError(
                        f"expected snapshots of blocks {treatment.in_run.blocks}, the engine takes "
                        f"{engine.snapshot_blocks}"
                    )
                entry = _Live(next(numbers), source, treatment)
                live[entry.number] = entry
                request(entry, treatment.policy.start, first=False)
                ahead = max(treatment.policy.start, engine.rows // 4)
            account.other += charge()

            before = engine.decode_s, engine.prefill_s
            chains = engine.poll()
            decode, prefill = engine.decode_s - before[0], engine.prefill_s - before[1]
            account.decode += decode
            account.prefill += prefill
            account.other += charge() - decode - prefill
            came: dict[int, _Live] = {}
            for snapshot in engine.take_snapshots():
                number, index = snapshot.request.key
                live[number].passed[index, snapshot.block] = snapshot
                came[number] = live[number]
            for chain in chains:
                number, index = chain.request.key
                live[number].ended[index] = chain
                live[number].charge(index, chain)
                came[number] = live[number]
            for entry in came.values():
                look(entry)
            patience = min((_patience(entry.treatment, model) for entry in reached), default=0.0)
            if reached and (engine.idle or time.perf_counter() - reached_since >= patience):
                account.other += charge()
                work = [(entry, found) for entry in reached for found in _unfinished(entry)]
                _absorb_all([w for w in work if w[0].treatment.feature_layer is None], None, 0.0, model, engine)
                account.other += charge()
                layers = {w[0].treatment.feature_layer for w in work} - {None}
                for layer in sorted(layers):
                    there = [w for w in work if w[0].treatment.feature_layer == layer]
                    pairs = [(entry.source.tokens, found.tokens.tolist()) for entry, found in there]
                    means = block_hidden(model, pairs, layer=layer, block_size=engine.config.block_size)
                    feature_s = charge()
                    account.features += feature_s
                    _absorb_all(there, means, feature_s / len(there), model, engine)
                for entry in reached:
                    readers.submit(entry)
                reached = []
            ready = readers.done(wait=engine.idle)
            account.other += charge()
            if not ready:
                continue

            said, given_up = _ask_all(ready, seed)
            asked = [entry for entry in ready if entry.at != _END or entry.treatment.policy.asks(entry.requested)]
            controller_s = charge()
            if asked:
                account.controller += controller_s
            else:
                account.other += controller_s
            for entry in asked:
                entry.controller_s += controller_s / len(asked)
            for entry in ready:
                block, in_run = entry.at, entry.treatment.in_run
                p_enough = said.get(entry.number)
                if block == _END:
                    count = entry.treatment.policy.more(entry.requested, p_enough)
                else:
                    escalates = p_enough is not None and in_run.escalates(block, p_enough)
                    count = in_run.range.step if escalates else 0
                gives_up = entry.number in given_up
                if on_checkpoint is not None:
                    seen = tuple(entry.seen())
                    name = entry.source.question_id
                    on_checkpoint(Checkpoint(name, seen, p_enough, count, block or None, gives_up))
                if gives_up:
                    _give_up(entry, model, engine, grader)
                elif count:
                    request(entry, count, first=True)
                elif block != _END:
                    entry.asked = block
                if gives_up or (block == _END and not count):
                    del live[entry.number]
                    yield entry.treatment, _complete(entry, aggregator)
                    continue
                entry.at = None
                look(entry)
            account.other += charge()


def _patience(treatment: Treatment, model: LanguageModel) -> float:
    """Return how many seconds ended chains may wait for others to share a feature pass with.

    A pass of a few chains costs a GPU as much as one of many, and nobody waits for it but a controller.
    """
    waits = treatment.in_run is not None or treatment.policy.controller is not None
    return 0.0 if waits or model.device.type != "cuda" else FEATURE_PATIENCE_S


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
    found = dict(sorted(entry.trajectories.items()))
    for index in entry.unread:
        reading = read(grader, found[index].text, item, entry.source.prompt)
        found[index] = replace(
            found[index],
            answer=reading.answer,
            correct=reading.correct,
            strict_answer=reading.strict_answer,
            strict_correct=reading.strict_correct,
        )
    if entry.unread:
        classes = grader.classes([t.answer for t in found.values()], item)
        found = {i: replace(t, answer_class=c) for (i, t), c in zip(found.items(), classes, strict=True)}
    entry.trajectories, entry.unread = found, set()


def _ask_all(entries: list[_Live], seed: int) -> tuple[dict[int, float], set[int]]:
    """Ask who decides about these questions at the checkpoints that they are at, each policy about all of its own.

    Returns:
        What was said of how many trajectories are enough, and which questions are to be given up; by number.
    """
    said: dict[int, float] = {}
    given_up: set[int] = set()
    groups: dict[int, list[_Live]] = {}
    for entry in entries:
        groups.setdefault(id(entry.treatment), []).append(entry)
    for group in groups.values():
        policy, in_run = group[0].treatment.policy, group[0].treatment.in_run
        at_end = [entry for entry in group if entry.at == _END and policy.asks(entry.requested)]
        found = _ask(at_end, policy, seed)
        for entry in at_end:
            entry.decisions.append(Decision(entry.requested, found[entry.number]))
        said |= found
        inside = [entry for entry in group if entry.at != _END]
        if in_run is not None and inside:
            given_up |= _ask_give_up(inside, in_run)
            said |= _ask_escalation([entry for entry in inside if entry.number not in given_up], in_run)
    return said, given_up


def _ask(entries: list[_Live], policy: Policy, seed: int) -> dict[int, float]:
    """Ask the policy's controller or rule about these questions at once; p_enough of each, by its number."""
    if not entries:
        return {}
    if policy.rule is not None:
        return _ask_rule(entries, policy.rule, seed)
    if policy.controller is None:
        raise ValueError("a policy that asks needs a controller or a rule")
    return _ask_controller(entries, policy.controller)


def _ask_controller(entries: list[_Live], controller: Controller) -> dict[int, float]:
    """Ask a controller about questions at the checkpoints that they are at; what it says of each, by its number."""
    features = [
        features_for(controller, entry.seen(), len(entry.source.tokens), entry.source.embedding) for entry in entries
    ]
    numbers = [entry.number for entry in entries]
    return dict(zip(numbers, map(float, controller.predict_enough(features)), strict=True))


def _ask_give_up(entries: list[_Live], in_run: InRun) -> set[int]:
    """Ask about questions at the ends of blocks whether they are solvable; return the numbers of those to give up."""
    given_up = set()
    for block, controller in in_run.give_up.items():
        there = [entry for entry in entries if entry.at == block]
        said = _ask_controller(there, controller)
        for entry in there:
            p_solvable = said[entry.number]
            entry.decisions.append(Decision(entry.requested, p_solvable, block, "solvable"))
            if in_run.gives_up(block, p_solvable):
                given_up.add(entry.number)
    return given_up


def _ask_escalation(entries: list[_Live], in_run: InRun) -> dict[int, float]:
    """Ask about questions at the ends of blocks whether k is enough; p_enough by number, of those asked about."""
    found: dict[int, float] = {}
    for block, controller in in_run.escalation.items():
        there = [entry for entry in entries if entry.at == block]
        said = _ask_controller(there, controller)
        for entry in there:
            entry.decisions.append(Decision(entry.requested, said[entry.number], block))
        found |= said
    return found


def features_for(
    controller: Controller,
    trajectories: Sequence[Trajectory | records.Snapshot],
    num_prompt_tokens: int,
    embedding: np.ndarray,
) -> CheckpointFeatures:
    """Return the features of a question as this controller wants them."""
    return checkpoint_features(
        trajectories,
        num_prompt_tokens=num_prompt_tokens,
        embedding=embedding,
        calibration=controller.calibration,
        pooling=controller.pooling,
    )


def _ask_rule(entries: list[_Live], rule: Rule, seed: int) -> dict[int, float]:
    """Ask a rule, about all questions with the same number of trajectories at once."""
    found: dict[int, float] = {}
    for k in sorted({entry.requested for entry in entries}):
        group = [entry for entry in entries if entry.requested == k]
        keys = [question_key(seed, entry.source.question_id) for entry in group]
        seen = seen_of([entry.seen() for entry in group], keys)
        found |= dict(zip([entry.number for entry in group], rule.enough(seen).tolist(), strict=True))
    return found


def _unfinished(entry: _Live) -> list[Chain | Snapshot]:
    """Return the chains and snapshots of a question at a checkpoint whose features have to be computed.

    The store gets every snapshot where nobody is asked inside the run; otherwise only what a controller is to see.
    """
    store_all = entry.treatment.in_run is None
    wanted = [
        snapshot
        for (index, block), snapshot in entry.passed.items()
        if (block == entry.at or (store_all and entry.at == _END))
        and index < entry.requested
        and (index, block) not in entry.kept
    ]
    return [*entry.ended.values(), *wanted]


def _absorb_all(
    work: list[tuple[_Live, Chain | Snapshot]],
    means: Iterable[np.ndarray] | None,
    feature_s: float,
    model: LanguageModel,
    engine: Engine,
) -> None:
    """Absorb chains and snapshots, see :func:`_absorb`; ``means`` are their blocks' hidden states, if they have any."""
    for (entry, found), hidden in zip(work, [None] * len(work) if means is None else means, strict=True):
        _absorb(entry, found, hidden, feature_s, model, engine)


def _absorb(
    entry: _Live,
    found: Chain | Snapshot,
    hidden: np.ndarray | None,
    feature_s: float,
    model: LanguageModel,
    engine: Engine,
) -> None:
    """Turn an ended chain into a trajectory, whose answer is read later, or a snapshot into what is stored of it."""
    index = found.request.key[1]
    entry.feature_s[index] = entry.feature_s.get(index, 0.0) + (feature_s if hidden is not None else 0.0)
    if isinstance(found, Snapshot):
        entry.kept[index, found.block] = records.Snapshot(
            block=found.block,
            num_generated_tokens=found.num_generated_tokens,
            mh_proposed=found.mh_proposed,
            mh_accepted=found.mh_accepted,
            **_blocks(found, hidden, engine),
        )
        return
    del entry.ended[index]
    entry.unread.add(index)
    entry.trajectories[index] = _trajectory(entry, found, found.ending, _blocks(found, hidden, engine), model, engine)


_BLOCKS = ("block_num_tokens", "block_logprob", "block_entropy", "block_top1", "hidden")
"""What is stored of each block of a response."""


def _blocks(found: Finished, hidden: np.ndarray | None, engine: Engine) -> dict[str, np.ndarray]:
    """Return :data:`_BLOCKS` of a response."""
    sizes = block_sizes(len(found.tokens), engine.config.block_size)
    starts = np.cumsum(sizes) - sizes
    return {
        "block_num_tokens": sizes,
        "block_logprob": np.add.reduceat(found.base_logprobs, starts),
        "block_entropy": np.add.reduceat(found.entropies, starts),
        "block_top1": np.add.reduceat(found.top_probabilities, starts),
        "hidden": np.zeros((len(sizes), 0), np.float32) if hidden is None else hidden,
    }


def _trajectory(
    entry: _Live,
    found: Chain | Snapshot,
    ending: str,
    blocks: dict[str, np.ndarray],
    model: LanguageModel,
    engine: Engine,
) -> Trajectory:
    """Return the record of a chain without its answer.

    Args:
        entry: Its question.
        found: The response and the steps to it; what was spent on the chain is the entry's.
        ending: How it ended.
        blocks: See :func:`_blocks`.
        model: The model.
        engine: The engine.
    """
    index = found.request.key[1]
    cost = entry.costs[index]
    return Trajectory(
        index=index,
        tokens=found.tokens,
        text=before_stop(model.decode(found.tokens.tolist()), engine.stop_strings),
        answer=None,
        answer_class=-1,
        correct=None,
        ending=ending,
        base_logprob=float(found.base_logprobs.sum()),
        proposal_logprob=float(found.proposal_logprobs.sum()),
        num_generated_tokens=found.num_generated_tokens,
        mh_proposed=found.mh_proposed,
        mh_accepted=found.mh_accepted,
        compute_s=cost.decode_s,
        started_s=cost.admitted - entry.admitted,
        finished_s=cost.finished - entry.admitted,
        **blocks,
        steps=found.steps,
        token_logprob=found.base_logprobs.astype(np.float32),
        token_entropy=found.entropies.astype(np.float32),
        token_top1=found.top_probabilities.astype(np.float32),
    )


def _give_up(entry: _Live, model: LanguageModel, engine: Engine, grader: Grader) -> None:
    """Stop a question's chains; those that had not ended by the checkpoint's block are recorded as they were there.

    Where one has ended since, it is recorded so, too, and its tokens are those until the block: what becomes of a
    question, and what it is said to cost, must not depend on when the host looked. What a chain ran beyond the block
    before it was stopped is in its seconds and in the engine's counts.
    """
    block = entry.at
    for cancelled in engine.cancel({(entry.number, index) for index in range(entry.requested)}):
        entry.charge(cancelled.request.key[1], cancelled)
    for (index, of), kept in entry.kept.items():
        if of != block:
            continue
        found = entry.passed[index, block]
        if index not in entry.costs:  # it waits to start again, after the device ran out of memory
            now = time.perf_counter()
            entry.charge(index, Cancelled(found.request, found.num_generated_tokens, 0.0, 0.0, now, now))
        blocks = {name: getattr(kept, name) for name in _BLOCKS}
        entry.trajectories[index] = _trajectory(entry, found, "gave_up", blocks, model, engine)
        entry.unread.add(index)
    _read(entry, grader)


def _complete(entry: _Live, aggregator: str) -> Question:
    """Return the finished record of a question."""
    trajectories = [
        replace(
            entry.trajectories[index],
            compute_s=entry.trajectories[index].compute_s + entry.feature_s.get(index, 0.0),
            snapshots=tuple(kept for (of, _), kept in sorted(entry.kept.items()) if of == index),
        )
        for index in range(entry.requested)
    ]
    answer, correct = answer_of(trajectories, aggregator)
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
        trajectories=tuple(trajectories),
    )
