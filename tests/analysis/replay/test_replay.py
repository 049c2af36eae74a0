"""`dps replay` from stores to findings, and that it says what a live run does."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from dps.analysis.replay.command import run_replay, write_replay
from dps.analysis.replay.config import ReplayConfig
from dps.analysis.replay.findings import findings
from dps.analysis.replay.policies import cross_fitted, dynamic, fixed, folds_of, oracle
from dps.analysis.replay.samples import orders_of, read_samples, scores, walk
from dps.cli import run as main
from dps.decide import RULES, FixedK, KRange, RuleK
from dps.errors import InputError
from feature_store import StoreWriter
from tests.factories import make_manifest, make_question
from tests.run.test_scheduler import model, run  # noqa: F401


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
        kind="evaluation", policy={"name": "lowtemp", "family": "fixed", "ks": [1, 2, 4, 8]}, fingerprint="other"
    )
    cheap = []
    for number in range(60):
        question = make_question(number, p_correct=0.97, hidden_size=0)
        cheap.append(
            replace(question, trajectories=tuple(replace(t, num_generated_tokens=5) for t in question.trajectories))
        )
    StoreWriter.open(folder / "lowtemp", manifest).commit(cheap)
    return folder


def crossval(path, harvest_fingerprint="made-up", orders=4, quality=1.0, ks=(2, 4, 6, 8)):
    """Out-of-fold predictions of a controller that knows the answers to some degree."""
    path.mkdir()
    questions = [make_question(number) for number in range(60)]
    samples = read_samples(make_manifest(), questions, "store")
    shuffled = np.stack([orders_of(q.question_id, 8, orders, 0) for q in questions])
    correct = walk(samples, shuffled, (2, 4, 6, 8), 0).correct
    later = np.logical_or.accumulate(correct[..., :0:-1], axis=-1)[..., ::-1]
    label = correct[..., :-1] | ~later
    noise = np.random.default_rng(5).random(label.shape)
    with h5py.File(path / "predictions.h5", "w") as file:
        file["question_id"] = np.array([q.question_id.encode() for q in questions])
        file["orders"] = shuffled.astype(np.int32)
        file["p_enough"] = np.clip(quality * label + (1 - quality) * noise, 0.01, 0.99)
        file.attrs["ks"] = ks
        file.attrs["store_fingerprint"] = harvest_fingerprint
    return path


def test_every_policy_of_the_list_is_there_with_intervals(harvest, rivals, tmp_path):
    path = crossval(tmp_path / "mlp")
    config = ReplayConfig(rivals=(str(rivals),), controllers={"mlp": str(path)}, resamples=200)
    report = run_replay(harvest, config, no_controller)
    names = {p["policy"] for p in report["policies"]}
    assert names == {"fixed", "mlp", *RULES, "oracle", "fixed (lowtemp)", "adaptive-consistency (lowtemp)"}
    for policy in report["policies"]:
        tokens = [p["tokens"] for p in policy["curve"]]
        assert tokens == sorted(tokens)
        assert all(p["low"] - 1e-12 <= p["accuracy"] <= p["high"] + 1e-12 for p in policy["curve"])
    write_replay(report, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "replay.json").read_text()) == json.loads(json.dumps(report))
    assert run_replay(harvest, config, no_controller) == report


def test_a_controller_that_knows_saves_most_and_the_oracle_bounds_it(harvest, tmp_path):
    path = crossval(tmp_path / "mlp")
    report = run_replay(harvest, ReplayConfig(controllers={"mlp": str(path)}, resamples=200), no_controller)
    ratios = {
        p["policy"]: p["operating_point"]["tokens_ratio"]["value"] for p in report["policies"] if "operating_point" in p
    }
    assert min(ratios, key=ratios.get) == "mlp"
    by_name = {p["policy"]: p for p in report["policies"]}
    assert by_name["oracle"]["curve"][0]["accuracy"] >= by_name["mlp"]["operating_point"]["accuracy"]["value"]
    matched = [m for m in report["matched_tokens"] if m["policy"] == "mlp"]
    assert {m["rival"] for m in matched} >= {"adaptive-consistency", "esc", "sprt", "random", "fixed"}
    assert all(m["difference"]["value"] >= 0 for m in matched)


def test_the_first_finding_says_that_the_cheap_rival_wins(harvest, rivals):
    report = run_replay(harvest, ReplayConfig(rivals=(str(rivals),), resamples=200), no_controller)
    assert report["findings"][0].startswith("Self-consistency over cheap samples wins: ")
    assert "lowtemp" in report["findings"][0]


def test_predictions_of_another_harvest_or_range_are_refused(harvest, tmp_path):
    other = crossval(tmp_path / "other", harvest_fingerprint="elsewhere")
    with pytest.raises(InputError, match="of another harvest"):
        run_replay(harvest, ReplayConfig(controllers={"mlp": str(other)}), no_controller)
    narrow = crossval(tmp_path / "narrow", ks=(2, 4, 6, 10))
    every = ReplayConfig(controllers={"mlp": str(narrow)}, k=KRange(1, 1, 8))
    with pytest.raises(InputError, match="asks at k = 2, 4, 6 of at most 10, the replay at 1, 2, 3, 4, 5, 6, 7 of at"):
        run_replay(harvest, every, no_controller)
    short = crossval(tmp_path / "short", ks=(2, 4, 5, 6))
    with pytest.raises(InputError, match="of at most 6, the replay at 4 of at most 8"):
        run_replay(harvest, ReplayConfig(controllers={"mlp": str(short)}, k=KRange(4, 4, 8)), no_controller)
    mine, more = crossval(tmp_path / "mine"), crossval(tmp_path / "more", orders=6)
    with pytest.raises(InputError, match="other orders"):
        run_replay(harvest, ReplayConfig(controllers={"a": str(mine), "b": str(more)}), no_controller)


@pytest.mark.parametrize(("krange", "columns"), [(KRange(4, 4, 8), [1]), (KRange(2, 2, 6), [0, 1])])
def test_a_replay_may_ask_at_a_part_of_the_checkpoints(harvest, tmp_path, krange, columns):
    whole, part = crossval(tmp_path / "whole", quality=0.5), tmp_path / "part"
    report = run_replay(harvest, ReplayConfig(controllers={"it": str(whole)}, k=krange, resamples=100), no_controller)
    part.mkdir()
    with h5py.File(whole / "predictions.h5") as source, h5py.File(part / "predictions.h5", "w") as file:
        for name in ("question_id", "orders"):
            source.copy(name, file)
        file["p_enough"] = source["p_enough"][..., columns]
        file.attrs.update({**source.attrs, "ks": krange.values})
    only = run_replay(harvest, ReplayConfig(controllers={"it": str(part)}, k=krange, resamples=100), no_controller)
    assert report["ks"] == list(krange.values)
    assert report["policies"] == only["policies"]


def test_a_threshold_does_not_depend_on_the_questions_it_is_used_on(harvest):
    questions = [make_question(number) for number in range(60)]
    samples = read_samples(make_manifest(), questions, "store")
    orders = np.stack([orders_of(q.question_id, 8, 3, 0) for q in questions])
    walked = walk(samples, orders, (2, 4, 6, 8), 0)
    folds = folds_of(samples.question_ids, 5, 0)
    assert np.bincount(folds).tolist() == [12] * 5
    p_inc = np.random.default_rng(0).random((60, 3, 3))
    ran = dynamic("x", "rule", "power", walked, p_inc, folds, 0.12)
    flipped = walked.correct.copy()
    flipped[folds == 2] = ~flipped[folds == 2]
    again = [replace(p, correct=np.where(folds == 2, 1 - p.correct, p.correct)) for p in ran.curve]
    chosen = cross_fitted(ran.thresholds, again, replace(walked, correct=flipped), folds, 0.12)
    assert chosen[folds == 2].tolist() == ran.chosen_thresholds[folds == 2].tolist()
    assert chosen.tolist() != ran.chosen_thresholds.tolist()  # the others did look at fold 2


def test_the_oracle_takes_the_smallest_k_that_is_right():
    questions = [make_question(number) for number in range(20)]
    samples = read_samples(make_manifest(), questions, "store")
    walked = walk(samples, np.stack([orders_of(q.question_id, 8, 1, 0) for q in questions]), (2, 4, 6, 8), 0)
    found = oracle("power", walked).curve[0]
    for q in range(20):
        right = [k for k, c in zip(walked.ks, walked.correct[q, 0], strict=True) if c]
        assert (found.k[q], found.correct[q]) == ((right[0], 1.0) if right else (2, 0.0))
    assert fixed("power", walked).curve[-1].k.tolist() == [8.0] * 20


@pytest.mark.parametrize("name", ["adaptive-consistency", "entropy", "random", "uab"])
@pytest.mark.parametrize("krange", [KRange(2, 2, 8), KRange(1, 1, 5)])
def test_replay_says_what_a_live_run_does(model, name, krange):  # noqa: F811
    whole = run(model, FixedK(krange.maximum), count=14)
    samples = read_samples(
        make_manifest(policy={"name": "power", "family": "fixed", "start": 1, "step": 1, "maximum": krange.maximum}),
        [whole[i] for i in sorted(whole)],
        "store",
    )
    orders = np.arange(krange.maximum)[None, None].repeat(14, axis=0)
    walked = walk(samples, orders, krange.values, seed=1)
    p_inc = scores([RULES[name].enough(seen) for seen in walked.seen], walked)[:, 0]
    middle = np.unique(p_inc)
    rule = replace(RULES[name], threshold=float((middle[len(middle) // 2 - 1] + middle[len(middle) // 2]) / 2))
    live = run(model, RuleK(krange, rule), count=14, rows=9, layer=None)
    assert len({record.k for record in live.values()}) > 1
    for row, question_id in enumerate(samples.question_ids):
        climbing = p_inc[row] > rule.threshold
        stop = int(np.argmin(climbing)) if not climbing.all() else len(climbing)
        assert live[question_id].k == krange.values[stop]
        assert live[question_id].correct == walked.correct[row, 0, stop]
        assert sum(t.num_generated_tokens for t in live[question_id].trajectories) == walked.tokens[row, 0, stop]
        asked = [d.p_enough for d in live[question_id].decisions]
        assert asked == pytest.approx(
            (1 - p_inc[row, : len(asked)]).tolist(), abs=1e-6
        )  # batches differ, and with them the last bits


def test_the_command_writes_and_prints(harvest, tmp_path, capsys):
    assert main(["replay", str(harvest), "--output", str(tmp_path / "out"), "--resamples", "100"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("- ")
    assert "Fixed k = 8 against k = 2" in out
    assert (tmp_path / "out" / "replay.csv").read_text().startswith("policy,kind,series,threshold,accuracy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds", "1"], "folds of at least 2"),
        (["--margin", "1.5"], "margin of accuracy in [0, 1)"),
        (["--controllers", "{a: /nowhere}"], "Expected a trained controller at /nowhere"),
        (["--k.start", "3", "--k.step", "2", "--k.maximum", "8"], "cannot be reached"),
    ],
)
def test_bad_settings_are_one_sentence_and_code_2(harvest, options, message, capsys):
    assert main(["replay", str(harvest), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("low", "high", "words"), [
    (-0.004, 0.003, "+0.3]: a loss of 1 point is excluded"),
    (-0.008, -0.002, "−0.2]: a loss of 1 point is excluded"),
    (-0.014, -0.002, "−0.2]: a loss of 1 point is not excluded (60 questions are too few for that, it takes 368)"),
    (-0.014, 0.002, "+0.2]: a loss of 1 point is not excluded (60 questions are too few for that, it takes 368)"),
])  # fmt: skip
def test_a_loss_is_called_one(harvest, tmp_path, low, high, words):
    config = ReplayConfig(controllers={"mlp": str(crossval(tmp_path / "mlp"))}, resamples=200)
    report = run_replay(harvest, config, no_controller)
    (at,) = (p["operating_point"] for p in report["policies"] if p["policy"] == "mlp")
    at["accuracy_difference"] |= {"low": low, "high": high}
    at["no_loss"] = low >= -report["margin"]
    (sentence,) = (finding for finding in findings(report) if finding.startswith("mlp needs"))
    assert words in sentence


def replay_of(verdicts, rival=None):
    """What the findings about rules need of a replay with controllers a, b, c, ...: (difference, verdict) of each."""
    at = {"tokens_ratio": {"value": 0.3, "low": 0.29, "high": 0.31}, "no_loss": True, "tokens": {"value": 300.0}}
    at["accuracy_difference"] = {"value": -0.004, "low": -0.007, "high": -0.001}
    names = "abcdef"[: len(verdicts)]
    common = {"series": "power", "operating_point": at}
    policies = [{"policy": name, "kind": "controller", **common} for name in names]
    policies.append({"policy": "entropy", "kind": "rule", **common})
    policies.append({"policy": "fixed", "kind": "fixed", "series": "power", "curve": []})
    matched = [
        {"policy": name, "rival": "entropy", "rival_kind": "rule", "rival_series": "power", "verdict": verdict,
         "difference": {"value": value, "low": value - 0.001, "high": value + 0.001}}
        for name, (value, verdict) in zip(names, verdicts, strict=True)
    ]  # fmt: skip
    if rival is not None:
        matched.append({"policy": "fixed-k8", "rival": "fixed (plain)", "rival_kind": "fixed", "rival_series": "plain",
                        "tokens": 900.0, "accuracy": 0.81, **rival})  # fmt: skip
    sure = {"value": 0.1, "low": 0.09, "high": 0.11}
    gain = {"from": 2, "to": 8, "difference": sure, "questions_needed": 10}
    return {"policies": policies, "matched_tokens": matched, "ks": [2, 4, 6, 8], "margin": 0.01,
            "num_questions": 5000, "k8_over_k2": gain}  # fmt: skip


@pytest.mark.parametrize(("verdicts", "words"), [
    ([(0.004, "above")], "(entropy): +0.4 points, [+0.3, +0.5]."),
    ([(0.004, "above"), (0.003, "above")], "each at its own tokens, ahead of it: b."),
    ([(0.004, "above"), (-0.002, "below")], "each at its own tokens, behind it: b."),
    ([(0.004, "above"), (0.0, "undecided")], "each at its own tokens, not told apart from it: b."),
    ([(0.004, "above"), (-0.002, "below"), (-0.003, "below"), (0.0, "undecided"), (0.003, "above")],
     "each at its own tokens, ahead of it: e; behind it: b and c; not told apart from it: d."),
])  # fmt: skip
def test_the_best_controller_is_not_taken_for_all(verdicts, words):
    (sentence,) = (finding for finding in findings(replay_of(verdicts)) if finding.startswith("At equal tokens a "))
    assert sentence.endswith(words)


@pytest.mark.parametrize(("rival", "words"), [
    ({"difference": {"value": -0.013, "low": -0.019, "high": -0.006}, "verdict": "below", "rival_tokens": 900.0},
     "Self-consistency over cheap samples wins: fixed (plain) reaches 83.0 % with 900 tokens a question where fixed-k8 "
     "spends 900, fixed-k8 81.0 % (+1.3 points, [+0.6, +1.9])."),
    ({"difference": {"value": -0.003, "low": -0.008, "high": 0.003}, "verdict": "undecided", "rival_tokens": 300.0},
     "(+0.3 points, [−0.3, +0.8]; these data cannot decide)."),
    ({"difference": {"value": 0.004, "low": -0.003, "high": 0.009}, "verdict": "undecided", "rival_tokens": 300.0},
     "(−0.4 points, [−0.9, +0.3]; these data cannot decide)."),
    ({"difference": {"value": -0.003, "low": -0.008, "high": 0.003}, "verdict": "undecided", "rival_tokens": 900.0},
     "fixed-k8 is not told apart from the best self-consistency over cheap samples (fixed (plain), with 900 tokens a "
     "question where fixed-k8 spends 900): −0.3 points, [−0.8, +0.3]; these data cannot decide."),
])  # fmt: skip
def test_a_sign_is_that_of_the_sentences_subject(rival, words):
    assert findings(replay_of([(0.004, "above")], {"rival_accuracy": 0.83, **rival}))[0].endswith(words)


def test_rivals_are_compared_at_every_k_that_is_stored(harvest, rivals):
    """Between powers of two the curve is what it is, and no chord below it."""
    report = run_replay(harvest, ReplayConfig(rivals=(str(rivals),), resamples=100), no_controller)
    [fixed_rival] = [p for p in report["policies"] if p["policy"] == "fixed (lowtemp)"]
    assert [p["threshold"] for p in fixed_rival["curve"]] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_strongest_of_several_rivals_has_an_interval_that_allows_for_its_choice(harvest, rivals):
    report = run_replay(harvest, ReplayConfig(rivals=(str(rivals),), resamples=300), no_controller)
    of_rules = [m for m in report["matched_tokens"] if m["policy"] == "esc" and m["rival_series"] == "power"]
    counted = [m for m in of_rules if m["rival_kind"] in ("rule", "chance")]
    assert {m["together"]["rivals"] for m in counted} == {len(counted)}
    for m in counted:
        assert m["together"]["low"] <= m["difference"]["low"] <= m["difference"]["value"]
        assert m["difference"]["high"] <= m["together"]["high"]
    assert all("together" not in m for m in of_rules if m["rival_kind"] == "fixed")
    first = report["findings"][0]
    assert "the strongest of 2 on these questions" in first


def test_too_few_questions_are_said_and_nothing_is_called_without_loss(harvest, tmp_path):
    config = ReplayConfig(controllers={"mlp": str(crossval(tmp_path / "mlp"))}, resamples=100)
    report = run_replay(harvest, config, no_controller)
    assert any("n is too small to exclude a loss of 1 point of accuracy" in note for note in report["notes"])
    assert not any(p["operating_point"]["no_loss"] for p in report["policies"] if "operating_point" in p)
    assert not any("is excluded" in finding or "no loss" in finding for finding in report["findings"])
    wide = run_replay(harvest, replace(config, margin=0.2), no_controller)
    assert not any("n is too small" in note for note in wide["notes"])
    assert any(p["operating_point"]["no_loss"] for p in wide["policies"] if "operating_point" in p)


def test_the_loss_at_the_trainings_own_thresholds_is_shown(harvest, tmp_path):
    path = crossval(tmp_path / "mlp")
    with h5py.File(path / "predictions.h5", "a") as file:
        file["threshold"] = np.where(np.arange(60) % 2, 0.3, 1.0)
    report = run_replay(harvest, ReplayConfig(controllers={"mlp": str(path)}, resamples=100), no_controller)
    [mlp] = [p for p in report["policies"] if p["policy"] == "mlp"]
    assert mlp["own_threshold"]["threshold"] == pytest.approx(0.65)
    assert mlp["own_threshold"]["accuracy_difference"]["low"] < 0 < mlp["own_threshold"]["tokens_ratio"]["value"] < 1
    assert any(finding.startswith("At the threshold that it came with") for finding in report["findings"])


@pytest.mark.parametrize("shift", [60, 1000])
def test_rivals_of_other_questions_are_named(harvest, tmp_path, shift, capsys):
    manifest = make_manifest(kind="evaluation", policy={"name": "plain", "family": "fixed", "ks": [1, 2, 4, 8]})
    others = [make_question(number, hidden_size=0) for number in range(shift, shift + 5)]
    StoreWriter.open(tmp_path / "plain", manifest).commit(others)
    assert main(["replay", str(harvest), f"--rivals=[{tmp_path}]", f"--output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert f"{tmp_path / 'plain'} and {harvest} have no graded question in common" in error
    assert not (tmp_path / "out" / "replay.json").exists()


def test_stores_that_differ_in_what_only_one_names_are_told_apart(harvest, tmp_path, capsys):
    benchmark = {**make_manifest().benchmark, "prompt_of_a_later_release": None}
    manifest = make_manifest(policy={"name": "plain", "family": "fixed", "ks": [1]}, benchmark=benchmark)
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


def test_predictions_in_another_file_are_refused(harvest, tmp_path, capsys):
    crossval(tmp_path / "cv")
    with h5py.File(tmp_path / "cv" / "predictions.h5", "r+") as file:
        file.move("orders", "elsewhere")
        file["orders"] = h5py.SoftLink("/elsewhere")
    options = (f"--controllers.mine={tmp_path / 'cv'}", f"--output={tmp_path / 'out'}")
    assert main(["replay", str(harvest), *options]) == 2
    assert "Expected predictions of dps crossval" in capsys.readouterr().err
