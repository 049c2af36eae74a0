"""The data module: a harvest's questions as batches of rows, split by question.

Reads ``feature_store``, makes a ``table`` of each split, and hands batches to the ``controllers``.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from dps.decide.features import EMBEDDING, HIDDEN, PARTS, PROMPT, FeatureSet, feature_names
from dps.decide.labels import VALUE, Label, continue_score, later_stops, score_of_rate
from dps.decide.ladder import Key, Ladder
from dps.decide.predictions import read_predictions
from dps.decide.samples import check_hidden, columns_for, held_of, trained_ladder
from dps.decide.splits import SPLITS, fold_of, split_of
from dps.decide.table import Table, make_table
from dps.decide.thresholds import NEVER_STOP
from dps.decide.vectors import pooled_vectors
from dps.doubt import doubt
from dps.errors import InputError
from feature_store import Question, Store
from lightning_modules.batches import Batch, loader_of
from lightning_modules.estimators import is_decided
from lightning_modules.learnt import Learnt, fit_learnt, has_learnt

_EVALUATION_ROWS = 8192
"""Rows of a batch where nothing is learned: bounds the memory, changes no result."""
_EVALUATION_BYTES = 32 * 2**20
"""Bytes of its hidden states, which decides where they are large."""
_SETTINGS = (
    *("label", "feature_set", "train_fraction", "val_fraction", "calibration_fraction"),
    *("seed", "folds", "fold", "keep_test", "decided", "later", "later_rate"),
)
"""Settings that decide what the rows mean and which split they are in."""


class FeatureDataModule(L.LightningDataModule):
    """Rows of a harvest for training, validation and test.

    A question belongs to one split, with all its rows. Which one is a hash of its id, so it stays there when the store
    grows; of questions with the same text, all go where the first id goes. Features come as measured; a controller
    standardizes them with the statistics of the training split.
    """

    def __init__(
        self,
        store: str,
        label: Label = "no_gain",
        batch_size: int | None = None,
        num_orders: int = 1,
        train_fraction: float = 0.6,
        val_fraction: float = 0.2,
        seed: int = 0,
        feature_set: FeatureSet = "published",
        calibration_fraction: float = 0.0,
        folds: int | None = None,
        fold: int = 0,
        keep_test: bool = False,
        cache_dir: str | None = None,
        clock_store: str | None = None,
        ladder: list[str] | None = None,
        decided: int | None = None,
        later: str | None = None,
        later_rate: float = 0.8,
    ) -> None:
        """Open the store.

        Args:
            store: Folder of a harvest.
            label: What p_enough is the probability of: `no_gain` (no larger k turns a wrong answer right), `correct`
                (the answer of this k is right) or `end` (the answer of the ladder's end is). With `value` it says what
                going on gains for its tokens, in points of accuracy per 1,000 tokens.
            batch_size: Rows of a training batch; null takes the whole training split as one batch.
            num_orders: Orders of each question's trajectories that rows are made of; the first is the natural one.
            train_fraction: Expected share of the questions for training.
            val_fraction: Expected share for validation, where the epoch is chosen, and the threshold.
            seed: Decides splits, orders and shuffling.
            feature_set: The scalars: the `published` six, `extended` by what the same trajectories tell besides,
                `ladder` by what each arm says and by two that the training split teaches, or `recorded`: that
                without what needs entropies.
            calibration_fraction: Expected share for calibrating the probabilities, where the threshold is chosen, too;
                what the three fractions leave is for testing.
            folds: Number of folds of a cross-validation: the questions of one fold are the test split, and the others
                are divided in the proportions of the three fractions. Null divides by the fractions alone.
            fold: Which fold is the test split, from 0.
            keep_test: With folds, leave out the questions that are the test split without folds, so that what a search
                over settings finds can be tested on them.
            cache_dir: Folder for the file of pooled hidden states (4 bytes x trajectories x hidden size for each
                question), which is made once. Null takes the folder `cache` in the store, or a temporary file where
                that cannot be written.
            clock_store: Folder of an earlier store of the same model on the same device, whose calibrated clock
                `question_time_sec` is counted with, so that it means the same in both: two measurements of one GPU have
                differed two-fold. Null takes the clock of `store`. The controller keeps it for live runs.
            ladder: Rungs such as `plain 2`, of arms of the store; the controller is asked after each but the last. Null
                takes the ladder of the harvest.
            decided: A question whose leading answer is ahead by so many votes is enough, whatever the controller says,
                which learns on the other rows only. Needs a feature set with votes. Null asks everywhere.
            later: With label `value`: folder of `dps crossval` on the same ladder; a question that goes on is taken to
                stop later as those controllers say, out of fold. Null takes it to stop where it is decided, or at the
                ladder's end.
            later_rate: Points of accuracy per 1,000 tokens up to which `later` stops, and that votes are weighed by in
                `vote_value`.

        Raises:
            InputError: If the settings or the stores cannot be used.
        """
        super().__init__()
        self.store, self.clock_store, self.cache_dir = store, clock_store, cache_dir
        self.label, self.feature_set = label, feature_set
        self.batch_size, self.num_orders, self.seed = batch_size, num_orders, seed
        self.train_fraction, self.val_fraction = train_fraction, val_fraction
        self.calibration_fraction = calibration_fraction
        self.folds, self.fold, self.keep_test = folds, fold, keep_test
        self.decided, self.later, self.later_rate = decided, later, later_rate
        self._check_settings()
        self._open(ladder)

    def _open(self, ladder: list[str] | None) -> None:
        """Read what the stores say of themselves, and check that they fit."""
        opened = Store.open(self.store)
        self.manifest = opened.manifest
        self.ladder = trained_ladder(self.manifest, self.store, ladder)
        self.ks, self.rungs = self.ladder.ks, self.ladder.texts()
        self.gate = _gate(self.feature_set, self.ladder, self.decided)
        """What says which rows are decided, see :class:`lightning_modules.estimators.Estimator`."""
        self.hidden_size, self.embedding_size, self.prompt_size = _sizes(opened, self.store)
        sizes = {PROMPT: self.prompt_size, EMBEDDING: self.embedding_size}
        self.learnt: Learnt | None = Learnt() if has_learnt(self.feature_set) else None
        self._probed = frozenset([name for name, size in sizes.items() if size and self.learnt is not None][:1])
        self.calibration = self._clock(self.clock_store)
        """The clock of ``question_time_sec``, the harvest's or ``clock_store``'s; a trained controller has its own."""
        self._tables: dict[str, Table] = {}
        self._divided_as: dict[str, str] = {}
        self._built: tuple[Any, ...] | None = None

    def _check_settings(self) -> None:
        if self.num_orders < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise InputError(
                "Expected data.num_orders and data.batch_size of at least 1, got "
                f"{self.num_orders} and {self.batch_size}."
            )
        for name in ("store", "cache_dir", "clock_store", "later"):
            if (folder := getattr(self, name)) is not None and not folder.strip():
                raise InputError(f"Expected the name of a folder for data.{name}, got an empty one: give its name.")
        fractions = (self.train_fraction, self.val_fraction, self.calibration_fraction)
        if not (min(fractions[:2]) > 0 and fractions[2] >= 0 and sum(fractions) <= 1 + 1e-9):
            raise InputError(
                "Expected data.train_fraction and data.val_fraction above 0 and data.calibration_fraction of at least "
                "0 with a sum of at most 1, got " + ", ".join(f"{fraction:g}" for fraction in fractions) + "."
            )
        if self.decided is not None and self.decided < 1:
            raise InputError(f"Expected data.decided of at least 1 vote, got {self.decided}: raise it, or set null.")
        if self.label != VALUE and self.later is not None:
            raise InputError(f"data.later is for the label value, but data.label is {self.label}: leave it out.")
        folds, fold, keep_test = self.folds, self.fold, self.keep_test
        if folds is not None and not (folds >= 2 and 0 <= fold < folds):
            raise InputError(f"Expected data.folds of at least 2 and data.fold below it, got {folds} and {fold}.")
        if folds is None and (fold or keep_test):
            raise InputError(f"data.fold {fold} and data.keep_test {keep_test} need data.folds: set it, or leave them.")

    def setup(self, stage: str | None = None) -> None:
        """Read the store and make the tables of the parts that the trained controller uses; all parts without one.

        Raises:
            InputError: If no question has a grade, or the training or validation split has no question.
        """
        parts = self._probed | (PARTS if self.trainer is None else self.trainer.lightning_module.parts)
        key = (parts, tuple(sorted(self.calibration.items())))
        if self._built == key:
            return
        whole = self.whole(parts)
        self._divided_as = dict(zip(whole.question_ids, whole.divided_as(), strict=True))
        graded = _graded(whole, self.store)
        right = graded.correct[:, 0, -1]
        if (sentence := doubt(self.store, len(right), int(right.sum()))) is not None:
            print(f"warning: {sentence}", file=sys.stderr)
        splits = np.array([self.split_of(question_id) for question_id in graded.question_ids])
        tables = {name: graded.select(splits == name) for name in SPLITS}
        for name in ("train", "val"):
            if tables[name].num_questions == 0:
                raise InputError(
                    "Expected questions in the training and in the validation split, but of the "
                    f"{graded.num_questions} graded questions of {self.store} none is in {name}: harvest more "
                    f"questions, or change data.{name}_fraction or data.seed."
                )
        tables["predict"] = whole.natural_order()
        if self.learnt is not None:
            prompt_parts = 2 * len(self.manifest.model.get("prompt_layers", [])) or 1
            found, train = fit_learnt(tables["train"], self._probed, self.later_rate, self.seed, prompt_parts)
            self.learnt = found
            tables = {name: train if name == "train" else found.filled(each) for name, each in tables.items()}
        self._tables = tables
        self._built = key

    def table(self, split: str) -> Table:
        """Return the table of ``train``, ``val``, ``test``, or ``predict``: every question of the store.

        Raises:
            InputError: If the split has no question.
        """
        table = self._tables[split]
        if table.num_questions == 0:
            raise InputError(
                f"Expected questions in the {split} split of {self.store}, but it has none: harvest "
                "more questions, or leave a larger share with data.train_fraction and data.val_fraction."
            )
        return table

    def split_of(self, question_id: str) -> str:
        """Return the split that a question belongs to; ``unused`` where :attr:`keep_test` leaves it out."""
        question_id = self._divided_as.get(question_id, question_id)
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
        """Return the table of every question of the store, graded or not, with these parts and those of the probe.

        Scalars that are learnt are 0 there.
        """
        parts = parts | self._probed
        store = Store.open(self.store)
        if (short := store.shortfall()) is not None:
            print(f"Note: {short}")
        held = held_of(self.manifest, self.store, self.ladder)
        table = make_table(
            store.scan(hidden=False),
            ladder=self.ladder,
            totals=held,
            aggregator=self.manifest.aggregator,
            calibration=self.calibration,
            num_orders=self.num_orders,
            seed=self.seed,
            parts=parts - {HIDDEN},
            feature_set=self.feature_set,
        )
        table = table.select(np.array(sorted(range(table.num_questions), key=table.question_ids.__getitem__)))
        if self.label == VALUE:
            table = replace(table, later=self._stops_later(table))
        if HIDDEN not in parts:
            return table
        check_hidden(self.manifest, self.store, self.ladder)
        vectors = pooled_vectors(store, keys=columns_for(held), hidden_size=self.hidden_size, cache_dir=self.cache_dir)
        return replace(table, vectors=vectors, vector_rows=np.arange(table.num_questions))

    @property
    def columns(self) -> tuple[Key, ...]:
        """Arm and index of the trajectories that the tables' orders are of."""
        return columns_for(held_of(self.manifest, self.store, self.ladder))

    def questions(self) -> dict[str, list[str]]:
        """Return the ids of each split's graded questions."""
        return {name: list(self._tables[name].question_ids) for name in SPLITS}

    @property
    def held_out(self) -> tuple[str, ...]:
        """The splits that a validation runs over: ``val``, and ``calibration`` if it has questions."""
        return ("val", "calibration") if self._tables["calibration"].num_questions else ("val",)

    def settings(self) -> dict[str, Any]:
        """Return the settings that decide what the rows mean and which split they are in."""
        return {name: getattr(self, name) for name in _SETTINGS}

    def description(self) -> dict[str, Any]:
        """Return what a checkpoint has to know of the data, as plain values."""
        return {
            **self.settings(),
            "store": self.store,
            "store_fingerprint": self.manifest.fingerprint,
            "num_orders": self.num_orders,
            "aggregator": self.manifest.aggregator,
            "ladder": self.ladder.texts(),
            "arms": {arm: _plain(self.manifest.arms[arm]) for arm in self.ladder.arms},
            "calibration": dict(self.calibration),
            "model": _plain(self.manifest.model),
            "benchmark": _plain(self.manifest.benchmark),
            "num_questions": {name: self._tables[name].num_questions for name in SPLITS},
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return shuffled batches of the training split."""
        return loader_of(self.table("train"), self.label, self.batch_size, self.seed)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Return the validation split in order, then the calibration split if it has questions."""
        return [self._in_order(split) for split in self.held_out]

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test split in order."""
        return self._in_order("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return every question of the store in its natural order."""
        return self._in_order("predict")

    def _in_order(self, split: str) -> DataLoader[Batch]:
        table = self.table(split)
        rows = _EVALUATION_BYTES * table.rows_per_question // max(1, table.question_bytes)
        return loader_of(table, self.label, min(_EVALUATION_ROWS, max(1, rows)), None)

    def _stops_later(self, table: Table) -> np.ndarray:
        """Return where each row's question stops if it goes on: shape (Q, O, C), int64."""
        p_inc = np.ones(table.scalars.shape[:3])
        threshold = 0.0
        if self.later is not None:
            said = read_predictions(self.later)
            if lacking := set(table.question_ids) - set(said.question_ids):
                raise InputError(
                    f"Expected data.later of every question of {self.store}, but {self.later} lacks {len(lacking)}: "
                    "run dps crossval again on this store."
                )
            said = said.on(table.question_ids)
            compared = {
                "ladder": (str(self.ladder), str(said.ladder)),
                "orders": (table.orders.shape, said.orders.shape),
                "seed": (self.seed, said.seed),
                "store": (self.manifest.fingerprint, said.store_fingerprint),
                "label": (VALUE, said.label_name),
            }
            for name, (expected, came) in compared.items():
                if expected != came:
                    raise InputError(
                        f"Expected data.later with the {name} {expected}, but {self.later} has {came}: cross-validate "
                        "with this ladder, store, seed and data.num_orders."
                    )
            p_inc, threshold = continue_score(said.p_enough), float(score_of_rate(self.later_rate))
        p_inc = np.where(is_decided(table.scalars, self.gate), NEVER_STOP, p_inc)
        return later_stops(p_inc, threshold)

    def _clock(self, folder: str | None) -> dict[str, float]:
        """Return the clock of a store of the same model; the harvest's own without one."""
        if folder is None:
            return dict(self.manifest.calibration)
        other = Store.open(folder).manifest
        came, expected = (m.model.get("fingerprint") for m in (other, self.manifest))
        if came != expected:
            raise InputError(
                f"Expected data.clock_store of the model of {self.store} ({expected}), but {folder} is of {came}: "
                "name an earlier store of the same model on the same device."
            )
        return dict(other.calibration)


def _gate(feature_set: FeatureSet, ladder: Ladder, decided: int | None) -> list[int]:
    """Return the columns of vote margin and k among the scalars, and the lead that decides; nothing for None."""
    if decided is None:
        return []
    names = feature_names(feature_set, ladder)
    if "vote_margin" not in names:
        raise InputError(
            f"data.decided counts votes, but the feature set {feature_set} has none: set data.feature_set to extended, "
            "ladder or recorded, or leave data.decided out."
        )
    return [names.index("vote_margin"), names.index("current_k"), decided]


def _sizes(store: Store, folder: str) -> tuple[int, int, int]:
    """Return D, E and P of a store, from its first question."""
    first: Question | None = next(store.scan(), None)
    if first is None:
        raise InputError(f"Expected at least one question in {folder}, but it has none: let dps harvest finish some.")
    return max(t.hidden.shape[1] for t in first.trajectories), len(first.embedding), len(first.prompt_hidden)


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
