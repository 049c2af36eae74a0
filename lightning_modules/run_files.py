"""The files that a training and a prediction write: each is whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from dps.decide.labels import continue_score
from feature_store.files import replace_file


def write_json(path: Path, content: Any) -> None:
    """Write JSON, complete or not at all."""
    replace_file(path, json.dumps(content, indent=1) + "\n")


class WholeCheckpoints(TorchCheckpointIO):
    """Gives a checkpoint its name when it is whole, so that a killed training leaves none in part."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint under a temporary name, then rename it."""
        temporary = f"{path}.tmp"
        super().save_checkpoint(checkpoint, temporary, storage_options)
        os.replace(temporary, path)


class SaveConfigBesideCheckpoints(SaveConfigCallback):
    """Writes ``config.yaml`` when the first checkpoint is written, so that it is always the checkpoints' own."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write nothing yet: what stands there belongs to the checkpoints that stand there."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the configuration into the checkpoint, and beside it at the first one."""
        checkpoint["config"] = self._text
        path = Path(trainer.default_root_dir) / self.config_filename
        if not path.is_file() or path.read_text() != self._text:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, self._text)

    @cached_property
    def _text(self) -> str:
        """The configuration as YAML, which takes longer to make than an epoch of trees."""
        return self.parser.dump(self.config, skip_none=False)


class PredictionWriter(BasePredictionWriter):
    """Writes p_enough of every question and checkpoint as CSV."""

    def __init__(self, path: Path) -> None:
        """Set where to write."""
        super().__init__("epoch")
        self._path = path

    def write_on_epoch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        predictions: Sequence[Tensor],
        batch_indices: Sequence[Any],
    ) -> None:
        """Write columns question_id, split, k, p_enough, and the number of trajectories that would be added."""
        import pandas as pd

        data, threshold = trainer.datamodule, float(pl_module.estimator.threshold)
        table = data.table("predict")
        probabilities = [float(p) for batch in predictions for p in batch]
        places = [(question_id, *step) for question_id in table.question_ids for step in pairwise(table.ks)]
        rows = [
            (name, data.split_of(name), k, f"{p:.6f}", following - k if continue_score(p) > threshold else 0)
            for (name, k, following), p in zip(places, probabilities, strict=False)
        ]
        frame = pd.DataFrame(rows, columns=["question_id", "split", "k", "p_enough", "add"])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._path, frame.to_csv(index=False, lineterminator="\r\n"))
        print(f"{self._path}: {len(probabilities)} rows of {table.num_questions} questions")
