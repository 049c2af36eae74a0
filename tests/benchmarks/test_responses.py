"""`dps grade FILE.jsonl`: responses that came from anywhere, as a user grades them."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc

import pytest

from dps.benchmarks.responses import check_responses, grade_file, read_responses
from dps.cli import run
from tests.benchmarks.data import cases

CASES = cases("responses")
TWO = {"prompt": "def two():\n", "test": "def check(f):\n    assert f() == 2\n", "entry_point": "two"}
FIELDS = ("answer", "correct", "strict_answer", "strict_correct", "class")


def write(path, lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def line(kind="number", response="#### 7", gold="7", **others):
    return {"id": "q", "kind": kind, "response": response, "gold": gold, **others}


def graded(path, output=None):
    """Grade a file in this process; return its verdicts."""
    output = output or path.with_name("out.jsonl")
    grade_file(path, output, check_responses(path))
    return [json.loads(text) for text in output.read_text().splitlines()]


def test_every_kind_of_line_as_a_command(tmp_path, capsys):
    path = write(tmp_path / "mine.jsonl", [given for given, _ in CASES["lines"]])
    assert run(["grade", str(path)]) == 0
    said = capsys.readouterr().out
    verdicts = [json.loads(text) for text in (tmp_path / "mine-graded.jsonl").read_text().splitlines()]
    assert [list(verdict) for verdict in verdicts] == [["id", *FIELDS]] * len(CASES["lines"])
    for verdict, (given, expected) in zip(verdicts, CASES["lines"], strict=True):
        assert [verdict["id"], *(verdict[name] for name in FIELDS)] == [given["id"], *expected]
    table = {words[0]: list(map(int, words[1:])) for words in map(str.split, said.splitlines()[1:6])}
    assert table == {
        "number": [4, 2, 2, 0, 1, 2],  # responses, right, wrong, ungradable, without answer, strict differs
        "math": [2, 1, 0, 1, 0, 0],
        "choice": [3, 2, 1, 0, 0, 1],
        "text": [3, 1, 1, 1, 1, 0],
        "code": [2, 1, 1, 0, 0, 0],
    }
    assert said.splitlines()[0].split()[:5] == ["kind", "responses", "right", "wrong", "ungradable"]
    assert str(tmp_path / "mine-graded.jsonl") in said
    assert run(["grade", str(path)]) == 0
    assert "All of them were graded before, nothing was done: delete the output" in capsys.readouterr().out


def test_lines_of_a_group_get_classes_wherever_they_stand(tmp_path):
    groups = ["a", "b", None, "a", "b", "a", 3, "b"]
    said = ["#### 7", "#### 1", "#### 7", "7.0", "no idea", "8", "7", "2"]
    lines = [line(response=text, group=group) for group, text in zip(groups, said, strict=True)]
    assert [verdict["class"] for verdict in graded(write(tmp_path / "g.jsonl", lines))] == [0, 0, None, 0, -1, 1, 0, 1]
    program = [line("code", text, **TWO, group=1) for text in ("    return 2", "    return 1 + 1", "    return 3")]
    assert [v["correct"] for v in graded(write(tmp_path / "c.jsonl", program), tmp_path / "c")] == [True, True, False]


def test_verdicts_are_those_of_the_graders_in_order_however_long_some_take(tmp_path):
    hard = r"\sqrt{%d}+\sin(%d)"
    lines = [
        line("math", rf"\boxed{{{hard}}}" % (n, n), hard % (1, 1), id=n, group=n // 20)
        if n % 2
        else line(response=f"#### {n}", gold=n % 7, id=n, group=f"n{n}")
        for n in range(160)
    ]
    verdicts = graded(write(tmp_path / "m.jsonl", lines))
    assert [verdict["id"] for verdict in verdicts] == list(range(160))
    assert [v["correct"] for v in verdicts[::2]] == [n == n % 7 for n in range(0, 160, 2)]
    assert [v["correct"] for v in verdicts[1::2]] == [n == 1 for n in range(1, 160, 2)]
    assert [v["class"] for v in verdicts[1::2]] == [n // 2 % 10 for n in range(1, 160, 2)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [*CASES["bad"], ("[" * 100_000, "Line 2 of own.jsonl is nested too deeply")],
    ids=lambda value: str(value)[:60],
)
def test_a_bad_line_is_one_sentence_before_anything_is_graded(tmp_path, capsys, bad, message):
    path = write(tmp_path / "own.jsonl", [line(group="g"), bad])
    assert run(["grade", str(path)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["own.jsonl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expected responses, one JSON object a line, found none in"),
        (b"\n \n", "found none in"),
        (b'{"id": 1}\n\xff\n', "Line 1 of own.jsonl has no field kind"),
        (b'\xff\xfe{"id": 1}\n', "Line 1 of own.jsonl is not UTF-8"),
    ],
)
def test_files_that_are_none(tmp_path, capsys, content, message):
    path = tmp_path / "own.jsonl"
    path.write_bytes(content)
    assert run(["grade", str(path)]) == 2
    assert message in capsys.readouterr().err
    assert run(["grade", str(tmp_path / "nothing.jsonl")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_unusual_but_right_lines(tmp_path):
    path = tmp_path / "own.jsonl"
    texts = [
        json.dumps(line(response="a\u2028#### 7"), ensure_ascii=False),
        "",
        json.dumps(line(response="\ud800 #### 7\x00")),
        json.dumps(line("text", response="#### Żółć", gold="żółć", extra=[1])),
        json.dumps(line("math", response="\ud800", gold="\ud800")),
        json.dumps(line("code", response="    return '\ud800'", **TWO)),
        json.dumps(line(prompt="?<think>\n")),
        json.dumps(line(response="8</think>7", prompt="?<think>\n")),
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(texts).encode())
    verdicts = graded(path)
    assert [verdict["correct"] for verdict in verdicts][:3] == [True, True, True]
    assert [verdict["answer"] for verdict in verdicts][-2:] == [None, "7"]


def test_an_output_that_is_something_else_stays_as_it_is(tmp_path, capsys):
    path = write(tmp_path / "own.jsonl", [line(), line()])
    for content in ("my notes", "my notes\n", json.dumps(line()) + "\n", '{"id": "other"}\n', "[]\n3\n"):
        output = tmp_path / "notes"
        output.write_text(content)
        assert run(["grade", str(path), f"--output={output}"]) == 2
        assert "has something else on line 1: choose another --output" in capsys.readouterr().err
        assert output.read_text() == content
    assert run(["grade", str(path), f"--output={path}"]) == 2
    assert run(["grade", str(path), f"--output={tmp_path}"]) == 2
    assert "Expected --output to be a file" in capsys.readouterr().err
    assert len(path.read_text().splitlines()) == 2


def test_what_a_killed_run_left_is_gone_on_from(tmp_path):
    lines = [line(response=str(n % 5), gold=2, id=n, group=n % 4 if n % 3 else None) for n in range(50)]
    path, whole, output = write(tmp_path / "own.jsonl", lines), tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    graded(path, whole)
    content = whole.read_bytes()
    ends = [n + 1 for n, byte in enumerate(content) if byte == ord("\n")]
    for size in (0, ends[0], ends[6] + 10, ends[40], ends[47] + 1, ends[48]):
        output.write_bytes(content[:size])
        found = grade_file(path, output, check_responses(path))
        assert output.read_bytes() == content
        assert found.kept == sum(end <= size for end in ends)
        assert (found.tallies["number"]["responses"], found.tallies["number"]["right"]) == (50, 10)
    output.write_bytes(content[: ends[3]])
    os.utime(path, (time.time() + 100,) * 2)
    with pytest.raises(Exception, match=r"is older than .*own\.jsonl"):
        grade_file(path, output, check_responses(path))
    output.write_bytes(b"")  # of an empty one nothing is kept
    os.utime(path, (time.time() + 100,) * 2)
    assert grade_file(path, output, check_responses(path)).kept == 0


@pytest.mark.slow
def test_interrupted_it_leaves_whole_lines_and_goes_on(tmp_path):
    slow = "    import time\n    time.sleep(0.2 * %d)\n    return 2"
    lines = [line("code", slow % n, **TWO) | {"id": n} for n in range(20)]
    path, output = write(tmp_path / "own.jsonl", lines), tmp_path / "own-graded.jsonl"
    command = [sys.executable, "-m", "dps", "grade", str(path)]
    restored = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  (ignored in the background)
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=restored)
    deadline = time.time() + 60
    while time.time() < deadline and not (output.exists() and output.read_bytes().count(b"\n") >= 3):
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 130, error
    assert "Traceback" not in error
    assert "the same command goes on from there" in error
    content = output.read_bytes()
    count = content.count(b"\n")
    assert content.endswith(b"\n")
    assert 3 <= count < 20
    assert [json.loads(text)["id"] for text in content.splitlines()] == list(range(count))
    done_at = output.stat().st_mtime
    write(path, [*lines[:count], *({**rest, "response": "    return 2"} for rest in lines[count:])])
    os.utime(path, (done_at - 1,) * 2)
    assert run(["grade", str(path)]) == 0
    assert output.read_bytes().startswith(content)
    assert [json.loads(text)["id"] for text in output.read_text().splitlines()] == list(range(20))


def test_a_long_file_takes_little_memory(tmp_path):
    path = tmp_path / "long.jsonl"
    with path.open("w") as file:
        for number in range(1_000):
            response = line("choice", "so " * 3_000 + r"\boxed{A}", "A", choices=["7", "8"], group=number // 8)
            file.write(json.dumps(response) + "\n")
    assert path.stat().st_size > 9_000_000
    tracemalloc.start()
    for _ in read_responses(path):
        pass
    found = grade_file(path, tmp_path / "out.jsonl", check_responses(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.tallies["choice"]["right"] == 1_000
    assert peak < 4_000_000
