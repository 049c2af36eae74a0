"""Whole reports from stores on disk: files, schema, determinism, and what is refused."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from dps.analysis.charts import mixing
from dps.analysis.figures import draw_accuracy
from dps.analysis.findings import rows_of
from dps.analysis.marks import marks_of
from dps.analysis.report import read_report
from dps.analysis.terminal import render_table
from dps.analysis.write import write_result
from dps.cli import run
from dps.decide.ladder import Ladder
from dps.errors import InputError
from feature_store import StoreWriter
from feature_store.records import Decision
from tests.analysis.evaluations import (
    dynamic_manifest,
    plain_manifest,
    power_manifest,
    power_rows,
    question,
    write_evaluation,
    write_store,
)
from tests.analysis.replays import recommendation
from tests.factories import make_manifest, make_question

FILES = {"report.json", "report.html", "report.png", "report.svg"}


def write_report(folders, output, title=None):
    return write_result(read_report(folders, title), output)


def rows(report):
    return {row["name"]: row for policy in report["policies"] for row in rows_of(policy)}


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    return write_evaluation(tmp_path_factory.mktemp("run") / "evaluation")


@pytest.fixture(scope="module")
def written(evaluation, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "report"
    return output, write_report([evaluation], output, title="A <b>title</b> & more")


def test_all_files_are_written_and_the_json_is_what_was_returned(written):
    output, report = written
    assert {path.name for path in output.iterdir()} == FILES
    assert json.loads((output / "report.json").read_text(encoding="utf-8")) == report
    assert (output / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_stores_give_the_same_bytes(written, evaluation, tmp_path):
    output, _ = written
    folders = [evaluation / name for name in ("lowtemp", "power", "plain", "mlp-h", "gbdt")]
    write_report(folders, tmp_path, "A <b>title</b> & more")
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes(), name


def test_numbers_of_a_known_evaluation(written):
    _, report = written
    row = rows(report)
    assert list(row) == [
        *("power 2", "power 4", "power 6", "power 8", "gbdt", "mlp-h"),
        *("lowtemp 1", "lowtemp 2", "lowtemp 4", "plain 1", "plain 2", "plain 4"),
    ]
    # 22 of 40 questions are always right, 2 never, 16 where both wrong trajectories of 8 do not come first: 27 of 28.
    assert row["power 2"]["accuracy"] == pytest.approx((22 + 16 * 27 / 28) / 40, abs=0.02)
    assert row["power 8"]["accuracy"] == 38 / 40
    assert row["power 2"]["accuracy_difference"]["value"] == pytest.approx(-16 / 28 / 40, abs=0.02)
    assert row["gbdt"]["share_at_k"] == {"2": 22 / 40, "6": 18 / 40}
    assert row["gbdt"]["mean_k"] == pytest.approx((22 * 2 + 18 * 6) / 40)
    assert row["gbdt"]["tokens_ratio"]["value"] == pytest.approx((22 * 2 + 18 * 6) / (40 * 8))
    assert row["gbdt"]["accuracy_difference"]["value"] == 0
    assert "ahead of the best self-consistency over cheap samples" in report["findings"][0]
    verdicts = {(m["policy"], m["rival"]): m["verdict"] for m in report["matched_tokens"]}
    assert verdicts["power 8", "lowtemp"] == "above"
    # One clock for all policies, that of the power store, although the plain stores recorded another.
    assert row["plain 4"]["calibrated_s"] == pytest.approx(240 * 0.001 + 10 * 0.0001)
    assert (report["clock"]["store"], report["reference"], report["kind"]) == ("power", "power 8", "evaluation")
    [gbdt] = [line for line in render_table(report).splitlines() if line.strip().startswith("gbdt")]
    assert " ".join(gbdt.split()) == "gbdt 95.0 ± 3.5 0.0 [−8.8, +8.8] 380 0.47 0.082 9.00 3.80 55 0 45"
    assert max(map(len, render_table(report).splitlines())) <= 120


def test_rules_are_not_called_controllers_and_policies_are_compared_on_common_questions(tmp_path):
    folder = write_evaluation(tmp_path / "evaluation")
    shown = [question(n, [1, 1], decisions=[Decision(2, 0.9)]) for n in range(30, 50)]
    write_store(folder / "a", dynamic_manifest("esc"), shown)
    report = read_report([folder])
    names = list(rows(report))
    assert names.index("mlp-h") < names.index("esc") < names.index("plain 1")
    assert not any("controller" in finding for finding in report["findings"] if finding.startswith("esc "))
    assert report["num_questions"] == 10
    note = "on the 10 questions that all stores have; some have more: power 40, gbdt 40, mlp-h 40, a 20,"
    assert any(note in n for n in report["notes"])


def test_a_recommended_policy_is_a_rule_is_shown_first_with_what_it_did_live_and_fits_the_terminal(tmp_path):
    folder, ones = write_evaluation(tmp_path / "evaluation"), [f"{arm} 1" for arm in ["plain", "lowtemp"] * 8]
    policy = {"name": "lead-2-both", "family": "dynamic", "ladder": ones, "threshold": 0.0, "rule": {"name": "lead-2"}}
    arms = dict.fromkeys(["plain", "lowtemp"], make_manifest().arms["power"])
    store = StoreWriter.open(folder / "lead-2-both", make_manifest(kind="evaluation", policy=policy, arms=arms))
    for number in range(40):
        asked = question(number, [1] * (number % 15 + 2))
        drawn = zip(asked.trajectories, ["plain", "lowtemp"] * 8, strict=False)
        rows = tuple(replace(t, arm=arm, index=t.index // 2) for t, arm in drawn)
        store.commit([replace(asked, trajectories=rows)])
    advice = recommendation("lead-2-both (both)", ones)
    (tmp_path / "recommendation.json").write_text(json.dumps(advice))
    report = write_report([folder], tmp_path)
    assert report["recommendation"] == advice
    assert next(p for p in report["policies"] if p["policy"] == "lead-2-both")["family"] == "rule"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index('recommendation">lead-2-both (both)</h2>') < page.index("What the data say")
    assert (
        "<dt>live accuracy</dt> <dd><b>100.0\N{NO-BREAK SPACE}%</b> <span>95\N{NO-BREAK SPACE}% interval 91.2 to 100.0"
        in page
    )
    assert "…" not in render_table(report)


def test_policies_of_files_have_rows_of_their_own_beside_those_of_their_arms(tmp_path):
    arms = {arm: make_manifest().arms["power"] for arm in ("plain", "lowtemp")}
    write_store(
        tmp_path / "lowtemp", plain_manifest("lowtemp"), [question(i, [1] * 4, arm="lowtemp") for i in range(9)]
    )
    for name, rungs in {"lowtemp-4": ["lowtemp 4"], "both": ["plain 3", "lowtemp 1"], "cheap": ["plain 1"] * 2}.items():
        ladder = Ladder.parse(rungs)
        policy = {"name": name, "family": "fixed", "ladder": rungs}
        manifest = make_manifest(kind="evaluation", policy=policy, arms={arm: arms[arm] for arm in ladder.arms})
        questions = []
        for record in (question(i, [0] * ladder.maximum) for i in range(9)):
            drawn = zip(record.trajectories, ladder.sequence(), strict=True)
            trajectories = tuple(replace(t, arm=arm, index=index) for t, (arm, index) in drawn)
            questions.append(replace(record, trajectories=trajectories))
        write_store(tmp_path / name, manifest, questions)
    report = write_report([tmp_path], tmp_path / "out")
    shown = [row["name"] for policy in report["policies"] for row in rows_of(policy)]
    assert shown == ["both", "cheap 1", "cheap 2", "lowtemp 1", "lowtemp 2", "lowtemp 4", "lowtemp-4"]
    assert report["reference"] == "both"
    assert (
        rows(report)["both"]["mean_k"],
        rows(report)["both"]["accuracy"],
        rows(report)["lowtemp 4"]["accuracy"],
    ) == (4, 0, 1)
    assert len(draw_accuracy({"": report}).legends[0].get_texts()) == 4
    assert len({*marks_of(report["policies"]).values()}) == 4
    explained = (tmp_path / "out" / "report.html").read_text(encoding="utf-8").split('id="names"')[1]
    assert "<dt>both</dt><dd>a policy that stops nowhere: every question gets all its responses of plain" in explained


def test_what_was_cancelled_counts_and_is_named(tmp_path):
    asked = [question(i, row[:2], num_cancelled_tokens=60) for i, row in enumerate(power_rows(40))]
    write_store(tmp_path / "gbdt", dynamic_manifest(), asked)
    write_store(tmp_path / "power", power_manifest(), [question(i, row) for i, row in enumerate(power_rows(40))])
    report = read_report([tmp_path])
    assert rows(report)["gbdt"]["tokens"] == 260
    note = "Tokens of trajectories that were begun early and cancelled count; their share: gbdt 23.1 %."
    assert note in report["notes"]


def ungraded(record, **changes):
    return replace(record, trajectories=tuple(replace(t, correct=None) for t in record.trajectories), **changes)


def test_what_has_no_grade_is_kept_apart(tmp_path):
    questions = [question(i, row) for i, row in enumerate(power_rows(40))]
    no_grade, undecided = ungraded(questions[0], gold=None, correct=None), ungraded(questions[1], correct=None)
    write_store(tmp_path / "power", power_manifest(), [no_grade, undecided, *questions[2:]])
    report = read_report([tmp_path])
    assert (report["num_questions"], report["num_graded"]) == (40, 39)
    assert rows(report)["power 8"]["accuracy"] == pytest.approx(36 / 39)
    assert rows(report)["power 8"]["tokens"] == 800
    assert any("without a grade count in the costs but not in accuracies: power 1" in note for note in report["notes"])
    assert any("could not decide on count as not right: power 8" in note for note in report["notes"])


@pytest.mark.parametrize(("manifest", "count"), [(power_manifest(), 8), (dynamic_manifest(), 2)])
def test_stores_without_any_grade_still_have_a_page(tmp_path, manifest, count):
    blank = [ungraded(question(i, [1] * count), gold=None, correct=None) for i in range(3)]
    report = write_report([write_store(tmp_path / "store", manifest, blank)], tmp_path / "out")
    assert (report["num_graded"], {row["accuracy"] for row in rows(report).values()}) == (0, {None})
    assert "No question has a grade" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert list(rows(report))[-1] in render_table(report)


def test_accuracies_are_of_the_questions_that_all_policies_have_graded(tmp_path):
    """Without a gold answer two trajectories may have no grade where some of the eight have one."""
    records = [question(0, [0] * 8, gold=None), *(question(i, [1] * 8) for i in range(1, 4))]
    write_store(tmp_path / "power", power_manifest(), records)
    blank = ungraded(question(0, [0, 0]), gold=None, correct=None)
    write_store(tmp_path / "gbdt", dynamic_manifest(), [blank, *(question(i, [1, 1]) for i in range(1, 4))])
    report = read_report([tmp_path])
    assert report["num_graded"] == 3
    assert [rows(report)[name]["accuracy"] for name in ("power 8", "gbdt")] == [1, 1]
    assert rows(report)["power 8"]["tokens"] == 800


def test_responses_are_read_strictly_and_flexibly_side_by_side(tmp_path):
    lines = power_rows(40)
    questions = [
        replace(
            q,
            trajectories=tuple(
                replace(t, strict_answer=t.answer if t.index < 4 else None, strict_correct=t.correct and t.index < 4)
                for t in q.trajectories
            ),
        )
        for q in (question(i, row) for i, row in enumerate(lines))
    ]
    write_store(tmp_path / "power", power_manifest(), questions)
    report = write_report([tmp_path], tmp_path / "out")
    [entry] = report["readings"]
    strict = np.array([np.mean([right and i < 4 for i, right in enumerate(row)]) for row in lines])
    for name, values in (("flexible", np.mean(lines, axis=1)), ("strict", strict)):
        assert entry[name]["value"] == pytest.approx(values.mean())
        assert entry[name]["stderr"] == pytest.approx(values.std(ddof=1) / 40**0.5)
    assert (entry["without_strict"]["value"], entry["num_questions"]) == (0.5, 40)
    assert "right in the form asked for" in (tmp_path / "out/report.html").read_text()


def test_what_makes_stores_differ_is_noted(evaluation, tmp_path):
    policy = {
        "name": "max-swap",
        "family": "fixed",
        "ladder": ["power 2", "power 2", "power 2", "power 2"],
        "law": "a search",
    }
    write_store(tmp_path / "max-swap", power_manifest(policy=policy), [question(0, [1, 1, 0, 1, 1, 1, 1, 1])])
    write_store(tmp_path / "gbdt", dynamic_manifest(sampler={"num_mh_steps": 99}, seed=7), [question(0, [1, 1])])
    notes = read_report([evaluation / "power", tmp_path])["notes"]
    assert "max-swap is no draw from p^alpha: a search." in notes
    assert any("different settings of the arm power" in note for note in notes)
    assert any("different seeds" in note for note in notes)


def test_a_harvest_has_a_report_of_its_own(tmp_path, evaluation):
    write_store(tmp_path / "harvest", make_manifest(), [question(i, [1, 1, 0, 0, 1, 1, 1, 1]) for i in range(5)])
    assert run(["report", str(tmp_path / "harvest"), "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["kind"], list(rows(report))) == ("harvest", ["power 2", "power 4", "power 6", "power 8"])
    assert "harvest report" in (tmp_path / "out" / "report.html").read_text()
    assert "Left out, not evaluations: harvest." in read_report([evaluation, tmp_path / "harvest"])["notes"]


# -- report.json alone -------------------------------------------------------------------------------------------------


def alone(output, folder, **changes):
    """A folder with a report.json and nothing else."""
    folder.mkdir()
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    (folder / "report.json").write_text(json.dumps({**report, **changes}), encoding="utf-8")
    return folder


def test_page_and_figures_are_made_again_from_report_json_alone(mixed, tmp_path, capsys):
    _, output, report = mixed
    folder = alone(output, tmp_path / "alone")
    (folder / "report.png").write_bytes(b"drawn by another version")
    assert run(["report", str(folder), "--title", "Another"]) == 0
    out = capsys.readouterr().out
    assert render_table(report) in out
    assert report["findings"][0] in out
    assert "Made again from report.json." in out
    assert run(["report", str(folder)]) == 0
    for path in output.iterdir():
        if path.name not in ("report.json", "report.html"):
            assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
    assert (folder / "report.html").read_bytes() == (output / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "of schema_version 4, got 2: run dps report again"),
        ({"kind": None}, "to say of which kind it is and to have a title, got None and"),
        ({"policies": [{}]}, "but a part is missing or of another type ('policy')"),
        ({"matched_tokens": "<script>"}, "but a part is missing or of another type"),
        ({"title": [1]}, "and to have a title, got 'evaluation' and [1]: run dps report again"),
    ],
)
def test_a_damaged_result_is_refused_in_a_sentence(written, tmp_path, changes, message, capsys):
    folder = alone(written[0], tmp_path / "alone", **changes)
    assert run(["report", str(folder)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["report.json"]
    assert run(["report", str(folder), "--output", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_a_report_beside_others_or_over_others_is_refused(written, evaluation, tmp_path, capsys):
    folder = alone(written[0], tmp_path / "alone")
    assert run(["report", str(folder), str(evaluation)]) == 2
    assert "holds a report.json and" in capsys.readouterr().err
    other = write_store(tmp_path / "other" / "mlp-hq", dynamic_manifest("mlp-hq"), [question(0, [1, 1])])
    assert run(["report", str(other), "--output", str(folder)]) == 2
    assert "holds the report of other stores (gbdt, lowtemp, mlp-h, plain, power)" in capsys.readouterr().err
    assert run(["report", str(evaluation / "power" / "manifest.json")]) == 2


class _Page(HTMLParser):
    """Collects what a page loads, its ids and whether its elements are closed."""

    def __init__(self):
        super().__init__()
        self.loads, self.ids, self.open, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.loads += [values[key] for key in ("src", "href", "xlink:href", "srcset", "data") if key in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in {"meta", "br", "img", "link", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


# -- mixing ------------------------------------------------------------------------------------------------------------


def traced(count, *, k=8, steps=5):
    return [make_question(i, k=k, hidden_size=0, steps=steps) for i in range(count)]


@pytest.fixture(scope="module")
def mixed(evaluation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    power = write_store(folder / "power", power_manifest(), traced(12))
    return [power, evaluation / "plain"], folder / "report", write_report([power], folder / "report")


def test_without_recorded_steps_nothing_is_said_of_mixing(written):
    output, report = written
    assert report["mixing"] == []
    assert "Mixing" not in (output / "report.html").read_text(encoding="utf-8")
    assert not any("Metropolis" in finding for finding in report["findings"])


def test_mixing_of_the_same_chains_is_shown_once_and_of_others_apart(mixed, tmp_path):
    [power, plain], _, _ = mixed
    same = write_store(tmp_path / "gbdt", dynamic_manifest(), traced(12, k=2))
    other = {**power_manifest().sampler, "num_mh_steps": 10}
    more = write_store(tmp_path / "mlp-h", dynamic_manifest("mlp-h", sampler=other), traced(12, k=2, steps=10))
    assert [entry["store"] for entry in read_report([power, same, plain])["mixing"]] == ["power"]
    report = read_report([power, more])
    assert [entry["store"] for entry in report["mixing"]] == ["power", "mlp-h"]
    assert [entry["last_stage"]["most_steps"] for entry in report["mixing"]] == [5, 10]
    findings = [f for f in report["findings"] if "Metropolis-Hastings steps" in f]
    assert ["of power" in f for f in findings] == [True, False]
    assert ["of mlp-h" in f for f in findings] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize(("k", "count", "steps"), [(8, 1, 5), (1, 6, 1)])
def test_small_runs_are_drawn_and_described(tmp_path, k, count, steps):
    """One question, one trajectory of each, one step a stage: fewer numbers, no failure."""
    policy = {"name": "power", "family": "fixed", "ladder": [f"power {k}"]}
    write_store(tmp_path / "power", power_manifest(policy=policy), traced(count, k=k, steps=steps))
    report = write_report([tmp_path / "power"], tmp_path / "out")
    [entry] = report["mixing"]
    assert entry["last_stage"]["verdict"] == "unclear"
    figures = mixing(entry)
    assert len(figures) == (2 if steps > 1 else 1)
    drawn = [value["acceptance"] for value in next(iter(figures.values()))["data"]["values"]]
    kept = [row["acceptance"] for row in entry["acceptance_by_cut"] if row["acceptance"] is not None]
    assert drawn == pytest.approx(kept, rel=1e-5)
    source = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert source.count('id="mixing-0-') == len(figures)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_folders_without_anything_to_compare_are_refused(evaluation, tmp_path):
    write_store(tmp_path / "late" / "gbdt", dynamic_manifest(), [question(999, [1, 1])])
    (tmp_path / "empty").mkdir()
    for folders, message in (
        ([tmp_path / "nowhere"], r"there is no folder .*nowhere"),
        ([tmp_path / "empty"], r"found no manifest\.json there or one level below"),
        ([], "got none"),
        ([evaluation, tmp_path / "late"], "both hold gbdt"),
        ([evaluation / "power", tmp_path / "late"], "Expected questions that all stores have, found none"),
    ):
        with pytest.raises(InputError, match=message):
            read_report(folders)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        write_report([evaluation], tmp_path / "file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"benchmark": {"name": "gsm8k", "split": "test"}},
            "one benchmark, but name is 'made-up' in .*power and 'gsm8k'",
        ),
        ({"model": {"name": "other", "fingerprint": "1"}}, "one model, but fingerprint is .* in .*power and '1' in"),
    ],
)
def test_stores_that_say_nothing_together_are_refused(evaluation, tmp_path, changes, message):
    write_store(tmp_path / "z", plain_manifest("zzz", **changes), [question(0, [1] * 4)])
    with pytest.raises(InputError, match=message):
        read_report([evaluation / "power", tmp_path])


@pytest.mark.parametrize(("prompt", "agree"), [("p", True), ("another prompt", False)])
def test_who_chose_the_form_of_the_prompts_does_not_matter_but_the_prompts_do(tmp_path, prompt, agree):
    manifest = make_manifest(kind="evaluation")
    chosen = {**manifest.benchmark, "prompt": "chat"}
    by_itself = {**manifest.benchmark, "prompt": "auto"}
    write_store(tmp_path / "power", replace(manifest, benchmark=by_itself), [replace(question(0, [1] * 8), prompt="p")])
    rival = replace(question(0, [1] * 4, arm="plain"), prompt=prompt)
    write_store(tmp_path / "plain", plain_manifest(benchmark=chosen), [rival])
    if agree:
        assert read_report([tmp_path])["num_questions"] == 1
    else:
        with pytest.raises(InputError, match=r"one benchmark, but prompt is 'chat' in .* and 'auto' in"):
            read_report([tmp_path])
