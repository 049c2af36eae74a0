import dataclasses
import hashlib
import json
import pickle
import subprocess
import sys

import pytest
from jsonargparse import ArgumentParser, set_parsing_settings

from dps.benchmarks import Benchmark, BenchmarkConfig, Item, load_benchmark
from dps.benchmarks.arithmetic import generate_problems
from dps.errors import InputError


class NoChat:
    """A base model's tokenizer, as far as rendering goes."""

    chat_template = None


class Chat:
    """An instruct model's tokenizer: writes what it was given."""

    chat_template = "{{ messages }}"

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        assert tokenize is False
        assert add_generation_prompt is True
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


def load(**settings):
    return load_benchmark(BenchmarkConfig(**settings))


@pytest.fixture
def own_file(tmp_path):
    """Five questions with numbers as answers."""
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"What is {i} + {i}?", "answer": 2 * i}) for i in range(5)))
    return path


def test_arithmetic_items_are_the_generators_problems():
    benchmark = load(name="arithmetic", split="train", seed=3, limit=12, offset=4)
    problems = generate_problems("train", 16, 3)[4:]
    assert [i.question_id for i in benchmark.items] == [f"arithmetic-train-3-{n:05d}" for n in range(4, 16)]
    assert [i.question for i in benchmark.items] == [p.question for p in problems]
    assert [i.gold for i in benchmark.items] == [p.answer for p in problems]
    assert [i.metadata for i in benchmark.items] == [{"kind": p.kind, "level": p.level} for p in problems]


def test_a_larger_limit_adds_questions_and_changes_none(own_file):
    for settings in ({"name": "arithmetic"}, {"name": "jsonl", "path": str(own_file), "seed": 5}):
        small, large = load(limit=2, **settings), load(limit=4, **settings)
        assert large.items[:2] == small.items
        assert load(limit=3, offset=1, **settings).items == large.items[1:4]


def test_arithmetic_seed_not_set_is_seed_zero_and_1000_questions():
    assert load(limit=5).identity() == load(limit=5, seed=0).identity()
    assert len(load().items) == 1000
    assert load(limit=5, seed=1).items != load(limit=5).items


def test_questions_of_different_splits_are_different():
    train, test = ({i.question for i in load(split=s, limit=300).items} for s in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize(
    ("text", "expected"),
    [("14+23=37;#37", "37"), ("14+23=37\n#### 37.", "37"), (r"so \boxed{37}", "37"), ("14+23=37;", None), ("#", None)],
)
def test_arithmetic_extraction(text, expected):
    assert load(limit=1).grader.extract(text, None) == expected


def test_shuffling_permutes_and_keeps_ids(own_file):
    plain, shuffled = load(name="jsonl", path=str(own_file)), load(name="jsonl", path=str(own_file), seed=1)
    assert [i.question_id for i in plain.items] == [f"own-test-{n:05d}" for n in range(5)]
    assert shuffled.items != plain.items
    assert sorted(shuffled.items, key=lambda i: i.question_id) == plain.items
    assert load(name="jsonl", path=str(own_file), seed=1).items == shuffled.items


def grade(answer, gold):
    return load(limit=1).grader.grade(answer, Item("q", "?", gold))


def test_grades():
    assert grade("1,000.0", "1000") is True
    assert grade("0.5", "1/2") is True
    assert grade("7", "8") is False
    assert grade(None, "8") is False
    assert grade("7", None) is None
    assert grade(None, None) is None


def test_classes_are_numbered_by_first_appearance():
    answers = [None, "0.5", "7", "1/2", None, "paris", "Paris.", "7.00", "8"]
    assert load(limit=1).grader.classes(answers, None) == [-1, 0, 1, 0, -1, 2, 2, 1, 3]
    assert load(limit=1).grader.classes([], None) == []


def test_auto_prompt_follows_the_tokenizer():
    benchmark = load(limit=1)
    item = benchmark.items[0]
    assert benchmark.render(item, NoChat()) == f"Q: {item.question}\nA: "
    chat = benchmark.render(item, Chat())
    assert chat.startswith(f"<user>Can you solve the following math problem? {item.question} ")
    assert chat.endswith("<assistant>")
    assert r"within \boxed{}." in chat


def test_prompt_settings_decide():
    assert load(limit=1, prompt="plain").render(load(limit=1).items[0], Chat()).startswith("Q: ")
    assert load(limit=1, prompt="chat").render(load(limit=1).items[0], Chat()).startswith("<user>Can you")
    with pytest.raises(InputError, match=r"chat template .*set benchmark.prompt to plain"):
        load(limit=1, prompt="chat").render(load(limit=1).items[0], NoChat())


def test_a_template_replaces_the_prompt_of_both_kinds():
    benchmark = load(limit=1, template=r"Say \boxed{n}. {question} So:")
    question = benchmark.items[0].question
    assert benchmark.render(benchmark.items[0], NoChat()) == rf"Say \boxed{{n}}. {question} So:"
    assert benchmark.render(benchmark.items[0], Chat()) == rf"<user>Say \boxed{{n}}. {question} So:<assistant>"


def test_a_question_with_braces_is_not_a_template():
    item = Item("x", "What is {question} and {0}?", None)
    assert load(limit=1).render(item, NoChat()) == "Q: What is {question} and {0}?\nA: "


def test_a_real_chat_template():
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    )
    benchmark = load(limit=1)
    assert benchmark.render(benchmark.items[0], tokenizer).startswith("Q: ")
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    rendered = benchmark.render(benchmark.items[0], tokenizer)
    assert rendered.startswith(f"<|user|>Can you solve the following math problem? {benchmark.items[0].question}")
    assert rendered.endswith("<|assistant|>")


def test_identity_names_the_questions(own_file):
    benchmark = load(name="jsonl", path=str(own_file), limit=3)
    identity = benchmark.identity()
    assert identity["name"] == "jsonl"
    assert identity["source"] == "own.jsonl"
    assert identity["sha256"] == hashlib.sha256(own_file.read_bytes()).hexdigest()
    assert identity["split"] == "test"
    assert json.loads(json.dumps(identity)) == identity


def test_identity_stays_when_a_run_is_extended(own_file):
    for settings in ({"name": "jsonl", "path": str(own_file)}, {"name": "arithmetic", "split": "train"}):
        one = load_benchmark(BenchmarkConfig(**settings, limit=2))
        more = load_benchmark(BenchmarkConfig(**settings, limit=4, offset=1))
        assert one.identity() == more.identity()


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"split": "train"}, {"prompt": "plain"}, {"template": "{question}"}],
)
def test_identity_changes_with_whatever_changes_the_prompts(own_file, change):
    config = BenchmarkConfig(name="jsonl", path=str(own_file), limit=3)
    assert load_benchmark(config).identity() != load_benchmark(dataclasses.replace(config, **change)).identity()


def test_identity_does_not_depend_on_the_folder_but_on_the_content(own_file, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "own.jsonl"
    copy.write_bytes(own_file.read_bytes())
    first = load(name="jsonl", path=str(own_file)).identity()
    assert load(name="jsonl", path=str(copy)).identity() == first
    copy.write_text(own_file.read_text().replace('"answer": 8', '"answer": 9'))
    assert load(name="jsonl", path=str(copy)).identity() != first


def test_a_benchmark_travels_to_a_worker():
    benchmark = load(limit=2)
    copy = pickle.loads(pickle.dumps(benchmark))
    assert isinstance(copy, Benchmark)
    assert copy.items == benchmark.items
    assert copy.grader.extract("#7", None) == "7"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "validation"}, "split of arithmetic to be one of corpus, train, test, got 'validation'"),
        ({"name": "gsm8k", "split": "dev", "path": "x"}, "split of gsm8k to be one of train, test, got 'dev'"),
        ({"limit": 0}, "limit to be at least 1 or not set, got 0"),
        ({"offset": -1}, "offset to be at least 0, got -1"),
        ({"seed": -1}, "seed to be at least 0 or not set, got -1"),
        ({"template": "What is {q}?"}, r"Expected \{question\} in benchmark.template"),
        ({"path": "x.jsonl"}, "no benchmark.path, since arithmetic questions are generated"),
        ({"name": "jsonl"}, "Expected benchmark.path, the file with your questions"),
        ({"name": "gsm8k", "path": "no/such.jsonl"}, "no/such.jsonl is not there: check benchmark.path"),
        ({"name": "jsonl", "path": "."}, "is a folder"),
        ({"stop": ("x", "")}, "no empty text in benchmark.stop"),
        ({"name": "squad"}, "one of arithmetic, gsm8k, math500, .*jsonl, got 'squad'"),
    ],
)
def test_bad_settings_are_one_sentence(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        load(**settings)
    assert "\n" not in str(caught.value)


def test_an_offset_that_leaves_nothing(own_file):
    with pytest.raises(InputError, match=r"leave questions, but 5 of 5 are left out"):
        load(name="jsonl", path=str(own_file), offset=5)
    assert len(load(name="jsonl", path=str(own_file), offset=4).items) == 1


def test_the_settings_are_options_with_help():
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--benchmark", type=BenchmarkConfig, default=BenchmarkConfig())
    config = parser.instantiate_classes(parser.parse_args(["--benchmark.name=gsm8k", "--benchmark.limit=7"])).benchmark
    assert config == BenchmarkConfig(name="gsm8k", limit=7)
    text = " ".join(parser.format_help().split())
    for part in ("questions of your own", "At most this many questions", "Text with {question} in it"):
        assert part in text
    with pytest.raises(Exception, match="lmit"):
        parser.parse_args(["--benchmark.lmit=7"])


def test_loading_imports_nothing_heavy():
    code = (
        "import sys; from dps.benchmarks import BenchmarkConfig, load_benchmark; "
        "load_benchmark(BenchmarkConfig(limit=3)); import dps.embedding, dps.run.progress; "
        "print([m for m in ('torch', 'transformers', 'pandas', 'sentence_transformers', 'rich') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
