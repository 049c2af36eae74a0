"""`dps replay` with trained controllers: the same probabilities as a live run gives, checkpoint by checkpoint."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dps.analysis.replay.command import run_replay
from dps.analysis.replay.config import ReplayConfig
from dps.analysis.replay.samples import orders_of
from dps.decide import KRange
from dps.decide.features import checkpoint_features
from dps.errors import InputError
from feature_store import Store
from lightning_modules import fit_controller, load_controller, predict
from lightning_modules.predict import predict_orders
from tests.lightning_modules.harvests import make_questions, write_harvest

CONFIGS = Path(__file__).parents[2] / "configs"
KS = (2, 4, 6, 8)
EACH = {"policy": {"name": "power", "family": "fixed", "start": 1, "step": 1, "maximum": 8}}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A harvest of other questions of the same model, one of them without a grade, asked after each trajectory."""
    questions = make_questions(40, seed=5)
    blind = tuple(replace(t, correct=None) for t in questions[3].trajectories)
    questions[3] = replace(questions[3], gold=None, correct=None, trajectories=blind)
    return write_harvest(tmp_path_factory.mktemp("stores") / "other", questions, fingerprint="other", **EACH)


@pytest.fixture(scope="module", params=["gbdt_extended", "mlp_hq"])
def trained(request, harvest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    options = [f"--data.init_args.store={harvest}", f"--trainer.default_root_dir={folder}", "--trainer.max_epochs=2"]
    fit_controller(CONFIGS / f"{request.param}.yaml", [*options, "--data.init_args.num_orders=2"])
    return folder


@pytest.mark.parametrize("ks", [KS, (2, 4, 6), (4, 8)])
def test_probabilities_are_those_of_the_live_features(trained, other, ks, monkeypatch):
    monkeypatch.setattr(predict, "_TOGETHER", 7)
    controller = load_controller(trained)
    questions = [q for q in Store.open(other) if q.gold is not None][::-3]
    ids = [q.question_id for q in questions]
    orders = np.stack([orders_of(name, 8, 5, 1) for name in ids])
    found, threshold = predict_orders(str(trained), Path(other), ids, orders, ks)
    assert threshold == controller.threshold
    assert found.shape == (13, 5, len(ks) - 1)
    for q, question in enumerate(questions):
        live = [
            checkpoint_features(
                [question.trajectories[i] for i in order[:k]],
                num_prompt_tokens=question.num_prompt_tokens,
                embedding=question.embedding,
                calibration=controller.calibration,
                pooling=controller.pooling,
            )
            for order in orders[q]
            for k in ks[:-1]
        ]
        np.testing.assert_allclose(found[q].reshape(-1), controller.predict_enough(live), rtol=0, atol=1e-12)
    assert found.std() > 0.01


def test_a_replay_asks_at_the_k_that_the_controller_knows(trained, other, harvest):
    config = ReplayConfig(controllers={"it": str(trained)}, resamples=100, orders=3)
    with pytest.raises(InputError, match=r"trained to be asked at k = 2, 4, 6, the replay asks at 1, 2, 3"):
        run_replay(Path(other), config, predict_orders)
    report = run_replay(Path(other), replace(config, k=KRange(2, 2, 8)), predict_orders)
    assert report["ks"] == [2, 4, 6, 8]
    assert report["num_questions"] == 39
    (policy,) = (p for p in report["policies"] if p["policy"] == "it")
    own, threshold = policy["own_threshold"], load_controller(trained).threshold
    assert own["threshold"] == threshold
    # Thresholds of the curve are in increasing order of tokens, so decreasing: the own point lies between two of them.
    around = [p["mean_k"] for p in policy["curve"] if p["threshold"] >= threshold][-1:]
    around += [p["mean_k"] for p in policy["curve"] if p["threshold"] <= threshold][:1]
    assert min(around) <= own["mean_k"] <= max(around)
    assert any("threshold that it came with" in finding for finding in report["findings"])
    with pytest.raises(InputError, match=r"was trained on .* itself"):
        run_replay(Path(harvest), config, predict_orders)


def test_another_size_of_embedding_is_refused(trained, tmp_path):
    questions = [replace(q, embedding=np.zeros(4, np.float32)) for q in make_questions(5)]
    store = write_harvest(tmp_path / "store", questions, fingerprint="sizes")
    config = ReplayConfig(controllers={"it": str(trained)}, resamples=100, orders=3)
    if trained.name == "mlp_hq":
        with pytest.raises(InputError, match="embeddings of size 6, but these have 4"):
            run_replay(Path(store), config, predict_orders)
    else:
        assert run_replay(Path(store), config, predict_orders)["num_questions"] == 5
