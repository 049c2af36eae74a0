import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dps.decide.features import FEATURE_SETS, checkpoint_features
from dps.decide.ladder import Ladder
from dps.decide.policy_file import read_policy, write_policy
from dps.decide.seen import SHOWN
from dps.errors import InputError
from dps.sampler.settings import SamplerConfig
from lightning_modules.estimators import MLPEstimator, TreeEstimator
from lightning_modules.load import FORMAT, load_controller
from tests.commands import refused
from tests.factories import make_manifest, make_question

SHIPPED = Path(__file__).parents[2] / "docs" / "results" / "gsm8k-qwen2.5-coder-0.5b" / "controllers"
EXPECTED = {
    "gbdt": [0.936921704471, 0.936921704471, 0.936921704471],
    "gbdt-extended": [0.70941079038, 0.70941079038, 0.722835867439],
}
"""What they said when they were shipped."""
MODEL = {"name": "made-up", "fingerprint": "abc", "hidden_size": 8, "feature_layer": 11}

DATA = {
    "model": MODEL,
    "calibration": {},
    "label": "no_gain",
    "ladder": ["power 2"] * 4,
    "arms": {"power": {"alpha": 4.0, "num_mh_steps": 5}},
    "num_orders": 4,
    "benchmark": {"name": "gsm8k", "split": "train"},
    "num_questions": {"train": 100},
}


def save(path, name="mlp-hq", feature_set="published", **changes):
    """Write a checkpoint of an untrained controller."""
    settings = dict(
        num_scalars=len(FEATURE_SETS[feature_set]),
        hidden_size=8,
        embedding_size=5 if name == "mlp-hq" else 0,
        projection_size=2,
        layer_sizes=[4],
        dropout=0.1,
        input_dropout=0.1,
        gate=[],
    )
    estimator = TreeEstimator() if name == "gbdt" else MLPEstimator(**settings)
    description = {
        "format": FORMAT,
        "name": name,
        "settings": {"value": False, "gate": []} if name == "gbdt" else settings,
        "feature_set": feature_set,
        "feature_names": list(FEATURE_SETS[feature_set]),
        "hidden_size": 8,
        "embedding_size": 5,
        "prompt_size": 0,
        "data": DATA,
    }
    state = {f"estimator.{key}": value for key, value in estimator.state_dict().items()}
    torch.save({"state_dict": state, "controller": {**description, **changes}}, path)
    return path


def features(hidden_size=8, embedding_size=5, number=0):
    """What two trajectories of a question show."""
    question = make_question(number, k=2, hidden_size=hidden_size, embedding_size=embedding_size)
    known = {"num_prompt_tokens": question.num_prompt_tokens, "calibration": make_manifest().calibration}
    return checkpoint_features(question.trajectories, embedding=question.embedding, **known)


def test_what_is_no_controller_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no .*nothing\.ckpt"):
        load_controller(tmp_path / "nothing.ckpt")
    with pytest.raises(InputError, match=r"no .*best\.ckpt"):
        load_controller(tmp_path)
    whole = save(tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        load_controller(tmp_path / "half.ckpt")


def test_a_controller_is_what_a_policy_asks(tmp_path, capsys):
    arms, budget = {"power": SamplerConfig()}, {"budget": 8}
    given = {"name": "mine", "ladder": Ladder.parse(DATA["ladder"]), "arms": arms, "aggregator": "majority"}
    (tmp_path / "c" / "checkpoints").mkdir(parents=True)
    file = save(tmp_path / "c" / "checkpoints" / "best.ckpt")
    asked = {"controller": "c", "threshold": load_controller(file).threshold}
    path = write_policy(tmp_path, **given, **asked, model=MODEL)
    assert {load_controller(each).path for each in (file, tmp_path / "c", path, tmp_path)} == {file}
    assert repr(load_controller(file)) == (
        f"Controller(mlp-hq in {file}: on [power 2, power 2, power 2, power 2], threshold 0.5, features published, "
        "label no_gain)"
    )
    assert repr(read_policy(path)) == (
        f"PolicyFile(mine in {path}: [power 2, power 2, power 2, power 2], controller, threshold 0.5, majority, "
        "model made-up)"
    )
    assert "trained on hidden states of size 8" in refused(capsys, "sample", "1+1", f"--controller={tmp_path}")
    path = write_policy(tmp_path / "fixed", **given, **budget, model=MODEL)
    with pytest.raises(InputError, match=r"but PolicyFile\(.*every question to 8.* asks none"):
        load_controller(path.parent)


def test_other_features_and_formats_are_refused(tmp_path):
    with pytest.raises(InputError, match=rf"format {FORMAT}, but .* has format {FORMAT + 1}"):
        load_controller(save(tmp_path / "a.ckpt", format=FORMAT + 1))
    with pytest.raises(InputError, match="trained on the features mcmc_perplexity, current_k"):
        load_controller(save(tmp_path / "b.ckpt", feature_names=["mcmc_perplexity", "current_k"]))
    with pytest.raises(InputError, match=r"set published\), but this version computes"):
        load_controller(save(tmp_path / "c.ckpt", feature_names=list(FEATURE_SETS["extended"])))


def test_a_controller_looks_at_the_features_of_its_set(tmp_path):
    one = features()
    shown = one.rows.shown.copy()
    shown[list(SHOWN).index("cut")] = 1  # which the six do not tell
    both = [one, replace(one, rows=replace(one.rows, shown=shown))]
    controllers = [load_controller(save(tmp_path / f"{name}.ckpt", feature_set=name)) for name in FEATURE_SETS]
    assert [len({*controller.predict_enough(both)}) for controller in controllers] == [1, 2]


def test_another_model_layer_or_embedder_is_refused(tmp_path):
    controller = load_controller(save(tmp_path / "a.ckpt"))
    for change, message in (
        ({"fingerprint": "xyz"}, "fingerprint abc.*fingerprint xyz"),
        ({"hidden_size": 16}, "size 8, but these have 16"),
        ({"feature_layer": 5}, "layer 11, but these are of layer 5"),
    ):
        with pytest.raises(InputError, match=message):
            controller.check_model({**MODEL, **change}, 5)
    with pytest.raises(InputError, match="embeddings of size 5, but these have 7"):
        controller.check_model(MODEL, 7)
    with pytest.raises(InputError, match="hidden states of size 8, but these have 9"):
        controller.predict_enough([features(hidden_size=9)])
    with pytest.raises(InputError, match="embeddings of size 5, but these have 0"):
        controller.predict_enough([features(embedding_size=0)])


def test_only_what_a_controller_looks_at_has_to_fit(tmp_path):
    trees = load_controller(save(tmp_path / "trees.ckpt", "gbdt"))
    trees.check_model({**MODEL, "feature_layer": 5}, 0)
    trees.predict_enough([features(0, 0)])
    with pytest.raises(InputError, match="fingerprint"):
        trees.check_model({**MODEL, "fingerprint": "xyz"}, 5)
    hidden_only = load_controller(save(tmp_path / "h.ckpt", "mlp-h"))
    hidden_only.check_model(MODEL, 0)
    hidden_only.predict_enough([features(embedding_size=0)])


@pytest.mark.parametrize("name", EXPECTED)
def test_shipped_controllers_load_and_say_the_same(name):
    controller = load_controller(SHIPPED / name)
    rng = np.random.default_rng(0)
    published, asked = [1.2, 0.2, 0.9, 0.3, 20.0, 2.0], []
    for _ in range(3):
        rng.normal(size=896 + 384)
        asked.append([*published, *rng.random(17)][: len(controller.description["feature_names"])])
    said = controller.estimator.predict_enough(torch.tensor(asked, dtype=torch.float64), None, None)
    np.testing.assert_allclose(said, EXPECTED[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["gbdt", "mlp-hq"])
def test_a_controller_with_what_earlier_versions_could_leave_out_is_read(tmp_path, name):
    """As they were where nothing of it was asked for; what was asked for is refused."""
    path = save(tmp_path / "a.ckpt", name)
    before = load_controller(path).predict_enough([features()])
    checkpoint = torch.load(path, weights_only=True)
    settings, state = checkpoint["controller"]["settings"], checkpoint["state_dict"]
    state["estimator.calibrator._extra_state"]["knots"] = [[], []]
    if name == "gbdt":
        del settings["value"]
        state["estimator._extra_state"]["log_weight"] = 0.0
    else:
        settings |= {"prompt_size": 0, "value": False, "tells_end": False}
    torch.save(checkpoint, path)
    assert load_controller(path).predict_enough([features()]) == before
    if name == "gbdt":
        state["estimator._extra_state"]["log_weight"] = 0.5
    else:
        settings["tells_end"] = True
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match=r"log_weight should be 0, but is 0\.5|should not have: tells_end"):
        load_controller(path)


def test_loading_does_not_import_lightning(tmp_path):
    path = save(tmp_path / "a.ckpt")
    code = "import sys; from lightning_modules import load_controller; load_controller(sys.argv[1]); "
    code += "print('lightning' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
