"""Questions of the user's own, which ``dps sample``, the Python interface and the server answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from dps.arguments import check_text
from dps.benchmarks import alpaca_eval, arithmetic, math500
from dps.benchmarks.answers import OpenGrader, TextGrader
from dps.benchmarks.benchmark import Benchmark
from dps.benchmarks.config import BenchmarkConfig
from dps.benchmarks.mathematics import NumberGrader
from dps.benchmarks.prompts import NUMBER, TEXT
from dps.errors import InputError

Style = Literal["arithmetic", "number", "math", "text", "open"]
"""What an answer is: an integer behind ``#``, a number, mathematics, a number or words, or the whole response."""
STYLES: tuple[str, ...] = get_args(Style)
_OF_STYLE = {
    "arithmetic": (arithmetic.PROMPTS, arithmetic.GRADER),
    "number": (NUMBER, NumberGrader()),
    "math": (math500.PROMPTS, math500.GRADER),
    "text": (TEXT, TextGrader()),
    "open": (alpaca_eval.PROMPTS, OpenGrader()),
}


def check_style(style: Any) -> None:
    """Raise an InputError for an unknown style."""
    if style not in STYLES:
        raise InputError(f"Expected a style among {', '.join(STYLES)}, got {style!r}.")


def check_questions(questions: Sequence[str]) -> None:
    """Raise an InputError if there is no question, one is empty, or one is no text."""
    if not questions or any(not question.strip() for question in questions):
        raise InputError("Expected at least one question, and none of them empty.")
    check_text({f"question {number}": question for number, question in enumerate(questions, 1)})


def given(style: Style = "number", prompt: Literal["auto", "chat", "plain"] = "auto") -> Benchmark:
    """Return how questions of a style are asked and their responses read: a benchmark without questions or grades."""
    check_style(style)
    prompts, grader = _OF_STYLE[style]
    config = BenchmarkConfig(name="jsonl", prompt=prompt)
    return Benchmark(config, [], "given", "", prompts.chat, prompts.plain, grader, prompts.stop)
