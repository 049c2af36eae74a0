"""GSM8K: grade-school word problems with a number as answer, from a local file or the Hugging Face hub.

Source:
    Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168.
"""

from __future__ import annotations

from collections.abc import Sequence

from dps.benchmarks.benchmark import Benchmark, Item, benchmark_of
from dps.benchmarks.config import BenchmarkConfig, check_config
from dps.benchmarks.mathematics import NumberGrader, canonical_number
from dps.benchmarks.prompts import NUMBER_CHAT, NUMBER_PLAIN, NUMBER_STOP
from dps.benchmarks.records import RecordFile
from dps.benchmarks.sources import read_source

SPLITS = ("train", "test")


def load_gsm8k(config: BenchmarkConfig) -> Benchmark:
    """Load GSM8K from ``config.path``, or from the hub where no path is set.

    Raises:
        InputError: If it cannot be read, or a record is not GSM8K's.
    """
    check_config(config, SPLITS)
    file = read_source(config, "question, answer")
    items = [
        _item(file, place, record, f"gsm8k-{config.split}-{i:05d}") for i, (place, record) in enumerate(file.records)
    ]
    return benchmark_of(file, items, config, chat=NUMBER_CHAT, plain=NUMBER_PLAIN, stop=NUMBER_STOP, grader=grader())


def grader(golds: Sequence[str | None] = ()) -> NumberGrader:
    """Return what reads the responses; the gold answers do not matter."""
    return NumberGrader()


def _item(file: RecordFile, place: str, record: dict[str, object], question_id: str) -> Item:
    question, answer = file.question(place, record), file.required(place, record, "answer")
    solution, mark, gold_text = str(answer).rpartition("####")
    gold = canonical_number(gold_text) if mark else None
    if gold is None:
        raise file.error(
            place, "has no number after #### in its answer: for questions of your own set benchmark.name to jsonl."
        )
    num_steps = sum(bool(line.strip()) for line in solution.splitlines())
    return Item(question_id, question, gold, {"num_steps": num_steps})
