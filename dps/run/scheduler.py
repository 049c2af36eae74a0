"""Runs policies live on a model, many questions at once.

``engine`` samples chains; this module decides which chains there are. It admits questions while there are rows, asks
a policy about a question as soon as all trajectories that this policy requested have ended, adds trajectories ahead of
new questions, and yields a question as soon as a policy's answer stands. Policies that come with a question together
share its trajectories: what several of them request is sampled, read and graded once. Rows that would idle may begin
*early* what a policy has not requested and may; what is not needed then is given up, and so is what is in the way of
anything requested. Harvests, evaluations and :func:`dps.answer` all go through it.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from dps.benchmarks.grading import Grader
from dps.decide import Policy
from dps.decide.features import checkpoint_features
from dps.decide.ladder import Key
from dps.decide.seen import question_key, seen_of
from dps.model import LanguageModel
from dps.run.live import Checkpoint, LiveQuestion, PolicyRun, PreparedQuestion, QuestionPolicy
from dps.run.readers import Readers
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.stop import before_stop
from dps.sampler.streams import stream_key
from dps.sampler.teacher import block_hidden
from feature_store.records import Decision, Question

COUNTED = (
    "decode_s", "prefill_s", "num_steps", "num_row_steps", "num_generated_tokens", "num_read_positions",
    "num_spare_tokens",
)  # fmt: skip
"""What an engine counts of its work."""
SHARES = ("decode", "prefill", "features", "controller", "embedding", "grading", "other")
"""What an account tells apart."""

_Chain = tuple[int, Key]
"""Names a chain: number of its question, and arm and index of the trajectory."""


@dataclass(slots=True)
class Account:
    """Where a run's wall-clock time went, seconds. Every moment is counted once, also where policies share."""

    decode: float = 0.0
    """Decoding, shared among the chains."""
    prefill: float = 0.0
    """Prefills, charged to the question."""
    features: float = 0.0
    """Teacher-forced passes over trajectories whose hidden states were not kept while decoding, and over prompts."""
    controller: float = 0.0
    """Calls of controllers and rules, shared among the questions asked about."""
    embedding: float = 0.0
    """Embeddings of the questions."""
    grading: float = 0.0
    """Reading and grading that sampling stood still for, charged to nobody."""
    other: float = 0.0
    """Idle time and bookkeeping, charged to nobody."""
    counts: Counter[str] = field(default_factory=Counter)
    """What engines counted of the run's work, by the names of :data:`COUNTED`."""
    while_waiting: Counter[str] = field(default_factory=Counter)
    """The same up to the last moment when a chain waited for a row, and the ``seconds`` until then; the rest is the
    tail, when rows idle one after the other."""

    @property
    def total(self) -> float:
        """The whole."""
        return sum(getattr(self, name) for name in SHARES)

    def numbers(self) -> dict[str, float]:
        """Return everything by name, such that the sum over workers is that of the run."""
        seconds = {f"{name}_s": getattr(self, name) for name in SHARES}
        return {**seconds, **self.counts, **{f"waiting_{name}": value for name, value in self.while_waiting.items()}}


@dataclass(frozen=True, slots=True, eq=False)
class Completed:
    """A question whose answer stands under a policy."""

    run: PolicyRun
    """The policy."""
    source: PreparedQuestion
    """What was given to be sampled."""
    question: Question
    """The complete record."""
    last: bool
    """Whether all policies that came with the question have their answers now."""
    behind: int
    """Questions whose responses wait to be read."""


def run_policies(
    model: LanguageModel,
    engine: Engine,
    questions: Iterable[tuple[Sequence[PolicyRun], PreparedQuestion] | None],
    *,
    grader: Grader,
    seed: int,
    aggregator: str = "majority",
    account: Account | None = None,
    at_a_time: int | None = None,
    workers: int = 1,
    eager: bool = False,
    stopping: Callable[[], bool] = lambda: False,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
) -> Iterator[Completed]:
    """Sample questions, each under the policies that come with it, and yield it for each when its answer stands.

    Args:
        model: The language model.
        engine: An idle engine of that model.
        questions: What to sample and for whom; drawn from as rows come free, and embedded as they are drawn. The
            policies that come with a question share its trajectories; a question that comes again is sampled again.
            None says that there is none for now; who says so waits himself where nothing is being sampled.
        grader: Reads the responses.
        seed: The run's seed; with question id and trajectory index it names each random stream.
        aggregator: How k answers become one.
        account: Filled with where the time went, if given.
        at_a_time: Questions that are worked on at a time; None takes as many as keep the rows busy.
        workers: Workers that share the cores of this machine, and so the processes that read responses.
        eager: Whether rows that would idle begin trajectories that a policy may request. The records are the same but
            for times and what was cancelled.
        stopping: Asked every few steps; True ends the run, leaving what is not complete.
        on_checkpoint: Called at every checkpoint, if given, before what the question has of its own.

    Yields:
        Complete questions in the order of completion.

    Source:
        METHOD sections 2 to 5.
    """
    scheduler = _Scheduler(model, engine, iter(questions), seed, aggregator, account or Account(), on_checkpoint)
    with Readers(grader, workers=workers) as readers:
        while not scheduler.finished and not stopping():
            scheduler.drop_unwanted()
            if readers.has_room(engine.rows):
                scheduler.admit(at_a_time)
            scheduler.begin_early(eager)
            scheduler.decode()
            readers.submit(scheduler.with_features())
            yield from scheduler.decide(readers.done(wait=engine.idle), readers.behind)


class _Scheduler:
    """The questions that are being worked on; each method is a stage of the loop."""

    def __init__(
        self,
        model: LanguageModel,
        engine: Engine,
        waiting: Iterator[tuple[Sequence[PolicyRun], PreparedQuestion] | None],
        seed: int,
        aggregator: str,
        account: Account,
        on_checkpoint: Callable[[Checkpoint], None] | None,
    ) -> None:
        self._model = model
        self._engine = engine
        self._waiting = waiting
        self._seed = seed
        self._aggregator = aggregator
        self._account = account
        self._on_checkpoint = on_checkpoint
        self._numbers = itertools.count()
        self._live: dict[int, LiveQuestion] = {}
        self._early: set[_Chain] = set()
        """Chains in the engine that no policy has requested."""
        self._exhausted = False
        self._ahead = engine.rows // 4
        """Chains that wait for a row: more than can come free before the next look, so that no row goes without."""
        self._reached: list[QuestionPolicy] = []
        """Policies at a checkpoint of which nothing was computed yet."""
        self._again = False
        """Whether a policy's next trajectories had ended before it requested them."""
        self._mark = time.perf_counter()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self._exhausted and not self._live

    def admit(self, at_a_time: int | None) -> None:
        """Take questions while there are rows for them."""
        engine = self._engine
        while (
            not self._exhausted
            and self._num_requested < engine.rows + self._ahead
            and (at_a_time is None or len(self._live) < at_a_time)
        ):
            try:
                entry = next(self._waiting)
            except StopIteration:
                self._exhausted = True
                break
            if entry is None:
                break
            runs, source = entry
            self._account.embedding += source.embedding_s
            self._account.features += source.prompt_s
            self._account.other -= source.embedding_s + source.prompt_s
            question = LiveQuestion(next(self._numbers), source)
            question.policies = [QuestionPolicy(question, run) for run in runs]
            question.arms = {arm: number for run in runs for arm, number in run.arms.items()}
            self._live[question.number] = question
            for policy in question.policies:
                self._request(policy, policy.run.policy.start, first=False)
            self._ahead = max(len(question.requested), engine.rows // 4)
        self._account.other += self._lap()

    def drop_unwanted(self) -> None:
        """Give up the questions that nobody waits for any more; nothing of them is yielded."""
        for number in [question.number for question in self._live.values() if not question.source.own.wanted()]:
            question = self._live[number]
            chains = {(number, key) for key in (*question.requested, *question.later)} - {*question.chains}
            self._cancel(chains)
            del self._live[number]
            self._reached = [policy for policy in self._reached if policy.question is not question]

    def begin_early(self, eager: bool) -> None:
        """Give idle rows what may be requested next, the nearest rungs first; take back rows that are needed."""
        engine = self._engine
        idle = engine.rows - engine.num_running - engine.num_pending
        if not eager or not idle or (idle < 0 and not self._early):
            return
        rungs = {(q.number, key): rung for q in self._live.values() for key, rung in q.later.items()}
        if idle < 0:
            self._cancel(heapq.nlargest(-idle, self._early, lambda chain: (rungs[chain], *chain)))
        else:
            coming = (chain for chain in rungs.keys() - self._early if chain[1] not in self._live[chain[0]].chains)
            for number, key in heapq.nsmallest(idle, coming, lambda chain: (rungs[chain], *chain)):
                self._submit(self._live[number], key, first=False)
                self._early.add((number, key))

    def decode(self) -> None:
        """Let the engine work, and note which policies have come to a checkpoint."""
        engine, account = self._engine, self._account
        before = {name: getattr(engine, name) for name in COUNTED}
        # A decision that is being prepared may end its question, and then what was begun early is decoded for nobody.
        deciding = self._early and any(p.at_checkpoint for q in self._live.values() for p in q.policies)
        chains = [] if self._again else engine.poll(1) if deciding else engine.poll()
        made = {name: getattr(engine, name) - before[name] for name in COUNTED}
        account.decode += made["decode_s"]
        account.prefill += made["prefill_s"]
        account.other += self._lap() - made["decode_s"] - made["prefill_s"]
        account.counts.update(made)
        if engine.num_pending:
            account.while_waiting = Counter(account.counts, seconds=account.total)
        questions = {}
        for chain in chains:
            self._early.discard(chain.request.key)
            question = questions[chain.request.key[0]] = self._live[chain.request.key[0]]
            own = question.source.own.stop_strings
            text = self._model.decode(chain.tokens.tolist())
            text = before_stop(text, engine.stop_strings if own is None else own)
            question.add(chain, text, engine.config.block_size, engine.kept_layer)
        for question in questions.values():
            if question.source.own.on_ended is not None:
                ended = sum(key in question.chains for key in question.requested)
                question.source.own.on_ended(ended, len(question.requested))
            for policy in question.policies:
                self._note_checkpoint(policy)

    def with_features(self) -> list[QuestionPolicy]:
        """Return the policies at a checkpoint, after computing the features that they lack.

        Lacking are those of a layer whose states the engine does not keep while it decodes.
        """
        reached, self._reached = self._reached, []
        lacking = [policy for policy in reached if policy.lacking]
        self._account.other += self._lap()
        for layer in sorted({policy.run.feature_layer for policy in lacking}):
            group = [policy for policy in lacking if policy.run.feature_layer == layer]
            work = list(dict.fromkeys((policy.question, key) for policy in group for key in policy.lacking))
            pairs = [(question.source.tokens, question.chains[key].tokens.tolist()) for question, key in work]
            means = block_hidden(self._model, pairs, layer=layer, block_size=self._engine.config.block_size)
            seconds = self._lap()
            self._account.features += seconds
            for (question, key), hidden in zip(work, means, strict=True):
                question.hidden[layer, key] = hidden
                question.feature_s[layer, key] = seconds / len(work)
        return reached

    def decide(self, ready: list[QuestionPolicy], behind: int) -> Iterator[Completed]:
        """Ask the policies at a checkpoint; request more trajectories, or yield the question."""
        self._account.grading += self._lap()
        ready = [policy for policy in ready if policy.question.number in self._live]  # the others were given up
        p_enough: dict[QuestionPolicy, float] = {}
        groups: dict[PolicyRun, list[QuestionPolicy]] = {}
        for policy in ready:
            if policy.run.policy.asks(policy.requested):
                groups.setdefault(policy.run, []).append(policy)
        for run, group in groups.items():
            p_enough |= zip(group, _ask(run.policy, group, self._seed), strict=True)
            seconds = self._lap()
            self._account.controller += seconds
            for policy in group:
                policy.controller_s += seconds / len(group)
                policy.decisions.append(Decision(policy.requested, p_enough[policy]))
        standing = []
        for policy in ready:
            question, probability = policy.question, p_enough.get(policy)
            count = policy.run.policy.more(policy.requested, probability)
            told = [call for call in (self._on_checkpoint, question.source.own.on_checkpoint) if call is not None]
            if told:
                checkpoint = Checkpoint(question.source.question_id, policy.trajectories(), probability, count)
                for call in told:
                    call(checkpoint)
            if count:
                policy.at_checkpoint = False
                self._request(policy, count, first=True)
                self._note_checkpoint(policy)  # they may have been sampled already
                continue
            policy.stands = True
            standing.append(policy)
        self._again = bool(self._reached)
        for question in dict.fromkeys(policy.question for policy in standing):
            self._give_up(question)
        for policy in standing:
            question = policy.question
            question.policies.remove(policy)
            if not question.policies:
                del self._live[question.number]
            record = policy.complete(self._aggregator)
            yield Completed(policy.run, question.source, record, not question.policies, behind)
        self._account.other += self._lap()

    def _request(self, policy: QuestionPolicy, count: int, *, first: bool) -> None:
        """Give a policy more trajectories; those that no policy has requested before are sampled."""
        policy.requested += count
        question = policy.question
        new = [key for key in policy.keys if key not in question.requested]
        for key in reversed(new) if first else new:
            if (question.number, key) in self._early:
                self._early.remove((question.number, key))
            elif key not in question.chains:
                self._submit(question, key, first=first)
        question.requested.update(new)

    def _submit(self, question: LiveQuestion, key: Key, *, first: bool) -> None:
        """Have a trajectory sampled."""
        source, (arm, index), own = question.source, key, question.source.own
        stream = stream_key(*question.named(self._seed), index, arm)
        forced = source.forced_lengths[index] if source.forced_lengths is not None else None
        how = (forced, question.arms[arm], own.max_new_tokens, own.stop_state)
        self._engine.submit(ChainRequest((question.number, key), source.tokens, stream, *how), first=first)

    def _give_up(self, question: LiveQuestion) -> None:
        """Give up what was begun of a question and no policy can want any more, also what has ended."""
        later = question.later
        self._cancel([chain for chain in self._early if chain[0] == question.number and chain[1] not in later])
        ended = [key for key in question.chains if key not in question.requested and key not in later]
        question.given_up += [question.chains.pop(key) for key in ended]

    def _cancel(self, chains: Collection[_Chain]) -> None:
        """Cancel chains that were begun early; each counts for its question."""
        self._early.difference_update(chains)
        for cancelled in self._engine.cancel(chains) if chains else []:
            self._live[cancelled.request.key[0]].given_up.append(cancelled)

    @property
    def _num_requested(self) -> int:
        """Chains in the engine that a policy has requested."""
        return self._engine.num_running + self._engine.num_pending - len(self._early)

    def _note_checkpoint(self, policy: QuestionPolicy) -> None:
        """Put a policy among those at a checkpoint, if it has come to one."""
        if not policy.at_checkpoint and policy.all_ended:
            policy.at_checkpoint = True
            self._reached.append(policy)

    def _lap(self) -> float:
        """Return the seconds since the last call."""
        now = time.perf_counter()
        elapsed, self._mark = now - self._mark, now
        return elapsed


def _ask(policy: Policy, group: Sequence[QuestionPolicy], seed: int) -> list[float]:
    """Ask a policy's controller or rule about questions at once; return p_enough of each."""
    if policy.controller is not None:
        features = [
            checkpoint_features(
                each.trajectories(),
                num_prompt_tokens=len(each.question.source.tokens),
                embedding=each.embedding,
                calibration=policy.controller.calibration,
                prompt_hidden=each.prompt_hidden,
                ladder=policy.controller.ladder,
            )
            for each in group
        ]
        return [float(p) for p in policy.controller.predict_enough(features)]
    p_enough: dict[QuestionPolicy, float] = {}
    for k in sorted({each.requested for each in group}):
        alike = [each for each in group if each.requested == k]
        keys = [question_key(*each.question.named(seed)) for each in alike]
        seen = seen_of([each.trajectories() for each in alike], keys)
        p_enough |= zip(alike, policy.rule.enough(seen).tolist(), strict=True)
    return [p_enough[each] for each in group]
