"""Input that cannot be meant: one sentence and exit code 2, before anything heavy is loaded."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dps import hub
from dps.api import answer
from dps.arguments import check_seed, readable
from dps.cli import run
from dps.errors import InputError
from dps.hub import is_hub_id
from dps.model_config import ModelConfig, check_device
from feature_store import Store, StoreError, StoreWriter
from tests.factories import make_manifest, make_question

ROOT = Path(__file__).parents[1]
SHORT = ("--sampler.block_size=24", "--sampler.max_new_tokens=24", "--sampler.num_mh_steps=1", "--k.maximum=2")


def said(capsys):
    """The one sentence on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert ": error: " in lines[0]
    return lines[0]


# -- seeds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", ["-1", "4294967296", "99999999999999999999999"])
@pytest.mark.parametrize(
    "words",
    [
        ("harvest",),
        ("evaluate",),
        ("quickstart",),
        ("sample", "1+1"),
        ("bench",),
        ("replay", "somewhere"),
        ("metrics", "somewhere"),
    ],
    ids=lambda words: words[0],
)
def test_a_seed_out_of_range_is_refused(words, seed, tmp_path, capsys):
    output = () if words[0] == "sample" else (f"--output={tmp_path / 'out'}",)
    assert run([*words, f"--seed={seed}", *output]) == 2
    assert f"Expected seed from 0 to 4,294,967,295, got {seed}" in said(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", ["4294967296", "99999999999999999999999"])
def test_a_seed_of_a_benchmark_out_of_range_is_refused(seed, capsys):
    assert run(["harvest", f"--benchmark.seed={seed}"]) == 2
    assert f"Expected benchmark.seed from 0 to 4,294,967,295, got {seed}" in said(capsys)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "1"])
def test_a_seed_that_is_none_is_refused_from_python(seed):
    with pytest.raises(InputError, match="Expected seed from 0"):
        answer(["1+1"], seed=seed)


def test_seeds_in_range_pass():
    for seed in (None, 0, 1, 2**32 - 1):
        check_seed(seed)


# -- controllers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", " ", "\t"])
def test_a_controller_without_a_name_is_refused(name, capsys):
    assert run(["evaluate", "--policies=[x]", f"--controllers.x={name}"]) == 2
    assert "Expected a trained controller, got an empty name" in said(capsys)


@pytest.mark.parametrize("option", ["--embedder=nobody/nothing", "--embedder=./x", "--feature_layer=99"])
def test_what_only_a_controller_needs_is_refused_without_one(option, capsys):
    assert run(["sample", "1+1", option]) == 2
    assert "is set, but only a controller needs it" in said(capsys)


# -- values of another type -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["harvest", "--model.eos=abc"], "Expected list such as [a, b]. Got value: abc"),
        (["harvest", "--benchmark.stop=abc"], "list such as [a, b]"),
        (["harvest", "--plan=nothing"], "Expected one of 'off', 'words', 'json'. Got value: nothing"),
        (["harvest", "--seed=x"], "Expected whole number. Got value: x"),
        (["evaluate", "--controllers=[x]"], "Expected mapping such as {name: value}"),
        (["evaluate", "--rules={esc: {window: x}}"], "Expected number. Got value: x"),
        (["store", "info", "x", "--json=maybe"], "Expected true or false. Got value: maybe"),
    ],
)
def test_a_value_of_another_type_is_refused_without_names_of_python(words, expected, capsys):
    assert run(words) == 2
    sentence = said(capsys)
    assert expected in sentence
    assert "<class" not in sentence


@pytest.mark.parametrize("words", [["harvest"], ["report", "x"], ["fit"], ["crossval"], ["store", "info", "x"]])
@pytest.mark.parametrize("name", ["", "nothing.yaml", ".", "configs/nothing.yaml"])
def test_a_configuration_that_is_not_there_is_refused(words, name, capsys):
    assert run([*words, "--config", name]) == 2
    assert f"Expected a configuration file, but there is no {name}: see configs/." in said(capsys)


# -- devices -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "device", ["gpu", "mps", "GPU", "cuda:-1", "cuda:", "cuda:0,1", "cuda0", "xpu", "", "meta", "tpu"]
)
def test_a_device_of_another_kind_is_refused(device, capsys):
    assert run(["sample", "1+1", f"--model.device={device}"]) == 2
    assert "Expected model.device to be auto, cpu, cuda or cuda:<number>" in said(capsys)


def test_devices_of_the_known_kinds_pass():
    for device in ("auto", "cpu", "cuda", "cuda:0", "cuda:11"):
        check_device(device)


# -- texts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "a\udcffb"),
        ("sample", "1+1", "--model.name=\ud800"),
        ("harvest", "--output=/tmp/\udc80"),
        ("report", "\udfff"),
        ("store", "info", "x\ud83d"),
        ("harvest", "--benchmark.template={question}\ud800"),
    ],
    ids=ascii,
)
def test_an_argument_that_is_no_text_is_refused(words, capsys):
    assert run(list(words)) == 2
    assert "Expected text in UTF-8" in said(capsys)


def test_bytes_that_are_no_text_are_refused_on_a_real_command_line():
    done = subprocess.run(
        [sys.executable.encode(), b"-m", b"dps", b"sample", b"a\xffb"],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert b"Expected text in UTF-8, but character 2 of argument 1" in done.stderr


def test_a_configuration_with_half_a_character_is_refused(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text('benchmark:\n  template: "{question} \\ud800"\n')
    assert run(["harvest", f"--config={tmp_path / 'a.yaml'}"]) == 2
    assert "invalid Unicode character" in said(capsys)


@pytest.mark.parametrize(
    "record",
    [{"question": "\ud800"}, {"question": "a", "id": "\udcff"}, {"question": "a", "note": ["\ud800"]}],
    ids=ascii,
)
def test_a_file_of_questions_with_half_a_character_is_refused(record, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "fine"}) + "\n" + json.dumps(record) + "\n")
    assert run(["harvest", "--benchmark.name=jsonl", f"--benchmark.path={tmp_path / 'a.jsonl'}"]) == 2
    assert "line 2 of a.jsonl" in said(capsys)


def test_a_file_of_questions_that_is_nested_too_deep_is_refused(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"question": ' + "[" * 100_000)
    assert run(["harvest", "--benchmark.name=jsonl", f"--benchmark.path={tmp_path / 'a.jsonl'}"]) == 2
    assert "Line 1 of a.jsonl is nested too deep" in said(capsys)


def test_a_question_with_half_a_character_is_refused_from_python():
    with pytest.raises(InputError, match="Expected text in UTF-8, but character 3 of question 2"):
        answer(["fine", "1+\ud800"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-5+3"], ["--", "-5+3"]),
        (["-5+3", "--seed", "-1"], ["--seed", "-1", "--", "-5+3"]),
        (["--seed", "-1", "-5"], ["--seed", "-1", "--", "-5"]),
        (["--seed=3", "-5"], ["--seed=3", "--", "-5"]),
        (["--5+3"], ["--", "--5+3"]),
        (["-x = 3, what is x?"], ["--", "-x = 3, what is x?"]),
        (["-- really?"], ["--", "-- really?"]),
        (["--", "-5"], ["--", "-5"]),
        (["5", "--controller", "-odd"], ["5", "--controller", "-odd"]),
        (["-h"], ["-h"]),
        (["--help"], ["--help"]),
        (["--bogus", "5"], ["--bogus", "5"]),
    ],
)
def test_a_question_may_begin_with_a_minus(words, expected):
    assert readable("sample", words) == expected


def test_a_question_that_begins_with_a_minus_is_answered(capsys):
    assert run(["sample", "-5+3", *SHORT, "--sampler.num_mh_steps=0"]) == 0
    assert "answer: " in capsys.readouterr().out


# -- pipes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["", "--help", "harvest --help", "fit --help", "data list", "--version"])
def test_a_reader_that_goes_away_is_no_fault(words):
    """The other end is closed before the first word is written."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "dps", *words.split()],
        stdout=writing,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode in ({0} if words else {0, 2})  # by whether the output waits in a buffer


def test_an_output_that_cannot_be_written_is_a_sentence():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dps", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


# -- Python ------------------------------------------------------------------------------------------------------------


def test_a_string_is_one_question():
    [record] = answer("2+2", k=1)
    [same] = answer(["2+2"], k=1)
    assert (record.question, record.answer) == (same.question, same.answer) == ("2+2", same.answer)


def test_a_controller_may_be_a_path(tmp_path):
    with pytest.raises(InputError, match="Expected a trained controller at"):
        answer("2+2", controller=tmp_path / "nothing")
    with pytest.raises(InputError, match="Expected a trained controller at"):
        answer("2+2", controller=str(tmp_path))
    shipped = ROOT / "docs/results/gsm8k-qwen2.5-coder-0.5b/controllers/gbdt"
    with pytest.raises(InputError, match="was trained on the model"):  # read, and of another model
        answer("2+2", controller=str(shipped))


def test_a_path_opens_a_store(tmp_path):
    StoreWriter.open(tmp_path, make_manifest()).commit([make_question(0)])
    for path in (tmp_path, str(tmp_path)):
        assert Store(path).question_ids == Store.open(path).question_ids == ["q00000"]
    with pytest.raises(StoreError, match="there is no folder"):
        Store(tmp_path / "nothing")


# -- names on the hub --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "is_id"),
    [
        ("gpt2", True),
        ("Qwen/Qwen2.5-0.5B", True),
        ("a/b_c.d-e", True),
        ("./nothing", False),
        ("../nothing", False),
        (".", False),
        ("..", False),
        ("/nothing", False),
        ("~/nothing", False),
        ("nothing/", False),
        ("a/b/c", False),
        ("a//b", False),
        ("a b", False),
        ("-a", False),
        ("a..b", False),
        ("a--b", False),
        ("a.git", False),
        ("a" * 97, False),
        ("", False),
    ],
)
def test_names_on_the_hub_and_paths(name, is_id):
    assert is_hub_id(name) is is_id


@pytest.mark.parametrize("option", ["--model.name", "--features.embedder"])
@pytest.mark.parametrize("name", ["./nothing", "../nothing", "nothing/", "/nothing/here"])
def test_a_path_that_is_not_there_is_no_hub_id(option, name, tmp_path, capsys):
    assert run(["harvest", f"{option}={name}", f"--output={tmp_path / 'out'}", *SHORT]) == 2
    assert f"got {name}" in said(capsys).replace("'", "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("harvest", "--model.name=nobody/nothing"),
        ("harvest", "--features.embedder=nobody/nothing", "--benchmark.limit=2"),
        ("harvest", "--features.embedder=nobody/nothing", "--compute.workers=2", "--plan"),
        ("evaluate", "--model.name=nobody/nothing"),
        ("sample", "1+1", "--model.name=nobody/nothing", "--model.revision=main"),
    ],
)
def test_an_unknown_name_without_a_network_is_refused_first(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    output = () if words[0] == "sample" else (f"--output={tmp_path / 'out'}",)
    assert run([*words, *output, *SHORT]) == 2
    error = said(capsys)
    assert "Could not load the" in error
    assert "the Hugging Face hub does not answer" in error
    assert not (tmp_path / "out").exists()


class Session:
    """A client of the hub; nobody is on the other side."""

    def __init__(self, status=200, wait_s=0.0, error=None):
        self.status_code, self.wait_s, self.error = status, wait_s, error

    def head(self, *arguments, **options):
        time.sleep(self.wait_s)
        if self.error is not None:
            raise self.error
        return self


@pytest.mark.parametrize(
    ("session", "answers"),
    [
        (Session(), True),
        (Session(status=302), True),
        (Session(status=403), False),  # of a proxy
        (Session(status=503), False),
        (Session(wait_s=60), False),  # a look-up of a name that takes as long as the system likes
        (Session(error=OSError("no route")), False),
        (Session(error=RuntimeError("closed")), False),
    ],
)
def test_whether_the_hub_answers_is_known_within_seconds(session, answers, monkeypatch):
    import huggingface_hub.utils
    from huggingface_hub import constants

    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    started = time.monotonic()
    assert hub.hub_answers.__wrapped__() is answers
    assert time.monotonic() - started < 8


def test_a_name_that_the_hub_does_not_have_is_refused(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def refuse(*arguments, **options):
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(InputError, match="the Hugging Face hub has none of that name"):
        hub.only_cached("nobody/nothing", "the model")


def test_what_is_in_the_cache_needs_no_hub(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names, **options: str(tmp_path))
    assert hub.only_cached("somebody/something", "the model")


def test_a_model_that_does_not_fit_this_machine_is_named():
    from dps.model import load_model

    with pytest.raises(InputError, match="PyTorch finds"):
        load_model(ModelConfig(device="cuda:99"))
