"""Programs that are graded by their tests and compared by what they do; the programs run in the sandbox."""

import io
import random
import subprocess
import sys
import time
import tokenize
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from dps.benchmarks import Item, programs
from dps.benchmarks.grading import read
from dps.benchmarks.programs import CodeGrader, examples_of
from tests.benchmarks.data import cases, load, slice_path
from tests.benchmarks.data import classes as classes_of

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
TEST = (
    "def check(candidate):\n    assert abs(candidate(2) - 12.566370614359172) < 1e-9\n"
    "    assert candidate(half(0)) == 0\n"
)
RIGHT = "    return math.pi * r ** 2\n"
ITEM = Item("q", PROMPT, PROMPT + RIGHT, {"prompt": PROMPT, "test": TEST, "entry_point": "area"})


def item_of(prompt, entry_point="f", test="", gold=None):
    return Item("q", prompt, gold, {"prompt": prompt, "test": test, "entry_point": entry_point})


def classes(prompt, bodies):
    """The classes of functions with these bodies, None for no answer."""
    answers = [None if body is None else f"{prompt}    {body}\n" for body in bodies]
    return classes_of(CodeGrader(), answers, item_of(prompt, "area" if "def area" in prompt else "f"))


@pytest.mark.parametrize(("text", "correct", "strict"), cases("programs")["graded"])
def test_programs_are_graded_by_the_test(text, correct, strict):
    reading = read(CodeGrader(), text, ITEM)
    assert (reading.correct, reading.strict_correct) == (correct, strict)


def test_a_broken_test_makes_a_program_ungradable():
    broken = ITEM.metadata | {"test": "def check(candidate):\n    assert undefined\n"}
    assert read(CodeGrader(), RIGHT, replace(ITEM, metadata=broken)).correct is None


def test_programs_are_classed_by_what_they_say_of_the_examples():
    bodies = [
        "return math.pi * r ** 2", "return math.pi * r * r", None, "return 3.0 * r",
        "return 3 * r + 0.0 # other source, same outputs", "raise KeyError", "raise KeyError  # with a comment",
        "raise TypeError",
    ]  # fmt: skip
    assert classes(PROMPT, bodies) == [0, 0, -1, 1, 1, 2, 2, 3]


def test_without_examples_only_the_same_source_is_the_same():
    prompt = 'def f(x):\n    """Nothing shown."""\n'
    assert classes(prompt, ["return x+1", "return x + 1  # spaces", "return 1 + x"]) == [0, 0, 1]


def test_examples_in_the_common_forms():
    prompt = (
        'def f(x, y=(1, 2)):\n    """f(1) == 2 and so on.\n    f([1, 2]) => [2]\n    `f("a)")` -> "b"\n'
        "    For f(3) nothing is shown.\n    >>> f(7)\n    8\n    >>> print('no call')\n    f(4) returns 5\n"
        "    >>> x = f(9)\n"
        '    """\n'
    )
    assert examples_of(prompt, "f") == ("f(7)", "f(1)", "f([1, 2])", "f(4)")


def test_equal_outputs_are_one_class():
    values = [
        "{8, 0}", "{0, 8}", "{1: 1, 2: 2}", "{2: 2, 1: 1}", "1", "1.0", "True", "0.1 + 0.2", "0.3", "'1'", "[1]", "(1,)"
    ]  # fmt: skip
    bodies = [f"return {value}" for value in values]
    assert classes(PROMPT.replace("round(area(1), 2)", "area(1)"), bodies) == [0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6]


def test_equal_numbers_and_collections_of_all_kinds_are_one_class():
    prompt = "from decimal import Decimal\nfrom fractions import Fraction\nimport collections\n"
    prompt += 'def f(x):\n    """\n    >>> f(1)\n    """\n'
    values = ["0.5", "Decimal('0.50')", "Fraction(1, 2)", "2", "Decimal('2E0')", "Fraction(4, 2)", "Decimal('NaN12')",
              "Decimal('sNaN')", "float('nan')", "Decimal('1E+400')", "Decimal('1E+401')", "Fraction(10**400, 3)",
              "float('inf')", "Decimal('Infinity')", "{1: 2}.keys()", "{1}", "{1: 2}.items()", "{(1, 2)}",
              "collections.Counter([1])", "{1: 1}", "collections.OrderedDict({1: 1})"]  # fmt: skip
    expected = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8, 9, 9, 9]
    assert classes(prompt, [f"return {value}" for value in values]) == expected


@pytest.mark.parametrize("value", ["1+" * 2000 + "1", "0x" + "f" * 5000, "-" * 1500 + "1", "r" + ".x" * 1500])
def test_programs_that_cannot_be_printed_have_classes(value):
    prompt = 'def f(r):\n    """Nothing shown."""\n'
    assert classes(prompt, [f"return {value}", None, f"return {value}"]) == [0, -1, 0]


def test_what_is_remembered_of_a_program_is_small(monkeypatch):
    """Outputs of megabytes leave a digest; the oldest verdicts go when there are too many."""
    monkeypatch.setattr(programs, "_verdicts", {})
    monkeypatch.setattr(programs, "_KEPT", 5)
    prompt = 'def f(x):\n    """\n    >>> f(1)\n    >>> f(2)\n    """\n'
    assert classes(prompt, [f"return [[x] * {n}] * 100" for n in (200, 201, 200)]) == [0, 1, 0]
    item = item_of(prompt, test="def check(c):\n    assert c(1)\n", gold="")
    for n in range(8):
        CodeGrader().grade(f"{prompt}    return 'a' * {n}\n", item)
    kept = programs._verdicts
    assert len(kept) == 5
    assert all(isinstance(key, bytes) and len(key) == 32 and len(value) <= 64 for key, value in kept.items())


def test_the_prompt_and_the_test_decide_a_verdict_too():
    item = item_of("K = 1\n", test="def check(c):\n    assert c(K) == 1\n", gold="")
    program = "def f(x): return x\n"
    assert CodeGrader().grade(program, item) is True
    assert CodeGrader().grade(program, replace(item, metadata=item.metadata | {"prompt": "K = 2\n"})) is False


def test_outputs_beyond_all_bounds_are_no_outputs():
    """The encoded outputs of all examples together are bounded, so that the main process never holds more."""
    prompt = 'def f(x):\n    """\n    >>> f(1)\n    """\n'
    tracemalloc.start()
    assert classes(prompt, [f"return list(range({n}))" for n in (200_000, 200_000, 200_001)]) == [0, 0, 1]
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "piece", ["f(", "f(1) == 2 ", ">>> f(1)\n1\n", ">>> f(\n", ">>> ", "(", "f(1) => 2\n", "[", "\n", "'"]
)
def test_examples_of_long_prompts_are_read_in_time(piece):
    prompt = 'def f(x):\n    """' + piece * (250_000 // len(piece))
    started = time.process_time()
    assert len(examples_of(prompt, "f")) <= 20
    assert time.process_time() - started < 2


SWAPS = {
    "+": "-", "-": "+", "*": "+", "/": "*", "//": "*", "%": "+", "<": "<=", "<=": "<", ">": ">=", ">=": ">",
    "==": "!=", "!=": "==", "and": "or", "or": "and", "True": "False", "False": "True", "not": "", "in": "not in",
    "min": "max", "max": "min", "sum": "len", "len": "sum", "append": "extend", "upper": "lower", "lower": "upper",
    "is": "is not", "any": "all", "all": "any", "range": "list", "+=": "-=", "-=": "+=", "break": "continue",
}  # fmt: skip


def mutants(solution):
    """Solutions that differ from this one in one token, in an order that a seed decides."""
    lines, changes = solution.splitlines(keepends=True), []
    for token in tokenize.generate_tokens(io.StringIO("def f():\n" + solution).readline):
        changed = SWAPS.get(token.string)
        if token.type == tokenize.NUMBER and token.string.isdigit():
            changed = str(int(token.string) + 1)
        if changed is not None and token.start[0] >= 2:
            row, line = token.start[0] - 2, lines[token.start[0] - 2]
            line = line[: token.start[1]] + changed + line[token.end[1] :]
            changes.append("".join([*lines[:row], line, *lines[row + 1 :]]))
    random.Random(0).shuffle(changes)
    return changes


def really_wrong(program, item):
    """Whether the official test, run directly, ends and does not pass: the route that the grader does not take."""
    source = f"{program}\n\n{item.metadata['test']}\n\ncheck({item.metadata['entry_point']})\n"
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False  # a mutant that is no program is no test of the grader
    # One that appends for ever fails for want of memory; one that does not end is killed, and not counted.
    limits = "import resource as r; r.setrlimit(r.RLIMIT_AS, (1 << 30, 1 << 30)); r.setrlimit(r.RLIMIT_CPU, (1, 1))\n"
    command = [sys.executable, "-P", "-s", "-S", "-c", limits + "del r\n" + source]
    return subprocess.run(command, capture_output=True, env={"PYTHONHASHSEED": "0"}).returncode == 1


def broken_solutions(item):
    """Up to two mutants of an item's solution that are really wrong, of twenty that are tried."""
    prompt = item.metadata["prompt"]
    tried = (prompt + changed for changed in mutants(item.gold[len(prompt) :])[:20])
    wrong = (program for program in tried if really_wrong(program, item))
    return [program for program, _ in zip(wrong, range(2), strict=False)]


@pytest.mark.slow
def test_100_canonical_solutions_are_right_and_100_broken_ones_wrong():
    """A mutant counts only if the official test rejects it by another route; a question gives two where others none."""
    benchmark = load("humaneval", slice_path("humaneval_first100.jsonl"))
    items, grade = benchmark.items, benchmark.grader.grade
    with ThreadPoolExecutor(4) as threads:
        right = list(threads.map(lambda item: grade(item.gold, item), items))
        made = list(threads.map(broken_solutions, items))
        pairs = [(found[n], item) for n in (0, 1) for item, found in zip(items, made, strict=True) if found[n:]][:100]
        wrong = list(threads.map(lambda pair: grade(*pair), pairs))
    assert right == [True] * 100
    assert wrong == [False] * 100


def test_real_solutions_as_responses():
    benchmark = load("humaneval", slice_path("humaneval_first100.jsonl"), limit=8, offset=30)
    for item in benchmark.items:
        body = item.gold[len(item.metadata["prompt"]) :]
        texts = [body, f"```python\n{item.gold}\n```", "    return None\n"]
        assert [read(benchmark.grader, text, item).correct for text in texts] == [True, True, False], item.question_id
