"""How single responses were read: the answer wherever it stands, beside the answer in the form that was asked for.

Where the two differ much, a model's accuracy is a matter of how its answers are looked for, and a reader should know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dps.analysis.report.words import json_number
from dps.estimates import estimate
from feature_store.records import Question


@dataclass(frozen=True, slots=True)
class ReadingOfQuestion:
    """Shares of a question's responses, each in [0, 1]."""

    flexible: float
    """Right, the answer taken wherever it stands."""
    strict: float
    """Right, the answer taken in the form that was asked for alone."""
    without_strict: float
    """Without an answer in that form."""
    ungradable: float
    """With an answer that the grader could not decide."""


def reading(questions: Iterable[Question], kept: dict[str, ReadingOfQuestion]) -> Iterator[Question]:
    """Yield questions as they come and keep how the responses of the graded ones were read.

    Args:
        questions: Records, read once.
        kept: Filled by question id; left out are questions without a gold answer, and those whose strict answers
            were not looked for.
    """
    for question in questions:
        looked = any(t.strict_answer is not None or t.strict_correct is not None for t in question.trajectories)
        if question.gold is not None and looked:
            each = question.trajectories
            kept[question.question_id] = ReadingOfQuestion(
                flexible=float(np.mean([t.correct is True for t in each])),
                strict=float(np.mean([t.strict_correct is True for t in each])),
                without_strict=float(np.mean([t.strict_answer is None for t in each])),
                ungradable=float(np.mean([t.correct is None for t in each])),
            )
        yield question


def describe_readings(series: str, kept: Sequence[ReadingOfQuestion]) -> dict[str, Any]:
    """Return one entry of ``readings``: means over questions with standard errors, JSON values."""
    entry: dict[str, Any] = {"series": series, "num_questions": len(kept)}
    for name in ("flexible", "strict", "without_strict", "ungradable"):
        found = estimate(np.array([getattr(one, name) for one in kept]))
        entry[name] = json_number(found.value)
        entry[f"{name}_stderr"] = json_number(found.stderr)
    return entry
