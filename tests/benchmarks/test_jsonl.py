import json

import pytest

from dps.benchmarks import BenchmarkConfig, load_benchmark
from dps.benchmarks.answers import extract_text, strict_text
from dps.benchmarks.grading import TextGrader, read
from dps.errors import InputError


class NoChat:
    chat_template = None


def load(path, **settings):
    return load_benchmark(BenchmarkConfig(name="jsonl", path=str(path), **settings))


def write(tmp_path, *lines, name="own.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_fields_go_where_they_belong(tmp_path):
    path = write(
        tmp_path,
        {"question": "Capital of France?", "answer": " Paris. ", "id": "fr", "level": 2, "tags": ["geo"]},
        {"question": "1/2 + 1/2?", "answer": 1.0, "id": 17},
        "",
        {"question": "Why?"},
        {"question": "Who?", "answer": None, "id": None},
    )
    items = load(path, split="mine").items
    assert [i.question_id for i in items] == ["fr", "17", "own-mine-00002", "own-mine-00003"]
    assert [i.gold for i in items] == ["paris", "1", None, None]
    assert [i.metadata for i in items] == [{"level": 2, "tags": ["geo"]}, {}, {}, {}]


def test_a_json_list_is_the_same_as_lines(tmp_path):
    records = [{"question": f"Q{i}", "answer": i, "id": f"q{i}"} for i in range(3)]
    lines, whole = write(tmp_path, *records), write(tmp_path, json.dumps(records, indent=1), name="own.json")
    assert load(whole).items == load(lines).items


def test_numbers_are_asked_for_and_found_where_all_answers_are_numbers(tmp_path):
    benchmark = load(write(tmp_path, {"question": "2 * 3?", "answer": "6.0"}, {"question": "Half?", "answer": "1/2"}))
    assert [i.gold for i in benchmark.items] == ["6", "0.5"]
    assert "Problem: 2 * 3?\nSolution:" in benchmark.render(benchmark.items[0], NoChat())
    assert benchmark.grader.extract("It is 2 times 3, so 6 in all", benchmark.items[0]) == "6"


def test_texts_are_asked_for_and_found_elsewhere(tmp_path):
    benchmark = load(write(tmp_path, {"question": "Capital?", "answer": "Paris"}, {"question": "2 * 3?", "answer": 6}))
    assert "Question: Capital?\nAnswer:" in benchmark.render(benchmark.items[0], NoChat())
    answer = benchmark.grader.extract("The answer is Paris. It has 2 million people.", benchmark.items[0])
    assert benchmark.grader.grade(answer, benchmark.items[0]) is True
    assert read(benchmark.grader, "#### 6.00", benchmark.items[1]).correct is True


def test_what_a_file_is_does_not_change_with_the_limit(tmp_path):
    path = write(tmp_path, {"question": "2 * 3?", "answer": 6}, {"question": "Capital?", "answer": "Paris"})
    assert load(path, limit=1).grader == load(path).grader == TextGrader(extract_text, strict_text)


def test_questions_without_answers_are_not_graded(tmp_path):
    benchmark = load(write(tmp_path, {"question": "Why?"}))
    assert read(benchmark.grader, "#### because", benchmark.items[0]).correct is None


def test_unusual_but_right_files(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_bytes("\ufeff".encode() + '{"question": "a\u2028b?"}\r\n\r\n{"question": "c?"}\r\n'.encode())
    assert [i.question for i in load(path).items] == ["a\u2028b?", "c?"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], r"^Expected questions, one JSON object a line, found none in .*own.jsonl\.$"),
        (["[]"], r"^Expected questions, one JSON object a line, found none in"),
        ([{"question": "a"}, "", "{question: 1}"], r"^Line 3 of own.jsonl is not JSON \("),
        (['{"question": "a", "answer": NaN}'], r"^Line 1 of own.jsonl is not JSON \(NaN is no JSON number\)"),
        (['[{"question": "a"},', "{]"], r"^Line 2 of own.jsonl is not JSON"),
        ([{"question": "a"}, '"b"'], r"^Line 2 of own.jsonl is not a JSON object"),
        (['[{"question": "a"}, 3]'], r"^Entry 2 of own.jsonl is not a JSON object"),
        (
            [{"question": "a"}, {"prompt": "b", "answer": 1}],
            r"^Line 2 of own.jsonl has no field question, only: prompt, answer",
        ),
        ([{"question": " "}], r"^Line 1 of own.jsonl should have a text as question, but has ' '"),
        ([{"question": ["a"]}], r"should have a text as question"),
        ([{"question": "a", "answer": ["b"]}], r"should have a text or a number as answer, but has \['b'\]"),
        ([{"question": "a", "answer": " . "}], r"should have a text or a number as answer"),
        ([{"question": "a", "id": 1.5}], r"should have a text or an integer as id, but has 1.5"),
        (
            [{"question": "a", "id": "x"}, {"question": "b"}, {"question": "c", "id": "x"}],
            r"^Line 3 of own.jsonl has the id 'x', which line 1 has already",
        ),
        ([{"question": "a", "id": 7}, {"question": "b", "id": "7"}], r"has the id '7', which line 1 has already"),
    ],
)
def test_bad_files_are_one_sentence_with_the_line(tmp_path, lines, message):
    with pytest.raises(InputError, match=message) as caught:
        load(write(tmp_path, *lines))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(b'{"question": "a"}\n\xff\xfe\x00')
    with pytest.raises(InputError, match=r"Expected UTF-8 text in own.jsonl, but line 2 is not"):
        load(path)


@pytest.mark.parametrize("second", ["What is 2+2?", " What is  2+2?\n"])
def test_the_same_question_twice_without_ids_is_refused(tmp_path, second):
    path = tmp_path / "twice.jsonl"
    records = [{"question": "What is 2+2?", "answer": 4}, {"question": "What is 1?"}, {"question": second, "answer": 4}]
    path.write_text("\n".join(map(json.dumps, records)))
    config = BenchmarkConfig(name="jsonl", path=str(path))
    with pytest.raises(InputError, match=r"has the same question as .*1: leave one out, or give each its own id"):
        load_benchmark(config)
    path.write_text("\n".join(json.dumps({**record, "id": i}) for i, record in enumerate(records)))
    assert [item.question_id for item in load_benchmark(config).items] == ["0", "1", "2"]
