"""`dps metrics` as a whole: files, the real command line, what several runs give, and what is refused."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dps.analysis.config import MetricsConfig
from dps.analysis.metrics import render, run_metrics
from dps.cli import run
from dps.errors import InputError
from feature_store import StoreWriter
from tests.analysis.evaluations import dynamic_manifest
from tests.analysis.evaluations import question as live_question
from tests.analysis.evaluations import write_store as write_live
from tests.analysis.runs import POWER, manifest, question, write_harvest, write_run, write_store

ROOT = Path(__file__).parents[2]
FILES = {
    *("trajectories.csv", "samples.csv", "entropy.csv", "perplexity.csv", "self_confidence.csv"),
    *("predictor.json", "predictions.csv", "pass_at_k.csv", "pass_at_k.json", "pass_at_k.png", "pass_at_k.svg"),
}
MANY = [[int((3 * i + j * j) % 7 < i % 4) for j in range(1, 5)] for i in range(24)]  # every fourth never right


def dps(*arguments):
    """Run the real command line in a process of its own."""
    command = [sys.executable, "-m", "dps", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def refused(capsys, *arguments):
    """Run a command that must be refused; return its one sentence."""
    assert run(["metrics", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("dps metrics: error: ")
    return line


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run of 24 questions, measured by the real command line."""
    folder = tmp_path_factory.mktemp("metrics")
    rows = [[row[0], row[2], row[1]] for row in MANY]
    write_run(folder / "run", power=MANY, plain=rows, lowtemp=rows)
    write_live(folder / "run" / "gbdt", dynamic_manifest(), [live_question(i, row[:2]) for i, row in enumerate(MANY)])
    done = dps("metrics", folder / "run", "--output", folder / "out", "--bootstrap=50", "--repeats=2")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_command_line_writes_everything_and_says_what_came_out(written):
    folder, done = written
    assert "error" not in done.stderr
    assert {path.name for path in (folder / "out").iterdir()} == FILES | {"settings.json"}
    lines = done.stdout.splitlines()
    assert lines[1].split() == ["k", "power", "%", "plain", "%", "lowtemp", "%"]
    assert [line.split()[0] for line in lines[3:7]] == ["1", "2", "3", "4"]
    assert any(line.startswith("Samples to success (") and "Spearman" in line for line in lines)
    assert any(line.startswith("Note: Left out: gbdt, whose number of trajectories depends") for line in lines)
    assert lines[-1] == str(folder / "out")
    assert (folder / "out" / "pass_at_k.png").read_bytes().startswith(b"\x89PNG")


def test_numbers_of_a_known_run(written):
    out = written[0] / "out"
    right = sum(map(sum, MANY))
    table = {(row["policy"], int(row["k"])): row for row in read(out / "pass_at_k.csv")}
    assert float(table["power", 1]["pass_at_k"]) == pytest.approx(right / 96)
    assert float(table["power", 4]["pass_at_k"]) == pytest.approx(sum(map(any, MANY)) / 24)
    content = json.loads((out / "pass_at_k.json").read_text())
    assert content["pass_at_k"][0]["pass_at_k"] == pytest.approx(right / 96)
    assert content["schema_version"] == 1
    samples = read(out / "samples.csv")
    assert [int(row["num_right"]) for row in samples] == list(map(sum, MANY))
    assert [row["samples_to_success"] for row in samples] == [str(r.index(1) + 1) if any(r) else "" for r in MANY]
    assert [row["censored"] for row in samples] == [str(not any(row)) for row in MANY]
    for metric in ("entropy", "perplexity", "self_confidence"):
        part = read(out / f"{metric}.csv")
        assert [[row[name] for name in part[0]] for row in samples] == [list(row.values()) for row in part]
    (first, second) = json.loads((out / "predictor.json").read_text())["predictor"]
    assert first["num_questions"] == sum(map(any, MANY))
    assert first["num_censored"] == second["num_censored"] == 24 - sum(map(any, MANY)) > 0
    assert len(read(out / "predictions.csv")) == first["num_questions"] + 24
    assert len(read(out / "trajectories.csv")) == 96


def test_the_same_runs_give_the_same_bytes(written, tmp_path):
    folder = written[0]
    config = MetricsConfig(output=str(tmp_path), bootstrap=50, repeats=2)
    found = run_metrics([folder / "run"], config)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / "out" / name).read_bytes(), name
    elsewhere = str(tmp_path / "seed-1")
    other = run_metrics([folder / "run"], MetricsConfig(output=elsewhere, bootstrap=50, repeats=2, seed=1))
    assert other["pass_at_k"] == found["pass_at_k"]
    assert other["predictor"] != found["predictor"]


def test_files_of_an_earlier_command_are_neither_replaced_nor_mixed(tmp_path):
    folders = [write_run(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))]
    quick = {"output": str(tmp_path / "out"), "folds": 2, "repeats": 1, "bootstrap": 5}
    run_metrics(folders[:1], MetricsConfig(**quick))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for runs, more in ((folders, {}), (folders[1:], {}), (folders[:1], {"trajectories_only": True})):
        with pytest.raises(InputError, match="holds results of dps metrics with other settings"):
            run_metrics(runs, MetricsConfig(**quick, **more))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_two_runs_are_pooled(tmp_path):
    folders = [write_run(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))]
    found = run_metrics(folders, MetricsConfig(folds=2, repeats=2, bootstrap=20))
    out = tmp_path / "metrics"
    assert found["output"] == str(out)
    assert {path.name for path in out.iterdir()} == (FILES - {"trajectories.csv"}) | {
        *("trajectories-one.csv", "trajectories-two.csv", "settings.json")
    }
    assert {row["seed"] for row in read(out / "trajectories-two.csv")} == {"1"}
    assert [row["total_samples"] for row in found["samples"]] == [8, 8, 8, 8]
    assert [row["num_right"] for row in found["samples"]] == [2 * sum(row) for row in POWER]
    assert {row["k"] for row in found["pass_at_k"] if row["policy"] == "power"} == set(range(1, 9))
    assert found["pass_at_k"][7]["pass_at_k"] == 3 / 4


def test_arms_of_one_store_are_read_like_stores_of_one_arm(tmp_path):
    write_run(tmp_path / "run")
    write_harvest(tmp_path / "harvest")
    config = {"folds": 2, "repeats": 1, "bootstrap": 5}
    of_run, of_arms = (
        run_metrics([tmp_path / name], MetricsConfig(output=str(tmp_path / f"out-{name}"), **config))
        for name in ("run", "harvest")
    )
    assert of_run["pass_at_k"] == of_arms["pass_at_k"]
    assert of_run["samples"] == of_arms["samples"]
    rows, of = (read(tmp_path / f"out-{name}" / "trajectories.csv") for name in ("run", "harvest"))
    names = {"run"}  # its name
    assert [{k: v for k, v in row.items() if k not in names} for row in rows] == [
        {k: v for k, v in row.items() if k not in names} for row in of
    ]
    write_store(tmp_path / "more" / "plain", "plain", [[1, 0]] * 4)
    write_harvest(tmp_path / "more" / "harvest")
    with pytest.raises(InputError, match=r"more.harvest and .*more.plain both hold plain: name one"):
        run_metrics([tmp_path / "more"], MetricsConfig(output=str(tmp_path / "out"), **config))


def test_notes_say_what_a_reader_must_know(tmp_path):
    rows = [[1, None], [0, 1], [None, None], [1, 0], [1, 1]]
    folder = write_run(tmp_path / "run", power=rows, plain=[[0]] * 4, lowtemp=None)
    law = {"name": "max_swap", "family": "fixed", "ladder": ["power 1"], "law": "a search for likely responses"}
    write_store(folder / "max_swap", "max_swap", [[1]] * 4, policy=law)
    found = run_metrics([folder], MetricsConfig(folds=2, repeats=1, bootstrap=5))
    text = render(found)
    assert "pass@k is over the 4 of 5 questions" in text
    assert "could not be graded count as not right: 3 of power" in text
    assert "Note: max_swap is no draw from p^alpha: a search for likely responses." in text
    assert "The predictor has no naive_entropy, naive_perplexity and naive_self_confidence" in text


def test_without_grades_the_table_of_trajectories_can_be_had(tmp_path, capsys):
    none = [[None, None]] * 3
    folder = write_run(tmp_path / "run", power=none, plain=none, lowtemp=none)
    assert "none of the policy power has a grade" in refused(capsys, folder, "--output", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["settings.json"]  # and no result
    assert run(["metrics", str(folder), f"--output={tmp_path / 'only'}", "--trajectories_only=true"]) == 0
    assert {path.name for path in (tmp_path / "only").iterdir()} == {"trajectories.csv", "settings.json"}
    assert capsys.readouterr().out.strip() == str(tmp_path / "only")


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    assert "Expected at least one run, got none" in refused(capsys)
    assert "there is no folder" in refused(capsys, tmp_path / "absent")
    (tmp_path / "plain-folder").mkdir()
    assert "found no manifest.json" in refused(capsys, tmp_path / "plain-folder")
    (tmp_path / "file").touch()
    assert "is a file: name another one" in refused(capsys, folder, "--output", tmp_path / "file")
    assert "give another --output" in refused(capsys, folder, "--output", tmp_path / "file" / "below")
    assert "folds must be at least 2, got 1" in refused(capsys, folder, "--folds=1")
    assert "bootstrap must be at least 2" in refused(capsys, folder, "--bootstrap=1")
    assert "mcmc_policy is plain, which has columns of its own" in refused(capsys, folder, "--mcmc_policy=plain")
    assert "Expected a store of the policy tempered" in refused(capsys, folder, "--mcmc_policy=tempered")
    assert "There is no option --parts" in refused(capsys, folder, "--parts=3")
    one = write_run(tmp_path / "one", power=[[1], [0]])
    assert "Expected at least two trajectories of a question" in refused(capsys, one)
    baselines = write_run(tmp_path / "baselines", power=None)
    assert "Expected a store of the policy power" in refused(capsys, baselines)
    write_live(tmp_path / "live" / "gbdt", dynamic_manifest(), [live_question(0, [1, 1])])
    assert "Expected a store of the policy power" in refused(capsys, tmp_path / "live")
    assert "Expected a store of the policy power" in refused(capsys, tmp_path / "live", "--trajectories_only=true")
    assert "that of gbdt depends on what they are" in refused(capsys, tmp_path / "live", "--mcmc_policy=gbdt")


def test_policies_without_a_common_question_are_refused(tmp_path, capsys):
    folder = write_run(tmp_path / "run", power=[[1, 0]] * 2, plain=None, lowtemp=None)
    later = [replace(question(i, [1, 0], arm="plain"), question_id=f"r{i}") for i in range(2)]
    StoreWriter.open(folder / "plain", manifest("plain", count=2)).commit(later)
    assert "Expected questions with a gold answer that the policies power and plain all have, found none" in refused(
        capsys, folder
    )
