"""HumanEval: Python functions to be completed from their docstrings, graded by running their tests in a sandbox.

Source:
    Chen et al. 2021, "Evaluating Large Language Models Trained on Code", arXiv 2107.03374.
"""

from __future__ import annotations

from collections.abc import Sequence

from dps.benchmarks.benchmark import Benchmark, Item, benchmark_of
from dps.benchmarks.config import BenchmarkConfig, check_config
from dps.benchmarks.programs import CodeGrader
from dps.benchmarks.prompts import CODE_CHAT, CODE_PLAIN, CODE_STOP
from dps.benchmarks.records import RecordFile
from dps.benchmarks.sources import read_source


def load_humaneval(config: BenchmarkConfig) -> Benchmark:
    """Load HumanEval from ``config.path``, or from the hub where no path is set.

    Raises:
        InputError: If it cannot be read, or a record is not HumanEval's.
    """
    check_config(config, ("test",))
    file = read_source(config, "task_id, prompt, canonical_solution, test, entry_point")
    items = [_item(file, place, record) for place, record in file.records]
    return benchmark_of(file, items, config, chat=CODE_CHAT, plain=CODE_PLAIN, stop=CODE_STOP, grader=grader())


def grader(golds: Sequence[str | None] = ()) -> CodeGrader:
    """Return what reads the responses; the gold answers do not matter."""
    return CodeGrader()


def _item(file: RecordFile, place: str, record: dict[str, object]) -> Item:
    prompt = file.text(place, record, "prompt")
    metadata = {"prompt": prompt} | {name: file.text(place, record, name) for name in ("test", "entry_point")}
    return Item(
        file.text(place, record, "task_id"),
        prompt,
        prompt + file.text(place, record, "canonical_solution"),
        metadata,
    )
