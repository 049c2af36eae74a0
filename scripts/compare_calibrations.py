"""Compare the calibrations of controllers that a cross-validation trained, out of fold.

    python scripts/compare_calibrations.py runs/embedded/crossval/* --store runs/embedded/harvest \
        --table docs/results/controllers/calibrations.json

Nothing is trained: the logits of each fold's controller are calibrated on its calibration split by each method, and
measured on the fold's own questions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from dps.decide.table import Table
from lightning_modules.batches import to_tensor
from lightning_modules.calibration import METHODS, Calibrator
from lightning_modules.crossval import fold_questions
from lightning_modules.data import FeatureDataModule
from lightning_modules.estimators import Estimator
from lightning_modules.load import load_controller
from lightning_modules.metrics import measure_probabilities, question_draws

METRICS = ("auroc", "brier", "calibration_error", "log_loss")


def logits_of(estimator: Estimator, table: Table) -> np.ndarray:
    """Return the logits of every row before calibration: shape (Q, O * C)."""
    rows = table.rows_per_question
    arrays = (
        table.scalars.reshape(table.num_rows, -1),
        table.inputs_of(np.arange(table.num_rows)),
        np.repeat(table.embedding, rows, axis=0),
    )
    with torch.no_grad():
        return estimator(*(to_tensor(each, torch.float64) for each in arrays)).numpy().reshape(-1, rows)


def compare(folder: Path, store: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return the metrics of each method on the questions of one cross-validation."""
    controllers = [load_controller(fold) for fold in sorted(folder.glob("fold-*"))]
    trained = controllers[0].description["data"]
    data = FeatureDataModule(
        store,
        label=trained["label"],
        pooling=trained["pooling"],
        spread=controllers[0].spread,
        feature_set=trained["feature_set"],
        num_orders=trained["num_orders"],
        seed=trained["seed"],
    )
    table = data.whole(controllers[0].estimator.parts)
    table = table.select(table.graded)
    labels = table.labels(trained["label"]).reshape(table.num_questions, -1)
    place = {name: i for i, name in enumerate(table.question_ids)}
    found = {method: np.full(labels.shape, np.nan) for method in METHODS}
    for fold, controller in zip(sorted(folder.glob("fold-*")), controllers, strict=True):
        ids = fold_questions(fold)
        fitted, tested = (np.array([place[name] for name in ids[split]]) for split in ("calibration", "test"))
        before, asked = (logits_of(controller.estimator, table.select(part)) for part in (fitted, tested))
        for method, p in found.items():
            calibrator = Calibrator()
            calibrator.fit(method, before.reshape(-1), labels[fitted].reshape(-1), len(fitted))
            p[tested] = calibrator(torch.from_numpy(asked.reshape(-1))).numpy().reshape(asked.shape)
    draws = question_draws(table.num_questions, 500, seed=0)
    measured = {method: measure_probabilities(p, labels, draws) for method, p in found.items()}
    return {
        method: {name: {"value": round(each[name].value, 4), "stderr": round(each[name].stderr, 4)} for name in METRICS}
        for method, each in measured.items()
    }


def main() -> None:
    """Compare on every folder and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="folders of dps crossval")
    parser.add_argument("--store", required=True, help="the harvest they were trained on")
    parser.add_argument("--table", type=Path, default=Path("docs/results/controllers/calibrations.json"))
    options = parser.parse_args()
    table = {folder.name: compare(folder, options.store) for folder in sorted(options.folders)}
    options.table.write_text(json.dumps(table, indent=1) + "\n")
    for name, methods in table.items():
        for method, values in methods.items():
            numbers = "  ".join(f"{m} {v['value']:.4f} ± {v['stderr']:.4f}" for m, v in values.items())
            print(f"{name:<28}{method:<12} {numbers}")


if __name__ == "__main__":
    main()
