"""The table that controllers train on: questions x orders x checkpoints, each row what was known then and its label.

Hidden vectors of a whole store are made elsewhere and put into the table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np

from dps.decide.features import CLOCK, EMBEDDING, HIDDEN, PARTS, PROMPT, Rows, feature_names, pool_hidden
from dps.decide.labels import labels_of, value_of
from dps.decide.ladder import Ladder
from dps.decide.orders import in_order, ladder_orders, walk
from dps.decide.samples import OfQuestions, Samples, columns_for, row_of, samples_from, trajectories_of
from dps.decide.seen import SHOWN
from dps.decide.splits import divided_as
from dps.errors import InputError
from feature_store.records import Question

_CHUNK = 32 * 2**20
"""Bytes of hidden states that are averaged at a time."""
_COMPONENTS = 2**18
"""Components that are averaged at a time: their float64 sums stay in the processor's cache."""
_ROWS = 2**12
"""About how many orders of questions have their scalars made at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Table(OfQuestions):
    """Rows of Q questions x O orders x C checkpoints; all but the hidden states as dense arrays.

    Row number ``(q * O + o) * C + c`` is question q in order o at checkpoint c. The last axis of ``correct`` and
    ``tokens`` has one entry more than there are checkpoints: k = maximum, where nobody is asked.
    """

    BY_QUESTION = (
        "question_ids", "contents", "lengths", "graded", "scalars", "votes", "orders", "vector_rows", "embedding",
        "prompt", "correct", "tokens", "later",
    )  # fmt: skip
    question_ids: tuple[str, ...]
    """Q of them."""
    contents: tuple[str, ...]
    """The text of each question but for white space: the same question may have several ids."""
    lengths: np.ndarray
    """Prompt tokens of each question: shape (Q,), int64."""
    graded: np.ndarray
    """Whether the question has labels: shape (Q,), bool."""
    ladder: Ladder
    """What was climbed: C + 1 rungs, with a checkpoint after each but the last."""
    scalars: np.ndarray
    """The features of :func:`dps.decide.features.feature_names`: shape (Q, O, C, F), float64."""
    votes: np.ndarray
    """What names the votes so far, see :attr:`dps.decide.seen.Seen.votes`: shape (Q, O, C, 2), int64."""
    orders: np.ndarray
    """Columns in the order in which their trajectories come: shape (Q, O, n), int16."""
    vectors: np.ndarray
    """Pooled hidden states of each trajectory of M questions, in memory or as a memory map: shape (M, K, D), float32;
    D is 0 where they were not asked for. A row's hidden state is the mean over the first k of its order."""
    vector_rows: np.ndarray
    """Which of the M each question is: shape (Q,), int64. Tables of splits share the vectors."""
    embedding: np.ndarray
    """Question embeddings: shape (Q, E), float32; E is 0 where they were not asked for."""
    prompt: np.ndarray
    """Hidden states of the prompts: shape (Q, P), float32; P is 0 where they were not asked for, or not harvested."""
    correct: np.ndarray
    """Whether the answer of the first k trajectories is right: shape (Q, O, C + 1), bool; False if not graded."""
    tokens: np.ndarray
    """Tokens generated for the first k trajectories, rejected ones included: shape (Q, O, C + 1), int64."""
    later: np.ndarray
    """Where a question stops that goes on from a checkpoint, for the label ``value``: shape (Q, O, C), int64; C, the
    end of the ladder, unless a policy is put in."""

    @property
    def ks(self) -> tuple[int, ...]:
        """Trajectories at each checkpoint, then the maximum: C + 1 of them."""
        return self.ladder.ks

    @property
    def num_questions(self) -> int:
        """Q."""
        return len(self.question_ids)

    @property
    def num_rows(self) -> int:
        """Q x O x C."""
        return int(np.prod(self.scalars.shape[:3]))

    @property
    def rows_per_question(self) -> int:
        """O x C."""
        return int(np.prod(self.scalars.shape[1:3]))

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.vectors.shape[-1]

    @property
    def question_bytes(self) -> int:
        """Bytes of the hidden states of all rows of a question."""
        return 4 * self.rows_per_question * self.hidden_size

    @property
    def hidden(self) -> np.ndarray:
        """The hidden states of all rows of a small table: shape (Q, O, C, D), float32."""
        return self.hidden_of(np.arange(self.num_rows)).reshape(*self.scalars.shape[:3], -1)

    def hidden_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the hidden states of the rows with these numbers, shape (N,): shape (N, D), float32."""
        question, order, checkpoint = np.unravel_index(rows, self.scalars.shape[:3])
        needed, at = np.unique(self.vector_rows[question], return_inverse=True)
        ks = np.asarray(self.ks)[checkpoint]
        return mean_vectors(self.vectors[needed], at, self.orders[question, order], ks)

    def hidden_chunks(self) -> Iterator[np.ndarray]:
        """Yield the hidden states of all rows in order, some whole questions at a time, see :meth:`hidden_of`."""
        most = max(1, _CHUNK // max(1, self.question_bytes)) * self.rows_per_question
        for start in range(0, self.num_rows, most):
            yield self.hidden_of(np.arange(start, min(start + most, self.num_rows)))

    def labels(self, label: str) -> np.ndarray:
        """Return the label of every checkpoint, see :func:`dps.decide.labels.labels_of`: shape (Q, O, C), bool."""
        return labels_of(self.correct, label, self.later)

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what going on gains and costs, see :func:`dps.decide.labels.value_of`: shape (Q, O, C), int64 each."""
        return value_of(self.correct, self.tokens, self.later)

    def divided_as(self) -> tuple[str, ...]:
        """Return the id by which each question is divided, see :func:`dps.decide.splits.divided_as`."""
        return divided_as(self.question_ids, self.contents)

    def natural_order(self) -> Table:
        """Return the table with each question's own order of trajectories only."""
        names = ("scalars", "votes", "orders", "correct", "tokens", "later")
        return replace(self, **{name: getattr(self, name)[:, :1] for name in names})


def mean_vectors(vectors: np.ndarray, questions: np.ndarray, orders: np.ndarray, ks: np.ndarray) -> np.ndarray:
    """Average the vectors (M, K, D) of the first k trajectories of each of N rows: shape (N, D), float32.

    A row is of one of the M ``questions`` (N,), in an order (N, K), with its own k (N,). Sums are in float64 in the
    row's order, as ``np.mean`` takes them over whole arrays, so a row equals that of
    :func:`dps.decide.features.checkpoint_features`, bit for bit.
    """
    means = np.empty((len(questions), vectors.shape[2]), np.float32)
    step = max(1, _COMPONENTS // max(1, vectors.shape[2]))
    for k in np.unique(ks).tolist():
        same = np.flatnonzero(ks == k)
        for start in range(0, len(same), step):
            rows = same[start : start + step]
            total = vectors[questions[rows], orders[rows, 0]].astype(np.float64)
            for position in range(1, k):
                total += vectors[questions[rows], orders[rows, position]]
            means[rows] = total / k
    return means


def make_table(
    questions: Iterable[Question],
    *,
    ladder: Ladder,
    aggregator: str,
    calibration: Mapping[str, float],
    num_orders: int = 1,
    seed: int = 0,
    parts: Collection[str] = PARTS,
    feature_set: str = "published",
    totals: Mapping[str, int] | None = None,
    orders: Iterable[np.ndarray] | None = None,
) -> Table:
    """Make the table of some questions, in their order; those without a grade are in it, marked by ``graded``.

    Every row equals ``checkpoint_features`` of the first k trajectories of its order, bit for bit. The questions of a
    harvest are read once.

    Args:
        questions: Of a harvest.
        ladder: What is climbed, with a checkpoint after each rung but the last.
        aggregator: How k answers become one.
        calibration: The clock of ``question_time_sec``.
        num_orders: Orders of each question, the first is the natural one.
        seed: Of the orders.
        parts: The parts of the features that are made.
        feature_set: Which scalars.
        totals: Trajectories of each arm that the orders are of; those of the ladder where not given.
        orders: Each question's, shape (O, n), in place of those that ``num_orders`` and ``seed`` draw.

    Raises:
        InputError: If there is no question, or one has too few trajectories or no features.
    """
    rows, used, vectors, embeddings, prompts = [], [], [], [], []
    ks, keys = ladder.ks, columns_for(totals or ladder.totals)
    arms = [arm for arm, _ in keys]
    for question, given in zip(questions, repeat(None) if orders is None else orders, strict=False):
        own = ladder_orders([question.question_id], arms, ladder, num_orders, seed)[0] if given is None else given
        rows.append(row_of(question, keys))
        used.append(own)
        pooled = [pool_hidden(t) for t in trajectories_of(question, keys)] if HIDDEN in parts else []
        vectors.append(np.stack(pooled) if pooled else np.zeros((len(keys), 0), np.float32))
        embeddings.append(np.asarray(question.embedding if EMBEDDING in parts else [], dtype=np.float32))
        prompts.append(np.asarray(question.prompt_hidden if PROMPT in parts else [], dtype=np.float32))
    if not rows:
        raise InputError("Expected at least one question in the store, but it has none: let dps harvest finish some.")
    if len(sizes := {len(prompt) for prompt in prompts}) > 1:
        raise InputError(
            f"Expected hidden states of one size of every question's prompt, but these have {sorted(sizes)}: harvest "
            "all questions with the same features.prompt_layers."
        )
    if "question_time_sec" in feature_names(feature_set, ladder) and not calibration.keys() >= CLOCK:
        raise InputError(
            f"Expected a store with a calibrated clock for question_time_sec of data.feature_set {feature_set}, but it "
            "has none: set data.clock_store to a harvest of the same model, or data.feature_set to recorded."
        )
    samples, every = samples_from(rows, arms), np.stack(used)
    walked = walk(samples, every, ks, aggregator)
    scalars, votes = _scalars(samples, every, ladder, calibration, feature_set)
    return Table(
        question_ids=samples.question_ids,
        contents=samples.contents,
        lengths=samples.prompt_tokens,
        graded=samples.has_grade,
        ladder=ladder,
        scalars=scalars,
        votes=votes,
        orders=every.astype(np.int16),
        vectors=np.stack(vectors),
        vector_rows=np.arange(len(rows)),
        embedding=np.stack(embeddings),
        prompt=np.stack(prompts),
        correct=walked.correct,
        tokens=walked.tokens,
        later=np.full((*walked.tokens.shape[:2], len(ks) - 1), len(ks) - 1),
    )


def _scalars(
    samples: Samples, orders: np.ndarray, ladder: Ladder, calibration: Mapping[str, float], feature_set: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return scalars and votes of every question in every order (Q, O, n) at every checkpoint: (Q, O, C, F or 2)."""
    (num_questions, num_orders, n), ks = orders.shape, ladder.ks[:-1]
    arms, made = tuple(samples.arms[column] for column in orders[0, 0]), []
    step = max(1, _ROWS // num_orders)
    for start in range(0, num_questions, step):
        some = slice(start, start + step)
        shown = [in_order(getattr(samples, name)[some], orders[some]).reshape(-1, n).T for name in SHOWN]
        rows = Rows(np.array(shown, np.float64), arms, np.repeat(samples.prompt_tokens[some], num_orders), calibration)
        made.append((rows.scalars(feature_set, ks, ladder), rows.votes(ks)))
    shape = (num_questions, num_orders, len(ks), -1)
    scalars, votes = (np.concatenate(each).reshape(shape) for each in zip(*made, strict=True))
    whole = np.isfinite(scalars).all(axis=(1, 2, 3))
    if not whole.all():
        raise InputError(
            f"Expected features of every trajectory, but question {samples.question_ids[int(np.argmin(whole))]} has "
            "none: controllers train on what dps harvest writes, evaluations store no features; where a store has "
            "votes and log p only, set data.feature_set to recorded."
        )
    return scalars, votes
