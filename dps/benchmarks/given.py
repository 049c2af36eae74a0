"""Questions given as text, without a file: what ``dps sample`` and the Python interface answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal, get_args

from dps.arguments import check_text
from dps.benchmarks.arithmetic import extract_answer, prompt_for
from dps.benchmarks.benchmark import Benchmark, Item
from dps.benchmarks.config import QUESTION_FIELD, BenchmarkConfig
from dps.benchmarks.generated import extract_arithmetic
from dps.benchmarks.grading import TextGrader
from dps.benchmarks.mathematics import NumberGrader
from dps.benchmarks.prompts import NUMBER_CHAT, NUMBER_PLAIN, NUMBER_STOP
from dps.errors import InputError

Style = Literal["arithmetic", "number"]
STYLES: tuple[str, ...] = get_args(Style)


def given_questions(questions: Sequence[str], style: Style = "number", prompt: str = "auto") -> Benchmark:
    """Return an ungraded benchmark of these questions.

    Args:
        questions: Their texts, at least one.
        style: ``number`` asks for reasoning and a last line ``#### <number>``; ``arithmetic`` is the embedded model's.
        prompt: ``auto``, ``chat`` or ``plain``, see :class:`BenchmarkConfig`.

    Raises:
        InputError: If there is no question, or the style is unknown.
    """
    if not questions or any(not question.strip() for question in questions):
        raise InputError("Expected at least one question, and none of them empty.")
    check_text({f"question {number}": question for number, question in enumerate(questions, 1)})
    if style not in STYLES:
        raise InputError(f"Expected a style among {', '.join(STYLES)}, got {style!r}.")
    embedded = style == "arithmetic"
    return Benchmark(
        config=BenchmarkConfig(name="jsonl", prompt=prompt),
        items=[Item(f"given-{number:05d}", question, None) for number, question in enumerate(questions)],
        source="given",
        sha256=hashlib.sha256(json.dumps(list(questions)).encode()).hexdigest(),
        chat_template=NUMBER_CHAT,
        plain_template=prompt_for(QUESTION_FIELD) if embedded else NUMBER_PLAIN,
        plain_stop=() if embedded else NUMBER_STOP,
        grader=TextGrader(extract_arithmetic, extract_answer) if embedded else NumberGrader(),
    )
