"""What the sampler should do, enumerated in plain NumPy: one step's transition matrix and the law of a finished chain.

Written a second time on purpose, from the formulas, and apart from the sampler's code, which is compared with it.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from dps.sampler.settings import SamplerConfig
from dps.testing.toy import ToyModel, branches, extend, log_softmax, responses, sequence_logprob

ENTROPY_FLOOR = 0.05
"""Nats; stated here again, so that a change of the sampler's cut law is noticed."""


def cut_law(model: ToyModel, response: tuple[int, ...], law: str) -> np.ndarray:
    """Return ``w(m | response)`` for every cut m below its length, normalized.

    Args:
        model: The model.
        response: The response.
        law: ``uniform`` or ``entropy``.
    """
    if law == "uniform":
        weights = np.ones(len(response))
    else:
        logps = [log_softmax(model.logits[response[:m]]) for m in range(len(response))]
        weights = np.array([ENTROPY_FLOOR - (np.exp(logp) * logp).sum() for logp in logps])
    return weights / weights.sum()


def reference_matrix(
    model: ToyModel,
    horizon: int,
    alpha: float,
    temperature: float,
    *,
    cuts: str = "uniform",
    num_tries: int = 1,
    accept_rule: str = "metropolis",
) -> np.ndarray:
    """Return the transition matrix of one Metropolis-Hastings step, by enumeration of all proposals.

    A step draws the cut m, proposes a new suffix until EOS or the horizon, and accepts with
    ``min(1, exp(alpha [log p(y) - log p(x)] + [log g(x) - log g(y)] + [log w(m|y) - log w(m|x)]))``, sums over the full
    suffixes. With several tries it sums over all tuples of tries. They are exchangeable, so the candidate is the first,
    n times.

    Args:
        model: The model.
        horizon: H.
        alpha: Exponent of the target.
        temperature: Of the proposal.
        cuts: ``uniform`` or ``entropy``.
        num_tries: Proposals of a step.
        accept_rule: ``metropolis`` or ``max_swap``.

    Returns:
        Shape (N, N), rows are where a step starts, in the order of ``responses(model, horizon)``.
    """
    states = responses(model, horizon)
    laws = [cut_law(model, r, cuts) for r in states]
    matrix = np.zeros((len(states), len(states)))
    for m, members in branches(states, horizon):
        w = np.array([laws[i][m] for i in members])
        log_p = np.array([sequence_logprob(model, states[i], start=m) for i in members])
        log_g = np.array([sequence_logprob(model, states[i], temperature, m) for i in members])
        log_weight = alpha * log_p - log_g + np.log(w)
        weight, g = np.exp(log_weight - log_weight.max()), np.exp(log_g)
        if accept_rule == "max_swap":
            move = g[None, :] * (log_p[None, :] > log_p[:, None])
        else:
            move = np.zeros((len(members), len(members)))
            for chosen in itertools.combinations_with_replacement(range(len(members)), num_tries - 1):
                others = list(chosen)
                orders = math.factorial(len(others)) / np.prod([math.factorial(others.count(i)) for i in set(others)])
                rest = weight[others].sum()
                total = weight + rest
                drawn = num_tries * g * orders * g[others].prod() * weight / total
                move += drawn[None, :] * np.minimum(1, total[None, :] / (rest + weight)[:, None])
        move *= w[:, None]
        matrix[np.ix_(members, members)] += move
        matrix[members, members] += w - move.sum(1)
    return matrix


def step_tokens(
    model: ToyModel, horizon: int, temperature: float, *, cuts: str = "uniform", num_tries: int = 1
) -> np.ndarray:
    """Return the expected number of tokens that one step from each response generates, shape (N,)."""
    states = responses(model, horizon)
    laws = [cut_law(model, r, cuts) for r in states]
    tokens = np.zeros(len(states))
    for m, members in branches(states, horizon):
        g = np.exp([sequence_logprob(model, states[i], temperature, m) for i in members])
        size = np.array([len(states[i]) - m for i in members])
        tokens[members] += num_tries * np.array([laws[i][m] for i in members]) * (g @ size)
    return tokens


def reference_law(model: ToyModel, config: SamplerConfig, *, stop_early: bool = False) -> np.ndarray:
    """Return the law of a finished chain: its start by the proposal, then each stage's steps, by either schedule.

    Args:
        model: The model.
        config: The sampler's settings; ``early_stop`` is not among what is enumerated.
        stop_early: Let a chain stop at its first EOS though its exponent still grows, which the sampler does not do.

    Returns:
        Over ``responses(model, config.max_new_tokens)``, shape (N,).
    """
    limit, final_steps = config.max_new_tokens, config.final_steps
    step: dict[str, Any] = dict(cuts=config.cut_law, num_tries=config.num_tries, accept_rule=config.accept_rule)
    final = {r: i for i, r in enumerate(responses(model, limit))}
    result = np.zeros(len(final))
    law, horizon, stage = np.array([1.0]), 0, 0
    while horizon < limit:
        grown, stage = min(horizon + config.block_size, limit), stage + 1
        law = extend(model, law, horizon, grown, config.temperature)
        horizon = grown
        steps = max(config.num_mh_steps, final_steps) if horizon == limit else config.num_mh_steps
        exponent = 1 + (config.alpha - 1) * min(1, stage / config.anneal_blocks)
        matrix = reference_matrix(model, horizon, exponent, config.temperature, **step)
        law = law @ np.linalg.matrix_power(matrix, steps)
        states = responses(model, horizon)
        stops = np.array([model.ends(r) or horizon == limit for r in states])
        if stage < config.anneal_blocks and not final_steps and not stop_early:
            stops[:] = horizon == limit  # goes on to the next stage, where `extend` leaves it as it is
        stopped = np.zeros(len(final))
        for r, mass, done in zip(states, law, stops, strict=True):
            if done:
                stopped[final[r]] += mass
        if final_steps and horizon < limit:
            last = reference_matrix(model, limit, config.alpha, config.temperature, **step)
            stopped = stopped @ np.linalg.matrix_power(last, final_steps)
        result += stopped
        law = np.where(stops, 0.0, law)
    return result
