"""Answers that are programs: found in a response, graded by their tests, compared by what they do.

Two programs are in one class when they say the same of the examples in the question's own docstring; a vote among
classes needs no test (METHOD section 2). The programs run in ``sandbox``.
"""

from __future__ import annotations

import ast
import doctest
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dps.benchmarks.grading import number_classes
from dps.benchmarks.sandbox import Verdict, run_examples, run_test

if TYPE_CHECKING:
    from dps.benchmarks.benchmark import Item

LONGEST_PROGRAM = 20_000
"""Characters; what is longer is no answer."""
_AT_ONCE = 4
"""Programs that run at a time."""
_MOST_EXAMPLES = 20
_KEPT = 100_000
"""Verdicts that are remembered."""

_FENCE = re.compile(r"```[ \t]*(?:(?:[Pp]ython3?|py)[ \t]*)?\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_CODE_LINE = re.compile(r"\s|from |import |def |class |@|#|\)|[A-Za-z_]\w*(?::[^=]*)? = ")
"""How a line of a program may begin."""
_running = threading.BoundedSemaphore(_AT_ONCE)
_lock = threading.Lock()
_verdicts: dict[tuple[str, ...], Verdict] = {}


@dataclass(frozen=True, slots=True)
class CodeGrader:
    """Reads responses that complete a Python function.

    An item's metadata has ``prompt`` (the function's head with its docstring), ``test`` (source that defines
    ``check(candidate)``) and ``entry_point`` (the function's name).
    """

    in_background: bool = True

    def extract(self, text: str, item: Item) -> str | None:
        """Return the whole program: the last code block that defines the function, or the prompt continued.

        What comes before the function in the prompt (imports, helpers) is put before a code block.
        """
        strict = self.extract_strict(text, item)
        if strict is not None:
            return strict
        name, prompt = item.metadata["entry_point"], item.metadata["prompt"]
        found = re.search(rf"^def {re.escape(name)}\(", text, re.MULTILINE)
        if found is None:
            return None
        code = _end_of_code(text[: found.start()]) + _top_level(text[found.start() :])
        return _program(_before_function(prompt, name) + code, name)

    def extract_strict(self, text: str, item: Item) -> str | None:
        """Return the program of a code block that defines the function, or of a text that continues the prompt."""
        name, prompt = item.metadata["entry_point"], item.metadata["prompt"]
        blocks = [
            block for block in _FENCE.findall(text) if re.search(rf"^def {re.escape(name)}\(", block, re.MULTILINE)
        ]
        if blocks:
            return _program(_before_function(prompt, name) + _without_use(blocks[-1]) + "\n", name)
        if "```" in text.lstrip()[:3]:
            return None
        return _program(prompt + _body(text), name)

    def grade(self, answer: str | None, item: Item) -> bool | None:
        """Return whether the program passes the test; None where the test itself is at fault."""
        if item.gold is None:
            return None
        if answer is None:
            return False
        verdict = _remembered(answer, item, "")
        return None if verdict.kind == "broken" else verdict.kind == "passed"

    def classes(self, answers: Sequence[str | None], item: Item) -> list[int]:
        """Return each program's class: the same outputs on the prompt's examples.

        Without examples, and for programs that fail on all of them, only equal source (but for comments and layout) is
        the same.
        """
        examples = examples_of(item.metadata["prompt"], item.metadata["entry_point"])
        return number_classes([None if answer is None else _behaviour(answer, item, examples) for answer in answers])


def examples_of(prompt: str, entry_point: str) -> list[str]:
    """Return the calls of the function in a prompt's docstring, as expressions, in order.

    Read are lines that begin with ``>>>``, and calls before ``==``, ``=>``, ``->``, ``➞`` or "returns".
    """
    found = []
    try:
        found = [example.source.strip() for example in doctest.DocTestParser().get_examples(prompt)]
    except ValueError:  # the examples are not quite doctests
        found = [line.strip()[3:].strip() for line in prompt.splitlines() if line.strip().startswith(">>>")]
    for line in prompt.splitlines():
        if not line.strip().startswith((">>>", "def ")) and (call := _call_in(line, entry_point)) is not None:
            found.append(call)
    calls = (source for source in found if f"{entry_point}(" in source and _is_expression(source))
    return list(dict.fromkeys(calls))[:_MOST_EXAMPLES]


def _call_in(line: str, entry_point: str) -> str | None:
    """Return the call of the function that a line of text shows with its result."""
    start = line.find(f"{entry_point}(")
    if start < 0:
        return None
    depth = 0
    for place in range(start, len(line)):
        depth += (line[place] in "([{") - (line[place] in ")]}")
        if depth == 0 and line[place] == ")":
            shown = re.match(r"""[`'"]?\s*(?:==|=>|->|➞|=|returns?\b|should\b|\#)""", line[place + 1 :])
            return line[start : place + 1] if shown else None
    return None


def _is_expression(source: str) -> bool:
    try:
        ast.parse(source, mode="eval")
    except (SyntaxError, ValueError):
        return False
    return True


def _behaviour(program: str, item: Item, examples: list[str]) -> str:
    """Return what programs of one class have in common."""
    if examples:
        verdict = _remembered(program, item, json.dumps(examples))
        outputs = [output for output in verdict.outputs if not (isinstance(output, dict) and "raised" in output)]
        if outputs:
            return json.dumps([_canonical(output) for output in verdict.outputs])
    try:
        return ast.dump(ast.parse(program))
    except (ValueError, RecursionError, MemoryError):  # too deep to be printed, or a number of too many digits
        return program


def _canonical(output: Any) -> Any:
    """Return an encoded value so that equal values are the same: 1, 1.0 and True, sets and dictionaries in any order.

    Floats are rounded to nine digits, since a sum in another order ends in other ones.
    """
    if output is None or isinstance(output, dict):
        return output
    kind, *parts = ["i", hex(output)] if isinstance(output, bool) else output
    if kind == "i":
        return ["n", hex(int(parts[0], 16))]
    if kind == "f":
        value = float(f"{float.fromhex(parts[0]):.9g}")
        return ["n", hex(int(value)) if value.is_integer() else repr(value)]
    if kind in ("list", "tuple", "range", "iterator"):
        return [kind, [_canonical(part) for part in parts[0]]]
    if kind in ("set", "frozenset"):
        return ["set", sorted(json.dumps(_canonical(part)) for part in parts[0])]
    if kind == "dict":
        return ["dict", sorted(json.dumps([_canonical(key), _canonical(part)]) for key, part in parts[0])]
    return output


def _remembered(program: str, item: Item, examples: str) -> Verdict:
    """Run a program through the item's test, or its examples where there are any, unless that has been done."""
    key = (item.question_id, item.metadata["test"], program, examples)
    with _lock:
        if key in _verdicts:
            return _verdicts[key]
    settings = {"prompt": item.metadata["prompt"], "entry_point": item.metadata["entry_point"]}
    with _running:
        if examples:
            verdict = run_examples(program, examples=json.loads(examples), **settings)
        else:
            verdict = run_test(program, test=item.metadata["test"], **settings)
    with _lock:
        if len(_verdicts) >= _KEPT:
            _verdicts.clear()
        _verdicts[key] = verdict
    return verdict


def _program(source: str, entry_point: str) -> str | None:
    """Return a source if it is a program that defines the function, None otherwise."""
    source = source.rstrip() + "\n"
    if len(source) > LONGEST_PROGRAM:
        return None
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    defined = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    last = [node for node in defined if node.name == entry_point][-1:]
    # A head without a body is what the model left undone.
    return source if last and not _is_stub(last[0]) else None


def _is_stub(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function has nothing but its docstring."""
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in function.body)


def _before_function(prompt: str, entry_point: str) -> str:
    """Return what a prompt has before the function: imports and helpers."""
    found = re.search(rf"^def {re.escape(entry_point)}\(", prompt, re.MULTILINE)
    return prompt[: found.start()] if found else ""


def _without_use(block: str) -> str:
    """Return a code block without what comes after its last definition: calls that show the function's use.

    They may wait for input, or assert what is wrong.
    """
    try:
        nodes = ast.parse(block).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return block
    ends = [n.end_lineno for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    return "\n".join(block.split("\n")[: max(ends)]) if ends else block


def _end_of_code(text: str) -> str:
    """Return the lines at the end of a text that belong to a program: imports, helpers, constants."""
    lines = text.split("\n")
    start = len(lines)
    while start and (not lines[start - 1] or _CODE_LINE.match(lines[start - 1])):
        start -= 1
    return "\n".join(lines[start:])


def _body(text: str) -> str:
    """Return a continuation up to the first line that is no longer in the function."""
    lines = text.split("\n")
    kept = lines[:1]
    for line in lines[1:]:
        if line and not line[0].isspace() and not line.startswith(")"):
            break
        kept.append(line)
    return "\n".join(kept)


def _top_level(text: str) -> str:
    """Return the definitions and imports that a text begins with, up to the first line that is none."""
    kept: list[str] = []
    for line in text.split("\n"):
        starts = line and not line[0].isspace()
        if starts and not line.startswith(("def ", "from ", "import ", "class ", "@", ")", "#")):
            break
        kept.append(line)
    return "\n".join(kept)
