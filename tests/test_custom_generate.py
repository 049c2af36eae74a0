"""Power sampling by stock transformers' own ``generate``: the chains of ``dps.answer``, and what is refused."""

import gc
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor, Qwen2Config, Qwen2ForCausalLM

from dps import SamplerConfig, answer
from dps.benchmarks import Item
from dps.benchmarks.given import given
from dps.cli import run
from dps.custom_generate import generate
from dps.errors import InputError
from dps.model import LanguageModel, load_tokenizer
from dps.model_config import embedded_path

QUESTIONS = ["From left to right: 14+23*3", "From left to right: 9*9", "From left to right: 14+23*3"]
SETTINGS = {"alpha": 3.0, "block_size": 12, "num_mh_steps": 2, "k": 4, "seed": 7}


@pytest.fixture(scope="module")
def embedded():
    path = str(embedded_path("model"))
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), load_tokenizer(path, {"revision": None})


@pytest.fixture(scope="module")
def tiny():
    """Random weights, the embedded model's tokenizer."""
    tokenizer = load_tokenizer(str(embedded_path("model")), {"revision": None})
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 256}
    return Qwen2ForCausalLM(Qwen2Config(**shape, eos_token_id=tokenizer.eos_token_id)).eval(), tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "power"
    assert run(["custom-generate", f"--output={output}"]) == 0
    return str(output)


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def encoded(tokenizer, style="arithmetic", questions=QUESTIONS):
    texts = [given(style).render(Item("", question, None), tokenizer) for question in questions]
    return tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")


def by(form, model, tokenizer, folder, inputs, **options):
    """Call ``generate`` in one of its forms."""
    if form == "folder":
        how = {"custom_generate": folder, "trust_remote_code": True, "tokenizer": tokenizer}
    else:
        how = {"custom_generate": partial(generate, tokenizer=tokenizer)}
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        options = {"do_sample": True} | options  # without it transformers refuses several sequences
    return model.generate(**inputs, **how, **options)


@pytest.mark.parametrize("form", ["folder", "callable"])
@pytest.mark.parametrize("which", ["embedded", "tiny"])
def test_the_chains_are_those_of_answer(request, folder, form, which):
    model, tokenizer = request.getfixturevalue(which)
    inputs = encoded(tokenizer)
    sampler = SamplerConfig(alpha=3.0, block_size=12, num_mh_steps=2, max_new_tokens=24)
    wrapped = LanguageModel(model, tokenizer, which, None)
    records = answer(QUESTIONS, wrapped, sampler=sampler, k=4, seed=7, style="arithmetic")
    asked = {"style": "arithmetic", "max_new_tokens": 24, "return_dict_in_generate": True, "num_return_sequences": 2}
    out = by(form, model, tokenizer, folder, inputs, **SETTINGS, **asked)
    assert len(out.sequences) == 6
    for record, other in zip(records, out.records, strict=True):
        assert (other.question_id, other.answer) == (record.question_id, record.answer)
        pairs = list(zip(record.trajectories, other.trajectories, strict=True))
        assert all(one.tokens.tolist() == two.tokens.tolist() for one, two in pairs)
        assert all(one.base_logprob == two.base_logprob for one, two in pairs)
    width = inputs["input_ids"].shape[1]
    for number, row in enumerate(out.sequences):
        record = records[number // 2]
        assert row[:width].tolist() == inputs["input_ids"][number // 2].tolist()
        fits = [t for t in record.trajectories if row[width : width + len(t.tokens)].tolist() == t.tokens.tolist()]
        assert out.logprobs[number].item() in [t.base_logprob for t in fits]
        if number % 2 == 0 and record.answer is not None:
            assert record.answer in [t.answer for t in fits]
    longest = max(len(t.tokens) for record in records for t in record.trajectories)
    assert out.sequences.shape[1] <= width + longest
    if which == "tiny":
        return
    again = by(form, model, tokenizer, folder, inputs, **SETTINGS, style="arithmetic", max_new_tokens=24)
    assert torch.equal(again[:, : out.sequences.shape[1]], out.sequences[::2, : again.shape[1]])


def test_a_prompt_alone_in_a_batch_or_on_either_form_is_answered_alike(tiny, folder):
    model, tokenizer = tiny
    options = {**SETTINGS, "max_new_tokens": 24, "num_return_sequences": 4}
    together = by("folder", model, tokenizer, folder, encoded(tokenizer), **options)
    inputs = encoded(tokenizer, questions=QUESTIONS[1:2])
    pads = encoded(tokenizer)["input_ids"].shape[1] - inputs["input_ids"].shape[1]
    for form in ("folder", "callable"):
        alone = by(form, model, tokenizer, folder, inputs, **options)
        width = alone.shape[1]
        assert torch.equal(together[4:8, pads : pads + width], alone)
    out = by("folder", model, tokenizer, folder, inputs, **options, return_dict_in_generate=True)
    assert out.logprobs.tolist() == sorted(out.logprobs.tolist(), reverse=True)  # without a reader, by log p
    other = by("folder", model, tokenizer, folder, inputs, **options | {"seed": 8})
    assert other.shape != together[4:8, pads:].shape or not torch.equal(other, together[4:8, pads:])


def test_ladders_lengths_and_stop_strings_are_honoured(tiny, folder):
    model, tokenizer = tiny
    inputs = encoded(tokenizer)
    call = partial(by, "folder", model, tokenizer, folder, inputs, return_dict_in_generate=True, block_size=8)
    out = call(ladder=["plain 2", "power 1"], num_mh_steps=1, max_new_tokens=13)
    assert [[t.arm for t in record.trajectories] for record in out.records] == [["plain", "plain", "power"]] * 3
    lengths = [len(t.tokens) for record in out.records for t in record.trajectories]
    assert max(lengths) == 13
    width = inputs["input_ids"].shape[1]
    assert call(k=1, max_length=width + 5).sequences.shape[1] <= width + 5
    text = out.records[0].trajectories[0].text
    stopped = call(ladder=["plain 2", "power 1"], num_mh_steps=1, max_new_tokens=13, stop_strings=text[3])
    assert stopped.records[0].trajectories[0].ending == "stop"
    assert len(stopped.records[0].trajectories[0].tokens) < len(out.records[0].trajectories[0].tokens)


class Twice(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return 2 * scores


REFUSED = {
    "temperature": ({"temperature": 0.7}, r"temperature is not supported, got 0\.7: alpha sharpens"),
    "greedy": ({"do_sample": False}, "power sampling draws its responses"),
    "beams": ({"num_beams": 4}, "chains are no beams"),
    "top_k": ({"top_k": 50}, "top_k is not supported"),
    "penalty": ({"repetition_penalty": 1.1}, "repetition_penalty is not supported"),
    "scores": ({"output_scores": True}, "output_scores is not supported"),
    "bias": ({"sequence_bias": [[[1], 2.0]]}, "sequence_bias is not supported"),
    "time": ({"max_time": 3.0}, "max_time is not supported"),
    "object": ({"generation_config": GenerationConfig(top_p=0.9)}, "top_p is not supported"),
    "processor": ({"logits_processor": [Twice()]}, "logits_processor would change the law"),
    "criteria": ({"stopping_criteria": [lambda *given: True]}, "stopping_criteria would change"),
    "unknown": ({"alhpa": 4}, "alhpa is not supported"),
    "eos": ({"eos_token_id": 5}, r"eos_token_id is \[5\], but responses of this model also end by"),
    "too many": ({"num_return_sequences": 5}, "num_return_sequences is 5, but a prompt may get no more than 4"),
    "rule": ({"rule": "lead"}, "give style"),
    "alpha": ({"alpha": 0.5}, "alpha must be at least 1"),
    "seed": ({"seed": -1}, "Expected seed from 0"),
    "k and ladder": ({"ladder": ["plain 2"]}, "k and ladder both say"),
    "room": ({"max_new_tokens": 300}, "more than the model's 256 positions"),
    "nothing new": ({"max_new_tokens": 0}, "at least 1 new token"),
    "types": ({"token_type_ids": torch.ones(3, 1)}, "token_type_ids other than 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused(tiny, folder, name):
    model, tokenizer = tiny
    options, message = REFUSED[name]
    inputs = {**encoded(tokenizer), **({} if "token_type_ids" not in options else options)}
    options = {key: value for key, value in options.items() if key != "token_type_ids"}
    with pytest.raises(InputError, match=message):
        by("folder", model, tokenizer, folder, inputs, **{**SETTINGS, "max_new_tokens": 24, **options})


@pytest.mark.parametrize(
    "name", ["temperature", "penalty", "object", "processor", "criteria", "too many", "alpha", "seed"]
)
def test_a_callable_refuses_what_it_is_told_of(tiny, folder, name):
    model, tokenizer = tiny
    options, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        by("callable", model, tokenizer, folder, encoded(tokenizer), **{**SETTINGS, "max_new_tokens": 24, **options})


def test_what_a_model_says_of_sampling_is_not_asked_for(tiny, folder, monkeypatch):
    model, tokenizer = tiny
    options = {**SETTINGS, "max_new_tokens": 24}
    plain = by("folder", model, tokenizer, folder, encoded(tokenizer), **options)
    for name, value in {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.05, "do_sample": True}.items():
        monkeypatch.setattr(model.generation_config, name, value)
    for form in ("folder", "callable"):
        assert torch.equal(by(form, model, tokenizer, folder, encoded(tokenizer), **options), plain)


def test_other_inputs_are_refused(tiny, folder):
    model, tokenizer = tiny
    call = partial(by, "folder", model, tokenizer, folder, **SETTINGS, max_new_tokens=24)
    inputs = encoded(tokenizer)
    flipped = {name: inputs[name].flip(1) for name in ("input_ids", "attention_mask")}
    with pytest.raises(InputError, match="padded on the left"):
        call(flipped)
    with pytest.raises(InputError, match="Expected input_ids of shape"):
        call({"inputs_embeds": None})
    with pytest.raises(InputError, match="inputs_embeds is not supported"):
        call({"inputs_embeds": torch.zeros(1, 2, 32)})
    without_mask = call({"input_ids": inputs["input_ids"]})
    assert torch.equal(without_mask, call(inputs))
    with pytest.raises(InputError, match=r"call model\.eval"):
        generate(model.train(), inputs["input_ids"], tokenizer=tokenizer)
    model.eval()
    with pytest.raises(InputError, match="give tokenizer"):
        generate(model, inputs["input_ids"])


def test_the_embedded_models_tokenizer_is_read_from_its_name(embedded, folder):
    model, tokenizer = embedded
    inputs = encoded(tokenizer)
    options = {**SETTINGS, "max_new_tokens": 24}
    how = {"custom_generate": folder, "trust_remote_code": True}
    weights = sum(type(each) is type(model) for each in gc.get_objects())
    named = model.generate(**inputs, **how, **options)
    assert sum(type(each) is type(model) for each in gc.get_objects()) == weights
    assert torch.equal(named, model.generate(**inputs, **how, **options, tokenizer=tokenizer))


def test_the_folder_is_made_once(tmp_path, capsys):
    assert run(["custom-generate"]) == 2
    assert "--output" in capsys.readouterr().err
    assert run(["custom-generate", f"--output={tmp_path / 'f'}"]) == 0
    assert run(["custom-generate", f"--output={tmp_path / 'f'}"]) == 2
    assert "not there yet" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "f").rglob("*.*")) == [
        "README.md",
        "generate.py",
        "requirements.txt",
    ]
