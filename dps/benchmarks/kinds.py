"""The kinds of answers that a response can be read for, and the grader of each: for questions from anywhere."""

from __future__ import annotations

from dps.benchmarks.answers import TextGrader
from dps.benchmarks.choices import ChoiceGrader
from dps.benchmarks.grading import Grader
from dps.benchmarks.mathematics import MathGrader, NumberGrader
from dps.benchmarks.programs import CodeGrader

GRADERS: dict[str, Grader] = {
    "number": NumberGrader(),
    "math": MathGrader(),
    "choice": ChoiceGrader(),
    "text": TextGrader(),
    "code": CodeGrader(),
}
