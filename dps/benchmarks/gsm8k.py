"""GSM8K: grade-school word problems with a number as answer.

Source:
    Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168.
"""

from __future__ import annotations

from dps.benchmarks.benchmark import Benchmark, Item, load_files
from dps.benchmarks.config import BenchmarkConfig
from dps.benchmarks.mathematics import NumberGrader, canonical_number
from dps.benchmarks.prompts import NUMBER
from dps.benchmarks.records import HubFile, Record

_REVISION = "e53f048856ff4f594e959d75785d2c2d37b678ee"
FILES = {
    split: HubFile(f"GSM8K {split}", "openai/gsm8k", _REVISION, f"main/{split}-00000-of-00001.parquet", "MIT")
    for split in ("train", "test")
}
GRADER = NumberGrader()


def load(config: BenchmarkConfig) -> Benchmark:
    """Load the questions."""
    return load_files(config, FILES, _item, "question, answer", NUMBER, GRADER)


def _item(record: Record, config: BenchmarkConfig) -> Item:
    question, answer = record.text("question"), record.required("answer")
    solution, mark, gold_text = str(answer).rpartition("####")
    gold = canonical_number(gold_text) if mark else None
    if gold is None:
        raise record.error(
            "has no number after #### in its answer: for questions of your own set benchmark.name to jsonl."
        )
    num_steps = sum(bool(line.strip()) for line in solution.splitlines())
    return Item(f"gsm8k-{config.split}-{record.index:05d}", question, gold, {"num_steps": num_steps})
