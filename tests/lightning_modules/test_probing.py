"""``dps probe`` on small harvests: what it finds, what it must not find, and what it says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dps.cli import run

from .harvests import HIDDEN_SIZE, make_questions, write_harvest


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A harvest in which the last token's state of the second layer tells how likely a question is right."""
    folder = tmp_path_factory.mktemp("probe")
    rng = np.random.default_rng(0)
    questions = []
    for number, chance in enumerate(rng.choice([0.05, 0.95], 240)):
        (question,) = make_questions(1, seed=number, p_correct=float(chance))
        prompt = rng.normal(size=(2, 2, HIDDEN_SIZE)).astype(np.float32)
        prompt[1, 0] += chance
        own = {"question_id": f"q{number:04}", "question": f"question {number}", "prompt_hidden": prompt.reshape(-1)}
        questions.append(replace(question, embedding=rng.normal(size=6).astype(np.float32), **own))
    model = {"name": "made-up", "fingerprint": "0" * 16, "num_layers": 12, "feature_layer": 11, "prompt_layers": [4, 8]}
    store = write_harvest(folder / "store", questions, model=model)
    shipped = Path(__file__).parents[2] / "configs/probe.yaml"
    command = ["probe", store, "--config", str(shipped), "--output", str(folder / "out"), "--data.num_orders", "2"]
    assert run(command) == 0
    return json.loads((folder / "out" / "probe.json").read_text()), command


def test_the_layer_that_knows_is_found_and_the_others_stay_at_chance(result):
    rows = {name: row["auroc"]["value"] for name, row in result[0]["question"].items()}
    assert list(rows) == ["length", "embedding", *(f"layer {at} {w}" for at in (4, 8) for w in ("last", "mean")), "all"]
    assert rows["layer 8 last"] > 0.9 and rows["all"] > 0.9  # noqa: PT018
    assert all(abs(rows[name] - 0.5) < 0.13 for name in ("embedding", "layer 4 last", "layer 4 mean", "layer 8 mean"))
    assert result[0]["question"]["layer 8 last"]["brier_skill"]["value"] > 0.4


def test_after_the_first_rung_the_question_still_helps(result):
    rows = result[0]["after_first_rung"]
    assert list(rows) == ["first rung", *result[0]["question"]]
    assert rows["layer 8 last"]["auroc"]["value"] >= rows["first rung"]["auroc"]["value"] - 0.01
    assert {row["folds_of_gbdt"] for row in rows.values()} <= set(range(6))


def test_giving_up_on_hopeless_questions_saves_tokens(result):
    alone, known = (
        result[0]["votes_alone"]["lead-2"]["1"],
        result[0]["question"]["layer 8 last"]["saves"]["lead-2"]["1"],
    )
    assert known["share"]["value"] < alone["share"]["value"]
    assert alone["share"]["value"] < 1.1


def test_refusals_are_sentences(result, capsys):
    _, command = result
    store = command[1]
    for extra, words in (
        ([], "Expected --output"),
        (["--output", "x", "--folds", "1"], "folds of at least 2"),
        (["--output", "x", "--data.feature_set", "published"], "recorded or ladder or extended"),
        (["--output", "x", "--data.ladder", "[plain 2]"], "at least two rungs"),
        (["--output", "x", "--data.ladder", "[plain 2, plain 2]"], "the arm plain"),
        (["--output", "x", "--folds", "200"], "Expected at least 1000 graded questions"),
    ):
        assert run(["probe", store, *extra]) == 2
        assert words in capsys.readouterr().err
