"""Questions and trajectories as tables of pandas; the columns are documented at :meth:`Store.to_frame`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Any

import pandas as pd

from feature_store.columns import COLUMNS, UNITS
from feature_store.errors import StoreError
from feature_store.records import Question

_FIRST = ("question_id", "arm", "index", "num_tokens", "num_prompt_tokens", "prefill_s", "entropy", "top1")
_SCALARS = tuple(column.name for column in COLUMNS["trajectories"] if column.name not in ("arm", "index", "text"))
_OF_QUESTION = (
    *("question_id", "gold", "answer", "correct", "k", "num_prompt_tokens", "num_tokens", "num_sampled_tokens"),
    *("num_cancelled_tokens", "mh_proposed", "mh_accepted", "num_decisions", "p_enough"),
    *("prefill_s", "embedding_s", "controller_s", "cancelled_s", "compute_s", "latency_s"),
)
_SUMS = ("num_tokens", "mh_proposed", "mh_accepted")
_NAMES = {
    "trajectories": ((*_FIRST, *_SCALARS), ("text",)),
    "questions": (_OF_QUESTION, ("question", "prompt")),
}
"""Columns of each table: those that it always has, and the texts."""
_UNITS = {name.partition("/")[2]: unit for name, unit in UNITS.items() if unit} | {
    **dict.fromkeys(("num_tokens", "num_sampled_tokens"), "token"),
    "compute_s": "s",
    "entropy": "nat",
}


def frame_of(questions: Iterable[Question], rows: str, text: bool) -> pd.DataFrame:
    """Return the table of questions that come in any order."""
    if rows not in _NAMES:
        raise StoreError(f"Expected rows to be one of {', '.join(_NAMES)}, got {rows!r}.")
    values, (names, texts) = _trajectories if rows == "trajectories" else _question, _NAMES[rows]
    names = (*names, *texts) if text else names
    ordered = sorted(((q.question_id, list(values(q, names))) for q in questions), key=lambda one: one[0])
    frame = pd.DataFrame([row for _, some in ordered for row in some], columns=list(names))
    frame = frame.astype({name: "boolean" for name in ("correct", "strict_correct") if name in names})
    frame.attrs["units"] = {name: _UNITS[name] for name in names if name in _UNITS}
    return frame


def _trajectories(question: Question, names: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    others = attrgetter(*names[len(_FIRST) :])
    for t in question.trajectories:
        sums = float(t.block_entropy.sum()), float(t.block_top1.sum())
        of_question = question.num_prompt_tokens, question.prefill_s
        yield (question.question_id, t.arm, t.index, t.num_tokens, *of_question, *sums, *others(t))


def _question(question: Question, names: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    own = {name: sum(getattr(t, name) for t in question.trajectories) for name in _SUMS}
    own["num_decisions"] = len(question.decisions)
    own["p_enough"] = question.decisions[-1].p_enough if question.decisions else float("nan")
    yield tuple(own[name] if name in own else getattr(question, name) for name in names)
