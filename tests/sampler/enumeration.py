"""All responses of a toy model and the exact law of a chain on them, in plain NumPy, apart from the product's code."""

import itertools
from dataclasses import dataclass

import numpy as np


@dataclass
class Toy:
    """Logits for every context (a tuple of tokens) over V tokens; token `eos` ends a response."""

    logits: dict
    vocabulary: int
    eos: int
    horizon: int

    def contexts(self):
        return [c for c in self.logits if len(c) < self.horizon]


def random_toy(rng, vocabulary=3, horizon=4, eos=0, scale=1.5):
    others = [t for t in range(vocabulary) if t != eos]
    contexts = [c for n in range(horizon) for c in itertools.product(others, repeat=n)]
    return Toy({c: rng.normal(scale=scale, size=vocabulary) for c in contexts}, vocabulary, eos, horizon)


def responses(toy, horizon):
    """Every legal response cut at depth `horizon`: ends in EOS with n <= horizon, or has n = horizon without EOS."""
    others = [t for t in range(toy.vocabulary) if t != toy.eos]
    ended = [(*c, toy.eos) for n in range(horizon) for c in itertools.product(others, repeat=n)]
    return ended + list(itertools.product(others, repeat=horizon))


def log_softmax(x):
    x = np.asarray(x, dtype=np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def sequence_logprob(toy, response, temperature=1.0, start=0):
    """Log-probability of response[start:] given response[:start]."""
    return sum(log_softmax(toy.logits[response[:i]] / temperature)[response[i]] for i in range(start, len(response)))


def target(toy, horizon, alpha):
    """The target law p^alpha over the responses at that horizon, normalized."""
    logp = np.array([alpha * sequence_logprob(toy, r) for r in responses(toy, horizon)])
    weights = np.exp(logp - logp.max())
    return weights / weights.sum()


def kernel(toy, horizon, alpha, temperature, length_term=True):
    """Transition matrix of one exact Metropolis-Hastings step (METHOD section 1), by enumeration."""
    states = responses(toy, horizon)
    index = {r: i for i, r in enumerate(states)}
    matrix = np.zeros((len(states), len(states)))
    for x in states:
        for m in range(len(x)):
            for y in states:
                if y[:m] != x[:m] or len(y) <= m:
                    continue
                log_g_y = sequence_logprob(toy, y, temperature, m)
                log_ratio = (
                    alpha * (sequence_logprob(toy, y, start=m) - sequence_logprob(toy, x, start=m))
                    + sequence_logprob(toy, x, temperature, m)
                    - log_g_y
                )
                if length_term:
                    log_ratio += np.log(len(x)) - np.log(len(y))
                flow = np.exp(log_g_y) / len(x)
                accept = min(1.0, np.exp(log_ratio))
                matrix[index[x], index[y]] += flow * accept
                matrix[index[x], index[x]] += flow * (1 - accept)
    return matrix


def extend(toy, law, horizon_from, horizon_to, temperature):
    """Extend every response that has not ended from one horizon to the next by the proposal."""
    before, after = responses(toy, horizon_from), responses(toy, horizon_to)
    out = np.zeros(len(after))
    for x, mass in zip(before, law, strict=True):
        for j, y in enumerate(after):
            if x and x[-1] == toy.eos:
                out[j] += mass * (y == x)
            elif y[: len(x)] == x:
                out[j] += mass * np.exp(sequence_logprob(toy, y, temperature, len(x)))
    return out


def chain_law(toy, *, alpha, temperature, block_size, limit, num_mh_steps, final_steps=0):
    """Exact law of a finished chain over `responses(toy, limit)`: start x stage kernels, either schedule."""
    final = {r: i for i, r in enumerate(responses(toy, limit))}
    result = np.zeros(len(final))
    law, horizon = np.array([1.0]), 0
    while horizon < limit:
        grown = min(horizon + block_size, limit)
        law = extend_unfinished(toy, law, horizon, grown, temperature)
        horizon = grown
        steps = max(num_mh_steps, final_steps) if horizon == limit else num_mh_steps
        law = law @ np.linalg.matrix_power(kernel(toy, horizon, alpha, temperature), steps)
        states = responses(toy, horizon)
        ended = np.array([r[-1] == toy.eos for r in states])
        if horizon == limit:
            for r, mass in zip(states, law, strict=True):
                result[final[r]] += mass
            break
        stopped = np.zeros(len(final))
        for r, mass, done in zip(states, law, ended, strict=True):
            if done:
                stopped[final[r]] += mass
        if final_steps:
            stopped = stopped @ np.linalg.matrix_power(kernel(toy, limit, alpha, temperature), final_steps)
        result += stopped
        law = np.where(ended, 0.0, law)
    return result


def extend_unfinished(toy, law, horizon_from, horizon_to, temperature):
    if horizon_from == 0:
        return np.array([np.exp(sequence_logprob(toy, y, temperature)) for y in responses(toy, horizon_to)])
    return extend(toy, law, horizon_from, horizon_to, temperature)
