"""The kinds of answers that a response can be read for, and the grader of each: for questions from anywhere."""

from __future__ import annotations

from typing import Literal, get_args

from dps.benchmarks.answers import TextGrader
from dps.benchmarks.choices import ChoiceGrader
from dps.benchmarks.grading import Grader
from dps.benchmarks.mathematics import MathGrader, NumberGrader
from dps.benchmarks.programs import CodeGrader

Kind = Literal["number", "math", "choice", "text", "code"]
KINDS: tuple[str, ...] = get_args(Kind)

_GRADERS: dict[str, Grader] = {
    "number": NumberGrader(),
    "math": MathGrader(),
    "choice": ChoiceGrader(),
    "text": TextGrader(),
    "code": CodeGrader(),
}


def grader_of_kind(kind: Kind) -> Grader:
    """Return the grader that reads responses for answers of a kind."""
    return _GRADERS[kind]
