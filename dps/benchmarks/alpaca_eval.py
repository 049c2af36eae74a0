"""AlpacaEval 2.0: open instructions, whose responses an annotator compares with a reference model's.

Nothing is graded here: ``dps outputs`` writes the file that the official ``alpaca_eval`` reads.

Source:
    Dubois et al. 2024, "Length-Controlled AlpacaEval", arXiv 2404.04475.
"""

from __future__ import annotations

import hashlib

from dps.benchmarks.answers import OpenGrader
from dps.benchmarks.benchmark import Benchmark, Item, Prompts, load_files
from dps.benchmarks.config import BenchmarkConfig
from dps.benchmarks.records import HubFile, Record

FILES = {
    "test": HubFile(
        "AlpacaEval 2.0",
        "tatsu-lab/alpaca_eval",
        "2edc6fad8be6b14ea7230aabfd08188da6b8b814",
        "alpaca_eval.json",
        "CC BY-NC 4.0",
    )
}
GRADER = OpenGrader()
PROMPTS = Prompts("{question}", "{question}")


def load(config: BenchmarkConfig) -> Benchmark:
    """Load the instructions; a file may have one several times (the cross-annotations do)."""
    return load_files(config, FILES, _item, "instruction, dataset", PROMPTS, GRADER, repeats=True)


def _item(record: Record, config: BenchmarkConfig) -> Item:
    instruction = record.text("instruction")
    metadata = {"dataset": record.fields["dataset"]} if "dataset" in record.fields else {}
    return Item(f"alpaca-{hashlib.sha256(instruction.encode()).hexdigest()[:12]}", instruction, None, metadata)
