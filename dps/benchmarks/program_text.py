"""From a response's text to the Python program that it gives: pure functions of strings, nothing is run here.

Where a program ends is decided by Python's own tokens and grammar, one top-level statement after the other, and not by
the columns in which lines begin. What belongs to it is said at :func:`without_use`. Of a response that is longer than
any program only bounded parts are parsed, so that reading takes time in proportion to the response's length.
"""

from __future__ import annotations

import ast
import builtins
import re
import tokenize
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import Any

from dps.benchmarks.program_use import (
    DEFINITIONS,
    bound_names,
    definition_of,
    loaded_names,
    parts_of,
    without_use,
)

LONGEST_PROGRAM = 20_000
"""Characters; what is longer is no answer."""
_MOST_BLOCKS = 100
"""Code blocks of a response that are looked at, from the end."""
_MOST_TRIES = 5
"""Places at which a program is looked for in running text."""

_FENCE = re.compile(
    r"^(?P<indent>[ \t]*(?:(?:[-*+]|[0-9]{1,3}[.)])[ \t]+)?)(?P<mark>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$", re.MULTILINE
)
_QUOTED_FENCE = re.compile(r"^> ?(?:```|~~~)", re.MULTILINE)
_CODE_LINE = re.compile(r"\Z|\s|from |import |def |async |class |@|#|[)\]}]|[A-Za-z_]\w*(?::[^=]*)? = ")
"""How a line of a program may begin."""
_DECORATOR = re.compile("@")
_CONTINUES = frozenset({"else", "elif", "except", "finally"})
_BUILTINS = frozenset(dir(builtins)) | {"__name__"}
_LEAVING = (ast.Return, ast.Yield, ast.YieldFrom, ast.Await)
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)


def find_strict_program(text: str, prompt: str, entry_point: str) -> str | None:
    """Return the program of the code blocks that define the function, or of a text that continues the prompt.

    The last block that defines the function is the program, with the other blocks that can run beside it: imports and
    helpers may stand in blocks of their own, and what a later block defines again holds. What the prompt has before
    the function, up to and with its head and docstring, is put before them. A text that continues the prompt may have
    lost the space that it begins with.
    """
    text, prompt = _clean(text), _clean(prompt)
    before, blocks = _fenced(text)
    program = _from_blocks(blocks, prompt, entry_point)
    # What looks like a fence may stand in a string of the continuation.
    texts = dict.fromkeys([before, text]) if program is None and before.strip() else ()
    for continuation in texts:
        program = program or _continued(continuation, prompt, entry_point)
    return program


def find_program(text: str, prompt: str, entry_point: str) -> str | None:
    """Return the program of a response in any form, see :func:`find_strict_program`.

    After the strict forms: a definition within running text; a code block, or a text, with the function's body alone,
    indented or not.
    """
    program = find_strict_program(text, prompt, entry_point)
    if program is not None:
        return program
    text, prompt = _clean(text), _clean(prompt)
    before, blocks = _fenced(text)
    preamble = _before_function(prompt, entry_point)
    code = _within(text, entry_point, preamble)
    if code is not None:
        return _finished(preamble + code, entry_point)
    bodies = (_as_body(block, prompt, entry_point) for block in (*reversed(blocks), before))
    return next((program for program in bodies if program is not None), None)


def parsed(source: str, mode: str = "exec") -> Any:
    """Return a source's syntax tree; None if it is no Python (``eval``: no expression), or too deep for the parser."""
    try:
        return ast.parse(source, mode=mode)
    except _UNREADABLE:
        return None


def leading_code(source: str) -> str:
    """Return the whole top-level statements with which a text begins, up to the first that is no Python."""
    if parsed(source) is not None:
        return source
    lines, good = source.split("\n"), 0
    for start, end in pairwise(_statement_rows(lines)):
        if parsed("\n".join(lines[start:end])) is None:
            break
        good = end
    return "\n".join(lines[:good])


def _statement_rows(lines: list[str]) -> list[int]:
    """Return the rows at which top-level statements begin, and at last the row at which no more tokens are found."""
    rows: list[int] = []
    depth, begins, decorated = 0, True, False
    try:
        for token in _tokens(lines):
            depth += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
            if token.type == tokenize.NEWLINE:
                begins = True
            elif begins and token.type not in _BETWEEN:
                if depth == 0:
                    if not decorated and token.string not in _CONTINUES:
                        rows.append(token.start[0] - 1)
                    decorated = token.string == "@"
                begins = False
    except tokenize.TokenError as error:  # a string or a bracket that is not closed
        return [*rows, max(error.args[1][0] - 1, rows[-1] if rows else 0)]
    except IndentationError as error:
        return [*rows, (error.lineno or 1) - 1]
    except _UNREADABLE:
        return rows
    return [*rows, len(lines)]


_BETWEEN = (tokenize.NL, tokenize.COMMENT, tokenize.ENDMARKER, tokenize.INDENT, tokenize.DEDENT)


def _tokens(lines: Iterable[str]) -> Iterator[tokenize.TokenInfo]:
    reader = iter([line + "\n" for line in lines])
    return tokenize.generate_tokens(lambda: next(reader, ""))


def _clean(text: str) -> str:
    """Return a text with line ends of one kind, lines that begin with usual spaces, and quoted code as it is."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    text = re.sub(r"^[ \t]*\u00a0[ \t\u00a0]*", lambda match: match[0].replace("\u00a0", " "), text, flags=re.MULTILINE)
    return re.sub(r"^> ?", "", text, flags=re.MULTILINE) if _QUOTED_FENCE.search(text) else text


def _fenced(text: str) -> tuple[str, list[str]]:
    """Return what stands before the first fence, and the contents of the last code blocks, in order.

    A block ends at a fence of the same kind, at one that opens another block, or at the response's end. A block in a
    list is moved to the left by the column of its fence.
    """
    before, opened = None, None
    blocks: deque[str] = deque(maxlen=_MOST_BLOCKS)
    for fence in _FENCE.finditer(text):
        if before is None:
            before = text[: fence.start()]
        if opened is not None:
            same = fence["mark"][0] == opened["mark"][0] and len(fence["mark"]) >= len(opened["mark"])
            if not same or _column(fence) > _column(opened) + 3:
                continue
            blocks.append(_content(text, opened, fence.start()))
        opened = None if opened is not None and not fence["info"].strip() else fence
    if opened is not None:
        blocks.append(_content(text, opened, len(text)))
    kept, total = [], 0
    for block in reversed(blocks):
        total += len(block)
        if total > 5 * LONGEST_PROGRAM:
            break
        kept.append(block)
    return text if before is None else before, kept[::-1]


def _column(fence: re.Match[str]) -> int:
    return len(fence["indent"].expandtabs())


def _content(text: str, fence: re.Match[str], end: int) -> str:
    """Return the code of a block from its fence to an end: bounded, moved to the left, without ``>>>``."""
    part = _bounded(text[fence.end() + 1 : min(end, fence.end() + 1 + LONGEST_PROGRAM)], end)
    lines = _moved(part.split("\n"), _column(fence), " ")
    first = next((line for line in lines if line.strip()), "")
    if first.startswith(">>>"):
        lines = [line[4:] for line in lines if line.startswith((">>>", "..."))]
    return "\n".join(lines) + "\n"


def _bounded(text: str, length: int | None = None) -> str:
    """Return the whole lines with which a text of that length begins, as many as a program may have."""
    part, length = text[:LONGEST_PROGRAM], len(text) if length is None else length
    return part.rpartition("\n")[0] if len(part) == LONGEST_PROGRAM < length else part


def _moved(lines: Iterable[str], width: int, space: str | None = None) -> list[str]:
    """Return lines moved to the left by up to so many characters of space."""
    return [line[min(width, len(line) - len(line.lstrip(space))) :] for line in lines]


def _from_blocks(blocks: list[str], prompt: str, entry_point: str) -> str | None:
    """Return the program of code blocks, None if none of them defines the function."""
    preamble, codes = _before_function(prompt, entry_point), []
    for block in blocks:
        code = leading_code(block)
        if _defined(code, entry_point) is None and parsed(block) is None:
            code = _within(block, entry_point, preamble) or code
        codes.append(code)
    defining = [number for number, code in enumerate(codes) if _defined(code, entry_point) is not None]
    if not defining:
        return None
    known, parts = _BUILTINS | _bound(parsed(preamble)), [preamble]
    for number, code in enumerate(codes):
        tree = parsed(code)
        bound = _bound(tree)
        if number != defining[-1]:
            stub = number > defining[-1] and entry_point in bound
            # A block that leaves a function at top level is a part of one.
            if stub or tree is None or _leaves(tree.body, _LEAVING) or not _runs(tree.body, known | bound):
                continue
        known = known | bound
        parts.append(code)
    return _finished("\n".join(part.rstrip("\n") for part in parts if part.strip()), entry_point)


def _bound(tree: ast.Module | None) -> set[str]:
    return set() if tree is None else {name for node in tree.body for name, _ in bound_names(node)}


def _runs(nodes: list[ast.stmt], known: set[str]) -> bool:
    """Whether statements need no other names than these when they run; ``import *`` may bring any."""
    return "*" in known or loaded_names(nodes, at_once=True) <= known


def _leaves(body: list[ast.stmt], kinds: tuple[type, ...], closed: tuple[type, ...] = DEFINITIONS) -> bool:
    """Whether one of these kinds of nodes is in a body; those within definitions do not count."""
    return any(
        isinstance(part, kinds) for node in body if not isinstance(node, closed) for part in parts_of(node, closed)
    )


def _continued(text: str, prompt: str, entry_point: str) -> str | None:
    """Return the program of a prompt and the text that continues it, up to what is no longer code."""
    part, start = _bounded(text), _ended(prompt)
    as_given = (prompt + part, start + part)
    for source in (*as_given, start + _body_indent(prompt, entry_point) + part.lstrip("\n").lstrip(" \t")):
        code = _code_with(leading_code(source), entry_point)
        # With a space put before it, a word of English is a function's body.
        if code is not None and (source in as_given or _returns(code, entry_point)):
            return _finished(code, entry_point)
    return None


def _ended(prompt: str) -> str:
    return prompt if prompt.endswith("\n") or not prompt else prompt + "\n"


def _returns(code: str, entry_point: str) -> bool:
    """Whether the function gives something back, or raises; those within it do not count."""
    function = _defined(code, entry_point)
    inner = (*DEFINITIONS, ast.Lambda)
    return isinstance(function, DEFINITIONS) and _leaves(function.body, (*_LEAVING, ast.Raise), inner)


def _code_with(code: str, entry_point: str, preamble: str = "") -> str | None:
    """Return a source up to the function, and on while it is clearly code; None if it does not define the function.

    A word of English may be an expression. A second definition of the function begins something else.
    """
    tree = parsed(code)
    if tree is None:
        return None
    known, last, defined = _BUILTINS | _bound(parsed(preamble)), 0, False
    for node in tree.body:
        own = known | {name for name, _ in bound_names(node)}
        defines = definition_of([node], entry_point) is not None
        if defined:
            clear = not isinstance(node, ast.Expr) or isinstance(node.value, ast.Call)
            empty = isinstance(node, ast.AnnAssign) and node.value is None
            if defines or not clear or empty or not _runs([node], own):
                break
        known, last, defined = own, node.end_lineno or last, defined or defines
    return "\n".join(code.split("\n")[:last]) + "\n" if defined else None


def _within(text: str, entry_point: str, preamble: str) -> str | None:
    """Return the program around the first definition of the function within running text; None if there is none."""
    name = re.escape(entry_point)
    head = re.compile(rf"^([ \t]*)(?:(?:async[ \t]+)?def[ \t]+{name}\b|{name} *=)", re.MULTILINE)
    for match in islice(head.finditer(text), _MOST_TRIES):
        width = len(match[1])
        after = _bounded(text[match.start() : match.start() + LONGEST_PROGRAM], len(text) - match.start())
        earlier = _moved(text[max(0, match.start() - LONGEST_PROGRAM) : match.start()].split("\n"), width)
        for begins in (_CODE_LINE, _DECORATOR):
            source = "\n".join([*_ending(earlier, begins), *_moved(after.split("\n"), width)])
            code = _code_with(leading_code(source), entry_point, preamble)
            if code is not None:
                return code
    return None


def _ending(lines: list[str], begins: re.Pattern[str]) -> list[str]:
    """Return the lines before the last, which is empty, that begin in this way."""
    start = len(lines) - 1
    while start > 0 and begins.match(lines[start - 1]):
        start -= 1
    return lines[start:-1]


def _as_body(text: str, prompt: str, entry_point: str) -> str | None:
    """Return the program whose function has a text as its body, whatever that is indented by; it must return."""
    lines = re.sub(r"\A(?:[ \t]*\n)+", "", _bounded(text)).rstrip("\n").split("\n")
    width = len(lines[0]) - len(lines[0].lstrip())
    lines = leading_code("\n".join(_shifted(lines, width, ""))).split("\n")
    source = _ended(prompt) + "\n".join(_shifted(lines, 0, _body_indent(prompt, entry_point))) + "\n"
    return _finished(source, entry_point) if _returns(source, entry_point) else None


def _shifted(lines: list[str], width: int, indent: str) -> list[str]:
    """Return lines with other spaces before them; what stands within a string of several lines stays."""
    inside = set(_rows_in_strings(lines, width))
    return [
        line if row in inside or not line.strip() else indent + _moved([line], width)[0]
        for row, line in enumerate(lines)
    ]


def _rows_in_strings(lines: list[str], width: int) -> Iterator[int]:
    """Yield the rows that begin within a string."""
    start = None
    try:
        for token in _tokens((["if 1:"] if width else []) + lines):
            name = tokenize.tok_name[token.type]
            if name == "FSTRING_START":
                start = token.start[0]
            first = start if name == "FSTRING_END" and start else token.start[0]
            if name in ("STRING", "FSTRING_END"):
                yield from (row - (2 if width else 1) for row in range(first + 1, token.end[0] + 1))
    except (tokenize.TokenError, SyntaxError):
        return


def _head(prompt: str, entry_point: str) -> re.Match[str] | None:
    return re.search(rf"^([ \t]*)(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b", prompt, re.MULTILINE)


def _before_function(prompt: str, entry_point: str) -> str:
    """Return what a prompt has before the function: imports and helpers."""
    head = _head(prompt, entry_point)
    return prompt[: head.start()] if head else ""


def _body_indent(prompt: str, entry_point: str) -> str:
    """Return the space before the function's body, as its docstring in the prompt has it."""
    tree, head = parsed(prompt), _head(prompt, entry_point)
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, DEFINITIONS) and node.name == entry_point:
            line = prompt.split("\n")[node.body[0].lineno - 1]
            if indent := line[: len(line) - len(line.lstrip())]:
                return indent
    return (head[1] if head else "") + "    "


def _defined(code: str, entry_point: str) -> ast.AST | None:
    tree = parsed(code)
    return None if tree is None else definition_of(tree.body, entry_point)


def _finished(source: str, entry_point: str) -> str | None:
    """Return a program without what only shows its use, imports from the future first; None if it is too long."""
    tree = parsed(source)
    if tree is None or definition_of(tree.body, entry_point) is None:
        return None
    source = without_use(source, tree, entry_point).strip("\n") + "\n"
    future = re.findall(r"^from __future__ import [^\n(#;]*", source, re.MULTILINE)
    if future and not source.startswith("from __future__"):
        rest = re.sub(r"^from __future__ import [^\n(#;]*\n", "", source, flags=re.MULTILINE)
        source = "\n".join([*future, rest])
    return source if len(source) <= LONGEST_PROGRAM else None
