import json
import sys
import types

import pytest

from dps.benchmarks import BenchmarkConfig, load_benchmark
from dps.benchmarks.answers import parse_number
from dps.benchmarks.grading import read
from dps.benchmarks.sources import SOURCES
from dps.errors import InputError
from tests.benchmarks.data import slice_path

ROWS = [
    {"question": "How many?", "answer": "First 3 + 4 = <<3+4=7>>7.\nThen 2 * 7 = 14.\n#### 1,014"},
    {"question": "How much?", "answer": "It costs $5.\n#### $5.00"},
]


class NoChat:
    chat_template = None


def load(**settings):
    return load_benchmark(BenchmarkConfig(name="gsm8k", **settings))


def test_a_local_file(tmp_path):
    path = tmp_path / "slice.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    benchmark = load(path=str(path), split="train")
    assert [i.question_id for i in benchmark.items] == ["gsm8k-train-00000", "gsm8k-train-00001"]
    assert [i.gold for i in benchmark.items] == ["1014", "5"]
    assert [i.metadata for i in benchmark.items] == [{"num_steps": 2}, {"num_steps": 1}]
    prompt = benchmark.render(benchmark.items[0], NoChat())
    assert prompt.endswith("\n\nProblem: How many?\nSolution:")
    assert benchmark.grader.extract("It is 1014.\n#### 1014\n\nProblem: ...", benchmark.items[0]) == "1014"


@pytest.mark.parametrize("answer", ["14", "#### many", "####", None])
def test_an_answer_without_a_number_names_the_line(tmp_path, answer):
    path = tmp_path / "slice.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps({"question": "a", "answer": answer}))
    with pytest.raises(InputError, match=r"^Line 2 of slice.jsonl has no number after #### in its answer"):
        load(path=str(path))


def test_a_record_without_an_answer_names_the_field(tmp_path):
    path = tmp_path / "slice.jsonl"
    path.write_text(json.dumps({"question": "a"}))
    with pytest.raises(InputError, match=r"^Line 1 of slice.jsonl has no field answer, only: question"):
        load(path=str(path))


@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 700)])
def test_the_real_questions(split, count):
    path = slice_path("gsm8k_train.jsonl" if split == "train" else "gsm8k_test_first700.jsonl")
    benchmark = load(path=str(path), split=split)
    assert len(benchmark.items) == count
    with path.open(encoding="utf-8") as lines:
        answers = [json.loads(line)["answer"] for line in lines]
    for item, answer in zip(benchmark.items, answers, strict=True):
        assert parse_number(item.gold).denominator == 1
        solution = answer.rpartition("####")[0]
        # The human solution as a response, in each of the forms that a model may choose.
        for response in (answer, f"{solution}The answer is ${item.gold}.", rf"{solution}Thus \boxed{{{item.gold}}}."):
            assert read(benchmark.grader, response, item).correct is True


def test_the_last_number_of_a_real_solution_is_nearly_always_its_answer():
    benchmark = load(path=str(slice_path("gsm8k_test_first700.jsonl")))
    with slice_path("gsm8k_test_first700.jsonl").open(encoding="utf-8") as lines:
        solutions = [json.loads(line)["answer"].rpartition("####")[0] for line in lines]
    right = sum(read(benchmark.grader, s, i).correct for s, i in zip(solutions, benchmark.items, strict=True))
    assert right / len(solutions) > 0.9


def test_real_questions_never_meet_between_splits():
    train = load(path=str(slice_path("gsm8k_train.jsonl")), split="train")
    test = load(path=str(slice_path("gsm8k_test_first700.jsonl")))
    assert not {i.question for i in train.items} & {i.question for i in test.items}
    assert not {i.question_id for i in train.items} & {i.question_id for i in test.items}


def test_a_real_list_with_other_fields_is_told_what_it_lacks():
    with pytest.raises(
        InputError, match=r"Entry 1 of math500_first300.json has no field question, only: prompt, answer"
    ):
        load(path=str(slice_path("math500_first300.json")))


def test_the_hub_is_read_at_a_pinned_revision(monkeypatch, tmp_path):
    import huggingface_hub
    import pandas

    asked = []

    def download(repository, name, *, repo_type, revision):
        asked.append((repository, name, repo_type, revision))
        (tmp_path / "file.parquet").write_bytes(b"content")
        return str(tmp_path / "file.parquet")

    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(pandas, "read_parquet", lambda path: pandas.DataFrame(ROWS))
    benchmark = load(split="train", limit=1)
    revision = SOURCES["gsm8k", "train"].revision
    assert asked == [("openai/gsm8k", "main/train-00000-of-00001.parquet", "dataset", revision)]
    assert [i.gold for i in benchmark.items] == ["1014"]
    assert revision in benchmark.identity()["source"]


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    import huggingface_hub

    def download(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(InputError, match=r"could not be fetched .*set benchmark.path to a file"):
        load()


def test_the_hub_without_pyarrow_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs pyarrow: pip install pyarrow, or set benchmark.path"):
        load()
