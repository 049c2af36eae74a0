"""The trajectories of a store as arrays: what answers, rules and costs need of each, without texts or hidden states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from dps.decide.aggregate import has_grade
from dps.decide.ladder import Key, Ladder
from dps.decide.seen import SHOWN, columns_of
from dps.errors import InputError
from feature_store.records import Manifest, Question, Trajectory, content_of

_ABOUT = ("question_ids", "contents", "levels", "has_grade", "prompt_tokens", "prefill_s")
_COLUMNS: dict[str, type] = {
    **SHOWN,
    "right": np.bool_,
    "gradable": np.bool_,
    "compute_s": np.float64,
    "finished_s": np.float64,
}
"""What is kept of each trajectory."""


class OfQuestions:
    """What dataclasses share that hold something of each of Q questions."""

    __slots__ = ()
    question_ids: tuple[str, ...]
    BY_QUESTION: ClassVar[tuple[str, ...]]
    """The fields with one entry for each question: arrays and tuples."""

    def select(self, questions: np.ndarray | Sequence[int]) -> Self:
        """Return these questions only; ``questions`` are indices, or a mask of shape (Q,)."""
        indices = np.arange(len(self.question_ids))[questions]
        chosen = {}
        for name in self.BY_QUESTION:
            values = getattr(self, name)
            chosen[name] = values[indices] if isinstance(values, np.ndarray) else tuple(values[i] for i in indices)
        return replace(self, **chosen)

    def on(self, question_ids: Sequence[str]) -> Self:
        """Return these questions, all of which must be there, in this order."""
        place = {name: i for i, name in enumerate(self.question_ids)}
        return self.select(np.array([place[name] for name in question_ids], dtype=np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Samples(OfQuestions):
    """K trajectories of each of Q questions, side by side: those of one arm, then those of the next."""

    BY_QUESTION = (*_ABOUT, *_COLUMNS)
    question_ids: tuple[str, ...]
    """Q of them."""
    arms: tuple[str, ...]
    """The arm of each of the K columns, for all questions; the columns of an arm are in order of index."""
    contents: tuple[str, ...]
    """The text of each question but for white space: the same question may have several ids."""
    levels: tuple[str | None, ...]
    """The benchmark's own difficulty of each question, where it states one."""
    has_grade: np.ndarray
    """Whether the question counts where answers are right or wrong, see :func:`dps.decide.aggregate.has_grade`: shape
    (Q,), bool."""
    prompt_tokens: np.ndarray
    """Length of each prompt: shape (Q,), int64."""
    prefill_s: np.ndarray
    """Measured compute seconds of each question's prefills: shape (Q,), float64."""
    classes: np.ndarray
    """Answer class of each trajectory, -1 for none: shape (Q, K), int64."""
    logprobs: np.ndarray
    """Base log p of each response, nats: shape (Q, K), float64."""
    kept: np.ndarray
    """Accepted tokens: shape (Q, K), float64."""
    entropies: np.ndarray
    """Sums of entropies over the accepted tokens, nats: shape (Q, K), float64."""
    top1: np.ndarray
    """Sums of top-1 probabilities over them: shape (Q, K), float64."""
    token_logprobs: np.ndarray
    """Sums of base log-probabilities of single tokens over them, nats; ``logprobs`` but for rounding: shape (Q, K),
    float64."""
    accepted: np.ndarray
    """Accepted MH steps: shape (Q, K), int64."""
    proposed: np.ndarray
    """MH steps: shape (Q, K), int64."""
    generated: np.ndarray
    """Sampled tokens, rejected ones included: shape (Q, K), int64."""
    cut: np.ndarray
    """Whether the response was cut at T_max: shape (Q, K), bool."""
    right: np.ndarray
    """Whether each answer is right; what cannot be graded is not: shape (Q, K), bool."""
    gradable: np.ndarray
    """Whether the grader could decide on the answer: shape (Q, K), bool."""
    compute_s: np.ndarray
    """Measured compute seconds: shape (Q, K), float64."""
    finished_s: np.ndarray
    """When it ended, seconds since the question was admitted: shape (Q, K), float64."""

    @property
    def num_trajectories(self) -> int:
        """K."""
        return self.classes.shape[1]


def columns_for(totals: Mapping[str, int]) -> tuple[Key, ...]:
    """Return arm and index of the columns of so many trajectories of each arm."""
    return tuple((arm, index) for arm, count in totals.items() for index in range(count))


def samples_of(questions: Iterable[Question], totals: Mapping[str, int], source: str = "the store") -> Samples:
    """Return the first trajectories of each arm as arrays, in the order of the questions, which are read once.

    An InputError if a question of the store (``source``) has fewer trajectories than ``totals`` of an arm.
    """
    keys = columns_for(totals)
    return samples_from([row_of(question, keys, source) for question in questions], [arm for arm, _ in keys])


Row = tuple[tuple[Any, ...], np.ndarray]
"""What :class:`Samples` has of one question: the first six fields, and the others, shape (14, K), float64."""


def trajectories_of(question: Question, keys: Sequence[Key], source: str = "the store") -> list[Trajectory]:
    """Return some trajectories of a question, by arm and index.

    An InputError if the question, of the store ``source``, lacks one.
    """
    known = {(t.arm, t.index): t for t in question.trajectories}
    if lacking := [key for key in keys if key not in known]:
        arm = lacking[0][0]
        expected, came = (sum(key[0] == arm for key in some) for some in (keys, known))
        raise InputError(
            f"Expected {expected} responses of the arm {arm} for every question of {source}, but question "
            f"{question.question_id} has {came}: sample it again into another folder."
        )
    return [known[key] for key in keys]


def row_of(question: Question, keys: Sequence[Key], source: str = "the store") -> Row:
    """Return one question's share of :func:`samples_of`; raises as :func:`trajectories_of` does."""
    trajectories = trajectories_of(question, keys, source)
    level = question.metadata.get("level")
    about = (
        question.question_id,
        content_of(question.question),
        None if level is None else str(level),
        has_grade(question),
        question.num_prompt_tokens,
        question.prefill_s,
    )
    costs = [(bool(t.correct), t.correct is not None, t.compute_s, t.finished_s) for t in trajectories]
    return about, np.array([(*columns_of(t), *more) for t, more in zip(trajectories, costs, strict=True)]).T


def samples_from(rows: Sequence[Row], arms: Sequence[str]) -> Samples:
    """Return the samples of what :func:`row_of` gave of each question; ``arms`` are those of the K columns."""
    about = list(zip(*(row[0] for row in rows), strict=True)) or [()] * len(_ABOUT)
    ids, contents, levels, graded, prompt_tokens, prefill_s = about
    columns = np.array([values for _, values in rows]).reshape(len(rows), len(_COLUMNS), len(arms))
    return Samples(
        question_ids=ids,
        arms=tuple(arms),
        contents=contents,
        levels=levels,
        has_grade=np.array(graded, dtype=bool),
        prompt_tokens=np.array(prompt_tokens, dtype=np.int64),
        prefill_s=np.array(prefill_s, dtype=np.float64),
        **{name: columns[:, i].astype(dtype) for i, (name, dtype) in enumerate(_COLUMNS.items())},
    )


def fixed_ladder(manifest: Manifest, folder: str) -> Ladder:
    """Return the ladder that every question of a store has climbed to its end; each prefix of it is a policy.

    An InputError if the store's policy is dynamic, so that its questions differ in k.
    """
    policy = manifest.policy
    if policy.get("family") != "fixed":
        raise InputError(
            f"Expected a store in which every question has the same number of trajectories, but {folder} is of the "
            f"dynamic policy {policy.get('name')}: give what dps harvest, or dps evaluate with power, plain and "
            "lowtemp, wrote."
        )
    return Ladder.parse(policy.get("ladder", ()))


def check_held(ladder: Ladder, held: Ladder, folder: str) -> None:
    """Raise InputError if a ladder takes responses that the harvest (``folder``, which climbed ``held``) lacks."""
    totals = held.totals
    for arm, count in ladder.totals.items():
        if count > totals.get(arm, 0):
            has = ", ".join(f"{arm} {count}" for arm, count in totals.items())
            raise InputError(
                f"Expected {count} responses of the arm {arm} in {folder}, which has {has}: sample them with dps "
                f"harvest --ladder '[{arm} {count}]' --output {folder}-{arm} and the harvest's other settings, "
                f"then dps store merge {folder} {folder}-{arm} --output FOLDER."
            )


def held_of(manifest: Manifest, folder: str, ladder: Ladder) -> dict[str, int]:
    """Return the trajectories that a fixed store has of each of a ladder's arms; raises as :func:`check_held` does."""
    held = fixed_ladder(manifest, folder)
    check_held(ladder, held, folder)
    return {arm: count for arm, count in held.totals.items() if arm in ladder.arms}


def trained_ladder(manifest: Manifest, folder: str, rungs: Sequence[str] | None = None) -> Ladder:
    """Return the ladder that a controller is trained on: the harvest's own, or ``rungs`` whose responses it has.

    An InputError if the store is of a dynamic policy or lacks responses, or the ladder has no checkpoint: there is one
    after each rung but the last.
    """
    ladder = fixed_ladder(manifest, folder) if rungs is None else Ladder.parse(rungs)
    if len(ladder.rungs) < 2:
        where = folder if rungs is None else "data.ladder"
        raise InputError(
            f"Expected a ladder with a checkpoint below its end, but that of {where} is {ladder}: nothing could be "
            "decided there; set data.ladder to two rungs or more, or harvest such a one."
        )
    held_of(manifest, folder, ladder)
    return ladder


def check_hidden(manifest: Manifest, folder: str, ladder: Ladder) -> None:
    """Raise InputError if a store was told (``features.arms``) not to keep hidden states of one of a ladder's arms."""
    arms = manifest.model.get("feature_arms", ladder.arms)
    if lacking := [arm for arm in ladder.arms if arm not in arms]:
        raise InputError(
            f"Expected hidden states of every arm of the ladder {ladder}, but {folder} keeps those of "
            f"{', '.join(arms)} only: choose a controller without them, or harvest with {lacking[0]} in features.arms."
        )
