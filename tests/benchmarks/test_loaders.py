"""Benchmarks: which questions they have, how they are put to a model, and what a user is told of bad settings."""

import hashlib
import importlib.util
import json
import pickle
import subprocess
import sys
import types

import huggingface_hub
import huggingface_hub.errors as hub_errors
import pandas
import pytest

from dps.benchmarks import BenchmarkConfig, Item, grader_of, load_benchmark
from dps.benchmarks.arithmetic import generate_problems
from dps.benchmarks.download import chosen, download, listing
from dps.benchmarks.grading import read
from dps.benchmarks.mathematics import parse_number
from dps.benchmarks.sources import SOURCES, may_be_shown
from dps.errors import InputError
from tests.benchmarks.data import Base, Instruct, cases, load, slice_path

CASES = cases("loaders")
CHOICES = {"Correct Answer": "right", "Incorrect Answer 1": "a", "Incorrect Answer 2": "b", "Incorrect Answer 3": "c"}
GSM8K = [
    {"question": "How many?", "answer": "First 3 + 4 = <<3+4=7>>7.\nThen 2 * 7 = 14.\n#### 1,014"},
    {"question": "How much?", "answer": "It costs $5.\n#### $5.00"},
]


def write(path, records):
    path.write_text(json.dumps(records))
    return path


@pytest.fixture
def own_file(tmp_path):
    """Five questions with numbers as answers."""
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"What is {i} + {i}?", "answer": 2 * i}) for i in range(5)))
    return path


def test_arithmetic_items_are_the_generators_problems():
    benchmark = load("arithmetic", split="train", seed=3, limit=12, offset=4)
    problems = generate_problems("train", 16, 3)[4:]
    assert [(i.question, i.gold, i.metadata) for i in benchmark.items] == [
        (p.question, p.answer, {"kind": p.kind, "level": p.level}) for p in problems
    ]
    assert [i.question_id for i in benchmark.items] == [f"arithmetic-train-3-{n:05d}" for n in range(4, 16)]
    assert load("arithmetic", limit=5).identity() == load("arithmetic", limit=5, seed=0).identity()
    assert len(load("arithmetic").items) == 1000
    assert load("arithmetic", limit=5, seed=1).items != load("arithmetic", limit=5).items


def test_a_larger_limit_adds_questions_and_changes_none(own_file):
    for settings in ({"name": "arithmetic"}, {"name": "jsonl", "path": own_file, "seed": 5}):
        small, large = load(limit=2, **settings), load(limit=4, **settings)
        assert large.items[:2] == small.items
        assert load(limit=3, offset=1, **settings).items == large.items[1:4]
        assert load(limit=3, offset=1, **settings).identity() == small.identity()


def test_shuffling_permutes_and_keeps_ids(own_file):
    plain, shuffled = load("jsonl", own_file), load("jsonl", own_file, seed=1)
    assert [i.question_id for i in plain.items] == [f"own-test-{n:05d}" for n in range(5)]
    assert shuffled.items != plain.items
    assert sorted(shuffled.items, key=lambda i: i.question_id) == plain.items


def test_a_benchmark_is_loaded_once_while_the_file_stays(own_file):
    first = load("jsonl", own_file)
    assert load("jsonl", own_file) is first
    own_file.write_text(own_file.read_text().replace('"answer": 8', '"answer": 90'))
    assert load("jsonl", own_file).items[4].gold == "90"
    assert load("jsonl", own_file, stop=["a"]).config == BenchmarkConfig("jsonl", str(own_file), stop=("a",))


def test_gsm8k_of_a_local_file(tmp_path):
    path = tmp_path / "slice.jsonl"
    path.write_text("\n\n".join(map(json.dumps, GSM8K)))
    benchmark = load("gsm8k", path, split="train")
    assert benchmark.items == [
        Item("gsm8k-train-00000", "How many?", "1014", {"num_steps": 2}),
        Item("gsm8k-train-00001", "How much?", "5", {"num_steps": 1}),
    ]
    assert benchmark.render(benchmark.items[0], Base()).endswith("\n\nProblem: How many?\nSolution:")


@pytest.mark.parametrize("text", ["problem", "prompt", "question"])
@pytest.mark.parametrize("name", ["unique_id", "id"])
def test_math500_reads_both_published_forms(tmp_path, text, name):
    path = write(tmp_path / "m.json", [{text: "What is $1+1$?", "answer": "2", name: "test/algebra/1.json"}])
    [item] = load("math500", path).items
    assert item == Item("math500-test-algebra-1", "What is $1+1$?", "2", {"subject": "algebra"})


def test_math500_prompts_are_the_published_ones(tmp_path):
    path = write(tmp_path / "m.json", [{"problem": "What?", "answer": "2", "unique_id": "a"}])
    benchmark = load("math500", path)
    expected = "Can you solve the following math problem? What? Please reason step by step, and put your final answer "
    expected += "within \\boxed{}."
    assert benchmark.render(benchmark.items[0], Base()) == expected
    assert benchmark.render(benchmark.items[0], Instruct()) == f"<user>{expected}<assistant>"
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


def test_alpaca_eval_asks_each_instruction_once(tmp_path):
    records = [{"instruction": "Sing.", "dataset": "koala"}, {"instruction": "Sing."}, {"instruction": "Dance."}]
    benchmark = load("alpaca_eval", write(tmp_path / "a.json", records))
    assert [(item.question, item.gold) for item in benchmark.items] == [("Sing.", None), ("Dance.", None)]
    assert benchmark.items[0].metadata == {"dataset": "koala"}
    assert benchmark.render(benchmark.items[0], Base()) == "Sing."


@pytest.mark.parametrize(("name", "record", "message"), CASES["records"])
def test_a_record_of_something_else_is_one_sentence(tmp_path, name, record, message):
    with pytest.raises(InputError, match=f"^Entry 1 of x.json {message}"):
        load(name, write(tmp_path / "x.json", [record]))


def test_the_same_id_twice_is_refused(tmp_path):
    path = write(tmp_path / "m.json", [{"problem": text, "answer": "2", "id": "a"} for text in "xy"])
    with pytest.raises(InputError, match=r"^Entry 2 of m.json has the id 'math500-a', which entry 1 has already"):
        load("math500", path)


@pytest.mark.parametrize(
    ("name", "file", "split", "count"),
    [
        ("gsm8k", "gsm8k_train.jsonl", "train", 7473),
        ("gsm8k", "gsm8k_test_first700.jsonl", "test", 700),
        ("math500", "math500_first300.json", "test", 300),
        ("humaneval", "humaneval_first100.jsonl", "test", 100),
        ("gpqa", "gpqa_diamond_first120.jsonl", "test", 120),
        ("alpaca_eval", "alpaca_eval_first200.json", "test", 43),
    ],
)
def test_real_slices_load(name, file, split, count):
    benchmark = load(name, slice_path(file), split=split)
    assert len({item.question_id for item in benchmark.items}) == len(benchmark.items) == count
    assert grader_of(name, []) == benchmark.grader


def test_real_gsm8k_solutions_are_right_in_every_form():
    path = slice_path("gsm8k_test_first700.jsonl")
    benchmark, last_numbers = load("gsm8k", path, limit=250), 0
    answers = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    for item, answer in zip(benchmark.items, answers, strict=False):
        assert parse_number(item.gold).denominator == 1
        solution = answer.rpartition("####")[0]
        for response in (answer, f"{solution}The answer is ${item.gold}.", rf"{solution}Thus \boxed{{{item.gold}}}."):
            assert read(benchmark.grader, response, item).correct is True
        last_numbers += read(benchmark.grader, solution, item).correct
    assert last_numbers > 0.9 * len(benchmark.items)


def test_an_unknown_name_has_no_grader():
    with pytest.raises(InputError, match=r"benchmark.name to be one of"):
        grader_of("squad", [])


class Gone:
    status_code, headers, request = 403, {}, None


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("gpqa", hub_errors.GatedRepoError("gated", response=Gone()), "is a gated data set: .*hf auth login"),
        ("gsm8k", hub_errors.LocalEntryNotFoundError("x"), "could not be fetched .*set benchmark.path to"),
        ("humaneval", None, "needs pyarrow: pip install pyarrow, or set benchmark.path"),
    ],
)
def test_a_hub_that_does_not_give_is_one_sentence(monkeypatch, name, error, message):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow") if error else None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(InputError, match=message):
        load(name, split="test", offset=1)


def test_the_hub_is_read_at_a_pinned_revision(monkeypatch, tmp_path):
    asked, parquet, csv = [], tmp_path / "file.parquet", tmp_path / "gpqa_diamond.csv"
    parquet.write_bytes(b"content")
    csv.write_text(",".join(["Question", *CHOICES]) + "\nWhich?,nan,a,b,c\n")

    def fetch(repository, name, *, repo_type, revision):
        asked.append((repository, name, repo_type, revision))
        return str(csv if "gpqa" in repository else parquet)

    if importlib.util.find_spec("pyarrow") is None:  # where it is there, pandas reads texts by it
        monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(pandas, "read_parquet", lambda path: pandas.DataFrame(GSM8K))
    benchmark = load("gsm8k", split="train", limit=1)
    revision = SOURCES["gsm8k", "train"].revision
    assert asked == [("openai/gsm8k", "main/train-00000-of-00001.parquet", "dataset", revision)]
    assert [i.gold for i in benchmark.items] == ["1014"]
    assert revision in benchmark.identity()["source"]
    benchmark = load("gpqa", limit=7)
    assert "nan" in benchmark.items[0].metadata["choices"]
    assert benchmark.source == SOURCES["gpqa", "test"].source


def test_data_lists_and_downloads(monkeypatch, tmp_path, capsys):
    assert all(file.repository in listing() and file.licence in listing() for file in SOURCES.values())
    assert ([may_be_shown(name) for name in ("gpqa", "gsm8k", "jsonl")], len(chosen([]))) == ([False, True, True], 6)
    with pytest.raises(InputError, match=r"Expected names among gsm8k, .*got 'squad'"):
        chosen(["squad"])
    fetched = tmp_path / "hub.jsonl"
    fetched.write_text("content")

    def fetch(repository, name, *, repo_type, revision):
        if "gpqa" in repository:
            raise hub_errors.LocalEntryNotFoundError("offline")
        return str(fetched)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    problems = download(["math500", "gpqa", "alpaca_eval"], tmp_path / "copies")
    assert [problem.partition(" could not be fetched")[0] for problem in problems] == ["GPQA Diamond"]
    assert sorted(path.name for path in (tmp_path / "copies").iterdir()) == ["alpacaeval_20.json", "math500.jsonl"]
    assert "licence CC BY-NC 4.0" in capsys.readouterr().out


def test_prompts_follow_the_tokenizer_and_the_settings():
    benchmark = load("arithmetic", limit=1)
    item = benchmark.items[0]
    question = item.question
    assert benchmark.render(item, Base()) == f"Q: {question}\nA: "
    chat = benchmark.render(item, Instruct())
    assert chat.startswith(f"<user>Can you solve the following math problem? {question} ")
    assert chat.endswith(r"within \boxed{}.<assistant>")
    assert load("arithmetic", limit=1, prompt="plain").render(item, Instruct()).startswith("Q: ")
    assert load("arithmetic", limit=1, prompt="chat").render(item, Instruct()) == chat
    with pytest.raises(InputError, match=r"chat template .*set benchmark.prompt to plain"):
        load("arithmetic", limit=1, prompt="chat").render(item, Base())
    own = load("arithmetic", limit=1, template=r"Say \boxed{n}. {question} So:")
    assert own.render(item, Base()) == rf"Say \boxed{{n}}. {question} So:"
    assert own.render(item, Instruct()) == rf"<user>Say \boxed{{n}}. {question} So:<assistant>"
    assert benchmark.render(Item("x", "Is {question} {0}?", None), Base()) == "Q: Is {question} {0}?\nA: "


def test_identity_names_the_questions_by_content_and_not_by_folder(own_file, tmp_path):
    identity = load("jsonl", own_file, limit=3).identity()
    assert (identity["name"], identity["source"], identity["split"]) == ("jsonl", "own.jsonl", "test")
    assert identity["sha256"] == hashlib.sha256(own_file.read_bytes()).hexdigest()
    assert json.loads(json.dumps(identity)) == identity
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "own.jsonl"
    copy.write_bytes(own_file.read_bytes())
    assert load("jsonl", copy).identity() == identity
    copy.write_text(own_file.read_text().replace('"answer": 8', '"answer": 9'))
    assert load("jsonl", copy).identity() != identity


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "train"}, {"prompt": "plain"}, {"template": "{question}"}])
def test_identity_changes_with_whatever_changes_the_prompts(own_file, change):
    assert load("jsonl", own_file, limit=3).identity() != load("jsonl", own_file, limit=3, **change).identity()


def test_a_benchmark_travels_to_a_worker():
    benchmark = load("arithmetic", limit=2)
    copy = pickle.loads(pickle.dumps(benchmark))
    assert copy.items == benchmark.items
    assert copy.grader.extract("#7", None) == "7"


@pytest.mark.parametrize(("settings", "message"), CASES["settings"])
def test_bad_settings_are_one_sentence(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        load_benchmark(BenchmarkConfig(**settings))
    assert "\n" not in str(caught.value)


def test_an_offset_that_leaves_nothing(own_file):
    with pytest.raises(InputError, match=r"leave questions, but 5 of 5 are left out"):
        load("jsonl", own_file, offset=5)
    assert len(load("jsonl", own_file, offset=4).items) == 1


def test_loading_imports_nothing_heavy():
    code = (
        "import sys; from dps.benchmarks import BenchmarkConfig, grader_of, load_benchmark; "
        "load_benchmark(BenchmarkConfig(limit=3)); grader_of('math500', []); grader_of('humaneval', []); "
        "heavy = ('torch', 'sympy', 'pandas', 'transformers', 'sentence_transformers', 'rich'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
