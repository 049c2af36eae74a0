"""`dps replay` from stores to its result, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dps.analysis.config import ReplayConfig
from dps.analysis.figures import draw_accuracy, named_of
from dps.analysis.findings import best_rule
from dps.analysis.replay import CHEAP_RULES, run_replay
from dps.analysis.write import write_result
from dps.cli import run as main
from dps.decide import RULES, KRange
from dps.decide.labels import labels_of
from dps.decide.orders import orders_of, walk
from dps.decide.predictions import Predictions, write_predictions
from dps.decide.samples import samples_of
from dps.errors import InputError
from feature_store import StoreWriter
from tests.factories import make_manifest, make_question

BOUNDS = ("votes-dp", "votes-bound", "oracle")


def no_controller(*arguments):
    raise AssertionError("no controller was named")


@pytest.fixture(scope="module")
def harvest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay") / "harvest"
    questions = [make_question(number) for number in range(60)]
    StoreWriter.open(folder, make_manifest()).commit(questions)
    return folder


@pytest.fixture(scope="module")
def rivals(tmp_path_factory):
    """Cheap samples of the same questions that are right more often than the harvest's."""
    folder = tmp_path_factory.mktemp("rivals")
    manifest = make_manifest(
        kind="evaluation",
        policy={"name": "lowtemp", "family": "fixed", "ladder": ["power 1", "power 1", "power 2", "power 4"]},
        fingerprint="other",
    )
    cheap = []
    for number in range(60):
        question = make_question(number, p_correct=0.97, hidden_size=0)
        cheap.append(
            replace(question, trajectories=tuple(replace(t, num_generated_tokens=5) for t in question.trajectories))
        )
    StoreWriter.open(folder / "lowtemp", manifest).commit(cheap)
    return folder


def crossval(path, fingerprint="made-up", orders=4, quality=1.0, ks=(2, 4, 6, 8), threshold=0.5):
    """Out-of-fold predictions of a controller that knows the answers to some degree."""
    path.mkdir()
    samples = samples_of([make_question(number) for number in range(60)], {"power": 8})
    shuffled = np.stack([orders_of(name, 8, orders, 0) for name in samples.question_ids])
    walked = walk(samples, shuffled, (2, 4, 6, 8), "majority")
    label = labels_of(walked.correct, "no_gain")
    noise = np.random.default_rng(5).random(label.shape)
    said = Predictions(
        name="mlp", label_name="no_gain", ks=ks, feature_set="published", aggregator="majority", seed=0,
        store_fingerprint=fingerprint, question_ids=samples.question_ids, fold=np.arange(60, dtype=np.int32) % 5,
        orders=shuffled.astype(np.int32), p_enough=np.clip(quality * label + (1 - quality) * noise, 0.01, 0.99),
        threshold=np.broadcast_to(threshold, 60).astype(float), label=label.astype(np.int8),
        correct=walked.correct.astype(np.int8), tokens=walked.tokens.astype(np.int64),
    )  # fmt: skip
    write_predictions(path / "predictions.h5", said)
    return path


def walk_of(ks):
    samples = samples_of([make_question(number) for number in range(60)], {"power": 8})
    return walk(samples, np.stack([orders_of(name, 8, 4, 0) for name in samples.question_ids]), ks, "majority")


def by_policy(result):
    return {policy["policy"]: policy for policy in result["policies"]}


@pytest.fixture(scope="module")
def report(harvest, rivals, tmp_path_factory):
    path = crossval(tmp_path_factory.mktemp("crossval") / "mlp", threshold=np.where(np.arange(60) % 2, 0.3, 1.0))
    config = ReplayConfig(rivals=(str(rivals),), controllers={"mlp": str(path)}, resamples=200)
    return run_replay(harvest, config, no_controller)


def test_every_policy_of_the_list_is_there_with_intervals(report, tmp_path):
    assert set(by_policy(report)) == {
        "fixed",
        "mlp",
        *RULES,
        *BOUNDS,
        "fixed (lowtemp)",
        *(f"{name} (lowtemp)" for name in (*CHEAP_RULES, *BOUNDS)),
    }
    for policy in report["policies"]:
        tokens = [p["tokens"] for p in policy["curve"]]
        assert tokens == sorted(tokens)
        assert all(p["low"] - 1e-12 <= p["accuracy"] <= p["high"] + 1e-12 for p in policy["curve"])
    rival = by_policy(report)["fixed (lowtemp)"]["curve"]
    assert [p["threshold"] for p in rival] == [1, 2, 3, 4, 5, 6, 7, 8]  # what is stored, and no chord between rows
    assert [p["name"] for p in rival if p["name"]] == [f"lowtemp-k{k}" for k in (1, 2, 4, 8)]
    write_result(report, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "replay.json").read_text())
    assert {name: value for name, value in written.items() if name != "figures"} == json.loads(json.dumps(report))


def test_a_controller_that_knows_saves_most_and_the_oracle_bounds_it(report):
    by_name = by_policy(report)
    points = {
        name: p["operating_point"] for name, p in by_name.items() if p["operating_point"] and p["series"] == "power"
    }
    assert min(points, key=lambda name: points[name]["tokens_ratio"]["value"]) == "mlp"
    assert by_name["oracle"]["curve"][-1]["accuracy"] >= points["mlp"]["accuracy"]
    matched = [m for m in report["matched_tokens"] if m["policy"] == "mlp" and m["rival_series"] == "power"]
    assert {m["rival"] for m in matched} >= {"adaptive-consistency", "esc", "sprt", "random", "fixed"}
    assert all(m["difference"]["value"] >= 0 for m in matched)
    assert report["findings"][0].startswith("Self-consistency over cheap samples wins: ")
    assert "lowtemp" in report["findings"][0]


def test_the_static_figure_names_what_decides_and_draws_the_rest_faintly(report):
    best = {best_rule(report["policies"], series) for series in ("power", "lowtemp")}
    expected = {"fixed", "fixed (lowtemp)", "mlp", "oracle", "votes-bound"} | best
    assert named_of(report) == expected
    few = {**report, "policies": [p for p in report["policies"] if p["series"] == "lowtemp"]}
    assert named_of(few) == {policy["policy"] for policy in few["policies"]}
    [legend] = draw_accuracy({"": report}).legends
    said = [text.get_text() for text in legend.get_texts()]
    assert (len(said), said[0], said[-2:]) == (9, "power sampling, fixed k", ["other rules", "other bounds"])


def test_too_few_questions_are_said_and_nothing_is_called_without_loss(report):
    assert any("n is too small to exclude a loss of 1 point of accuracy" in note for note in report["notes"])
    points = [p["operating_point"] for p in report["policies"] if p["series"] == "power" and p["operating_point"]]
    assert not any(point["no_loss"] for point in points)
    asked = [finding for finding in report["findings"] if "lowtemp" not in finding]
    assert not any("is excluded" in finding or "no loss" in finding for finding in asked)


def test_the_loss_at_the_trainings_own_thresholds_is_shown(report):
    own = by_policy(report)["mlp"]["own_threshold"]
    assert own["threshold"] == pytest.approx(0.65)
    assert own["accuracy_difference"]["low"] < 0 < own["tokens_ratio"]["value"] < 1
    assert any(finding.startswith("As trained, mlp (threshold 0.65) needs ") for finding in report["findings"])


def test_predictions_of_another_harvest_or_range_are_refused(harvest, tmp_path):
    other = crossval(tmp_path / "other", fingerprint="elsewhere")
    with pytest.raises(InputError, match="of another harvest"):
        run_replay(harvest, ReplayConfig(controllers={"mlp": str(other)}), no_controller)
    whole = crossval(tmp_path / "whole")
    every = ReplayConfig(controllers={"mlp": str(whole)}, k=KRange(1, 1, 8))
    with pytest.raises(InputError, match="asks at k = 2, 4, 6 of at most 8, the policy at 1, 2, 3, 4, 5, 6, 7 of at"):
        run_replay(harvest, every, no_controller)
    mine, more = crossval(tmp_path / "mine"), crossval(tmp_path / "more", orders=6)
    with pytest.raises(InputError, match="other orders"):
        run_replay(harvest, ReplayConfig(controllers={"a": str(mine), "b": str(more)}), no_controller)


@pytest.mark.parametrize(("krange", "columns"), [(KRange(4, 4, 8), [1]), (KRange(2, 2, 6), [0, 1])])
def test_a_replay_may_ask_at_a_part_of_the_checkpoints(harvest, tmp_path, krange, columns):
    whole = crossval(tmp_path / "whole", quality=0.5)
    config = ReplayConfig(controllers={"mlp": str(whole)}, k=krange, resamples=100)
    report = run_replay(harvest, config, no_controller)
    assert report["ks"] == list(krange.values)
    asked = labels_of(walk_of((2, 4, 6, 8)).correct, "no_gain")
    assert [len(entry["bins"]) > 0 for entry in report["calibration"] if entry["policy"] == "mlp"] == [True]
    rows = sum(cell["count"] for cell in report["calibration"][0]["bins"])
    assert rows == asked[..., columns].size


def test_the_command_writes_and_prints(harvest, tmp_path, capsys):
    assert main(["replay", str(harvest), "--output", str(tmp_path / "out"), "--resamples", "100"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("- ")
    assert "Fixed k = 8 against k = 2" in out
    assert (tmp_path / "out" / "replay.csv").read_text().startswith("policy,family,series,threshold,accuracy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds", "1"], "folds of at least 2"),
        (["--margin", "1.5"], "margin of accuracy in [0, 1)"),
        (["--controllers", "{a: /nowhere}"], "Expected a trained controller at /nowhere"),
        (["--k.start", "8", "--k.maximum", "8"], "has only k = 8: give for instance --k.start 1 --k.step 1, with"),
        (["--k.start", "3", "--k.step", "2", "--k.maximum", "8"], "cannot be reached"),
    ],
)
def test_bad_settings_are_one_sentence_and_code_2(harvest, options, message, capsys):
    assert main(["replay", str(harvest), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_with_a_wide_margin_few_questions_exclude_a_loss(harvest, tmp_path):
    config = ReplayConfig(controllers={"mlp": str(crossval(tmp_path / "mlp"))}, resamples=100, margin=0.2)
    wide = run_replay(harvest, config, no_controller)
    assert not any("n is too small to exclude" in note for note in wide["notes"])
    assert any(p["operating_point"]["no_loss"] for p in wide["policies"] if p["operating_point"])


@pytest.mark.parametrize("shift", [60, 1000])
def test_rivals_of_other_questions_are_named(harvest, tmp_path, shift, capsys):
    manifest = make_manifest(
        kind="evaluation",
        policy={"name": "plain", "family": "fixed", "ladder": ["power 1", "power 1", "power 2", "power 4"]},
    )
    others = [make_question(number, hidden_size=0) for number in range(shift, shift + 5)]
    StoreWriter.open(tmp_path / "plain", manifest).commit(others)
    assert main(["replay", str(harvest), f"--rivals=[{tmp_path}]", f"--output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert f"{tmp_path / 'plain'} and {harvest} have no graded question in common" in error
    assert not (tmp_path / "out" / "replay.json").exists()


def test_stores_that_differ_in_what_only_one_names_are_told_apart(harvest, tmp_path, capsys):
    benchmark = {**make_manifest().benchmark, "prompt_of_a_later_release": None}
    manifest = make_manifest(policy={"name": "plain", "family": "fixed", "ladder": ["power 1"]}, benchmark=benchmark)
    StoreWriter.open(tmp_path / "plain", manifest).commit([make_question(0, hidden_size=0)])
    assert main(["replay", str(harvest), f"--rivals=[{tmp_path}]", f"--output={tmp_path / 'out'}"]) == 2
    assert "prompt_of_a_later_release is None" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no HDF5", b"\x89HDF\r\n\x1a\n" + b"\xff" * 4096])
def test_predictions_that_cannot_be_read_are_a_sentence(harvest, tmp_path, content, capsys):
    (tmp_path / "cv").mkdir()
    (tmp_path / "cv" / "predictions.h5").write_bytes(content)
    options = (f"--controllers.mine={tmp_path / 'cv'}", f"--output={tmp_path / 'out'}")
    assert main(["replay", str(harvest), *options]) == 2
    assert "Expected predictions of dps crossval" in capsys.readouterr().err
