"""The generated arithmetic problems as a benchmark."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from dps.benchmarks.answers import extract_number
from dps.benchmarks.arithmetic import SPLITS, extract_answer, generate_problems, prompt_for
from dps.benchmarks.benchmark import Benchmark, Item
from dps.benchmarks.config import QUESTION_FIELD, BenchmarkConfig, check_config
from dps.benchmarks.grading import TextGrader
from dps.benchmarks.prompts import NUMBER_CHAT
from dps.errors import InputError

DEFAULT_COUNT = 1000
"""How many questions where no limit is set."""

_DIGESTED = 32


def load_arithmetic(config: BenchmarkConfig) -> Benchmark:
    """Generate the questions; a larger limit adds questions and changes none.

    Raises:
        InputError: If a setting cannot be meant.
    """
    check_config(config, SPLITS)
    if config.path is not None:
        raise InputError(
            f"Expected no benchmark.path, since arithmetic questions are generated, got {config.path}: "
            "take it out, or set benchmark.name to gsm8k or jsonl."
        )
    seed = config.seed or 0
    config = replace(config, seed=seed)  # unset and 0 are the same questions
    end = config.offset + (config.limit or DEFAULT_COUNT)
    items = [
        Item(
            f"arithmetic-{config.split}-{seed}-{number:05d}",
            problem.question,
            problem.answer,
            {"kind": problem.kind, "level": problem.level},
        )
        for number, problem in enumerate(generate_problems(config.split, max(end, _DIGESTED), seed))
    ]
    # A few questions tell one generator from another; the digest must not change when more are asked for.
    content = json.dumps([(item.question, item.gold) for item in items[:_DIGESTED]]).encode()
    return Benchmark(
        config=config,
        items=items[config.offset : end],
        source="generated",
        sha256=hashlib.sha256(content).hexdigest(),
        chat_template=config.template or NUMBER_CHAT,
        plain_template=config.template or prompt_for(QUESTION_FIELD),
        grader=grader(),
    )


def grader(golds: Sequence[str | None] = ()) -> TextGrader:
    """Return what reads the responses; the gold answers do not matter."""
    return TextGrader(extract_arithmetic, extract_answer)


def extract_arithmetic(text: str) -> str | None:
    """Return a response's answer: the embedded model's form first, then the strict forms that other models use."""
    return extract_answer(text) or extract_number(text, flexible=False)
