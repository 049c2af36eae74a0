"""The command line: help, bad input, and the whole pipeline on the embedded model."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dps.cli import run
from dps.commands.running import confidence
from dps.model_config import embedded_path
from feature_store import Store, StoreWriter
from scripts.check_replay_live import AGREE, compare

from .factories import make_manifest, make_question

ROOT = Path(__file__).parents[1]
SMALL = [
    "--benchmark.name=arithmetic",
    "--sampler.block_size=24",
    "--sampler.max_new_tokens=48",
    "--sampler.num_mh_steps=1",
    "--compute.rows=64",
]


def dps(*arguments, timeout=240):
    """Run the real command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "dps", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def refused(capsys, *arguments):
    """Run a command that must be refused; return its one sentence."""
    code = run(list(map(str, arguments)))
    error = capsys.readouterr().err.strip()
    assert code == 2, error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1, error
    return error


# -- help --------------------------------------------------------------------------------------------------------------

COMMANDS = ["quickstart", "sample", "harvest", "fit", "validate", "test", "predict", "evaluate", "report", "bench"]


@pytest.mark.parametrize("arguments", [["--help"], *([c, "--help"] for c in COMMANDS)], ids=lambda a: "-".join(a))
def test_help_explains_without_loading_anything_heavy(arguments):
    code = (
        f"import sys; from dps.cli import run\ntry:\n    code = run({arguments!r})\n"
        "except SystemExit as stop:\n    code = stop.code\n"
        "heavy = {'torch', 'transformers', 'lightning', 'lightgbm', 'sentence_transformers'} & set(sys.modules)\n"
        "sys.exit(code or (f'loaded {heavy}' if heavy else 0))"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: dps" in done.stdout
    if arguments[0] in COMMANDS:
        assert "--" in done.stdout
    assert time.perf_counter() - started < 20  # a hang, not a speed, is what this catches


def test_every_command_is_in_the_overview(capsys):
    assert run(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"\n  {command} " in overview for command in COMMANDS)
    assert run([]) == 2


def test_options_are_explained(capsys):
    with pytest.raises(SystemExit) as stop:
        run(["harvest", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Sharpening exponent of the target" in text
    assert "Chains that run at a time in one worker" in text


# -- bad input: one sentence, exit code 2, nothing loaded --------------------------------------------------------------


@pytest.fixture
def no_model(monkeypatch):
    """Fails the test if a model is loaded."""
    import dps.model
    import dps.run.run
    import dps.run.worker

    def load(*args, **kwargs):
        raise AssertionError("a model was loaded before the input was refused")

    for module in (dps.model, dps.run.run, dps.run.worker):
        monkeypatch.setattr(module, "load_model", load)


@pytest.mark.usefixtures("no_model")
class TestRefusals:
    def test_unknown_command(self, capsys):
        assert "expected one of quickstart, sample" in refused(capsys, "havrest")

    def test_misspelt_option(self, capsys):
        assert "--alhpa" in refused(capsys, "harvest", "--alhpa=4")

    @pytest.mark.parametrize("command", ["harvest", "evaluate"])
    def test_misspelt_key(self, capsys, tmp_path, command):
        config = tmp_path / "config.yaml"
        config.write_text((ROOT / f"configs/{command}/arithmetic.yaml").read_text().replace("  alpha:", "  alhpa:"))
        assert "alhpa" in refused(capsys, command, "--config", config)

    def test_missing_config(self, capsys, tmp_path):
        assert "nowhere.yaml" in refused(capsys, "harvest", "--config", tmp_path / "nowhere.yaml")
        assert "nowhere.yaml" in refused(capsys, "fit", "--config", tmp_path / "nowhere.yaml")

    def test_unknown_policy(self, capsys):
        error = refused(capsys, "evaluate", "--policies=[power,mlp-x]")
        assert "Unknown policy mlp-x: expected one of power, plain, lowtemp" in error

    @pytest.mark.parametrize("command", ["harvest", "evaluate"])
    def test_k_that_cannot_be_reached(self, capsys, command):
        assert "set it to 6 or 8" in refused(capsys, command, "--k.maximum=7")

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ("--sampler.alpha=0.5", "alpha must be at least 1"),
            ("--sampler.alpha=four", "alpha"),
            ("--sampler.max_new_tokens=100", "block_size must divide max_new_tokens"),
            ("--compute.workers=0", "must be at least 1"),
            ("--benchmark.limit=0", "limit"),
            ("--benchmark.split=validation", "expected benchmark.split"),
        ],
    )
    def test_settings(self, capsys, option, message):
        assert message.lower() in refused(capsys, "harvest", option).lower()

    @pytest.mark.parametrize("command", [["harvest"], ["evaluate"], ["sample", "1+1?"]], ids=lambda c: c[0])
    def test_model_that_is_not_there(self, capsys, tmp_path, command):
        assert "check model.name" in refused(capsys, *command, f"--model.name={tmp_path / 'absent'}")
        assert "there is no file" in refused(capsys, *command, f"--model.name={tmp_path / 'absent.gguf'}")
        assert "has none" in refused(capsys, *command, f"--model.name={tmp_path}")

    def test_empty_benchmark_file(self, capsys, tmp_path):
        (tmp_path / "empty.jsonl").touch()
        error = refused(capsys, "harvest", "--benchmark.name=jsonl", f"--benchmark.path={tmp_path / 'empty.jsonl'}")
        assert "found none in" in error

    def test_controller_that_is_not_there(self, capsys, tmp_path):
        error = refused(capsys, "evaluate", "--policies=[mlp-h]", f"--controllers={{mlp-h: {tmp_path}}}")
        assert "train it with dps fit" in error
        assert "train it with dps fit" in refused(capsys, "sample", "1+1?", f"--controller={tmp_path / 'x.ckpt'}")

    def test_store_of_another_version(self, capsys, tmp_path):
        StoreWriter.open(tmp_path / "power", make_manifest(kind="evaluation")).commit([make_question(0)])
        path = tmp_path / "power" / "manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({**manifest, "version": 99}))
        assert "99" in refused(capsys, "report", tmp_path)
        assert "99" in refused(capsys, "harvest", f"--output={tmp_path / 'power'}")

    def test_truncated_store(self, capsys, tmp_path):
        segment = StoreWriter.open(tmp_path / "power", make_manifest(kind="evaluation")).commit([make_question(0)])
        segment.write_bytes(segment.read_bytes()[: segment.stat().st_size // 2])
        assert segment.name in refused(capsys, "report", tmp_path)
        assert segment.name in refused(capsys, "harvest", f"--output={tmp_path / 'power'}")

    def test_report_without_runs(self, capsys, tmp_path):
        refused(capsys, "report", tmp_path / "absent")
        refused(capsys, "report", tmp_path)

    def test_empty_question(self, capsys):
        assert "none of them empty" in refused(capsys, "sample", " ")


def test_prompt_without_room_is_refused_with_its_question(capsys, tmp_path):
    questions = tmp_path / "long.jsonl"
    questions.write_text(
        json.dumps({"question": "1+1?", "answer": "2"})
        + "\n"
        + json.dumps({"question": "1+" * 300 + "1?", "answer": "301", "id": "too-long"})
    )
    error = refused(
        capsys,
        "harvest",
        "--benchmark.name=jsonl",
        f"--benchmark.path={questions}",
        f"--output={tmp_path / 'store'}",
        *SMALL[1:],
        "--benchmark.prompt=plain",
        "--benchmark.template={question}",
    )
    assert "too-long" in error
    assert "positions" in error
    assert not list((tmp_path / "store").glob("*.h5"))


def test_a_run_of_other_settings_is_refused(capsys, tmp_path):
    base = ["harvest", f"--output={tmp_path}", *SMALL, "--benchmark.limit=2", "--k.maximum=2"]
    assert run(base) == 0
    before = sorted(p.name for p in tmp_path.iterdir())
    capsys.readouterr()
    assert "alpha" in refused(capsys, *base, "--sampler.alpha=3")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_threads_are_set_for_a_single_worker_too(monkeypatch, tmp_path):
    import torch

    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    command = ["harvest", f"--output={tmp_path}", *SMALL, "--benchmark.limit=2", "--k.maximum=2"]
    assert run([*command, "--compute.threads=1"]) == 0
    assert asked[-1] == 1


# -- the pipeline ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A small run of everything through the real command line."""
    folder = tmp_path_factory.mktemp("pipeline")
    done = dps("quickstart", f"--output={folder}", "--harvest_questions=48", "--evaluate_questions=16", "--workers=2")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


def test_quickstart_leaves_everything(pipeline):
    folder, done = pipeline
    for name in ("report.html", "report.png", "report.svg", "report.json"):
        assert (folder / name).stat().st_size > 1000
    assert len(Store.open(folder / "harvest")) == 48
    report = json.loads((folder / "report.json").read_text())
    rows = {row["policy"]: row for row in report["policies"]}
    assert {"fixed-k2", "fixed-k4", "fixed-k6", "fixed-k8", "gbdt", "mlp-h", "mlp-hq", "plain-k8", "lowtemp-k8"} <= set(
        rows
    )
    assert {"adaptive-consistency", "self-confidence"} <= set(rows), "rules that need no training"
    keys = {"policy", "accuracy", "accuracy_stderr", "latency_s", "compute_s", "tokens", "mean_k", "num_questions"}
    assert all(keys <= set(row) for row in rows.values())
    assert all(row["num_questions"] == 16 for row in rows.values())
    assert rows["fixed-k8"]["tokens"] > rows["fixed-k2"]["tokens"]
    assert "report.html" in done.stdout
    assert "http" not in (folder / "report.html").read_text().replace("http://www.w3.org", "")


def test_harvest_has_every_feature(pipeline):
    store = Store.open(pipeline[0] / "harvest")
    for question in store:
        assert question.k == 8
        assert question.embedding.size > 0
        for t in question.trajectories:
            assert t.hidden.shape == (len(t.block_num_tokens), store.manifest.model["hidden_size"])
            assert (t.block_entropy > 0).all()
            assert t.mh_proposed >= 5


def test_live_controllers_use_prefixes_of_the_fixed_run(pipeline):
    fixed = {q.question_id: q for q in Store.open(pipeline[0] / "evaluation" / "power")}
    for name in ("gbdt", "mlp-h", "mlp-hq"):
        for question in Store.open(pipeline[0] / "evaluation" / name):
            assert question.k in (2, 4, 6, 8)
            assert [decision.k for decision in question.decisions] == [k for k in (2, 4, 6) if k <= question.k]
            for mine, theirs in zip(question.trajectories, fixed[question.question_id].trajectories, strict=False):
                assert mine.tokens.tolist() == theirs.tokens.tolist()


def test_replay_decides_as_the_live_controllers_did(pipeline, tmp_path):
    folder, _ = pipeline
    harvest = ["harvest", "--config=configs/harvest/arithmetic.yaml", f"--output={tmp_path}", "--compute.rows=64"]
    assert run([*harvest, "--benchmark.split=test", "--benchmark.limit=16", "--compute.workers=1"]) == 0
    controllers = {name: folder / "controllers" / name for name in ("gbdt", "mlp-h", "mlp-hq")}
    for name, found in compare(tmp_path, folder / "evaluation", controllers, ()).items():
        assert found["differ"] == [], name
        assert [found[what] for what in AGREE] == [16] * len(AGREE), name


def test_a_live_run_computes_what_its_controller_looks_at(pipeline):
    sizes = {}
    for name in ("gbdt", "mlp-h", "mlp-hq", "power"):
        question = next(iter(Store.open(pipeline[0] / "evaluation" / name)))
        sizes[name] = (question.trajectories[0].hidden.shape[1] > 0, question.embedding.size > 0)
    assert sizes == {"gbdt": (False, False), "mlp-h": (True, False), "mlp-hq": (True, True), "power": (False, False)}


def test_no_harvested_question_is_evaluated(pipeline):
    harvested = {q.question for q in Store.open(pipeline[0] / "harvest")}
    evaluated = {q.question for q in Store.open(pipeline[0] / "evaluation" / "power")}
    assert not harvested & evaluated


def test_a_second_run_does_nothing_again(pipeline):
    folder, _ = pipeline
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.h5")}
    again = dps("quickstart", f"--output={folder}", "--harvest_questions=48", "--evaluate_questions=16", "--workers=2")
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.h5")} == before
    assert "48 questions, 0 of them sampled now" in again.stdout


def test_lightning_commands_on_the_harvest(pipeline, capsys):
    folder, _ = pipeline
    common = [f"--data.init_args.store={folder / 'harvest'}"]
    for command in ("test", "predict"):
        done = dps(
            command,
            "--config",
            "configs/mlp_hq.yaml",
            *common,
            f"--trainer.default_root_dir={folder / 'controllers' / 'mlp-hq'}",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if command == "test":
            assert "AUROC" in done.stdout
            assert "questions" in done.stdout


def test_a_controller_of_other_features_is_refused(pipeline, capsys, tmp_path):
    folder, _ = pipeline
    error = refused(
        capsys,
        "evaluate",
        "--policies=[mlp-h]",
        f"--controllers={{mlp-h: {folder / 'controllers/mlp-h'}}}",
        f"--output={tmp_path}",
        "--features.layer=5",
        "--benchmark.limit=2",
        *SMALL,
    )
    assert "layer" in error


def test_a_controller_of_another_embedder_is_refused(pipeline, capsys, tmp_path):
    folder, _ = pipeline
    shutil.copytree(embedded_path("embedder"), tmp_path / "embedder")
    config = tmp_path / "embedder" / "modules.json"
    config.write_text(config.read_text() + "\n")
    error = refused(
        capsys,
        "evaluate",
        "--policies=[mlp-hq]",
        f"--controllers={{mlp-hq: {folder / 'controllers/mlp-hq'}}}",
        f"--output={tmp_path / 'out'}",
        f"--features.embedder={tmp_path / 'embedder'}",
        "--benchmark.limit=2",
        *SMALL,
    )
    assert "question embeddings by" in error


def test_a_controller_is_not_asked_where_it_was_not_trained(pipeline, capsys, tmp_path):
    folder, _ = pipeline
    error = refused(
        capsys,
        "evaluate",
        "--policies=[gbdt]",
        f"--controllers={{gbdt: {folder / 'controllers/gbdt'}}}",
        f"--output={tmp_path}",
        "--k.start=1",
        "--k.step=1",
        *SMALL,
    )
    assert "trained to be asked at k = [2, 4, 6]" in error


def test_sample_with_a_controller(pipeline, capsys):
    folder, _ = pipeline
    assert run(["sample", "From left to right: 14+23-5", f"--controller={folder / 'controllers/mlp-hq'}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("k = 2:")
    assert re.search(r"enough: \d+\.\d+ % \(stops from \d+\.\d+ %\)", out.partition("\n")[0])
    assert "answer:" in out


@pytest.mark.parametrize(
    ("p_enough", "threshold", "words"),
    [
        (0.991, 0.04, "enough: 99.1 % (stops from 96.0 %)"),
        (0.75, 0.25, "enough: 75.0 % (stops from 75.0 %)"),
        (0.9899, 0.0101, "enough: 99.0 % (stops from 99.0 %)"),
        (0.95996, 0.04, "enough: 95.996 % (stops from 96.000 %)"),
        (0.99998, 0.00001, "enough: 99.998 % (stops from 99.999 %)"),
        (0.5, 0.04, "enough: 50.0 % (stops from 96.0 %)"),
        (0.3, 1.0, "enough: 30.0 % (stops from 0.0 %)"),
        (1.0, -1.0, "enough: 100.0 % (never stops before the most)"),
    ],
)
def test_what_a_controller_said_stands_beside_what_it_stops_at(p_enough, threshold, words):
    """The digits show the decision: never the same number on both sides where more trajectories are added."""
    assert confidence(p_enough, threshold) == words


def test_python_interface(pipeline):
    from dps import answer
    from lightning_modules import load_controller

    controller = load_controller(pipeline[0] / "controllers" / "gbdt")
    records = answer(["From left to right: 14+23-5", "From left to right: 3+4"], controller=controller)
    assert [r.k in (2, 4, 6, 8) for r in records] == [True, True]
    assert all(len(r.trajectories) == r.k for r in records)
    fixed = answer(["From left to right: 3+4"], k=2)
    assert fixed[0].k == 2


def test_interrupted_harvest_resumes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "dps",
        "harvest",
        f"--output={tmp_path / 'a'}",
        *SMALL,
        "--benchmark.limit=2000",  # far from done when the signal comes, on any machine
        "--compute.commit_interval_s=0",
        "--compute.workers=2",
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with Ctrl-C ignored, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "a").glob("*.h5"))) < 5 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "the same command goes on from there" in error
    kept = set(Store.open(tmp_path / "a").question_ids)
    assert 0 < len(kept) < 2000
    assert run(["harvest", f"--output={tmp_path / 'a'}", *SMALL, f"--benchmark.limit={len(kept) + 4}"]) == 0
    assert kept <= set(Store.open(tmp_path / "a").question_ids)


CONFIGS = [path for path in sorted(ROOT.glob("configs/*/*.yaml")) if path.parent.name != "models"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_config_parses_and_names_its_command(path, capsys):
    command = path.parent.name
    assert path.read_text().startswith(f"# dps {command} --config configs/{command}/{path.name}")
    with pytest.raises(SystemExit) as stop:
        run([command, "--config", str(path), "--print_config"])
    assert stop.value.code == 0


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/models/*.yaml")), ids=lambda p: p.stem)
def test_every_preset_changes_a_config_of_every_benchmark(path, capsys):
    first, *_ = path.read_text().splitlines()
    assert first.startswith("# dps evaluate --config configs/evaluate/math500.yaml ")
    assert f"--config configs/models/{path.name}" in first
    for name in ("math500", "gsm8k", "humaneval", "gpqa", "alpaca_eval"):
        with pytest.raises(SystemExit) as stop:
            run(["evaluate", f"--config={ROOT}/configs/evaluate/{name}.yaml", f"--config={path}", "--print_config"])
        assert stop.value.code == 0
        resolved = yaml.safe_load(capsys.readouterr().out)
        preset = yaml.safe_load(path.read_text())
        assert resolved["model"]["name"] == preset["model"]["name"]
        assert resolved["benchmark"]["name"] == name
        assert resolved["benchmark"]["prompt"] == preset["benchmark"]["prompt"]
        assert resolved["sampler"]["alpha"] == 4.0


def test_baselines_of_another_law_run_and_are_marked(tmp_path):
    policies = ["power", "max-swap", "early-entropy", "early-perplexity", "early-self-confidence"]
    options = ["--benchmark.limit=4", "--k.maximum=2", "--sampler.early_stop_min_tokens=8"]
    thresholds = "--early_stop_thresholds={entropy: 9.0, perplexity: 1.0}"  # always past, never past
    command = ["evaluate", f"--output={tmp_path}", f"--policies=[{','.join(policies)}]", thresholds, *SMALL, *options]
    assert run(command) == 0
    stores = {name: Store.open(tmp_path / name) for name in policies}
    laws = {name: store.manifest.policy.get("law") for name, store in stores.items()}
    assert laws["power"] is None
    assert laws["max-swap"] == "a search for likely responses, which accepts only what is more likely"
    assert laws["early-entropy"] == "chains end after a stage once entropy <= 9"
    assert laws["early-self-confidence"] == "chains end after a stage once self_confidence >= 0.8"
    endings = {name: [t.ending for q in store for t in q.trajectories] for name, store in stores.items()}
    assert "early" in endings["early-entropy"]
    assert set(endings["early-perplexity"]) <= {"eos", "length"}
    tokens = {name: [t.tokens.tolist() for q in store for t in q.trajectories] for name, store in stores.items()}
    assert tokens["early-perplexity"] == tokens["power"]
    assert tokens["max-swap"] != tokens["power"]


def test_stop_strings_come_from_the_benchmark(tmp_path):
    command = ["evaluate", "--policies=[plain]", "--plain_max_k=1", *SMALL, "--benchmark.limit=4"]
    assert run([*command, f"--output={tmp_path / 'a'}"]) == 0
    assert run([*command, f"--output={tmp_path / 'b'}", '--benchmark.stop=["="]']) == 0
    free = [t for q in Store.open(tmp_path / "a/plain") for t in q.trajectories]
    stopped = [t for q in Store.open(tmp_path / "b/plain") for t in q.trajectories]
    assert Store.open(tmp_path / "b/plain").manifest.benchmark["stop_strings"] == ["="]
    for before, after in zip(free, stopped, strict=True):
        if "=" in before.text:
            assert after.ending == "stop"
            assert after.text == before.text.partition("=")[0]
            assert after.tokens.tolist() == before.tokens.tolist()[: len(after.tokens)]
        else:
            assert after.tokens.tolist() == before.tokens.tolist()
    assert "stop" in {t.ending for t in stopped}


def test_a_second_run_in_one_folder_is_refused(tmp_path):
    command = ["harvest", f"--output={tmp_path / 'a'}", *SMALL, "--benchmark.limit=400"]
    first = subprocess.Popen([sys.executable, "-m", "dps", *command], stderr=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "a/manifest.json").exists():
            assert first.poll() is None, first.stderr.read()
            time.sleep(0.05)
        second = dps(*command)
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 2
    assert f"Another run writes to {tmp_path / 'a'} just now (process {first.pid} on " in second.stderr
    assert second.stderr.count("\n") == 1


def test_not_a_terminal_is_quiet(pipeline):
    _, done = pipeline
    assert "\x1b" not in done.stderr + done.stdout
    assert "\r" not in done.stderr
