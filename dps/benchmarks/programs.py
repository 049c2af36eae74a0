"""Answers that are programs: found in a response, graded by their tests, compared by what they do.

Two programs are in one class when they say the same of the examples in the question's own docstring; a vote among
classes needs no test (METHOD section 2). The programs run in ``sandbox``.
"""

from __future__ import annotations

import ast
import doctest
import hashlib
import json
import math
import re
import threading
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from typing import Any

from dps.benchmarks.grading import Grader, Item, idle_cores
from dps.benchmarks.program_text import LONGEST_PROGRAM, find_program, find_strict_program, parsed
from dps.benchmarks.sandbox import run_program

_MOST_EXAMPLES = 20
_KEPT = 50_000
"""Verdicts that are remembered, as a digest and a few words each: some 15 MB."""

_running = threading.BoundedSemaphore(idle_cores())
_lock = threading.Lock()
_verdicts: dict[bytes, str] = {}
"""What came of a program by the digest of all that decides it: of a test the kind of verdict, of examples a digest."""


@dataclass(frozen=True, slots=True)
class CodeGrader(Grader):
    """Reads responses that complete a Python function.

    An item's metadata has ``prompt`` (the function's head with its docstring), ``test`` (source that defines
    ``check(candidate)``) and ``entry_point`` (the function's name).
    """

    background = "threads"

    def extract(self, text: str, item: Item) -> str | None:
        """Return the whole program of a response in any form, see :func:`~dps.benchmarks.program_text.find_program`."""
        return find_program(text, item.metadata["prompt"], item.metadata["entry_point"])

    def extract_strict(self, text: str, item: Item) -> str | None:
        """Return the program of code blocks that define the function, or of a text that continues the prompt."""
        return find_strict_program(text, item.metadata["prompt"], item.metadata["entry_point"])

    def is_right(self, answer: str, item: Item) -> bool | None:
        """Return whether the program passes the test; None where the test itself is at fault."""
        kind = _remembered(answer, item, ())
        return None if kind == "broken" else kind == "passed"

    def key(self, answer: str, item: Item) -> str:
        """Return a digest of what a program gives for the prompt's examples.

        Without examples, and for programs that fail on all of them, only equal source (but for comments and layout) is
        the same.
        """
        examples = examples_of(item.metadata["prompt"], item.metadata["entry_point"])
        if outputs := _remembered(answer, item, examples) if examples else "":
            return outputs
        tree = parsed(answer) if len(answer) <= LONGEST_PROGRAM else None
        try:
            return _digest(answer if tree is None else ast.dump(tree)).hex()
        except (ValueError, RecursionError, MemoryError):  # too deep to be printed, or a number of too many digits
            return _digest(answer).hex()


@lru_cache(maxsize=256)
def examples_of(prompt: str, entry_point: str) -> tuple[str, ...]:
    """Return the calls of the function in a prompt's docstring, as expressions, in order.

    Read are lines that begin with ``>>>``, and calls before ``==``, ``=>``, ``->``, ``➞`` or "returns".
    """
    lines = prompt.splitlines()
    try:
        sources = [example.source.strip() for example in doctest.DocTestParser().get_examples(prompt)]
    except ValueError:  # the examples are not quite doctests
        sources = [line.strip()[3:].strip() for line in lines if line.strip().startswith(">>>")]
    shown = [line for line in lines if not line.strip().startswith((">>>", "def "))]
    sources += [call for line in shown if (call := _call_in(line, entry_point)) is not None]
    calls = (source for source in dict.fromkeys(sources) if f"{entry_point}(" in source and parsed(source, "eval"))
    return tuple(islice(calls, _MOST_EXAMPLES))


def _call_in(line: str, entry_point: str) -> str | None:
    """Return the call of the function that a line of text shows with its result."""
    start, depth = line.find(f"{entry_point}("), 0
    for place in range(start, len(line)) if start >= 0 else ():
        depth += (line[place] in "([{") - (line[place] in ")]}")
        if depth == 0 and line[place] == ")":
            shown = re.match(r"""[`'"]?\s*(?:==|=>|->|➞|=|returns?\b|should\b|\#)""", line[place + 1 :])
            return line[start : place + 1] if shown else None
    return None


def _canonical(output: Any) -> Any:
    """Return an encoded value so that equal values are the same: 1, 1.0 and True, sets and dictionaries in any order.

    Floats, decimals and fractions are rounded to nine digits, since a sum in another order ends in other ones.
    """
    if output is None or isinstance(output, dict):
        return output
    kind, content = ["int", hex(output)] if isinstance(output, bool) else output
    if kind == "int":
        return ["number", hex(int(content, 16))]
    if kind == "float":
        return _canonical_number(float.fromhex(content), content)
    if kind == "decimal":
        return ["number", "nan"] if "nan" in content.lower() else _canonical_number(float(content), content)
    if kind == "fraction":
        value = Fraction(*(int(part, 16) for _, part in content))
        if value.denominator == 1:
            return ["number", hex(int(value))]
        try:
            return _canonical_number(float(value), str(content))
        except OverflowError:
            return ["number", str(content)]
    if kind in ("list", "tuple", "range", "iterator", "deque", "values"):
        return [kind, [_canonical(part) for part in content]]
    if kind in _UNORDERED:
        return [_UNORDERED[kind], sorted(json.dumps(_canonical(part)) for part in content)]
    return output


_UNORDERED = {"set": "set", "frozenset": "set", "keys": "set", "items": "set"}
_UNORDERED |= {"dict": "dict", "Counter": "dict", "OrderedDict": "dict", "mapping": "dict"}
"""What has no order, by what is equal to each other."""


def _canonical_number(value: float, exact: str) -> list[str]:
    """Return the canonical form of a number that is about a float; beyond a float's range, what it is exactly."""
    if math.isinf(value) and "inf" not in exact.lower():
        return ["number", exact]
    value = float(f"{value:.9g}")
    return ["number", hex(int(value)) if value.is_integer() else repr(value)]


def _remembered(program: str, item: Item, examples: tuple[str, ...]) -> str:
    """Run a program through the item's test, or its examples where there are any, unless that has been done.

    Returns:
        Of a test the kind of verdict. Of examples a digest of the outputs, empty where every example failed.
    """
    prompt, entry_point, test = (item.metadata[name] for name in ("prompt", "entry_point", "test"))
    key = _digest(item.question_id, prompt, entry_point, test, program, *examples)
    with _lock:
        if key in _verdicts:
            return _verdicts[key]
    check = {"examples": examples} if examples else {"test": test}
    with _running:
        verdict = run_program(program, check | {"prompt": prompt, "entry_point": entry_point})
    result = verdict.kind
    if examples:
        failed = all(isinstance(output, dict) for output in verdict.outputs)  # exceptions
        result = "" if failed else _digest(json.dumps([_canonical(output) for output in verdict.outputs])).hex()
    with _lock:
        while len(_verdicts) >= _KEPT:
            del _verdicts[next(iter(_verdicts))]  # the oldest
        _verdicts[key] = result
    return result


def _digest(*texts: str) -> bytes:
    """Return a digest of texts; where one ends counts."""
    whole = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.digest()
