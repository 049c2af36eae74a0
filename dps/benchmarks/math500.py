"""MATH500: 500 competition problems with answers in LaTeX.

Source:
    Hendrycks et al. 2021, "Measuring Mathematical Problem Solving With the MATH Dataset", arXiv 2103.03874; the 500 of
    Lightman et al. 2023, arXiv 2305.20050.
"""

from __future__ import annotations

from dps.benchmarks.benchmark import Benchmark, Item, Prompts, load_files
from dps.benchmarks.config import BenchmarkConfig
from dps.benchmarks.mathematics import MathGrader
from dps.benchmarks.prompts import NUMBER_CHAT
from dps.benchmarks.records import HubFile, Record

FILES = {
    "test": HubFile(
        "MATH500", "HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "test.jsonl", "MIT"
    )
}
GRADER = MathGrader()
PROMPTS = Prompts(NUMBER_CHAT, NUMBER_CHAT, ("Can you solve the following math problem?",))
"""The published work gives base models the same words as instruct models."""


def load(config: BenchmarkConfig) -> Benchmark:
    """Load the questions."""
    return load_files(config, FILES, _item, "problem, answer, unique_id", PROMPTS, GRADER)


def _item(record: Record, config: BenchmarkConfig) -> Item:
    """Read a record of the hub (problem, unique_id) or of the published repository's file (prompt, id)."""
    question, gold = record.text("problem", "prompt", "question"), record.text("answer")
    name = record.text("unique_id", "id")
    metadata = {key: record.fields[key] for key in ("subject", "level") if key in record.fields}
    if "subject" not in metadata and name.count("/") == 2:  # test/precalculus/807.json
        metadata["subject"] = name.split("/")[1]
    return Item(f"math500-{name.removesuffix('.json').replace('/', '-')}", question, gold, metadata)
