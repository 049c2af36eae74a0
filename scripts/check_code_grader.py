"""Check HumanEval's grader: canonical solutions must pass, solutions with one token changed must fail.

    python scripts/check_code_grader.py --data FOLDER --output docs/results/graders/code.json

FOLDER holds ``humaneval_first100.jsonl`` (or name another file by --file). A mutant is a solution in which one token is
changed; it counts only if it is really wrong, which the official test says by another route: in one process of its own,
with the mutant's function itself and not a stub. Mutants that are right after all are drawn again; a question gives
two where others give none.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import time
import tokenize
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dps.benchmarks import Item

SWAPS = {
    "+": "-", "-": "+", "*": "+", "/": "*", "//": "*", "%": "+", "<": "<=", "<=": "<", ">": ">=", ">=": ">",
    "==": "!=", "!=": "==", "and": "or", "or": "and", "True": "False", "False": "True", "not": "", "in": "not in",
    "min": "max", "max": "min", "sum": "len", "len": "sum", "append": "extend", "upper": "lower", "lower": "upper",
    "is": "is not", "any": "all", "all": "any", "range": "list", "+=": "-=", "-=": "+=", "break": "continue",
}  # fmt: skip


def mutants(solution: str, seed: int) -> list[str]:
    """Return the solutions that differ from this one in one token, in an order that the seed decides."""
    lines = solution.splitlines(keepends=True)
    found = []
    for token in tokenize.generate_tokens(io.StringIO("def f():\n" + solution).readline):
        changed = SWAPS.get(token.string)
        if token.type == tokenize.NUMBER and token.string.isdigit():
            changed = str(int(token.string) + 1)
        if changed is None or token.start[0] < 2:
            continue
        row, start, end = token.start[0] - 2, token.start[1], token.end[1]
        line = lines[row]
        found.append("".join([*lines[:row], line[:start] + changed + line[end:], *lines[row + 1 :]]))
    random.Random(seed).shuffle(found)
    return found


def really_wrong(program: str, test: str, entry_point: str) -> bool:
    """Whether the official test, run directly, does not pass: the route that the grader does not take."""
    source = f"{program}\n\n{test}\n\ncheck({entry_point})\nprint('the end')\n"
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False  # a mutant that is no program is no test of the grader
    limit = "import resource as r; r.setrlimit(r.RLIMIT_AS, (1 << 30, 1 << 30)); del r\n"  # a loop may append for ever
    command = [sys.executable, "-P", "-s", "-S", "-c", limit + source]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, env={"PYTHONHASHSEED": "0"})
    except subprocess.TimeoutExpired:
        return True
    return done.stdout.splitlines()[-1:] != ["the end"]


def mutants_of(item: Item, seed: int, count: int) -> list[str]:
    """Return up to ``count`` mutants of an item's solution that are really wrong, of twenty that are tried."""
    prompt, found = item.metadata["prompt"], []
    for changed in mutants(item.gold[len(prompt) :], seed)[:20]:
        if len(found) == count:
            break
        if really_wrong(prompt + changed, item.metadata["test"], item.metadata["entry_point"]):
            found.append(prompt + changed)
    return found


def main() -> None:
    """Grade solutions and mutants, print and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--file", default="humaneval_first100.jsonl")
    parser.add_argument("--mutants", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    from dps.benchmarks import BenchmarkConfig, load_benchmark

    benchmark = load_benchmark(BenchmarkConfig(name="humaneval", path=str(options.data / options.file)))
    started = time.perf_counter()
    with ThreadPoolExecutor(4) as threads:
        right = list(threads.map(lambda item: benchmark.grader.grade(item.gold, item), benchmark.items))
        seconds = time.perf_counter() - started
        made = list(threads.map(lambda item: mutants_of(item, options.seed, 2), benchmark.items))
        pairs = [
            (item, found[n]) for n in (0, 1) for item, found in zip(benchmark.items, made, strict=True) if found[n:]
        ]
        pairs = pairs[: options.mutants]
        wrong = list(threads.map(lambda pair: benchmark.grader.grade(pair[1], pair[0]), pairs))
    found = {
        "solutions": len(right),
        "solutions_passed": sum(verdict is True for verdict in right),
        "seconds_per_solution": round(seconds / len(right), 3),
        "mutants": len(wrong),
        "mutants_failed": sum(verdict is False for verdict in wrong),
        "questions_without_a_wrong_mutant": sum(not found for found in made),
        "mutants_not_failed": [
            i.question_id for (i, _), verdict in zip(pairs, wrong, strict=True) if verdict is not False
        ],
        "seed": options.seed,
    }
    print(json.dumps(found, indent=1))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
