"""The house stays in order: sizes of files, functions and rooms; imports without circles and in one direction."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("dps", "lightning_modules", "feature_store")
LONGEST_FILE, LONGEST_FUNCTION = 600, 80
MOST_SOURCE, MOST_TESTS = 41_300, 25_800
"""What stands there now. Lower them after taking something away; the aim is 20,000 and 10,000."""
COMPOSITION = ("dps.commands", "dps.cli", "dps.api")
"""Where both sides are put together; only there, and only when a command runs, the sampler's side loads the other."""
OF_DPS = ("decide", "estimates", "doubt", "errors", "folders", "arguments", "extras", "threads")
"""What controllers may use of ``dps``: decisions, statistics, sentences, whose results a folder holds, and threads."""


def files(*folders, suffix=".py"):
    paths = (path for folder in folders for path in sorted((ROOT / folder).rglob(f"*{suffix}")))
    return [path for path in paths if path.is_file() and "__pycache__" not in path.parts]


def num_lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


SOURCE = files(*PACKAGES) + files("scripts", suffix="")
PYTHON = [path for path in SOURCE if path.suffix == ".py"]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PYTHON}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in files(*PACKAGES)
}  # fmt: skip


def nodes(tree, *, lazy):
    """All nodes of a module; without what runs only when a function is called, unless ``lazy``."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from nodes(node, lazy=lazy)


def imports(module, *, lazy):
    """Names of the project's modules that a module imports, those for type checkers included."""
    path = MODULES[module]
    for node in nodes(TREES[path], lazy=lazy):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
            base = ".".join(package[: len(package) - node.level + 1] if node.level else [])
            base = ".".join(part for part in (base, node.module) if part)
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else base for name in names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in PACKAGES)


def refuse(offenders):
    offenders = list(offenders)
    assert not offenders, "\n".join(["", *offenders])


def within(name, rooms):
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def test_no_file_is_too_long():
    refuse(f"{path.relative_to(ROOT)}: {num_lines(path)} lines" for path in SOURCE if num_lines(path) > LONGEST_FILE)


def test_no_function_is_too_long():
    long = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                if (length := node.end_lineno - first + 1) > LONGEST_FUNCTION:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    refuse(long)


def test_the_house_stays_small():
    sizes = dict.fromkeys([*PACKAGES, "scripts"], 0)
    for path in SOURCE:
        sizes[path.relative_to(ROOT).parts[0]] += num_lines(path)
    assert sum(sizes.values()) <= MOST_SOURCE, sizes
    assert sum(map(num_lines, files("tests"))) <= MOST_TESTS


def test_imports_have_no_circle():
    graph = {module: set(imports(module, lazy=False)) - {module} for module in MODULES}
    circles = []
    while True:
        try:
            TopologicalSorter(graph).prepare()
            break
        except CycleError as error:
            circle = error.args[1]  # each is imported by the next
            circles.append(" <- ".join(circle))
            graph[circle[1]].remove(circle[0])
    refuse(circles)


def test_imports_go_one_way():
    wrong = []
    for module in MODULES:
        for name in imports(module, lazy=True):
            side, other = module.split(".")[0], name.split(".")[0]
            if side == "feature_store":
                right = other == side
            elif side == "lightning_modules":
                right = other != "dps" or within(name, [f"dps.{room}" for room in OF_DPS])
            else:
                right = other != "lightning_modules" or within(module, COMPOSITION)
            wrong += [] if right else [f"{module} imports {name}"]
        for name in imports(module, lazy=False) if module.startswith("dps") else ():
            wrong += [f"{module} imports {name} when it is loaded"] if name.startswith("lightning_modules") else []
    refuse(wrong)
