"""What commands take by themselves: defaults that fit the model and the questions, and the pipeline without options."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dps.cli import run
from feature_store import Store

from .test_cli import ROOT, SMALL, dps, refused


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["harvest"], {"benchmark.split": "train", "benchmark.limit": 320, "sampler.max_new_tokens": 72}),
        (["harvest", "--model.name=embedded"], {"sampler.block_size": 24, "sampler.num_mh_steps": 5}),
        (
            ["harvest", "--benchmark.split=test", "--benchmark.limit=3"],
            {"benchmark.split": "test", "benchmark.limit": 3},
        ),
        (["harvest", "--model.name=some/model"], {"sampler.max_new_tokens": 3072, "benchmark.limit": None}),
        (["harvest", "--benchmark.name=gsm8k"], {"benchmark.split": "test", "sampler.max_new_tokens": 72}),
        (["harvest", "--config=preset.yaml"], {"sampler.max_new_tokens": 3072, "sampler.num_mh_steps": 10}),
        (["harvest", "--config=preset.yaml", "--model.name=embedded"], {"sampler.max_new_tokens": 72}),
        (["harvest", "--sampler.num_mh_steps=1"], {"sampler.num_mh_steps": 1, "sampler.block_size": 24}),
        (["evaluate"], {"benchmark.split": "test", "benchmark.limit": 240, "policies": ["power", "plain", "lowtemp"]}),
        (["evaluate", "--model.name=some/model"], {"sampler.block_size": 192, "benchmark.limit": None}),
        (["bench"], {"sampler.max_new_tokens": 72, "benchmark.limit": None}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_defaults_fit_the_model_and_the_questions(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("preset.yaml").write_text("model: {name: some/model}\n")
    with pytest.raises(SystemExit) as stop:
        run([*arguments, "--print_config"])
    assert stop.value.code == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    for key, value in expected.items():
        found = resolved
        for part in key.split("."):
            found = found[part]
        assert found == value, key


def test_an_evaluation_without_options_runs_what_was_trained(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mlp-hq", "gbdt"):
        folder = tmp_path / "runs" / "controllers" / name / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "best.ckpt").touch()
    (tmp_path / "runs" / "controllers" / "unfinished").mkdir()

    def resolved(*arguments):
        with pytest.raises(SystemExit):
            run(["evaluate", *arguments, "--print_config"])
        return yaml.safe_load(capsys.readouterr().out)

    found = resolved()
    assert found["policies"] == ["power", "plain", "lowtemp", "gbdt", "mlp-hq"]
    assert found["controllers"] == {name: f"runs/controllers/{name}" for name in ("gbdt", "mlp-hq")}
    assert resolved("--policies=[power]")["controllers"] == {}
    assert resolved("--benchmark.name=gsm8k")["policies"] == ["power", "plain", "lowtemp"]
    assert resolved("--model.name=some/model")["controllers"] == {}


def test_the_whole_pipeline_runs_without_options(tmp_path):
    """Fewer questions, steps and rows, to be done sooner; everything else is what the commands take by themselves."""

    def dps_here(*arguments):
        command = [sys.executable, "-m", "dps", *arguments]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return done

    small = ("--sampler.num_mh_steps=1", "--compute.rows=32")
    dps_here("harvest", "--benchmark.limit=24", *small)
    dps_here("fit", "--config", str(ROOT / "configs/mlp_hq.yaml"), "--trainer.max_epochs=2")
    dps_here("evaluate", "--benchmark.limit=4", *small)
    done = dps_here("report")
    for policy in ("fixed-k8", "plain-k8", "lowtemp-k8", "mlp-hq"):
        assert policy in done.stdout
    assert (tmp_path / "runs" / "evaluation" / "report.html").is_file()
    harvest, evaluation = (Store.open(tmp_path / "runs" / name) for name in ("harvest", "evaluation/mlp-hq"))
    assert not set(harvest.question_ids) & set(evaluation.question_ids)


def test_a_report_without_a_folder_needs_an_evaluation(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "runs/evaluation" in refused(capsys, "report")


def test_a_run_that_is_right_on_all_questions_or_none_says_what_to_check(tmp_path):
    path, store = tmp_path / "own.jsonl", tmp_path / "none"
    questions = [f"From left to right: {n}+{n}" for n in range(11, 15)]

    def write(answers):
        lines = [{"question": q, "answer": a} for q, a in zip(questions, answers, strict=True)]
        path.write_text("\n".join(json.dumps(line) for line in lines))

    options = ["--benchmark.name=jsonl", f"--benchmark.path={path}", *SMALL[1:], "--k.maximum=4"]
    write(["wrong on purpose", "wrong, too", 1.5, None])
    done = dps("harvest", f"--output={store}", *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("note: own.jsonl: 1 of 3 answers are numbers; line 3 is.") == 1
    assert done.stderr.count(f"warning: None of the 3 graded questions of {store} is right: compare") == 1
    stored = list(Store.open(store))
    assert stored[0].prompt == f"Q: {questions[0]}\nA: "
    fitted = dps("fit", f"--config={ROOT}/configs/gbdt.yaml", f"--data.init_args.store={store}",
                 f"--trainer.default_root_dir={tmp_path / 'c'}")  # fmt: skip
    assert fitted.stderr.count(f"warning: None of the 3 graded questions of {store} is right") == 1
    # The same seed, so the same responses: what they answer is right now.
    write([question.answer or "no answer" for question in stored])
    done = dps("evaluate", f"--output={tmp_path / 'all'}", *options, "--policies=[power]")
    assert done.returncode == 0, done.stderr
    assert all(question.answer is not None for question in stored)
    assert done.stderr.count(f"warning: All 4 graded questions of {tmp_path / 'all' / 'power'} are right: check") == 1
