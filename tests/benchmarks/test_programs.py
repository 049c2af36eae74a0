# ruff: noqa: E501
import time
import tracemalloc
from dataclasses import replace

import pytest

from dps.benchmarks import BenchmarkConfig, Item, load_benchmark, programs
from dps.benchmarks.grading import read
from dps.benchmarks.programs import CodeGrader, examples_of
from tests.benchmarks.data import slice_path

PROMPT = '''import math


def half(x):
    return x / 2


def area(r):
    """Area of a circle.

    >>> round(area(1), 2)
    3.14
    >>> area(0)
    0.0
    """
'''
TEST = "def check(candidate):\n    assert abs(candidate(2) - 12.566370614359172) < 1e-9\n    assert candidate(half(0)) == 0\n"
RIGHT = "    return math.pi * r ** 2\n"
ITEM = Item("q", PROMPT, PROMPT + RIGHT, {"prompt": PROMPT, "test": TEST, "entry_point": "area"})


@pytest.mark.parametrize(
    ("text", "strict"),
    [
        (RIGHT, True),
        (RIGHT + "\n\nprint(area(3))\n", True),
        (RIGHT + "\ndef area(r):\n    return 0\n", True),
        ("    # comment\n" + RIGHT + "    # end\n\nif __name__ == '__main__':\n    area(1)\n", True),
        ("Here:\n```python\ndef area(r):\n    return math.pi * r * r\n```\nIt works.", True),
        (
            "```python\ndef area(r):\n    return 0\n```\nNo:\n```py\nfrom math import pi\ndef area(r):\n    return pi * r * r\n```",
            True,
        ),
        ("```\ndef helper(x):\n    return x * x\n\ndef area(r):\n    return math.pi * helper(r)\n```", True),
        ("```python\ndef area(r):\n    return math.pi * r * r", True),  # cut off before the fence
        ("```python\ndef area(r):\n    return math.pi * r * r\n\nassert area(1) == 3\nprint(input())\n```", True),
        ("Sure:\n\nfrom math import pi\nK = pi\n\n\ndef area(r):\n    return K * r * r\n\nThat is all.", False),
        ("Sure, the function is\n\ndef area(r):\n    return math.pi * r * r\n\nI hope that helps.", False),
    ],
)
def test_right_programs_are_found_in_every_form(text, strict):
    found = read(CodeGrader(), text, ITEM)
    assert found.correct is True
    assert found.strict_correct is strict


@pytest.mark.parametrize(
    "text",
    ["", "I cannot do that.", "    pass pass\n", '    """Only a docstring."""\n', "```python\nprint(1)\n```",
     "    return " + "1 + " * 10_000 + "1\n", "    return '\ud800'\n"],
)  # fmt: skip
def test_what_is_no_program_is_no_answer(text):
    found = read(CodeGrader(), text, ITEM)
    assert (found.answer, found.correct) == (None, False)


def test_wrong_programs_are_wrong():
    for body in ("    return r\n", "    raise ValueError\n", "    return None\n"):
        assert read(CodeGrader(), body, ITEM).correct is False


def test_a_broken_test_makes_a_program_ungradable():
    item = Item("q", PROMPT, PROMPT + RIGHT, ITEM.metadata | {"test": "def check(candidate):\n    assert undefined\n"})
    assert read(CodeGrader(), RIGHT, item).correct is None


def test_programs_are_classed_by_what_they_say_of_the_examples():
    answers = [
        PROMPT + RIGHT,
        PROMPT + "    return math.pi * r * r\n",
        None,
        PROMPT + "    return 3.0 * r\n",
        PROMPT + "    return 3 * r + 0.0 # other source, same outputs\n",
        PROMPT + "    raise KeyError\n",
        PROMPT + "    raise KeyError  # with a comment\n",
        PROMPT + "    raise TypeError\n",
    ]
    assert CodeGrader().classes(answers, ITEM) == [0, 0, -1, 1, 1, 2, 2, 3]


def test_without_examples_only_the_same_source_is_the_same():
    prompt = 'def f(x):\n    """Nothing shown."""\n'
    item = Item("q", prompt, None, {"prompt": prompt, "test": "", "entry_point": "f"})
    answers = [prompt + "    return x+1\n", prompt + "    return x + 1  # spaces\n", prompt + "    return 1 + x\n"]
    assert CodeGrader().classes(answers, item) == [0, 0, 1]


def test_examples_are_found_in_the_common_forms():
    prompt = (
        'def f(x, y=(1, 2)):\n    """f(1) == 2 and so on.\n    f([1, 2]) => [2]\n    `f("a)")` -> "b"\n'
        "    For f(3) nothing is shown.\n    >>> f(7)\n    8\n    >>> print('no call')\n    f(4) returns 5\n"
        "    >>> x = f(9)\n"
        '    """\n'
    )
    assert examples_of(prompt, "f") == ["f(7)", "f(1)", "f([1, 2])", "f(4)"]


def test_real_canonical_solutions_pass():
    path = slice_path("humaneval_first100.jsonl")
    benchmark = load_benchmark(BenchmarkConfig(name="humaneval", path=str(path), limit=30, offset=30))
    for item in benchmark.items:
        body = item.gold[len(item.metadata["prompt"]) :]
        assert read(benchmark.grader, body, item).correct is True, item.question_id
        assert read(benchmark.grader, f"```python\n{item.gold}\n```", item).correct is True, item.question_id
        assert read(benchmark.grader, "    return None\n", item).correct is False, item.question_id


def test_equal_outputs_are_one_class():
    bodies = [
        "{8, 0}",
        "{0, 8}",
        "{1: 1, 2: 2}",
        "{2: 2, 1: 1}",
        "1",
        "1.0",
        "True",
        "0.1 + 0.2",
        "0.3",
        "'1'",
        "[1]",
        "(1,)",
    ]
    answers = [f"{PROMPT}    return {body}\n" for body in bodies]
    item = Item("q", PROMPT, None, ITEM.metadata | {"prompt": PROMPT.replace("round(area(1), 2)", "area(1)")})
    assert CodeGrader().classes(answers, item) == [0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6]


@pytest.mark.parametrize("body", ["1+" * 2000 + "1", "0x" + "f" * 5000, "-" * 1500 + "1", "r" + ".x" * 1500])
def test_programs_that_cannot_be_printed_have_classes(body):
    prompt = 'def f(r):\n    """Nothing shown."""\n'
    item = Item("q", prompt, None, {"prompt": prompt, "test": "", "entry_point": "f"})
    answer = CodeGrader().extract(f"    return {body}\n", item)
    assert answer is not None
    assert CodeGrader().classes([answer, None, answer], item) == [0, -1, 0]


@pytest.mark.parametrize(
    "text",
    [
        "\n" * 200_000,
        "```" + " " * 200_000,
        "```python\n" + "\n" * 200_000,
        "import a\n" * 40_000,
        "def area(\n" * 40_000,
    ],
)
def test_long_responses_are_read_in_time(text):
    started = time.monotonic()
    assert CodeGrader().extract(text, ITEM) is None
    assert time.monotonic() - started < 2


def test_what_is_remembered_of_a_program_is_small(monkeypatch):
    """Outputs of megabytes leave a digest; the oldest verdicts go when there are too many."""
    monkeypatch.setattr(programs, "_verdicts", {})
    monkeypatch.setattr(programs, "_KEPT", 5)
    prompt = 'def f(x):\n    """\n    >>> f(1)\n    >>> f(2)\n    """\n'
    item = Item("q", prompt, None, {"prompt": prompt, "test": "def check(c):\n    assert c(1)\n", "entry_point": "f"})
    big = [f"{prompt}    return [[x] * {n}] * 100\n" for n in (200, 201, 200)]
    assert CodeGrader().classes(big, item) == [0, 1, 0]
    for n in range(8):
        CodeGrader().grade(f"{prompt}    return 'a' * {n} * {'1' * n or '0'}\n", replace(item, gold=""))
    kept = programs._verdicts
    assert len(kept) == 5
    assert all(isinstance(key, bytes) and len(key) == 32 and len(value) <= 64 for key, value in kept.items())


def test_the_prompt_and_the_test_decide_a_verdict_too():
    item = Item("q", "", "", {"prompt": "K = 1\n", "test": "def check(c):\n    assert c(K) == 1\n", "entry_point": "f"})
    program = "def f(x): return x\n"
    assert CodeGrader().grade(program, item) is True
    assert CodeGrader().grade(program, replace(item, metadata=item.metadata | {"prompt": "K = 2\n"})) is False


def test_outputs_beyond_all_bounds_are_no_outputs():
    """The encoded outputs of all examples together are bounded, so that the main process never holds more."""
    prompt = 'def f(x):\n    """\n    >>> f(1)\n    """\n'
    item = Item("q", prompt, None, {"prompt": prompt, "test": "", "entry_point": "f"})
    answers = [f"{prompt}    return list(range({n}))\n" for n in (200_000, 200_000, 200_001)]
    tracemalloc.start()
    assert CodeGrader().classes(answers, item) == [0, 0, 1]
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_equal_numbers_of_all_kinds_are_one_class():
    prompt = 'from decimal import Decimal\nfrom fractions import Fraction\nimport collections\ndef f(x):\n    """\n    >>> f(1)\n    """\n'
    item = Item("q", prompt, None, {"prompt": prompt, "test": "", "entry_point": "f"})
    values = ["0.5", "Decimal('0.50')", "Fraction(1, 2)", "2", "Decimal('2E0')", "Fraction(4, 2)", "Decimal('NaN12')",
              "Decimal('sNaN')", "float('nan')", "Decimal('1E+400')", "Decimal('1E+401')", "Fraction(10**400, 3)",
              "float('inf')", "Decimal('Infinity')", "{1: 2}.keys()", "{1}", "{1: 2}.items()", "{(1, 2)}",
              "collections.Counter([1])", "{1: 1}", "collections.OrderedDict({1: 1})"]  # fmt: skip
    answers = [f"{prompt}    return {value}\n" for value in values]
    assert CodeGrader().classes(answers, item) == [
        0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8, 9, 9, 9,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "piece", ["f(", "f(1) == 2 ", ">>> f(1)\n1\n", ">>> f(\n", ">>> ", "(", "f(1) => 2\n", "[", "\n", "'"]
)
def test_examples_of_long_prompts_are_found_in_time(piece):
    prompt = 'def f(x):\n    """' + piece * (1_000_000 // len(piece))
    started = time.process_time()
    assert len(examples_of(prompt, "f")) <= 20
    assert time.process_time() - started < 4
