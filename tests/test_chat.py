"""Chat templates: what they make of a question, and the token that ends a turn."""

import json
import pickle
from pathlib import Path

import pytest

from dps.benchmarks.given import given
from dps.chat import ChatPrompt, end_of_turn, render_chat
from dps.errors import InputError
from dps.run.worker import warn_of_endless_turns

from .test_model import with_tokenizer
from .tokenizer_kinds import byte_level, framed, llama2, metaspace

CASES = json.loads(Path(__file__).with_name("chat_templates.json").read_text())
TEMPLATES = CASES["templates"]
CHATML, LLAMA2 = TEMPLATES["none"], TEMPLATES["bos variable"]


def chat_tokenizer(template, make=byte_level, single="<s> $A </s>"):
    tokenizer = framed(make(), single)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("make", [byte_level, llama2, lambda: metaspace("first")])
@pytest.mark.parametrize("single", ["<s> $A", "<s> $A </s>", "$A"])
def test_a_chat_prompt_has_the_tokens_that_transformers_gives_it(name, make, single):
    tokenizer = chat_tokenizer(TEMPLATES[name], make, single)
    messages = [{"role": "user", "content": "Problem: x"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)["input_ids"]
    assert with_tokenizer(tokenizer).encode(render_chat(tokenizer, "Problem: x")) == expected
    assert expected.count(tokenizer.bos_token_id) == ("bos" in name)


def test_a_chat_prompt_stays_one_on_its_way_to_a_worker():
    prompt = pickle.loads(pickle.dumps(render_chat(chat_tokenizer(CHATML), "x")))
    assert (type(prompt), prompt) == (ChatPrompt, "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(("template", "message"), CASES["broken"])
def test_templates_that_make_no_prompt_of_a_question_are_one_sentence(template, message):
    with pytest.raises(InputError, match=message) as caught:
        render_chat(chat_tokenizer(template), "Problem: how many are left?\nOf two.")
    assert "\n" not in str(caught.value)
    assert "set benchmark.prompt to plain" in str(caught.value)


@pytest.mark.parametrize("template", CASES["usable"])
def test_templates_may_choose_spaces_and_names(template):
    assert "Two lines" in " ".join(render_chat(chat_tokenizer(template), " Two lines \n and spaces. ").split())


@pytest.mark.parametrize(("template", "expected"), CASES["turns"])
def test_the_token_that_ends_a_turn(template, expected):
    tokenizer = chat_tokenizer(template)
    number = end_of_turn(tokenizer)
    assert (number if number is None else tokenizer.convert_ids_to_tokens(number)) == expected


def test_a_turn_whose_end_would_not_end_a_response_is_said(recwarn):
    model = with_tokenizer(chat_tokenizer(CHATML))
    chat, plain = (given(prompt=prompt) for prompt in ("auto", "plain"))
    number = model.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for quiet, benchmark in [
        (model, plain),
        (with_tokenizer(model.tokenizer, more_eos=("<|im_end|>",)), chat),
        (with_tokenizer(model.tokenizer, more_eos=(number,)), chat),
        (with_tokenizer(chat_tokenizer(LLAMA2)), chat),
    ]:
        warn_of_endless_turns(quiet, benchmark)
    assert not recwarn
    with pytest.warns(UserWarning, match=rf"ends an answer by <\|im_end\|> \(token {number}\).*--model.eos="):
        warn_of_endless_turns(model, chat)
