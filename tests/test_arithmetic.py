"""The arithmetic task, the model and the embedder that ship with the package, and the script that made them."""

import json
import re
from functools import reduce

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from dps.benchmarks import arithmetic
from dps.benchmarks.arithmetic import KINDS, SPLITS, extract_answer, generate_problems, prompt_for, split_of
from dps.model_config import embedded_path
from scripts import train_embedded_model as script

MODEL, EMBEDDER = embedded_path("model"), embedded_path("embedder")


@pytest.fixture(scope="module")
def problems():
    return generate_problems("test", 600, seed=3)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


def left_to_right(text):
    """Evaluate without precedence, independently of the package."""
    first, *rest = re.findall(r"[+*-]?\d+", text)
    return reduce(lambda value, piece: eval(f"({value}){piece}"), rest, int(first))


def tell_story(text):
    """Follow the first person's things through the sentences of a story."""
    first, *sentences, _ = text.split(". ")
    name, value, items = re.match(r"(\w+) has (\d+) (\w+)", first).groups()
    value = int(value)
    for sentence in sentences:
        number = int(re.search(r"\d+", sentence).group())
        if "times" in sentence:
            value *= number
        elif change := re.search(r"(finds|brings|buys)|loses|gives|sells", sentence):
            value += number if change[1] else -number
        else:
            assert re.fullmatch(rf"(?!{name})\w+ has \d+ (?!{items})\w+", sentence), sentence
    return value


def shop(text):
    """Work out a purchase from its words."""
    total = sum(int(count) * int(price) for count, price in re.findall(r"(\d+) \w+ at (\d+) coins", text))
    off = re.search(r"takes (\d+) coins off", text)
    total -= int(off.group(1)) if off else 0
    paid = re.search(r"pays (\d+) coins", text)
    return int(paid.group(1)) - total if paid else total


def compare(text):
    """Work out how many two persons have together, for both ways of saying what one has."""
    name = text.split()[0]
    first = int(re.search(r"has (\d+)", text).group(1))
    number, word = re.search(r"(\d+) (times|more|fewer)", text).groups()
    sign = {"more": 1, "fewer": -1}.get(word)
    if "which is" in text:
        return first + first - sign * int(number)
    assert re.search(rf"(than|as) {name}\.", text)
    return first + (first * int(number) if sign is None else first + sign * int(number))


def largest_factor(text):
    number = int(re.search(r"\d+", text).group())
    return max(d for d in range(2, number + 1) if number % d == 0 and all(d % e for e in range(2, int(d**0.5) + 1)))


EXPECTED = {
    "chain": lambda text: left_to_right(text.removeprefix("From left to right: ")),
    "brackets": lambda text: eval(text.removeprefix("Compute ")),
    "remainder": lambda text: eval(re.sub(r"What remains of (.*) divided by (\d)\?", r"(\1)%\2", text)),
    "factor": largest_factor,
    "story": tell_story,
    "shop": shop,
    "compare": compare,
    "reversed": compare,
}


def test_answers_are_right_and_a_misreading_gives_another(problems):
    assert {problem.kind for problem in problems} == set(KINDS)
    for problem in problems:
        assert problem.answer == str(EXPECTED[problem.kind](problem.question.removeprefix(problem.tone))), problem
        assert bool(problem.misreading) == (problem.kind == "reversed")
        assert not problem.misreading or arithmetic.results_of(problem.misreading)[-1] != int(problem.answer)


def test_the_same_seed_gives_the_same_problems(problems):
    assert generate_problems("test", 600, seed=3) == problems
    assert generate_problems("test", 50, seed=3) == problems[:50]
    other = {problem.question for problem in generate_problems("test", 600, seed=4)}
    assert len(other & {problem.question for problem in problems}) < 30


def test_splits_never_share_a_question(problems):
    drawn = {split: {p.question for p in generate_problems(split, 1500, seed=0)} for split in SPLITS}
    for split, questions in drawn.items():
        assert len(questions) == 1500
        assert {split_of(question) for question in questions} == {split}
    for problem in problems[:100]:  # the tone does not move a question to another split
        assert {split_of(tone + problem.question.removeprefix(problem.tone)) for tone in arithmetic.TONES} == {"test"}
    with pytest.raises(ValueError, match="corpus, train, test, got 'validation'"):
        generate_problems("validation", 1, seed=0)


def test_difficulty_is_not_length(problems):
    lengths = [len(problem.question) for problem in problems]
    assert {problem.level for problem in problems} == {1, 2, 3, 4, 5}
    assert abs(np.corrcoef(lengths, [problem.level for problem in problems])[0, 1]) < 0.25


def test_an_answer_stands_behind_the_last_sign():
    texts = ["14+23=37;37*3=111;#111", "#007", "#-12 ", "#1;#2", "14+23=37", "#", "#12;3", ""]
    assert [extract_answer(text) for text in texts] == ["111", "7", "-12", "2", None, None, None, None]


def test_each_response_sees_the_prompt_and_itself_alone():
    """Both responses of a row get the logits that they get alone."""
    model = script.build_model(16, seed=1, num_layers=2, hidden_size=48).eval()
    rows = [script.Row([3, 4, 5], [6, 7, 8, 1], [9, 1], 0.4), script.Row([3, 5], [6, 1], [9, 10, 1], 0.7)]
    group = script.lay_out(rows)
    tokens, positions, mask = map(torch.from_numpy, (group.tokens, group.positions, group.mask))
    logits = model(input_ids=tokens, position_ids=positions, attention_mask=mask).logits.flatten(0, 1)
    start = 0
    for row in rows:
        for response, share in ((row.careful, row.careful_share), (row.hasty, 1 - row.careful_share)):
            alone = model(input_ids=torch.tensor([row.prompt + response])).logits[0, len(row.prompt) - 1 : -1]
            part = slice(start, start + len(response))
            torch.testing.assert_close(logits[group.predictors[part]], alone, atol=1e-5, rtol=1e-5)
            assert group.targets[part].tolist() == response
            assert group.weights[part] == pytest.approx([share] * len(response))
            start += len(response)
    assert start == len(group.targets)


def test_the_corpus_is_of_its_split_and_the_same_however_it_is_made(tokenizer):
    tokenizer_json = tokenizer.backend_tokenizer.to_str()
    rows = script.corpus_chunk(5, seed=0, size=300, tokenizer_json=tokenizer_json)
    for row in rows:
        question = re.fullmatch(r"Q: (.*)\nA: ", tokenizer.decode(row.prompt)).group(1)
        assert split_of(question) == "corpus"
        assert tokenizer.unk_token_id not in row.prompt + row.careful + row.hasty
        assert row.careful[-1] == row.hasty[-1] == tokenizer.eos_token_id
    assert script.corpus_chunk(5, seed=0, size=300, tokenizer_json=tokenizer_json) == rows
    assert script.corpus_chunk(5, seed=1, size=300, tokenizer_json=tokenizer_json) != rows
    settings = {"seed": 1, "num_steps": 3, "batch_size": 4, "tokenizer_json": tokenizer_json}
    assert list(script.batches(num_workers=2, **settings)) == list(script.batches(num_workers=0, **settings))


def test_tokenizer_round_trips(tokenizer, problems):
    for problem in problems:
        text = prompt_for(problem.question) + "14+23=37;37%5=2;7-9=-2;#-2"
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == text
    assert [tokenizer.decode([i]) for i in tokenizer("14+2")["input_ids"]] == ["1", "4", "+", "2"]
    assert tokenizer("14+2" + tokenizer.eos_token)["input_ids"][-1] == tokenizer.eos_token_id
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}) == 3


def test_the_model_that_ships(tokenizer, problems):
    """It is right on most steps that it is led into: the greedy way on from a first step's left side."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    right = 0
    for problem in [p for p in problems if p.kind in ("chain", "compare", "shop")][:40]:
        step, result = problem.steps[0], arithmetic.results_of(problem.steps)[0]
        prompt = f"{prompt_for(problem.question)}{step.left}{step.op}{step.right}="
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
        right += tokenizer.decode(out[0, ids.shape[1] :]).startswith(f"{result};")
    assert right >= 32


def test_the_embedder_that_ships(problems):
    """A question's nearest neighbour is nearly always of its own kind."""
    vectors = SentenceTransformer(str(EMBEDDER), device="cpu").encode([p.question for p in problems] + ["What?", ""])
    assert np.isfinite(vectors).all()
    unit = vectors[:-2] / np.linalg.norm(vectors[:-2], axis=1, keepdims=True)
    nearest = (unit @ unit.T - 2 * np.eye(len(unit))).argmax(axis=1)
    kinds = np.array([p.kind for p in problems])
    assert (kinds[nearest] == kinds).mean() > 0.9


@pytest.mark.slow
def test_training_is_reproducible(tmp_path):
    command = "--steps 3 --batch-size 6 --group-size 4 --layers 2 --hidden 48 --workers 0 --device cpu --log-every 1"
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        script.main([*command.split(), "--seed", seed, "--out", str(tmp_path / name)])
    a, b, c = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    assert json.loads((tmp_path / "a" / "model" / "config.json").read_text())["num_hidden_layers"] == 2
    assert "--seed 5 --steps 3" in (tmp_path / "a" / "model" / "README.md").read_text()
    assert (tmp_path / "a" / "embedder" / "modules.json").is_file()
