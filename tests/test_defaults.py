"""What commands take by themselves: defaults that fit the model and the questions, and the pipeline without options."""

import json
from pathlib import Path

import pytest

from dps.cli import run
from feature_store import Store
from tests.commands import CASES, ROOT, SMALL
from tests.test_cli import resolved


@pytest.mark.parametrize(("words", "expected"), CASES["defaults"])
def test_defaults_fit_the_model_and_the_questions(words, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("preset.yaml").write_text("model: {name: some/model}\n")
    config = resolved(capsys, *words.split())
    for key, value in expected.items():
        room, _, name = key.rpartition(".")
        assert (config[room] if room else config)[name] == value, key


def test_an_evaluation_without_options_runs_what_was_trained(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mlp-hq", "gbdt"):
        folder = tmp_path / "runs" / "controllers" / name / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "best.ckpt").touch()
    (tmp_path / "runs" / "controllers" / "unfinished").mkdir()
    config = resolved(capsys, "evaluate")
    assert config["policies"] == ["power", "plain", "lowtemp", "gbdt", "mlp-hq"]
    assert config["controllers"] == {name: f"runs/controllers/{name}" for name in ("gbdt", "mlp-hq")}
    assert resolved(capsys, "evaluate", "--policies=[power]")["controllers"] == {}
    assert resolved(capsys, "evaluate", "--benchmark.name=gsm8k")["policies"] == ["power", "plain", "lowtemp"]
    assert resolved(capsys, "evaluate", "--model.name=some/model")["controllers"] == {}


@pytest.mark.slow
def test_the_whole_pipeline_runs_without_options(tmp_path, monkeypatch, capsys):
    """Fewer questions, steps and rows, to be done sooner; everything else is what the commands take by themselves."""
    monkeypatch.chdir(tmp_path)
    small = ["--sampler.num_mh_steps=1", "--compute.rows=32"]
    assert run(["harvest", "--benchmark.limit=16", *small]) == 0
    assert run(["fit", "--config", "configs/mlp_hq.yaml", "--trainer.max_epochs=1"]) == 0
    assert run(["evaluate", "--benchmark.limit=4", *small]) == 0
    capsys.readouterr()
    assert run(["report"]) == 0
    printed = capsys.readouterr().out
    assert all(policy in printed for policy in ("power 8", "plain 8", "lowtemp 8", "mlp-hq"))
    assert Path("runs/evaluation/report.html").is_file()
    harvest, evaluation = (Store.open(tmp_path / "runs" / name) for name in ("harvest", "evaluation/mlp-hq"))
    assert not set(harvest.question_ids) & set(evaluation.question_ids)


def test_a_run_that_is_right_on_no_question_says_what_to_check(tmp_path, capsys):
    path, store = tmp_path / "own.jsonl", tmp_path / "none"
    questions = [f"From left to right: {n}+{n}" for n in range(11, 15)]
    answers = ["wrong on purpose", "wrong, too", 1.5, None]
    lines = [{"question": q, "answer": a} for q, a in zip(questions, answers, strict=True)]
    path.write_text("\n".join(map(json.dumps, lines)))
    own = ["--benchmark.name=jsonl", f"--benchmark.path={path}", *SMALL[1:], "--k.maximum=4"]
    assert run(["harvest", f"--output={store}", *own]) == 0
    error = capsys.readouterr().err
    assert error.count("note: own.jsonl: 1 of 3 answers are numbers; line 3 is.") == 1
    assert error.count(f"warning: None of the 3 graded questions of {store} is right: compare") == 1
    assert next(iter(Store.open(store))).prompt == f"Q: {questions[0]}\nA: "
    train = [f"--data.init_args.store={store}", f"--trainer.default_root_dir={tmp_path / 'c'}"]
    run(["fit", f"--config={ROOT}/configs/gbdt.yaml", *train])
    error = capsys.readouterr().err
    assert error.count(f"warning: None of the 3 graded questions of {store} is right") == 1
