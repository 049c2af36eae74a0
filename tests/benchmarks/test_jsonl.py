"""One's own questions: what a file says, what is asked for, and how each answer is graded."""

import json
import re
from dataclasses import replace

import pytest

from dps.benchmarks import BenchmarkConfig, grader_of, load_benchmark
from dps.benchmarks.arithmetic import PROMPTS
from dps.benchmarks.grading import read
from dps.benchmarks.jsonl import OwnGrader
from dps.benchmarks.prompts import CHOICE, NUMBER, TEXT
from dps.errors import InputError
from tests.benchmarks.data import Base, cases
from tests.benchmarks.data import load as load_by_name


def load(path, **settings):
    return load_by_name("jsonl", path, **settings)


def write(tmp_path, *lines, name="own.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def thirty(tmp_path, **others):
    """Thirty questions whose answers are numbers, but for those of the lines that are named: line8="Paris"."""
    lines = [{"question": f"{i} + {i}?", "answer": 2 * i, "id": f"q{i}"} for i in range(1, 31)]
    for name, answer in others.items():
        lines[int(name.removeprefix("line")) - 1]["answer"] = answer
    return write(tmp_path, *lines)


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


def test_what_most_answers_are_is_asked_for_and_each_answer_graded_as_what_it_is(tmp_path):
    numbers = load(write(tmp_path, {"question": "2 * 3?", "answer": "6.0"}, {"question": "Half?", "answer": "1/2"}))
    assert [i.gold for i in numbers.items] == ["6", "0.5"]
    assert "Problem: 2 * 3?\nSolution:" in numbers.render(numbers.items[0], Base())
    assert numbers.grader.extract("It is 2 times 3, so 6 in all", numbers.items[0]) == "6"
    path = write(tmp_path, {"question": "Capital?", "answer": "Paris"}, {"question": "3 * 3?", "answer": 9})
    texts = load(path)
    assert "Question: Capital?\nAnswer:" in texts.render(texts.items[0], Base())
    assert read(texts.grader, "The answer is Paris. It has 2 million people.", texts.items[0]).correct is True
    assert read(texts.grader, "#### 9.00", texts.items[1]).correct is True
    assert load(path, limit=1).grader == texts.grader == OwnGrader("text")
    assert (load(path, limit=1).plain_template, load(path, limit=1).remarks) == (TEXT.plain, texts.remarks)


def test_one_answer_that_is_no_number_changes_its_own_question_only(tmp_path):
    benchmark = load(thirty(tmp_path, line8="Paris"))
    assert (benchmark.plain_template, benchmark.plain_stop) == (NUMBER.plain, NUMBER.stop)
    said = "So there are {} apples left, as it should be."
    readings = [read(benchmark.grader, said.format(item.gold), item) for item in benchmark.items]
    assert [reading.correct for reading in readings] == [number != 8 for number in range(1, 31)]
    assert read(benchmark.grader, "Two rivers meet. The answer is Paris.", benchmark.items[7]).correct is True
    assert read(benchmark.grader, r"\boxed{Paris}", benchmark.items[7]).strict_correct is True
    assert read(benchmark.grader, "#### 8", benchmark.items[7]).correct is False
    assert benchmark.remarks == (
        "own.jsonl: 29 of 30 answers are numbers; line 8 is not. Each question is graded by what its own answer is. "
        "All are asked for a number (benchmark.template asks for something else).",
    )
    own = load(thirty(tmp_path, line8="Rome"), template="{question} Answer with ####.")
    assert "asked for" not in own.remarks[0]
    assert own.grader == OwnGrader("number")


@pytest.mark.parametrize(
    ("lines", "answer", "remark", "prompts"),
    [
        ([], None, None, NUMBER),
        ([3, 30], "twelve", "28 of 30 answers are numbers; lines 3 and 30 are not", NUMBER),
        (range(1, 8), "x", "lines 1, 2, 3 and 4 others are not", NUMBER),
        (range(1, 16), "x", "15 of 30 answers are numbers; lines 16, 17, 18 and 12 others are", TEXT),
        (range(2, 31), "x", "1 of 30 answers are numbers; line 1 is. ", TEXT),
        (range(1, 31), "x", None, TEXT),
        (range(1, 31), None, "30 of 30 questions have no answer. They are not graded.", TEXT),
    ],
)
def test_what_most_answers_are_decides_what_is_asked_for(tmp_path, lines, answer, remark, prompts):
    benchmark = load(thirty(tmp_path, **{f"line{number}": answer for number in lines}))
    assert (benchmark.plain_template, benchmark.plain_stop) == (prompts.plain, prompts.stop)
    assert bool(benchmark.remarks) == (remark is not None)
    assert remark is None or re.search(remark, benchmark.remarks[0])
    graded = [item for item in benchmark.items if item.gold is not None]
    assert all(read(benchmark.grader, f"#### {item.gold}", item).correct for item in graded)


def test_entries_of_a_list_are_named_as_such(tmp_path):
    records = [{"question": f"{answer}?", "answer": answer} for answer in ("x", "y", "1", "2", "3")]
    assert "entries 1 and 2 are not" in load(write(tmp_path, json.dumps(records))).remarks[0]


def test_the_embedded_model_is_asked_in_its_own_form(tmp_path):
    path = write(tmp_path, {"question": "From left to right: 2+3*4", "answer": 20}, {"question": "Who?", "answer": "I"})
    config = BenchmarkConfig(name="jsonl", path=str(path))
    benchmark = load_benchmark(config, "embedded")
    item = benchmark.items[0]
    assert benchmark.render(item, Base()) == "Q: From left to right: 2+3*4\nA: "
    assert benchmark.stop_strings(Base()) == ()
    reading = read(benchmark.grader, "2+3=5;5*4=20;#20", item)
    assert (reading.correct, reading.strict_answer) == (True, "20")
    identity = benchmark.identity()
    assert identity["plain_template"] == PROMPTS.plain
    assert grader_of("jsonl", ["20"], identity["plain_template"]) == benchmark.grader
    own = load_benchmark(replace(config, template="{question}\n#"), "embedded")
    assert own.render(item, Base()) == "From left to right: 2+3*4\n#"
    assert load_benchmark(config, "another/model").plain_template == TEXT.plain


def test_questions_without_answers_are_not_graded(tmp_path):
    benchmark = load(write(tmp_path, {"question": "Why?"}))
    assert read(benchmark.grader, "#### because", benchmark.items[0]).correct is None


def test_questions_with_choices_are_asked_for_and_read_as_letters(tmp_path):
    pears = {"question": "Which is a fruit?", "choices": ["car", "pear"], "answer": "pear"}
    benchmark = load(
        write(tmp_path, pears, {**pears, "question": "Which drives?", "answer": "a"}, {"question": "Why?"})
    )
    assert [item.gold for item in benchmark.items] == ["B", "A", None]
    assert benchmark.items[0].question == "Which is a fruit?\n\nA) car\nB) pear"
    assert benchmark.plain_template == CHOICE.plain
    for text in ("The answer is (B).", "#### B) pear", "Thus \\boxed{B}", "pear"):
        assert [read(benchmark.grader, text, item).correct for item in benchmark.items] == [True, False, None]
    again = grader_of("jsonl", ["B", "A", None], benchmark.identity()["plain_template"])
    assert read(again, "#### why", benchmark.items[2]).answer == "why"
    most = load(write(tmp_path, pears, {"question": "2+2?", "answer": 4}, {"question": "2+3?", "answer": 5}))
    assert most.plain_template == NUMBER.plain
    assert not most.remarks
    with pytest.raises(InputError, match="a letter of A to B, or one of its choices, as answer, but has 'C'"):
        load(write(tmp_path, {**pears, "answer": "C"}))


def test_answers_under_another_name_are_said_to_be_none(tmp_path):
    [remark] = load(write(tmp_path, {"id": 1, "question": "2+2?", "gold": 4}, {"question": "2+3?", "level": 1})).remarks
    only = "have no field answer, only: id, question, gold, level. They are not graded."
    assert remark == f"own.jsonl: 2 of 2 questions {only}"


def test_unusual_but_right_files(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_bytes("\ufeff".encode() + '{"question": "a\u2028b?"}\r\n\r\n{"question": "c?"}\r\n'.encode())
    assert [i.question for i in load(path).items] == ["a\u2028b?", "c?"]


@pytest.mark.parametrize(("lines", "message"), cases("jsonl")["bad"])
def test_bad_files_are_one_sentence_with_the_line(tmp_path, lines, message):
    with pytest.raises(InputError, match=message) as caught:
        load(write(tmp_path, *lines))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "own.jsonl"
    for content in (b'{"question": "a"}\n\xff\xfe\x00', b'[{"question": "a"},\n"\xff"]'):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"Line 2 of own.jsonl is not UTF-8: save the file as UTF-8"):
            load(path)


@pytest.mark.parametrize("second", ["What is 2+2?", " What is  2+2?\n"])
def test_the_same_question_twice_without_ids_is_refused(tmp_path, second):
    records = [{"question": "What is 2+2?", "answer": 4}, {"question": "What is 1?"}, {"question": second, "answer": 4}]
    with pytest.raises(InputError, match=r"has the same question as .*1: leave one out, or give each its own id"):
        load(write(tmp_path, *records))
    named = write(tmp_path, *({**record, "id": i} for i, record in enumerate(records)))
    assert [item.question_id for item in load(named).items] == ["0", "1", "2"]
