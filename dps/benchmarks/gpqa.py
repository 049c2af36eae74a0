"""GPQA Diamond: graduate-level questions with four choices, whose order is shuffled per question.

Source:
    Rein et al. 2023, "GPQA: A Graduate-Level Google-Proof Q&A Benchmark", arXiv 2311.12022.
"""

from __future__ import annotations

import hashlib

import numpy as np

from dps.benchmarks.benchmark import Benchmark, Item, Prompts, load_files
from dps.benchmarks.choices import ChoiceGrader
from dps.benchmarks.config import BenchmarkConfig
from dps.benchmarks.records import HubFile, Record

FILES = {
    "test": HubFile(
        "GPQA Diamond",
        "Idavidrein/gpqa",
        "633f5ee89ab8ad4522a9f850766b73f62147ffdd",
        "gpqa_diamond.csv",
        "CC BY 4.0; its authors ask that the questions are not shown online",
        gated=True,
        shown=False,
    )
}
GRADER = ChoiceGrader()
_TEMPLATE = (
    "Answer the following multiple choice question. The last line of your response should be of the following format: "
    r"'\boxed{$LETTER}' (without quotes) where LETTER is one of ABCD (ex. '\boxed{A}'). "
    "Think step by step before answering.\n\n{question}"
)
"""After the published template, of instruct and base models alike."""
_PROMPTS = Prompts(_TEMPLATE, _TEMPLATE, ("Answer the following multiple choice question.",))
_CHOICES = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def load(config: BenchmarkConfig) -> Benchmark:
    """Load the questions."""
    return load_files(config, FILES, _item, "Question, Correct Answer, Incorrect Answer 1, 2, 3", _PROMPTS, GRADER)


def _item(record: Record, config: BenchmarkConfig) -> Item:
    question = record.text("Question").strip()
    answers = [record.text(name).strip() for name in _CHOICES]
    digest = hashlib.sha256(question.encode()).hexdigest()
    # The order depends on seed and question alone: not on the file's order, on limit or on offset.
    order = np.random.default_rng([config.seed or 0, int(digest[:16], 16)]).permutation(len(answers)).tolist()
    choices = [answers[i] for i in order]
    lines = [f"{letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=True)]
    gold = "ABCD"[order.index(0)]
    return Item(f"gpqa-{digest[:12]}", "\n".join([question, "", *lines]), gold, {"choices": choices})
