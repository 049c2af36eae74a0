"""AlpacaEval 2.0: open instructions, whose responses an annotator compares with a reference model's.

Nothing is graded here: ``dps outputs`` writes the file that the official ``alpaca_eval`` reads.

Source:
    Dubois et al. 2024, "Length-Controlled AlpacaEval", arXiv 2404.04475.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from dps.benchmarks.benchmark import Benchmark, Item, benchmark_of
from dps.benchmarks.config import BenchmarkConfig, check_config
from dps.benchmarks.grading import OpenGrader
from dps.benchmarks.prompts import OPEN
from dps.benchmarks.sources import read_source


def load_alpaca_eval(config: BenchmarkConfig) -> Benchmark:
    """Load AlpacaEval from ``config.path``, or from the hub where no path is set.

    A file may have an instruction several times (the cross-annotations do); each is asked once.

    Raises:
        InputError: If it cannot be read, or a record is not AlpacaEval's.
    """
    check_config(config, ("test",))
    file = read_source(config, "instruction, dataset")
    items: dict[str, Item] = {}
    for place, record in file.records:
        instruction = file.text(place, record, "instruction")
        name = f"alpaca-{hashlib.sha256(instruction.encode()).hexdigest()[:12]}"
        metadata = {"dataset": record["dataset"]} if "dataset" in record else {}
        items.setdefault(name, Item(name, instruction, None, metadata))
    return benchmark_of(file, list(items.values()), config, chat=OPEN, plain=OPEN, grader=grader())


def grader(golds: Sequence[str | None] = ()) -> OpenGrader:
    """Return what reads the responses; the gold answers do not matter."""
    return OpenGrader()
