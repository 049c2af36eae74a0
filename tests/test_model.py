"""Loading models: names, EOS sets, identity, prompts, GGUF and folders."""

import dataclasses
import json
import os
import shutil

import pytest
import torch
from jsonargparse import ArgumentParser

from dps.chat import ChatPrompt
from dps.errors import InputError
from dps.model import load_model
from dps.model_config import EMBEDDED, ModelConfig, check_model_name, embedded_path

from .sampler.models import tiny_model
from .tokenizer_kinds import byte_level, framed, llama2, unigram, word_piece


@pytest.fixture(scope="module")
def embedded():
    return load_model(EMBEDDED)


def test_embedded_model_has_a_layer_11_and_stays_small(embedded):
    assert embedded.num_layers >= 12
    weights = list(embedded_path("model").glob("*.safetensors"))
    assert sum(path.stat().st_size for path in weights) <= 8_000_000
    assert sum(p.stat().st_size for p in embedded_path("embedder").rglob("*") if p.is_file()) <= 1_000_000
    assert embedded.model.dtype == torch.float32
    assert embedded.eos_ids


def test_a_copied_folder_is_the_same_model(embedded, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(embedded_path("model"), copy)
    moved = load_model(str(copy))
    assert moved.fingerprint == embedded.fingerprint
    assert moved.encode("Q: 1+1\nA: ") == embedded.encode("Q: 1+1\nA: ")
    changed = json.loads((copy / "config.json").read_text())
    changed["rope_parameters"] = {"rope_type": "default", "rope_theta": 5000.0}
    (copy / "config.json").write_text(json.dumps(changed))
    assert load_model(str(copy)).fingerprint != embedded.fingerprint


def test_other_weights_are_another_model():
    assert tiny_model(seed=0).fingerprint == tiny_model(seed=0).fingerprint
    assert tiny_model(seed=0).fingerprint != tiny_model(seed=1).fingerprint


def with_tokenizer(tokenizer, **names):
    model = dataclasses.replace(tiny_model(vocabulary=len(tokenizer), eos=tokenizer.eos_token_id), tokenizer=tokenizer)
    return dataclasses.replace(model, **names)


def test_eos_is_the_union_of_what_model_generation_and_tokenizer_name():
    model = tiny_model(eos=0)
    model.model.generation_config.eos_token_id = [3, 4]
    object.__setattr__(model, "tokenizer", type("T", (), {"eos_token_id": 7})())
    assert model.eos_ids == (0, 3, 4, 7)


def with_eos(value, where="generation_config"):
    """A model with 12 tokens, whose config names token 0."""
    model = tiny_model(vocabulary=12, eos=0)
    if where == "tokenizer":
        return dataclasses.replace(model, tokenizer=type("T", (), {"eos_token_id": value})())
    getattr(model.model, where).eos_token_id = value
    return model


@pytest.mark.parametrize("where", ["generation_config", "tokenizer"])
@pytest.mark.parametrize("value", [None, -1, [], [None], [-1], [0, None], (0, -1), [-12], [-(2**40)]])
def test_no_token_and_negative_numbers_in_an_eos_set_are_left_out(value, where):
    assert with_eos(value, where).eos_ids == (0,)


@pytest.mark.parametrize("value", [12, [12], [3, 12, None], 99999, [2**40]])
def test_an_eos_token_that_the_model_does_not_have_is_left_out_and_said(value):
    model = with_eos(value)
    with pytest.warns(UserWarning, match=r"names the EOS token \d+, but the model has only 12 tokens: it is left out"):
        assert model.eos_ids in ((0,), (0, 3))


@pytest.mark.parametrize("where", ["generation_config", "tokenizer"])
@pytest.mark.parametrize(
    "value", ["2", "</s>", ["</s>"], [2, "3"], [[2]], [2, [3]], True, [True], 2.0, [2.0], {"a": 1}]
)
def test_an_eos_set_of_what_is_no_token_is_refused(value, where):
    with pytest.raises(InputError, match=r"Expected eos_token_id in .* to be token ids, got ") as caught:
        with_eos(value, where).check()
    assert "\n" not in str(caught.value)


def test_an_eos_set_with_nothing_left_is_refused():
    for value in (-1, [-1, -2], None):
        model = with_eos(value, "config")
        model.model.generation_config.eos_token_id = None
        with pytest.raises(InputError, match=r"names no EOS token, .*: set model.eos"):
            model.check()


def edited(tmp_path, file, **changes):
    """A copy of the embedded model with other settings in a file."""
    copy = tmp_path / "edited"
    shutil.copytree(embedded_path("model"), copy)
    content = json.loads((copy / file).read_text()) | changes
    (copy / file).write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize("value", [[2, None], "2", [["2"]], True, 2.5])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_eos_set_in_a_models_files_is_cleaned_or_refused(tmp_path, file, value):
    folder = edited(tmp_path, file, eos_token_id=value)
    if file == "generation_config.json" and value == [2, None]:
        assert load_model(str(folder)).eos_ids == (1, 2)
        return
    with pytest.raises(InputError, match="eos_token_id") as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_more_eos_tokens_can_be_named_by_text_and_id(embedded):
    pad = embedded.tokenizer.pad_token
    more = load_model(ModelConfig(eos=(pad, 5, "+")))
    expected = {1, 0, 5, embedded.tokenizer.convert_tokens_to_ids("+")}
    assert set(more.eos_ids) == expected
    assert more.identity(11)["eos_ids"] == sorted(expected)
    line = with_tokenizer(byte_level(), more_eos=("\n", "</s>"))  # named by another sign in the vocabulary
    assert line.tokenizer("\n")["input_ids"][0] in line.eos_ids


@pytest.mark.parametrize("token", ["<|im_end|>", "++", "", 98, -1, 10**9, "€"])
def test_an_eos_setting_that_is_no_token_is_refused(token):
    with pytest.raises(InputError, match=r"in model.eos, as texts or ids from 0 to 97, but .* is none"):
        load_model(ModelConfig(eos=(token,)))


def test_more_eos_tokens_are_an_option():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ModelConfig, "model")
    found = parser.instantiate_classes(parser.parse_args(['--model.eos=["<|im_end|>", 7]'])).model
    assert found.eos == ("<|im_end|>", 7)


FRAMES = ["$A", "<s> $A", "<s> $A </s>", "$A </s>", "<s> <unk> $A", "<s> $A <unk> </s>", "</s> $A"]


@pytest.mark.parametrize("single", FRAMES)
@pytest.mark.parametrize("make", [byte_level, llama2, unigram, word_piece])
def test_a_prompt_has_what_goes_before_a_text_and_nothing_of_what_goes_behind(single, make):
    tokenizer = framed(make(), single)
    model = with_tokenizer(tokenizer)
    text = tokenizer("Problem: x", add_special_tokens=False)["input_ids"]
    before = tokenizer.convert_tokens_to_ids(single.partition("$A")[0].split())
    assert model.encode("Problem: x") == before + text
    assert model.encode(ChatPrompt("Problem: x")) == text


@pytest.mark.parametrize("option", ["add_bos_token", "add_eos_token"])
def test_settings_that_add_tokens_to_a_text(option):
    tokenizer = byte_level()
    setattr(tokenizer, option, True)
    text = tokenizer("x", add_special_tokens=False)["input_ids"]
    assert tokenizer("x")["input_ids"] != text
    expected = [tokenizer.bos_token_id, *text] if option == "add_bos_token" else text
    assert with_tokenizer(tokenizer).encode("x") == expected


def test_a_tokenizer_that_writes_what_the_model_does_not_have_is_refused():
    model = with_tokenizer(byte_level())
    size = len(model.tokenizer)
    model.tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    assert model.encode("x")
    for prompt in (ChatPrompt("<|im_start|>user"), "x<|im_start|>"):
        with pytest.raises(InputError, match=rf"writes '<\|im_start\|>' as token {size}, but the model has"):
            model.encode(prompt)


@pytest.mark.parametrize("single", ["<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<s>x", ["<s>", "x"]),  # the text has its BOS already
        ("</s>x", ["<s>", "</s>", "x"]),  # another special token is none
        ("x</s>", ["<s>", "x", "</s>"]),  # what the text itself says is not taken away
        ("x<s>", ["<s>", "x", "<s>"]),
        ("<s><s>x", ["<s>", "<s>", "x"]),
    ],
)
def test_special_tokens_in_the_text_of_a_plain_prompt(single, prompt, expected):
    model = with_tokenizer(framed(byte_level(), single))
    assert model.tokenizer.convert_ids_to_tokens(model.encode(prompt)) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [("no/such/model", "none of these"), ("absent.gguf", "no file absent.gguf"), ("what is this?", "none of these")],
)
def test_names_that_cannot_be_models(name, message):
    with pytest.raises(InputError, match=message):
        check_model_name(ModelConfig(name=name))
    check_model_name(ModelConfig(name="Qwen/Qwen2.5-7B"))
    check_model_name(ModelConfig(name="gpt2"))


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json|has none"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="Could not load the model"):
        load_model(str(tmp_path))


def test_an_absent_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="finds no CUDA device"):
        load_model(ModelConfig(device="cuda"))


def test_a_model_without_an_end_is_refused(embedded, tmp_path):
    copy = tmp_path / "endless"
    shutil.copytree(embedded_path("model"), copy)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        content = json.loads((copy / name).read_text())
        # An absent key would mean the architecture's default.
        content |= {key: None for key in ("eos_token_id", "eos_token") if key in content}
        (copy / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match="no EOS token"):
        load_model(str(copy))


@pytest.mark.skipif("DPS_TEST_GGUF" not in os.environ, reason="DPS_TEST_GGUF names no GGUF file")
def test_a_gguf_file_loads():
    model = load_model(os.environ["DPS_TEST_GGUF"])
    assert model.num_layers > 0
    assert model.encode("hello")
