"""Trees and networks that learn the label ``value``, and MLP-HQ's head on the question alone."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dps.decide.features import checkpoint_features
from dps.decide.labels import score_of_rate
from dps.errors import InputError
from feature_store import Store
from lightning_modules import fit_controller, load_controller
from lightning_modules.batches import predict_table
from lightning_modules.calibration import fit_gain_weight
from lightning_modules.cli import cross_validate
from lightning_modules.data import FeatureDataModule
from lightning_modules.estimators import MLPEstimator
from lightning_modules.trainer_cli import run

from .harvests import EMBEDDING_SIZE, HIDDEN_SIZE, make_questions
from .test_learnt import SIZE, with_prompts, write

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {
    "value_gbdt": ["--model.init_args.min_rows_per_leaf=20", "--model.init_args.learning_rate=0.1"],
    "value_mlp_hq": [
        *("--model.init_args.optimizer.init_args.lr=0.01", "--model.init_args.input_dropout=0.2"),
        *("--model.init_args.residual_lr_scale=1.0", "--model.init_args.residual_weight_decay=0.3"),
        *("--model.init_args.end_weight=3", "--data.init_args.batch_size=64"),
    ],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """120 questions, half of them hopeless; a state of the prompt tells which."""
    made = [make_questions(60, p_correct=chance, seed=seed) for seed, chance in enumerate((0.15, 0.85))]
    mixed = [replace(q, question_id=f"q{i:03}", question=f"question {i}") for i, q in enumerate(made[0] + made[1])]
    return write(tmp_path_factory.mktemp("stores") / "prompts", with_prompts(mixed))


def options(name, store, *more):
    given = [f"--data.init_args.store={store}", "--data.init_args.num_orders=2", "--trainer.max_epochs=8"]
    given += ["--data.init_args.train_fraction=0.6", "--data.init_args.val_fraction=0.2"]
    return ["--config", str(CONFIGS / f"{name}.yaml"), *given, *SMALL[name], *more]


@pytest.fixture(scope="module", params=SMALL)
def trained(request, store, tmp_path_factory):
    """(name, run folder) of a controller of values."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    run(["fit", *options(request.param, store, f"--trainer.default_root_dir={folder}")])
    return request.param, folder


def rows_of(table):
    """The rows' features as an estimator takes them."""
    wide = (np.repeat(of, table.rows_per_question, axis=0) for of in (table.embedding, table.prompt))
    arrays = (table.scalars.reshape(table.num_rows, -1), table.hidden.reshape(table.num_rows, -1), *wide)
    return [torch.from_numpy(each).double() for each in arrays]


def test_gain_and_cost_are_learnt_and_their_ratio_is_the_score(trained, store):
    name, folder = trained
    controller = load_controller(folder)
    settings = controller.description["data"]
    data = FeatureDataModule(
        store, label="value", feature_set=controller.feature_set, num_orders=2, decided=3,
        train_fraction=settings["train_fraction"], val_fraction=settings["val_fraction"],
    )  # fmt: skip
    data.setup()
    table, estimator = data.table("val"), controller.estimator
    with torch.no_grad():
        gain, cost = estimator.gain_and_cost(estimator.terms(*rows_of(table))).numpy().T
    true_gain, true_cost = (of.reshape(-1) for of in table.values())
    p = predict_table(estimator, table).reshape(-1)
    open_rows = p < 1  # the votes decide the others
    np.testing.assert_allclose(1 - p[open_rows], score_of_rate(100 * gain / cost.clip(0.01))[open_rows], atol=1e-12)
    assert np.corrcoef(cost[open_rows], true_cost[open_rows])[0, 1] > 0.4
    assert abs(cost[open_rows].mean() / (true_cost[open_rows].mean() / 1000) - 1) < 0.2
    assert np.corrcoef(gain[open_rows], true_gain[open_rows])[0, 1] > 0.05
    assert controller.description["validation"]["skill"] == {}
    assert controller.parts == (
        {"scalars", "prompt"} if name == "value_gbdt" else {"scalars", "hidden", "embedding", "prompt"}
    )


def test_what_is_said_live_is_what_is_said_of_a_table(trained, store):
    controller = load_controller(trained[1])
    module = FeatureDataModule(store, label="value", feature_set=controller.feature_set)
    said = predict_table(controller.estimator, module.whole())
    for q, question in enumerate(Store.open(store)):
        if q % 20 == 0:
            live = [
                checkpoint_features(
                    question.trajectories[:k], num_prompt_tokens=question.num_prompt_tokens,
                    embedding=question.embedding, calibration=controller.calibration,
                    prompt_hidden=question.prompt_hidden, ladder=controller.ladder,
                )
                for k in controller.ks[:-1]
            ]  # fmt: skip
            np.testing.assert_allclose(controller.predict_enough(live), said[q, 0], rtol=0, atol=1e-12)


def test_a_value_has_no_calibration(store, tmp_path):
    more = ["--model.init_args.calibration=temperature", f"--trainer.default_root_dir={tmp_path}"]
    with pytest.raises(InputError, match="The label value is no probability, so it has no calibration"):
        run(["fit", *options("value_gbdt", store, *more)])


def test_the_weight_of_a_correction_of_gains_is_the_least_square():
    rng = np.random.default_rng(0)
    own, correction = rng.normal(size=(2, 400))
    for truth in (own + 0.6 * correction, own - correction, own + 3 * correction):
        gains = truth + rng.normal(size=400)
        wanted = (30 * own + 70 * gains) / 100
        grid = np.linspace(0, 1, 2001)
        best = grid[((own + grid[:, None] * correction - wanted) ** 2).mean(axis=1).argmin()]
        assert fit_gain_weight(own, correction, gains, 70) == pytest.approx(best, abs=3e-4)
    assert fit_gain_weight(own, 0 * correction, gains, 70) == 0


def test_an_untrained_network_says_the_mean_gain_and_cost():
    made = MLPEstimator(
        num_scalars=3, hidden_size=4, embedding_size=0, projection_size=2, layer_sizes=[4], dropout=0.0,
        input_dropout=0.0, value=True,
    )  # fmt: skip
    torch.nn.init.zeros_(made.layers[-1].weight)
    made.start_at_value(-0.05, 0.4)
    terms = made.terms(torch.randn(5, 3), torch.randn(5, 4), torch.zeros(5, 0))
    np.testing.assert_allclose(made.gain_and_cost(terms).detach(), np.tile([-0.05, 0.4], (5, 1)), atol=1e-6)


def test_the_head_on_the_question_finds_a_planted_signal_out_of_fold(store, tmp_path, capsys):
    given = options("value_mlp_hq", store, f"--trainer.default_root_dir={tmp_path}")
    done = cross_validate(given, 2, tmp_path / "cv")
    report = json.loads((done / "crossval.json").read_text())
    assert report["end"]["auroc"]["value"] > 0.75
    assert report["end"]["brier_skill"]["value"] > 0.1
    assert report["end"]["auroc"]["stderr"] > 0
    assert "the end is right" in capsys.readouterr().out


def test_the_test_tells_what_the_head_is_worth(trained, store, capsys):
    name, folder = trained
    metrics = run(["test", *options(name, store, f"--trainer.default_root_dir={folder}")]).model.test_result.metrics
    if name == "value_gbdt":
        assert not any(metric.startswith("end_") for metric in metrics)
    else:
        assert metrics["end_auroc"] > 0.7
        assert metrics["end_auroc_stderr"] > 0
        assert "the end, by the question alone" in capsys.readouterr().out


def test_only_a_ladders_features_bring_the_prompt_in(store, harvest, tmp_path):
    def fitted(folder, of, *more, config="mlp_hq"):
        given = [f"--data.init_args.store={of}", f"--trainer.default_root_dir={tmp_path / folder}", *more]
        fit_controller(CONFIGS / f"{config}.yaml", [*given, "--trainer.max_epochs=1"])
        return load_controller(tmp_path / folder).estimator

    assert "prompt" not in fitted("published", store).parts
    told = fitted("told", store, "--model.init_args.use_prompt=true")
    assert "prompt" in told.parts
    assert told.end is not None
    weightless = fitted("none", store, "--data.init_args.feature_set=ladder", "--model.init_args.end_weight=0")
    assert ("prompt" in weightless.parts, weightless.end) == (True, None)
    with pytest.raises(InputError, match="the store has none: harvest with"):
        fitted("lacks", harvest, "--model.init_args.use_prompt=true")


@pytest.mark.parametrize(
    ("where", "change", "words"),
    [
        ("settings", {"value": False}, "settings.value should be what the label says"),
        ("settings", {"value": 1}, "settings.value should be true or false"),
        ("settings", {"tells_end": "yes"}, "settings.tells_end should be true or false"),
        ("settings", {"prompt_size": 10**9}, "settings.prompt_size should be"),
        ("settings", {"embedding_size": 0, "prompt_size": 0}, "settings.tells_end should be false"),
        ("description", {"prompt_size": -1}, "prompt_size should be a size"),
        ("description", {"prompt_size": 4 * SIZE + 1}, "should be"),
        ("trees", {"cost": None}, "its trees are missing"),
        ("trees", {"cost": "tree\n"}, "its trees cannot be used"),
        ("trees", {"objective": "binary sigmoid:1"}, "its trees cannot be used"),
    ],
)
def test_hostile_values_are_refused_in_a_sentence(store, tmp_path_factory, tmp_path, where, change, words):
    name = "value_gbdt" if where == "trees" else "value_mlp_hq"
    source = tmp_path_factory.getbasetemp() / f"hostile-{name}"
    if not source.exists():
        run(["fit", *options(name, store, "--trainer.max_epochs=1", f"--trainer.default_root_dir={source}")])
    checkpoint = torch.load(source / "checkpoints" / "best.ckpt", weights_only=True)
    description, state = checkpoint["controller"], checkpoint["state_dict"]
    assert (description["hidden_size"], description["embedding_size"]) == (HIDDEN_SIZE, EMBEDDING_SIZE)
    if where == "trees":
        trees = state["estimator._extra_state"]
        for field, value in change.items():
            if field == "objective":
                trees["cost"] = trees["cost"].replace("objective=regression", f"objective={value}")
            elif value is None:
                del trees[field]
            else:
                trees[field] = value
    else:
        (description["settings"] if where == "settings" else description).update(change)
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=words):
        load_controller(tmp_path / "a.ckpt")
