"""A question that is being sampled: its chains, what was read of them, and how far each of its policies is."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np

from dps.benchmarks.benchmark import Item
from dps.benchmarks.grading import Answers, Grader, Reading, number_classes
from dps.decide import Policy
from dps.decide.aggregate import answer_of
from dps.decide.ladder import POWER, Key
from dps.sampler.engine import Cancelled, Chain
from dps.sampler.settings import SamplerConfig
from dps.sampler.teacher import block_sizes
from feature_store.records import Decision, Question, Trajectory, not_recorded

Read = Callable[[Sequence[tuple[str, str]], Item, Answers], list[Reading]]
"""Reads responses, each a text and its prompt; their answers are among the known ones afterwards, with keys."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A moment when all trajectories of a question that a policy has requested have ended."""

    question_id: str
    """The question."""
    trajectories: tuple[Trajectory, ...]
    """The policy's trajectories so far, in the order of its ladder."""
    p_enough: float | None
    """What the policy's controller or rule said; None where it was not asked."""
    more: int
    """How many trajectories are added now; 0 ends the question."""


@dataclass(frozen=True, slots=True, eq=False)
class Own:
    """What a question has of its own; where not set, it has what all questions of the run have."""

    seed: int | None = None
    """Names its random streams."""
    name: str | None = None
    """Names them beside the seed, instead of its id."""
    grader: Grader | None = None
    """Reads its responses."""
    max_new_tokens: int | None = None
    """T_max, where it is less than the engine's."""
    stop_strings: tuple[str, ...] | None = None
    """What ends its responses."""
    stop_state: int = 0
    """Where these begin in the engine's table."""
    wanted: Callable[[], bool] = lambda: True
    """Asked every few steps; False gives the question up."""
    on_checkpoint: Callable[[Checkpoint], None] | None = None
    """Called at each of its checkpoints."""
    on_ended: Callable[[int, int], None] | None = None
    """Called when trajectories have ended: how many of those that were asked for, and how many these are."""


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
    """Measured seconds of the embedding."""
    forced_lengths: tuple[int, ...] | None = None
    """Length of each trajectory of an arm, whatever the model says: for measuring speed with random weights."""
    prompt_hidden: np.ndarray = field(default_factory=not_recorded)
    """Hidden states of the prompt, shape (L * 2 * D,) of L layers; (0,) where none are needed."""
    prompt_s: float = 0.0
    """Measured seconds of reading them."""
    own: Own = Own()
    """What it has of its own."""

    @property
    def question_id(self) -> str:
        """The question's id."""
        return self.item.question_id


@dataclass(frozen=True, slots=True, eq=False)
class PolicyRun:
    """A policy that runs over questions, and what is read of their trajectories for it."""

    policy: Policy
    """Which trajectories there are."""
    feature_layer: int | None = None
    """Layer of the hidden states. None reads none; a policy whose controller looks at them needs them."""
    embeds: bool = True
    """Whether it gets the question's embedding, where there is one."""
    arms: Mapping[str, int | SamplerConfig] = field(default_factory=lambda: {POWER: 0})
    """What the trajectories of each arm are sampled by, see :attr:`ChainRequest.arm`."""
    reads_prompt: bool = True
    """Whether it gets the hidden states of the prompt, where there are some."""
    aggregator: str | None = None
    """How its answers become one; as with all policies of the run if None."""
    feature_arms: tuple[str, ...] = ()
    """Arms whose hidden states are read; all if none is named."""


@dataclass(slots=True, eq=False)
class LiveQuestion:
    """A question that is being worked on. Dictionaries are by arm and index of the trajectory."""

    number: int
    """Names the question's chains: a question may come several times, for policies that share nothing."""
    source: PreparedQuestion
    requested: set[Key] = field(default_factory=set)
    """Trajectories that some policy has asked for."""
    arms: Mapping[str, int | SamplerConfig] = field(default_factory=dict)
    """What each arm is sampled by."""
    policies: list[QuestionPolicy] = field(default_factory=list)
    """The policies whose answer does not stand yet."""
    chains: dict[Key, Chain] = field(default_factory=dict)
    """The chains that have ended."""
    given_up: list[Chain | Cancelled] = field(default_factory=list)
    """What was begun before a policy asked for it, and then not needed or in the way."""
    trajectories: dict[Key, Trajectory] = field(default_factory=dict)
    """The same as records, without what depends on reader, layer or policy."""
    readings: dict[Key, Reading] = field(default_factory=dict)
    answers: Answers = field(default_factory=Answers)
    classes: dict[tuple[Key, ...], list[int]] = field(default_factory=dict)
    """Of the answers of several trajectories, in that order."""
    hidden: dict[tuple[int, Key], np.ndarray] = field(default_factory=dict)
    """By layer and trajectory: hidden states of each block, shape (b, D)."""
    feature_s: dict[tuple[int, Key], float] = field(default_factory=dict)
    """By layer and trajectory: measured seconds of reading them; those that came with the chain have none."""
    _reading: threading.Lock = field(default_factory=threading.Lock)

    @property
    def later(self) -> dict[Key, int]:
        """What nobody has asked for yet and a policy may, and after how many rungs at the earliest."""
        found: dict[Key, int] = {}
        for policy in self.policies:
            k, wanted = policy.requested, policy.run.policy
            if not policy.stands and wanted.asks(k):
                for rungs, end in enumerate([end for end in wanted.ladder.ks if end > k], start=1):
                    for key in policy.sequence[k:end]:
                        if key not in self.requested:
                            found[key] = min(rungs, found.get(key, rungs))
                    k = end
        return found

    def named(self, seed: int) -> tuple[int, str]:
        """Return what names its streams: ``seed``, the run's, or its own, and its id or a name of its own."""
        own = self.source.own
        return seed if own.seed is None else own.seed, own.name or self.source.question_id

    def add(self, chain: Chain, text: str, block_size: int, layer: int | None) -> None:
        """Take in a chain that has ended, with the text of its response; its hidden states are of that layer."""
        key = chain.request.key[1]
        self.chains[key] = chain
        self.trajectories[key] = _trajectory_of(chain, key, text, block_size)
        if chain.hidden is not None:
            self.hidden[layer, key] = chain.hidden

    def read(self, groups: Set[tuple[Key, ...]], read: Read) -> None:
        """Have trajectories read, each once, and class the answers of each group in its order; from any thread."""
        with self._reading:
            new = [key for key in dict.fromkeys(itertools.chain(*groups)) if key not in self.readings]
            responses = [(self.trajectories[key].text, self.source.prompt) for key in new]
            if new:
                self.readings |= zip(new, read(responses, self.source.item, self.answers), strict=True)
            for keys in groups:
                self.classes[keys] = number_classes([self.answers.keys[self.readings[key].answer] for key in keys])


@dataclass(slots=True, eq=False)
class QuestionPolicy:
    """How far a policy is with a question."""

    question: LiveQuestion
    run: PolicyRun
    requested: int = 0
    """Trajectories that this policy has asked for: the first of its ladder's."""
    at_checkpoint: bool = False
    """Whether all of them have ended, and the policy's decision is being prepared."""
    stands: bool = False
    """Whether the policy asks for no more."""
    controller_s: float = 0.0
    decisions: list[Decision] = field(default_factory=list)
    sequence: tuple[Key, ...] = ()
    """All trajectories of its ladder, in order."""

    def __post_init__(self) -> None:
        """Spell the ladder out."""
        self.sequence = self.run.policy.ladder.sequence()

    @property
    def keys(self) -> tuple[Key, ...]:
        """The trajectories that the policy has asked for."""
        return self.sequence[: self.requested]

    @property
    def all_ended(self) -> bool:
        """Whether all trajectories that the policy has asked for have ended."""
        return all(key in self.question.chains for key in self.keys)

    @property
    def lacking(self) -> list[Key]:
        """The trajectories whose hidden states the policy needs and nobody has read."""
        layer, hidden = self.run.feature_layer, self.question.hidden
        return [key for key in self.keys if self._looks_at(key) and (layer, key) not in hidden]

    def _looks_at(self, key: Key) -> bool:
        """Return whether the policy wants a trajectory's hidden states; others may be kept, too."""
        arms = self.run.feature_arms
        return self.run.feature_layer is not None and (not arms or key[0] in arms)

    @property
    def embedding(self) -> np.ndarray:
        """The question's embedding, shape (E,); E is 0 where the policy has none."""
        return self.question.source.embedding if self.run.embeds else np.zeros(0, np.float32)

    @property
    def prompt_hidden(self) -> np.ndarray:
        """Hidden states of the prompt, shape (L * 2 * D,); (0,) where the policy has none."""
        return self.question.source.prompt_hidden if self.run.reads_prompt else not_recorded()

    @property
    def _admitted(self) -> float:
        """When the first of the policy's chains got a row."""
        return min(self.question.chains[key].admitted for key in self.keys)

    def trajectories(self) -> tuple[Trajectory, ...]:
        """Return the policy's trajectories, all read, as they would be if no other policy had shared them."""
        question, layer, admitted = self.question, self.run.feature_layer, self._admitted
        records = []
        for key, answer_class in zip(self.keys, question.classes[self.keys], strict=True):
            chain, reading = question.chains[key], question.readings[key]
            record = replace(
                question.trajectories[key],
                answer=reading.answer,
                answer_class=answer_class,
                correct=reading.correct,
                strict_answer=reading.strict_answer,
                strict_correct=reading.strict_correct,
                compute_s=chain.decode_s + question.feature_s.get((layer, key), 0.0),
                started_s=chain.admitted - admitted,
                finished_s=chain.finished - admitted,
            )
            looked_at = self._looks_at(key)
            records.append(replace(record, hidden=question.hidden[layer, key]) if looked_at else record)
        return tuple(records)

    def complete(self, aggregator: str) -> Question:
        """Return the finished record; the run's ``aggregator`` chooses the answer where the policy has none.

        Each policy is charged in full for what it shared with others; one that asks at checkpoints also for all of its
        arms that was begun early and given up until now.
        """
        source, trajectories = self.question.source, self.trajectories()
        answer, correct = answer_of(trajectories, self.run.aggregator or aggregator)
        embedding_s = source.embedding_s * self.run.embeds + source.prompt_s * self.run.reads_prompt
        asks, arms = self.run.policy.asks(self.run.policy.start), self.run.policy.ladder.arms
        given_up = [chain for chain in self.question.given_up if asks and chain.request.key[1][0] in arms]
        used = [self.question.chains[key] for key in self.keys]
        return Question(
            question_id=source.item.question_id,
            question=source.item.question,
            prompt=source.prompt,
            gold=source.item.gold,
            metadata=source.item.metadata,
            num_prompt_tokens=len(source.tokens),
            embedding=self.embedding,
            prompt_hidden=self.prompt_hidden,
            prefill_s=sum(chain.prefill_s for chain in [*used, *given_up]),
            embedding_s=embedding_s,
            controller_s=self.controller_s,
            latency_s=time.perf_counter() - self._admitted + embedding_s,
            answer=answer,
            correct=correct,
            decisions=tuple(self.decisions),
            trajectories=trajectories,
            num_cancelled_tokens=sum(chain.num_generated_tokens for chain in given_up),
            cancelled_s=sum(chain.decode_s for chain in given_up),
        )


def _trajectory_of(chain: Chain, key: Key, text: str, block_size: int) -> Trajectory:
    """Return the record of a chain that nobody has read."""
    sizes = block_sizes(len(chain.tokens), block_size)
    starts = np.cumsum(sizes) - sizes
    return Trajectory(
        arm=key[0],
        index=key[1],
        tokens=chain.tokens,
        text=text,
        answer=None,
        answer_class=-1,
        correct=None,
        ending=chain.ending,
        base_logprob=float(chain.base_logprobs.sum()),
        proposal_logprob=float(chain.proposal_logprobs.sum()),
        num_generated_tokens=chain.num_generated_tokens,
        mh_proposed=chain.mh_proposed,
        mh_accepted=chain.mh_accepted,
        mh_rejected_early=chain.mh_rejected_early,
        num_saved_tokens=chain.num_saved_tokens,
        compute_s=chain.decode_s,
        started_s=0.0,
        finished_s=chain.finished - chain.admitted,
        block_num_tokens=sizes,
        block_logprob=np.add.reduceat(chain.base_logprobs, starts),
        block_entropy=np.add.reduceat(chain.entropies, starts),
        block_top1=np.add.reduceat(chain.top_probabilities, starts),
        hidden=np.zeros((len(sizes), 0), np.float32),
        steps=chain.steps,
        token_logprob=chain.base_logprobs.astype(np.float32),
        token_entropy=chain.entropies.astype(np.float32),
        token_top1=chain.top_probabilities.astype(np.float32),
    )
