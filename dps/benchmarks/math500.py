"""MATH500: 500 competition problems with answers in LaTeX.

Source:
    Hendrycks et al. 2021, "Measuring Mathematical Problem Solving With the MATH Dataset", arXiv 2103.03874; the 500 of
    Lightman et al. 2023, arXiv 2305.20050.
"""

from __future__ import annotations

from collections.abc import Sequence

from dps.benchmarks.benchmark import Benchmark, Item, benchmark_of
from dps.benchmarks.config import BenchmarkConfig, check_config
from dps.benchmarks.mathematics import MathGrader
from dps.benchmarks.prompts import MATH_PLAIN, MATH_STOP, NUMBER_CHAT
from dps.benchmarks.records import RecordFile
from dps.benchmarks.sources import read_source


def load_math500(config: BenchmarkConfig) -> Benchmark:
    """Load MATH500 from ``config.path``, or from the hub where no path is set.

    Raises:
        InputError: If it cannot be read, or a record is not MATH500's.
    """
    check_config(config, ("test",))
    file = read_source(config, "problem, answer, unique_id")
    items = [_item(file, place, record) for place, record in file.records]
    return benchmark_of(file, items, config, chat=NUMBER_CHAT, plain=MATH_PLAIN, stop=MATH_STOP, grader=grader())


def grader(golds: Sequence[str | None] = ()) -> MathGrader:
    """Return what reads the responses; the gold answers do not matter."""
    return MathGrader()


def _item(file: RecordFile, place: str, record: dict[str, object]) -> Item:
    """Read a record of the hub (problem, unique_id) or of the published repository's file (prompt, id)."""
    question = file.text(place, record, "problem", "prompt", "question")
    gold = file.text(place, record, "answer")
    name = file.text(place, record, "unique_id", "id")
    metadata = {key: record[key] for key in ("subject", "level") if key in record}
    if "subject" not in metadata and name.count("/") == 2:  # test/precalculus/807.json
        metadata["subject"] = name.split("/")[1]
    return Item(f"math500-{name.removesuffix('.json').replace('/', '-')}", question, gold, metadata)
