"""Questions given as text, without a file: what ``dps sample`` and the Python interface answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal, get_args

from dps.arguments import check_text
from dps.benchmarks import arithmetic
from dps.benchmarks.benchmark import Benchmark, Item, benchmark_of
from dps.benchmarks.config import BenchmarkConfig
from dps.benchmarks.mathematics import NumberGrader
from dps.benchmarks.prompts import NUMBER
from dps.benchmarks.records import RecordFile
from dps.errors import InputError

Style = Literal["arithmetic", "number"]
STYLES: tuple[str, ...] = get_args(Style)


def given_questions(questions: Sequence[str], style: Style = "number", prompt: str = "auto") -> Benchmark:
    """Return an ungraded benchmark of these questions; InputError if there is no question, or the style is unknown."""
    if not questions or any(not question.strip() for question in questions):
        raise InputError("Expected at least one question, and none of them empty.")
    check_text({f"question {number}": question for number, question in enumerate(questions, 1)})
    if style not in STYLES:
        raise InputError(f"Expected a style among {', '.join(STYLES)}, got {style!r}.")
    prompts, grader = (arithmetic.PROMPTS, arithmetic.GRADER) if style == "arithmetic" else (NUMBER, NumberGrader())
    file = RecordFile("given", hashlib.sha256(json.dumps(list(questions)).encode()).hexdigest(), [])
    items = [Item(f"given-{number:05d}", question, None) for number, question in enumerate(questions)]
    return benchmark_of(file, items, BenchmarkConfig(name="jsonl", prompt=prompt), prompts, grader)
