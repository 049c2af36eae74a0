"""The table of trajectories of a run, with the published columns and ours: one row per question and trajectory index.

The published table has one file per seed and one row per question, with one response of each of three policies side by
side: ``naive`` is sampling at low temperature, ``std`` plain sampling, ``mcmc`` power sampling. Here the trajectory
index takes the part of the seed. What a run lacks is blank. Three published columns need a word:

- ``mcmc_k`` is the number of Metropolis-Hastings steps of a stage, which is called ``num_mh_steps`` everywhere else
  here; it is not the number of trajectories k. ``baseline_k`` is 1: one response of each baseline stands in a row.
- ``run_mode`` is ``all``, ``baseline_only`` or ``mcmc_only``, by what the run holds.
- ``dynamic_metric`` is the metric of the early-stop rule (``sampler.early_stop``), and ``dynamic_stop_triggered`` says
  whether it ended this response.

Entropy, perplexity and self-confidence are of the base model, see ``measures``: not the published quantity.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dps.analysis.metrics.measures import METRICS, acceptance_ratio, measure
from dps.analysis.metrics.runs import Run
from feature_store import Question, Trajectory

SIDES = ("naive", "std", "mcmc")
"""The published names of the three policies."""
_SERIES = ("token_logprob", "token_entropy", "token_top1")
_OURS = ("correct", "strict_answer", "strict_correct", "ending", "num_tokens", "num_generated_tokens", "time_s")

PUBLISHED_COLUMNS = (
    "question",
    "correct_answer",
    *(f"{side}_{what}" for side in SIDES for what in ("completion", "answer")),
    *(f"{side}_{metric}" for side in SIDES for metric in METRICS),
    *("acceptance_ratio", "dynamic_metric", "dynamic_stop_triggered", "run_mode", "baseline_k", "mcmc_k"),
)
"""The published columns, in their order."""


def side_policies(mcmc_policy: str) -> dict[str, str]:
    """Return the policy of each published name."""
    return {"naive": "lowtemp", "std": "plain", "mcmc": mcmc_policy}


def columns(*, series: bool) -> list[str]:
    """Return the names of all columns: the published ones, then ours.

    Ours are the run, its seed, the question's id and the trajectory's index; for each of the three sides whether the
    answer is right (blank where it cannot be graded), the answer in the strict form and whether that is right, how the
    response ended, its accepted and its generated tokens (rejected ones included) and its measured compute seconds;
    and, if asked for, log p (nats), entropy (nats) and top-1 probability of every accepted token as JSON lists.
    """
    ours = ["run", "seed", "question_id", "trajectory_index", *(f"{side}_{what}" for side in SIDES for what in _OURS)]
    return [*PUBLISHED_COLUMNS, *ours, *(f"{side}_{name}" for side in SIDES for name in _SERIES if series)]


def rows(
    run: Run, questions: Mapping[str, Question], mcmc_policy: str = "power", *, series: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one question, in order of trajectory index.

    Args:
        run: The run that it is of.
        questions: Its records by policy; other policies than the three are passed over.
        mcmc_policy: The policy of the side ``mcmc``.
        series: Whether to add the values per token.

    Returns:
        Values by column; what is absent has no key.
    """
    sides = {side: questions[name] for side, name in side_policies(mcmc_policy).items() if name in questions}
    found = {side: {t.index: t for t in question.trajectories} for side, question in sides.items()}
    common = _run_columns(run, mcmc_policy)
    for index in sorted(set().union(*found.values())):
        some = next(question for side, question in sides.items() if index in found[side])
        row = {
            **common,
            "question": some.question,
            "correct_answer": some.gold,
            "question_id": some.question_id,
            "trajectory_index": index,
        }
        for side, trajectories in found.items():
            if index in trajectories:
                row |= _side(side, trajectories[index], series=series)
        if index in found.get("mcmc", {}):
            chain = found["mcmc"][index]
            row |= {"acceptance_ratio": acceptance_ratio(chain), "dynamic_stop_triggered": chain.ending == "early"}
        yield row


def _run_columns(run: Run, mcmc_policy: str) -> dict[str, Any]:
    """Return what all rows of a run have in common."""
    mcmc = run.stores.get(mcmc_policy)
    baselines = [name for name in ("plain", "lowtemp") if name in run.stores]
    sampler = mcmc.manifest.sampler if mcmc is not None else {}
    return {
        "run": run.name,
        "seed": next(iter(run.stores.values())).manifest.seed,
        "dynamic_metric": sampler.get("early_stop", "none"),
        "run_mode": "baseline_only" if mcmc is None else "all" if baselines else "mcmc_only",
        "baseline_k": 1 if baselines else None,
        "mcmc_k": sampler.get("num_mh_steps"),
    }


def _side(side: str, trajectory: Trajectory, *, series: bool) -> dict[str, Any]:
    """Return the columns of one response."""
    values: dict[str, Any] = {
        "completion": trajectory.text,
        "answer": trajectory.answer,
        **measure(trajectory)._asdict(),
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
    return {f"{side}_{name}": value for name, value in values.items()}


def _json_list(values: np.ndarray) -> str:
    """Return float32 values as a JSON list in the fewest digits that tell them apart; null where JSON has no number."""
    return json.dumps([float(str(value)) if np.isfinite(value) else None for value in values])
