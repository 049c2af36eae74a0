"""The answer of k trajectories (METHOD section 2): pure functions of answer classes and log-probabilities.

Answers come as equivalence classes, so nothing here knows what mathematics or a program is. Used by live runs, by the
data module that makes labels, and by reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from feature_store.records import Question, Trajectory

Aggregator = Literal["majority", "best_logprob", "weighted"]
AGGREGATORS: tuple[str, ...] = get_args(Aggregator)


def representative(
    answer_classes: Sequence[int] | np.ndarray, logprobs: Sequence[float] | np.ndarray, method: str = "majority"
) -> int | None:
    """Return the index of the trajectory whose answer is the answer of them all.

    ``majority`` takes the class with the most trajectories, ties by the class whose best trajectory has the highest
    log p; ``best_logprob`` the trajectory with the highest log p; ``weighted`` the class with the largest sum of
    ``exp(log p - max log p)``. Trajectories without an answer (class -1) have no vote.

    Args:
        answer_classes: Class of each trajectory's answer, -1 for none: shape (k,).
        logprobs: Base log-probability of each response, nats: shape (k,).
        method: One of :data:`AGGREGATORS`.

    Returns:
        The position of the winning class's trajectory with the highest log p, or None if no trajectory has an answer.

    Raises:
        ValueError: For an unknown method.

    Source:
        METHOD section 2, "Answer of k trajectories".
    """
    if method not in AGGREGATORS:
        raise ValueError(f"expected an aggregator among {', '.join(AGGREGATORS)}, got {method!r}")
    classes = np.asarray(answer_classes)
    logp = np.asarray(logprobs, dtype=np.float64)
    answered = np.flatnonzero(classes >= 0)
    if answered.size == 0:
        return None
    best = logp[answered].max()

    def strength(label: int) -> tuple[float, float]:
        members = logp[classes == label]
        if method == "majority":
            return float(members.size), float(members.max())
        if method == "weighted":
            return float(np.exp(members - best).sum()), float(members.max())
        return float(members.max()), 0.0

    winner = max((int(label) for label in np.unique(classes[answered])), key=strength)
    members = np.flatnonzero(classes == winner)
    return int(members[np.argmax(logp[members])])


def answer_of(trajectories: Sequence[Trajectory], method: str = "majority") -> tuple[str | None, bool | None]:
    """Return the answer of these trajectories and whether it is right.

    Args:
        trajectories: Finished trajectories of one question.
        method: One of :data:`AGGREGATORS`.

    Returns:
        ``(answer, correct)``. Without any answer: ``(None, False)``, or ``(None, None)`` if the question is not graded.
    """
    index = representative([t.answer_class for t in trajectories], [t.base_logprob for t in trajectories], method)
    if index is None:
        graded = any(t.correct is not None for t in trajectories)
        return None, False if graded else None
    return trajectories[index].answer, trajectories[index].correct


def has_grade(question: Question) -> bool:
    """Return whether a question counts where answers are right or wrong: in labels, replays, reports and pass@k alike.

    It does where it has a gold answer, or a grade of some trajectory (tasks that are graded by tests have no gold
    answer). It then counts whatever its answers are: one that the grader could not decide on is not right. Leaving such
    questions out would choose questions by their answers, and policies would be compared on different ones.

    Source:
        METHOD section 4: tasks without a grade have no labels.
    """
    return question.gold is not None or any(t.correct is not None for t in question.trajectories)
