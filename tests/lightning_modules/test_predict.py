"""Trained controllers asked about a store: the same probabilities as a live run gives, checkpoint by checkpoint."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dps.errors import InputError
from feature_store import Store
from lightning_modules import fit_controller, load_controller, predict
from lightning_modules.predict import predict_orders
from tests.decide.test_orders import power_orders
from tests.factories import make_manifest
from tests.lightning_modules.harvests import live_features, make_questions, write_harvest

CONFIGS = Path(__file__).parents[2] / "configs"
EACH = {
    "policy": {
        "name": "power",
        "family": "fixed",
        "ladder": ["power 1", "power 1", "power 1", "power 1", "power 1", "power 1", "power 1", "power 1"],
    }
}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A harvest of other questions of the same model, asked after each trajectory."""
    folder = tmp_path_factory.mktemp("stores") / "other"
    return write_harvest(folder, make_questions(40, seed=5), fingerprint="other", **EACH)


@pytest.fixture(scope="module", params=["gbdt_extended", "mlp_hq"])
def trained(request, harvest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    options = [f"--data.init_args.store={harvest}", f"--trainer.default_root_dir={folder}", "--trainer.max_epochs=2"]
    fit_controller(CONFIGS / f"{request.param}.yaml", [*options, "--data.init_args.num_orders=2"])
    return folder


def test_probabilities_are_those_of_the_live_features(trained, other, monkeypatch):
    monkeypatch.setattr(predict, "_TOGETHER", 7)
    controller = load_controller(trained)
    questions = list(Store.open(other))[::-3]
    ids = [q.question_id for q in questions]
    orders = power_orders(ids, 5, seed=1)
    ladder, p_enough, *came_with = predict_orders(str(trained), Path(other), ids, lambda ladder: orders)
    ks = ladder.ks
    assert (ks, came_with) == ((2, 4, 6, 8), [controller.threshold, controller.label])
    for q, question in enumerate(questions):
        live = [features for order in orders[q] for features in live_features(controller, question, order)]
        np.testing.assert_allclose(p_enough[q].reshape(-1), controller.predict_enough(live), rtol=0, atol=1e-12)
    assert p_enough.std() > 0.01


def test_orders_count_the_responses_of_the_ladders_arms_wherever_these_stand(trained, tmp_path):
    questions = make_questions(6, k=18)
    arms = {"plain": {"alpha": 1.0, "num_mh_steps": 0}, "power": make_manifest().arms["power"]}
    ids = [q.question_id for q in questions]
    orders = power_orders(ids, 3, most=10, seed=1)[..., :8]  # the store has more than the ladder

    def said(name, ladder, records, arms=arms):
        policy = {"name": "harvest", "family": "fixed", "ladder": ladder}
        store = write_harvest(tmp_path / name, records, fingerprint=name, policy=policy, arms=arms)
        return predict_orders(str(trained), Path(store), ids, lambda ladder: orders)[1]

    places = [("plain", i) for i in range(8)] + [("power", i) for i in range(10)]
    mixed = [
        replace(
            q,
            trajectories=tuple(
                replace(t, arm=arm, index=i) for t, (arm, i) in zip(q.trajectories, places, strict=True)
            ),
        )
        for q in questions
    ]
    power = [replace(q, trajectories=q.trajectories[8:]) for q in mixed]
    alone = said("alone", ["power 2"] * 5, power, {"power": arms["power"]})
    np.testing.assert_array_equal(said("mixed", ["plain 8", "power 10"], mixed), alone)
    with pytest.raises(InputError, match=r"trained on the arm power with num_mh_steps 5, but here it has 10"):
        said("more", ["plain 8", "power 10"], mixed, {**arms, "power": {**arms["power"], "num_mh_steps": 10}})


def test_what_a_controller_does_not_know_is_refused(trained, other, harvest, tmp_path):
    ids = Store.open(other).question_ids
    orders = power_orders(ids, 1, seed=0)
    with pytest.raises(InputError, match=r"was trained on .* itself"):
        predict_orders(str(trained), Path(harvest), ids, lambda ladder: orders)
    questions = [replace(q, embedding=np.zeros(4, np.float32)) for q in make_questions(5)]
    sizes = Path(write_harvest(tmp_path / "store", questions, fingerprint="sizes"))
    ids = Store.open(sizes).question_ids
    if trained.name == "mlp_hq":
        with pytest.raises(InputError, match="embeddings of size 6, but these have 4"):
            predict_orders(str(trained), sizes, ids, lambda ladder: orders[:5])
    else:
        assert predict_orders(str(trained), sizes, ids, lambda ladder: orders[:5])[1].shape == (5, 1, 3)
