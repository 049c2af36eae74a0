"""Prompts and endings through the command line: what cannot be sampled is one sentence and exit code 2."""

import json
import shutil

import pytest

from dps.model_config import embedded_path
from feature_store import Store

from .test_cli import SMALL, dps, refused

CHAT = "{% for m in messages %}{{ m.content + '<end>' }}{% endfor %}"
PARTS = "{% for m in messages %}{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endfor %}"


def changed_model(tmp_path, file="tokenizer_config.json", **changes):
    """A copy of the embedded model with other settings in a file."""
    folder = tmp_path / "model"
    shutil.copytree(embedded_path("model"), folder, dirs_exist_ok=True)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))
    return folder


def harvest(folder, tmp_path, *more):
    return [
        "harvest", f"--model.name={folder}", f"--output={tmp_path / 'out'}", *SMALL, "--benchmark.limit=2",
        "--benchmark.template={question}", "--k.maximum=2", *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (PARTS, "does not contain it"),
        ("{{ raise_exception('Roles must alternate') }}", "cannot render a user's message (Roles must alternate)"),
        ("{% for m in messages %}", "cannot render a user's message (Unexpected end of template"),
        ([{"name": "rag", "template": CHAT}], "to be named default, but it has only rag"),
    ],
)
def test_a_chat_template_that_makes_no_prompt_is_one_sentence(tmp_path, capsys, template, message):
    folder = changed_model(tmp_path, chat_template=template)
    assert message in refused(capsys, *harvest(folder, tmp_path))
    assert message in refused(capsys, "sample", f"--model.name={folder}", "What is 1+1?")
    assert not (tmp_path / "out/manifest.json").exists()


def test_the_real_command_refuses_a_template_that_loses_the_question(tmp_path):
    folder = changed_model(tmp_path, chat_template=PARTS)
    done = dps("sample", f"--model.name={folder}", "What is 1+1?")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("dps sample: error: Expected the tokenizer's chat template")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("value", ["<eos>", [1, "2"], [[1]], True, 1.0])
def test_an_eos_set_of_what_is_no_token_is_one_sentence(tmp_path, capsys, value):
    for file in ("config.json", "generation_config.json"):
        error = refused(capsys, *harvest(changed_model(tmp_path, file, eos_token_id=value), tmp_path))
        assert "eos_token_id" in error
        shutil.rmtree(tmp_path / "model")


def test_an_end_of_turn_that_ends_nothing_is_said_once_and_can_be_added(tmp_path):
    folder = changed_model(tmp_path, chat_template=CHAT)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    end = {"id": 97, "content": "<end>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    last = next(name for name, number in tokenizer["model"]["vocab"].items() if number == 97)
    del tokenizer["model"]["vocab"][last]
    tokenizer["model"]["vocab"]["<end>"] = 97
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["id"] != 97] + [end | flags]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    done = dps(*harvest(folder, tmp_path, "--compute.workers=2"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ends an answer by <end> (token 97)") == 1
    assert Store.open(tmp_path / "out").manifest.model["eos_ids"] == [1]
    other = dps(*harvest(folder, tmp_path, '--model.eos=["<end>"]'))
    assert other.returncode == 2  # other endings are another run
    shutil.rmtree(tmp_path / "out")
    done = dps(*harvest(folder, tmp_path, '--model.eos=["<end>"]'))
    assert done.returncode == 0, done.stderr
    assert "ends an answer" not in done.stderr
    assert Store.open(tmp_path / "out").manifest.model["eos_ids"] == [1, 97]


def test_stop_strings_with_special_tokens(tmp_path, capsys):
    folder = changed_model(tmp_path)
    error = refused(capsys, *harvest(folder, tmp_path, '--benchmark.stop=["<eos>x"]'))
    assert "'<eos>x' is the special token '<eos>' with other text: give '<eos>' alone." in error
    assert dps(*harvest(folder, tmp_path, '--benchmark.stop=["<pad>"]')).returncode == 0
    assert Store.open(tmp_path / "out").manifest.benchmark["stop_strings"] == ["<pad>"]


def test_a_model_eos_that_is_no_token_is_one_sentence(tmp_path, capsys):
    for value in ('["<|im_end|>"]', "[98]", "[-1]"):
        error = refused(capsys, *harvest(changed_model(tmp_path), tmp_path, f"--model.eos={value}"))
        assert "Expected tokens of the model" in error
