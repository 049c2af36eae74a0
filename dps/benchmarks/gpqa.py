"""GPQA Diamond: graduate-level questions with four choices, whose order is shuffled per question.

Source:
    Rein et al. 2023, "GPQA: A Graduate-Level Google-Proof Q&A Benchmark", arXiv 2311.12022.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from dps.benchmarks.benchmark import Benchmark, Item, benchmark_of
from dps.benchmarks.config import BenchmarkConfig, check_config
from dps.benchmarks.grading import ChoiceGrader
from dps.benchmarks.prompts import CHOICE, CHOICE_STOP
from dps.benchmarks.records import RecordFile
from dps.benchmarks.sources import read_source

_CHOICES = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def load_gpqa(config: BenchmarkConfig) -> Benchmark:
    """Load GPQA Diamond from ``config.path``, or from the hub where no path is set.

    Raises:
        InputError: If it cannot be read, or a record is not GPQA's.
    """
    check_config(config, ("test",))
    file = read_source(config, "Question, Correct Answer, Incorrect Answer 1, 2, 3")
    items = [_item(file, place, record, config.seed or 0) for place, record in file.records]
    return benchmark_of(file, items, config, chat=CHOICE, plain=CHOICE, stop=CHOICE_STOP, grader=grader())


def grader(golds: Sequence[str | None] = ()) -> ChoiceGrader:
    """Return what reads the responses; the gold answers do not matter."""
    return ChoiceGrader()


def _item(file: RecordFile, place: str, record: dict[str, object], seed: int) -> Item:
    question = file.text(place, record, "Question").strip()
    answers = [file.text(place, record, name).strip() for name in _CHOICES]
    digest = hashlib.sha256(question.encode()).hexdigest()
    # The order depends on seed and question alone: not on the file's order, on limit or on offset.
    order = np.random.default_rng([seed, int(digest[:16], 16)]).permutation(len(answers))
    choices = [answers[i] for i in order]
    lines = [f"{letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=True)]
    return Item(
        f"gpqa-{digest[:12]}",
        "\n".join([question, "", *lines]),
        "ABCD"[order.tolist().index(0)],
        {"choices": choices},
    )
