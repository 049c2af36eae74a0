"""What all controllers share when they are trained, validated and tested.

Gets batches from ``data``; after every epoch it calibrates the probabilities on the calibration split, measures the
validation split, replays dynamic policies over both and chooses the threshold, so that every checkpoint holds a
controller that is ready for live runs (``load``).
"""

from __future__ import annotations

import logging
import math
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn import functional

from dps.arguments import check_margin
from dps.decide.features import FeatureSet, feature_names
from dps.decide.labels import VALUE, Label, continue_score
from dps.decide.ladder import Ladder
from dps.decide.table import Table
from dps.decide.thresholds import choose_threshold, effective_margin, replay, stops
from dps.errors import InputError
from lightning_modules.batches import Batch
from lightning_modules.calibration import Method
from lightning_modules.data import FeatureDataModule
from lightning_modules.estimators import Estimator, is_decided
from lightning_modules.load import DESCRIPTION, FORMAT
from lightning_modules.metrics import RANKINGS, TestResult, baselines, measure_probabilities, measure_test, skills

_log = logging.getLogger("lightning_modules")


class ControllerModule(L.LightningModule):
    """Trains an estimator of the probability that k is enough.

    A subclass sets ``name``, gives its estimator to ``__init__`` and writes ``training_step`` and
    ``configure_optimizers``. It needs a Trainer with a :class:`~lightning_modules.data.FeatureDataModule`.
    """

    name: ClassVar[str]
    """``gbdt``, ``mlp-h`` or ``mlp-hq``."""

    def __init__(
        self,
        estimator: Estimator,
        settings: dict[str, Any],
        *,
        hidden_size: int,
        embedding_size: int,
        prompt_size: int,
        feature_set: FeatureSet,
        rungs: list[str],
        label: Label,
        calibration: Method,
        margin: float,
    ) -> None:
        """Keep what all controllers have.

        Args:
            estimator: What predicts.
            settings: Its arguments as plain values, to build it again.
            hidden_size: Size of the harvest's hidden states; set from the store.
            embedding_size: Size of the harvest's question embeddings; set from the store.
            prompt_size: Size of the harvest's hidden states of the prompt; set from the store.
            feature_set: The scalars; set from the data module.
            rungs: The ladder; set from the data module.
            label: What is learnt; set from the data module.
            calibration: Of the probabilities, on the calibration split: `none` or `temperature`, one number.
            margin: Loss of accuracy against k = maximum that the threshold has to exclude, on the questions that
                trained nothing.
        """
        check_margin(margin)
        if label == VALUE and calibration != "none":
            raise InputError(
                f"The label value is no probability, so it has no calibration, got {calibration}: set it as "
                "configs/value.yaml does, or choose another data.init_args.label."
            )
        super().__init__()
        self.estimator = estimator
        self.margin = margin
        self.test_result: TestResult | None = None
        """What the last test measured."""
        self._description: dict[str, Any] = {
            "format": FORMAT,
            "name": self.name,
            "settings": settings,
            "feature_set": feature_set,
            "feature_names": list(feature_names(feature_set, Ladder.parse(rungs))),
            "hidden_size": hidden_size,
            "embedding_size": embedding_size,
            "prompt_size": prompt_size,
        }
        self._calibration = calibration
        self._terms: dict[str, list[Tensor]] = {}
        self._others: dict[str, np.ndarray] | None = None
        self._said = False

    @property
    def parts(self) -> frozenset[str]:
        """The parts of the features that it uses; the data module makes no others."""
        return self.estimator.parts

    @property
    def data(self) -> FeatureDataModule:
        """The data module of the run."""
        return self.trainer.datamodule

    # -- what the Trainer calls ------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Before training, note what the checkpoint has to know of the data.

        Raises:
            InputError: If there is nothing to calibrate on.
        """
        if stage != TrainerFn.FITTING:
            return
        if self._calibration != "none" and "calibration" not in self.data.held_out:
            raise InputError(
                f"Expected questions to calibrate on, but data.calibration_fraction {self.data.calibration_fraction:g} "
                "leaves none: set it to 0.1 or more, or model.init_args.calibration to none."
            )
        self._description["data"] = self.data.description()
        if self.data.learnt is not None:
            self.estimator.learnt.take(self.data.learnt)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep the terms of the logits of a batch until its split is complete."""
        self._keep(batch, self.data.held_out[dataloader_idx])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the terms of the logits of a batch until the split is complete."""
        self._keep(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return p_enough of a batch, shape (N,)."""
        return self.estimator.predict_enough(batch.scalars, batch.hidden, batch.embedding)

    def on_validation_epoch_end(self) -> None:
        """Measure the validation split; in training also weigh the terms, calibrate and choose the threshold."""
        terms = {split: self._kept(split) for split in self.data.held_out}
        table = terms["val"][1]
        if table is None or self.trainer.sanity_checking:
            return
        if not all(each.isfinite().all() for each, _ in terms.values()):
            raise InputError(
                f"The training has diverged in epoch {self.current_epoch + 1}, the network's outputs are no numbers: "
                "lower the learning rate."
            )
        training = self.trainer.state.fn == TrainerFn.FITTING
        labels = table.labels(self.data.label)
        if training:
            open_rows = ~is_decided(table.scalars, self.estimator.gate).reshape(-1)
            chosen = terms["val"][0][torch.from_numpy(open_rows)]
            self.estimator.weigh(chosen, labels.reshape(-1)[open_rows], table.num_questions)
        kept = {split: (self._combined(each), of) for split, (each, of) in terms.items()}
        if training and self._calibration != "none" and (of := kept["calibration"][1]) is not None:
            rows = kept["calibration"][0].numpy(), of.labels(self.data.label).reshape(-1)
            open_rows = ~is_decided(of.scalars, self.estimator.gate).reshape(-1)
            rows = rows[0][open_rows], rows[1][open_rows]
            self.estimator.calibrator.fit(self._calibration, *rows, of.num_questions)
        logits = kept["val"][0]
        p = self._p_label(logits, table)
        # The loss is that of the logits: the epoch is chosen by what was trained, calibration comes after it.
        loss = self._loss(terms["val"][0], logits, table)
        values = {**self._measure(p, labels), "loss": loss}
        # The threshold is one number and the policy is the same whoever is asked: both splits decide it together. They
        # trained nothing but chose epoch and temperature; the bound is for the choice among thresholds.
        together = [(self._p_label(each, of), of) for each, of in kept.values() if of is not None]
        p_inc = continue_score(np.concatenate([p for p, _ in together]))
        correct, tokens = (np.concatenate([getattr(of, name) for _, of in together]) for name in ("correct", "tokens"))
        if training:
            self.estimator.threshold.fill_(choose_threshold(p_inc, correct, tokens, self.margin))
        threshold = float(self.estimator.threshold)
        chosen = replay(stops(p_inc, threshold), correct, tokens, table.ks)
        values |= {
            "threshold": threshold,
            "accuracy": chosen.accuracy,
            "accuracy_maximum": float(correct[..., -1].mean()),
            "tokens_share": chosen.tokens / float(tokens[..., -1].mean()),
            "mean_k": chosen.mean_k,
        }
        self.log_dict({f"val/{name}": value for name, value in values.items()})
        if self._others is None:  # the same in every epoch
            train = self.data.table("train")
            self._others = baselines(train.labels(self.data.label), train.lengths, table.lengths)
        self._description["validation"] = {
            "epoch": self.current_epoch,
            **values,
            "num_questions": table.num_questions,
            "num_threshold_questions": len(correct),
            "margin": effective_margin(len(correct), self.margin),
            # A value is no probability of anything.
            "skill": skills(p, labels, self._others) if self.data.label != VALUE else {},
        }

    def on_test_epoch_end(self) -> None:
        """Measure the test split beside question length alone, and replay the policies over it."""
        terms, table = self._kept("test")
        if table is None:
            return
        self.test_result = measure_test(
            self.name,
            self._p_label(self._combined(terms), table),
            float(self.estimator.threshold),
            self.data.label,
            table,
            self.data.table("train"),
        )
        self.log_dict({f"test/{name}": value for name, value in self.test_result.metrics.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a live run has to know, as plain values."""
        checkpoint[DESCRIPTION] = dict(self._description)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what the checkpoint's training noted; a training that goes on notes its own data."""
        self._description = {**checkpoint[DESCRIPTION], **self._description}

    # -- parts of the above ----------------------------------------------------------------------------------------

    def _p_label(self, logits: Tensor, table: Table) -> np.ndarray:
        """Return the calibrated probability of the label: shape (Q, O, C)."""
        scalars = torch.from_numpy(table.scalars.reshape(len(logits), -1))
        return self.estimator.p_enough(logits, scalars).numpy().reshape(table.scalars.shape[:3])

    def _undecided(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """Return scalars (N, F) and labels (N,), or gains and costs (N, 2), of the rows that the votes leave open."""
        mine = ~is_decided(table.scalars, self.estimator.gate)
        if not mine.any():
            raise InputError("The votes decide every row of the training split: set data.decided higher, or null.")
        label = np.stack(table.values(), axis=-1) if self.data.label == VALUE else table.labels(self.data.label)
        return table.scalars[mine], label[mine]

    def _loss(self, terms: Tensor, logits: Tensor, table: Table) -> float:
        """Return the validation's loss: cross-entropy in nats, or the squared error of the net value of going on.

        That is the gain, less what the cost is worth at ``data.later_rate``: what the decision is taken by.
        """
        mine = torch.from_numpy(~is_decided(table.scalars, self.estimator.gate).reshape(-1))
        if not mine.any():
            return 0.0
        if self.data.label == VALUE:
            target = torch.stack([torch.from_numpy(of.reshape(-1)).double() for of in table.values()], dim=1)
            errors = self.estimator.gain_and_cost(terms)[mine] - target[mine] / torch.tensor([1.0, 1000.0])
            return float((errors[:, 0] - self.data.later_rate / 100 * errors[:, 1]).square().mean())
        target = torch.from_numpy(table.labels(self.data.label).reshape(-1).astype(np.float64))
        return float(functional.binary_cross_entropy_with_logits(logits[mine], target[mine]))

    def _keep(self, batch: Batch, split: str) -> None:
        with torch.no_grad():
            terms = self.estimator.terms(batch.scalars, batch.hidden, batch.embedding).double().cpu()
        self._terms.setdefault(split, []).append(terms)

    def _combined(self, terms: Tensor) -> Tensor:
        """Return the logits, shape (N,), float64, of terms that were kept."""
        return self.estimator.combine(terms.to(self.device)).cpu()

    def _kept(self, split: str) -> tuple[Tensor, Table | None]:
        """Return the terms that were kept and the questions they are of, complete ones only; None if there is none."""
        kept = self._terms.pop(split, [])
        terms = torch.cat(kept) if kept else torch.zeros(0, 1, dtype=torch.float64)
        table = self.data.table(split)
        # There are fewer rows than the table has where the Trainer limits the batches, as a trial run does.
        rows_per_question = table.num_rows // table.num_questions
        complete = len(terms) // rows_per_question
        if complete == 0:
            return terms, None
        return terms[: complete * rows_per_question], table.select(np.arange(complete))

    def _measure(self, p: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return metrics of the validation split, (Q, O, C) each; of one class those that mean something there."""
        flat = (values.reshape(len(p), -1) for values in (p, labels))
        measured = measure_probabilities(*flat, np.zeros((0, len(p))))
        if labels.min() == labels.max() and not self._said:
            self._said = True
            _log.warning(
                "The validation split has one class only: all %d rows are %s%s. AUROC and average precision are left "
                "out.",
                labels.size,
                "" if labels.all() else "not ",
                self.data.label,
            )
        told = {name: number.value for name, number in measured.items() if not math.isnan(number.value)}
        return {name: told[name] for name in told if self.data.label != VALUE or name in RANKINGS}
