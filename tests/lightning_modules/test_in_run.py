"""Controllers that are asked inside a run: what they are trained on, and where they may be asked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dps.cli import run as dps
from dps.decide import DynamicK, KRange, in_run
from dps.decide.features import checkpoint_features
from dps.decide.predictions import read_predictions
from dps.decide.table import going_on, make_table, outcomes
from dps.decide.thresholds import stops
from dps.decide.vectors import VectorFile
from dps.errors import InputError
from feature_store import Store
from lightning_modules import fit_controller, load_controller
from lightning_modules.data import FeatureDataModule
from lightning_modules.ship import ship
from tests.lightning_modules.harvests import make_questions, write_harvest

CONFIGS = Path(__file__).parents[2] / "configs"
CLOCK = {"seconds_per_token": 0.01, "prefill_seconds_per_token": 0.001}
POLICY = {"name": "power", "family": "fixed", "start": 2, "step": 2, "maximum": 8, "checkpoint_blocks": [1, 2]}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """120 questions that can be learned from, with snapshots of blocks 1 and 2."""
    questions = make_questions(120, snapshot_blocks=(1, 2))
    return write_harvest(tmp_path_factory.mktemp("stores") / "harvest", questions, policy=POLICY)


def options(name, store, *more):
    small = ["--data.init_args.num_orders=2", "--trainer.max_epochs=8"]
    small.append("--model.init_args.min_rows_per_leaf=20" if "gbdt" in name else "--trainer.callbacks=[]")
    return ["--config", str(CONFIGS / f"{name}.yaml"), f"--data.init_args.store={store}", *small, *more]


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """A controller of every kind that matters: run folder by name, and what it is trained for."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for name, config, label, block in (
        ("escalate", "mlp_h", "no_gain", 1),
        ("give-up", "gbdt_extended", "solvable", 2),
        ("at-end", "gbdt_extended", "no_gain", None),
    ):
        found[name] = folder / name
        chosen = [f"--data.init_args.label={label}", f"--data.init_args.block={'null' if block is None else block}"]
        root = f"--trainer.default_root_dir={found[name]}"
        fit_controller(CONFIGS / f"{config}.yaml", [*options(config, store, *chosen, root)[2:]])
    return found


@pytest.mark.parametrize("block", [1, 2])
def test_rows_are_what_the_trajectories_were_at_the_end_of_the_block(store, block):
    questions = list(Store.open(store))[:6]
    settings = {"ks": (2, 4, 8), "aggregator": "majority", "calibration": CLOCK, "num_orders": 3}
    table = make_table(questions, **settings, feature_set="extended", block=block)
    at_end = make_table(questions, **settings, feature_set="extended")
    for q, question in enumerate(questions):
        for o, order in enumerate(table.orders[q]):
            for c, k in enumerate((2, 4)):
                live = checkpoint_features(
                    [question.trajectories[i].at(block) for i in order[:k]],
                    num_prompt_tokens=question.num_prompt_tokens,
                    embedding=question.embedding,
                    calibration=CLOCK,
                )
                np.testing.assert_array_equal(table.scalars[q, o, c], live.scalars_of("extended"))
                np.testing.assert_array_equal(table.hidden[q, o, c], live.hidden)
    assert (table.scalars != at_end.scalars).any(axis=(1, 2, 3)).all()
    for name in ("correct", "tokens", "orders", "embedding"):
        np.testing.assert_array_equal(getattr(table, name), getattr(at_end, name))


def test_solvable_and_what_it_costs_to_give_up():
    correct = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], bool)
    questions = make_questions(4)
    table = make_table(questions, ks=(2, 4, 8), aggregator="majority", calibration=CLOCK)
    table = replace(table, correct=correct[:, None])
    # At the last checkpoint k = 4: an answer that was right at k = 2 only cannot be had any more.
    assert table.labels("solvable")[:, 0].tolist() == [[True, False], [True, True], [True, True], [False, False]]
    assert outcomes(correct, "solvable").tolist() == [[False] * 3, [False] * 3, [False, False, True], [False] * 3]
    assert table.outcomes("no_gain") is table.correct
    p = np.array([[0.2, 0.9], [0.9, 0.1], [0.9, 0.9]])
    assert stops(going_on(p, "solvable"), 0.3).tolist() == [0, 1, 2]
    assert stops(going_on(p, "no_gain"), 0.3).tolist() == [1, 0, 0]


def test_a_threshold_for_giving_up_loses_no_more_than_its_margin(store, trained):
    controller = load_controller(trained["give-up"])
    assert (controller.label, controller.block, controller.block_size) == ("solvable", 2, 8)
    found = controller.description["validation"]
    assert found["accuracy"] >= found["accuracy_maximum"] - found["margin"]
    assert found["tokens_share"] <= 1
    assert found["auroc"] > 0.6  # the made-up snapshots carry the signal


def test_vectors_of_a_block_have_a_file_of_their_own(tmp_path):
    store = write_harvest(tmp_path / "harvest", make_questions(30, snapshot_blocks=(1,)), policy=POLICY)
    files = {}
    for block in (None, 1):
        small, large = (FeatureDataModule(store, block=block, memory_mb=size) for size in (1, 100))
        large_table = large.whole()
        small.memory_mb = 0  # nothing fits
        streamed = small.whole()
        assert isinstance(streamed.vectors, VectorFile)
        np.testing.assert_array_equal(streamed.hidden, large_table.hidden)
        files[block] = streamed.vectors.path
    assert files[None].is_file()
    assert files[1].name.startswith("pooled-mean-b1-k8-")
    assert files[None] != files[1]


def test_controllers_say_where_they_may_be_asked(trained):
    found = {name: load_controller(path) for name, path in trained.items()}
    assert {name: (c.label, c.block) for name, c in found.items()} == {
        "escalate": ("no_gain", 1), "give-up": ("solvable", 2), "at-end": ("no_gain", None),
    }  # fmt: skip
    inside = in_run(KRange(), escalation=[found["escalate"]], give_up=[found["give-up"]], block_size=8)
    assert inside.blocks == (1, 2)
    DynamicK(KRange(), found["at-end"])
    with pytest.raises(InputError, match="was trained to be asked after block 1 while trajectories run"):
        DynamicK(KRange(), found["escalate"])
    with pytest.raises(InputError, match="cannot escalate early while they run: train one"):
        in_run(KRange(), escalation=[found["at-end"]], block_size=8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": 3}, r"Expected snapshots of block 3, but .* has those of 1, 2: set data.block"),
        ({"label": "solvable"}, "set data.block to the block after which it is asked"),
    ],
)
def test_what_cannot_be_trained_is_refused(store, settings, message):
    with pytest.raises(InputError, match=message):
        FeatureDataModule(store, **settings)


def test_a_harvest_without_snapshots_is_refused(harvest):
    with pytest.raises(InputError, match=r"Expected snapshots of block 1, but .* has none"):
        FeatureDataModule(harvest, block=1)


def test_a_test_with_another_block_is_refused(store, trained, capsys):
    command = ["test", *options("mlp_h", store, f"--trainer.default_root_dir={trained['escalate']}")]
    assert dps([*command, "--data.init_args.block=2"]) == 2
    assert "was trained with data.block 1, but this configuration has 2" in capsys.readouterr().err
    assert dps([*command, "--data.init_args.block=1"]) == 0
    assert "k = 2" in capsys.readouterr().out


def test_cross_validation_after_a_block_is_said_and_not_replayed_at_the_end(store, tmp_path, capsys):
    inside = ["--data.init_args.block=1", "--data.init_args.label=solvable", "--trainer.max_epochs=2"]
    folder = tmp_path / "crossval"
    assert dps(["crossval", *options("gbdt_extended", store, *inside), "--folds=2", f"--output={folder}"]) == 0
    assert "solvable after block 1: 120 questions" in capsys.readouterr().out
    found = read_predictions(folder)
    assert (found.block, found.label_name) == (1, "solvable")
    assert dps(["replay", store, f"--controllers={{inside: {folder}}}", f"--output={tmp_path / 'replay'}"]) == 2
    assert "are asked after block 1 while trajectories run" in capsys.readouterr().err


def test_a_card_says_when_it_is_asked_and_what_follows(trained, tmp_path):
    text = (ship(trained["give-up"], tmp_path / "shipped") / "README.md").read_text()
    assert "Says after block 2 of 2, 4, 6 trajectories, while they run, whether these or more, up to 8" in text
    assert "give_up: {controllers: [FOLDER]}" in text
    shipped = load_controller(tmp_path / "shipped")
    assert (shipped.block, shipped.label) == (2, "solvable")
