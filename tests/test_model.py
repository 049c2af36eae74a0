"""Loading models: names, EOS sets, identity, prompts, GGUF and folders."""

import dataclasses
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser

from dps.api import answer
from dps.chat import ChatPrompt
from dps.errors import InputError
from dps.model import LanguageModel, load_model
from dps.model_config import EMBEDDED, ModelConfig, check_model_name, embedded_path
from dps.sampler.settings import SamplerConfig

from .sampler.models import tiny_model
from .tokenizer_kinds import ALL, TEXTS, byte_level, framed, llama2, unigram, word_piece


@pytest.fixture(scope="module")
def embedded():
    return load_model(EMBEDDED)


def with_tokenizer(tokenizer, **names):
    model = tiny_model(vocabulary=len(tokenizer), eos=tokenizer.eos_token_id)
    return dataclasses.replace(model, tokenizer=tokenizer, **names)


def edited(tmp_path, **changes):
    """A copy of the embedded model with other settings in its files."""
    copy = tmp_path / "edited"
    shutil.copytree(embedded_path("model"), copy)
    for name, values in changes.items():
        path = copy / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return copy


def test_embedded_model_has_a_layer_11_and_stays_small(embedded):
    assert embedded.num_layers >= 12
    assert sum(path.stat().st_size for path in embedded_path("model").glob("*.safetensors")) <= 8_000_000
    assert sum(p.stat().st_size for p in embedded_path("embedder").rglob("*") if p.is_file()) <= 1_000_000
    assert embedded.model.dtype == torch.float32


def test_identity_is_of_weights_and_architecture_wherever_they_lie(embedded, tmp_path):
    moved = load_model(str(edited(tmp_path / "a")))
    assert moved.fingerprint == embedded.fingerprint
    assert moved.encode("Q: 1+1\nA: ") == embedded.encode("Q: 1+1\nA: ")
    other = edited(tmp_path / "b", config={"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}})
    assert load_model(str(other)).fingerprint != embedded.fingerprint
    assert tiny_model(seed=0).fingerprint == tiny_model(seed=0).fingerprint != tiny_model(seed=1).fingerprint


# -- tokens that end a response ----------------------------------------------------------------------------------------


def with_eos(value, where="generation_config"):
    """A model with 12 tokens, whose config names token 0."""
    model = tiny_model(vocabulary=12, eos=0)
    if where == "tokenizer":
        return dataclasses.replace(model, tokenizer=SimpleNamespace(eos_token_id=value))
    getattr(model.model, where).eos_token_id = value
    return model


def test_eos_is_the_union_of_what_model_generation_and_tokenizer_name():
    model = dataclasses.replace(with_eos([3, 4]), tokenizer=SimpleNamespace(eos_token_id=7))
    assert model.eos_ids == (0, 3, 4, 7)


@pytest.mark.parametrize("where", ["generation_config", "tokenizer"])
def test_what_an_eos_set_may_name(where):
    for value in (None, -1, [], [None], [-1], [0, None], (0, -1), [-12], [-(2**40)]):
        assert with_eos(value, where).eos_ids == (0,), value
    for value in (12, [12], [3, 12, None], 99999, [2**40]):
        with pytest.warns(UserWarning, match=r"names the EOS token \d+, but the model has only 12 tokens: it is left"):
            assert with_eos(value, where).eos_ids in ((0,), (0, 3))
    for value in ("2", "</s>", ["</s>"], [2, "3"], [[2]], [2, [3]], True, [True], 2.0, [2.0], {"a": 1}):
        with pytest.raises(InputError, match=r"Expected eos_token_id in .* to be token ids, got [^\n]*$"):
            with_eos(value, where).check()


@pytest.mark.parametrize("value", [-1, [-1, -2], None])
def test_an_eos_set_with_nothing_left_is_refused(value):
    model = with_eos(value, "config")
    model.model.generation_config.eos_token_id = None
    with pytest.raises(InputError, match=r"names no EOS token, .*: set model.eos"):
        model.check()


def test_the_end_that_a_models_files_name(tmp_path):
    two = edited(tmp_path / "two", generation_config={"eos_token_id": [2, None]})
    assert load_model(str(two)).eos_ids == (1, 2)
    nothing = {"eos_token_id": None}  # an absent key would mean the architecture's default
    endless = edited(tmp_path, config=nothing, generation_config=nothing, tokenizer_config={"eos_token": None})
    with pytest.raises(InputError, match="no EOS token"):
        load_model(str(endless))


def test_more_eos_tokens_can_be_named_by_text_and_id(embedded):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ModelConfig, "model")
    pad = embedded.tokenizer.pad_token
    config = parser.instantiate_classes(parser.parse_args([f'--model.eos=["{pad}", 5, "+"]'])).model
    assert config.eos == (pad, 5, "+")
    more = load_model(config)
    assert set(more.eos_ids) == {1, 0, 5, embedded.tokenizer.convert_tokens_to_ids("+")}
    assert more.identity(11)["eos_ids"] == list(more.eos_ids)
    line = with_tokenizer(byte_level(), more_eos=("\n", "</s>"))  # named by another sign in the vocabulary
    assert line.tokenizer("\n")["input_ids"][0] in line.eos_ids
    for token in ("<|im_end|>", "++", "", 98, -1, 10**9, "€"):
        with pytest.raises(InputError, match=r"in model.eos, as texts or ids from 0 to 97, but .* is none"):
            dataclasses.replace(embedded, more_eos=(token,)).check()


# -- prompts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "single", ["$A", "<s> $A", "<s> $A </s>", "$A </s>", "<s> <unk> $A", "<s> $A <unk> </s>", "</s> $A"]
)
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
    assert with_tokenizer(tokenizer).encode("x") == [tokenizer.bos_token_id] * (option == "add_bos_token") + text


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
        ("<s>x", "<s> x"),  # the text has its BOS already
        ("</s>x", "<s> </s> x"),  # another special token is none
        ("x</s>", "<s> x </s>"),  # what the text itself says is not taken away
        ("x<s>", "<s> x <s>"),
        ("<s><s>x", "<s> <s> x"),
    ],
)
def test_special_tokens_in_the_text_of_a_plain_prompt(single, prompt, expected):
    model = with_tokenizer(framed(byte_level(), single))
    assert model.tokenizer.convert_ids_to_tokens(model.encode(prompt)) == expected.split()


def one_by_one(tokenizer, prompt):
    """A prompt's tokens by two calls of the tokenizer, one with special tokens and one without."""
    tokens = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokens if isinstance(prompt, ChatPrompt) else tokenizer(prompt, add_special_tokens=True)["input_ids"]
    starts = range(len(whole) - len(tokens) + 1)
    start = next((start for start in starts if whole[start : start + len(tokens)] == tokens), 0)
    return tokens if tokens[:start] == whole[:start] else whole[:start] + tokens


@pytest.mark.parametrize("single", ["$A", "<s> $A </s>", "<s> <unk> $A", "</s> $A"])
@pytest.mark.parametrize("kind", ALL)
def test_many_prompts_have_the_tokens_that_each_has_alone(kind, single, monkeypatch):
    monkeypatch.setattr("dps.model._BATCH", 5)
    tokenizer = framed(ALL[kind](), single)
    texts = [*TEXTS, "", " ", "x", "<s>", "<s><s>", "<s>x", "<unk>", "<unk><unk>", "x</s>", "</s>x<s>", "return" * 9]
    prompts = [*texts, *map(ChatPrompt, texts), *texts]
    expected = [one_by_one(tokenizer, prompt) for prompt in prompts]
    model = with_tokenizer(tokenizer)
    assert model.encode_all(prompts) == expected == [model.encode(prompt) for prompt in prompts]
    slow = dataclasses.replace(model, tokenizer=lambda *given, **options: tokenizer(*given, **options))
    assert slow.encode_all(prompts) == expected
    assert model.encode_all([]) == []


# -- what cannot be loaded ---------------------------------------------------------------------------------------------


def test_a_model_is_given_by_path_or_in_memory_and_shown_in_a_line(embedded):
    assert repr(embedded) == "LanguageModel(embedded: LlamaForCausalLM, 12 layers, 1.2 M weights, torch.float32, cpu)"
    settings = {"k": 1, "sampler": SamplerConfig(block_size=4, max_new_tokens=4, num_mh_steps=0), "style": "arithmetic"}
    mine = LanguageModel(embedded.model, embedded.tokenizer, "mine")
    [[first], [second]] = [answer("1+2", model, **settings) for model in (embedded_path("model"), mine)]
    assert first.trajectories[0].text == second.trajectories[0].text
    with pytest.raises(InputError, match=r"got LlamaForCausalLM: .* dps.LanguageModel\(model, tokenizer, name\)"):
        answer("1+2", embedded.model)


def test_names_that_cannot_be_models(tmp_path):
    for name, message in [
        ("no/such/model", "none of these"),
        ("absent.gguf", "no file absent.gguf"),
        ("what is this?", "none of these"),
        (str(tmp_path), "has none"),
    ]:
        with pytest.raises(InputError, match=message):
            check_model_name(ModelConfig(name=name))
    for name in ("Qwen/Qwen2.5-7B", "gpt2"):
        check_model_name(ModelConfig(name=name))


def test_what_a_model_folder_lacks_is_said_before_anything_loads(tmp_path):
    def refused(match, **files):
        for name, text in files.items():
            (tmp_path / name.replace("__", ".")).write_text(text)
        with pytest.raises(InputError, match=match):
            check_model_name(ModelConfig(name=str(tmp_path)))

    refused(r"has none: .* such as .*/some\.gguf", some__gguf="")
    refused(r"Expected weights \(model.safetensors\)", config__json="{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}
    refused(r"model-1.safetensors is missing and 1 others", **{"model.safetensors.index__json": json.dumps(index)})
    (tmp_path / "model-1.safetensors").touch()
    refused(r"model-2.safetensors is missing: copy")
    (tmp_path / "model-2.safetensors").touch()
    refused(r"Expected a tokenizer \(tokenizer.json\)", tokenizer_config__json="{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    check_model_name(ModelConfig(name=str(tmp_path)))
    refused(r"an adapter .*merge_and_unload", adapter_config__json="{}")  # else the adapter would be left out


def test_weights_that_are_cut_short_are_said(embedded, tmp_path):
    embedded.model.save_pretrained(tmp_path)
    embedded.tokenizer.save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match=r"Could not load the model .* cut short or damaged"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(("device", "there"), [("cuda", False), ("cuda:99", torch.cuda.is_available())])
def test_an_absent_gpu_is_said(device, there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    with pytest.raises(InputError, match=r"PyTorch finds (no CUDA device|\d+ CUDA devices)"):
        load_model(ModelConfig(device=device))


@pytest.mark.skipif("DPS_TEST_GGUF" not in os.environ, reason="DPS_TEST_GGUF names no GGUF file")
def test_a_gguf_file_loads():
    model = load_model(os.environ["DPS_TEST_GGUF"])
    assert model.num_layers > 0
    assert model.encode("hello")
