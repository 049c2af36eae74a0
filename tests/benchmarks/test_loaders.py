import json
import subprocess
import sys

import huggingface_hub
import pytest

from dps.benchmarks import BenchmarkConfig, Item, grader_of, load_benchmark
from dps.benchmarks.download import chosen, download, listing
from dps.benchmarks.grading import ChoiceGrader, read
from dps.benchmarks.sources import SOURCES
from dps.errors import InputError
from tests.benchmarks.data import slice_path

CHOICES = {"Correct Answer": "right", "Incorrect Answer 1": "a", "Incorrect Answer 2": "b", "Incorrect Answer 3": "c"}


def write(path, records):
    path.write_text(json.dumps(records))
    return str(path)


def load(name, path, **settings):
    return load_benchmark(BenchmarkConfig(name=name, path=path, **settings))


class Base:
    chat_template = None


class Instruct:
    chat_template = "x"

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        return messages[0]["content"]


@pytest.mark.parametrize("text", ["problem", "prompt", "question"])
@pytest.mark.parametrize("name", ["unique_id", "id"])
def test_math500_reads_both_published_forms(tmp_path, text, name):
    path = write(tmp_path / "m.json", [{text: "What is $1+1$?", "answer": "2", name: "test/algebra/1.json"}])
    [item] = load("math500", path).items
    assert item == Item("math500-test-algebra-1", "What is $1+1$?", "2", {"subject": "algebra"})


def test_math500_prompts_are_the_published_ones(tmp_path):
    path = write(tmp_path / "m.json", [{"problem": "What?", "answer": "2", "unique_id": "a"}])
    benchmark = load("math500", path)
    expected = (
        "Can you solve the following math problem? What? Please reason step by step, and put your final answer within "
        "\\boxed{}."
    )
    assert benchmark.render(benchmark.items[0], Base()) == expected
    assert benchmark.render(benchmark.items[0], Instruct()) == expected
    assert benchmark.stop_strings(Base()) == ("Can you solve the following math problem?",)
    assert benchmark.stop_strings(Instruct()) == ()
    assert load("math500", path, stop=("END",)).stop_strings(Instruct()) == ("END",)
    assert load("math500", path, stop=()).stop_strings(Base()) == ()
    assert load("math500", path, template="Q {question}").stop_strings(Base()) == ()


def test_gpqa_choices_are_shuffled_by_seed_and_question_alone(tmp_path):
    records = [{"Question": f"Which is right, {i}?", **CHOICES} for i in range(200)]
    path = write(tmp_path / "g.json", records)
    benchmark = load("gpqa", path)
    for item in benchmark.items:
        assert sorted(item.metadata["choices"]) == ["a", "b", "c", "right"]
        assert item.metadata["choices"]["ABCD".index(item.gold)] == "right"
        assert f"\n{item.gold}) right" in item.question
    counts = [sum(item.gold == letter for item in benchmark.items) for letter in "ABCD"]
    assert all(abs(count - 50) < 4 * (200 * 3 / 16) ** 0.5 for count in counts)
    backwards = load("gpqa", write(tmp_path / "b.json", records[::-1]), limit=20)
    by_id = {item.question_id: item for item in benchmark.items}
    assert all(by_id[item.question_id] == item for item in backwards.items)
    other = load("gpqa", path, seed=1)
    assert {i.question_id for i in other.items} == set(by_id)
    assert sum(by_id[i.question_id].gold != i.gold for i in other.items) > 100


@pytest.mark.parametrize(
    ("text", "answer", "strict"),
    [
        (r"Because of that \boxed{B}", "B", "B"),
        (r"\boxed{A}, no: \boxed{\text{C}}.", "C", "C"),
        (r"\boxed{(D)}", "D", "D"),
        (r"\boxed{D) right}", "D", None),
        (r"\boxed{right}", "D", None),
        (r"\boxed{E}", None, None),
        (r"\boxed{AB}", None, None),
        ("The answer is (B).", "B", None),
        ("Answer: $C", "C", None),
        ("**Answer:** B", "B", None),
        ("It must be (A) or (C), so (C)", "C", None),
        ("Thinking.\nB", "B", None),
        ("The answer is hard to know.", None, None),
        ("A good question.", None, None),
        ("", None, None),
    ],
)
def test_choices_are_found(text, answer, strict):
    item = Item("q", "?", "D", {"choices": ["a", "b", "c", "right"]})
    found = read(ChoiceGrader(), text, item)
    assert (found.answer, found.strict_answer) == (answer, strict)
    assert found.correct is (answer == "D")
    assert ChoiceGrader().classes(["B", None, "C", "B"], item) == [0, -1, 1, 0]


def test_alpaca_eval_asks_each_instruction_once_and_grades_nothing(tmp_path):
    records = [{"instruction": "Sing.", "dataset": "koala"}, {"instruction": "Sing."}, {"instruction": "Dance."}]
    benchmark = load("alpaca_eval", write(tmp_path / "a.json", records))
    assert [(item.question, item.gold) for item in benchmark.items] == [("Sing.", None), ("Dance.", None)]
    assert benchmark.items[0].metadata == {"dataset": "koala"}
    assert benchmark.render(benchmark.items[0], Base()) == "Sing."
    found = read(benchmark.grader, " La la la. ", benchmark.items[0])
    assert (found.answer, found.correct) == ("La la la.", None)
    assert benchmark.grader.classes(["a", "b", "a", None], benchmark.items[0]) == [0, 1, 0, -1]


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("math500", {"problem": "x", "answer": "2"}, "has no field unique_id"),
        ("math500", {"problem": "x", "answer": 2, "id": "a"}, "should have a text as answer, but has 2"),
        ("humaneval", {"task_id": "x", "prompt": "p"}, "has no field test"),
        ("gpqa", {"Question": "x", "Correct Answer": "a"}, "has no field Incorrect Answer 1"),
        ("alpaca_eval", {"prompt": "x"}, "has no field instruction"),
    ],
)
def test_a_record_of_something_else_is_one_sentence(tmp_path, name, record, message):
    with pytest.raises(InputError, match=f"^Entry 1 of x.json {message}"):
        load(name, write(tmp_path / "x.json", [record]))


def test_real_slices_load():
    sizes = {
        "math500": ("math500_first300.json", 300),
        "humaneval": ("humaneval_first100.jsonl", 100),
        "gpqa": ("gpqa_diamond_first120.jsonl", 120),
        "alpaca_eval": ("alpaca_eval_first200.json", 43),
    }
    for name, (file, size) in sizes.items():
        benchmark = load(name, str(slice_path(file)))
        assert len({item.question_id for item in benchmark.items}) == len(benchmark.items) == size


def test_every_grader_is_that_of_its_loader(tmp_path):
    for name in ("arithmetic", "gsm8k", "math500", "humaneval", "gpqa", "alpaca_eval"):
        assert grader_of(name, []) is not None
    numeric = load("jsonl", write(tmp_path / "n.json", [{"question": "x", "answer": 2}]))
    assert grader_of("jsonl", ["2"]) == numeric.grader
    assert grader_of("jsonl", ["Paris"]) != numeric.grader
    with pytest.raises(InputError, match=r"benchmark.name to be one of"):
        grader_of("squad", [])


def test_a_gated_set_says_how_to_get_access(monkeypatch):
    class Response:
        status_code, headers, request = 403, {}, None

    def refuse(*args, **kwargs):
        raise huggingface_hub.errors.GatedRepoError("gated", response=Response())

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(InputError, match=r"GPQA Diamond is a gated data set: accept its terms .*hf auth login"):
        load_benchmark(BenchmarkConfig(name="gpqa"))


def test_a_hub_csv_is_read(monkeypatch, tmp_path):
    path = tmp_path / "gpqa_diamond.csv"
    path.write_text(
        "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\nWhich?,nan,a,b,c\n"
    )
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **kwargs: str(path))
    benchmark = load_benchmark(BenchmarkConfig(name="gpqa"))
    assert "nan" in benchmark.items[0].metadata["choices"]
    assert benchmark.source == SOURCES["gpqa", "test"].source


def test_data_lists_and_downloads(monkeypatch, tmp_path, capsys):
    assert all(file.repository in listing() and file.licence in listing() for file in SOURCES.values())
    assert [file.title for file in chosen(["math500"])] == ["MATH500"]
    assert len(chosen([])) == len(SOURCES)
    with pytest.raises(InputError, match=r"Expected names among gsm8k, .*got 'squad'"):
        chosen(["squad"])
    fetched = tmp_path / "hub.jsonl"
    fetched.write_text("content")
    asked = []

    def fetch(repository, name, *, repo_type, revision):
        asked.append((repository, revision))
        if "gpqa" in repository:
            raise huggingface_hub.errors.LocalEntryNotFoundError("offline")
        return str(fetched)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    problems = download(["math500", "gpqa", "alpaca_eval"], tmp_path / "copies")
    assert [repository for repository, _ in asked] == [
        "HuggingFaceH4/MATH-500",
        "Idavidrein/gpqa",
        "tatsu-lab/alpaca_eval",
    ]
    assert len(problems) == 1
    assert problems[0].startswith("GPQA Diamond could not be fetched")
    assert sorted(path.name for path in (tmp_path / "copies").iterdir()) == ["alpacaeval_20.json", "math500.jsonl"]
    assert "licence CC BY-NC 4.0" in capsys.readouterr().out


def test_loading_a_benchmark_of_mathematics_or_code_imports_nothing_heavy():
    code = (
        "import sys; from dps.benchmarks import grader_of; grader_of('math500', []); grader_of('humaneval', []); "
        "print([m for m in ('torch', 'sympy', 'math_verify', 'pandas', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
