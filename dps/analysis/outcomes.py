"""What every policy of a replay gives on each question, as a file: ``outcomes.npz``, which ``dps recommend`` reads.

A *point* is a policy at one threshold, rate or number of responses. Bounds and chance are not in the file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from dps.analysis.policies import ReplayedPolicy
from dps.decide.ladder import Ladder, Rung
from dps.errors import InputError
from feature_store.files import replace_file

FILE = "outcomes.npz"
VERSION = 1
"""Of the file; another one is refused."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """P points on Q graded questions."""

    question_ids: tuple[str, ...]
    """Q of them."""
    fold: np.ndarray
    """The fold that each question belongs to: shape (Q,), int64."""
    names: tuple[str, ...]
    """Name of the policy of each point as the page has it, P of them; of a fixed budget its arm and number."""
    settings: tuple[dict[str, Any], ...]
    """What each point is, P of them: see :func:`settings_of`."""
    correct: np.ndarray
    """Share of the orders whose answer is right: shape (P, Q), float32."""
    tokens: np.ndarray
    """Mean tokens, rejected ones included: shape (P, Q), float32."""


def settings_of(policy: ReplayedPolicy, point: int) -> dict[str, Any]:
    """Return what a point of a curve is, as JSON values.

    ``policy`` (its name), ``series`` (of its ladder), ``ladder`` (the rungs that it climbs on any question, which may
    end before the series' ladder does), ``arms`` (their names), ``family``, ``aggregator``, ``k`` (a fixed budget's,
    else None), ``threshold`` (else), ``controller`` (where it is from) and ``rule`` (its settings) or None.
    """
    assert policy.ladder is not None
    is_fixed, ladder, threshold = policy.family == "fixed", policy.ladder, float(policy.thresholds[point])
    if policy.reached is not None:
        ladder = Ladder(ladder.rungs[: ladder.ks.index(int(policy.reached[point])) + 1])
    if is_fixed:  # nobody is asked on the way
        runs = groupby(arm for arm, _ in ladder.sequence(int(threshold)))
        ladder = Ladder(tuple(Rung(arm, len(list(run))) for arm, run in runs))
    return {
        "policy": policy.name,
        "series": policy.series,
        "ladder": ladder.texts(),
        "arms": list(ladder.arms),
        "family": policy.family,
        "aggregator": policy.aggregator,
        "k": int(threshold) if is_fixed else None,
        "threshold": None if is_fixed else threshold,
        "controller": policy.controller,
        "rule": None if policy.rule is None else {**policy.rule, "threshold": threshold},
    }


def outcomes_of(policies: Sequence[ReplayedPolicy], question_ids: Sequence[str], folds: np.ndarray) -> Outcomes:
    """Return every point of every policy that could be run."""
    told = [policy for policy in policies if policy.family not in ("oracle", "chance")]
    points = [(p, i, point) for p in told for i, point in enumerate(p.curve)]
    return Outcomes(
        tuple(question_ids),
        folds,
        tuple(policy.row_name(policy.thresholds[i]) for policy, i, _ in points),
        tuple(settings_of(policy, i) for policy, i, _ in points),
        np.stack([point.correct for _, _, point in points]).astype(np.float32),
        np.stack([point.tokens for _, _, point in points]).astype(np.float32),
    )


def write_outcomes(path: Path, outcomes: Outcomes) -> None:
    """Write a file of outcomes, complete or not at all."""
    file = io.BytesIO()
    np.savez_compressed(
        file,
        version=VERSION,
        question_ids=np.array(outcomes.question_ids),
        fold=outcomes.fold,
        names=np.array(outcomes.names),
        settings=np.array([json.dumps(one, allow_nan=False) for one in outcomes.settings]),
        correct=outcomes.correct,
        tokens=outcomes.tokens,
    )
    replace_file(path, file.getvalue())


def read_outcomes(folder: Path) -> Outcomes:
    """Read the outcomes in the folder of a replay; an InputError for anything else."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise InputError(f"Expected the folder of a replay, but there is no {path}: make it with dps replay.")
    try:
        with np.load(path, allow_pickle=False) as file:
            if int(file["version"]) != VERSION:
                raise ValueError(f"version {int(file['version'])} instead of {VERSION}")
            arrays: Mapping[str, np.ndarray] = {name: file[name] for name in file.files}
        settings = tuple(json.loads(str(one)) for one in arrays["settings"])
        names, ids = (tuple(map(str, arrays[name])) for name in ("names", "question_ids"))
        found = Outcomes(ids, arrays["fold"], names, settings, arrays["correct"], arrays["tokens"])
        shape = (len(names), len(ids))
        if not found.correct.shape == found.tokens.shape == shape == (len(settings), *found.fold.shape):
            raise ValueError("arrays of different shapes")
    except (OSError, KeyError, ValueError, TypeError, BadZipFile) as error:
        raise InputError(
            f"Expected {path} as dps replay wrote it, but it cannot be read ({error}): run dps replay again."
        ) from error
    return found
