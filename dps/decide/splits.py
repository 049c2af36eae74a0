"""Which split and which fold a question belongs to: a hash of its id, with all its rows.

The same question may have several ids; whoever divides questions divides the ids of :func:`divided_as`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from feature_store.records import representatives

SPLITS: tuple[str, ...] = ("train", "val", "calibration", "test")
"""Who learns, who chooses the epoch, who calibrates the probabilities, who is only asked. The threshold is chosen on
the two in the middle."""


def stable_number(*words: object) -> int:
    """Return a number in [0, 2^64) that depends on these words only, the same in every process."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, words)).encode()).digest()[:8], "big")


def divided_as(question_ids: Sequence[str], contents: Sequence[str]) -> tuple[str, ...]:
    """Return the id by which each question is divided: one for all with the same ``content_of`` their text."""
    stand_for = representatives(dict(zip(question_ids, contents, strict=True)))
    return tuple(stand_for[question_id] for question_id in question_ids)


def split_of(
    question_id: str, train_fraction: float, val_fraction: float, seed: int, calibration_fraction: float = 0.0
) -> str:
    """Return the split of a question, one of :data:`SPLITS`; the fractions are expected shares, the rest is ``test``.

    It depends on the id and the seed only, so a question stays where it is when its store grows, and has the same split
    in every store.
    """
    position = stable_number("split", seed, question_id) / 2**64
    ends = np.cumsum([train_fraction, val_fraction, calibration_fraction])
    return SPLITS[int((position >= ends).sum())]


def fold_of(question_id: str, folds: int, seed: int) -> int:
    """Return the fold of a question in a cross-validation, in 0..folds - 1, whatever other questions there are."""
    return stable_number("fold", seed, question_id) % folds


def folds_of(question_ids: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """Return the fold of each of a fixed set of questions, balanced to one question: shape (Q,), int64.

    An id that is given several times, because questions are the same, has one fold.
    """
    ordered = sorted(set(question_ids), key=lambda name: stable_number("fold", seed, name))
    rank = {name: place for place, name in enumerate(ordered)}
    return np.array([rank[name] for name in question_ids], dtype=np.int64) % folds


def other_folds(folds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the mask of each fold's questions, and that of all others, on which something is chosen for them.

    With one fold only there is nothing else to choose on, and its own questions are taken.
    """
    names = np.unique(folds)
    for fold in names:
        mine = folds == fold
        yield mine, ~mine if len(names) > 1 else mine
