"""Input that cannot be meant: one sentence and exit code 2, before a model is loaded or anything is written."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.utils
import pytest
import transformers
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError

from dps import hub
from dps.api import answer
from dps.arguments import check_seed, readable
from dps.cli import run
from dps.errors import InputError
from dps.hub import is_hub_id
from dps.model_config import check_device
from feature_store import StoreWriter
from tests.commands import CASES, SMALL, refused
from tests.factories import make_manifest, make_question


@pytest.fixture
def no_model(monkeypatch):
    """No model is loaded, and the hub is not asked."""

    def load(*args, **kwargs):
        raise AssertionError("a model was loaded before the input was refused")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(hub, "hub_answers", lambda: False)


@pytest.mark.parametrize("row", CASES["refused"], ids=lambda row: ascii(" ".join(row[0]))[1:-1])
def test_what_cannot_be_meant_is_one_sentence(row, no_model, tmp_path, monkeypatch, capsys):
    words, sentence, files = row if len(row) == 3 else (*row, {})
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    error = refused(capsys, *words)
    assert sentence in error.replace("'", "") or sentence in error
    assert "<class" not in error
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == set(files)


def test_a_file_of_questions_that_is_nested_too_deep_is_refused(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"question": ' + "[" * 100_000)
    error = refused(capsys, "harvest", "--benchmark.name=jsonl", f"--benchmark.path={tmp_path / 'a.jsonl'}")
    assert "Line 1 of a.jsonl is nested too deep" in error


@pytest.mark.parametrize("damage", ["version", "segment"])
@pytest.mark.parametrize("command", ["report", "harvest"])
def test_a_store_that_cannot_be_read_is_refused(command, damage, no_model, tmp_path, capsys):
    segment = StoreWriter.open(tmp_path / "power", make_manifest(kind="evaluation")).commit([make_question(0)])
    manifest = tmp_path / "power" / "manifest.json"
    if damage == "version":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 99}))
    else:
        segment.write_bytes(segment.read_bytes()[: segment.stat().st_size // 2])
    words = [tmp_path] if command == "report" else [f"--output={tmp_path / 'power'}"]
    assert {"version": "99", "segment": segment.name}[damage] in refused(capsys, command, *words)


def test_what_is_in_range_passes():
    for seed in (None, 0, 1, 2**32 - 1):
        check_seed(seed)
    for device in ("auto", "cpu", "cuda", "cuda:0", "cuda:11"):
        check_device(device)


@pytest.mark.parametrize(("words", "expected"), CASES["minus"])
def test_a_question_may_begin_with_a_minus(words, expected):
    assert readable("sample", words.split()) == expected.split()
    for question in ("-x = 3, what is x?", "-- really?"):
        assert readable("sample", [question]) == ["--", question]


def test_a_question_that_begins_with_a_minus_is_answered(capsys):
    assert run(["sample", "-5+3", *SMALL[1:4], "--k.maximum=2"]) == 0
    assert "answer: " in capsys.readouterr().out


# -- Python ------------------------------------------------------------------------------------------------------------


def test_a_string_is_one_question():
    [record] = answer("2+2", k=1)
    [same] = answer(["2+2"], k=1)
    assert (record.question, record.answer) == (same.question, same.answer) == ("2+2", same.answer)


@pytest.mark.parametrize(
    ("questions", "settings", "sentence"),
    [
        *(("1+1", {"seed": seed}, "Expected seed from 0") for seed in (-1, 2**32, 0.5, "1")),
        (["fine", "1+\ud800"], {}, "Expected text in UTF-8, but character 3 of question 2"),
        *(("1+1", {"controller": path}, "Expected a trained controller at") for path in (Path("nothing"), "nothing")),
    ],
)
def test_what_cannot_be_meant_is_refused_from_python(questions, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        answer(questions, **settings)


# -- the hub -----------------------------------------------------------------------------------------------------------


def test_names_on_the_hub_and_paths():
    assert all(map(is_hub_id, ("gpt2", "Qwen/Qwen2.5-0.5B", "a/b_c.d-e")))
    paths = ["./nothing", "../nothing", ".", "..", "/nothing", "~/nothing", "nothing/", "a/b/c", "a//b"]
    assert not any(map(is_hub_id, [*paths, "-a", "a b", "a..b", "a--b", "a.git", "a" * 97, ""]))


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
def test_whether_the_hub_answers_is_known_in_time(session, answers, monkeypatch):
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_WAIT_S", 0.5)
    started = time.monotonic()
    assert hub.hub_answers.__wrapped__() is answers
    assert time.monotonic() - started < 8


def test_a_name_that_the_hub_does_not_have_is_refused(monkeypatch):
    def refuse(*arguments, **options):
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(InputError, match="the Hugging Face hub has none of that name"):
        hub.only_cached("nobody/nothing", "the model")


def test_what_is_in_the_cache_needs_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names, **options: str(tmp_path))
    assert hub.only_cached("somebody/something", "the model")
