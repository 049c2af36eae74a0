"""Questions with their trajectories for a reader: which ones, and what of them a report shows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dps.analysis.policies import ReplayedPolicy
from dps.benchmarks.sources import may_be_shown
from dps.decide.samples import Samples
from feature_store import Store
from feature_store.records import Manifest, Question

GROUPS = ("none right", "up to 3/8", "up to 5/8", "up to 7/8", "all right")
"""Difficulty of a question: the share of its trajectories that is right."""
SHOWN = 200
"""Questions that a report shows, if nothing else is set."""
RESPONSES, CHARACTERS = 3, 1000
"""Responses of a question that are shown in words, of different answers, and how much of each."""


def difficulty_of(right: np.ndarray) -> np.ndarray:
    """Return which of :data:`GROUPS` each question belongs to, by its right responses (Q, K): shape (Q,), int64."""
    share = right.mean(axis=1)
    between = np.clip(np.searchsorted([0.0, 0.375, 0.625, 0.875], share, side="left"), 1, 3)
    return np.where(share == 0, 0, np.where(share == 1, 4, between))


def number_shown(asked: int | None, manifest: Manifest) -> int:
    """Return how many questions a report may show: what was asked for, else 0 where the authors ask for none."""
    if asked is not None:
        return asked
    return SHOWN if may_be_shown(str(manifest.benchmark.get("name"))) else 0


def chosen(question_ids: Sequence[str], groups: np.ndarray, count: int) -> list[int]:
    """Return indices of at most ``count`` questions, as many of each difficulty as there are, easiest last.

    Within a difficulty a hash of the id decides, so that the choice does not follow the benchmark's order.
    """
    digest = [hashlib.sha256(f"shown\0{name}".encode()).digest() for name in question_ids]
    rank = np.empty(len(question_ids), dtype=np.int64)
    for group in np.unique(groups):
        members = sorted(np.flatnonzero(groups == group), key=lambda i: digest[i])
        rank[members] = np.arange(len(members))
    taken = np.lexsort((groups, rank))[:count]
    return sorted(taken.tolist(), key=lambda i: (groups[i], question_ids[i]))


def questions_to_read(
    store: Store, samples: Samples, policies: Sequence[ReplayedPolicy], count: int
) -> dict[str, Any] | None:
    """Return what a report shows of at most ``count`` of the compared questions; None where it shall show none."""
    if count == 0:
        return None
    groups = difficulty_of(samples.right)
    rows = chosen(samples.question_ids, groups, count)
    asked = [one for one in policies if one.chosen is not None and one.is_main]
    read = store.read([samples.question_ids[i] for i in rows])
    return {
        "policies": [one.label for one in asked],
        "shown": [
            {
                "question_id": question.question_id,
                "question": question.question,
                "gold": question.gold,
                "level": samples.levels[i],
                "group": int(groups[i]),
                "k": [int(one.natural_k[i]) for one in asked],
                "right": [bool(one.natural_correct[i]) for one in asked],
                **_trajectories(question, samples.num_trajectories),
            }
            for i, question in zip(rows, read, strict=True)
        ],
    }


def _trajectories(question: Question, count: int) -> dict[str, Any]:
    """Return a question's trajectories in numbers, and its most likely response for each of its commonest answers."""
    trajectories = question.trajectories[:count]
    votes: dict[int, list[int]] = {}
    for place, trajectory in enumerate(trajectories):
        votes.setdefault(trajectory.answer_class, []).append(place)
    common = sorted(votes.values(), key=lambda indices: (-len(indices), indices[0]))[:RESPONSES]
    best = [max(indices, key=lambda i: trajectories[i].base_logprob) for indices in common]
    return {
        "trajectories": [
            {
                "arm": t.arm,
                "answer": t.answer,
                "correct": t.correct,
                "logprob": t.base_logprob,
                "tokens": len(t.tokens),
                "generated": t.num_generated_tokens,
            }
            for t in trajectories
        ],
        "responses": [{"trajectory": i, "text": _cut(trajectories[i].text)} for i in best],
    }


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[:CHARACTERS].rstrip() + " …"
