"""A table's rows for PyTorch's DataLoader, and what an estimator says of a whole table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dps.decide.labels import VALUE
from dps.decide.table import Table
from lightning_modules.estimators import Estimator

_WINDOW = 256 * 2**20
"""Bytes of vectors among whose rows an epoch shuffles: the page cache holds them."""
_RUN = 4 * 2**20
"""Bytes of successive questions that are in one window together: long enough to be read at a disk's speed."""
_QUESTIONS = 256
"""Questions that are predicted at a time: bounds the memory, changes no result."""
_BYTES = 16 * 2**20
"""Bytes of the hidden states of their rows, which decide where they are large."""


class Batch(NamedTuple):
    """Some rows of a table."""

    scalars: Tensor
    """Shape (N, F), float64, not standardized."""
    hidden: Tensor
    """Shape (N, D), float32."""
    embedding: Tensor
    """Shape (N, E), float32."""
    label: Tensor
    """1 where k is enough: shape (N,), float32; for ``value`` the gain, and the cost in thousands of tokens: (N, 2)."""

    def keep(self, rows: Tensor) -> Batch:
        """Return some of the rows, of a mask of shape (N,), bool."""
        return self if bool(rows.all()) else Batch(*(values[rows] for values in self))


class TableRows(Dataset[Batch]):
    """The rows of a table; an item is the batch of an array of row numbers."""

    def __init__(self, table: Table, label: str) -> None:
        """Set the table and which label its batches have."""
        self._table = table
        self._scalars = torch.from_numpy(table.scalars.reshape(table.num_rows, -1))
        self._embedding = torch.from_numpy(table.embedding)
        labels = np.stack(table.values(), axis=-1) / (1, 1000) if label == VALUE else table.labels(label)
        self._label = torch.from_numpy(labels.reshape(table.num_rows, *labels.shape[3:]).astype(np.float32))

    def __getitem__(self, rows: np.ndarray) -> Batch:
        """Return the batch of rows, shape (N,), int64."""
        index = torch.from_numpy(rows)
        hidden = torch.from_numpy(self._table.hidden_of(rows))
        embedding = self._embedding[index // self._table.rows_per_question]
        return Batch(self._scalars[index], hidden, embedding, self._label[index])


class EpochBatches(Sampler[np.ndarray]):
    """Row numbers of each batch; shuffled anew in every epoch, as a function of seed and epoch only.

    So a resumed training sees the batches that it would have seen. The Trainer calls :meth:`set_epoch`. Where vectors
    are large, rows are shuffled within windows, each a random set of runs of questions, so that reads stay local.
    """

    def __init__(self, num_rows: int, batch_size: int | None, seed: int | None, *, window: int, run: int) -> None:
        """Set how to batch: without a batch size all rows in one, without a seed in order.

        About ``window`` rows are shuffled among each other; ``run`` successive rows are in one window together.
        """
        self._num_rows, self._seed, self._run = num_rows, seed, run
        self._batch_size = batch_size or num_rows
        self._runs = max(1, window // run)
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self._num_rows // self._batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the row numbers of each batch."""
        rows = self._shuffled() if self._seed is not None else np.arange(self._num_rows)
        for start in range(0, self._num_rows, self._batch_size):
            yield rows[start : start + self._batch_size]

    def _shuffled(self) -> np.ndarray:
        rng = np.random.default_rng([self._seed, self._epoch])
        starts = np.arange(0, self._num_rows, self._run)
        if len(starts) > self._runs:
            starts = rng.permutation(starts)
        windows = [starts[at : at + self._runs] for at in range(0, len(starts), self._runs)]
        rows = np.arange(self._num_rows)
        return np.concatenate(
            [rng.permutation(np.concatenate([rows[s : s + self._run] for s in window])) for window in windows]
        )


def loader_of(table: Table, label: str, batch_size: int | None, seed: int | None) -> DataLoader[Batch]:
    """Return a loader of a table's rows; arguments as those of :class:`EpochBatches`."""
    per_question, size = table.rows_per_question, max(1, 4 * int(np.prod(table.vectors.shape[1:])))
    window, run = (per_question * max(1, count // size) for count in (_WINDOW, _RUN))
    sampler = EpochBatches(table.num_rows, batch_size, seed, window=window, run=run)
    return DataLoader(
        TableRows(table, label),
        sampler=sampler,
        batch_size=None,  # the sampler's items are batches
        collate_fn=lambda batch: batch,
        generator=torch.Generator(),  # or an epoch would draw from the global one
    )


def predict_table(estimator: Estimator, table: Table) -> np.ndarray:
    """Return p_enough of every row of a table: shape (Q, O, C), float64.

    Args:
        estimator: In float64, as :func:`lightning_modules.load_controller` gives it.
        table: With the parts that the estimator looks at; it fills in the scalars that it has learnt.
    """
    table = estimator.learnt.filled(table)
    rows = table.rows_per_question
    p_enough = np.empty((table.num_questions, rows))
    questions = max(1, min(_QUESTIONS, _BYTES // max(1, table.question_bytes)))
    for start in range(0, table.num_questions, questions):
        part = slice(start, start + questions)
        scalars = table.scalars[part].reshape(-1, table.scalars.shape[-1])
        hidden = table.hidden_of(np.arange(start * rows, start * rows + len(scalars)))
        arrays = (scalars, hidden, np.repeat(table.embedding[part], rows, axis=0))
        p = estimator.predict_enough(*(torch.from_numpy(each).double() for each in arrays))
        p_enough[part] = p.numpy().reshape(-1, rows)
    return p_enough.reshape(table.scalars.shape[:3])
