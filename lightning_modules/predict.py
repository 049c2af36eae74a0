"""Asks a trained controller about stored trajectories in many orders at once, for ``dps replay``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dps.errors import InputError
from dps.scheduler import features_for
from feature_store import Question, Store
from lightning_modules.load import load_controller


def predict_orders(path: str, store_folder: Path, orders: np.ndarray, ks: tuple[int, ...]) -> np.ndarray:
    """Return p_enough of every graded question of a store, in every order, at every checkpoint.

    Args:
        path: Checkpoint, run folder or controller folder.
        store_folder: A harvest with features.
        orders: Orders of the trajectories of each graded question, in order of id: shape (Q, O, K).
        ks: C checkpoints, then the maximum.

    Returns:
        Shape (Q, O, C), float64.

    Raises:
        InputError: If the controller does not fit the harvest, was trained on it, or knows other checkpoints.
    """
    controller = load_controller(path)
    store = Store.open(store_folder)
    controller.check_model(store.manifest.model)
    if controller.block is not None or controller.label == "solvable":
        raise InputError(
            f"The controller {path} was trained to be asked after block {controller.block} while trajectories run, a "
            "replay asks where they have ended: leave it out."
        )
    data = controller.description["data"]
    if data["store_fingerprint"] == store.manifest.fingerprint:
        raise InputError(
            f"The controller {path} was trained on {store_folder} itself, so a replay there would flatter it: give the "
            "folder of dps crossval, or replay another harvest."
        )
    if set(ks[:-1]) - set(controller.ks[:-1]):
        raise InputError(
            f"The controller {path} was trained to be asked at k = {', '.join(map(str, controller.ks[:-1]))}, the "
            f"replay asks at {', '.join(map(str, ks[:-1]))}: set k to its range."
        )
    graded = sorted(q.question_id for q in store.scan(hidden=False) if _is_graded(q))
    if len(graded) != len(orders):
        raise ValueError(f"expected orders of {len(graded)} graded questions, got {len(orders)}")
    place = {question_id: row for row, question_id in enumerate(graded)}
    found = np.empty((len(graded), orders.shape[1], len(ks) - 1))
    for question in store.scan():
        row = place.get(question.question_id)
        if row is None:
            continue
        features = [
            features_for(
                controller,
                [question.trajectories[i] for i in order[:k]],
                question.num_prompt_tokens,
                question.embedding,
            )
            for order in orders[row].tolist()
            for k in ks[:-1]
        ]
        found[row] = controller.predict_enough(features).reshape(found.shape[1:])
    return found


def _is_graded(question: Question) -> bool:
    return question.gold is not None or any(t.correct is not None for t in question.trajectories)
