import json
import re
from dataclasses import replace

import pytest

from dps.benchmarks import BenchmarkConfig, grader_of, load_benchmark
from dps.benchmarks.arithmetic import prompt_for
from dps.benchmarks.config import QUESTION_FIELD
from dps.benchmarks.grading import read
from dps.benchmarks.jsonl import OwnGrader
from dps.benchmarks.prompts import NUMBER_PLAIN, NUMBER_STOP, TEXT_PLAIN, TEXT_STOP
from dps.benchmarks.regrade import regrade
from dps.errors import InputError
from feature_store import Store
from tests.analysis.report.evaluations import write_store
from tests.factories import make_manifest, make_question


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
    assert load(path, limit=1).grader == load(path).grader == OwnGrader("text")
    assert load(path, limit=1).plain_template == TEXT_PLAIN
    assert load(path, limit=1).remarks == load(path).remarks


def thirty(tmp_path, **others):
    """Thirty questions whose answers are numbers, but for those of the lines that are named: line8="Paris"."""
    lines = [{"question": f"{i} + {i}?", "answer": 2 * i, "id": f"q{i}"} for i in range(1, 31)]
    for name, answer in others.items():
        lines[int(name.removeprefix("line")) - 1]["answer"] = answer
    return write(tmp_path, *lines)


def test_one_answer_that_is_no_number_changes_its_own_question_only(tmp_path):
    benchmark = load(thirty(tmp_path, line8="Paris"))
    assert (benchmark.plain_template, benchmark.plain_stop) == (NUMBER_PLAIN, NUMBER_STOP)
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


@pytest.mark.parametrize(
    ("others", "remark", "template"),
    [
        ({}, None, NUMBER_PLAIN),
        ({"line3": "x", "line30": "twelve"}, "28 of 30 answers are numbers; lines 3 and 30 are not", NUMBER_PLAIN),
        ({"line2": None, "line8": "3 cm"}, "28 of 29 answers are numbers; line 8 is not", NUMBER_PLAIN),
        ({f"line{n}": "x" for n in range(1, 8)}, "lines 1, 2, 3 and 4 others are not", NUMBER_PLAIN),
        (
            {f"line{n}": "x" for n in range(1, 16)},
            "15 of 30 answers are numbers; lines 16, 17, 18 and 12 others are",
            TEXT_PLAIN,
        ),
        ({f"line{n}": "x" for n in range(2, 31)}, "1 of 30 answers are numbers; line 1 is. ", TEXT_PLAIN),
        ({f"line{n}": "x" for n in range(1, 31)}, None, TEXT_PLAIN),
        ({f"line{n}": None for n in range(1, 31)}, None, TEXT_PLAIN),
    ],
)
def test_what_most_answers_are_decides_what_is_asked_for(tmp_path, others, remark, template):
    benchmark = load(thirty(tmp_path, **others))
    assert benchmark.plain_template == template
    assert benchmark.plain_stop == (NUMBER_STOP if template == NUMBER_PLAIN else TEXT_STOP)
    if remark is None:
        assert benchmark.remarks == ()
    else:
        assert len(benchmark.remarks) == 1
        assert re.search(remark, benchmark.remarks[0])
    graded = [item for item in benchmark.items if item.gold is not None]
    assert all(read(benchmark.grader, f"#### {item.gold}", item).correct for item in graded)


def test_entries_of_a_list_are_named_as_such(tmp_path):
    records = [{"question": f"{answer}?", "answer": answer} for answer in ("x", "y", "1", "2", "3")]
    assert "entries 1 and 2 are not" in load(write(tmp_path, json.dumps(records))).remarks[0]


def test_a_template_of_ones_own_is_not_said_to_ask_for_a_number(tmp_path):
    benchmark = load(thirty(tmp_path, line8="Paris"), template="{question} Answer with ####.")
    assert "asked for" not in benchmark.remarks[0]
    assert benchmark.grader == OwnGrader("number")


def test_stored_responses_are_graded_again_as_they_were(tmp_path):
    benchmark = load(thirty(tmp_path, line8="Paris", line9=None))
    said = ("It is {} in all", "#### {}", "no idea")
    questions = []
    for item in benchmark.items[6:9]:  # a part of the run: the file's majority must not be guessed from it
        made = make_question(0, hidden_size=0)
        texts = [text.format(item.gold or 18) for text in said]
        readings = [read(benchmark.grader, text, item) for text in texts]
        trajectories = tuple(
            replace(t, text=text, answer=r.answer, correct=r.correct, answer_class=c)
            for t, text, r, c in zip(
                made.trajectories,
                texts,
                readings,
                benchmark.grader.classes([r.answer for r in readings], item),
                strict=False,
            )
        )
        questions.append(
            replace(
                made, question_id=item.question_id, question=item.question, gold=item.gold, trajectories=trajectories
            )
        )
    manifest = make_manifest(kind="evaluation", benchmark=benchmark.identity())
    regrade(write_store(tmp_path / "store", manifest, questions), tmp_path / "graded")
    for old, new in zip(questions, Store.open(tmp_path / "graded"), strict=True):
        kept = [(t.answer, t.correct, t.answer_class) for t in old.trajectories]
        assert [(t.answer, t.correct, t.answer_class) for t in new.trajectories] == kept
    assert [t.answer for t in questions[1].trajectories] == ["it is paris in all", "paris", "no idea"]
    assert [t.answer for t in questions[2].trajectories] == ["18", "18", None]


def test_the_embedded_model_is_asked_in_its_own_form(tmp_path):
    path = write(tmp_path, {"question": "From left to right: 2+3*4", "answer": 20}, {"question": "Who?", "answer": "I"})
    config = BenchmarkConfig(name="jsonl", path=str(path))
    benchmark = load_benchmark(config, "embedded")
    item = benchmark.items[0]
    assert benchmark.render(item, NoChat()) == "Q: From left to right: 2+3*4\nA: "
    assert benchmark.stop_strings(NoChat()) == ()
    response = "2+3=5;5*4=20;#20"
    assert read(benchmark.grader, response, item).correct is True
    assert read(benchmark.grader, response, item).strict_answer == "20"
    assert read(benchmark.grader, response, benchmark.items[1]).correct is False
    identity = benchmark.identity()
    assert identity["plain_template"] == prompt_for(QUESTION_FIELD)
    assert grader_of("jsonl", ["20"], identity["plain_template"]) == benchmark.grader
    own = load_benchmark(replace(config, template="{question}\n#"), "embedded")
    assert own.render(item, NoChat()) == "From left to right: 2+3*4\n#"
    assert load_benchmark(config, "another/model").plain_template == TEXT_PLAIN


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
