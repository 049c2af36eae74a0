"""The page of a replay: its numbers, its text, that it is made again from replay.json alone, and what is refused."""

import base64
import copy
import hashlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dps.analysis import charts
from dps.analysis.figures import pareto_front
from dps.analysis.findings import rows_of
from dps.analysis.page import operating_rows
from dps.analysis.provenance import provenance
from dps.analysis.questions import SHOWN, chosen, number_shown
from dps.analysis.reliability import reliability
from dps.analysis.report import read_report
from dps.analysis.tile import tile
from dps.analysis.write import write_result
from dps.cli import run
from dps.decide import RULES
from feature_store import Store
from tests.analysis.evaluations import power_manifest, question, write_evaluation, write_store
from tests.analysis.replays import COUNT, HOSTILE, arms_manifest, recommendation, replay, write_harvest
from tests.analysis.test_report import _Page
from tests.commands import ROOT
from tests.factories import make_manifest, make_question

TITLE = "A <b>title</b> & </script>"
FILES = {"replay.json", "replay.csv", "replay.html", "replay.png", "replay.svg"}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return write_harvest(tmp_path_factory.mktemp("stores") / "harvest")


@pytest.fixture(scope="module")
def made(stores, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "one"
    return output, replay(stores, output, title=TITLE)


# -- what replay.json holds --------------------------------------------------------------------------------------------


def test_reliability_of_a_small_example():
    # Two questions, one order, two checkpoints; the first is never right, the second from the second checkpoint on.
    p_enough = np.array([[[0.05, 0.95]], [[0.95, 1.0]]])
    correct = np.array([[[False, False, False]], [[False, True, True]]])
    found = reliability(p_enough, correct, np.array([[0.5, 0.5], [1.0, 0.0]]))
    [_, middle, _] = found["bins"]  # equal values share one
    assert [(b["low"], b["high"], b["count"]) for b in found["bins"]] == [(0.05, 0.05, 1), (0.95, 0.95, 2), (1, 1, 1)]
    assert middle["p_enough"] == pytest.approx(0.95)
    # no_gain: 1, 1 of the first question, 0, 1 of the second; correct: 0, 0 and 0, 1.
    assert [b["no_gain"]["value"] for b in found["bins"]] == [1, 0.5, 1]
    assert [b["correct"]["value"] for b in found["bins"]] == [0, 0, 1]
    # The second resample has the first question only, in which every row has no gain.
    assert middle["no_gain"]["high"] == pytest.approx(0.5 + 0.975 / 2)
    assert found["no_gain"]["brier"] == pytest.approx((0.95**2 + 0.05**2 + 0.95**2 + 0) / 4)
    assert found["correct"]["error"] == pytest.approx((0.05 + 2 * 0.95) / 4)
    skill = 1 - found["no_gain"]["brier"] / (0.75 * 0.25)
    assert found["no_gain"]["skill"]["value"] == pytest.approx(skill)


def test_bins_have_equally_many_rows_where_thresholds_lie():
    """All values above 0.9 but a few: bins of equal width would see one bin and miss that it is upside down."""
    rng = np.random.default_rng(0)
    p = np.append(rng.uniform(0.9, 1.0, 3990), rng.uniform(0, 0.9, 10)).reshape(400, 10, 1)
    upside_down = rng.random(p.shape) < 1.9 - p
    correct = np.stack([upside_down, upside_down], axis=-1)[..., 0, :]
    weights = np.full((3, 400), 1 / 400)
    found = reliability(p, correct, weights)
    assert len(found["bins"]) == 10
    assert {b["count"] for b in found["bins"]} == {400}
    assert found["correct"]["error"] > 0.02
    assert found["correct"]["skill"]["high"] < 0  # worse than always saying the share
    honest = rng.random(p.shape) < p
    good = reliability(p, np.stack([honest, honest], axis=-1)[..., 0, :], weights)
    assert good["correct"]["error"] < 0.015
    assert good["correct"]["skill"]["value"] == pytest.approx(0.03, abs=0.04)
    assert reliability(p, np.ones((400, 10, 2), bool), weights)["correct"]["skill"] is None


def test_accepted_tokens_are_those_of_the_responses(made, stores):
    _, report = made
    questions = list(Store.open(stores))
    mean = np.mean([sum(len(t.tokens) for t in q.trajectories if t.arm == "power") for q in questions])
    last = report["policies"][0]["curve"][-1]
    assert last["accepted"] == pytest.approx(mean)
    assert last["tokens"] == pytest.approx(4 * mean)  # the factory's trajectories sample four tokens for each
    for policy in report["policies"]:
        at = policy["operating_point"]
        if at is not None:
            assert at["accepted"] == pytest.approx(at["tokens"] / 4)


def test_every_name_of_a_policy_is_explained(made):
    output, report = made
    source = (output / "replay.html").read_text(encoding="utf-8")
    names = source[source.index('id="names"') : source.index('id="provenance"')]
    for policy in report["policies"]:
        if policy["family"] != "fixed":
            assert f"<dt>{policy['name']}</dt>" in names
        assert policy["series"] == "power" or f"<dt>{policy['series']}</dt>" in names
    assert 'href="#names"' in source


def test_questions_are_chosen_evenly_over_difficulty():
    groups = np.array([0] * 50 + [1] * 2 + [4] * 20)
    names = [f"q{i:03d}" for i in range(72)]
    found = chosen(names, groups, 12)
    assert [int((groups[found] == g).sum()) for g in (0, 1, 4)] == [5, 2, 5]
    assert chosen(names, groups, 100) == list(range(72))
    assert found != [*range(5), 50, 51, *range(52, 57)]  # not simply the first


def test_shown_questions_say_what_the_store_holds(made, stores):
    _, report = made
    shown = {entry["question_id"]: entry for entry in report["questions"]["shown"]}
    assert len(shown) == COUNT
    for original in Store.open(stores):
        entry = shown[original.question_id]
        assert (entry["question"], entry["gold"]) == (original.question, original.gold)
        assert [t["answer"] for t in entry["trajectories"]] == [t.answer for t in original.trajectories]
        assert [t["logprob"] for t in entry["trajectories"]] == [t.base_logprob for t in original.trajectories]
        for response in entry["responses"]:
            assert response["text"] == original.trajectories[response["trajectory"]].text
    gbdt = report["questions"]["policies"].index("gbdt")
    at = next(p["operating_point"] for p in report["policies"] if p["policy"] == "gbdt")
    ks = [entry["k"][gbdt] for entry in shown.values()]
    assert {str(k): ks.count(k) / COUNT for k in set(ks)} == pytest.approx(at["share_at_k"])


def test_questions_that_shall_not_be_shown_are_in_no_file(tmp_path):
    manifest = arms_manifest(benchmark={"name": "gpqa", "split": "test"})
    assert [number_shown(asked, manifest) for asked in (None, 3, 0)] == [0, 3, 0]
    assert [number_shown(asked, arms_manifest()) for asked in (None, 3, 0)] == [SHOWN, 3, 0]
    stores = write_harvest(tmp_path / "stores", benchmark=manifest.benchmark, count=12)
    assert replay(stores, tmp_path / "out")["questions"] is None
    for name in FILES - {"replay.png"}:
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert not [words for words in ("What is 3?", "response 0", "Questions to read") if words in text]


def test_rules_without_what_they_look_at_are_left_out_by_name(tmp_path):
    blind = [
        replace(q, trajectories=tuple(replace(t, block_entropy=t.block_entropy * np.nan) for t in q.trajectories))
        for q in (make_question(i) for i in range(12))
    ]
    write_store(tmp_path / "power", make_manifest(), blind)
    report = replay(tmp_path / "power", tmp_path / "out", controllers={}, ladders={})
    names = {policy["policy"] for policy in report["policies"]}
    assert "entropy" not in names
    assert {"self-confidence", "esc"} <= names
    assert any(note.startswith("Left out: entropy. The harvest has not recorded") for note in report["notes"])


# -- the page ----------------------------------------------------------------------------------------------------------


def parsed(path):
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page, " ".join("".join(page.text).replace("\u00a0", " ").split())


def test_the_page_is_one_file_and_runs_only_its_own_scripts(made):
    output, _ = made
    source = (output / "replay.html").read_text(encoding="utf-8")
    page, _ = parsed(output / "replay.html")
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    assert all(address.startswith("#") for address in page.loads)
    assert {address[1:] for address in page.loads} <= set(page.ids)
    scripts = re.findall(r"<script>(.*?)</script>", source, flags=re.DOTALL)
    digests = [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', source)[1].replace("&#39;", "'")
    assert f"script-src {' '.join(digests)};" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert scripts[0] == charts.runtime()
    source = source.replace(scripts[0], "")
    assert "http" not in source.replace("http-equiv", "")
    assert not re.search(r"\beval\(|new Function|innerHTML|\son\w+=\"", source)


def test_the_page_says_what_the_report_says(made):
    output, report = made
    _, text = parsed(output / "replay.html")
    data = text.index("What the data say")
    places = [text.index(" ".join(finding.split()), data) for finding in report["findings"]]
    assert places == sorted(places)
    assert text.index("Picked on these questions") < text.index("Accuracy against cost") < data
    for row in operating_rows(report):
        assert row["name"] in text
    gbdt = next(p["operating_point"] for p in report["policies"] if p["policy"] == "gbdt")
    ratio = gbdt["tokens_ratio"]
    assert f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" in text
    for heading in (
        *("Policies", "At the same tokens", "Responses by difficulty"),
        *("Where the tokens and the time go", "Whether p_enough is what it says", "Questions to read"),
    ):
        assert heading in text


def test_what_stores_and_titles_say_is_escaped(made):
    output, _ = made
    source = (output / "replay.html").read_text(encoding="utf-8")
    assert "<title>A &lt;b&gt;title&lt;/b&gt; &amp; &lt;/script&gt;</title>" in source
    assert HOSTILE not in source
    assert "<b onclick" not in source
    assert json.loads(data_of(source, "curves"))["runs"][0]["name"] == ""


def data_of(source, name):
    return re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', source, flags=re.DOTALL)[1]


def test_the_data_of_the_figures_are_those_of_the_report(made):
    output, report = made
    source = (output / "replay.html").read_text(encoding="utf-8")
    data = json.loads(data_of(source, "curves"))
    assert list(data["policies"]) == [policy["policy"] for policy in report["policies"]]
    names = ("accuracy", "low", "high", "threshold", "tokens", "calibrated_s")
    for policy in report["policies"]:
        drawn = [point for point in data["points"] if point["policy"] == policy["policy"]]
        chosen = policy["operating_point"]
        curve = policy["curve"] if chosen is None or len(policy["curve"]) > 1 else []  # else one point, which is chosen
        assert [[p[n] for n in names] for p in drawn if p["on_curve"]] == [
            pytest.approx([p[n] for n in names], rel=1e-5) for p in curve
        ]
        rows = {p["name"]: p["accuracy"] for p in drawn if p["name"] is not None}
        assert rows == pytest.approx({row["name"]: row["accuracy"] for row in rows_of(policy)}, rel=1e-5)
    assert [(axis["name"], axis["of"], axis.get("per")) for axis in data["costs"]] == [
        ("tokens", "tokens", None), ("seconds", "calibrated_s", None), ("questions", "calibrated_s", 3600)
    ]  # fmt: skip
    assert data["runs"][0]["told"]["tokens"] == pytest.approx(report["policies"][0]["curve"][-1]["tokens"])
    for i, entry in enumerate(report["calibration"]):
        values = json.loads(data_of(source, f"calibration-{i}"))["data"]["values"]
        cells = [cell[name] for name in ("no_gain", "correct") for cell in entry["bins"]]
        for key, of in (("share", "value"), ("low", "low"), ("high", "high")):
            assert [value[key] for value in values] == pytest.approx([cell[of] for cell in cells], abs=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_explained_drawn_and_listed(name):
    for file in ("dps/analysis/templates/glossary.html.j2", "dps/analysis/marks.py"):
        assert f'"{name}": "' in (ROOT / file).read_text(encoding="utf-8"), file
    assert f"`{name}`" in (ROOT / "dps/config.py").read_text(encoding="utf-8")
    assert f" {name}," in (ROOT / "configs/evaluate/arithmetic.yaml").read_text(encoding="utf-8")


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_dominates(points):
    def dominated(p):
        return any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)

    assert pareto_front(points) == sorted({p for p in points if not dominated(p)})


# -- dps report --------------------------------------------------------------------------------------------------------


def test_the_page_is_made_again_from_replay_json_alone(made, tmp_path, capsys):
    output, report = made
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "replay.json").write_bytes((output / "replay.json").read_bytes())
    assert run(["report", str(tmp_path / "alone")]) == 0
    said = capsys.readouterr().out
    assert report["findings"][0] in said
    assert "Made again from replay.json." in said
    assert said.splitlines()[-1] == str(tmp_path / "alone" / "replay.html")
    for name in FILES - {"replay.csv"}:
        assert (tmp_path / "alone" / name).read_bytes() == (output / name).read_bytes(), name


def test_the_same_stores_give_the_same_bytes(made, stores, tmp_path):
    output, _ = made
    replay(stores, tmp_path, title=TITLE)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes(), name


def test_replays_and_evaluations_side_by_side(made, stores, tmp_path):
    output, _ = made
    other = replay(stores, tmp_path / "other" / "one", controllers={}, margin=0.05)
    report = write_result(read_report([write_evaluation(tmp_path / "stores")], None), tmp_path / "report")
    folders = [output, tmp_path / "other" / "one", tmp_path / "report"]
    assert run(["report", *map(str, folders), "--output", str(tmp_path / "both")]) == 0
    assert {path.name for path in (tmp_path / "both").iterdir()} == {
        *("compared.html", "compared.png", "compared.svg", "settings.json")
    }
    page, text = parsed(tmp_path / "both" / "compared.html")
    source = (tmp_path / "both" / "compared.html").read_text(encoding="utf-8")
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    headings = dict(re.findall(r'<(?:h2|p class="kicker") id="([^"]*)">(.*?)</', source))
    sections = re.findall(r'<section[^>]* aria-labelledby="([^"]*)"', source)
    labels = [" ".join(headings[name] for name in names.split()) for names in sections]
    assert len({*labels}) == len(labels) > 20  # whoever listens to the page can tell the runs' sections apart
    for one in (other["findings"][-1], report["findings"][0]):
        assert " ".join(one.split()) in text
    runs = ["one (1)", "one (2)", "report"]
    assert [one["name"] for one in json.loads(data_of(source, "curves"))["runs"]] == runs
    of_policy = {
        name: re.findall(rf'<tr data-policy="{name}"[^>]*>\n<th.*?<td>(.*?)</td>', source, flags=re.DOTALL)
        for name in ("esc", "gbdt")
    }
    assert of_policy == {"esc": runs[:2], "gbdt": [runs[0], runs[2]]}  # rows of one policy beside each other


def test_what_cannot_be_shown_is_refused(made, tmp_path, capsys):
    output, _ = made
    evaluation = write_evaluation(tmp_path / "evaluation")
    assert run(["report", str(output), str(evaluation)]) == 2
    assert "holds a replay.json and" in capsys.readouterr().err
    for text, message in (
        ('{"schema_version": 2}', "of schema_version 4, got 2: run dps replay again"),
        ("[]", "got None"),
        ("{", "cannot be read"),
        (
            '{"schema_version": 4, "kind": "replay", "title": "", "policies": []}',
            "but a part is missing or of another type",
        ),
    ):
        (tmp_path / "replay.json").write_text(text)
        for folders in ([tmp_path], [output, tmp_path, "--output", tmp_path / "both"]):
            assert run(["report", *map(str, folders)]) == 2
            assert message in capsys.readouterr().err
        assert not (tmp_path / "both").exists()


def test_names_in_a_result_of_somebody_else_are_only_text(made, tmp_path):
    name = "--></script><script>alert(1)</script> $\\frac$"
    text = (made[0] / "replay.json").read_text(encoding="utf-8").replace('"gbdt"', json.dumps(name))
    (tmp_path / "replay.json").write_text(text, encoding="utf-8")
    assert run(["report", str(tmp_path)]) == 0
    source = (tmp_path / "replay.html").read_text(encoding="utf-8")
    assert "<script>alert" not in source
    assert parsed(tmp_path / "replay.html")[0].open == []


def test_a_replay_without_a_clock_or_rivals_still_has_a_page(tmp_path):
    questions = [question(i, [1, 0, 1, 1, 0, 1, 1, 1]) for i in range(8)]
    write_store(tmp_path / "power", power_manifest(calibration={}), questions)
    report = replay(tmp_path / "power", tmp_path / "out", controllers={}, ladders={})
    assert report["clock"] is None
    _, text = parsed(tmp_path / "out" / "replay.html")
    assert "Accuracy against cost" in text
    assert "and the time" not in text
    source = (tmp_path / "out" / "replay.html").read_text(encoding="utf-8")
    assert [axis["axis"] for axis in json.loads(data_of(source, "curves"))["costs"]][1:] == [
        "questions per million tokens"
    ]


def test_a_recommendation_is_the_first_thing_on_the_page_until_the_replay_is_made_anew(made, stores, tmp_path):
    """As `dps recommend` leaves it in the folder, it is what the tile says; another replay has none."""
    output, report = made
    (tmp_path / "replay.json").write_bytes((output / "replay.json").read_bytes())
    advice = recommendation("lead-2 (<cheap>)", ["lowtemp 1", "lowtemp 1"])
    (tmp_path / "recommendation.json").write_text(json.dumps(advice))
    assert run(["report", str(tmp_path)]) == 0
    _, text = parsed(tmp_path / "replay.html")
    assert text.index("Recommended policy lead-2 (<cheap>) Use lead-2.") < text.index("Accuracy against cost")
    assert "Ladder: 2 × lowtemp 1 (what the names mean) accuracy 50.0 % 95 % interval 40.0 to 60.0 %, on ques" in text
    assert "in the choice. tokens a question 50.0 95 % interval 40.0 to 60.0." in text
    beside = (
        "beside power 8 50 % fewer tokens 0.50 [0.40, 0.60] of its tokens; +50.0 points [+40.0, +60.0]: measured on "
    )
    assert f"{beside}other questions, a loss of 1 point is not excluded. questions 320 Enough to test for" in text
    assert "More words. A note." in text
    assert "live" not in text[: text.index("Accuracy against cost")]
    replay(stores, tmp_path)
    assert "Recommended policy" not in (tmp_path / "replay.html").read_text(encoding="utf-8")

    advice |= {"num_folds_agree": 2, "enough": "320: the choice excludes a loss of 3.0 points at best"}
    advice["measured"]["no_loss"] = True  # of the choice alone, which is no test of many
    facts = {what: f"{value} {said}" for what, value, said, _ in tile({**report, "recommendation": advice})["facts"]}
    assert facts["questions"] == "320 The choice excludes a loss of 3.0 points at best."
    assert facts["beside power 8"].endswith(": measured on other questions, a loss of 1 point is excluded.")
    assert "; 2 of 5 folds chose this policy, so the numbers are those of this way of choosing." in facts["accuracy"]


def test_without_a_recommendation_the_tile_says_that_these_questions_picked_it(made, tmp_path):
    _, report = made
    told = tile(report)
    assert (told["kicker"], told["name"]) == ("Picked on these questions", "power 8")  # 30 questions exclude no loss
    facts = {what: (value, said, doubt) for what, value, said, doubt in told["facts"]}
    assert facts["beside power 8"] == ("nothing saved", "This is the reference itself.", False)
    assert facts["questions"] == ("30", "Too few to exclude a loss of 1 point: that takes 368.", True)
    gbdt = next(p["operating_point"] for p in report["policies"] if p["policy"] == "gbdt")
    changed = copy.deepcopy(report) | {"num_graded": 400}
    at = next(p["operating_point"] for p in changed["policies"] if p["policy"] == "gbdt")
    at["no_loss"], at["accuracy_difference"]["stderr"] = True, 0.01
    told = tile(changed)
    assert (told["name"], told["point"]) == ("gbdt", at)
    saved = f"{100 - 100 * gbdt['tokens_ratio']['value']:.0f} % fewer tokens"
    assert told["facts"][2][:2] == ("beside power 8", saved)
    assert told["facts"][3] == ("questions", "400", "Enough to test for a loss of 1 point.", False)
    at["accuracy_difference"]["stderr"] = 0.03
    assert tile(changed)["facts"][3][3]
    at["accuracy_difference"] |= {"stderr": 0.01, "low": -0.005}
    few = tile(changed | {"num_graded": 160})["facts"]  # excluded it is, with fewer than equal policies take
    assert few[2][2].endswith("a loss of 1 point is excluded.")
    assert few[3][1:] == ("160", "Enough here, where the policy is ahead; between equals it takes 368.", False)
    best = next(policy for policy in changed["policies"] if policy["policy"] == "best_logprob of lowtemp")
    best["curve"][-1] |= {"no_loss": True, "tokens": 1.0}
    assert (tile(changed)["name"], tile(changed)["rungs"]) == ("best_logprob of lowtemp 4", ["lowtemp 4"])
    assert tile(changed | {"num_graded": 0}) is None
    assert tile(changed | {"reference": None})["does"].startswith("The most accurate of ")


def test_where_the_numbers_come_from_is_said_in_words(made):
    output, report = made
    _, text = parsed(output / "replay.html")
    said = dict(provenance(report))
    assert said["arm power"].startswith("Power sampling with alpha 4: ")
    assert said["arm plain"].startswith("Samples at temperature ")
    assert said[
        "replay"
    ] == "4 orders of the responses; thresholds chosen in 5 folds with a margin of 1 point; 200 " + (
        "bootstrap resamples; seed 0."
    )
    for sentence in said.values():
        assert sentence in text
        assert not re.search(r"[{}\[\]']|\d\.\d{6}|[0-9a-f]{12}", sentence)
