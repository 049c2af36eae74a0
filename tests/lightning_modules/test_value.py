"""Trees that learn the label ``value``."""

import numpy as np
import pytest
import torch

from dps.decide.labels import score_of_rate
from dps.errors import InputError
from lightning_modules import load_controller
from lightning_modules.batches import predict_table
from lightning_modules.data import FeatureDataModule
from lightning_modules.trainer_cli import run

from .test_learnt import CONFIGS

SMALL = ["--model.init_args.min_rows_per_leaf=20", "--model.init_args.learning_rate=0.1"]


def options(store, *more, name="value_gbdt"):
    given = [f"--data.init_args.store={store}", "--data.init_args.num_orders=2", "--trainer.max_epochs=8"]
    given += ["--data.init_args.train_fraction=0.6", "--data.init_args.val_fraction=0.2"]
    return ["--config", str(CONFIGS / f"{name}.yaml"), *given, *more]


@pytest.fixture(scope="module")
def trained(harvest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "value"
    run(["fit", *options(harvest, *SMALL, f"--trainer.default_root_dir={folder}")])
    return folder


def test_gain_and_cost_are_learnt_and_their_ratio_is_the_score(trained, harvest):
    controller = load_controller(trained)
    fractions = {name: controller.description["data"][name] for name in ("train_fraction", "val_fraction")}
    recorded = {"feature_set": controller.feature_set, "num_orders": 2, "decided": 3}
    data = FeatureDataModule(harvest, label="value", **recorded, **fractions)
    data.setup()
    table, estimator = data.table("val"), controller.estimator
    scalars = torch.from_numpy(table.scalars.reshape(table.num_rows, -1))
    gain, cost = estimator.gain_and_cost(estimator.terms(scalars, None, None)).numpy().T
    true_gain, true_cost = (of.reshape(-1) for of in table.values())
    p = predict_table(estimator, table).reshape(-1)
    open_rows = p < 1  # the votes decide the others
    np.testing.assert_allclose(1 - p[open_rows], score_of_rate(100 * gain / cost.clip(0.01))[open_rows], atol=1e-12)
    assert np.corrcoef(cost[open_rows], true_cost[open_rows])[0, 1] > 0.4
    assert abs(cost[open_rows].mean() / (true_cost[open_rows].mean() / 1000) - 1) < 0.2
    assert np.corrcoef(gain[open_rows], true_gain[open_rows])[0, 1] > 0.05
    assert controller.description["validation"]["skill"] == {}
    assert controller.parts == {"scalars", "embedding"}


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("value_gbdt", "--model.init_args.calibration=temperature", "is no probability, so it has no calibration"),
        ("mlp_hq", "--data.init_args.label=value", "The controller mlp-hq does not learn the label value"),
    ],
)
def test_what_a_value_cannot_have_is_refused(harvest, tmp_path, name, more, words):
    with pytest.raises(InputError, match=words):
        run(["fit", *options(harvest, more, f"--trainer.default_root_dir={tmp_path}", name=name)])


@pytest.mark.parametrize(
    ("place", "change", "words"),
    [
        ("settings", {"value": False}, "settings.value should be what the label says"),
        ("settings", {"value": 1}, "settings.value should be true or false"),
        ("description", {"prompt_size": -1}, "prompt_size should be a size"),
        ("trees", {"cost": None}, "its trees are missing"),
        ("trees", {"cost": "tree\n"}, "its trees cannot be used"),
        ("trees", {"objective": "binary sigmoid:1"}, "its trees cannot be used"),
    ],
)
def test_hostile_values_are_refused_in_a_sentence(trained, tmp_path, place, change, words):
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    description, trees = checkpoint["controller"], checkpoint["state_dict"]["estimator._extra_state"]
    if "objective" in change:
        change = {"cost": trees["cost"].replace("objective=regression", f"objective={change['objective']}")}
    held = {"description": description, "settings": description["settings"], "trees": trees}[place]
    held.update(change)
    for name in [name for name, value in change.items() if value is None]:
        del held[name]
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=words):
        load_controller(tmp_path / "a.ckpt")
