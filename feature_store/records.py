"""The records that a store holds: plain values and NumPy arrays, independent of the file format.

A sampler makes :class:`Trajectory` objects, a scheduler groups them into a :class:`Question`, a store writes and reads
questions. The same records feed training, live decisions and reports, so a feature has one definition.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ENDINGS = ("eos", "stop", "length", "early")
"""How a response ended: in an EOS token, in a stop string (which counts as EOS), cut at T_max, or by an early-stop rule
(which changes the law of the output). The store keeps the number in this order."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StepTrace:
    """The Metropolis-Hastings steps of one chain in order; every field has shape (s,), s = ``mh_proposed``."""

    horizon: np.ndarray
    """Horizon of the stage that the step belongs to, tokens, int32."""
    length: np.ndarray
    """Length of the response before the step, int32."""
    cut_position: np.ndarray
    """Tokens of it that the step kept, in 0..length-1, int32."""
    accepted: np.ndarray
    """Whether the step was accepted, bool."""
    logprob: np.ndarray
    """Log p of the whole response after the step under the base model, nats, float64."""

    def __repr__(self) -> str:
        return f"StepTrace({len(self.accepted)} steps, {int(self.accepted.sum())} accepted)"


def no_steps() -> StepTrace:
    """Return the trace of a chain that took no Metropolis-Hastings steps (plain sampling)."""
    none = np.zeros(0, np.int32)
    return StepTrace(none, none, none, np.zeros(0, bool), np.zeros(0))


def not_recorded() -> np.ndarray:
    """Return the per-token values of a response of which none were recorded: shape (0,), float32."""
    return np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Trajectory:
    """One finished chain of a question: n tokens in b blocks, hidden size D (0 where there are no features)."""

    index: int
    """Which of the arm's trajectories of the question this is, from 0. With the arm it names the random stream."""
    tokens: np.ndarray
    """Accepted response, EOS included: shape (n,), int32."""
    text: str
    """The decoded response without special tokens."""
    answer: str | None
    """The extracted answer in canonical form; None where the response has none."""
    answer_class: int
    """Number of the answer's equivalence class within its question, in order of trajectory index; -1 for no answer."""
    correct: bool | None
    """Whether the answer is right; None where the question has no gold answer or could not be graded."""
    base_logprob: float
    """Sum of log p(x_t) under the base model over the accepted response, nats, float64."""
    proposal_logprob: float
    """The same sum under the proposal, nats, float64."""
    num_generated_tokens: int
    """Tokens that were sampled for this trajectory, rejected ones included."""
    mh_proposed: int
    """Metropolis-Hastings steps taken."""
    mh_accepted: int
    """How many of them were accepted."""
    compute_s: float
    """This trajectory's share of the measured decoding and feature time, seconds."""
    started_s: float
    """When it got a row, seconds since the question was admitted."""
    finished_s: float
    """When it ended, seconds since the question was admitted."""
    block_num_tokens: np.ndarray
    """Accepted tokens per block: shape (b,), int32, sums to n."""
    block_logprob: np.ndarray
    """Sum of base log-probabilities per block, nats: shape (b,), float64."""
    block_entropy: np.ndarray
    """Sum of the base model's next-token entropies per block, nats: shape (b,), float64."""
    block_top1: np.ndarray
    """Sum of the base model's top-1 probabilities per block: shape (b,), float64."""
    hidden: np.ndarray
    """Hidden states averaged over each block's predicting positions: shape (b, D), float32."""
    steps: StepTrace = field(default_factory=no_steps)
    """Its Metropolis-Hastings steps; empty where they were not recorded."""
    mh_rejected_early: int = 0
    """Steps whose proposal was stopped because its rejection was certain."""
    num_saved_tokens: int = 0
    """About as many tokens these would have taken more: by how much the responses that stayed were longer."""
    ending: str = "eos"
    """How the response ended, one of :data:`ENDINGS`."""
    strict_answer: str | None = None
    """The answer that the prompt's own form of an answer gives, in canonical form; None where the response lacks it."""
    strict_correct: bool | None = None
    """Whether that answer is right; None where it cannot be graded or was not looked for."""
    arm: str = "power"
    """Name of the arm that it was drawn by, of the manifest's ``arms``."""
    token_logprob: np.ndarray = field(default_factory=not_recorded)
    """Base model's log p of each accepted token, nats: shape (n,), float32, or (0,) where not recorded."""
    token_entropy: np.ndarray = field(default_factory=not_recorded)
    """Entropy of the base model's law that each token was drawn under, nats: shape (n,) or (0,), float32."""
    token_top1: np.ndarray = field(default_factory=not_recorded)
    """Probability of that law's most likely token: shape (n,) or (0,), float32."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the accepted response, n; also where a store has the trajectory without its tokens."""
        return int(self.block_num_tokens.sum())

    def __repr__(self) -> str:
        tokens = f"{self.num_tokens:,} tokens, {self.num_generated_tokens:,} sampled"
        steps = f", {self.mh_accepted} of {self.mh_proposed} steps accepted" if self.mh_proposed else ""
        said = f"answer={self.answer!r}, correct={self.correct}"
        return f"Trajectory({self.arm} {self.index}: {said}, {tokens}{steps}, ends by {self.ending})"


@dataclass(frozen=True, slots=True)
class Decision:
    """A controller's estimate at one checkpoint of a live run."""

    k: int
    """Number of trajectories that it saw."""
    p_enough: float
    """Its estimate of the probability that k is enough, in [0, 1]."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Question:
    """One complete question of a run; ``prefill_s``, ``embedding_s`` and ``controller_s`` are measured compute."""

    question_id: str
    """Unique in the run."""
    question: str
    """The question as the benchmark states it."""
    prompt: str
    """What the model was given."""
    gold: str | None
    """The gold answer in canonical form, None where there is none."""
    metadata: dict[str, Any]
    """What else the benchmark says of it (kind, level, ...): JSON values."""
    num_prompt_tokens: int
    """Length of the prompt."""
    embedding: np.ndarray
    """Question embedding: shape (E,), float32; E is 0 where none was computed."""
    prefill_s: float
    """Its share of reading prompts, seconds."""
    embedding_s: float
    """Its share of embedding questions, seconds."""
    controller_s: float
    """Its share of the controller's or rule's calls, seconds."""
    latency_s: float
    """Wall-clock seconds from the question's admission to its answer."""
    answer: str | None
    """The policy's answer from all trajectories of this record."""
    correct: bool | None
    """Whether that answer is right; None where it cannot be graded."""
    decisions: tuple[Decision, ...]
    """The controller's decisions in order; empty for a fixed number of trajectories."""
    trajectories: tuple[Trajectory, ...]
    """In the order in which they were asked for: by arm and index in a harvest, by rung in an evaluation."""
    num_cancelled_tokens: int = 0
    """Tokens of trajectories that were begun before the policy asked for them, and given up."""
    cancelled_s: float = 0.0
    """Their share of the measured decoding time, seconds."""
    prompt_hidden: np.ndarray = field(default_factory=not_recorded)
    """Hidden states of the prompt in each of the manifest's ``prompt_layers``, at its last token and then their mean
    over its tokens: shape (L * 2 * D,), float32, or (0,) where none were read."""

    @property
    def k(self) -> int:
        """Number of trajectories."""
        return len(self.trajectories)

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens that were sampled for it: for its trajectories, rejected ones included, and cancelled ones."""
        return sum(t.num_generated_tokens for t in self.trajectories) + self.num_cancelled_tokens

    @property
    def compute_s(self) -> float:
        """Measured compute of everything that the question took, seconds."""
        own = self.prefill_s + self.embedding_s + self.controller_s + self.cancelled_s
        return sum(t.compute_s for t in self.trajectories) + own

    def __repr__(self) -> str:
        asked = f"{reprlib.repr(content_of(self.question))}, answer={self.answer!r}, correct={self.correct}"
        return f"Question({self.question_id}: {asked}, k={self.k}, {self.num_sampled_tokens:,} tokens sampled)"

    def _repr_html_(self) -> str:
        """Return the question for a notebook, its responses folded; whatever a model wrote is escaped."""
        from feature_store.notebook import html_of

        return html_of(self)


def content_of(question: str) -> str:
    """Return what two questions have in common that are the same: their text but for white space."""
    return " ".join(question.split())


def representatives(contents: Mapping[str, str]) -> dict[str, str]:
    """Return for each question the first id, in order, of those with the same content (see :func:`content_of`).

    Whoever divides questions into parts divides these, so that the same question never stands in two parts.
    """
    first: dict[str, str] = {}
    for question_id in sorted(contents):
        first.setdefault(contents[question_id], question_id)
    # Where a store keeps no text, nothing says that two questions are the same.
    return {question_id: first[content] if content else question_id for question_id, content in contents.items()}


@dataclass(frozen=True, slots=True, repr=False)
class Manifest:
    """What a whole store has in common; written once when the store is created, as ``manifest.json``."""

    kind: str
    """``harvest`` (fixed k with features, for training) or ``evaluation`` (one policy's run)."""
    policy: dict[str, Any]
    """``{"name": "power" | "gbdt" | ..., "family": "fixed" | "dynamic", "ladder": ["power 2", ...]}``: what was
    climbed, rung by rung. Every prefix of the ladder of a ``fixed`` store is a policy of its own."""
    aggregator: str
    """How answers are aggregated, one of :data:`dps.decide.aggregate.AGGREGATORS`."""
    seed: int
    """Names all random streams."""
    model: dict[str, Any]
    """Identity of the language model: ``name``, ``fingerprint``, ``hidden_size``, ``feature_layer``, ..."""
    benchmark: dict[str, Any]
    """Identity of the questions: ``name``, ``source``, ``split``, ..."""
    arms: dict[str, dict[str, Any]]
    """The resolved sampler settings (alpha, block_size, num_mh_steps, ...) of each arm by name, in order."""
    calibration: dict[str, float]
    """The calibrated clock: ``seconds_per_token``, ``prefill_seconds_per_token``, ``rows``."""
    device: str | None = None
    """Name of the GPU or processor whose clock that is; None where no clock was measured."""
    config: dict[str, Any] = field(default_factory=dict)
    """The whole resolved configuration of the command, for the record."""
    fingerprint: str = ""
    """Digest of everything that decides the trajectories; a run that resumes must have the same."""
    software: dict[str, str] = field(default_factory=dict)
    """Versions of the packages that made it."""
    question_ids: list[str] | None = None
    """Ids of all questions that the store is to have, sorted; None where nothing says which."""

    @property
    def sampler(self) -> dict[str, Any]:
        """The settings of the first arm."""
        return next(iter(self.arms.values()))

    def __repr__(self) -> str:
        model, questions = (str(of.get("name", "?")) for of in (self.model, self.benchmark))
        return f"Manifest({self.kind} of {self.policy['name']}, {questions}, model {model}, seed {self.seed})"
