"""The command line: help, start-up, signals, and the whole pipeline on the embedded model."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml

from dps import answer, cli
from dps.cli import run
from dps.commands.sampling import confidence
from dps.decide import RULES
from dps.decide.policy_file import read_policy
from dps.model_config import embedded_path
from feature_store import Store, StoreWriter
from lightning_modules import load_controller
from tests.commands import CASES, ROOT, SMALL, dps, refused
from tests.factories import make_manifest, make_question

CONTROLLERS = ("gbdt", "mlp-h", "mlp-hq")

# -- help and start-up -------------------------------------------------------------------------------------------------


def test_every_command_is_in_the_overview(capsys):
    assert run(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"\n  {command} " in overview for command in cli.COMMANDS)
    assert run([]) == 2


def test_help_explains_without_loading_anything_heavy():
    """All helps in one process: none of the libraries that take seconds, and CPU time of one start-up."""
    code = (
        "import sys; from dps.cli import COMMANDS, run\n"
        "for name in COMMANDS:\n    try: run([name, '--help'])\n    except SystemExit as stop: assert not stop.code\n"
        "sys.exit(str({'torch', 'transformers', 'lightning', 'lightgbm', 'sentence_transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stderr == "set()\n"
    helps = done.stdout.split("usage: dps ")[1:]
    assert [text.split()[0] for text in helps] == list(cli.COMMANDS)
    assert all("--" in text for text in helps)
    text = " ".join(helps[list(cli.COMMANDS).index("harvest")].split())
    assert "Sharpening exponent of the target" in text


@pytest.mark.parametrize("words", [["--help"], ["harvest", "--help"], ["harvest", "--alhpa=4"], ["fit"]])
def test_help_and_refusals_answer_at_once(words):
    before = os.times()
    done = dps(*words)
    after = os.times()
    assert done.returncode == (0 if "--help" in words else 2)
    assert len(done.stderr.splitlines()) == (0 if "--help" in words else 1)
    used_s = after.children_user - before.children_user + after.children_system - before.children_system
    assert used_s < 2


def test_bytes_that_are_no_text_are_refused_on_a_real_command_line():
    done = subprocess.run([sys.executable.encode(), b"-m", b"dps", b"sample", b"a\xffb"], capture_output=True, cwd=ROOT)
    assert done.returncode == 2
    assert b"Expected text in UTF-8, but character 2 of argument 1" in done.stderr


@pytest.mark.parametrize("words", ["", "--help", "harvest --help"])
def test_a_reader_that_goes_away_is_no_fault(words):
    """The other end is closed before the first word is written."""
    reading, writing = os.pipe()
    os.close(reading)
    done = dps(*words.split(), stdout=writing)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in ({0} if words else {0, 2})  # by whether the output waits in a buffer


def test_an_output_that_cannot_be_written_is_a_sentence():
    with open("/dev/full", "w") as full:
        done = dps("--help", stdout=full)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "sentence"), CASES["interrupted"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_has_an_exit_code_and_a_sentence(words, sentence, number, code, capsys, monkeypatch):
    def interrupted(arguments):
        signal.raise_signal(number)

    command, *rest = words.split()
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(cli.COMMANDS, command, (interrupted, ""))
    assert run([command, *rest]) == code
    signal.signal(signal.SIGTERM, before)
    assert f"dps {command}: interrupted; {sentence}" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_harvest_resumes_and_a_second_one_beside_it_is_refused(tmp_path, capsys):
    folder = tmp_path / "a"
    small = [f"--output={folder}", *SMALL, "--compute.commit_interval_s=0"]
    process = subprocess.Popen(
        # far from done when the signal comes, on any machine
        [sys.executable, "-m", "dps", "harvest", *small, "--benchmark.limit=2000", "--compute.workers=2"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with Ctrl-C ignored, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.h5"))) < 5 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    beside = refused(capsys, "harvest", *small, "--benchmark.limit=2000")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert f"Another run writes to {folder} just now (process {process.pid} on " in beside
    assert "the same command goes on from there" in error
    kept = set(Store.open(folder).question_ids)
    assert 0 < len(kept) < 2000
    assert run(["harvest", *small, f"--benchmark.limit={len(kept) + 4}"]) == 0
    assert kept <= set(Store.open(folder).question_ids)


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_prompt_without_room_is_refused_with_its_question(capsys, tmp_path):
    lines = [{"question": "1+1?", "answer": "2"}, {"question": "1+" * 300 + "1?", "answer": "301", "id": "too-long"}]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, lines)))
    prompt = ["--benchmark.prompt=plain", "--benchmark.template={question}", f"--output={tmp_path / 'store'}"]
    own = ["--benchmark.name=jsonl", f"--benchmark.path={tmp_path / 'long.jsonl'}"]
    assert re.search("too-long.*positions", refused(capsys, "harvest", *own, *SMALL[1:], *prompt))
    assert not list((tmp_path / "store").glob("*.h5"))


def test_a_run_of_other_settings_is_refused(capsys, tmp_path, monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    base = ["harvest", f"--output={tmp_path}", *SMALL, "--benchmark.limit=2", "--k.maximum=2", "--compute.threads=1"]
    assert run(base) == 0
    assert threads[-1] == 1  # for a single worker, too
    before = sorted(p.name for p in tmp_path.iterdir())
    capsys.readouterr()
    assert "alpha" in refused(capsys, *base, "--sampler.alpha=3")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.slow
def test_baselines_of_another_law_run_and_are_marked(tmp_path):
    policies = ["power", "max-swap", "early-entropy", "early-perplexity", "early-self-confidence"]
    options = ["--benchmark.limit=6", "--k.maximum=4", "--sampler.early_stop_min_tokens=8", "--compute.rows=24"]
    options += ["--sampler.num_mh_steps=6"]  # enough that power sampling takes a step down
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
    steps = [t.steps for q in stores["max-swap"] for t in q.trajectories]
    in_stage = [np.diff(trace.logprob)[np.diff(trace.horizon) == 0] for trace in steps]
    assert all((rise >= -1e-6).all() for rise in in_stage)


def test_stop_strings_come_from_the_benchmark(tmp_path):
    command = ["evaluate", "--policies=[plain]", "--budgets.plain=1", *SMALL, "--benchmark.limit=4"]
    assert run([*command, f"--output={tmp_path / 'a'}"]) == 0
    assert run([*command, f"--output={tmp_path / 'b'}", '--benchmark.stop=["="]']) == 0
    free = [t for q in Store.open(tmp_path / "a/plain") for t in q.trajectories]
    stopped = [t for q in Store.open(tmp_path / "b/plain") for t in q.trajectories]
    assert Store.open(tmp_path / "b/plain").manifest.benchmark["stop_strings"] == ["="]
    for before, after in zip(free, stopped, strict=True):
        assert after.text == before.text.partition("=")[0]
        assert after.tokens.tolist() == before.tokens.tolist()[: len(after.tokens)]
        assert (after.ending == "stop") == ("=" in before.text)
    assert "stop" in {t.ending for t in stopped}


@pytest.mark.parametrize(("p_enough", "threshold", "words"), CASES["confidence"])
def test_what_a_controller_said_stands_beside_what_it_stops_at(p_enough, threshold, words):
    """The digits show the decision: never the same number on both sides where more trajectories are added."""
    assert confidence(p_enough, threshold) == words


def test_segments_of_a_store_are_joined(tmp_path, capsys):
    for name, count in (("a", 3), ("b", 1)):
        writer = StoreWriter.open(tmp_path / name, make_manifest())
        for number in range(count):
            writer.commit([make_question(number)])
    assert run(["store", "compact", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    joined = [f"{tmp_path / 'a'}: 3 segments joined into 1", f"{tmp_path / 'b'}: 1 segments joined into 1"]
    assert capsys.readouterr().out.splitlines() == joined
    assert [q.question_id for q in Store.open(tmp_path / "a")] == ["q00000", "q00001", "q00002"]
    assert len(list((tmp_path / "a").glob("*.h5"))) == 1
    assert "nothing" in refused(capsys, "store", "compact", tmp_path / "nothing")


# -- configurations ----------------------------------------------------------------------------------------------------

CONFIGS = sorted(ROOT.glob("configs/*/*.yaml"))


def resolved(capsys, *words):
    """The configuration that a command prints."""
    with pytest.raises(SystemExit) as stop:
        run([*map(str, words), "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if p.parent.name not in ("models", "study")], ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_every_config_parses_and_names_its_command(path, capsys):
    command = path.parent.name
    assert path.read_text().startswith(f"# dps {command} --config configs/{command}/{path.name}")
    assert resolved(capsys, command, "--config", path)


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.parent.name == "models"], ids=lambda p: p.stem)
def test_every_preset_changes_the_config_of_a_benchmark(path, capsys):
    first, *_ = path.read_text().splitlines()
    assert first.startswith("# dps evaluate --config configs/evaluate/math500.yaml ")
    assert f"--config configs/models/{path.name}" in first
    preset = yaml.safe_load(path.read_text())
    for name in ("math500", "alpaca_eval"):
        config = resolved(capsys, "evaluate", f"--config={ROOT}/configs/evaluate/{name}.yaml", f"--config={path}")
        assert config["model"]["name"] == preset["model"]["name"]
        assert (config["benchmark"]["name"], config["benchmark"]["prompt"]) == (name, preset["benchmark"]["prompt"])
        assert config["sampler"]["alpha"] == 4.0


# -- the pipeline ------------------------------------------------------------------------------------------------------


QUICKSTART = ("quickstart", "--harvest_questions=32", "--evaluate_questions=12", "--workers=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small run of everything."""
    folder = tmp_path_factory.mktemp("pipeline")
    done = dps(*QUICKSTART, f"--output={folder}", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search("[\x1b\r]", done.stderr + done.stdout), "not a terminal"
    assert str(folder / "report.html") in done.stdout
    return folder


@pytest.mark.slow
class TestPipeline:
    def test_quickstart_leaves_everything(self, folder):
        for name in ("report.html", "report.png", "report.svg", "report.json"):
            assert (folder / name).stat().st_size > 1000
        page, replay = (folder / "report.html").read_text(), (folder / "replay" / "replay.html").read_text()
        assert all(name in page for name in CONTROLLERS)
        assert all(name in replay for name in (*RULES, "cheap-then-power"))
        assert not re.search(r"""(src|href)=["']?https?:""", page), "the page loads something"
        policy = read_policy(folder)
        advice = json.loads((folder / "recommendation.json").read_text())
        assert (policy.name, advice["target"]["name"]) == (advice["name"], "power 8")
        tile, _ = page.split("What the data say", 1)
        assert f'Recommended policy</p>\n<h2 id="recommendation">{advice["policy"]["label"]}<' in tile
        assert "Too few to compare policies." in tile
        live = re.search(r"live accuracy</dt> <dd><b>([\d.]+)", tile)
        stores = {
            n: Store.open(folder / "evaluation" / n) for n in ("power", "plain", "lowtemp", *CONTROLLERS, policy.name)
        }
        assert [len(store) for store in stores.values()] == [12] * 7
        assert live[1] == f"{100 * np.mean([q.correct for q in stores[policy.name]]):.1f}"

    def test_harvest_has_every_feature(self, folder):
        store = Store.open(folder / "harvest")
        assert len(store) == 32
        for question in store:
            assert [t.arm for t in question.trajectories] == ["power"] * 8 + ["plain"] * 16 + ["lowtemp"] * 16
            assert question.embedding.size > 0
            for t in question.trajectories[:8]:
                assert t.hidden.shape == (len(t.block_num_tokens), store.manifest.model["hidden_size"])
                assert (t.block_entropy > 0).all()
                assert t.mh_proposed >= 5

    def test_live_controllers_use_prefixes_of_the_fixed_run(self, folder):
        fixed = {q.question_id: q for q in Store.open(folder / "evaluation" / "power")}
        assert not {q.question for q in fixed.values()} & {q.question for q in Store.open(folder / "harvest")}
        for name in CONTROLLERS:
            for question in Store.open(folder / "evaluation" / name):
                assert question.k in (2, 4, 6, 8)
                assert [decision.k for decision in question.decisions] == [k for k in (2, 4, 6) if k <= question.k]
                for mine, theirs in zip(question.trajectories, fixed[question.question_id].trajectories, strict=False):
                    assert mine.tokens.tolist() == theirs.tokens.tolist()

    def test_replay_decides_as_the_live_controllers_did(self, folder, tmp_path):
        from scripts.check_replay_live import AGREE, compare

        harvest = ["harvest", "--config=configs/harvest/arithmetic.yaml", f"--output={tmp_path}", "--compute.rows=64"]
        assert run([*harvest, "--benchmark.split=test", "--benchmark.limit=12", "--compute.workers=1"]) == 0
        controllers = {name: folder / "controllers" / name for name in CONTROLLERS}
        for name, agreement in compare(tmp_path, folder / "evaluation", controllers, ()).items():
            assert agreement["differ"] == [], name
            assert [agreement[what] for what in AGREE] == [12] * len(AGREE), name

    def test_a_second_run_does_nothing_again(self, folder, capsys):
        before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.h5")}
        assert run([*QUICKSTART, f"--output={folder}"]) == 0
        assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.h5")} == before
        assert "32 questions, 0 of them sampled now" in capsys.readouterr().out

    def test_lightning_commands_on_the_harvest(self, folder, capsys):
        run_folder = f"--trainer.default_root_dir={folder / 'controllers' / 'mlp-hq'}"
        for command, words in (("test", ("AUROC", "questions")), ("predict", ())):
            store = f"--data.init_args.store={folder / 'harvest'}"
            assert run([command, "--config", "configs/mlp_hq.yaml", store, run_folder]) == 0
            printed = capsys.readouterr().out
            assert all(word in printed for word in words)

    @pytest.mark.parametrize(
        ("name", "options", "sentence"),
        [
            ("mlp-h", ["--features.layer=5"], "layer"),
            ("mlp-hq", ["--features.embedder={tmp}/embedder"], "question embeddings by"),
            ("gbdt", ["--k.start=1", "--k.step=1"], "trained to be asked at k = [2, 4, 6]"),
        ],
    )
    def test_a_controller_that_does_not_fit_is_refused(self, folder, capsys, tmp_path, name, options, sentence):
        shutil.copytree(embedded_path("embedder"), tmp_path / "embedder")
        modules = tmp_path / "embedder" / "modules.json"
        modules.write_text(modules.read_text() + "\n")
        command = ["evaluate", f"--policies=[{name}]", f"--controllers={{{name}: {folder / 'controllers' / name}}}"]
        options = [option.replace("{tmp}", str(tmp_path)) for option in options]
        same = "--sampler.num_mh_steps=5"  # as the harvest: other arms are refused before a model loads
        more = [f"--output={tmp_path / 'out'}", "--benchmark.limit=2", *SMALL, same, *options]
        assert sentence in refused(capsys, *command, *more)

    def test_one_question_with_a_controller_from_the_command_line_and_from_python(self, folder, capsys):
        assert run(["sample", "From left to right: 14+23-5", f"--controller={folder / 'controllers/mlp-hq'}"]) == 0
        out = capsys.readouterr().out
        assert re.match(r"power 2 [^\n]*enough: \d+\.\d+ % \(stops from \d+\.\d+ %\).*\nanswer:", out, re.DOTALL)
        path = folder / "controllers" / "gbdt"
        for controller in (load_controller(path), path, str(path)):
            records = answer(["From left to right: 14+23-5", "From left to right: 3+4"], controller=controller)
            assert all(record.k == len(record.trajectories) and record.k in (2, 4, 6, 8) for record in records)
        assert answer(["From left to right: 3+4"], k=2)[0].k == 2

    def test_a_live_run_computes_what_its_controller_looks_at(self, folder):
        for name, (hidden, embedding) in zip(("power", *CONTROLLERS), [(0, 0), (0, 0), (1, 0), (1, 1)], strict=True):
            question = next(iter(Store.open(folder / "evaluation" / name)))
            assert question.trajectories[0].hidden.shape[1] > 0 or not hidden, name
            assert question.embedding.size > 0 or not embedding, name
