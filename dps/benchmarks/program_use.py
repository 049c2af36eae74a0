"""What of a program's top level belongs to it, and what only shows its use: functions of syntax trees."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterable, Iterator

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
_CALLABLES = (ast.Lambda, ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.IfExp)
"""What a name may be set to and be a function then."""
_ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
_CONSOLE = frozenset({"print", "pprint", "input", "exit", "quit", "help", "breakpoint", "display"})
_CONSOLE_MODULES = frozenset({"doctest", "unittest", "pytest", "timeit", "pdb", "pprint", "stdin"})
_CONSOLE_METHODS = frozenset({("sys", "exit"), ("sys", "stdin"), ("sys", "stdout"), ("os", "_exit"), ("os", "abort")})
_APPLYING = frozenset({"map", "filter"})


def without_use(source: str, tree: ast.Module, entry_point: str) -> str:
    """Return a program's source without the top-level statements that only show its use.

    Those may wait for input, print, end the process, or assert what is wrong. A statement shows use if it is

    - an ``assert`` or holds one, or is an expression that calls nothing;
    - any other than a definition or an import in which the function is called (by name, by ``map`` or ``filter``, by a
      function of the program that calls it, by one that asserts and is given it), or the console is used: ``print``,
      ``input``, ``exit``, ``sys.exit``, ``sys.stdin``, ``doctest``, ``unittest``, ``timeit`` and the like.

    It stays nevertheless if it sets a name that what stays needs, or defines the function. All else belongs to the
    program, before and after the function: imports, definitions, constants, registrations, ``if`` blocks, calls such as
    ``sys.setrecursionlimit``. Statements on a line with one that stays, stay.
    """
    testers, asserting = _testers(tree.body, entry_point)
    shown = [node for node in tree.body if _shows_use(node, testers, asserting, entry_point)]
    kept = [node for node in tree.body if node not in shown]
    while True:
        needed = loaded_names(kept) - {entry_point}
        more = [node for node in shown if any(name in needed for name, _ in bound_names(node))]
        if not more:
            break
        kept += more
        shown = [node for node in shown if node not in more]
    dropped = {row for node in shown for row in _rows(node)} - {row for node in kept for row in _rows(node)}
    return "\n".join(line for row, line in enumerate(source.split("\n"), 1) if row not in dropped)


def bound_names(node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    """Yield the names that a top-level statement sets, each with its definition or the value that it is set to."""
    waiting = deque([node])
    while waiting:
        part = waiting.popleft()
        if isinstance(part, DEFINITIONS):
            yield part.name, part
            continue
        if isinstance(part, ast.Import | ast.ImportFrom):
            yield from (((alias.asname or alias.name).split(".")[0], None) for alias in part.names)
        elif isinstance(part, _ASSIGNMENTS):
            value = None if isinstance(part, ast.AugAssign) else part.value
            for target in part.targets if isinstance(part, ast.Assign) else [part.target]:
                yield from ((name, value if isinstance(target, ast.Name) else None) for name in _stored(target))
            waiting += [part.value] if part.value is not None else []
        elif isinstance(part, ast.expr):
            yield from ((name, None) for name in _stored(part))
        elif isinstance(part, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and part.name:
            yield part.name, None
        if not isinstance(part, (ast.expr, *_ASSIGNMENTS)):
            waiting += ast.iter_child_nodes(part)


def definition_of(nodes: Iterable[ast.stmt], name: str) -> ast.AST | None:
    """Return what a name is at the end of these statements: the definition, or the value that it is set to.

    None if it is not defined, is a head without a body (which the model left undone), or is plainly no function.
    """
    last = None
    for bound, value in (pair for node in nodes for pair in bound_names(node)):
        itself = isinstance(value, ast.Call) and _path(value.func)[:1] == (name,)
        if bound == name and isinstance(value, (*DEFINITIONS, *_CALLABLES)) and not itself:
            last = value
    is_stub = isinstance(last, FUNCTIONS) and all(
        isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in last.body
    )
    return None if is_stub else last


def loaded_names(nodes: Iterable[ast.AST], *, at_once: bool = False) -> set[str]:
    """Return the names that statements use (``at_once``: when they run) and that are not a function's own."""
    names: set[str] = set()
    for node in nodes:
        waiting, own, loaded = [node], set(), set()
        while waiting:
            part = waiting.pop()
            if isinstance(part, ast.Name):
                (loaded if isinstance(part.ctx, ast.Load) else own).add(part.id)
            elif isinstance(part, ast.arg):
                own.add(part.arg)
            elif isinstance(part, DEFINITIONS) and part is not node:
                own.add(part.name)
            if at_once and isinstance(part, (*FUNCTIONS, ast.Lambda)):
                head = [*getattr(part, "decorator_list", []), part.args, getattr(part, "returns", None)]
                waiting += [child for child in head if child is not None]
            else:
                waiting += ast.iter_child_nodes(part)
        # A function's variables are its own; those that other statements set and use are everybody's.
        names |= loaded - own if at_once or isinstance(node, DEFINITIONS) else loaded
    return names


def _stored(part: ast.AST) -> list[str]:
    """Return the names that an expression sets, those of comprehensions and lambdas too."""
    return [node.id for node in ast.walk(part) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)]


def _testers(body: list[ast.stmt], entry_point: str) -> tuple[set[str], set[str]]:
    """Return the definitions that use the function or ask for input, and those that assert."""
    others = {node.name: list(ast.walk(node)) for node in body if isinstance(node, DEFINITIONS)}
    others.pop(entry_point, None)
    asserting = {name for name, parts in others.items() if any(isinstance(part, ast.Assert) for part in parts)}
    testers, more = {"input"}, {entry_point}
    while more:
        testers |= more
        more = {name for name, parts in others.items() if testers & _names(parts)} - testers
    return testers - {"input"}, asserting


def _names(parts: Iterable[ast.AST]) -> set[str]:
    return {part.id for part in parts if isinstance(part, ast.Name)}


def _shows_use(node: ast.stmt, testers: set[str], asserting: set[str], entry_point: str) -> bool:
    """Whether a top-level statement shows the program's use, see :func:`without_use`."""
    if isinstance(node, (*DEFINITIONS, ast.Import, ast.ImportFrom)):
        return False
    if not isinstance(node, ast.Assert) and definition_of([node], entry_point) is not None:
        return False
    # Parts of what a statement only defines do not run; an expression's lambdas are called at once.
    parts = list(parts_of(node, DEFINITIONS if isinstance(node, ast.Expr) else (*DEFINITIONS, ast.Lambda)))
    calls = [part for part in parts if isinstance(part, ast.Call)]
    if isinstance(node, ast.Expr) and not calls:
        return True
    if any(isinstance(part, ast.Assert) or _path(part)[:2] in _CONSOLE_METHODS for part in parts):
        return True
    for call in calls:
        first, *others = _path(call.func) or [""]
        given = _names(part for argument in (*call.args, *call.keywords) for part in ast.walk(argument))
        if first in testers | _CONSOLE_MODULES or (first in _CONSOLE and not others):
            return True
        if first in asserting | _APPLYING and given & testers:
            return True
    return False


def parts_of(node: ast.AST, closed: tuple[type, ...]) -> Iterator[ast.AST]:
    """Yield a tree's parts, but not what is within those of the closed kinds."""
    waiting = [node]
    while waiting:
        part = waiting.pop()
        yield part
        if not isinstance(part, closed):
            waiting += ast.iter_child_nodes(part)


def _path(function: ast.AST) -> tuple[str, ...]:
    """Return the names of which an expression consists, ``("sys", "stdin", "read")``; empty if it has others."""
    names: list[str] = []
    while isinstance(function, ast.Attribute | ast.Call):
        if isinstance(function, ast.Attribute):
            names.append(function.attr)
        function = function.value if isinstance(function, ast.Attribute) else function.func
    return (*[function.id], *reversed(names)) if isinstance(function, ast.Name) else ()


def _rows(node: ast.stmt) -> range:
    first = min([node.lineno, *(part.lineno for part in getattr(node, "decorator_list", []))])
    return range(first, (node.end_lineno or node.lineno) + 1)
