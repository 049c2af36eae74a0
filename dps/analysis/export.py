"""The table of trajectories of a run, with the published columns and ours: one row per question and trajectory index.

The published table has one file per seed and one row per question, with one response of each of three policies side by
side: ``naive`` is sampling at low temperature, ``std`` plain sampling, ``mcmc`` power sampling. Here the trajectory
index takes the part of the seed. What a run lacks is blank. Three published columns need a word:

- ``mcmc_k`` is the number of Metropolis-Hastings steps of a stage, which is called ``num_mh_steps`` everywhere else
  here; it is not the number of trajectories k. ``baseline_k`` is 1: one response of each baseline stands in a row.
- ``run_mode`` is ``all``, ``baseline_only`` or ``mcmc_only``, by what the run holds.
- ``dynamic_metric`` is the metric of the early-stop rule (``sampler.early_stop``), and ``dynamic_stop_triggered`` says
  whether it ended this response.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dps.analysis.published import FEATURES, SIDES, measure, side_policies
from dps.analysis.stores import Run
from feature_store import Question, Trajectory

_SERIES = ("token_logprob", "token_entropy", "token_top1")
_OURS = ("correct", "strict_answer", "strict_correct", "ending", "num_tokens", "num_generated_tokens", "time_s")

PUBLISHED_COLUMNS = (
    *("question", "correct_answer", *(f"{side}_{what}" for side in SIDES for what in ("completion", "answer"))),
    *(*FEATURES, "acceptance_ratio", "dynamic_metric", "dynamic_stop_triggered", "run_mode", "baseline_k", "mcmc_k"),
)
"""The published columns, in their order."""


def columns(*, series: bool) -> list[str]:
    """Return the names of all columns: the published ones, then ours.

    Ours are the run, its seed, the question's id and the trajectory's index; for each of the three sides whether the
    answer is right (blank where it cannot be graded), the answer in the strict form and whether that is right, how the
    response ended, its accepted and its generated tokens (rejected ones included) and its measured compute seconds;
    and, if asked for, log p (nats), entropy (nats) and top-1 probability of every accepted token as JSON lists.
    """
    ours = ["run", "seed", "question_id", "trajectory_index", *(f"{side}_{what}" for side in SIDES for what in _OURS)]
    return [*PUBLISHED_COLUMNS, *ours, *(f"{side}_{name}" for side in SIDES for name in _SERIES if series)]


def rows(run: Run, questions: Mapping[str, Question], mcmc_policy: str, *, series: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of one question of a run (its records by policy), in order of trajectory index.

    What is absent has no key. ``series`` adds the values per token.
    """
    sides = {side: questions[name] for side, name in side_policies(mcmc_policy).items() if name in questions}
    by_index = {side: {t.index: t for t in question.trajectories} for side, question in sides.items()}
    mcmc = run.parts.get(mcmc_policy)
    baselines = any(name in run.parts for name in ("plain", "lowtemp"))
    sampler = mcmc.sampler if mcmc is not None else {}
    common = {
        "run": run.name,
        "seed": run.stores[0].manifest.seed,
        "dynamic_metric": sampler.get("early_stop", "none"),
        "run_mode": "baseline_only" if mcmc is None else "all" if baselines else "mcmc_only",
        "baseline_k": 1 if baselines else None,
        "mcmc_k": sampler.get("num_mh_steps"),
    }
    for index in sorted(set().union(*by_index.values())):
        some = next(question for side, question in sides.items() if index in by_index[side])
        about = {"question": some.question, "correct_answer": some.gold, "question_id": some.question_id}
        row = {**common, **about, "trajectory_index": index}
        for side, trajectories in by_index.items():
            if index in trajectories:
                row |= {f"{side}_{name}": value for name, value in _side(trajectories[index], series=series).items()}
        if index in by_index.get("mcmc", {}):
            chain = by_index["mcmc"][index]
            row["acceptance_ratio"] = chain.mh_accepted / chain.mh_proposed if chain.mh_proposed else 1.0
            row["dynamic_stop_triggered"] = chain.ending == "early"
        yield row


def _side(trajectory: Trajectory, *, series: bool) -> dict[str, Any]:
    """Return the columns of one response."""
    values: dict[str, Any] = {
        "completion": trajectory.text,
        "answer": trajectory.answer,
        **measure(trajectory),
        "correct": trajectory.correct,
        "strict_answer": trajectory.strict_answer,
        "strict_correct": trajectory.strict_correct,
        "ending": trajectory.ending,
        "num_tokens": len(trajectory.tokens),
        "num_generated_tokens": trajectory.num_generated_tokens,
        "time_s": trajectory.compute_s,
    }
    if series and len(trajectory.token_logprob):
        values |= {name: _json_list(getattr(trajectory, name)) for name in _SERIES}
    return values


def _json_list(values: np.ndarray) -> str:
    """Return float32 values as a JSON list in the fewest digits that tell them apart; null where JSON has no number."""
    return json.dumps([float(str(value)) if np.isfinite(value) else None for value in values])
