"""`dps ship`: what is handed on says what the run said, and carries no paths."""

import json

import numpy as np
import pytest

from dps.cli import run
from dps.decide.ladder import from_ks
from dps.decide.predictions import Predictions, write_predictions
from dps.decide.samples import columns_for
from dps.errors import InputError
from lightning_modules.load import load_controller
from lightning_modules.metrics import METRICS
from lightning_modules.ship import ship

from .test_load import DATA, MODEL, save

OF_RUN = {"model": {**MODEL, "name": "/home/someone/models/made-up"}, "store": "/home/someone/runs/train"}


def trained(folder, name="mlp-hq"):
    (folder / "checkpoints").mkdir(parents=True)
    save(folder / "checkpoints" / "best.ckpt", name, data={**DATA, **OF_RUN, "store_fingerprint": "f"})
    return folder


def replay(folder, fingerprint="abc", policy="mlp-hq", version=4, ends=(0.35, 0.45)):
    """The part of a replay.json that a card shows."""
    folder.mkdir()
    low, high = ends
    interval = {"value": 0.4, "stderr": 0.03, "low": low, "high": high}
    point = {"threshold": 0.2, "accuracy": 0.5, "low": low, "high": high, "tokens": 1234.0, "mean_k": 3.3}
    loss = {name: None if value is None else -value / 100 for name, value in interval.items()}
    operating = {**point, "tokens_ratio": interval, "accuracy_difference": loss}
    report = {
        "schema_version": version,
        "policies": [
            {"policy": policy, "family": "controller", "curve": [point], "operating_point": operating},
            {"policy": "fixed", "family": "fixed", "curve": [{**point, "threshold": None}], "operating_point": None},
        ],
        "provenance": {"model": {"fingerprint": fingerprint}, "benchmark": {"name": "gsm8k", "split": "test"}},
        "num_questions": 710,
        "num_graded": 700,
        "ks": [2, 4, 6, 8],
    }
    (folder / "replay.json").write_text(json.dumps(report))
    return folder


def crossval(folder, **changes):
    folder.mkdir()
    value = {"value": 0.8, "stderr": 0.01}
    metrics = dict.fromkeys(METRICS, value)
    rows = {"controller": metrics, "length": metrics}
    found = {"format_version": 1, "name": "mlp-hq", "label": "no_gain", "feature_set": "published",
             "store_fingerprint": "f", "skill": None, "shipped": None, "num_questions": 900,
             "folds": [{}] * 5, "rows": {"all": rows, "k2": rows}}  # fmt: skip
    (folder / "crossval.json").write_text(json.dumps({**found, **changes}))
    return folder


def predicted(folder, ks=(1, 2, 3, 4)):
    """Say of 400 questions when they are right: a third at once, a third from k = 3 on, a third never.

    The middle third gets p_enough 0.3 before it is right, the others 0.8, and every trajectory costs 10 tokens.
    """
    count, checkpoints = 399, len(ks) - 1
    kind = np.arange(count) % 3
    right = (kind[:, None] == 0) | ((kind[:, None] == 1) & (np.array(ks) >= 3))
    waits = (kind[:, None] == 1) & (np.array(ks[:-1]) < 3)
    shape = (count, 1, checkpoints)
    write_predictions(
        folder / "predictions.h5",
        Predictions(
            name="mlp-hq", label_name="no_gain", ks=ks, ladder=from_ks("power", ks),
            columns=columns_for({"power": ks[-1]}), feature_set="published", aggregator="majority", seed=0,
            store_fingerprint="f", question_ids=tuple(f"q{i}" for i in range(count)),
            fold=np.zeros(count, np.int32), orders=np.tile(np.arange(ks[-1], dtype=np.int32), (count, 1, 1)),
            p_enough=np.where(waits, 0.3, 0.8).reshape(shape), threshold=np.full(count, 0.5),
            label=np.where(waits, 0, 1).reshape(shape).astype(np.int8), correct=right[:, None].astype(np.int8),
            tokens=np.tile(10 * np.array(ks), (count, 1, 1)),
        ),
    )  # fmt: skip
    return folder


@pytest.mark.parametrize(("k", "margin", "expected"), [
    (None, 0.0, (0.2, 0.7)),  # no question of the middle third may stop early, all others may
    ("2,1,4", 0.0, (0.2, 0.7)),
    (None, 0.99, (0.7, 1.0)),  # whatever is cheapest
])  # fmt: skip
def test_the_threshold_can_be_chosen_out_of_fold(tmp_path, k, margin, expected):
    source, folder = trained(tmp_path / "run"), predicted(crossval(tmp_path / "crossval"))
    options = (
        [] if k is None else [f"--k.{n}={v}" for n, v in zip(("start", "step", "maximum"), k.split(","), strict=True)]
    )
    output = tmp_path / "shipped"
    command = ["ship", str(source), f"--output={output}", f"--crossval={folder}", f"--margin={margin}"]
    assert run([*command, *options]) == 0
    assert expected[0] <= load_controller(output).threshold <= expected[1]


@pytest.mark.parametrize(("options", "message"), [
    (["--margin=0.01"], "give crossval with it"),
    (["--margin=0.01", "--crossval=CROSSVAL", "--threshold=0.1"], "no threshold"),
    (["--margin=2", "--crossval=CROSSVAL"], "in [0, 1)"),
    (["--k.start=2"], "give margin with it"),
    (["--margin=0.01", "--crossval=CROSSVAL", "--k.start=2", "--k.step=2", "--k.maximum=8"], "asks at k = 1, 2, 3 of"),
])  # fmt: skip
def test_a_choice_that_cannot_be_made_is_refused(tmp_path, capsys, options, message):
    source, folder = trained(tmp_path / "run"), predicted(crossval(tmp_path / "crossval"))
    given = [option.replace("CROSSVAL", str(folder)) for option in options]
    assert run(["ship", str(source), f"--output={tmp_path / 'shipped'}", *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "shipped").exists()


def test_nothing_of_the_machine_is_handed_on(tmp_path):
    folder = ship(trained(tmp_path / "run"), tmp_path / "controller")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "controller.json", "controller.safetensors"]
    for path in folder.iterdir():
        assert b"/home/someone" not in path.read_bytes()
    assert "made-up, fingerprint `abc`" in (folder / "README.md").read_text()


def test_the_card_has_what_was_measured(tmp_path):
    folder = ship(
        trained(tmp_path / "run"),
        tmp_path / "controller",
        crossval=crossval(tmp_path / "cv"),
        replay=replay(tmp_path / "replay"),
    )
    text = (folder / "README.md").read_text()
    assert "| AUROC | 0.800 ± 0.010 | 0.800 ± 0.010 |" in text
    assert "Replayed over 700 questions of gsm8k test" in text
    assert "0.40 [0.35, 0.45] of the tokens of k = 8 at -0.4 points [-0.3, -0.5]" in text
    assert "| 0.2 | 50.0 [35.0, 45.0] | 1,234 | 3.30 |" in text


def test_a_replay_of_too_few_questions_for_intervals_has_none_on_the_card(tmp_path):
    few = replay(tmp_path / "replay", ends=(None, None))
    text = (ship(trained(tmp_path / "run"), tmp_path / "controller", replay=few) / "README.md").read_text()
    assert "0.40 of the tokens of k = 8 at -0.4 points." in text
    assert "| 0.2 | 50.0 | 1,234 | 3.30 |" in text


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"], ids=["absent", "broken", "list", "empty"])
@pytest.mark.parametrize(("option", "name"), [("crossval", "crossval.json"), ("replay", "replay.json")])
def test_measures_that_cannot_be_read_are_a_sentence(tmp_path, capsys, option, name, content):
    (tmp_path / "measured").mkdir()
    if content is not None:
        (tmp_path / "measured" / name).write_text(content)
    command = ["ship", str(trained(tmp_path / "run")), f"--output={tmp_path / 'c'}"]
    assert run([*command, f"--{option}={tmp_path / 'measured'}"]) == 2
    error = capsys.readouterr().err
    assert name in error
    assert error.count("\n") == 1
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "correct"}, "same label"),
        ({"store_fingerprint": "g"}, "same harvest"),
        ({"name": "gbdt"}, "controller"),
    ],
)
def test_measures_of_another_controller_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        ship(trained(tmp_path / "run"), tmp_path / "controller", crossval=crossval(tmp_path / "cv", **changes))
    assert not (tmp_path / "controller").exists()


def test_a_replay_of_another_model_policy_or_version_is_refused(tmp_path):
    source = trained(tmp_path / "run")
    with pytest.raises(InputError, match=r"of schema_version 4, got 2: run dps replay again"):
        ship(source, tmp_path / "c", replay=replay(tmp_path / "old", version=2))
    with pytest.raises(InputError, match="same model"):
        ship(source, tmp_path / "a", replay=replay(tmp_path / "other", fingerprint="zzz"))
    with pytest.raises(InputError, match="which has gbdt"):
        ship(source, tmp_path / "b", replay=replay(tmp_path / "named", policy="gbdt"))


def test_the_command_refuses_in_one_sentence(tmp_path, capsys):
    assert run(["ship", str(tmp_path / "nothing"), "--output", str(tmp_path / "x")]) == 2
    assert "Expected a trained controller" in capsys.readouterr().err
    source = trained(tmp_path / "run")
    assert run(["ship", str(source)]) == 2
    assert "--output" in capsys.readouterr().err
    assert run(["ship", str(source), "--output", str(tmp_path / "c")]) == 0
    assert run(["ship", str(source), "--output", str(tmp_path / "c")]) == 2
    assert "not there yet" in capsys.readouterr().err


# -- which threshold ships, and what is said of it ---------------------------------------------------------------------


def test_by_default_the_threshold_is_chosen_out_of_fold_and_the_card_says_what_it_loses(tmp_path):
    numbers = {"accuracy_difference": {"value": -0.001, "low": -0.008, "high": 0.002}, "tokens_ratio": {"value": 0.41}}
    found = crossval(tmp_path / "cv", shipped={"threshold": 0.3, "margin": 0.01, "policy": numbers})
    source, folder = trained(tmp_path / "run"), predicted(found)
    before = load_controller(source).threshold
    card = (ship(source, tmp_path / "c", crossval=folder) / "README.md").read_text()
    shipped = load_controller(tmp_path / "c").threshold
    assert 0.2 <= shipped < 0.7
    assert shipped != before
    assert "chosen on out-of-fold predictions" in card
    assert "On the 399 questions of the cross-validation it gives +0.0 points [-0.9, +0.9]" in card
    assert "a loss of 1 point is excluded" in card
    assert "what to expect of others: -0.1 points [-0.8, +0.2] with 0.41 of the tokens." in card
    facts = json.loads((tmp_path / "c" / "controller.json").read_text())
    assert facts["threshold_choice"]["how"] == "out of fold"
    assert run(["ship", str(source), f"--output={tmp_path / 'k'}", f"--crossval={folder}", "--k.start=2", "--k.step=1",
                "--k.maximum=4"]) == 0  # fmt: skip


def test_a_given_threshold_ships_with_its_loss(tmp_path):
    source, folder = trained(tmp_path / "run"), predicted(crossval(tmp_path / "cv"))
    card = (ship(source, tmp_path / "c", crossval=folder, threshold=1.0) / "README.md").read_text()
    assert load_controller(tmp_path / "c").threshold == 1.0
    assert "The threshold was given." in card
    assert "-33.3 points" in card
    assert "a loss of 1 point is not excluded" in card
    alone = (ship(source, tmp_path / "d") / "README.md").read_text()
    assert "The threshold is the training's own" in alone


@pytest.mark.parametrize(("low", "length", "warned"), [(0.02, 0.01, False), (-0.01, 0.01, True), (0.01, -0.1, True)])
def test_a_controller_that_learnt_nothing_does_not_ship_in_silence(tmp_path, capsys, low, length, warned):
    skill = {"k": {"value": 0.03, "stderr": 0.01, "low": low, "high": 0.05},
             "length": {"value": 0.03, "stderr": 0.01, "low": length, "high": 0.05}}  # fmt: skip
    folder = ship(trained(tmp_path / "run"), tmp_path / "c", crossval=crossval(tmp_path / "cv", skill=skill))
    said, card = capsys.readouterr().err, (folder / "README.md").read_text()
    assert said.startswith("Warning: It may have learnt nothing: 900 held-out questions") == warned
    assert ("**Warning.** It may have learnt nothing" in card) == warned
