"""What the sampler should do, enumerated in plain NumPy: one step's transition matrix and the law of a finished chain.

Written a second time on purpose, from the formulas, and apart from the sampler's code, which is compared with it.
"""

from __future__ import annotations

import numpy as np

from dps.sampler.settings import SamplerConfig
from dps.testing.toy import ToyModel, branches, extend, log_softmax, responses, sequence_logprob

ENTROPY_FLOOR = 0.05
"""Nats; stated here again, so that a change of the sampler's cut law is noticed."""


def cut_law(model: ToyModel, response: tuple[int, ...], law: str) -> np.ndarray:
    """Return ``w(m | response)`` of the law ``uniform`` or ``entropy`` for every cut m below the length, normalized."""
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
    accept_rule: str = "metropolis",
) -> np.ndarray:
    """Return the transition matrix of one Metropolis-Hastings step, by enumeration of all proposals.

    A step draws the cut m, proposes a new suffix until EOS or the horizon, and accepts with
    ``min(1, exp(alpha [log p(y) - log p(x)] + [log g(x) - log g(y)] + [log w(m|y) - log w(m|x)]))``, sums over the full
    suffixes; with ``max_swap`` where ``log p(y) > log p(x)``.

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
        weight = alpha * log_p - log_g + np.log(w)
        probability = np.exp(np.minimum(0.0, weight[None, :] - weight[:, None]))
        if accept_rule == "max_swap":
            probability = log_p[None, :] > log_p[:, None]
        move = w[:, None] * np.exp(log_g)[None, :] * probability
        matrix[np.ix_(members, members)] += move
        matrix[members, members] += w - move.sum(1)
    return matrix


def reference_law(model: ToyModel, config: SamplerConfig) -> np.ndarray:
    """Return the law of a finished chain: its start by the proposal, then each stage's steps, by either schedule.

    ``config.early_stop`` is not among what is enumerated.

    Returns:
        Over ``responses(model, config.max_new_tokens)``, shape (N,).
    """

    def steps(law: np.ndarray, horizon: int, count: int) -> np.ndarray:
        options = {"cuts": config.cut_law, "accept_rule": config.accept_rule}
        matrix = reference_matrix(model, horizon, config.alpha, config.temperature, **options)
        return law @ np.linalg.matrix_power(matrix, count)

    limit, final_steps = config.max_new_tokens, config.final_steps
    number = {r: i for i, r in enumerate(responses(model, limit))}
    result = np.zeros(len(number))
    law, horizon = np.array([1.0]), 0
    while horizon < limit:
        grown = min(horizon + config.block_size, limit)
        law = extend(model, law, horizon, grown, config.temperature)
        horizon = grown
        law = steps(law, horizon, max(config.num_mh_steps, final_steps) if horizon == limit else config.num_mh_steps)
        states = responses(model, horizon)
        stops = np.array([model.ends(r) or horizon == limit for r in states])
        stopped = np.zeros(len(number))
        stopped[[number[r] for r, done in zip(states, stops, strict=True) if done]] = law[stops]
        result += steps(stopped, limit, final_steps) if horizon < limit else stopped
        law = np.where(stops, 0.0, law)
    return result
