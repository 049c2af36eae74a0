"""Whether the Metropolis-Hastings steps were enough: from the step traces of a run to diagnostics.

A *stage* is a chain's steps at one horizon. Every standard error is over questions: steps of a chain, and chains of a
question, are not independent of one another. The kernel is right however few steps are taken; how near a chain comes to
its target depends on them (METHOD section 1), and no statistic of short chains can prove that they have arrived. What
can be seen is whether log p still moves when a stage ends, whether chains move at all, where proposals are accepted,
and whether the trajectories of a question agree with one another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from dps.analysis.words import json_number, nats, percent
from dps.estimates import Estimate, estimate, ratio
from feature_store.records import Question, StepTrace

SMALL = 0.1
"""A change of log p below this share of the spread between trajectories of a question is small."""
FROZEN = 0.5
"""Where more chains than this never moved in a stage, that log p did not change there says nothing."""
_TINY = 1e-12  # rounding
SURE = 2.0
"""Standard errors of a change of log p that is called surely there in words."""
NOTHING = Estimate(math.nan, math.nan, 0)


@dataclass(frozen=True, slots=True, eq=False)
class ChainTrace:
    """What a report keeps of one chain."""

    answer_class: int
    """Equivalence class of its answer within its question; -1 for no answer."""
    steps: StepTrace
    """Its steps, at least one."""


def traces_of(question: Question) -> list[ChainTrace]:
    """Return the traces of a question's chains that have recorded steps."""
    return [ChainTrace(t.answer_class, t.steps) for t in question.trajectories if len(t.steps.logprob)]


@dataclass(frozen=True, slots=True, eq=False)
class Chains:
    """The traced chains of a run, flat: C chains, their U stages and their S steps, each in order."""

    answer_class: np.ndarray
    """Class of each chain's answer: shape (C,)."""
    question: np.ndarray
    """Number of each chain's question, as ``step_question`` and ``stage_question``: shape (C,)."""
    steps: StepTrace
    """All steps, shape (S,)."""
    step_question: np.ndarray
    stage_question: np.ndarray
    stage_horizon: np.ndarray
    """Its horizon, tokens: shape (U,)."""
    first: np.ndarray
    """Index of its first step: shape (U,)."""
    count: np.ndarray
    """Number of its steps: shape (U,)."""
    end_logprob: np.ndarray
    """Log p after its last step, nats: shape (U,)."""
    last: np.ndarray
    """Whether it is the last of its chain: shape (U,), bool."""


def chains_of(traces: Mapping[str, Sequence[ChainTrace]]) -> Chains | None:
    """Return the chains of these questions, in order of question id; None if there is none."""
    kept = [(number, chain) for number, name in enumerate(sorted(traces)) for chain in traces[name]]
    if not kept:
        return None
    columns = [field.name for field in fields(StepTrace)]
    steps = StepTrace(**{name: np.concatenate([getattr(chain.steps, name) for _, chain in kept]) for name in columns})
    step_chain = np.repeat(np.arange(len(kept)), [len(chain.steps.logprob) for _, chain in kept])
    begins = (step_chain[1:] != step_chain[:-1]) | (steps.horizon[1:] != steps.horizon[:-1])
    first = np.concatenate([[0], np.flatnonzero(begins) + 1])
    count, stage_chain = np.diff(np.append(first, len(step_chain))), step_chain[first]
    question = np.array([number for number, _ in kept])
    return Chains(
        answer_class=np.array([chain.answer_class for _, chain in kept]),
        question=question,
        steps=steps,
        step_question=question[step_chain],
        stage_question=question[stage_chain],
        stage_horizon=steps.horizon[first],
        first=first,
        count=count,
        end_logprob=steps.logprob[first + count - 1],
        last=np.append(stage_chain[1:] != stage_chain[:-1], True),
    )


def clustered(values: np.ndarray, question: np.ndarray) -> Estimate:
    """Return the mean over all values, its standard error clustered by question.

    With e_q the sum of ``value - mean`` over the values of question q, G questions and N values, the standard error is
    ``sqrt(G / (G - 1) * sum_q e_q^2) / N``.

    Source:
        Cameron and Miller, A practitioner's guide to cluster-robust inference, 2015, section II.
    """
    if len(values) == 0:
        return NOTHING
    counts = np.bincount(question)
    there = counts > 0
    return ratio(np.bincount(question, weights=values)[there], counts[there].astype(np.float64))


# -- acceptance --------------------------------------------------------------------------------------------------------


def acceptance_by_cut(chains: Chains) -> list[dict[str, Any]]:
    """Return the acceptance by the share of the response that the step kept, ``cut_position / length``, in tenths."""
    tenth = 10 * chains.steps.cut_position.astype(np.int64) // chains.steps.length
    accepted = chains.steps.accepted.astype(np.float64)
    rows = []
    for i in range(10):
        share = clustered(accepted[tenth == i], chains.step_question[tenth == i])
        rows.append(
            {"low": i / 10, "high": (i + 1) / 10, **_pair("acceptance", share), "num_steps": int((tenth == i).sum())}
        )
    return rows


def frozen(chains: Chains, stages: np.ndarray) -> Estimate:
    """Return the share of these stages, a mask of shape (U,), in which no step was accepted."""
    moved = np.add.reduceat(chains.steps.accepted.astype(np.int64), chains.first) > 0
    return clustered((~moved[stages]).astype(np.float64), chains.stage_question[stages])


# -- log p over the steps of a stage -----------------------------------------------------------------------------------


def trace(chains: Chains, stages: np.ndarray) -> list[dict[str, Any]]:
    """Return the mean change of log p since the state after a stage's first step, after steps 1, 2, ..., n, nats.

    Every change is within one stage of one chain, of those in the mask of shape (U,); a step number counts the stages
    that got that far. The state before the first step is not recorded, so that step's own change is not in it.
    """
    rows = []
    for step in range(int(chains.count[stages].max(initial=0))):
        reached = stages & (chains.count > step)
        start = chains.first[reached]
        change = clustered(
            chains.steps.logprob[start + step] - chains.steps.logprob[start], chains.stage_question[reached]
        )
        rows.append({"step": step + 1, **_pair("logprob_change", change), "num_stages": int(reached.sum())})
    return rows


def stage_row(chains: Chains, stages: np.ndarray) -> dict[str, Any]:
    """Return what some stages, a mask of shape (U,) with at most one of each chain, say of the steps, JSON values.

    The *second half* is what going from n/2 (rounded down) to n steps gave, over the stages with at least two: the
    doubling that the run itself contains. Going on from n to 2n steps gives less where log p has relaxed most of the
    way, and at most twice as much where it still drifts along a line. Under the schedule ``paper`` a chain's last stage
    is the one that happened to end in EOS, so it is chosen by its outcome; the stages of one horizon are all those that
    reached it. ``gain`` is the change from the state after step 1 to that after step n, ``spread`` the standard
    deviation of log p after step n between trajectories of one question, ``verdict`` that of :func:`judge`.
    """
    within = np.repeat(stages, chains.count)
    counts = chains.count[stages]
    chosen = stages & (chains.count >= 2)
    gain = total = per_token = NOTHING
    between, verdict = math.nan, "unclear"
    if chosen.any():
        first, count, question = chains.first[chosen], chains.count[chosen], chains.stage_question[chosen]
        logprob, end = chains.steps.logprob, chains.end_logprob[chosen]
        change = end - logprob[first + count // 2 - 1]
        gain, total = clustered(change, question), clustered(end - logprob[first], question)
        there = np.bincount(question) > 0
        lengths = chains.steps.length[first + count - 1]
        per_token = ratio(*(np.bincount(question, weights=values)[there] for values in (change, lengths)))
        between = spread(end, question)
        verdict = judge(gain, between, frozen(chains, chosen).value)
    return {
        "num_chains": int(stages.sum()),
        "least_steps": int(counts.min()),
        "most_steps": int(counts.max()),
        **_pair("acceptance", clustered(chains.steps.accepted[within].astype(float), chains.step_question[within])),
        **_pair("frozen", frozen(chains, stages)),
        **_pair("gain", total),
        **_pair("second_half_gain", gain),
        **_pair("second_half_gain_per_token", per_token),
        "spread": json_number(between),
        "verdict": verdict,
        "second_half_gain_in_spreads": gain.value / between if between > 0 and not math.isnan(gain.value) else None,
    }


def judge(gain: Estimate, spread: float, frozen: float) -> str:
    """Say whether the steps were enough, from what their second half gave.

    - ``enough``: the 95 % interval of ``gain`` is within 10 % of ``spread`` on either side of zero, and at most half of
      the chains were frozen.
    - ``not enough``: not ``enough``, and the interval leaves zero out, on either side: chains that lose log p have not
      arrived either.
    - ``unclear``: neither; or there is no standard error (one question) or no spread (one trajectory of each).

    A gain of zero that is only not refuted must not pass for small, so ``enough`` needs the whole interval, and a gain
    that is surely there but too small to matter does not make the steps too few. Why 10 %: a normal law moved by 0.1
    standard deviations is 4 % away in total variation, and the mean log p of even 8 trajectories has a standard error
    of 0.35 standard deviations, so no answer of theirs can show it. Why frozen chains: where nothing moves nothing
    changes, however far the chains are from their target. The spread is taken as known.
    """
    reach = max(abs(gain.low), abs(gain.high)) if gain.stderr > 0 else abs(gain.value) + SURE * gain.stderr
    if reach <= SMALL * spread + _TINY:  # never for NaN
        return "enough" if frozen <= FROZEN else "unclear"
    return "not enough" if gain.sign and not math.isnan(gain.stderr) and not math.isnan(spread) else "unclear"


# -- agreement between trajectories ------------------------------------------------------------------------------------


def spread(values: np.ndarray, question: np.ndarray) -> float:
    """Return the pooled standard deviation within questions, ``sqrt(sum SS_q / sum (k_q - 1))``; NaN without pairs."""
    counts = np.bincount(question)
    freedom = float((counts[counts > 0] - 1).sum())
    means = np.bincount(question, weights=values) / np.maximum(counts, 1)
    squares = (values - means[question]) ** 2
    return math.sqrt(float(squares.sum()) / freedom) if freedom else math.nan


def same_answer(chains: Chains) -> Estimate:
    """Return the share of pairs of a question's trajectories with the same answer, a mean over questions.

    A trajectory without an answer agrees with none. NaN where no question has two trajectories, or none has an answer.
    """
    if (chains.answer_class < 0).all():
        return NOTHING
    shares = []
    for number in np.unique(chains.question):
        classes = chains.answer_class[chains.question == number]
        if len(classes) > 1:
            votes = np.bincount(classes[classes >= 0]).astype(np.float64)
            shares.append(float((votes * (votes - 1)).sum()) / (len(classes) * (len(classes) - 1)))
    return estimate(np.array(shares))


def r_hat(chains: Chains) -> Estimate:
    """Return R-hat of log p over the last half of the steps of chains' last stages, among trajectories of a question.

    Chains of a question are compared that ended at the same horizon with the same number of steps n. With w = n - n//2
    steps of each at the end, W the mean variance within them and B the variance of their means, both pooled over the
    questions with c - 1 as the weight of c chains: ``sqrt(((w - 1) / w * W + B) / W)``. Its standard error is by the
    delta method.

    Returns:
        NaN where no two chains can be compared, n is below 3, or none of them moves.

    Note:
        Near 1, a chain explores within these steps what lies between chains. Far above 1 it does not; each may still be
        a fair draw, because every chain starts on its own and only its end is used.

    Source:
        Gelman and Rubin, Inference from iterative simulation using multiple sequences, 1992; Margossian et al., Nested
        R-hat, 2024, on many short chains.
    """
    groups: dict[tuple[int, int, int], list[np.ndarray]] = {}
    for stage in np.flatnonzero(chains.last & (chains.count >= 3)):
        start, count = int(chains.first[stage]), int(chains.count[stage])
        key = (int(chains.stage_question[stage]), int(chains.stage_horizon[stage]), count)
        groups.setdefault(key, []).append(chains.steps.logprob[start + count // 2 : start + count])
    sums: dict[int, np.ndarray] = {}
    for (number, _, _), windows in groups.items():
        if len(windows) > 1:
            steps = np.stack(windows)
            width, weight = steps.shape[1], len(steps) - 1
            within, between = float(steps.var(1, ddof=1).mean()), float(steps.mean(1).var(ddof=1))
            pair = np.array([(width - 1) / width * within + between, within])
            sums[number] = sums.get(number, np.zeros(2)) + weight * pair
    table = np.array([*sums.values()]).reshape(-1, 2)
    if not table[:, 1].sum() > _TINY:
        return NOTHING
    square = ratio(table[:, 0], table[:, 1])
    root = math.sqrt(square.value)
    return Estimate(root, square.stderr / (2 * root), square.num_questions)


# -- the report's entry ------------------------------------------------------------------------------------------------


def diagnose(chains: Chains) -> dict[str, Any]:
    """Return all diagnostics of a run as JSON values; a number that does not exist is None."""
    every, last = np.ones(len(chains.first), bool), chains.last
    steps = chains.steps.accepted.astype(np.float64)
    return {
        "num_questions": len(np.unique(chains.question)),
        "num_chains": len(chains.question),
        "num_steps": len(steps),
        **_pair("acceptance", clustered(steps, chains.step_question)),
        "acceptance_by_cut": acceptance_by_cut(chains),
        "trace_last_stage": trace(chains, last),
        "trace_all_stages": trace(chains, every),
        "last_stage": stage_row(chains, last),
        "stages": [
            {"horizon": int(horizon), **stage_row(chains, chains.stage_horizon == horizon)}
            for horizon in np.unique(chains.stage_horizon)
        ],
        **_pair("same_answer", same_answer(chains)),
        **_pair("r_hat", r_hat(chains)),
    }


def _pair(name: str, value: Estimate) -> dict[str, float | None]:
    return {name: json_number(value.value), f"{name}_stderr": json_number(value.stderr)}


def mixing_finding(entry: Mapping[str, Any], *, several: bool = False) -> str:
    """Say whether the Metropolis-Hastings steps were enough, by what the second half of a chain's last stage gave.

    ``several`` entries of ``mixing`` have to be told apart by name.
    """
    last = entry["last_stage"]
    counts = {(row["least_steps"], row["most_steps"]) for row in entry["stages"]}
    least, most = last["least_steps"], last["most_steps"]
    steps = f"{most} Metropolis-Hastings step{'' if most == 1 else 's'}"
    place = "a stage" if counts == {(most, most)} else "in a chain's last stage"
    what = f"{steps} {place}" if least == most else f"{least} to {steps} {place}"
    where = f" of {entry['store']}" if several else ""
    if last["second_half_gain"] is None:
        return (
            f"Whether {what}{where} {'is' if most == 1 else 'are'} enough cannot be seen from so few: take two or more."
        )
    gain, stderr = last["second_half_gain"], last["second_half_gain_stderr"]
    if stderr is None or abs(gain) <= SURE * stderr:
        moved = f"changed log p by {'+' if gain > 0 else ''}{nats(gain, stderr)} nats"
    else:
        moved = f"{'lowered' if gain < 0 else 'raised'} log p by {nats(abs(gain), stderr)} nats"
    if last["second_half_gain_in_spreads"] is not None:
        moved += f", {abs(100 * last['second_half_gain_in_spreads']):.0f} % of the spread between trajectories"
    if last["verdict"] == "enough":
        return f"{what}{where} are enough here: the second half of the steps {moved}."
    if last["verdict"] == "not enough":
        return f"{what}{where} are not enough here: the second half of the steps still {moved}; raise num_mh_steps."
    text = f"Whether {what}{where} are enough is not clear: the second half of the steps {moved}"
    if last["frozen"] > FROZEN:
        text += f", but {percent(last['frozen'])} of the chains accepted none of their last stage's steps"
    return f"{text}."
