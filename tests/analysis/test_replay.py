"""`dps replay` from stores to its result, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dps.analysis.config import ReplayConfig
from dps.analysis.figures import draw_accuracy, named_of
from dps.analysis.findings import rows_of
from dps.analysis.marks import marks_of
from dps.analysis.outcomes import read_outcomes, write_outcomes
from dps.analysis.replay import VOTE_RULES, run_replay
from dps.analysis.terminal import render_table
from dps.analysis.write import write_result
from dps.cli import run as main
from dps.decide import RULES
from dps.decide.aggregate import AGGREGATORS
from dps.decide.labels import labels_of
from dps.decide.ladder import KRange
from dps.decide.orders import orders_of, walk
from dps.decide.predictions import Predictions, write_predictions
from dps.decide.samples import samples_of
from dps.errors import InputError
from feature_store import Store, StoreWriter
from tests.analysis.replays import arms_manifest, of_arms
from tests.factories import make_manifest, make_question

BOUNDS = ("votes-dp", "votes-bound", "giving-up", "oracle")
ONES = set(VOTE_RULES) - {"lead-1"}  # one response leads by one vote


def no_controller(*arguments):
    raise AssertionError("no controller was named")


@pytest.fixture(scope="module")
def harvest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay") / "harvest"
    questions = [make_question(number) for number in range(60)]
    StoreWriter.open(folder, make_manifest()).commit(questions)
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The same questions with cheap samples, which are right more often, beside the power trajectories."""
    folder, rungs = tmp_path_factory.mktemp("mixed") / "mixed", (*["power 2"] * 4, "lowtemp 8")
    questions = []
    for number in range(60):
        question = of_arms(number, {"power": (8, 0.6), "lowtemp": (8, 0.97)})
        each = (replace(t, num_generated_tokens=5) if t.arm == "lowtemp" else t for t in question.trajectories)
        questions.append(replace(question, trajectories=tuple(each)))
    StoreWriter.open(folder, arms_manifest(rungs)).commit(questions)
    return folder


def crossval(path, fingerprint="made-up", orders=4, quality=1.0, threshold=0.5, of=None):
    """Out-of-fold predictions of a controller that knows the answers to some degree."""
    path.mkdir()
    questions = [make_question(number) for number in range(60)] if of is None else Store.open(of)
    samples = samples_of(questions, {"power": 8})
    ladder = KRange().ladder()
    shuffled = np.stack([orders_of(name, 8, orders, 0) for name in samples.question_ids])
    walked = walk(samples, shuffled, (2, 4, 6, 8), "majority")
    label = labels_of(walked.correct, "no_gain")
    noise = np.random.default_rng(5).random(label.shape)
    said = Predictions(
        name="mlp", label_name="no_gain", ladder=ladder, columns=ladder.sequence(), ks=ladder.ks, seed=0,
        feature_set="published", aggregator="majority", store_fingerprint=fingerprint,
        question_ids=samples.question_ids, fold=np.arange(60, dtype=np.int32) % 5, orders=shuffled.astype(np.int32),
        p_enough=np.clip(quality * label + (1 - quality) * noise, 0.01, 0.99), label=label.astype(np.int8),
        threshold=np.broadcast_to(threshold, 60).astype(float), correct=walked.correct.astype(np.int8),
        tokens=walked.tokens.astype(np.int64),
    )  # fmt: skip
    write_predictions(path / "predictions.h5", said)
    return path


def by_policy(result):
    return {policy["policy"]: policy for policy in result["policies"]}


@pytest.fixture(scope="module")
def made(mixed, tmp_path_factory):
    path = crossval(
        tmp_path_factory.mktemp("crossval") / "mlp", threshold=np.where(np.arange(60) % 2, 0.3, 1.0), of=mixed
    )
    config = ReplayConfig(controllers={"mlp": str(path)}, resamples=200)
    kept = []
    return run_replay(mixed, config, no_controller, kept.append), kept[0]


@pytest.fixture(scope="module")
def report(made):
    return made[0]


def test_every_policy_of_every_ladder_is_there_with_intervals(report, tmp_path):
    aggregators = {name for name in AGGREGATORS if name != "majority"}
    both, alone = "power+lowtemp", {"power", "lowtemp", "power+lowtemp", "mlp", *RULES, *BOUNDS}
    alone |= {f"{name} of {arm}" for name in aggregators for arm in ("power", "lowtemp")}
    on = {both: {*VOTE_RULES, *BOUNDS}}
    on |= {f"{arm}-ones": {*ONES, *BOUNDS} for arm in ("power", "lowtemp")}
    on |= {f"{arm}-doubling": {*ONES, *BOUNDS} for arm in ("power", "lowtemp")}
    expected = alone | {f"{name} ({series})" for series, names in on.items() for name in names}
    assert set(by_policy(report)) == expected
    assert (report["main_series"], report["reference"]) == ("power", "power 8")
    assert {row["name"] for row in rows_of(by_policy(report)["power+lowtemp"])} == {"power 8 and lowtemp 8"}
    assert {row["name"] for row in rows_of(by_policy(report)["weighted of power"])} == {"weighted of power 8"}
    for policy in report["policies"]:
        tokens = [p["tokens"] for p in policy["curve"]]
        assert tokens == sorted(tokens)
        assert all(p["low"] - 1e-12 <= p["accuracy"] <= p["high"] + 1e-12 for p in policy["curve"])
    cheap = by_policy(report)["lowtemp"]["curve"]
    assert [p["threshold"] for p in cheap] == [1, 2, 3, 4, 5, 6, 7, 8]  # what is stored, and no chord between rows
    assert [p["name"] for p in cheap if p["name"]] == [f"lowtemp {k}" for k in (1, 2, 4, 8)]
    write_result(report, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "replay.json").read_text())
    assert written == json.loads(json.dumps(report))


def test_every_policy_can_be_told_apart_without_colours(report):
    marks = marks_of(report["policies"])
    assert len({(m.marker, m.hollow, m.dashes) for m in marks.values()}) == len(report["policies"]) > 80


def test_responses_by_arm_and_who_gave_up_at_an_operating_point(report, mixed):
    """Against a plain loop over the natural order and three permuted ones, for lead-2 on the ladder of both arms."""
    at = by_policy(report)["lead-2 (power+lowtemp)"]["operating_point"]
    assert at["responses"]["power"] + at["responses"]["lowtemp"] == pytest.approx(at["mean_k"])
    assert at["gave_up"] == 0  # whoever stops before the end leads by 2
    one = by_policy(report)["lead-1 (power+lowtemp)"]["operating_point"]
    orders, gave_up, mean = [orders_of(f"q{i:05d}", 8, 4, 0) for i in range(60)], [], []
    for question, permutations in zip(Store.open(mixed), orders, strict=True):
        for order in permutations:
            votes = [question.trajectories[i].answer_class for i in order]
            ends = [k for k in (2, 4, 6, 8) if len({v for v in votes[:k] if v >= 0}) and lead(votes[:k]) >= 1]
            gave_up.append(bool(ends) and lead(votes[: ends[0]]) < 2)
            mean.append(ends[0] if ends else 8)
    assert (one["gave_up"], one["responses"]["power"]) == pytest.approx((np.mean(gave_up), np.mean(mean)))


def lead(votes):
    counts = [*sorted((votes.count(v) for v in set(votes) - {-1}), reverse=True), 0, 0]
    return counts[0] - counts[1]


def test_outcomes_hold_every_point_of_the_page(made, tmp_path):
    report, outcomes = made
    write_outcomes(tmp_path / "outcomes.npz", outcomes)
    read = read_outcomes(tmp_path)
    assert (read.names, read.settings, read.question_ids) == (outcomes.names, outcomes.settings, outcomes.question_ids)
    assert np.array_equal(read.correct, outcomes.correct)
    points = [
        (p["policy"], p["series"], point)
        for p in report["policies"]
        if p["family"] not in ("oracle", "chance")
        for point in p["curve"]
    ]
    assert len(points) == len(read.names)
    for i, (label, series, point) in enumerate(points):
        assert read.correct[i].mean() == pytest.approx(point["accuracy"])
        assert read.tokens[i].mean() == pytest.approx(point["tokens"])
        one = read.settings[i]
        assert one["series"] == series
        if one["family"] != "fixed":
            assert label.split(" (")[0] == one["policy"]
        elif point["name"]:
            assert read.names[i] == point["name"]
        assert point["threshold"] == (one["k"] if one["family"] == "fixed" else one["threshold"])
    both = next(one for one in read.settings if (one["series"], one["k"]) == ("power+lowtemp", 16))
    assert both["ladder"] == ["power 8", "lowtemp 8"]
    sweep = next(one for one in read.settings if (one["policy"], one["series"]) == ("lead", "lowtemp-ones"))
    assert sweep["rule"] == {"name": "lead", "margin": 8, "threshold": sweep["threshold"]}


def test_what_power_sampling_adds_to_is_a_ladder_and_what_never_reaches_it_is_named_without(tmp_path):
    """Of a harvest that goes on with power sampling, the ladder before it is there, too; lead-1 ends on it always."""
    rungs = ("lowtemp 2", "lowtemp 2", "plain 4", "power 2", "power 2")
    arms = {"lowtemp": (4, 1.0), "plain": (4, 0.5), "power": (4, 0.5)}
    StoreWriter.open(tmp_path / "h", arms_manifest(rungs)).commit([of_arms(i, arms) for i in range(20)])
    kept = []
    result = run_replay(tmp_path / "h", ReplayConfig(orders=4, resamples=100), no_controller, kept.append)
    assert "lead-1 (lowtemp+plain)" in by_policy(result)
    of = {(one["policy"], one["series"]): one for one in kept[0].settings if one["family"] == "rule"}
    assert of["lead-1", "lowtemp+plain+power"]["ladder"] == list(rungs[:1])  # two right answers lead by two
    assert of["esc", "lowtemp+plain"]["arms"] == ["lowtemp", "plain"]  # its last point: the end
    config = ReplayConfig(ladders={"mine": rungs}, orders=4, resamples=100)
    assert "lead-1 (lowtemp+plain)" not in by_policy(run_replay(tmp_path / "h", config, no_controller))


def test_budgets_of_the_arm_of_a_main_ladder_with_a_users_name_belong_to_it(mixed):
    rungs = ["lowtemp 2", "lowtemp 2", "lowtemp 4"]
    named, plain = (
        run_replay(
            mixed, ReplayConfig(ladders={name: rungs, "power": ["power 2"] * 4}, resamples=100, orders=4), no_controller
        )
        for name in ("mine", "lowtemp")
    )
    assert (named["main_series"], named["reference"]) == ("mine", "lowtemp 8")
    for what in ("findings", "matched_tokens"):
        assert json.dumps(named[what]).replace("mine", "lowtemp") == json.dumps(plain[what]), what
    assert {"lowtemp", "power", "best_logprob of lowtemp", "lead-2", "lead-2 (power)"} <= set(by_policy(named))


@pytest.mark.parametrize(("content", "words"), [(None, "make it with dps replay"), (b"no", "as dps replay wrote it")])
def test_outcomes_that_cannot_be_read_are_a_sentence(tmp_path, content, words):
    if content is not None:
        (tmp_path / "outcomes.npz").write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_outcomes(tmp_path)


def test_a_controller_that_knows_saves_most_and_the_oracle_bounds_it(report):
    by_name = by_policy(report)
    points = {
        name: p["operating_point"] for name, p in by_name.items() if p["operating_point"] and p["series"] == "power"
    }
    assert min(points, key=lambda name: points[name]["tokens_ratio"]["value"]) in ("mlp", "lead-1")
    assert by_name["oracle"]["curve"][-1]["accuracy"] >= points["mlp"]["accuracy"]
    matched = [m for m in report["matched_tokens"] if m["policy"] == "mlp" and m["rival_series"] == "power"]
    assert {m["rival"] for m in matched} >= {"adaptive-consistency", "esc", "sprt", "random", "power"}
    assert report["findings"][0].startswith("At equal tokens cheap samples (")
    assert "lowtemp" in report["findings"][0]


def test_the_static_figure_shows_at_most_eight_curves_that_decide(report):
    shown = named_of(report)
    assert len(shown) == 8
    assert {"power", "lowtemp", "mlp"} <= shown
    few = {**report, "policies": [p for p in report["policies"] if p["series"] == "lowtemp"]}
    assert named_of(few) == {policy["policy"] for policy in few["policies"]}
    [legend] = draw_accuracy({"": report}).legends
    said = [text.get_text() for text in legend.get_texts()]
    assert set(said) <= shown  # the words of the page
    assert said[:2] == ["power", "lowtemp"]
    assert len(said) <= 8


def test_a_replay_without_any_power_arm(tmp_path):
    rungs = ("plain 4", "lowtemp 4")
    questions = [of_arms(i, {"plain": (4, 0.4), "lowtemp": (4, 0.7)}) for i in range(40)]
    StoreWriter.open(tmp_path / "cheap", arms_manifest(rungs)).commit(questions)
    ladders = {"mixed": ("plain 1", "lowtemp 1", "plain 1", "lowtemp 1"), "cheap": ("lowtemp 1",) * 4}
    config = ReplayConfig(ladders=ladders, resamples=100, orders=4)
    report = write_result(run_replay(tmp_path / "cheap", config, no_controller), tmp_path / "out")
    assert report["main_series"] == "mixed"
    ends = {row["name"]: row["accuracy"] for label in ("plain", "lowtemp") for row in by_policy(report)[label]["curve"]}
    assert ends[report["reference"]] == max(ends["plain 2"], ends["lowtemp 2"])
    assert any(f"The reference {report['reference']} is the most accurate of" in note for note in report["notes"])
    assert "power" not in {policy["series"] for policy in report["policies"]}
    assert (tmp_path / "out" / "replay.html").read_text(encoding="utf-8").count("4 × lowtemp 1") > 1
    named = run_replay(tmp_path / "cheap", replace(config, reference="plain 4"), no_controller)
    heads = " ".join(" ".join(render_table(named).splitlines()[:5]).split())
    assert "minus × compute latency mean" in heads  # and below
    assert "plain 4 tokens plain 4 s s k" in heads
    assert (named["reference"], named["policies"][0]["series"]) == ("plain 4", "plain")
    [row] = [p for p in named["policies"][0]["curve"] if p["name"] == "plain 4"]
    assert row["tokens_ratio"]["value"] == 1


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


def test_predictions_of_another_harvest_or_other_orders_are_refused(harvest, tmp_path):
    other = crossval(tmp_path / "other", fingerprint="elsewhere")
    with pytest.raises(InputError, match="of another harvest"):
        run_replay(harvest, ReplayConfig(controllers={"mlp": str(other)}), no_controller)
    mine, more = crossval(tmp_path / "mine"), crossval(tmp_path / "more", orders=6)
    with pytest.raises(InputError, match="other orders"):
        run_replay(harvest, ReplayConfig(controllers={"a": str(mine), "b": str(more)}), no_controller)


def test_the_command_writes_and_prints(harvest, tmp_path, capsys):
    assert main(["replay", str(harvest), "--output", str(tmp_path / "out"), "--resamples=100", "--orders=4"]) == 0
    out = capsys.readouterr().out
    heads = ["accuracy", "tokens", "compute", "latency"]
    assert all(head in out.split("\n- ")[0] for head in heads), "a table with its units before the findings"
    assert "power 8 against power 2" in out
    assert (tmp_path / "out" / "replay.csv").read_text().startswith("policy,family,series,threshold,accuracy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds", "1"], "folds of at least 2"),
        (["--margin", "1.5"], "margin of accuracy in [0, 1)"),
        (["--controllers", "{a: /nowhere}"], "Expected a trained controller at /nowhere"),
        (["--ladders", "{a: [power 8]}"], "ladders.a is ['power 8'], on which nobody is asked: give it two rungs"),
        (["--ladders", "{a: [plain 4, plain 4]}"], "Expected 8 responses of the arm plain in "),
        (
            ["--ladders", "{a: [power 8, power 8]}"],
            ", which has power 8: sample them with dps harvest --ladder '[power",
        ),
        (["--ladders", "{a: [plain, power 8]}"], "Expected a rung such as 'plain 2'"),
        (["--reference", "plain 4"], "Expected a reference that the harvest holds, a fixed budget up to power 8, got"),
        (["--reference", "power"], "Expected a rung such as 'plain 2'"),
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


@pytest.mark.parametrize("content", [b"", b"no HDF5", b"\x89HDF\r\n\x1a\n" + b"\xff" * 4096])
def test_predictions_that_cannot_be_read_are_a_sentence(harvest, tmp_path, content, capsys):
    (tmp_path / "cv").mkdir()
    (tmp_path / "cv" / "predictions.h5").write_bytes(content)
    options = (f"--controllers.mine={tmp_path / 'cv'}", f"--output={tmp_path / 'out'}")
    assert main(["replay", str(harvest), *options]) == 2
    assert "Expected predictions of dps crossval" in capsys.readouterr().err
