"""Asks a trained controller about stored trajectories in many orders at once, for ``dps replay``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from dps.decide.features import HIDDEN
from dps.decide.ladder import Ladder
from dps.decide.policy import check_arms
from dps.decide.samples import check_hidden, held_of
from dps.decide.table import make_table
from dps.errors import InputError
from feature_store import Store
from lightning_modules.batches import predict_table
from lightning_modules.load import load_controller

_TOGETHER = 32
"""Questions that are read and predicted at a time: bounds the memory, changes no result."""


def predict_orders(
    path: str, store_folder: Path, question_ids: Sequence[str], orders_of: Callable[[Ladder], np.ndarray]
) -> tuple[Ladder, np.ndarray, float, str]:
    """Return a controller's ladder, what it says of a store's questions in every order, its threshold and its label.

    It says p_enough after every rung but the last: shape (Q, O, C).

    Args:
        path: Checkpoint, run folder or controller folder.
        store_folder: A harvest with features.
        question_ids: Q of its questions.
        orders_of: Returns the columns in which a ladder's responses come, of each question: shape (Q, O, n). They count
            the store's responses of the ladder's arms, arm by arm.

    Raises:
        InputError: If the controller does not fit the harvest, was trained on it, or the harvest lacks responses.
    """
    controller = load_controller(path)
    store = Store.open(store_folder)
    controller.check_model(store.manifest.model)
    check_arms(controller, store.manifest.arms)
    data = controller.description["data"]
    if data.get("store_fingerprint") == store.manifest.fingerprint:
        raise InputError(
            f"The controller {path} was trained on {store_folder} itself, so a replay there would flatter it: give the "
            "folder of dps crossval, or replay another harvest."
        )
    ladder = controller.ladder
    orders, ks = orders_of(ladder), ladder.ks
    held = held_of(store.manifest, str(store_folder), ladder)
    parts = controller.parts
    if HIDDEN in parts:
        check_hidden(store.manifest, str(store_folder), ladder)
    place = {question_id: row for row, question_id in enumerate(question_ids)}
    p_enough = np.empty((len(question_ids), orders.shape[1], len(ks) - 1))
    wanted = (q for q in store.scan(hidden=HIDDEN in parts) if q.question_id in place)
    while questions := list(islice(wanted, _TOGETHER)):
        rows = [place[question.question_id] for question in questions]
        table = make_table(
            questions,
            ladder=ladder,
            totals=held,
            aggregator=store.manifest.aggregator,
            calibration=controller.calibration,
            parts=parts,
            feature_set=controller.feature_set,
            orders=orders[rows],
        )
        controller.check_sizes(table.hidden_size, table.embedding.shape[1], table.prompt.shape[1])
        p_enough[rows] = predict_table(controller.estimator, table)
    return ladder, p_enough, controller.threshold, controller.label
