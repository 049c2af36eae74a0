"""Prompts and endings through the command line: what cannot be sampled is one sentence and exit code 2."""

import json
import shutil

import pytest

from dps.cli import run
from feature_store import Store
from tests.commands import CASES, SMALL, refused
from tests.test_model import edited

CHAT = "{% for m in messages %}{{ m.content + '<end>' }}{% endfor %}"


def harvest(folder, tmp_path, *more):
    return [
        "harvest", f"--model.name={folder}", f"--output={tmp_path / 'out'}", *SMALL, "--benchmark.limit=2",
        "--benchmark.template={question}", "--k.maximum=2", *more,
    ]  # fmt: skip


@pytest.mark.parametrize(("template", "message"), CASES["prompts"])
def test_a_chat_template_that_makes_no_prompt_is_one_sentence(tmp_path, capsys, template, message):
    folder = edited(tmp_path, tokenizer_config={"chat_template": template})
    assert message in refused(capsys, *harvest(folder, tmp_path))
    assert message in refused(capsys, "sample", f"--model.name={folder}", "What is 1+1?")
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize(("file", "value", "option", "message"), CASES["endings"])
def test_an_ending_that_is_no_token_is_one_sentence(tmp_path, capsys, file, value, option, message):
    folder = edited(tmp_path, **{file.removesuffix(".json"): {"eos_token_id": value}} if file else {})
    assert message in refused(capsys, *harvest(folder, tmp_path, *([option] if option else [])))


@pytest.mark.slow
def test_an_end_of_turn_that_ends_nothing_is_said_once_and_can_be_added(tmp_path, capsys):
    folder = edited(tmp_path, tokenizer_config={"chat_template": CHAT})
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    end = {"id": 97, "content": "<end>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    last = next(name for name, number in tokenizer["model"]["vocab"].items() if number == 97)
    del tokenizer["model"]["vocab"][last]
    tokenizer["model"]["vocab"]["<end>"] = 97
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["id"] != 97] + [end | flags]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.warns(UserWarning, match=r"ends an answer by <end> \(token 97\)") as warned:
        assert run(harvest(folder, tmp_path)) == 0
    assert sum("ends an answer" in str(warning.message) for warning in warned) == 1
    assert Store.open(tmp_path / "out").manifest.model["eos_ids"] == [1]
    capsys.readouterr()
    refused(capsys, *harvest(folder, tmp_path, '--model.eos=["<end>"]'))  # other endings are another run
    shutil.rmtree(tmp_path / "out")
    assert run(harvest(folder, tmp_path, '--model.eos=["<end>"]', '--benchmark.stop=["<pad>"]')) == 0
    manifest = Store.open(tmp_path / "out").manifest
    assert (manifest.model["eos_ids"], manifest.benchmark["stop_strings"]) == ([1, 97], ["<pad>"])
