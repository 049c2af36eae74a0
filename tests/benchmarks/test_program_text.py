"""Programs in responses: every form in which a model writes one, and hostile lengths. The programs here are our own, so
they are run directly."""

import ast
import math
import time
import tracemalloc

import pytest

from dps.benchmarks.program_text import find_program, find_strict_program, leading_code
from tests.benchmarks.data import cases, load, slice_path

CASES = cases("programs")
PROMPT = CASES["prompt"]
CODE = "def area(r):\n    return math.pi * r * r\n"
LONG = ["    return " + "1 + " * 10_000 + "1\n", "    return '" + "a" * 30_000 + "'\n"]


def works(program, name="area"):
    """Whether the program's function computes the area; a statement that shows its use must not run."""
    if program is None:
        return None

    def used(*arguments):
        raise AssertionError("use was run")

    names = {"__name__": "candidate", "input": used, "print": used, "exit": used}
    exec(compile(program, "program.py", "exec"), names)
    return math.isclose(names[name](3), 9 * math.pi)


@pytest.mark.parametrize("name", CASES["strict"])
def test_every_strict_form_is_read(name):
    text = CASES["strict"][name]
    assert works(find_strict_program(text, PROMPT, "area")), name
    assert find_program(text, PROMPT, "area") == find_strict_program(text, PROMPT, "area")


@pytest.mark.parametrize("name", CASES["flexible"])
def test_every_flexible_form_is_read(name):
    text = CASES["flexible"][name]
    assert find_strict_program(text, PROMPT, "area") is None
    assert works(find_program(text, PROMPT, "area")), name


@pytest.mark.parametrize("text", CASES["nothing"] + LONG, ids=lambda text: repr(text[:40]))
def test_what_is_no_program_is_no_answer(text):
    assert find_program(text, PROMPT, "area") is None


def test_a_function_of_coroutines_is_a_definition():
    program = find_program("```python\nasync def area(r):\n    return math.pi * r * r\n```", PROMPT, "area")
    assert isinstance(ast.parse(program).body[-1], ast.AsyncFunctionDef)


@pytest.mark.parametrize(("prompt", "text"), CASES["prompts"])
def test_prompts_of_other_forms(prompt, text):
    assert works(find_program(text, prompt, "area"))


@pytest.mark.parametrize("prose", CASES["prose"])
def test_leading_code_ends_where_python_does(prose):
    code = "import a\n@b\ndef f(x):\n    if x:\n        return '''\nx'''\n    else:\n        return 1\n"
    assert leading_code(code + prose + "\nmore\n").strip() == code.strip()


def solution_forms(prompt, body, name):
    """A right solution in each form in which models write them."""
    code = prompt + body
    indented = "".join("   " + line for line in code.splitlines(keepends=True))
    lines = code.split("\n")
    head = "\n".join(lines[next(row for row, line in enumerate(lines) if f"def {name}" in line) :])
    imports = code[: code.index(f"def {name}")]
    return {
        "continuation": body,
        "continuation and prose": body + "\nThis function does what was asked.\n",
        "a space lost": body.removeprefix(" "),
        "windows": body.replace("\n", "\r\n"),
        "then another": body + f"\n\ndef {name}(*arguments):\n    return None\n",
        "then a check": body + f"\n\nif __name__ == '__main__':\n    print({name}())\n",
        "fence": f"Here:\n\n```python\n{code}\n```\nIt works.",
        "fence of tildes": f"~~~\n{code}\n~~~",
        "not closed": f"```python\n{code}",
        "function alone": f"```python\n{head}\n```",
        "use after it": f"```python\n{code}\nprint({name}())\nassert {name}() is input()\n```",
        "in a list": f"1. So:\n\n   ```python\n{indented}\n   ```\n",
        "blocks": f"```python\n{imports}\n```\nand\n```py\n{head}\n```\n```python\n{name}(1)\n```\n```\n3\n```",
        "running text": f"Sure, here it is:\n\n{code}\n\nI hope that's fine.",
        "body in a fence": f"```python\n{body}\n```",
    }


def function_in(program, name):
    function = [n for n in ast.parse(program).body if isinstance(n, ast.FunctionDef) and n.name == name][-1]
    return ast.dump(ast.parse("\n".join(ast.unparse(part) for part in function.body[1:])))


def test_every_canonical_solution_is_read_in_every_form():
    for item in load("humaneval", slice_path("humaneval_first100.jsonl")).items:
        prompt, name = item.metadata["prompt"], item.metadata["entry_point"]
        for form, text in solution_forms(prompt, item.gold[len(prompt) :], name).items():
            program = find_program(text, prompt, name)
            assert program is not None, (item.question_id, form)
            assert function_in(program, name) == function_in(item.gold, name), (item.question_id, form)


@pytest.mark.parametrize("piece", CASES["pieces"])
def test_long_responses_are_read_in_time(piece):
    text = piece * (100_000 // len(piece))
    for start in ("", "```python\n", "    return 1\n", CODE):
        started = time.process_time()
        find_program(start + text, PROMPT, "area")
        assert time.process_time() - started < 2, start


def test_long_responses_take_little_memory():
    for piece in ("```\nx = 1\n```\n", "```\n", "import a\n", "-", "[", "area = lambda: ", "\n"):
        text = piece * (100_000 // len(piece))
        tracemalloc.start()
        find_program(text, PROMPT, "area")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 40e6, piece
