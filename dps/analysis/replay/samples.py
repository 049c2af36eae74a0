"""A store as arrays, and every order of its trajectories walked through: what each k answers, costs and shows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dps.decide.aggregate import has_grade
from dps.decide.seen import Seen, Tally, columns_of, question_key
from dps.errors import InputError
from feature_store.records import Manifest, Question, content_of


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """The graded questions of a store with K trajectories each, Q of them in order of id."""

    series: str
    """``power``, ``plain``, ``lowtemp``, ...: the name of the store's policy."""
    question_ids: tuple[str, ...]
    """Q of them."""
    contents: tuple[str, ...]
    """The text of each question but for white space: the same question may have several ids."""
    classes: np.ndarray
    """Answer class of each trajectory, -1 for none: shape (Q, K), int64."""
    logprobs: np.ndarray
    """Base log p of each response, nats: shape (Q, K), float64."""
    sums: np.ndarray
    """Accepted tokens, sum of entropies (nats), sum of top-1 probabilities: shape (3, Q, K), float64."""
    generated: np.ndarray
    """Sampled tokens, rejected ones included: shape (Q, K), int64."""
    right: np.ndarray
    """Whether each answer is right; what cannot be graded is not: shape (Q, K), bool."""
    prompt_tokens: np.ndarray
    """Shape (Q,), int64."""
    levels: tuple[str | None, ...]
    """The benchmark's own difficulty of each question, where it states one."""
    aggregator: str
    """How k answers become one."""
    num_ungraded: int
    """Questions of the store that have no grade and were left out."""
    num_ungradable: int
    """Answers of the other questions that the grader could not decide on; they count as not right."""

    @property
    def num_trajectories(self) -> int:
        """K."""
        return self.classes.shape[1]

    def on(self, question_ids: Sequence[str]) -> Samples:
        """Return these questions only, in this order."""
        place = {name: i for i, name in enumerate(self.question_ids)}
        rows = np.array([place[name] for name in question_ids], dtype=np.int64)
        return replace(
            self,
            question_ids=tuple(question_ids),
            contents=tuple(self.contents[i] for i in rows),
            levels=tuple(self.levels[i] for i in rows),
            sums=self.sums[:, rows],
            **{
                name: getattr(self, name)[rows]
                for name in ("classes", "logprobs", "generated", "right", "prompt_tokens")
            },
        )


def read_samples(manifest: Manifest, questions: Iterable[Question], folder: str) -> Samples:
    """Read the graded questions of a store whose questions all have the same number of trajectories.

    Args:
        manifest: The store's manifest.
        questions: Its questions, in any order; read once, hidden states and texts are not looked at.
        folder: The store, for messages.

    Raises:
        InputError: If the store's policy is dynamic, its questions differ in k, or none has a gold answer.
    """
    policy = manifest.policy
    if policy.get("family") != "fixed":
        raise InputError(
            f"Expected a store in which every question has the same number of trajectories, but {folder} is of the "
            f"dynamic policy {policy.get('name')}: replay what dps harvest, or dps evaluate with power, plain and "
            "lowtemp, wrote."
        )
    expected = int(policy["maximum"]) if "maximum" in policy else max(int(k) for k in policy["ks"])
    ids: list[str] = []
    contents: list[str] = []
    levels: list[str | None] = []
    rows: list[list[tuple[float, ...]]] = []
    prompt_tokens: list[int] = []
    ungraded = ungradable = 0
    for question in questions:
        if len(question.trajectories) < expected:
            raise InputError(
                f"Expected {expected} trajectories of every question, but question {question.question_id} of {folder} "
                f"has {len(question.trajectories)}: sample it again."
            )
        if not has_grade(question):
            ungraded += 1
            continue
        ids.append(question.question_id)
        ungradable += sum(t.correct is None for t in question.trajectories[:expected])
        contents.append(content_of(question.question))
        level = question.metadata.get("level")
        levels.append(None if level is None else str(level))
        prompt_tokens.append(question.num_prompt_tokens)
        rows.append(
            [
                (*columns_of(t), float(t.num_generated_tokens), float(bool(t.correct)))
                for t in question.trajectories[:expected]
            ]
        )
    if not ids:
        raise InputError(
            f"Expected graded questions in {folder}, found none: policies are compared by the grades of a benchmark "
            "with gold answers."
        )
    table = np.array(rows).transpose(2, 0, 1)
    samples = Samples(
        series=str(policy["name"]),
        question_ids=tuple(ids),
        contents=tuple(contents),
        classes=table[0].astype(np.int64),
        logprobs=table[1],
        sums=table[2:5],
        generated=table[5].astype(np.int64),
        right=table[6].astype(bool),
        prompt_tokens=np.array(prompt_tokens, dtype=np.int64),
        levels=tuple(levels),
        aggregator=manifest.aggregator,
        num_ungraded=ungraded,
        num_ungradable=ungradable,
    )
    return samples.on(sorted(ids))


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """What Q questions in O orders each answer, cost and show at every k of ``ks``."""

    ks: tuple[int, ...]
    """C checkpoints, then the maximum."""
    correct: np.ndarray
    """Whether the answer of the first k is right: shape (Q, O, C + 1), bool."""
    tokens: np.ndarray
    """Tokens sampled for them: shape (Q, O, C + 1), int64."""
    accepted: np.ndarray
    """How many of these are in the responses: shape (Q, O, C + 1), int64."""
    seen: tuple[Seen, ...]
    """What a rule sees at each checkpoint, Q x O questions in C order."""


def walk(samples: Samples, orders: np.ndarray, ks: Sequence[int], seed: int) -> Walk:
    """Walk through the trajectories of every question in every order.

    Args:
        samples: Q questions with K trajectories.
        orders: Permutations of the trajectories, shape (Q, O, K).
        ks: Where one may stop, increasing, at most K.
        seed: Of the rule that escalates by chance.

    Source:
        METHOD sections 2 and 4: the trajectories are exchangeable, so every order is a run that might have been.
    """
    num_questions, num_orders, _ = orders.shape
    if ks[-1] > samples.num_trajectories:
        raise InputError(f"Expected at most {samples.num_trajectories} trajectories of a question, got k {ks[-1]}.")

    def ordered(values: np.ndarray) -> np.ndarray:
        """Bring (Q, K) into (K, Q * O)."""
        return np.take_along_axis(values[:, None], orders, axis=2).reshape(num_questions * num_orders, -1).T

    classes, logprobs = ordered(samples.classes), ordered(samples.logprobs)
    right, spent = ordered(samples.right), np.cumsum(ordered(samples.generated), axis=0)
    sums = np.stack([ordered(values) for values in samples.sums], axis=1)
    keys = np.array(
        [question_key(seed, name, order) for name in samples.question_ids for order in range(num_orders)], np.uint64
    )
    tally = Tally(num_questions * num_orders, int(samples.classes.max()) + 1)
    kept = np.cumsum(sums[:, 0].astype(np.int64), axis=0)
    correct, tokens, accepted, seen = [], [], [], []
    for k in range(1, ks[-1] + 1):
        tally.add(classes[k - 1], logprobs[k - 1], sums[k - 1])
        if k not in ks:
            continue
        winners = tally.winners(samples.aggregator)
        correct.append((winners >= 0) & right[winners, np.arange(len(winners))])
        tokens.append(spent[k - 1])
        accepted.append(kept[k - 1])
        if k != ks[-1]:
            seen.append(tally.seen(keys))

    def shaped(values: list[np.ndarray]) -> np.ndarray:
        return np.stack(values, axis=-1).reshape(num_questions, num_orders, len(ks))

    return Walk(tuple(ks), shaped(correct), shaped(tokens), shaped(accepted), tuple(seen))


def scores(values: Sequence[np.ndarray], walked: Walk) -> np.ndarray:
    """Return ``p_inc = 1 - p_enough`` of a rule from its answers at each checkpoint: shape (Q, O, C)."""
    return 1.0 - np.stack(values, axis=-1).reshape(*walked.correct.shape[:2], len(walked.ks) - 1)


def orders_of(question_id: str, num_trajectories: int, num_orders: int, seed: int) -> np.ndarray:
    """Return orders of a question's trajectories: shape (num_orders, num_trajectories), the first is the natural one.

    Note:
        The others are permutations drawn from a stream that depends on seed and question only.
    """
    name = hashlib.sha256(f"orders\0{question_id}".encode()).digest()[:8]
    rng = np.random.default_rng([seed, int.from_bytes(name, "big")])
    others = [rng.permutation(num_trajectories) for _ in range(num_orders - 1)]
    return np.stack([np.arange(num_trajectories), *others])


def describe(samples: Samples) -> dict[str, Any]:
    """Return what a report says of a source of trajectories."""
    return {
        "series": samples.series,
        "num_questions": len(samples.question_ids),
        "num_ungraded": samples.num_ungraded,
        "num_ungradable": samples.num_ungradable,
        "num_trajectories": samples.num_trajectories,
        "accuracy_one": float(samples.right.mean()),
        "tokens_one": float(samples.generated.mean()),
        "no_answer": float((samples.classes < 0).mean()),
    }
