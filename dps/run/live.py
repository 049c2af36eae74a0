"""A question that is being sampled: its chains, what was read of them, and how far each of its policies is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np

from dps.benchmarks.benchmark import Item
from dps.benchmarks.grading import Answers, Reading, number_classes
from dps.decide import Policy
from dps.decide.aggregate import answer_of
from dps.sampler.engine import Cancelled, Chain
from dps.sampler.teacher import block_sizes
from feature_store.records import Decision, Question, Trajectory

Read = Callable[[Sequence[tuple[str, str]], Item, Answers], list[Reading]]
"""Reads responses, each a text and its prompt; their answers are among the known ones afterwards, with keys."""


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
    """Length of each trajectory, whatever the model says: for measuring speed with random weights."""

    @property
    def question_id(self) -> str:
        """The question's id."""
        return self.item.question_id


@dataclass(frozen=True, slots=True, eq=False)
class PolicyRun:
    """A policy that runs over questions, and what is read of their trajectories for it."""

    policy: Policy
    """How many trajectories there are."""
    feature_layer: int | None = None
    """Layer of the hidden states. None reads none; a policy whose controller looks at them needs them."""
    embeds: bool = True
    """Whether it gets the question's embedding, where there is one."""
    arm: int = 0
    """Number of the engine's settings that its trajectories are sampled by, one for all that share them."""


@dataclass(slots=True, eq=False)
class LiveQuestion:
    """A question that is being worked on. Dictionaries are by index of the trajectory, where nothing else is said."""

    number: int
    """Names the question's chains: a question may come several times, for policies that share nothing."""
    source: PreparedQuestion
    num_requested: int = 0
    """Trajectories that some policy has asked for, the first ones."""
    policies: list[QuestionPolicy] = field(default_factory=list)
    """The policies whose answer does not stand yet."""
    chains: dict[int, Chain] = field(default_factory=dict)
    """The chains that have ended."""
    given_up: list[Chain | Cancelled] = field(default_factory=list)
    """What was begun before a policy asked for it, and then not needed or in the way."""
    trajectories: dict[int, Trajectory] = field(default_factory=dict)
    """The same as records, without what depends on reader, layer or policy."""
    readings: dict[int, Reading] = field(default_factory=dict)
    answers: Answers = field(default_factory=Answers)
    classes: dict[int, list[int]] = field(default_factory=dict)
    """By k: the classes of the first k answers."""
    hidden: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    """By layer and index: hidden states of each block, shape (b, D)."""
    feature_s: dict[tuple[int, int], float] = field(default_factory=dict)
    """By layer and index: measured seconds of reading them."""
    _reading: threading.Lock = field(default_factory=threading.Lock)

    @property
    def later(self) -> dict[int, int]:
        """By index: what nobody has asked for yet and a policy may, and after how many rungs at the earliest."""
        found: dict[int, int] = {}
        for policy in self.policies:
            k, wanted = policy.requested, policy.run.policy
            if not policy.stands and wanted.asks(k):
                for rungs, end in enumerate((end for end in wanted.ladder.ks if end > k), start=1):
                    for index in range(max(k, self.num_requested), end):
                        found[index] = min(rungs, found.get(index, rungs))
        return found

    def add(self, chain: Chain, text: str, block_size: int) -> None:
        """Take in a chain that has ended, with the text of its response."""
        index = chain.request.key[1]
        self.chains[index] = chain
        self.trajectories[index] = _trajectory_of(chain, text, block_size)

    def read(self, ks: Set[int], read: Read) -> None:
        """Have the first k trajectories read for each k and class their answers, each once; from any thread."""
        with self._reading:
            new = [index for index in range(max(ks)) if index not in self.readings]
            responses = [(self.trajectories[index].text, self.source.prompt) for index in new]
            if new:
                self.readings |= zip(new, read(responses, self.source.item, self.answers), strict=True)
            keys = [self.answers.keys[self.readings[index].answer] for index in range(max(ks))]
            self.classes |= {k: number_classes(keys[:k]) for k in ks}


@dataclass(slots=True, eq=False)
class QuestionPolicy:
    """How far a policy is with a question."""

    question: LiveQuestion
    run: PolicyRun
    requested: int = 0
    """Trajectories that this policy has asked for: the first of the question's."""
    at_checkpoint: bool = False
    """Whether all of them have ended, and the policy's decision is being prepared."""
    stands: bool = False
    """Whether the policy asks for no more."""
    controller_s: float = 0.0
    decisions: list[Decision] = field(default_factory=list)

    @property
    def all_ended(self) -> bool:
        """Whether all trajectories that the policy has asked for have ended."""
        return all(index in self.question.chains for index in range(self.requested))

    @property
    def lacking(self) -> list[int]:
        """Indices of the trajectories whose hidden states the policy needs and nobody has read."""
        layer, hidden = self.run.feature_layer, self.question.hidden
        return [index for index in range(self.requested) if layer is not None and (layer, index) not in hidden]

    @property
    def embedding(self) -> np.ndarray:
        """The question's embedding, shape (E,); E is 0 where the policy has none."""
        return self.question.source.embedding if self.run.embeds else np.zeros(0, np.float32)

    @property
    def _admitted(self) -> float:
        """When the first of the policy's chains got a row."""
        return min(self.question.chains[index].admitted for index in range(self.requested))

    def trajectories(self) -> tuple[Trajectory, ...]:
        """Return the policy's trajectories, all read, as they would be if no other policy had shared them."""
        question, layer, admitted = self.question, self.run.feature_layer, self._admitted
        records = []
        for index, answer_class in enumerate(question.classes[self.requested]):
            chain, reading = question.chains[index], question.readings[index]
            record = replace(
                question.trajectories[index],
                answer=reading.answer,
                answer_class=answer_class,
                correct=reading.correct,
                strict_answer=reading.strict_answer,
                strict_correct=reading.strict_correct,
                compute_s=chain.decode_s + question.feature_s.get((layer, index), 0.0),
                started_s=chain.admitted - admitted,
                finished_s=chain.finished - admitted,
            )
            records.append(record if layer is None else replace(record, hidden=question.hidden[layer, index]))
        return tuple(records)

    def complete(self, aggregator: str) -> Question:
        """Return the finished record.

        Each policy is charged in full for what it shared with others; one that asks at checkpoints also for all that
        was begun early and given up until now.
        """
        source, trajectories = self.question.source, self.trajectories()
        answer, correct = answer_of(trajectories, aggregator)
        embedding_s = source.embedding_s if self.run.embeds else 0.0
        given_up = self.question.given_up if self.run.policy.asks(self.run.policy.start) else []
        used = [self.question.chains[t.index] for t in trajectories]
        return Question(
            question_id=source.item.question_id,
            question=source.item.question,
            prompt=source.prompt,
            gold=source.item.gold,
            metadata=source.item.metadata,
            num_prompt_tokens=len(source.tokens),
            embedding=self.embedding,
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


def _trajectory_of(chain: Chain, text: str, block_size: int) -> Trajectory:
    """Return the record of a chain that nobody has read."""
    sizes = block_sizes(len(chain.tokens), block_size)
    starts = np.cumsum(sizes) - sizes
    return Trajectory(
        index=chain.request.key[1],
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
