"""The answer of k trajectories (METHOD section 2): pure functions of answer classes and log-probabilities.

Answers come as equivalence classes, so nothing here knows what mathematics or a program is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from dps.decide.seen import Tally
from feature_store.records import Question, Trajectory

Aggregator = Literal["majority", "best_logprob", "weighted", "best_logprob_per_token", "weighted_per_token"]
AGGREGATORS: tuple[str, ...] = get_args(Aggregator)


def representative(
    answer_classes: Sequence[int] | np.ndarray,
    logprobs: Sequence[float] | np.ndarray,
    method: str = "majority",
    num_tokens: Sequence[int] | np.ndarray | None = None,
) -> int | None:
    """Return the index of the trajectory whose answer is the answer of them all; None if none has an answer.

    ``majority`` takes the class with the most trajectories, ties by the class whose best trajectory has the highest log
    p; ``best_logprob`` the trajectory with the highest log p; ``weighted`` the class with the largest sum of p. Of the
    winning class the trajectory with the highest log p counts. ``best_logprob_per_token`` and ``weighted_per_token``
    are these with log p divided by the response's tokens throughout, so that long responses are not held against
    their answers. Classes, log-probabilities and ``num_tokens`` (one each where not given) have shape (k,); class -1 is
    no answer, which has no vote. A ValueError for any other method.
    """
    if method not in AGGREGATORS:
        raise ValueError(f"expected an aggregator among {', '.join(AGGREGATORS)}, got {method!r}")
    classes, logp = np.asarray(answer_classes, dtype=np.int64), np.asarray(logprobs, dtype=np.float64)
    sums = np.ones((3, len(classes)))
    sums[0] = 1 if num_tokens is None else num_tokens
    tally = Tally(1, int(classes.max(initial=0)) + 1, method)
    for i in range(len(classes)):
        tally.add(classes[i : i + 1], logp[i : i + 1], sums[:, i : i + 1])
    winner = int(tally.winners()[0])
    return None if winner < 0 else winner


def winner_of(trajectories: Sequence[Trajectory], method: str = "majority") -> int | None:
    """Return the position of the finished trajectory whose answer is taken, see :func:`representative`."""
    classes, logprobs = [t.answer_class for t in trajectories], [t.base_logprob for t in trajectories]
    return representative(classes, logprobs, method, [int(t.block_num_tokens.sum()) for t in trajectories])


def answer_of(trajectories: Sequence[Trajectory], method: str = "majority") -> tuple[str | None, bool | None]:
    """Return the answer of finished trajectories of one question and whether it is right.

    Without any answer: ``(None, False)``, or ``(None, None)`` if the question is not graded.
    """
    index = winner_of(trajectories, method)
    if index is None:
        graded = any(t.correct is not None for t in trajectories)
        return None, False if graded else None
    return trajectories[index].answer, trajectories[index].correct


def has_grade(question: Question) -> bool:
    """Return whether a question counts where answers are right or wrong: in labels, replays, reports and pass@k alike.

    It does where it has a gold answer, or a grade of some trajectory (tasks that are graded by tests have no gold
    answer), and then whatever its answers are: one that the grader could not decide on is not right. Leaving such
    questions out would choose questions by their answers.
    """
    return question.gold is not None or any(t.correct is not None for t in question.trajectories)
