"""Scalars that are learnt on other questions: out of fold in training, the same live as in tables, and no danger."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dps.decide.features import END_LOGIT, VOTE_VALUE, feature_names
from dps.errors import InputError
from feature_store import Store
from lightning_modules import fit_controller, load_controller
from lightning_modules.data import FeatureDataModule
from lightning_modules.learnt import Learnt, fit_learnt
from lightning_modules.predict import predict_orders
from tests.decide.test_orders import power_orders
from tests.lightning_modules.harvests import live_features, make_questions, write_harvest

CONFIGS = Path(__file__).parents[2] / "configs"
MODEL = {"name": "made-up", "fingerprint": "0" * 16, "num_layers": 12, "feature_layer": 11, "prompt_layers": [4, 8]}
SIZE = 5


def with_prompts(questions):
    """Questions whose second prompt state tells how many of their answers are right."""
    found = []
    for number, question in enumerate(questions):
        states = np.random.default_rng(number).normal(size=(4, SIZE)).astype(np.float32)
        states[1, 0] += 6 * np.mean([t.correct for t in question.trajectories])
        found.append(replace(question, prompt_hidden=states.reshape(-1)))
    return found


def write(folder, questions, **changes):
    model = {**MODEL, "hidden_size": questions[0].trajectories[0].hidden.shape[1]}
    return write_harvest(folder, questions, **{"model": model, **changes})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write(tmp_path_factory.mktemp("stores") / "prompts", with_prompts(make_questions(120)))


def fit(store, folder, *options, config="value"):
    given = [f"--data.init_args.store={store}", f"--trainer.default_root_dir={folder}", *options]
    return fit_controller(CONFIGS / f"{config}.yaml", [*given, "--data.init_args.num_orders=2"])


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "value"
    fit(store, folder, "--data.init_args.decided=null")
    return folder


@pytest.fixture(scope="module")
def data(store):
    """The data of that training."""
    fractions = {"train_fraction": 0.9, "val_fraction": 0.1}
    module = FeatureDataModule(store, label="value", feature_set="recorded", num_orders=2, **fractions)
    module.setup()
    return module


def test_what_is_said_live_is_what_is_said_of_a_table(trained, tmp_path):
    controller = load_controller(trained)
    assert controller.parts == {"scalars", "prompt"}
    assert controller.prompt_layers == (4, 8)
    other = write(tmp_path / "other", with_prompts(make_questions(12, seed=5)), fingerprint="other")
    questions = list(Store.open(other))
    ids = [q.question_id for q in questions]
    orders = power_orders(ids, 3, seed=1)
    _, p_enough, *_ = predict_orders(str(trained), Path(other), ids, lambda ladder: orders)
    live = [
        features
        for each, question in zip(orders, questions, strict=True)
        for order in each
        for features in live_features(controller, question, order)
    ]
    np.testing.assert_allclose(p_enough.reshape(-1), controller.predict_enough(live), rtol=0, atol=1e-12)
    # Both columns count: without what was learnt the same features are judged otherwise.
    for name in ("votes", "_held"):
        kept = getattr(controller.estimator.learnt, name)
        setattr(controller.estimator.learnt, name, None if name == "votes" else {})
        assert abs(controller.predict_enough(live) - p_enough.reshape(-1)).max() > 1e-4
        setattr(controller.estimator.learnt, name, kept)
    blind = [replace(each, prompt=np.zeros(3, np.float32)) for each in live]
    with pytest.raises(InputError, match="states of the prompt of size 20, but these have 3"):
        controller.predict_enough(blind)
    with pytest.raises(InputError, match=r"prompt's states of layers \[4, 8\], but features.prompt_layers are \[4\]"):
        controller.check_model({**MODEL, "prompt_layers": [4]})


def test_training_rows_are_told_out_of_fold_and_others_by_the_whole(data):
    names = feature_names("recorded", data.ladder)
    value, logit = names.index(VOTE_VALUE), names.index(END_LOGIT)
    train, val, raw = data.table("train"), data.table("val"), data.whole()
    assert not raw.scalars[..., [value, logit]].any()
    learnt = data.learnt
    assert (learnt.filled(val).scalars == val.scalars).all()
    assert val.scalars[..., logit].std() > 0.3
    told = learnt.filled(train).scalars
    assert (told[..., logit] != train.scalars[..., logit]).all()
    assert (told[..., value] != train.scalars[..., value]).any()
    assert (np.delete(told, [value, logit], axis=3) == np.delete(train.scalars, [value, logit], axis=3)).all()
    # A question's own answers change what it is told only through the choices that all questions make together.
    changed = train.correct.copy()
    changed[7] = ~changed[7]
    args = (frozenset(), 0.8, 0, 4)
    before, after = (fit_learnt(replace(train, correct=of), *args)[1].scalars for of in (train.correct, changed))
    assert (before[7] == after[7]).all()
    assert (before != after).any()


def test_what_was_learnt_survives_the_file_bit_for_bit(trained, data):
    learnt, again = data.learnt, load_controller(trained).estimator.learnt
    table = data.whole()
    assert (learnt.filled(table).scalars == again.filled(table).scalars).all()
    assert (learnt.filled(table).scalars != table.scalars).any()


def test_without_states_of_prompts_the_embedding_is_asked(harvest, tmp_path):
    fit(harvest, tmp_path / "run")
    assert load_controller(tmp_path / "run").parts == {"scalars", "embedding"}


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("votes", "states", torch.zeros(3)),
        ("votes", "states", torch.zeros(3, dtype=torch.int64)),
        ("votes", "gains", torch.full((2,), float("nan"), dtype=torch.float64)),
        ("votes", "gains", None),
        ("votes", "coarse_states", torch.zeros(1, dtype=torch.int64).expand(2**30)),
        ("votes", None, 7),
        ("probe", None, [1]),
        ("probe", "sizes", {"length": 1, "prompt": 2**40}),
        ("probe", "sizes", {"length": 1, "code": 20}),
        ("probe", "sizes", {"length": True, "prompt": 20}),
        ("probe", "sizes", {"length": 2, "prompt": 19}),
        ("probe", "sizes", {"embedding": 21}),
        ("probe", "weight", torch.zeros(21)),
        ("probe", "weight", torch.zeros(5, dtype=torch.float64)),
        ("probe", "bias", torch.tensor(float("inf"), dtype=torch.float64)),
        ("probe", "standardizer.scale", torch.zeros(21, dtype=torch.float64)),
        ("probe", "more", torch.zeros(1, dtype=torch.float64)),
        ("other", None, {}),
        (None, None, 7),
    ],
)
def test_what_somebody_else_says_was_learnt_is_a_sentence(part, name, value, trained, tmp_path):
    checkpoint = torch.load(load_controller(trained).path, weights_only=True)
    state = checkpoint["state_dict"]["estimator.learnt._extra_state"]
    if part is None:
        checkpoint["state_dict"]["estimator.learnt._extra_state"] = value
    elif name is None:
        state[part] = value
    else:
        state[part][name] = value
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="is damaged or was made by another program"):
        load_controller(tmp_path / "a.ckpt")


def test_features_that_cannot_be_filled_learn_nothing(store, trained, tmp_path):
    fit(store, tmp_path / "run", "--data.init_args.feature_set=extended")
    controller = load_controller(tmp_path / "run")
    assert (controller.estimator.learnt.votes, controller.estimator.learnt.probe) == (None, None)
    assert controller.parts == {"scalars"}
    checkpoint = torch.load(controller.path, weights_only=True)
    learnt = load_controller(trained).estimator.learnt.get_extra_state()
    checkpoint["state_dict"]["estimator.learnt._extra_state"] = learnt
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="learnt other things than its features have"):
        load_controller(tmp_path / "a.ckpt")


def test_nothing_learnt_changes_nothing():
    scalars = np.zeros((2, 3, 4))
    assert Learnt().fill(scalars, *[np.zeros(0)] * 4) is scalars
    assert Learnt().get_extra_state() == {}
