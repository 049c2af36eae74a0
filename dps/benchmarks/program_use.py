"""What of a program's top level belongs to it, and what only shows its use: functions of syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITIONS = (*_FUNCTIONS, ast.ClassDef)
_CALLABLES = (ast.Lambda, ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.IfExp)
"""What a name may be set to and be a function then."""
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

    Args:
        source: The program.
        tree: Its syntax tree.
        entry_point: Name of the function.
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
    waiting = [node]
    while waiting:
        part = waiting.pop(0)
        if isinstance(part, _DEFINITIONS):
            yield part.name, part
            continue
        if isinstance(part, ast.Import | ast.ImportFrom):
            yield from (((alias.asname or alias.name).split(".")[0], None) for alias in part.names)
        elif isinstance(part, ast.Assign | ast.AnnAssign | ast.AugAssign):
            value = None if isinstance(part, ast.AugAssign) else part.value
            for target in part.targets if isinstance(part, ast.Assign) else [part.target]:
                yield from ((name, value if isinstance(target, ast.Name) else None) for name in _stored(target))
            waiting += [part.value] if part.value is not None else []
        elif isinstance(part, ast.expr):
            yield from ((name, None) for name in _stored(part))
        elif isinstance(part, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and part.name:
            yield part.name, None
        if not isinstance(part, ast.expr | ast.Assign | ast.AnnAssign | ast.AugAssign):
            waiting += ast.iter_child_nodes(part)


def definition_of(nodes: Iterable[ast.stmt], name: str) -> ast.AST | None:
    """Return what a name is at the end of these statements: the definition, or the value that it is set to.

    Returns:
        None if it is not defined, is a head without a body (which the model left undone), or is plainly no function.
    """
    last = None
    for node in nodes:
        for bound, value in bound_names(node):
            itself = isinstance(value, ast.Call) and _path(value.func)[:1] == (name,)
            if bound == name and isinstance(value, (*_DEFINITIONS, *_CALLABLES)) and not itself:
                last = value
    return None if isinstance(last, _FUNCTIONS) and _is_stub(last) else last


def loaded_names(nodes: Iterable[ast.AST], *, at_once: bool = False) -> set[str]:
    """Return the names that statements use and that are not a function's own.

    Args:
        nodes: The statements.
        at_once: Only those that are needed when the statements run, not those within functions.
    """
    names: set[str] = set()
    for node in nodes:
        waiting, own, loaded = [node], set(), set()
        while waiting:
            part = waiting.pop()
            if isinstance(part, ast.Name):
                (loaded if isinstance(part.ctx, ast.Load) else own).add(part.id)
            elif isinstance(part, ast.arg):
                own.add(part.arg)
            elif isinstance(part, _DEFINITIONS) and part is not node:
                own.add(part.name)
            if at_once and isinstance(part, (*_FUNCTIONS, ast.Lambda)):
                head = [*getattr(part, "decorator_list", []), part.args]
                returned = [getattr(part, "returns", None)]
                waiting += [child for child in [*head, *returned] if child is not None]
            else:
                waiting += ast.iter_child_nodes(part)
        # A function's variables are its own; those that other statements set and use are everybody's.
        names |= loaded - own if at_once or isinstance(node, _DEFINITIONS) else loaded
    return names


def _stored(part: ast.AST) -> list[str]:
    """Return the names that an expression sets, those of comprehensions and lambdas too."""
    return [node.id for node in ast.walk(part) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)]


def _is_stub(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function has nothing but its docstring, ``...`` or ``pass``."""
    return all(
        isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in function.body
    )


def _testers(body: list[ast.stmt], entry_point: str) -> tuple[set[str], set[str]]:
    """Return the definitions that use the function or ask for input, and those that assert."""
    others = {node.name: node for node in body if isinstance(node, _DEFINITIONS) and node.name != entry_point}
    used = {name: {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} for name, node in others.items()}
    asserting = {name for name, node in others.items() if any(isinstance(n, ast.Assert) for n in ast.walk(node))}
    testers = {entry_point, "input"}
    while True:
        more = {name for name, names in used.items() if names & testers} - testers
        if not more:
            return testers - {"input"}, asserting
        testers |= more


def _shows_use(node: ast.stmt, testers: set[str], asserting: set[str], entry_point: str) -> bool:
    """Whether a top-level statement shows the program's use, see :func:`without_use`."""
    if isinstance(node, (*_DEFINITIONS, ast.Import, ast.ImportFrom)):
        return False
    if isinstance(node, ast.Assert):
        return True
    if definition_of([node], entry_point) is not None:
        return False
    parts = list(_run_at_once(node))
    calls = [part for part in parts if isinstance(part, ast.Call)]
    if isinstance(node, ast.Expr) and not calls:
        return True
    if any(isinstance(part, ast.Assert) or (_path(part)[:2] in _CONSOLE_METHODS) for part in parts):
        return True
    for call in calls:
        path = _path(call.func)
        arguments = (part for argument in (*call.args, *call.keywords) for part in ast.walk(argument))
        given = {part.id for part in arguments if isinstance(part, ast.Name)}
        if path[:1] and (path[0] in testers or (len(path) == 1 and path[0] in _CONSOLE)):
            return True
        if path[:1] and path[0] in _CONSOLE_MODULES:
            return True
        if path[:1] and (path[0] in asserting or path[0] in _APPLYING) and given & testers:
            return True
    return False


def _path(function: ast.AST) -> tuple[str, ...]:
    """Return the names of which an expression consists, ``("sys", "stdin", "read")``; empty if it has others."""
    names: list[str] = []
    while isinstance(function, ast.Attribute | ast.Call):
        if isinstance(function, ast.Attribute):
            names.append(function.attr)
            function = function.value
        else:
            function = function.func
    return (*[function.id], *reversed(names)) if isinstance(function, ast.Name) else ()


def _run_at_once(node: ast.stmt) -> Iterator[ast.AST]:
    """Yield the parts of a statement but for what it only defines; an expression's lambdas are called at once."""
    defines = _DEFINITIONS if isinstance(node, ast.Expr) else (*_DEFINITIONS, ast.Lambda)
    waiting: list[ast.AST] = [node]
    while waiting:
        part = waiting.pop()
        yield part
        if not isinstance(part, defines):
            waiting += ast.iter_child_nodes(part)


def _rows(node: ast.stmt) -> range:
    first = min([node.lineno, *(part.lineno for part in getattr(node, "decorator_list", []))])
    return range(first, (node.end_lineno or node.lineno) + 1)
