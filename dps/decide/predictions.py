"""Out-of-fold predictions as a file: what ``crossval`` writes and a replay of policies reads.

``docs/controllers_format.md`` specifies the file, so that it can also be read without this module.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from dps.decide.labels import LABELS
from dps.decide.ladder import Key, Ladder
from dps.decide.samples import OfQuestions
from dps.errors import InputError
from feature_store.files import replace_file
from feature_store.hdf5 import hdf5_in_memory, image_of, open_hdf5
from feature_store.hostile import dataset_in

FILE = "predictions.h5"
FORMAT = "dps-predictions"
FORMAT_VERSION = 2
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
class Predictions(OfQuestions):
    """What controllers said of Q questions that they had not seen, in O orders at C checkpoints."""

    BY_QUESTION = ("question_ids", *_ARRAYS)
    name: str
    """``gbdt``, ``mlp-h`` or ``mlp-hq``."""
    label_name: str
    """What ``p_enough`` is of, one of :data:`dps.decide.labels.LABELS`."""
    ladder: Ladder
    """What the controllers were trained on."""
    columns: tuple[Key, ...]
    """Arm and index of each of the K trajectories that ``orders`` are of."""
    ks: tuple[int, ...]
    """Trajectories at each checkpoint, then the maximum: C + 1 of them."""
    feature_set: str
    """The scalars, see :func:`dps.decide.features.feature_names`."""
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
    """Columns in each order, of which the ladder's end has n <= K; the first is natural: shape (Q, O, n), int32."""
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

    @property
    def graded(self) -> np.ndarray:
        """Whether each question has a grade: shape (Q,), bool."""
        return self.label[:, 0, 0] >= 0

    def at(self, ks: Sequence[int]) -> Predictions:
        """Return what was said at some checkpoints, the last of which is the maximum there.

        An InputError if the controllers were not asked at these.
        """
        asked, ks = self.ks[:-1], tuple(ks)
        if not set(ks[:-1]) <= set(asked) or ks[-1] not in self.ks:
            raise InputError(
                f"The cross-validation of {self.name} asks at k = {', '.join(map(str, asked))} of at most "
                f"{self.ks[-1]}, the policy at {', '.join(map(str, ks[:-1]))} of at most {ks[-1]}: set k to a part of "
                "its range, or cross-validate on a harvest with that range."
            )
        columns = [self.ks.index(k) for k in ks]
        return replace(
            self,
            ks=ks,
            **{name: getattr(self, name)[..., columns[:-1]] for name in ("p_enough", "label")},
            **{name: getattr(self, name)[..., columns] for name in ("correct", "tokens")},
        )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a file of predictions, complete or not at all."""
    ids = [question_id.encode() for question_id in predictions.question_ids]
    with hdf5_in_memory() as file:
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        for name in _TEXTS:
            file.attrs[name] = getattr(predictions, name)
        file.attrs["label"] = predictions.label_name
        file.attrs["ladder"] = json.dumps(predictions.ladder.texts())
        file.attrs["columns"] = json.dumps([f"{arm} {index}" for arm, index in predictions.columns])
        file.attrs["ks"] = np.array(predictions.ks, dtype=np.int64)
        file.attrs["seed"] = predictions.seed
        width = max(map(len, ids), default=1)
        file.create_dataset("question_id", data=np.array(ids, dtype=h5py.string_dtype("utf-8", width)))
        for name, dtype in _ARRAYS.items():
            file.create_dataset(name, data=getattr(predictions, name).astype(dtype, casting="same_kind"))
        replace_file(path, image_of(file))


def read_predictions(path: str | Path) -> Predictions:
    """Read a file of predictions, or the one in the folder of a cross-validation; an InputError for anything else."""
    path = Path(path)
    place = path / FILE if path.is_dir() else path
    if not place.is_file():
        raise InputError(
            f"Expected out-of-fold predictions at {path}, but there is no {place}: dps crossval --config "
            "configs/mlp_hq.yaml writes them."
        )
    try:
        with open_hdf5(place) as file:
            if file.attrs.get("format") != FORMAT:
                raise InputError(f"Expected predictions of dps crossval, but {place} is some other HDF5 file.")
            version = int(file.attrs["format_version"])
            if version != FORMAT_VERSION:
                raise InputError(
                    f"Expected predictions of format version {FORMAT_VERSION}, but {place} has {version}: run dps "
                    "crossval again with this version."
                )
            predictions = Predictions(
                label_name=str(file.attrs["label"]),
                ladder=Ladder.parse(json.loads(file.attrs["ladder"])),
                columns=_columns(json.loads(file.attrs["columns"])),
                ks=tuple(int(k) for k in file.attrs["ks"]),
                seed=int(file.attrs["seed"]),
                question_ids=tuple(name.decode() for name in dataset_in(file, "question_id")[()]),
                **{name: str(file.attrs[name]) for name in _TEXTS},
                **{n: dataset_in(file, n)[()].astype(dtype, casting="same_kind") for n, dtype in _ARRAYS.items()},
            )
            _check(predictions)
            return predictions
    except InputError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise InputError(
            f"Expected predictions of dps crossval, but {place} cannot be read as such ({type(error).__name__}): run "
            "it again."
        ) from error


def _columns(texts: Sequence[str]) -> tuple[Key, ...]:
    """Return the arm and index that each text has."""
    return tuple((arm, int(index)) for arm, index in (text.split(" ") for text in texts))


def _check(predictions: Predictions) -> None:
    """Raise ValueError where the values of a file do not belong together."""
    questions, num_orders, most = predictions.orders.shape
    ks = predictions.ks
    asked, every = (questions, num_orders, len(ks) - 1), (questions, num_orders, len(ks))
    expected = {"fold": (questions,), "threshold": (questions,), "p_enough": asked, "label": asked, "correct": every}
    expected["tokens"] = every
    whole = all(getattr(predictions, name).shape == shape for name, shape in expected.items())
    if not whole or len(predictions.question_ids) != questions:
        raise ValueError("arrays of different shapes")
    if len(ks) < 2 or list(ks) != sorted({k for k in ks if 0 < k <= most}):
        raise ValueError("checkpoints that do not increase")
    if not set(ks) <= set(predictions.ladder.ks) or len(set(predictions.columns)) != len(predictions.columns):
        raise ValueError("checkpoints or columns that are not the ladder's")
    ordered = np.sort(predictions.orders, axis=-1)
    if (np.diff(ordered) <= 0).any() or ((ordered < 0) | (ordered >= len(predictions.columns))).any():
        raise ValueError("orders that take a trajectory twice, or one that is not there")
    if predictions.label_name not in LABELS or not np.isfinite(predictions.p_enough).all():
        raise ValueError("an unknown label or probabilities that are none")
