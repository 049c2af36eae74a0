"""From questions to the table that controllers train on: pure NumPy.

A harvest gives every question k = maximum exchangeable trajectories. Each order of them is a run that might have been,
and each checkpoint of such a run is one row: what was known then, and whether that k was enough. ``data`` batches the
rows, ``replay`` runs policies over them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, Literal, get_args

import numpy as np

from dps.decide.aggregate import answer_of, has_grade
from dps.decide.features import EMBEDDING, HIDDEN, PARTS, extended_features, scalar_features, sums_of
from dps.decide.vectors import Blocks, Vectors, hidden_rows, mean_blocks, mean_vectors, vectors_of
from dps.errors import InputError
from feature_store.records import Question, content_of, representatives

Label = Literal["no_gain", "correct", "solvable"]
LABELS: tuple[str, ...] = get_args(Label)

SPLITS: tuple[str, ...] = ("train", "val", "calibration", "test")
"""Who learns, who chooses the epoch, who calibrates the probabilities, who is only asked. The threshold is chosen on
the two in the middle."""

_CHUNK = 32 * 2**20
"""Bytes of hidden states that are averaged at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Rows of Q questions x O orders x C checkpoints; all but the hidden states as dense arrays.

    Row number ``(q * O + o) * C + c`` is question q in order o at checkpoint c. The last axis of ``correct`` and
    ``tokens`` has one entry more than there are checkpoints: k = maximum, where nobody is asked.
    """

    question_ids: tuple[str, ...]
    """Q of them."""
    contents: tuple[str, ...]
    """The text of each question but for white space: the same question may have several ids."""
    lengths: np.ndarray
    """Prompt tokens of each question: shape (Q,), int64."""
    graded: np.ndarray
    """Whether the question has labels: shape (Q,), bool."""
    ks: tuple[int, ...]
    """Trajectories at each checkpoint, then the maximum: C + 1 of them."""
    scalars: np.ndarray
    """The features named by ``FEATURE_SETS`` for the table's feature set: shape (Q, O, C, F), float64."""
    orders: np.ndarray
    """Trajectories in each order: shape (Q, O, K), int16; K is the maximum."""
    vectors: Vectors
    """Pooled hidden states of each trajectory of M questions, in memory or in a file: shape (M, K, D), float32; D is 0
    where they were not asked for. A row's hidden state is the mean over the first k of its order. For attention they
    are not pooled yet: shape (M, K, B, D + 1)."""
    vector_rows: np.ndarray
    """Which of the M each question is: shape (Q,), int64. Tables of splits share the vectors."""
    embedding: np.ndarray
    """Question embeddings: shape (Q, E), float32; E is 0 where they were not asked for."""
    correct: np.ndarray
    """Whether the answer of the first k trajectories is right: shape (Q, O, C + 1), bool; False if not graded."""
    tokens: np.ndarray
    """Tokens generated for the first k trajectories, rejected ones included: shape (Q, O, C + 1), int64."""
    spread: bool = False
    """Whether a row's hidden state has the standard deviation over its trajectories, too."""

    @property
    def num_questions(self) -> int:
        """Q."""
        return len(self.question_ids)

    def divided_as(self) -> tuple[str, ...]:
        """Return the id by which each question is divided into splits and folds: one for all with the same content."""
        stand_for = representatives(dict(zip(self.question_ids, self.contents, strict=True)))
        return tuple(stand_for[question_id] for question_id in self.question_ids)

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
        return self.vectors.shape[-1] - self.has_blocks

    @property
    def has_blocks(self) -> bool:
        """Whether hidden states are blocks that attention pools."""
        return len(self.vectors.shape) == 4

    @property
    def question_bytes(self) -> int:
        """Bytes of hidden states that a network sees for all rows of a question."""
        pooled = self.rows_per_question * self.hidden_size * (1 + self.spread)
        return 4 * (int(np.prod(self.vectors.shape[1:])) if self.has_blocks else pooled)

    @property
    def hidden(self) -> np.ndarray:
        """The hidden states of all rows of a small table, see :meth:`hidden_of`: shape (Q, O, C, D or 2 D), float32."""
        return self.hidden_of(np.arange(self.num_rows)).reshape(*self.scalars.shape[:3], -1)

    def hidden_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the pooled hidden states of some rows: shape (N, D), or (N, 2 D) with the spread, float32.

        Of blocks, the means over tokens are taken, with which attention starts.

        Args:
            rows: Row numbers, shape (N,).
        """
        vectors, *where = self._vectors_of(rows)
        return mean_vectors(mean_blocks(vectors) if self.has_blocks else vectors, *where, self.spread)

    def inputs_of(self, rows: np.ndarray) -> np.ndarray | Blocks:
        """Return what a network sees of the hidden states of some rows, see :func:`vectors.hidden_rows`.

        Args:
            rows: Row numbers, shape (N,).
        """
        return hidden_rows(*self._vectors_of(rows), self.spread)

    def _vectors_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the vectors that some rows need, which of them each row is of, its order and its k."""
        question, order, checkpoint = np.unravel_index(rows, self.scalars.shape[:3])
        needed, at = np.unique(self.vector_rows[question], return_inverse=True)
        return self.vectors[needed], at, self.orders[question, order], np.asarray(self.ks)[checkpoint]

    def hidden_chunks(self) -> Iterator[np.ndarray]:
        """Yield the hidden states of all rows in order, some whole questions at a time, see :meth:`hidden_of`."""
        rows = 4 * self.hidden_size * (1 + self.spread) * self.rows_per_question
        most = max(1, _CHUNK // max(1, rows, self.question_bytes)) * self.rows_per_question
        for start in range(0, self.num_rows, most):
            yield self.hidden_of(np.arange(start, min(start + most, self.num_rows)))

    def labels(self, label: str) -> np.ndarray:
        """Return the label of every checkpoint: shape (Q, O, C), bool.

        Args:
            label: ``correct``: the answer of the first k is right. ``no_gain``: no larger k up to the maximum turns a
                wrong answer right, so a hopeless question is also enough. ``solvable``: the answer of this k or of a
                larger one is right.

        Source:
            METHOD section 4.
        """
        now = self.correct[..., :-1]
        if label == "correct":
            return now
        if label not in LABELS:
            raise ValueError(f"expected a label among {', '.join(LABELS)}, got {label!r}")
        later = np.logical_or.accumulate(self.correct[..., :0:-1], axis=-1)[..., ::-1]
        return now | later if label == "solvable" else now | ~later

    def outcomes(self, label: str) -> np.ndarray:
        """Return what a policy has that stops at each k, see :func:`outcomes`: shape (Q, O, C + 1), bool."""
        return outcomes(self.correct, label)

    def select(self, questions: np.ndarray) -> Table:
        """Return the table of these questions only.

        Args:
            questions: Indices into the questions, or a mask of shape (Q,).
        """
        indices = np.arange(self.num_questions)[questions]
        return replace(
            self,
            question_ids=tuple(self.question_ids[i] for i in indices),
            contents=tuple(self.contents[i] for i in indices),
            **{
                name: getattr(self, name)[indices]
                for name in (
                    "lengths",
                    "graded",
                    "scalars",
                    "orders",
                    "vector_rows",
                    "embedding",
                    "correct",
                    "tokens",
                )
            },
        )

    def natural_order(self) -> Table:
        """Return the table with each question's own order of trajectories only."""
        names = ("scalars", "orders", "correct", "tokens")
        return replace(self, **{name: getattr(self, name)[:, :1] for name in names})


def going_on(p: np.ndarray, label: str) -> np.ndarray:
    """Return the score that must be above the threshold for a question to go on.

    Args:
        p: The probability of the label, any shape.
        label: ``no_gain`` and ``correct`` say that k is enough, so the score is ``1 - p``; ``solvable`` says that going
            on may help, so it is p.
    """
    return p if label == "solvable" else 1.0 - p


def outcomes(correct: np.ndarray, label: str) -> np.ndarray:
    """Return whether a policy is right that stops at each k because of what the label's probability is.

    Args:
        correct: Whether the answer of the first k is right: shape (..., C + 1).
        label: To stop because of ``solvable`` is to give the question up: its answer is counted as wrong. It is made
            while the k trajectories run, so it costs less than the k's tokens.

    Returns:
        The same shape.
    """
    if label != "solvable":
        return correct
    found = np.zeros_like(correct)
    found[..., -1] = correct[..., -1]
    return found


def ks_of(policy: Mapping[str, Any], folder: str) -> tuple[int, ...]:
    """Return the checkpoints of a harvest, then its maximum, from the ``policy`` of its manifest.

    Args:
        policy: ``start``, ``step`` and ``maximum`` of a fixed policy.
        folder: The store, for the message.

    Raises:
        InputError: If the store is no harvest, or has no checkpoint below its maximum.
    """
    if policy.get("family") != "fixed" or not {"start", "step", "maximum"} <= policy.keys():
        raise InputError(
            f"Expected a harvest, in which every question has the same number of trajectories, but {folder} is a store "
            f"of the policy {policy.get('name')}: controllers train on what dps harvest writes."
        )
    start, step, maximum = (int(policy[name]) for name in ("start", "step", "maximum"))
    if start >= maximum:
        raise InputError(
            f"Expected a harvest with a checkpoint below its maximum, but {folder} has k.start {start} and k.maximum "
            f"{maximum}: nothing could be decided there; harvest with a larger k.maximum."
        )
    return (*range(start, maximum, step), maximum)


def check_block(policy: Mapping[str, Any], block: int | None, folder: str) -> None:
    """Refuse a block of which a harvest has no snapshots.

    Args:
        policy: Of its manifest.
        block: The block; None needs none.
        folder: The store, for the message.

    Raises:
        InputError: With the blocks that it has.
    """
    stored = policy.get("checkpoint_blocks", [])
    if block is not None and block not in stored:
        raise InputError(
            f"Expected snapshots of block {block}, but {folder} has "
            + (f"those of {', '.join(map(str, stored))}" if stored else "none")
            + ": set data.block to one that it has (null asks at the end), or harvest with checkpoint_blocks."
        )


def stable_number(*words: object) -> int:
    """Return a number in [0, 2^64) that depends on these words only, the same in every process."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, words)).encode()).digest()[:8], "big")


def split_of(
    question_id: str, train_fraction: float, val_fraction: float, seed: int, calibration_fraction: float = 0.0
) -> str:
    """Return the split of a question: ``train``, ``val``, ``calibration`` or ``test``.

    It depends on the id and the seed only, so a question stays where it is when its store grows, and has the same split
    in every store.

    Args:
        question_id: The question.
        train_fraction: Expected share of the training split.
        val_fraction: Expected share of the validation split.
        seed: Another seed is another division.
        calibration_fraction: Expected share of the calibration split; the rest is for testing.
    """
    position = stable_number("split", seed, question_id) / 2**64
    ends = np.cumsum([train_fraction, val_fraction, calibration_fraction])
    return SPLITS[int((position >= ends).sum())]


def fold_of(question_id: str, folds: int, seed: int) -> int:
    """Return the fold of a question in a cross-validation, in 0..folds - 1.

    Args:
        question_id: The question.
        folds: Number of folds.
        seed: Another seed is another division.

    Note:
        A hash of the id, independent of the one of :func:`split_of`: a question has one fold, with all its rows.
    """
    return stable_number("fold", seed, question_id) % folds


def orders_of(question_id: str, num_trajectories: int, num_orders: int, seed: int) -> np.ndarray:
    """Return orders of a question's trajectories: shape (num_orders, num_trajectories), the first is the natural one.

    Note:
        The others are permutations drawn from a stream that depends on seed and question only.
    """
    rng = np.random.default_rng([seed, stable_number("orders", question_id)])
    others = [rng.permutation(num_trajectories) for _ in range(num_orders - 1)]
    return np.stack([np.arange(num_trajectories), *others])


def make_table(
    questions: Iterable[Question],
    *,
    ks: tuple[int, ...],
    aggregator: str,
    calibration: Mapping[str, float],
    pooling: str = "mean",
    num_orders: int = 1,
    seed: int = 0,
    parts: Collection[str] = PARTS,
    feature_set: str = "published",
    orders: Iterable[np.ndarray] | None = None,
    spread: bool = False,
    block: int | None = None,
) -> Table:
    """Make the table of some questions.

    Every row equals ``checkpoint_features`` of the first k trajectories of its order, bit for bit;
    here each trajectory is pooled once only, and averaged with others when a batch is made. With a block they are what
    the trajectories were at its end, while answers and tokens are those of the end.

    Args:
        questions: Complete questions of a harvest.
        ks: Checkpoints, then the maximum, see :func:`ks_of`.
        aggregator: How k answers become one.
        calibration: The calibrated clock for ``question_time_sec``.
        pooling: How a trajectory's blocks become one hidden vector.
        num_orders: Orders of the trajectories.
        seed: Of the orders.
        parts: Which of ``scalars``, ``hidden`` and ``embedding`` are needed; ``scalars`` are always made, ``hidden`` in
            memory, so ``data`` takes those of large stores from ``vectors`` instead.
        feature_set: Which scalars, a key of :data:`dps.decide.features.FEATURE_SETS`.
        orders: Orders of each question's trajectories, shape (O, K) with K of at least ``ks[-1]``; those that
            :func:`orders_of` draws if None.
        spread: Whether a row's hidden state has the standard deviation over its trajectories, too.
        block: The block after which controllers are asked while trajectories run; None asks at their end.

    Returns:
        A table in the order of the questions. Questions without a grade are in it, marked by ``graded``.

    Raises:
        InputError: If a question has too few trajectories or no features.
    """
    given = repeat(None) if orders is None else orders
    columns = [
        _columns(
            q,
            ks,
            aggregator,
            calibration,
            pooling,
            orders_of(q.question_id, ks[-1], num_orders, seed) if its is None else its,
            parts,
            feature_set,
            block,
        )
        for q, its in zip(questions, given, strict=False)
    ]
    if not columns:
        raise InputError("Expected at least one question in the store, but it has none: let dps harvest finish some.")
    graded, lengths = [c.correct is not None for c in columns], [c.length for c in columns]
    absent = np.zeros(columns[0].tokens.shape, dtype=bool)
    return Table(
        question_ids=tuple(c.question_id for c in columns),
        contents=tuple(c.content for c in columns),
        lengths=np.array(lengths, dtype=np.int64),
        graded=np.array(graded, dtype=bool),
        ks=tuple(ks),
        scalars=np.stack([c.scalars for c in columns]),
        orders=np.stack([c.orders for c in columns]),
        vectors=_stacked([c.vectors for c in columns]),
        vector_rows=np.arange(len(columns)),
        embedding=np.stack([c.embedding for c in columns]),
        correct=np.stack([absent if c.correct is None else c.correct for c in columns]),
        tokens=np.stack([c.tokens for c in columns]),
        spread=spread,
    )


def _stacked(vectors: list[np.ndarray]) -> np.ndarray:
    """Stack vectors of questions; where they are blocks, filled up to the most that a question has."""
    if vectors[0].ndim == 2:
        return np.stack(vectors)
    most = max(v.shape[1] for v in vectors)
    return np.stack([np.pad(v, ((0, 0), (0, most - v.shape[1]), (0, 0))) for v in vectors])


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """One question's share of a table."""

    question_id: str
    content: str
    length: int
    scalars: np.ndarray
    orders: np.ndarray
    vectors: np.ndarray
    embedding: np.ndarray
    correct: np.ndarray | None
    tokens: np.ndarray


def _columns(
    question: Question,
    ks: tuple[int, ...],
    aggregator: str,
    calibration: Mapping[str, float],
    pooling: str,
    orders: np.ndarray,
    parts: Collection[str],
    feature_set: str,
    block: int | None,
) -> _Columns:
    trajectories = question.trajectories
    count = orders.shape[1]
    if len(trajectories) < count:
        raise InputError(
            f"Expected {count} trajectories of every question, but question {question.question_id} has "
            f"{len(trajectories)}: harvest again with k.maximum {count}."
        )
    checkpoints = ks[:-1]
    sums = [sums_of(t.at(block)) for t in trajectories]
    length = question.num_prompt_tokens

    def scalars_of(chosen: list[int]) -> list[float]:
        first = [sums[i] for i in chosen]
        more = extended_features(first, length) if feature_set == "extended" else []
        return scalar_features(first, length, calibration) + more

    scalars = np.array([[scalars_of(order[:k]) for k in checkpoints] for order in orders.tolist()])
    if not np.isfinite(scalars).all():
        raise InputError(
            f"Expected features of every trajectory, but question {question.question_id} has none: controllers train "
            "on what dps harvest writes, evaluations store no features."
        )
    vectors = np.zeros((count, 0), dtype=np.float32)
    if HIDDEN in parts:
        vectors = vectors_of([t.at(block) for t in trajectories[:count]], pooling)
    # An answer that could not be graded is not right, here as in reports and replays.
    answers = [
        [bool(answer_of([trajectories[i] for i in order[:k]], aggregator)[1]) for k in ks] for order in orders.tolist()
    ]
    generated = np.array([t.num_generated_tokens for t in trajectories], dtype=np.int64)
    return _Columns(
        question_id=question.question_id,
        content=content_of(question.question),
        length=length,
        scalars=scalars,
        orders=orders.astype(np.int16),
        vectors=vectors,
        embedding=np.asarray(question.embedding if EMBEDDING in parts else [], dtype=np.float32),
        correct=np.array(answers, dtype=bool) if has_grade(question) else None,
        tokens=np.cumsum(generated[orders], axis=1)[:, np.array(ks) - 1],
    )
