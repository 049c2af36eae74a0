"""A controller on a ladder of several arms, from fit to recommend; its policy file decides as the replay did."""

import json
import re
import shutil
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest

from dps.analysis.outcomes import FILE, read_outcomes, write_outcomes
from dps.api import _of_harvest, answer
from dps.cli import run
from dps.decide.aggregate import answer_of
from dps.decide.features import checkpoint_features
from dps.decide.policy_file import read_policy
from dps.errors import InputError
from dps.model import load_model
from dps.sampler.arms import Arm
from dps.sampler.settings import SamplerConfig
from dps.sampler.teacher import prompt_states
from feature_store import Store
from lightning_modules import load_controller
from scripts.check_replay_live import AGREE, compare

LADDER = "[plain 1, lowtemp 1, plain 2]"
HARVEST = [
    "harvest",
    "--ladder=[lowtemp 2, power 1, plain 4]",
    "--sampler.block_size=24",
    "--sampler.max_new_tokens=24",
]
HARVEST += ["--sampler.num_mh_steps=1", "--compute.rows=64", "--compute.threads=1"]
QUESTIONS = ["From left to right: 14+23*3-7", "From left to right: 9+9", "From left to right: 7-2*5"]
SETTINGS = {
    "gbdt": ["--trainer.max_epochs=4", "--data.init_args.num_orders=4", "--model.init_args.min_rows_per_leaf=10"],
    "value": ["--data.init_args.num_orders=4"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two harvests of three arms, controllers on a ladder of two of these, and their replay."""
    folder = tmp_path_factory.mktemp("ladders")
    for split, count in (("train", 48), ("test", 16)):
        questions = [f"--benchmark.split={split}", f"--benchmark.limit={count}"]
        assert run([*HARVEST, *questions, f"--output={folder / split}"]) == 0
    for name, settings in SETTINGS.items():
        data = [f"--data.init_args.{key}" for key in (f"store={folder / 'train'}", f"ladder={LADDER}")]
        options = ["--data.init_args.feature_set=ladder", f"--trainer.default_root_dir={folder / name}", *settings]
        assert run(["fit", f"--config=configs/{name}.yaml", *data, *options]) == 0
    controllers = [f"--controllers.{name}={folder / name}" for name in SETTINGS]
    assert (
        run(
            [
                "replay",
                str(folder / "test"),
                *controllers,
                f"--output={folder / 'replay'}",
                "--resamples=100",
                "--orders=4",
            ]
        )
        == 0
    )
    return folder


def one_point(outcomes, name):
    """The reference and one threshold of a controller, at which questions stop after each rung."""
    mine = [n for n, one in enumerate(outcomes.settings) if one["policy"] == name]
    tokens = outcomes.tokens.mean(axis=1)
    fixed = [n for n, one in enumerate(outcomes.settings) if one["policy"] == "fixed" and len(one["arms"]) == 1]
    reference = max(fixed, key=lambda n: tokens[n])  # too dear to take the controller's place
    between = (tokens[mine].min() + tokens[mine].max()) / 2
    kept = [reference, min(mine, key=lambda n: abs(tokens[n] - between))]
    rows = {part: getattr(outcomes, part)[kept] for part in ("correct", "tokens")}
    words = {part: tuple(getattr(outcomes, part)[n] for n in kept) for part in ("names", "settings")}
    return replace(outcomes, **rows, **words), float(tokens[kept[1]])


@pytest.fixture(scope="module")
def files(folder):
    """The policy file of each controller, as recommended where there is nothing else to choose."""
    found = {}
    for name in SETTINGS:
        replay = folder / f"replay-{name}"
        shutil.copytree(folder / "replay", replay)
        outcomes, tokens = one_point(read_outcomes(replay), name)
        write_outcomes(replay / FILE, outcomes)
        budget = f"--budget={tokens + 0.1}"
        target, output = f"--target={outcomes.names[0]}", f"--output={folder / name / 'policy'}"
        assert run(["recommend", str(replay), budget, target, output]) == 0
        found[name] = read_policy(folder / name / "policy")
        assert found[name].threshold == pytest.approx(outcomes.settings[1]["threshold"])
    return found


def test_an_evaluation_decides_as_the_replay_did(folder, files):
    paths = ",".join(str(file.path.parent) for file in files.values())  # folders, as recommend names them
    questions = ["--benchmark.split=test", "--benchmark.limit=16", "--compute.rows=16", "--compute.threads=1"]
    assert run(["evaluate", f"--policies=[{paths}]", *questions, f"--output={folder / 'live'}"]) == 0
    controllers = {file.name: file.controller for file in files.values()}
    for name, said in compare(folder / "test", folder / "live", controllers, ()).items():
        assert said["differ"] == [], name
        assert [said[what] for what in AGREE] == [16] * len(AGREE), name
        assert len({question.k for question in Store.open(folder / "live" / name)}) > 1, name


@pytest.mark.parametrize("name", SETTINGS)
def test_from_python_and_the_command_line_it_decides_alike(files, name, capsys):
    file, model = files[name], load_model("embedded")
    controller = load_controller(file.controller)
    whole = answer(QUESTIONS, model, ladder=file.ladder, sampler=SamplerConfig(block_size=24, max_new_tokens=24))
    for record, full in zip(answer(QUESTIONS, model, policy=file.path), whole, strict=True):
        [states] = prompt_states(model, model.encode_all([full.prompt]), controller.prompt_layers)
        features = [
            checkpoint_features(
                full.trajectories[:k],
                prompt_hidden=states,
                num_prompt_tokens=full.num_prompt_tokens,
                embedding=full.embedding,
                calibration=controller.calibration,
                ladder=controller.ladder,
            )
            for k in file.ladder.ks[:-1]
        ]
        p_enough = controller.predict_enough(features)
        enough = np.append(1 - p_enough <= controller.threshold, True)
        assert record.k == file.ladder.ks[int(enough.argmax())]
        asked = [decision.p_enough for decision in record.decisions]
        np.testing.assert_allclose(asked, p_enough[: len(asked)], rtol=0, atol=1e-6)
        assert record.answer == answer_of(full.trajectories[: record.k], file.aggregator)[0]
    [record] = answer(QUESTIONS[0], model, policy=file.path)
    assert run(["sample", f"--policy={file.path.parent}", QUESTIONS[0]]) == 0
    said = re.search(r"answer: (\S+)   \(k = (\d)", capsys.readouterr().out)
    assert said.groups() == (record.answer or "none", str(record.k))


def test_a_controller_draws_as_its_harvest_did_where_nothing_else_is_said(files, capsys):
    file, model = files["gbdt"], load_model("embedded")
    own, harvest = {"controller": file.controller}, SamplerConfig(block_size=24, max_new_tokens=24)
    [record] = answer(QUESTIONS[0], model, **own)  # 72 tokens are the embedded model's default
    [said] = answer(QUESTIONS[0], model, **own, sampler=harvest)
    assert [t.tokens.tolist() for t in record.trajectories] == [t.tokens.tolist() for t in said.trajectories]
    assert run(["sample", f"--controller={file.controller}", "--json", QUESTIONS[0]]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["text"] for each in told["responses"]] == [t.text for t in record.trajectories]
    power = replace(harvest, num_mh_steps=3)
    assert _of_harvest(replace_arms(load_controller(file.controller), power=asdict(power))) == power


def replace_arms(controller, **arms):
    return SimpleNamespace(arms={**controller.arms, **arms})


def test_other_arms_are_refused(files, capsys):
    file = files["gbdt"]
    with pytest.raises(InputError, match=r"gbdt was trained on the arm lowtemp with proposal_temperature 0.25, but"):
        answer(QUESTIONS, controller=file.controller, ladder=file.ladder, arms={"lowtemp": Arm(temperature=0.5)})
    text = file.path.read_text()
    file.path.write_text(re.sub(r"lowtemp: {temperature: 0.25}", "lowtemp: {temperature: 0.3}", text))
    try:
        assert run(["evaluate", f"--policies=[{file.path}]", "--output=/nowhere"]) == 2
        assert (
            "trained on the arm lowtemp with proposal_temperature 0.25, but here it has 0.3" in capsys.readouterr().err
        )
    finally:
        file.path.write_text(text)
