"""Prompt and response together are the text that the model wrote, and stop strings see the same text."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import AddedToken

from dps.benchmarks.thinking import answer_part
from dps.errors import InputError
from dps.sampler.stop import token_bytes
from dps.text import AddedText

from .tokenizer_kinds import ALL, EXACT, TEXTS, byte_level, gemma, llama2, metaspace, word_piece, wrapped


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("text", TEXTS)
def test_prompt_and_response_are_the_whole_text_wherever_it_is_split(kind, text):
    tokenizer = EXACT[kind](clean_up_tokenization_spaces=True)
    decode = AddedText(tokenizer)
    ids = ids_of(tokenizer, text)
    whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert whole.strip() == text.strip()
    for at in range(1, len(ids)):
        prompt = tokenizer.decode(ids[:at], clean_up_tokenization_spaces=False)
        if "\ufffd" not in prompt:  # a prompt ends with a whole letter
            assert prompt + decode(ids[at:]) == whole


@pytest.mark.parametrize("kind", ALL)
def test_a_response_is_decoded_as_behind_any_prompt(kind):
    tokenizer = ALL[kind]()
    decode = AddedText(tokenizer)
    pieces = token_bytes(tokenizer, len(tokenizer))
    whole = [i for i in range(len(tokenizer)) if pieces[i] and pieces[i][0] < 0x80 and _is_text(pieces[i])]
    prompt = ids_of(tokenizer, "Problem: x")
    rng = np.random.default_rng(1)
    for _ in range(50):
        response = rng.choice(whole, 9).tolist()
        together = tokenizer.decode([*prompt, *response], clean_up_tokenization_spaces=False)
        assert tokenizer.decode(prompt, clean_up_tokenization_spaces=False) + decode(response) == together
        assert b"".join(pieces[i] for i in response).decode() == decode(response)


def _is_text(piece):
    return "\ufffd" not in piece.decode(errors="replace")


@pytest.mark.parametrize("make", [llama2, lambda: metaspace("always"), lambda: metaspace("first"), gemma, byte_level])
@pytest.mark.parametrize("response", ["    return x", " x", "  two", "\n    return x\n", "return"])
def test_leading_spaces_of_a_response_are_kept(make, response):
    tokenizer = make()
    ids = ids_of(tokenizer, f"f(x):{response}")
    names = tokenizer.convert_ids_to_tokens(ids)
    first = max(i for i, name in enumerate(names) if name.endswith(":")) + 1
    assert AddedText(tokenizer)(ids[first:]) == response


def test_special_tokens_and_bytes_that_are_no_text():
    tokenizer = llama2()
    decode = AddedText(tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids_of(tokenizer, "x</s>"))[-1] == "</s>"
    word, letter = tokenizer.convert_tokens_to_ids(["▁return", "▁x"])
    assert decode([word, tokenizer.eos_token_id]) == decode([tokenizer.bos_token_id, word]) == " return"
    assert decode([]) == decode([tokenizer.eos_token_id]) == ""
    smile = ids_of(tokenizer, "🙂")[-4:]
    assert tokenizer.convert_ids_to_tokens(smile) == [f"<0x{byte:02X}>" for byte in "🙂".encode()]
    assert decode([letter, *smile, letter]) == " x🙂 x"
    assert decode(smile[1:]) == "\ufffd" * 3  # a prompt that ends with the first byte cannot be
    assert decode([letter, *smile[:2]]).startswith(" x\ufffd")


def test_clean_up_is_off():
    tokenizer = word_piece(clean_up_tokenization_spaces=True)
    assert AddedText(tokenizer)(ids_of(tokenizer, "isn ' t it ? 3 , 4")) == " isn ' t it ? 3 , 4"


def test_a_tokenizer_without_letters_still_decodes():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "+": 1, "-": 2}, unk_token="<unk>"))
    backend.decoder = decoders.Fuse()
    assert AddedText(wrapped(backend))([1, 2, 1]) == "+-+"


def test_stop_strings_are_refused_where_a_token_adds_other_text_beside_other_neighbours():
    names = ["<unk>", "a", "b", "a</w>", "b</w>"]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], end_of_word_suffix="</w>"))
    backend.decoder = decoders.BPEDecoder("</w>")
    with pytest.raises(InputError, match=r"joins neighbours in a way of its own: set benchmark.stop to \[\]"):
        token_bytes(wrapped(backend), 5)


@pytest.mark.parametrize(
    ("opened", "closed"),
    [("[THINK]", "[/THINK]"), ("<|START_THINKING|>", "<|END_THINKING|>"), ("<think>", "</think>")],
)
@pytest.mark.parametrize("special", [True, False])
def test_marks_of_thinking_are_shown_though_they_are_special_tokens(opened, closed, special):
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken(mark, special=special) for mark in (opened, closed)])
    text = AddedText(tokenizer)
    one, two = (tokenizer.convert_tokens_to_ids(mark) for mark in (opened, closed))
    thought, said = ids_of(tokenizer, "x"), ids_of(tokenizer, "\n    return")
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    assert text([one, *thought, two, *said, *end]) == f"{opened}x{closed}\n    return"
    assert text([*thought, *end]) == "x"
    assert answer_part(text([one, *thought, two, *said, *end])) == "\n    return"
    assert answer_part(text([one, *thought])) is None
