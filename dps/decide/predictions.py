"""Out-of-fold predictions as a file: what ``crossval`` writes and a replay of policies reads.

Needs ``h5py`` and NumPy only. ``docs/controllers_format.md`` specifies the file, so that it can also be read without
this module.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from dps.errors import InputError
from feature_store.hdf5 import hdf5_in_memory, image_of, open_hdf5
from feature_store.hostile import dataset_in

FILE = "predictions.h5"
FORMAT = "dps-predictions"
FORMAT_VERSION = 1
"""A change that old readers cannot follow raises it."""

_ARRAYS = {
    "fold": np.int32,
    "orders": np.int32,
    "p_enough": np.float64,
    "threshold": np.float64,
    "label": np.int8,
    "correct": np.int8,
    "tokens": np.int64,
}
_TEXTS = ("name", "feature_set", "aggregator", "store_fingerprint")


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What controllers said of Q questions that they had not seen, in O orders at C checkpoints."""

    name: str
    """``gbdt``, ``mlp-h`` or ``mlp-hq``."""
    label_name: str
    """``no_gain``, ``correct`` or ``solvable``: what ``p_enough`` is the probability of."""
    ks: tuple[int, ...]
    """Trajectories at each checkpoint, then the maximum: C + 1 of them."""
    feature_set: str
    """``published`` or ``extended``."""
    aggregator: str
    """How k answers became one."""
    seed: int
    """Of the division into folds and of the orders."""
    store_fingerprint: str
    """Fingerprint of the harvest."""
    question_ids: tuple[str, ...]
    """Q of them, in the order of the arrays."""
    fold: np.ndarray
    """The fold that each question belongs to: shape (Q,), int32."""
    orders: np.ndarray
    """Trajectory indices in each order, the first order is the natural one: shape (Q, O, K), int32."""
    p_enough: np.ndarray
    """Calibrated probability that k is enough, by the controller of the question's fold, which has not seen it: shape
    (Q, O, C), float64."""
    threshold: np.ndarray
    """That controller's threshold: shape (Q,), float64."""
    label: np.ndarray
    """1 where k is enough, 0 where not, -1 without a grade: shape (Q, O, C), int8."""
    correct: np.ndarray
    """1 where the answer of the first k is right, 0 where wrong, -1 without a grade: shape (Q, O, C + 1), int8."""
    tokens: np.ndarray
    """Tokens generated for the first k, rejected ones included: shape (Q, O, C + 1), int64."""
    block: int | None = None
    """The block after which they were asked while trajectories run; None where all have ended."""


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a file of predictions, complete or not at all."""
    temporary = path.with_suffix(".tmp")
    ids = [question_id.encode() for question_id in predictions.question_ids]
    with hdf5_in_memory() as file:
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        for name in _TEXTS:
            file.attrs[name] = getattr(predictions, name)
        file.attrs["label"] = predictions.label_name
        file.attrs["ks"] = np.array(predictions.ks, dtype=np.int64)
        file.attrs["seed"] = predictions.seed
        file.attrs["block"] = predictions.block or 0
        width = max(map(len, ids), default=1)
        file.create_dataset("question_id", data=np.array(ids, dtype=h5py.string_dtype("utf-8", width)))
        for name, dtype in _ARRAYS.items():
            file.create_dataset(name, data=getattr(predictions, name).astype(dtype, casting="same_kind"))
        content = image_of(file)
    with open(temporary, "wb") as written:
        written.write(content)
        os.fsync(written.fileno())
    os.replace(temporary, path)


def read_predictions(path: str | Path) -> Predictions:
    """Read a file of predictions.

    Args:
        path: The file, or the folder of a cross-validation that holds it.

    Raises:
        InputError: If there is none, or it is another file or of another version.
    """
    path = Path(path)
    found = path / FILE if path.is_dir() else path
    if not found.is_file():
        raise InputError(
            f"Expected out-of-fold predictions at {path}, but there is no {found}: dps crossval --config "
            "configs/mlp_hq.yaml writes them."
        )
    try:
        with open_hdf5(found) as file:
            if file.attrs.get("format") != FORMAT:
                raise InputError(f"Expected predictions of dps crossval, but {found} is some other HDF5 file.")
            version = int(file.attrs["format_version"])
            if version != FORMAT_VERSION:
                raise InputError(
                    f"Expected predictions of format version {FORMAT_VERSION}, but {found} has {version}: run dps "
                    "crossval again with this version."
                )
            return Predictions(
                label_name=str(file.attrs["label"]),
                ks=tuple(int(k) for k in file.attrs["ks"]),
                seed=int(file.attrs["seed"]),
                block=int(file.attrs.get("block", 0)) or None,
                question_ids=tuple(name.decode() for name in dataset_in(file, "question_id")[()]),
                **{name: str(file.attrs[name]) for name in _TEXTS},
                **{name: dataset_in(file, name)[()] for name in _ARRAYS},
            )
    except InputError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise InputError(
            f"Expected predictions of dps crossval, but {found} cannot be read as such ({type(error).__name__}): run "
            "it again."
        ) from error
