"""Loading models: names, EOS sets, identity, prompts, GGUF and folders."""

import json
import os
import shutil

import pytest
import torch

from dps.errors import InputError
from dps.model import load_model
from dps.model_config import EMBEDDED, ModelConfig, check_model_name, embedded_path

from .sampler.models import tiny_model


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


def test_eos_is_the_union_of_what_model_generation_and_tokenizer_name():
    model = tiny_model(eos=0)
    model.model.generation_config.eos_token_id = [3, 4]
    object.__setattr__(model, "tokenizer", type("T", (), {"eos_token_id": 7})())
    assert model.eos_ids == (0, 3, 4, 7)


def test_special_tokens_of_a_template_are_not_doubled():
    class Tokenizer:
        all_special_tokens = ("<s>",)

        def __call__(self, text, add_special_tokens):
            return {"input_ids": ["bos"] * add_special_tokens + ["text"]}

    model = tiny_model()
    object.__setattr__(model, "tokenizer", Tokenizer())
    assert model.encode("hello") == ["bos", "text"]
    assert model.encode("<s>user: hello") == ["text"]


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
