import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dps.decide.features import scalars_of
from dps.decide.thresholds import choose_threshold
from dps.errors import InputError
from dps.estimates import smallest_margin
from feature_store import Store
from lightning_modules import fit_controller, load_controller
from lightning_modules.batches import predict_table
from lightning_modules.calibration import fit_temperature
from lightning_modules.data import FeatureDataModule
from lightning_modules.estimators import Ranks
from lightning_modules.trainer_cli import run
from tests.lightning_modules.harvests import EMBEDDING_SIZE, HIDDEN_SIZE, live_features, make_questions, write_harvest

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = ("gbdt-extended", "mlp-h", "mlp-hq")


def options(name, store, folder, *more):
    config = CONFIGS / f"{name.replace('-', '_')}.yaml"
    small = ["--data.init_args.num_orders=2"]
    if name.startswith("gbdt"):
        small.append("--model.init_args.min_rows_per_leaf=20")
    folders = [f"--data.init_args.store={store}", f"--trainer.default_root_dir={folder}"]
    return ["--config", str(config), *folders, *small, *more]


@pytest.fixture(scope="module", params=NAMES)
def trained(request, harvest, tmp_path_factory):
    """(name, run folder, the process's own module after a fit)."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    more = [] if request.param.startswith("gbdt") else ["--model.init_args.optimizer.init_args.lr=0.01"]
    cli = run(["fit", *options(request.param, harvest, folder, "--trainer.max_epochs=12", *more)])
    return request.param, folder, cli


def first_features(controller, store, ks=None):
    return [f for q in list(Store.open(store))[:20] for f in live_features(controller, q, ks=ks)]


def test_each_learns_and_beats_question_length(trained, harvest, capsys):
    name, folder, _ = trained
    assert load_controller(folder).description["validation"]["auroc"] > 0.75
    capsys.readouterr()
    result = run(["test", *options(name, harvest, folder)]).model.test_result
    printed = capsys.readouterr().out
    metrics = result.metrics
    assert metrics["auroc"] > 0.75
    assert metrics["auroc"] > metrics["auroc_length"] + 0.1
    assert 0 < metrics["auroc_stderr"] < 0.2
    assert metrics["num_rows"] == 6 * metrics["num_questions"] > 50
    assert f"{metrics['num_questions']:.0f} questions" in printed
    assert f"{metrics['auroc']:.3f}" in printed
    assert f"{metrics['auroc_length']:.3f}" in printed
    assert list(result.policies) == ["fixed-k2", "fixed-k4", "fixed-k6", "fixed-k8", name.removesuffix("-extended")]
    logged = (folder / "test" / "metrics.csv").read_text()
    assert all(f"test/{key}" in logged for key in ("auroc", "auroc_stderr", "auroc_length", "num_questions"))


def test_the_run_folder_holds_what_belongs_together(trained):
    name, folder, cli = trained
    assert cli.best_checkpoint == folder / "checkpoints" / "best.ckpt"
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    checkpoint = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["config"] == (folder / "config.yaml").read_text()
    assert checkpoint["controller"]["name"] == name.removesuffix("-extended")
    assert "val/auroc" in (folder / "metrics.csv").read_text()


def test_a_checkpoint_holds_what_prediction_needs(trained, harvest):
    name, folder, _ = trained
    controller = load_controller(folder)
    assert (controller.name, controller.label) == (name.removesuffix("-extended"), "no_gain")
    assert controller.estimator.calibrator.method == "temperature"
    assert (controller.hidden_size, controller.embedding_size) == (HIDDEN_SIZE, EMBEDDING_SIZE)
    assert controller.feature_set == ("extended" if "extended" in name else "published")
    assert controller.calibration == Store.open(harvest).manifest.calibration
    assert -1.0 <= controller.threshold <= 1.0
    assert load_controller(folder / "checkpoints" / "best.ckpt").threshold == controller.threshold


def test_predictions_from_disk_equal_those_in_memory(trained, harvest):
    name, folder, cli = trained
    controller = load_controller(folder / "checkpoints" / "last.ckpt")
    features = first_features(controller, harvest, ks=(2, 4))
    loaded = controller.predict_enough(features)
    scalars = scalars_of(features, controller.feature_set)
    stacked = [
        torch.from_numpy(np.stack(part))
        for part in (scalars, [f.hidden for f in features], [f.embedding for f in features])
    ]
    memory = cli.model.estimator.predict_enough(*stacked).numpy()
    # Loaded networks compute in float64, trained ones in float32; trees are the same on both sides.
    np.testing.assert_allclose(loaded, memory, rtol=0, atol=0 if "gbdt" in name else 2e-6)
    assert loaded.dtype == np.float64
    assert loaded.min() >= 0
    assert loaded.max() <= 1
    assert loaded.std() > 0.01
    alone = np.concatenate([controller.predict_enough([f]) for f in features])
    np.testing.assert_allclose(alone, loaded, rtol=0, atol=1e-13)
    assert controller.predict_enough([]).shape == (0,)


def data_of(harvest, feature_set="published"):
    data = FeatureDataModule(
        harvest, num_orders=2, val_fraction=0.15, calibration_fraction=0.1, feature_set=feature_set
    )
    data.setup()
    return data


def arrays_of(table):
    shape = table.scalars.shape[:3]
    embedding = np.broadcast_to(table.embedding[:, None, None], (*shape, table.embedding.shape[1]))
    arrays = (table.scalars, table.hidden, embedding)
    return [torch.from_numpy(np.array(a, np.float64).reshape(np.prod(shape), -1)) for a in arrays]


def test_the_threshold_is_chosen_after_calibration_on_both_held_out_splits(trained, harvest):
    _, folder, _ = trained
    controller = load_controller(folder)
    data = data_of(harvest, controller.feature_set)
    tables = [data.table("val"), data.table("calibration")]
    p = [controller.estimator.predict_enough(*arrays_of(t)).numpy().reshape(t.scalars.shape[:3]) for t in tables]
    correct, tokens = (np.concatenate([getattr(t, name) for t in tables]) for name in ("correct", "tokens"))
    chosen = choose_threshold(1 - np.concatenate(p), correct, tokens, 0.01)
    assert chosen == pytest.approx(controller.threshold, abs=1e-6)


def test_predict_writes_every_question_and_checkpoint(trained, harvest):
    name, folder, _ = trained
    run(["predict", *options(name, harvest, folder)])
    lines = (folder / "predictions.csv").read_text().splitlines()
    assert lines[0] == "question_id,split,k,p_enough,add"
    assert len(lines) == 1 + 120 * 3
    controller = load_controller(folder)
    expected = controller.predict_enough(first_features(controller, harvest))
    got = [line.split(",") for line in lines[1:61]]
    np.testing.assert_allclose([float(row[3]) for row in got], expected, atol=2e-6)
    for row, p in zip(got, expected, strict=True):
        assert int(row[4]) == (2 if 1 - p > controller.threshold else 0)


@pytest.mark.parametrize("name", ["gbdt", pytest.param("mlp-h", marks=pytest.mark.slow)])
def test_one_class_is_said_and_survived(name, tmp_path, caplog, capsys):
    store = write_harvest(tmp_path / "easy", make_questions(40, p_correct=1.0))
    with caplog.at_level(logging.WARNING, "lightning_modules"):
        config = options(name, store, tmp_path / "run", "--trainer.max_epochs=2")
        best = fit_controller(config[1], config[2:])
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1
    assert "one class only" in said[0]
    validation = load_controller(best).description["validation"]
    assert "auroc" not in validation
    assert {"brier", "calibration_error", "loss"} <= validation.keys()
    result = run(["test", *options(name, store, tmp_path / "run")]).model.test_result
    assert "auroc" not in result.metrics
    assert "one class only" in capsys.readouterr().out


def test_the_trained_standardizer_is_the_training_splits(harvest, tmp_path):
    best = fit_controller(CONFIGS / "mlp_hq.yaml", options("mlp-hq", harvest, tmp_path, "--trainer.max_epochs=1")[2:])
    data = data_of(harvest)
    train, estimator = data.table("train"), load_controller(best).estimator
    scalars = train.scalars.reshape(-1, 6)
    quantiles = np.quantile(scalars, np.linspace(0, 1, 33), axis=0)
    np.testing.assert_array_equal(estimator.ranks.knots.numpy(), quantiles.T)
    ranks = estimator.ranks(torch.from_numpy(scalars)).numpy()
    assert (ranks[:, 2] == 0).all()  # top-1 probability does not vary in these records
    np.testing.assert_allclose(ranks[:, [0, 1, 3, 4, 5]].std(axis=0), 1, atol=0.1)
    hidden = train.hidden.reshape(-1, HIDDEN_SIZE).astype(np.float64)
    np.testing.assert_allclose(estimator.standardizers["hidden"].scale.numpy(), hidden.std(axis=0), rtol=1e-9)
    np.testing.assert_allclose(
        estimator.standardizers["embedding"].mean.numpy(), train.embedding.mean(axis=0), rtol=1e-5
    )


def test_the_calibration_is_the_calibration_splits(trained, harvest):
    name, folder, _ = trained
    controller = load_controller(folder)
    table = data_of(harvest, controller.feature_set).table("calibration")
    logits = controller.estimator(*arrays_of(table)).detach().numpy()
    expected = fit_temperature(logits, table.labels("no_gain").reshape(-1), table.num_questions)
    found = controller.estimator.calibrator.inverse_temperature
    assert found == pytest.approx(expected, rel=0 if "gbdt" in name else 1e-3)
    assert found != 1.0


@pytest.fixture(scope="module")
def memorable(tmp_path_factory):
    """A harvest whose hidden states and embeddings name each question and tell nothing of others."""
    questions = []
    for number, question in enumerate(make_questions(150, seed=3)):
        rng = np.random.default_rng([4, number])
        own = rng.normal(size=200).astype(np.float32)
        trajectories = tuple(replace(t, hidden=np.tile(own, (len(t.hidden), 1))) for t in question.trajectories)
        embedding = rng.normal(size=100).astype(np.float32)
        questions.append(replace(question, trajectories=trajectories, embedding=embedding))
    return write_harvest(tmp_path_factory.mktemp("stores") / "memorable", questions)


@pytest.mark.slow
def test_states_that_name_the_question_do_not_hurt(memorable, tmp_path):
    more = ["--data.init_args.feature_set=extended", "--trainer.max_epochs=30"]
    eager = {"optimizer.init_args.lr": 0.01, "residual_lr_scale": 2, "residual_weight_decay": 0, "input_dropout": 0}
    more += [f"--model.init_args.{key}={value}" for key, value in eager.items()]
    cli = run(["fit", *options("mlp-hq", memorable, tmp_path, *more)])
    estimator = load_controller(tmp_path / "checkpoints" / "last.ckpt").estimator
    table = cli.datamodule.table("test")
    labels = table.labels("no_gain")

    def loss(weight):
        estimator.residual_weight.fill_(weight)
        p = predict_table(estimator, table)
        return -np.log(np.where(labels, p, 1 - p)).mean()

    chosen = float(estimator.residual_weight)
    assert loss(chosen) < loss(0.0) + 0.01
    assert loss(1.0) > loss(chosen) + 0.05  # by heart


@pytest.mark.slow
def test_the_scalars_network_learns_as_if_alone_and_the_rest_more_slowly(harvest, tmp_path):
    found = {}
    for decay in (0.0, 500.0):
        more = ["--trainer.max_epochs=3", f"--model.init_args.residual_weight_decay={decay}"]
        cli = run(["fit", *options("mlp-hq", harvest, tmp_path / str(decay), *more)])
        found[decay] = cli.model.estimator
        groups = cli.trainer.optimizers[0].param_groups
        assert [g["lr"] for g in groups] == pytest.approx([2e-3, 2e-4])
        assert [g["weight_decay"] for g in groups] == [0.1, decay]
        assert sum(len(g["params"]) for g in groups) == len(list(found[decay].parameters()))
    for one, other in zip(found[0.0].layers.parameters(), found[500.0].layers.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    sizes = [found[decay].projections["hidden"][1].weight.norm() for decay in (0.0, 500.0)]
    assert sizes[1] < 0.9 * sizes[0]


def test_an_optimizer_without_decay_is_refused(harvest, tmp_path):
    config = yaml.safe_load((CONFIGS / "mlp_h.yaml").read_text())
    config["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.Rprop", "init_args": {"lr": 0.01}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match="an optimizer with weight decay, such as AdamW, got Rprop"):
        run(["fit", "--config", str(path), *options("mlp-h", harvest, tmp_path / "run")[2:]])
    with pytest.raises(InputError, match="residual_lr_scale above 0"):
        run(["fit", *options("mlp-h", harvest, tmp_path, "--model.init_args.residual_lr_scale=0")])


def test_ranks_by_hand():
    rng = np.random.default_rng(0)
    values = np.stack(
        [rng.exponential(size=4000) ** 3, np.repeat([2.0, 4.0, 6.0, 6.0], 1000), 0.8 + 1e-16 * np.arange(4000)], axis=1
    )
    ranks = Ranks(3)
    asked = torch.from_numpy(np.concatenate([values, [[-1e9, 1.0, 0.5], [1e9, 7.0, 2.0], [0.5, 5.0, 1.0]]]))
    ranks.fit(values)
    found = (ranks(asked).numpy() / np.sqrt(12)) + 0.5
    order = np.argsort(np.argsort(values[:, 0])) / 3999
    np.testing.assert_allclose(found[:4000, 0], order, atol=0.02)
    np.testing.assert_allclose(found[4000:4002, 0], [0, 1], atol=1e-6)  # far outside is no farther than the ends
    for value, middle in ((2.0, 1 / 8), (4.0, 3 / 8), (6.0, 3 / 4)):
        np.testing.assert_allclose(found[:4000][values[:, 1] == value, 1], middle, atol=0.03)
    assert found[4000, 1] == pytest.approx(found[0, 1])
    assert found[4001, 1] == pytest.approx(found[3999, 1])
    assert found[3999, 1] > found[4002, 1] > found[1999, 1]  # between two values, between their ranks
    np.testing.assert_allclose(found[:, 2], 0.5)


def test_fit_says_what_chose_the_threshold_and_when_nothing_was_learnt(tmp_path, capsys):
    """Random features and labels: the best probabilities are those of k alone."""
    rng = np.random.default_rng(0)
    noise = []
    for question in make_questions(120, p_correct=0.5):
        trajectories = [
            replace(t, block_entropy=rng.uniform(1, 2, t.block_entropy.shape).astype(t.block_entropy.dtype),
                    hidden=rng.normal(size=t.hidden.shape).astype(t.hidden.dtype))
            for t in question.trajectories
        ]  # fmt: skip
        noise.append(replace(question, trajectories=tuple(trajectories)))
    store = write_harvest(tmp_path / "noise", noise)
    config = options("mlp-h", store, tmp_path / "run", "--trainer.max_epochs=4")
    best = fit_controller(config[1], config[2:])
    out, err = capsys.readouterr()
    assert "nothing" in err
    assert "held-out questions do not show that its probabilities are better than those by k alone" in err
    assert "n is too small for 1 point, which takes 368 questions" in out
    found = load_controller(best).description["validation"]
    assert found["margin"] == smallest_margin(found["num_threshold_questions"])
    assert found["num_threshold_questions"] > found["num_questions"] > 0
    assert found["skill"]["k"]["low"] <= 0
