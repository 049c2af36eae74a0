"""Batches of a table's rows for the Trainer, made ahead of it by a thread.

``data`` makes one loader per split. Where the hidden states lie in a file (``vectors``), an epoch goes through it
window by window: each question is read once, whatever the number of its rows, and memory holds two windows at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from dps.decide.table import Table
from dps.decide.vectors import Blocks, VectorFile, hidden_rows, join_rows

T = TypeVar("T")

_AHEAD = 3
"""Batches that wait for the trainer."""

_BLOCK = 4 * 2**20
"""Bytes of a run of questions that stay together when windows are drawn: long enough to be read at a disk's speed."""


class Batch(NamedTuple):
    """Some rows of a table."""

    scalars: Tensor
    """Shape (N, F), float64, not standardized."""
    hidden: Tensor | Blocks
    """Shape (N, D), or (N, 2 D) with the spread, float32; for attention the blocks that the rows need."""
    embedding: Tensor
    """Shape (N, E), float32."""
    label: Tensor
    """1 where k is enough: shape (N,), float32."""


class EpochBatches:
    """Row numbers of each batch; shuffled anew in every epoch, as a function of seed and epoch only.

    So a resumed training sees the batches that it would have seen. The Trainer calls :meth:`set_epoch`.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int | None,
        seed: int | None,
        *,
        rows_per_question: int = 1,
        window: int | None = None,
        block: int = 1,
    ) -> None:
        """Set how to batch.

        Args:
            num_rows: Rows in all.
            batch_size: Rows of a batch; all in one if None.
            seed: Of the shuffling; None keeps the order.
            rows_per_question: Successive rows that are of one question.
            window: Questions among which rows are shuffled; all if None.
            block: Successive questions that are in one window together.
        """
        self._num_rows = num_rows
        self._batch_size = batch_size or num_rows
        self._seed = seed
        self._rows_per_question = rows_per_question
        self._window = window
        self._block = block
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self._num_rows // self._batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the row numbers of each batch."""
        rows = np.concatenate(list(self.windows()))
        for start in range(0, self._num_rows, self._batch_size):
            yield rows[start : start + self._batch_size]

    def windows(self) -> Iterator[np.ndarray]:
        """Yield the row numbers of each window in the order of the epoch: all rows of some questions.

        A window is a random set of blocks, and its rows are shuffled among each other.
        """
        rng = None if self._seed is None else np.random.default_rng([self._seed, self._epoch])

        def shuffled(values: np.ndarray) -> np.ndarray:
            return values if rng is None else rng.permutation(values)

        rows = np.arange(self._num_rows)
        if self._window is None:
            yield shuffled(rows)
            return
        size = self._block * self._rows_per_question
        blocks = shuffled(np.arange(-(-self._num_rows // size)))
        together = max(1, self._window // self._block)
        for start in range(0, len(blocks), together):
            yield shuffled(np.concatenate([rows[b * size : (b + 1) * size] for b in blocks[start : start + together]]))


class _Window(NamedTuple):
    """The vectors that the next rows of an epoch need."""

    num_rows: int
    questions: np.ndarray
    """Questions of the table, ascending: shape (M,)."""
    vectors: np.ndarray
    """Theirs: shape (M, K, ...)."""


class BatchLoader:
    """The batches of a table, in the order of its :attr:`sampler`, made ahead of whoever iterates."""

    def __init__(self, table: Table, label: str, batch_size: int | None, seed: int | None, memory_bytes: int) -> None:
        """Set how to batch.

        Args:
            table: The rows.
            label: Which label the batches have.
            batch_size: Rows of a batch; all in one if None.
            seed: Of the shuffling; None keeps the order.
            memory_bytes: What vectors may take; two windows together take half of it, or for attention, whose batches
                hold copies of blocks, an eighth.
        """
        self._table = table
        self._label = torch.from_numpy(table.labels(label).reshape(-1).astype(np.float32))
        self._scalars = torch.from_numpy(table.scalars.reshape(table.num_rows, -1))
        self._embedding = torch.from_numpy(table.embedding)
        self._streams = isinstance(table.vectors, VectorFile)
        size = 4 * int(np.prod(table.vectors.shape[1:]))
        window = max(1, memory_bytes // (16 if table.has_blocks else 4) // size) if self._streams else None
        self.sampler = EpochBatches(
            table.num_rows,
            batch_size,
            seed,
            rows_per_question=table.rows_per_question,
            window=window,
            block=max(1, min(window, _BLOCK // size)) if window is not None else 1,
        )
        """The Trainer tells it the epoch."""
        self.batch_sampler = None
        """The Trainer looks for one wherever there is a sampler."""

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the epoch."""
        return prefetched(self._batches(), _AHEAD)

    def _batches(self) -> Generator[Batch, None, None]:
        windows = prefetched(self._windows(), 1) if self._streams else self._windows()
        window, left = None, 0
        for rows in self.sampler:
            hidden = []
            start = 0
            while start < len(rows):
                if left == 0:
                    window = None  # its memory is the next one's
                    window = next(windows)
                    left = window.num_rows
                part = rows[start : start + left]
                hidden.append(self._hidden(window, part))
                start, left = start + len(part), left - len(part)
            index = torch.from_numpy(rows)
            yield Batch(
                self._scalars[index],
                to_tensor(join_rows(hidden)),
                self._embedding[index // self._table.rows_per_question],
                self._label[index],
            )

    def _windows(self) -> Generator[_Window, None, None]:
        table = self._table
        for rows in self.sampler.windows():
            if not self._streams:
                yield _Window(len(rows), np.arange(table.num_questions), table.vectors)
                continue
            questions = np.unique(rows // table.rows_per_question)
            yield _Window(len(rows), questions, table.vectors[table.vector_rows[questions]])

    def _hidden(self, window: _Window, rows: np.ndarray) -> np.ndarray | Blocks:
        """Return what a network sees of the hidden states of some rows of a window."""
        table = self._table
        question, order, checkpoint = np.unravel_index(rows, table.scalars.shape[:3])
        at = np.searchsorted(window.questions, question) if self._streams else table.vector_rows[question]
        ks = np.asarray(table.ks)[checkpoint]
        return hidden_rows(window.vectors, at, table.orders[question, order], ks, table.spread)


def to_tensor(hidden: np.ndarray | Blocks, dtype: torch.dtype | None = None) -> Tensor | Blocks:
    """Return hidden states as a network takes them, of this type if one is given."""
    if isinstance(hidden, Blocks):
        return Blocks(torch.from_numpy(hidden.values).to(dtype), torch.from_numpy(hidden.members))
    return torch.from_numpy(hidden).to(dtype)


def prefetched(items: Generator[T, None, None], ahead: int) -> Generator[T, None, None]:
    """Yield what a generator yields, which runs ahead in a thread of its own.

    Args:
        items: Closed at the end, also when the caller stops early.
        ahead: Items that are made or wait at a time, besides the one that was yielded last.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="dps-prefetch") as pool:
        pending = deque(pool.submit(next, items, end) for _ in range(ahead))
        try:
            while (item := pending.popleft().result()) is not end:
                pending.append(pool.submit(next, items, end))
                yield item
                del item  # not held while the next one is waited for
        finally:
            for future in pending:
                future.cancel()
            pool.submit(items.close).result()
