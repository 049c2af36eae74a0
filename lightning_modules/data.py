"""The data module: a harvest's questions as batches of rows, split by question.

Reads ``feature_store``, makes a ``table`` of each split, and hands batches to the ``controllers``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dps.errors import InputError
from dps.features import FeatureSet, Pooling
from feature_store import Question, Store
from lightning_modules.table import PARTS, SPLITS, Label, Table, fold_of, ks_of, make_table, split_of

_EVALUATION_ROWS = 8192
"""Rows of a batch where nothing is learned: bounds the memory, changes no result."""


class Batch(NamedTuple):
    """Some rows of a table."""

    scalars: Tensor
    """Shape (N, F), float64, not standardized."""
    hidden: Tensor
    """Shape (N, D), float32."""
    embedding: Tensor
    """Shape (N, E), float32."""
    label: Tensor
    """1 where k is enough: shape (N,), float32."""


class Rows(Dataset[Batch]):
    """A table as a dataset whose items are whole batches: an index is an array of row numbers."""

    def __init__(self, table: Table, label: str) -> None:
        """Flatten the table.

        Args:
            table: Q x O x C rows.
            label: Which label the batches have.
        """
        self._scalars = torch.from_numpy(table.scalars.reshape(table.num_rows, -1))
        self._hidden = torch.from_numpy(table.hidden.reshape(table.num_rows, -1))
        self._embedding = torch.from_numpy(table.embedding)
        self._label = torch.from_numpy(table.labels(label).reshape(-1).astype(np.float32))
        self._rows_per_question = table.num_rows // table.num_questions

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._label)

    def __getitem__(self, rows: np.ndarray) -> Batch:
        """Return the batch of these rows."""
        index = torch.from_numpy(rows)
        return Batch(
            self._scalars[index],
            self._hidden[index],
            self._embedding[index // self._rows_per_question],
            self._label[index],
        )


class EpochBatches(Sampler[np.ndarray]):
    """Row numbers of each batch; shuffled anew in every epoch, as a function of seed and epoch only.

    So a resumed training sees the batches that it would have seen. The Trainer calls :meth:`set_epoch`.
    """

    def __init__(self, num_rows: int, batch_size: int | None, seed: int | None) -> None:
        """Set how to batch.

        Args:
            num_rows: Rows in all.
            batch_size: Rows of a batch; all in one if None.
            seed: Of the shuffling; None keeps the order.
        """
        self._num_rows = num_rows
        self._batch_size = batch_size or num_rows
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self._num_rows // self._batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the row numbers of each batch."""
        rows = np.arange(self._num_rows)
        if self._seed is not None:
            rows = np.random.default_rng([self._seed, self._epoch]).permutation(rows)
        for start in range(0, self._num_rows, self._batch_size):
            yield rows[start : start + self._batch_size]


class FeatureDataModule(L.LightningDataModule):
    """Rows of a harvest for training, validation and test.

    A question belongs to one split, with all its rows. Which one is a hash of its id, so it stays there when the store
    grows. Features come as measured; a controller standardizes them with the statistics of the training split.
    """

    def __init__(
        self,
        store: str,
        label: Label = "no_gain",
        pooling: Pooling = "mean",
        batch_size: int | None = None,
        num_orders: int = 1,
        train_fraction: float = 0.6,
        val_fraction: float = 0.2,
        seed: int = 0,
        test_store: str | None = None,
        feature_set: FeatureSet = "published",
        calibration_fraction: float = 0.0,
        folds: int | None = None,
        fold: int = 0,
        keep_test: bool = False,
    ) -> None:
        """Open the store.

        Args:
            store: Folder of a harvest.
            label: What p_enough is the probability of: `no_gain` (no larger k turns a wrong answer right) or `correct`
                (the answer of this k is right).
            pooling: How the hidden states of a trajectory's blocks become one: `mean` over tokens, or the `last` block.
            batch_size: Rows of a training batch; null takes the whole training split as one batch.
            num_orders: Orders of each question's trajectories that rows are made of; the first is the natural one.
            train_fraction: Expected share of the questions for training.
            val_fraction: Expected share for validation, where the epoch is chosen, and the threshold.
            seed: Decides splits, orders and shuffling.
            test_store: Folder of another harvest of the same features to test on; questions of it that are in the
                other splits of `store` are left out.
            feature_set: The scalars: the `published` six, or `extended` by what the same trajectories tell besides.
            calibration_fraction: Expected share for calibrating the probabilities, where the threshold is chosen, too;
                what the three fractions leave is for testing.
            folds: Number of folds of a cross-validation: the questions of one fold are the test split, and the others
                are divided in the proportions of the three fractions. Null divides by the fractions alone.
            fold: Which fold is the test split, from 0.
            keep_test: With folds, leave out the questions that are the test split without folds, so that what a search
                over settings finds can be tested on them.

        Raises:
            InputError: If the settings or the stores cannot be used.
        """
        super().__init__()
        if num_orders < 1 or (batch_size is not None and batch_size < 1):
            raise InputError(
                f"Expected data.num_orders and data.batch_size of at least 1, got {num_orders} and {batch_size}."
            )
        fractions = (train_fraction, val_fraction, calibration_fraction)
        if not (train_fraction > 0 and val_fraction > 0 and calibration_fraction >= 0 and sum(fractions) <= 1 + 1e-9):
            raise InputError(
                "Expected data.train_fraction and data.val_fraction above 0 and data.calibration_fraction of at least "
                "0 with a sum of at most 1, got " + ", ".join(f"{fraction:g}" for fraction in fractions) + "."
            )
        if folds is not None and not (folds >= 2 and 0 <= fold < folds):
            raise InputError(f"Expected data.folds of at least 2 and data.fold below it, got {folds} and {fold}.")
        if folds is None and (fold or keep_test):
            raise InputError(f"data.fold {fold} and data.keep_test {keep_test} need data.folds: set it, or leave them.")
        self.store = store
        self.label = label
        self.pooling = pooling
        self.batch_size = batch_size
        self.num_orders = num_orders
        self.train_fraction = train_fraction
        self.val_fraction = val_fraction
        self.seed = seed
        self.test_store = test_store
        self.feature_set = feature_set
        self.calibration_fraction = calibration_fraction
        self.folds = folds
        self.fold = fold
        self.keep_test = keep_test

        opened = Store.open(store)
        self.manifest = opened.manifest
        self.ks = ks_of(self.manifest.policy, store)
        self.calibration = dict(self.manifest.calibration)
        """The clock of ``question_time_sec``; the harvest's, unless a trained controller brings its own."""
        self.hidden_size, self.embedding_size = _sizes(opened, store)
        self._tables: dict[str, Table] = {}
        self._built: tuple[Any, ...] | None = None
        if test_store is not None:
            self._check_test_store(test_store)

    def setup(self, stage: str | None = None) -> None:
        """Read the stores and make the tables of the parts that the trained controller uses; all parts without one.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``; all are set up alike.

        Raises:
            InputError: If no question has a grade, or the training or validation split has no question.
        """
        trainer = self.trainer
        parts = PARTS if trainer is None else trainer.lightning_module.parts
        key = (parts, tuple(sorted(self.calibration.items())))
        if self._built == key:
            return
        whole = self.whole(parts)
        graded = _graded(whole, self.store)
        splits = np.array([self.split_of(question_id) for question_id in graded.question_ids])
        tables = {name: graded.select(splits == name) for name in SPLITS}
        predicted = whole
        if self.test_store is not None:
            predicted = self._table(self.test_store, parts)
            used = {i for name in SPLITS[:-1] for i in tables[name].question_ids}
            fresh = np.array([question_id not in used for question_id in predicted.question_ids])
            if not fresh.all():
                print(
                    f"{self.test_store}: {(~fresh).sum()} questions are left out, the controller was trained on them."
                )
            tables["test"] = _graded(predicted.select(fresh), self.test_store)
        for name in ("train", "val"):
            if tables[name].num_questions == 0:
                raise InputError(
                    "Expected questions in the training and in the validation split, but of the "
                    f"{graded.num_questions} graded questions of {self.store} none is in {name}: harvest more "
                    f"questions, or change data.{name}_fraction or data.seed."
                )
        self._tables = {**tables, "predict": predicted.natural_order()}
        self._built = key

    def table(self, split: str) -> Table:
        """Return the table of a split.

        Args:
            split: ``train``, ``val``, ``test``, or ``predict``: every question of the tested store, graded or not, in
                its natural order.

        Raises:
            InputError: If the split has no question.
        """
        table = self._tables[split]
        if table.num_questions == 0:
            raise InputError(
                f"Expected questions in the {split} split of {self.test_store or self.store}, but it has none: harvest "
                "more questions, or leave a larger share with data.train_fraction and data.val_fraction."
            )
        return table

    def split_of(self, question_id: str) -> str:
        """Return the split that a question belongs to; ``unused`` where :attr:`keep_test` leaves it out."""
        fractions = (self.train_fraction, self.val_fraction, self.calibration_fraction)
        plain = split_of(question_id, *fractions[:2], self.seed, fractions[2])
        if self.folds is None:
            return plain
        if self.keep_test and plain == "test":
            return "unused"
        if fold_of(question_id, self.folds, self.seed) == self.fold:
            return "test"
        if self.keep_test:
            return plain
        train, val, calibration = (fraction / sum(fractions) for fraction in fractions)
        inner = split_of(question_id, train, val, self.seed, calibration)
        # Three shares of a whole may add up to a little less than 1.
        return inner if inner != "test" else ("calibration" if calibration else "val")

    def whole(self, parts: frozenset[str] = PARTS) -> Table:
        """Return the table of every question of the store, graded or not.

        Args:
            parts: Which parts of the features it has.
        """
        return self._table(self.store, parts)

    def questions(self) -> dict[str, list[str]]:
        """Return the ids of each split's graded questions."""
        return {name: list(self._tables[name].question_ids) for name in SPLITS}

    @property
    def held_out(self) -> tuple[str, ...]:
        """The splits that a validation runs over: ``val``, and ``calibration`` if it has questions."""
        return ("val", "calibration") if self._tables["calibration"].num_questions else ("val",)

    def settings(self) -> dict[str, Any]:
        """Return the settings that decide what the rows mean and which split they are in."""
        return {
            "label": self.label,
            "pooling": self.pooling,
            "feature_set": self.feature_set,
            "train_fraction": self.train_fraction,
            "val_fraction": self.val_fraction,
            "calibration_fraction": self.calibration_fraction,
            "seed": self.seed,
            "folds": self.folds,
            "fold": self.fold,
            "keep_test": self.keep_test,
        }

    def description(self) -> dict[str, Any]:
        """Return what a checkpoint has to know of the data, as plain values."""
        return {
            **self.settings(),
            "store": self.store,
            "store_fingerprint": self.manifest.fingerprint,
            "num_orders": self.num_orders,
            "aggregator": self.manifest.aggregator,
            "ks": list(self.ks),
            "calibration": dict(self.calibration),
            "model": _plain(self.manifest.model),
            "benchmark": _plain(self.manifest.benchmark),
            "num_questions": {name: self._tables[name].num_questions for name in SPLITS},
        }

    def train_dataloader(self) -> DataLoader:
        """Return shuffled batches of the training split."""
        return self._loader("train", self.batch_size, self.seed)

    def val_dataloader(self) -> list[DataLoader]:
        """Return the validation split in order, then the calibration split if it has questions."""
        return [self._loader(split, _EVALUATION_ROWS, None) for split in self.held_out]

    def test_dataloader(self) -> DataLoader:
        """Return the test split in order."""
        return self._loader("test", _EVALUATION_ROWS, None)

    def predict_dataloader(self) -> DataLoader:
        """Return every question of the tested store in its natural order."""
        return self._loader("predict", _EVALUATION_ROWS, None)

    def _loader(self, split: str, batch_size: int | None, seed: int | None) -> DataLoader:
        rows = Rows(self.table(split), self.label)
        # The rows are in memory and cost less to index than to send from a worker process, so there are none.
        return DataLoader(rows, sampler=EpochBatches(len(rows), batch_size, seed), batch_size=None)

    def _table(self, folder: str, parts: frozenset[str]) -> Table:
        """Make the table of a whole store."""
        store = Store.open(folder)
        return make_table(
            store,
            ks=self.ks,
            aggregator=store.manifest.aggregator,
            calibration=self.calibration,
            pooling=self.pooling,
            num_orders=self.num_orders,
            seed=self.seed,
            parts=parts,
            feature_set=self.feature_set,
        )

    def _check_test_store(self, folder: str) -> None:
        """Refuse a test store whose rows mean something else than the training store's."""
        store = Store.open(folder)
        sizes = _sizes(store, folder)
        model, other = self.manifest.model, store.manifest.model
        compared = {
            "k": (self.ks, ks_of(store.manifest.policy, folder)),
            "hidden size": (self.hidden_size, sizes[0]),
            "embedding size": (self.embedding_size, sizes[1]),
            "model fingerprint": (model.get("fingerprint"), other.get("fingerprint")),
            "feature layer": (model.get("feature_layer"), other.get("feature_layer")),
        }
        for name, (expected, came) in compared.items():
            if expected != came:
                raise InputError(
                    f"Expected data.test_store to have the features of {self.store}, but its {name} is {came} instead "
                    f"of {expected}: give a harvest of the same model with the same k."
                )


def _sizes(store: Store, folder: str) -> tuple[int, int]:
    """Return D and E of a store, from its first question."""
    first: Question | None = next(iter(store), None)
    if first is None:
        raise InputError(f"Expected at least one question in {folder}, but it has none: let dps harvest finish some.")
    return first.trajectories[0].hidden.shape[1], len(first.embedding)


def _graded(table: Table, folder: str) -> Table:
    """Return the questions that have labels; says how many are left out."""
    missing = int((~table.graded).sum())
    if missing == table.num_questions:
        raise InputError(
            f"Expected graded questions in {folder}, but none of its {missing} has a grade: labels need a benchmark "
            "with gold answers."
        )
    if missing:
        print(f"{folder}: {missing} of {table.num_questions} questions have no grade and are left out.")
    return table.select(table.graded)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with only what a checkpoint can hold without pickling code: JSON values as they are."""
    return {
        str(key): value for key, value in values.items() if isinstance(value, str | int | float | bool | list | None)
    }
