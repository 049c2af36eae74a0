"""Attention over blocks and the spread over trajectories: the mathematics, and the whole way from fit to live."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dps.cli import run as dps
from dps.decide.features import checkpoint_features
from dps.decide.predictions import read_predictions
from dps.decide.table import orders_of
from dps.decide.vectors import Blocks, VectorFile, hidden_rows, join_rows, mean_vectors
from dps.errors import InputError
from feature_store import Store
from lightning_modules import load_controller
from lightning_modules.cli import _run, cross_validate
from lightning_modules.crossval import predict_table
from lightning_modules.data import FeatureDataModule
from lightning_modules.estimators import AttentionPooling
from tests.lightning_modules.harvests import HIDDEN_SIZE, make_questions, write_harvest

CONFIGS = Path(__file__).parents[2] / "configs"
BOTH = ("--data.init_args.pooling=attention", "--data.init_args.spread=true")


def made_up_blocks(rng, trajectories=6, most=5, size=4):
    values = np.zeros((trajectories, most, size + 1))
    for each in values:
        count = int(rng.integers(1, most + 1))
        each[:count, :size] = rng.normal(size=(count, size)) + 3
        each[:count, size] = rng.integers(1, 9, count)
    return values


def by_hand(values, members, query, scale, spread):
    """Attention as its docstring says it, one trajectory at a time."""
    size = len(query)
    rows = []
    for row in members:
        pooled = []
        for member in row[row >= 0]:
            blocks = values[member][values[member][:, size] > 0]
            scores = np.log(blocks[:, size]) + ((blocks[:, :size] - 7) / scale) @ query / np.sqrt(size)
            weights = np.exp(scores) / np.exp(scores).sum()
            pooled.append(weights @ blocks[:, :size])
        rows.append(np.concatenate([np.mean(pooled, axis=0), np.std(pooled, axis=0) if spread else []]))
    return np.array(rows)


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_attention_by_hand_and_at_first_the_mean_over_tokens(spread, trained):
    rng = np.random.default_rng(0)
    values = made_up_blocks(rng)
    members = np.array([[0, 1, 2, 3], [5, -1, -1, -1], [2, 4, -1, -1]])
    scale = rng.random(8 if spread else 4) + 0.5
    module = AttentionPooling(4, spread).double()
    if trained:
        module.query.data = torch.from_numpy(rng.normal(size=4) * 3)
    found = module(Blocks(torch.from_numpy(values), torch.from_numpy(members)), torch.from_numpy(scale))
    query = module.query.detach().numpy()
    np.testing.assert_allclose(found.detach(), by_hand(values, members, query, scale[:4], spread), atol=1e-12)
    mean = by_hand(values, members, np.zeros(4), scale[:4], spread)
    assert np.allclose(found.detach(), mean, atol=1e-12) != trained
    found.sum().backward()
    assert torch.isfinite(module.query.grad).all()  # also where the spread of one trajectory is 0
    assert module.query.grad.abs().max() > 0


def test_joined_parts_are_the_same_rows():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(5, 8, 3, 4)).astype(np.float32)
    questions, ks = rng.integers(0, 5, 20), rng.integers(1, 9, 20)
    orders = np.stack([rng.permutation(8) for _ in range(20)])
    whole = hidden_rows(vectors, questions, orders, ks, False)
    cuts = [slice(0, 7), slice(7, 8), slice(8, 20)]
    joined = join_rows([hidden_rows(vectors, questions[c], orders[c], ks[c], False) for c in cuts])
    for found in (whole, joined):
        for row, (q, order, k) in enumerate(zip(questions, orders, ks, strict=True)):
            assert (found.members[row, k:] == -1).all()
            np.testing.assert_array_equal(found.values[found.members[row, :k]], vectors[q, order[:k]])
    flat = vectors[:, :, 0]
    parts = [mean_vectors(flat, questions[c], orders[c], ks[c]) for c in cuts]
    np.testing.assert_array_equal(join_rows(parts), hidden_rows(flat, questions, orders, ks, False))


def options(store, folder, *more):
    return [
        *("--config", str(CONFIGS / "mlp_hq.yaml"), f"--data.init_args.store={store}"),
        *(f"--trainer.default_root_dir={folder}", "--data.init_args.num_orders=2"),
        *("--model.init_args.optimizer.init_args.lr=0.01", "--trainer.max_epochs=6", *more),
    ]


@pytest.fixture(scope="module", params=[BOTH, BOTH[:1], BOTH[1:]], ids=["both", "attention", "spread"])
def trained(request, harvest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    _run(["fit", *options(harvest, folder, *request.param)])
    return folder, request.param


def test_what_was_trained_is_asked_live_and_by_table(trained, harvest):
    folder, how = trained
    controller = load_controller(folder)
    attends, spreads = BOTH[0] in how, BOTH[1] in how
    assert (controller.pooling, controller.spread) == ("attention" if attends else "mean", spreads)
    assert (controller.estimator.attention is not None) == attends
    if attends:
        assert controller.estimator.attention.query.abs().max() > 1e-4  # it has learned something
    assert len(controller.estimator.standardizers["hidden"].mean) == HIDDEN_SIZE * (1 + spreads)
    assert controller.description["validation"]["auroc"] > 0.7
    data = FeatureDataModule(harvest, num_orders=2, pooling=controller.pooling, spread=controller.spread)
    table = data.whole()
    found = predict_table(controller.estimator, table)
    for q, question in enumerate(Store.open(harvest)):
        live = [
            checkpoint_features(
                [question.trajectories[i] for i in order[:k]],
                num_prompt_tokens=question.num_prompt_tokens,
                embedding=question.embedding,
                calibration=controller.calibration,
                pooling=controller.pooling,
            )
            for order in orders_of(question.question_id, 8, 2, 0)
            for k in (2, 4, 6)
        ]
        np.testing.assert_allclose(controller.predict_enough(live), found[q].reshape(-1), rtol=0, atol=1e-12)
        if q == 0:
            alone = np.concatenate([controller.predict_enough([each]) for each in live])
            np.testing.assert_allclose(alone, found[0].reshape(-1), rtol=0, atol=1e-12)
    assert found.std() > 0.01


def test_test_finds_it_and_refuses_another_form(trained, harvest):
    folder, how = trained
    result = _run(["test", *options(harvest, folder, *how)]).model.test_result
    assert result.metrics["auroc"] > 0.7
    with pytest.raises(InputError, match=r"was trained with data\.(pooling|spread)"):
        _run(["test", *options(harvest, folder)])


def test_a_training_from_a_file_equals_one_from_memory(tmp_path, monkeypatch):
    """Windows only change the order of the rows, so one batch of all of them is the same in both."""
    store = write_harvest(tmp_path / "store", make_questions(40))
    found = {}
    for name, megabyte in (("file", 1000), ("memory", 10**6)):
        monkeypatch.setattr("dps.decide.vectors.MEGABYTE", megabyte)
        more = ["--data.init_args.batch_size=null", "--data.init_args.memory_mb=1", *BOTH]
        cli = _run(["fit", *options(store, tmp_path / name, *more)])
        assert isinstance(cli.datamodule.table("train").vectors, VectorFile) == (name == "file")
        found[name] = cli.model.estimator.state_dict()
    for key, value in found["file"].items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, found["memory"][key], rtol=1e-5, atol=1e-5)


def test_a_cross_validation_and_a_shipped_folder_have_both(harvest, tmp_path):
    folder = cross_validate(options(harvest, tmp_path / "run", *BOTH), folds=2, output=tmp_path / "crossval")
    assert read_predictions(folder).p_enough.std() > 0.01
    assert dps(["ship", str(folder / "fold-0"), "--output", str(tmp_path / "shipped")]) == 0
    shipped = load_controller(tmp_path / "shipped")
    assert (shipped.pooling, shipped.spread) == ("attention", True)
    assert "pooled by attention, mean and spread over trajectories" in (tmp_path / "shipped" / "README.md").read_text()


@pytest.mark.parametrize("option", BOTH)
def test_trees_refuse_what_they_do_not_look_at(option, harvest, tmp_path):
    run = [f"--data.init_args.store={harvest}", f"--trainer.default_root_dir={tmp_path}", option]
    with pytest.raises(InputError, match="Trees do not look at hidden states"):
        _run(["fit", "--config", str(CONFIGS / "gbdt.yaml"), *run])
    with pytest.raises(InputError, match="spread is set from the data module"):
        _run(["fit", *options(harvest, tmp_path), "--model.init_args.spread=true"])
