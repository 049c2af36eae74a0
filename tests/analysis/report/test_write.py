"""Whole reports from stores on disk: files, schema, determinism, and what is refused."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from dps.analysis.report import read_report, render_table, write_report
from dps.analysis.report.statistics import outcomes_of
from dps.cli import run
from dps.errors import InputError
from feature_store.records import Decision, no_steps
from tests.analysis.report.evaluations import (
    dynamic_manifest,
    plain_manifest,
    power_manifest,
    power_rows,
    question,
    write_evaluation,
    write_store,
)
from tests.factories import make_manifest, make_question

FILES = {"report.json", "report.html", "report.png", "report.svg", "report_time.png", "report_time.svg"}


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


def test_policies_and_their_keys(written):
    _, report = written
    assert [row["policy"] for row in report["policies"]] == [
        *("fixed-k2", "fixed-k4", "fixed-k6", "fixed-k8", "gbdt", "mlp-h"),
        *("plain-k1", "plain-k2", "plain-k4", "lowtemp-k1", "lowtemp-k2", "lowtemp-k4"),
    ]
    needed = {"policy", "accuracy", "accuracy_stderr", "latency_s", "compute_s", "tokens", "mean_k", "num_questions"}
    needed |= {
        "calibrated_s",
        "share_at_k",
        "accuracy_minus_k8",
        "accuracy_minus_k8_stderr",
        "tokens_ratio_k8",
        "family",
    }
    for row in report["policies"]:
        assert needed <= set(row)
        assert row["num_questions"] == 40
        assert sum(row["share_at_k"].values()) == pytest.approx(1)
    assert {"schema_version", "title", "findings", "provenance"} <= set(report)


def test_numbers_of_a_known_evaluation(written):
    _, report = written
    row = {row["policy"]: row for row in report["policies"]}
    # 22 of 40 questions are always right, 2 never, 16 where both wrong trajectories of 8 do not come first: 27 of 28.
    assert row["fixed-k2"]["accuracy"] == pytest.approx((22 + 16 * 27 / 28) / 40, abs=0.02)
    assert row["fixed-k8"]["accuracy"] == 38 / 40
    assert row["fixed-k2"]["accuracy_minus_k8"] == pytest.approx(-16 / 28 / 40, abs=0.02)
    assert "fixed-k3" not in row
    assert row["gbdt"]["share_at_k"] == {"2": 22 / 40, "6": 18 / 40}
    assert row["gbdt"]["mean_k"] == pytest.approx((22 * 2 + 18 * 6) / 40)
    assert row["gbdt"]["tokens_ratio_k8"] == pytest.approx((22 * 2 + 18 * 6) / (40 * 8))
    assert row["gbdt"]["accuracy_minus_k8"] == 0
    # One clock for all policies, that of the power store, although the plain stores recorded another.
    assert row["plain-k4"]["calibrated_s"] == pytest.approx(240 * 0.001 + 10 * 0.0001)
    assert report["clock"]["store"] == "power"
    assert report["reference"] == "fixed-k8"


def test_the_rival_leads_the_report_exactly_when_it_wins(tmp_path, written):
    assert not written[1]["findings"][0].startswith("Plain sampling")
    report = read_report([write_evaluation(tmp_path / "strong", num_questions=200, plain_right=1.0)])
    assert report["findings"][0].startswith(
        "Plain sampling with a majority vote wins at matched or fewer tokens over fixed-k2,"
    )
    verdicts = {(m["policy"], m["rival"]): m["verdict"] for m in report["matched_tokens"]}
    assert verdicts["fixed-k2", "plain"] == "below"
    assert verdicts["fixed-k8", "lowtemp"] == "above"


def test_the_same_stores_give_the_same_bytes(written, evaluation, tmp_path):
    output, _ = written
    write_report([evaluation / name for name in ("lowtemp", "power", "plain", "mlp-h", "gbdt")], tmp_path, "Another")
    write_report([evaluation], tmp_path, "A <b>title</b> & more")
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes(), name


def test_rules_are_not_called_controllers(tmp_path):
    folder = write_evaluation(tmp_path / "evaluation")
    shown = [question(n, [1, 1], decisions=[Decision(2, 0.9)]) for n in range(8)]
    write_store(folder / "a", dynamic_manifest("esc"), shown)
    report = write_report([folder], tmp_path / "report")
    names = [row["policy"] for row in report["policies"]]
    assert names.index("mlp-h") < names.index("esc") < names.index("plain-k1")
    source = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "A trained controller decides k" in source
    assert source.index("A rule without training decides k") < source.index('<th scope="row">esc</th>')
    assert "var(--rule)" in source
    assert "<!-- ✖ esc -->" in (tmp_path / "report" / "report.svg").read_text(encoding="utf-8")
    [said] = [finding for finding in report["findings"] if finding.startswith("esc ")]
    assert "controller" not in said


# -- report.json alone -------------------------------------------------------------------------------------------------


def alone(output, folder, **changes):
    """A folder with a report.json and nothing else."""
    folder.mkdir()
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    (folder / "report.json").write_text(json.dumps({**report, **changes}), encoding="utf-8")
    return folder


def test_page_and_figures_are_made_again_from_report_json_alone(written, tmp_path, capsys):
    output, report = written
    folder = alone(output, tmp_path / "alone")
    for said in ("Made again from JSON alone.", "Made again, byte for byte as before: report.html, report.png,"):
        assert run(["report", str(folder)]) == 0
        out = capsys.readouterr().out
        assert said in out
        assert render_table(report) in out
        assert report["findings"][0] in out
        for name in FILES - {"report.json"}:
            assert (folder / name).read_bytes() == (output / name).read_bytes(), name


def test_mixing_is_drawn_again_from_report_json_alone(mixed, tmp_path):
    _, output, _ = mixed
    folder = alone(output, tmp_path / "alone")
    assert run(["report", str(folder), "--output", str(tmp_path / "pages")]) == 0
    assert {path.name for path in folder.iterdir()} == {"report.json"}
    for name in {path.name for path in output.iterdir()} - {"report.json"}:
        assert (tmp_path / "pages" / name).read_bytes() == (output / name).read_bytes(), name


def test_what_may_vary_is_said(written, tmp_path, capsys):
    output, report = written
    assert set(report["figures"]) == {"matplotlib", "freetype"}
    older = alone(output, tmp_path / "older", figures={"matplotlib": "1.0", "freetype": "2.1"})
    (older / "report.png").write_bytes(b"drawn by another version")
    assert run(["report", str(older)]) == 0
    assert (
        "report.png has other bytes than before: the figures were drawn by matplotlib 1.0 with FreeType 2.1 at first"
    ) in capsys.readouterr().out
    assert run(["report", str(older), "--title", "Another"]) == 0
    assert "report.html has other bytes than before" in capsys.readouterr().out


def test_a_report_of_another_version_or_beside_others_is_refused(written, evaluation, tmp_path, capsys):
    output, _ = written
    for name, folders, message in (
        ("version", [alone(output, tmp_path / "version", schema_version=2)], "of schema_version 3, got 2: run dps rep"),
        ("both", [alone(output, tmp_path / "both"), evaluation], "is one of 2: make a report of each"),
    ):
        before = sorted(path.name for path in (tmp_path / name).iterdir())
        assert run(["report", *map(str, folders)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == before


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


def test_the_page_needs_nothing_else_and_is_well_formed(written):
    output, report = written
    source = (output / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(source)
    assert page.open == []
    assert all(address.startswith("#") for address in page.loads)
    assert {address[1:] for address in page.loads} <= set(page.ids)
    assert "http" not in source
    assert "@import" not in source
    assert "url(" not in re.sub(r"url\(#(tokens|time)-\w+\)", "", source)
    assert "<script" not in source
    assert source.count("<svg") == 2
    assert len(set(page.ids) & {"findings", "table", "definitions", "provenance"}) == 4
    tied = "".join(page.text).replace("\u00a0", " ")
    for finding in report["findings"]:
        assert finding in tied
    for row in report["policies"]:
        assert row["policy"] in tied


def test_what_the_stores_say_is_escaped(written):
    source = (written[0] / "report.html").read_text(encoding="utf-8")
    assert "<title>A &lt;b&gt;title&lt;/b&gt; &amp; more</title>" in source


def test_figures_show_every_policy_and_no_date(written):
    output, _ = written
    for name in ("report.svg", "report_time.svg"):
        text = (output / name).read_text(encoding="utf-8")
        for label in ("power sampling, fixed k", "plain sampling", "low temperature", "▲ gbdt", "◆ mlp-h"):
            assert f"<!-- {label} -->" in text, (name, label)
        assert "<dc:date>" not in text


def test_the_terminal_table(written):
    table = render_table(written[1])
    lines = table.splitlines()
    assert max(map(len, lines)) <= 120
    [gbdt] = [line for line in lines if line.strip().startswith("gbdt")]
    assert " ".join(gbdt.split()) == "gbdt 95.0 ± 3.5 0.0 ± 0.0 380 0.47 0.082 9.00 3.80 55 0 45"
    assert "…" not in table


def test_policies_are_compared_on_the_questions_that_all_have(evaluation, tmp_path):
    partial = [question(i, [1, 1]) for i in range(30, 50)]
    write_store(tmp_path / "gbdt", dynamic_manifest(), partial)
    report = read_report([evaluation / "power", tmp_path / "gbdt"])
    assert report["num_questions"] == 10
    rows = {row["policy"]: row for row in report["policies"]}
    assert rows["gbdt"]["num_questions_in_store"] == 20
    assert rows["fixed-k8"]["num_questions"] == 10
    assert any(
        "on the 10 questions that all stores have; some have more: power 40, gbdt 20" in n for n in report["notes"]
    )


def test_ungraded_questions_are_kept_apart(tmp_path):
    rows = power_rows(40)
    questions = [question(i, row) for i, row in enumerate(rows)]
    ungraded = replace(
        questions[0],
        gold=None,
        correct=None,
        trajectories=tuple(replace(t, correct=None) for t in questions[0].trajectories),
    )
    write_store(tmp_path / "power", power_manifest(), [ungraded, *questions[1:]])
    report = read_report([tmp_path])
    [*_, k8] = report["policies"]
    assert k8["num_ungraded"] == 1
    assert k8["num_questions"] == 40
    assert k8["accuracy"] == pytest.approx(37 / 39)
    assert k8["tokens"] == 800
    assert any("without a grade" in note for note in report["notes"])


def test_answers_that_cannot_be_graded_count_as_not_right_and_are_named(tmp_path):
    rows = power_rows(40)
    questions = [question(i, row) for i, row in enumerate(rows)]
    undecided = replace(
        questions[0],
        correct=None,
        trajectories=tuple(replace(t, correct=None) for t in questions[0].trajectories),
    )
    assert undecided.gold is not None
    write_store(tmp_path / "power", power_manifest(), [undecided, *questions[1:]])
    report = read_report([tmp_path])
    [*_, k8] = report["policies"]
    assert (k8["num_ungraded"], k8["num_ungradable"]) == (0, 1)
    assert k8["accuracy"] == pytest.approx(37 / 40)
    assert any("could not decide count as not right: fixed-k2 1, " in note for note in report["notes"])


def test_a_store_without_any_grade_still_reports(tmp_path):
    rows = [question(i, [1, 1]) for i in range(3)]
    blank = [
        replace(q, gold=None, correct=None, trajectories=tuple(replace(t, correct=None) for t in q.trajectories))
        for q in rows
    ]
    write_store(tmp_path / "store", dynamic_manifest(), blank)
    report = write_report([tmp_path], tmp_path / "out")
    assert report["policies"][0]["accuracy"] is None
    assert report["policies"][0]["accuracy_minus_k8"] is None
    assert "no accuracies" in report["findings"][0]
    assert "gbdt" in render_table(report)


def test_another_largest_k_is_the_reference_and_not_called_k8(tmp_path):
    policy = {"name": "power", "family": "fixed", "start": 1, "step": 1, "maximum": 3}
    write_store(tmp_path / "power", power_manifest(policy=policy), [question(i, [1, 0, 0]) for i in range(4)])
    report = read_report([tmp_path])
    assert report["reference"] == "fixed-k3"
    # One right trajectory of three, with the higher log p: a third of the orders, two thirds, none outvoted by two.
    assert [row["accuracy_minus_reference"] for row in report["policies"]] == pytest.approx([1 / 3, 2 / 3, 0], abs=0.12)
    assert all(row["accuracy_minus_k8"] is None for row in report["policies"])


# -- mixing ------------------------------------------------------------------------------------------------------------


def traced(count, *, k=8, steps=5):
    return [make_question(i, k=k, hidden_size=0, steps=steps) for i in range(count)]


@pytest.fixture(scope="module")
def mixed(evaluation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    power = write_store(folder / "power", power_manifest(), traced(12))
    return [power, evaluation / "plain"], folder / "report", write_report([power], folder / "report")


def test_recorded_steps_make_a_section_a_figure_and_a_finding(mixed):
    _, output, report = mixed
    assert {path.name for path in output.iterdir()} == FILES | {"report_mixing.png", "report_mixing.svg"}
    [entry] = report["mixing"]
    assert (entry["store"], entry["series"], entry["num_questions"], entry["num_chains"]) == ("power", "power", 12, 96)
    assert entry["num_steps"] == sum(t.mh_proposed for q in traced(12) for t in q.trajectories)
    accepted = sum(t.mh_accepted for q in traced(12) for t in q.trajectories)
    assert entry["acceptance"] == pytest.approx(accepted / entry["num_steps"])
    assert [row["horizon"] for row in entry["stages"]] == [8, 16, 24, 32]
    [finding] = [f for f in report["findings"] if "Metropolis-Hastings steps" in f]
    assert finding.startswith(
        {"enough": "5 M", "not enough": "5 M", "unclear": "Whether 5 M"}[entry["last_stage"]["verdict"]]
    )
    assert report["schema_version"] == 3
    assert json.loads((output / "report.json").read_text(encoding="utf-8")) == report


def test_the_section_is_well_formed_and_says_what_the_entry_says(mixed):
    _, output, report = mixed
    source = (output / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(source)
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    assert {address[1:] for address in page.loads if address.startswith("#")} <= set(page.ids)
    assert source.count("<svg") == 3
    text = " ".join("".join(page.text).replace("\u00a0", " ").split())
    assert "Mixing: whether the Metropolis-Hastings steps are enough" in text
    for row in report["mixing"][0]["stages"]:
        assert f"horizon {row['horizon']} {row['num_chains']}" in text
    for label in ("last stage of a chain", "every stage", "all steps"):
        assert label in (output / "report_mixing.svg").read_text(encoding="utf-8")


def test_without_recorded_steps_nothing_is_said_of_mixing(written):
    output, report = written
    assert report["mixing"] == []
    assert "Mixing" not in (output / "report.html").read_text(encoding="utf-8")
    assert not any("Metropolis" in finding for finding in report["findings"])


def test_the_figure_of_an_earlier_report_does_not_stay(mixed, evaluation, tmp_path):
    stores, _, _ = mixed
    write_report(stores[:1], tmp_path)
    assert (tmp_path / "report_mixing.png").exists()
    write_report([evaluation / "power"], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_mixing_of_the_same_chains_is_shown_once_and_of_others_apart(mixed, tmp_path):
    [power, plain], _, _ = mixed
    same = write_store(tmp_path / "gbdt", dynamic_manifest(), traced(12, k=2))
    other = {**power_manifest().sampler, "num_mh_steps": 10}
    more = write_store(tmp_path / "mlp-h", dynamic_manifest("mlp-h", sampler=other), traced(12, k=2, steps=10))
    assert [entry["store"] for entry in read_report([power, same, plain])["mixing"]] == ["power"]
    report = write_report([power, more], tmp_path / "out")
    assert [entry["store"] for entry in report["mixing"]] == ["power", "mlp-h"]
    assert [entry["last_stage"]["most_steps"] for entry in report["mixing"]] == [5, 10]
    findings = [f for f in report["findings"] if "Metropolis-Hastings steps" in f]
    assert ["of power" in f for f in findings] == [True, False]
    assert ["of mlp-h" in f for f in findings] == [False, True]


def test_mixing_is_of_the_questions_that_all_stores_have(mixed, tmp_path):
    [power, _], _, _ = mixed
    write_store(tmp_path / "gbdt", dynamic_manifest(), [question(i, [1, 1]) for i in range(3, 30)])
    [entry] = read_report([power, tmp_path / "gbdt"])["mixing"]
    assert entry["num_questions"] == 9


@pytest.mark.parametrize(("k", "count", "steps"), [(8, 1, 5), (1, 6, 5), (8, 6, 1), (1, 1, 1)])
def test_small_runs_are_drawn_and_described(tmp_path, k, count, steps):
    """One question, one trajectory of each, one step a stage: fewer numbers, no failure."""
    policy = {"name": "power", "family": "fixed", "start": k, "step": 2, "maximum": k}
    write_store(tmp_path / "power", power_manifest(policy=policy), traced(count, k=k, steps=steps))
    report = write_report([tmp_path / "power"], tmp_path / "out")
    [entry] = report["mixing"]
    assert entry["last_stage"]["verdict"] == "unclear"
    assert (tmp_path / "out" / "report_mixing.png").read_bytes().startswith(b"\x89PNG")


def test_some_chains_without_a_trace_are_left_out(tmp_path):
    first, *rest = traced(4)
    blank = replace(first, trajectories=tuple(replace(t, steps=no_steps()) for t in first.trajectories))
    write_store(tmp_path / "power", power_manifest(), [blank, *rest])
    [entry] = read_report([tmp_path])["mixing"]
    assert (entry["num_questions"], entry["num_chains"]) == (3, 24)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        read_report([tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"found no manifest\.json there or one level below"):
        read_report([tmp_path])
    with pytest.raises(InputError, match="got none"):
        read_report([])


def test_harvests_are_no_evaluations(evaluation, tmp_path):
    write_store(tmp_path / "harvest", make_manifest(), [question(0, [1] * 8)])
    with pytest.raises(InputError, match=r"that `dps evaluate` wrote, found only .*harvest \(a harvest\)"):
        read_report([tmp_path])
    assert "Left out, not evaluations: harvest." in read_report([evaluation, tmp_path])["notes"]


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
    rival = replace(question(0, [1] * 4), prompt=prompt)
    write_store(tmp_path / "plain", plain_manifest(benchmark=chosen), [rival])
    if agree:
        assert read_report([tmp_path])["num_questions"] == 1
    else:
        with pytest.raises(InputError, match=r"one benchmark, but prompt is 'chat' in .* and 'auto' in"):
            read_report([tmp_path])


def test_a_policy_twice_is_refused(evaluation, tmp_path):
    write_store(tmp_path / "gbdt", dynamic_manifest(), [question(0, [1, 1])])
    with pytest.raises(InputError, match="both hold gbdt"):
        read_report([evaluation, tmp_path])


def test_disjoint_questions_are_refused(evaluation, tmp_path):
    write_store(tmp_path / "gbdt", dynamic_manifest(), [question(999, [1, 1])])
    with pytest.raises(InputError, match="Expected questions that all stores have, found none"):
        read_report([evaluation / "power", tmp_path])


def test_an_output_that_is_a_file_is_refused(evaluation, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        write_report([evaluation], tmp_path / "file")


def test_different_sampler_settings_are_noted(evaluation, tmp_path):
    store = write_store(
        tmp_path / "mlp-hq", dynamic_manifest("mlp-hq", sampler={"num_mh_steps": 99}), [question(0, [1, 1])]
    )
    notes = read_report([evaluation / "power", store])["notes"]
    assert any("different sampler settings" in note for note in notes)


def test_statistics_need_no_store(evaluation):
    """The reduction takes records, whatever they come from."""
    [*_, k8] = outcomes_of(power_manifest(), (question(i, [1] * 8) for i in range(3)), None)
    assert k8.correct.tolist() == [1, 1, 1]


def test_responses_are_read_strictly_and_flexibly_side_by_side(tmp_path):
    rows = power_rows(40)
    questions = [question(i, row) for i, row in enumerate(rows)]
    questions = [
        replace(
            q,
            trajectories=tuple(
                replace(t, strict_answer=t.answer if t.index < 4 else None, strict_correct=t.correct and t.index < 4)
                for t in q.trajectories
            ),
        )
        for q in questions
    ]
    write_store(tmp_path / "power", power_manifest(), questions)
    report = write_report([tmp_path], tmp_path / "out")
    [entry] = report["readings"]
    flexible = np.array([np.mean(row) for row in rows])
    strict = np.array([np.mean([right and i < 4 for i, right in enumerate(row)]) for row in rows])
    for name, values in (("flexible", flexible), ("strict", strict)):
        assert entry[name] == pytest.approx(values.mean())
        assert entry[f"{name}_stderr"] == pytest.approx(values.std(ddof=1) / 40**0.5)
    assert (entry["without_strict"], entry["ungradable"], entry["num_questions"]) == (0.5, 0.0, 40)
    page = (tmp_path / "out/report.html").read_text()
    assert "How answers were read" in page
    assert "Right in the form asked for".lower() in page.lower()


def test_policies_of_another_law_are_named(tmp_path):
    questions = [
        question(
            i,
            [1, 1, 0, 1, 1, 1, 1, 1],
        )
        for i in range(5)
    ]
    write_store(tmp_path / "power", power_manifest(), questions)
    policy = {"name": "max-swap", "family": "fixed", "start": 2, "step": 2, "maximum": 8, "law": "a search"}
    write_store(tmp_path / "max-swap", power_manifest(policy=policy), questions)
    report = read_report([tmp_path])
    assert "max-swap is no draw from p^alpha: a search." in report["notes"]
    assert not any(note.startswith("power is no draw") for note in report["notes"])
