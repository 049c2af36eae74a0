"""Checkpoints that somebody else made: whatever is in them, loading ends in a controller or in one sentence."""

import json
import re
import subprocess
import sys
from pathlib import Path

import lightgbm
import numpy as np
import pytest
import torch

from dps.decide.features import SCALAR_FEATURES
from dps.errors import InputError
from lightning_modules.load import load_controller
from lightning_modules.trees import BadTrees, check_trees

from .test_load import features, save

CASES = json.loads(Path(__file__).with_name("hostile_checkpoints.json").read_text())
"""What settings and description of a checkpoint are changed to, and trees: field, position and value (null removes the
value), or a pattern of the text and what stands for it."""


@pytest.fixture(scope="module")
def trees():
    """The text of five small trees."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 6))
    parameters = {"objective": "binary", "num_leaves": 5, "verbosity": -1, "num_threads": 1}
    rows = lightgbm.Dataset(values, values[:, 0] > values[:, 1], feature_name=list(SCALAR_FEATURES))
    return lightgbm.train(parameters, rows, 5).model_to_string()


def changed(text, name):
    """The text with the case's change: to values of the second tree, or to the text itself."""
    if name in CASES["texts"]:
        return re.sub(*CASES["texts"][name], text)
    head, *trees, tail = re.split(r"(?=Tree=\d+\n|end of trees\n)", text)
    for field, at, value in CASES["trees"][name]:
        line = re.search(rf"^{field}=(.*)$", trees[1], flags=re.M)
        values = line[1].split(" ")
        values[at:] = [*([] if value is None else [value]), *values[at:][1:]]
        trees[1] = trees[1][: line.start(1)] + " ".join(values) + trees[1][line.end(1) :]
    head = re.sub(r"tree_sizes=.*", f"tree_sizes={' '.join(str(len(tree)) for tree in trees)}", head)
    return "".join([head, *trees, tail])


@pytest.mark.parametrize("name", [*CASES["trees"], *CASES["texts"]])
def test_trees_that_lightgbm_must_not_see_are_refused(name, trees, tmp_path):
    text = changed(trees, name)
    assert text != trees
    with pytest.raises(BadTrees):
        check_trees(text, 6)
    with pytest.raises(InputError, match="its trees cannot be used"):
        load_controller(with_trees(tmp_path / "a.ckpt", text))


def with_trees(path, text):
    checkpoint = torch.load(save(path, "gbdt"), weights_only=True)
    checkpoint["state_dict"]["estimator._extra_state"]["booster"] = text
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize("value", [None, 7, b"tree", ["tree"], "träe", "x" * 100])
def test_trees_that_are_no_text_are_refused(value, tmp_path):
    with pytest.raises(InputError, match="its trees cannot be used"):
        load_controller(with_trees(tmp_path / "a.ckpt", value))


@pytest.mark.parametrize("num_leaves", [2, 3, 31, 200])
@pytest.mark.parametrize("missing", [False, True])
def test_what_lightgbm_writes_passes(num_leaves, missing, tmp_path):
    rng = np.random.default_rng(num_leaves)
    values = rng.normal(size=(2000, 6))
    labels = values[:, 0] * values[:, 1] + 0.1 * values[:, 2] > 0
    if missing:
        values[::3, 1] = np.nan
        values[::5, 2] = 0
    settings = {
        "objective": "binary",
        "num_leaves": num_leaves,
        "verbosity": -1,
        "num_threads": 1,
        "min_data_in_leaf": 1,
    }
    rows = lightgbm.Dataset(values, labels, feature_name=list(SCALAR_FEATURES), free_raw_data=False)
    text = lightgbm.train(settings, rows, 8).model_to_string()
    check_trees(text, 6)
    more = lightgbm.train(settings, rows, 3, init_model=lightgbm.Booster(model_str=text)).model_to_string(
        num_iteration=-1
    )
    check_trees(more, 6)
    assert load_controller(with_trees(tmp_path / "a.ckpt", more)).predict_enough([features()]).shape == (1,)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a cycle", "a feature far out"])
def test_without_the_check_lightgbm_dies_or_never_ends(name, trees):
    """The reason for the check; the trial is a process of its own."""
    text = changed(trees, name)
    code = "import sys, lightgbm, numpy; lightgbm.Booster(model_str=sys.stdin.read()).predict(-numpy.ones((9, 6)))"
    try:
        done = subprocess.run([sys.executable, "-c", code], input=text, text=True, capture_output=True, timeout=10)
    except subprocess.TimeoutExpired:
        return
    assert done.returncode != 0


@pytest.mark.parametrize("settings", CASES["settings"], ids=str)
def test_absurd_settings_are_a_sentence(settings, tmp_path):
    path = save(tmp_path / "a.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["controller"]["settings"].update(settings)
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match=r"is damaged or was made by another program: .*\. Get it again"):
        load_controller(path)


@pytest.mark.parametrize("missing", ["hidden_size", "layer_sizes", "dropout", "num_scalars"])
def test_missing_settings_are_a_sentence(missing, tmp_path):
    path = save(tmp_path / "a.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["controller"]["settings"][missing]
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match=missing):
        load_controller(path)


def changed_description(path, changes):
    checkpoint = torch.load(save(path), weights_only=True)
    checkpoint["controller"].update(changes)
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize("changes", CASES["description"], ids=str)
def test_a_description_of_other_types_is_a_sentence(changes, tmp_path):
    with pytest.raises(InputError, match=r"Expected a controller's checkpoint|was trained on the features"):
        load_controller(changed_description(tmp_path / "a.ckpt", changes))


@pytest.mark.parametrize("name", ["model", "calibration", "label", "arms", "benchmark", "num_questions"])
def test_a_description_that_lacks_something_is_a_sentence(name, tmp_path):
    path = save(tmp_path / "a.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["controller"]["data"][name]
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match=rf"data\.{name} should be"):
        load_controller(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", torch.tensor(float("nan"), dtype=torch.float64)),
        ("threshold", torch.tensor(7.0, dtype=torch.float64)),
        ("layers.0.bias", torch.full((4,), float("inf"))),
        ("layers.0.bias", torch.zeros(1).expand(10**9)),
        ("layers.0.bias", torch.zeros(1).expand(4)),
        ("layers.0.bias", torch.zeros(4, dtype=torch.int32)),
        ("layers.0.bias", torch.zeros(5)),
        ("layers.0.bias", "zeros"),
        ("layers.9.bias", torch.zeros(4)),
        ("calibrator._extra_state", {"method": "isotonic", "inverse_temperature": 1.0, "knots": [[0, 1], [0, 1]]}),
        ("calibrator._extra_state", {"method": "temperature", "inverse_temperature": "1"}),
        ("calibrator._extra_state", {"method": "none"}),
        ("calibrator._extra_state", None),
    ],
)
def test_a_state_that_does_not_fit_is_a_sentence(name, value, tmp_path):
    path = save(tmp_path / "a.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"][f"estimator.{name}"] = value
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match="is damaged or was made by another program"):
        load_controller(path)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x02" + b"(" * 10**5, b"\x80\x04]q\x00.", b"\x80\x02cos\nsystem\n(S'id'\ntR."]
)
def test_files_that_are_none_are_a_sentence(content, tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"Expected a controller's checkpoint"):
        load_controller(path)


@pytest.mark.parametrize("content", [7, [1], {"state_dict": {}}, {"controller": 1}, {"controller": {"name": ["gbdt"]}}])
def test_other_values_of_pytorch_are_a_sentence(content, tmp_path):
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="some other file of PyTorch's"):
        load_controller(tmp_path / "a.ckpt")
