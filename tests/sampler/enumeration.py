"""All responses of a toy model and the exact law of a chain on them, in plain NumPy, apart from the product's code."""

import itertools
import math
from dataclasses import dataclass

import numpy as np

ENTROPY_FLOOR = 0.05  # nats; stated here again, so that a change of the product's cut law is noticed


@dataclass
class Toy:
    """Logits for every context (a tuple of tokens) over V tokens; token `eos` ends a response, and so does the token
    that completes one of the `stops`, which are tuples of tokens."""

    logits: dict
    vocabulary: int
    eos: int
    horizon: int
    stops: tuple = ()

    def ends(self, response):
        return response[-1:] == (self.eos,) or any(response[-len(stop) :] == stop for stop in self.stops)

    def contexts(self):
        return [c for c in self.logits if len(c) < self.horizon]


def random_toy(rng, vocabulary=3, horizon=4, eos=0, scale=1.5):
    others = [t for t in range(vocabulary) if t != eos]
    contexts = [c for n in range(horizon) for c in itertools.product(others, repeat=n)]
    return Toy({c: rng.normal(scale=scale, size=vocabulary) for c in contexts}, vocabulary, eos, horizon)


def responses(toy, horizon):
    """Every legal response cut at depth `horizon`: ends as `toy.ends` says with n <= horizon, or has n = horizon."""
    found, growing = [], [()]
    while growing:
        longer = [(*c, t) for c in growing for t in range(toy.vocabulary)]
        found += [r for r in longer if toy.ends(r) or len(r) == horizon]
        growing = [r for r in longer if not toy.ends(r) and len(r) < horizon]
    return found


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


def context_entropy(toy, context):
    logp = log_softmax(toy.logits[context])
    return -(np.exp(logp) * logp).sum()


def cut_law(toy, response, law):
    """w(m | response) for every m, normalized."""
    if law == "uniform":
        weights = np.ones(len(response))
    else:
        weights = np.array([ENTROPY_FLOOR + context_entropy(toy, response[:m]) for m in range(len(response))])
    return weights / weights.sum()


def branches(states, horizon):
    """(m, numbers of the states that share their first m tokens), for every cut m: what a step from there can reach."""
    for m in range(horizon):
        groups = {}
        for i, response in enumerate(states):
            if len(response) > m:
                groups.setdefault(response[:m], []).append(i)
        for members in groups.values():
            yield m, np.array(members)


def kernel(toy, horizon, alpha, temperature, *, cuts="uniform", num_tries=1, accept_rule="metropolis"):
    """Transition matrix of one Metropolis-Hastings step (METHOD section 1), by enumeration of all proposals.

    With several tries it sums over all tuples of tries. They are exchangeable, so the candidate is the first, n times.
    """
    states = responses(toy, horizon)
    laws = [cut_law(toy, r, cuts) for r in states]
    matrix = np.zeros((len(states), len(states)))
    for m, members in branches(states, horizon):
        w = np.array([laws[i][m] for i in members])
        log_p = np.array([sequence_logprob(toy, states[i], start=m) for i in members])
        log_g = np.array([sequence_logprob(toy, states[i], temperature, m) for i in members])
        log_weight = alpha * log_p - log_g + np.log(w)
        weight, g = np.exp(log_weight - log_weight.max()), np.exp(log_g)
        if accept_rule == "max_swap":
            move = g[None, :] * (log_p[None, :] > log_p[:, None])
        else:
            move = np.zeros((len(members), len(members)))
            for others in itertools.combinations_with_replacement(range(len(members)), num_tries - 1):
                others = list(others)
                orders = math.factorial(len(others)) / np.prod([math.factorial(others.count(i)) for i in set(others)])
                rest = weight[others].sum()
                total = weight + rest
                drawn = num_tries * g * orders * g[others].prod() * weight / total
                move += drawn[None, :] * np.minimum(1, total[None, :] / (rest + weight)[:, None])
        move *= w[:, None]
        matrix[np.ix_(members, members)] += move
        matrix[members, members] += w - move.sum(1)
    return matrix


def step_tokens(toy, horizon, temperature, *, cuts="uniform", num_tries=1):
    """Expected number of tokens that one step from each state generates."""
    states = responses(toy, horizon)
    laws = [cut_law(toy, r, cuts) for r in states]
    tokens = np.zeros(len(states))
    for m, members in branches(states, horizon):
        g = np.exp([sequence_logprob(toy, states[i], temperature, m) for i in members])
        size = np.array([len(states[i]) - m for i in members])
        tokens[members] += num_tries * np.array([laws[i][m] for i in members]) * (g @ size)
    return tokens


def extend(toy, law, horizon_from, horizon_to, temperature):
    """Extend every response that has not ended from one horizon to the next by the proposal."""
    before, after = responses(toy, horizon_from), responses(toy, horizon_to)
    out = np.zeros(len(after))
    for x, mass in zip(before, law, strict=True):
        for j, y in enumerate(after):
            if x and toy.ends(x):
                out[j] += mass * (y == x)
            elif y[: len(x)] == x:
                out[j] += mass * np.exp(sequence_logprob(toy, y, temperature, len(x)))
    return out


def stage_exponent(alpha, stage, anneal_blocks):
    return 1 + (alpha - 1) * min(1, stage / anneal_blocks)


def chain_law(
    toy,
    *,
    alpha,
    temperature,
    block_size,
    limit,
    num_mh_steps,
    final_steps=0,
    anneal_blocks=1,
    stop_early=False,
    **step,
):
    """Exact law of a finished chain over `responses(toy, limit)`: start x stage kernels, either schedule.

    `step` goes to `kernel`. `stop_early` lets a chain stop at its first EOS though its exponent still grows, which is
    not what the sampler does.
    """
    final = {r: i for i, r in enumerate(responses(toy, limit))}
    result = np.zeros(len(final))
    law, horizon, stage = np.array([1.0]), 0, 0
    while horizon < limit:
        grown, stage = min(horizon + block_size, limit), stage + 1
        law = extend_unfinished(toy, law, horizon, grown, temperature)
        horizon = grown
        steps = max(num_mh_steps, final_steps) if horizon == limit else num_mh_steps
        exponent = stage_exponent(alpha, stage, anneal_blocks)
        law = law @ np.linalg.matrix_power(kernel(toy, horizon, exponent, temperature, **step), steps)
        states = responses(toy, horizon)
        stops = np.array([toy.ends(r) or horizon == limit for r in states])
        if stage < anneal_blocks and not final_steps and not stop_early:
            stops[:] = horizon == limit  # goes on to the next stage, where `extend` leaves it as it is
        stopped = np.zeros(len(final))
        for r, mass, done in zip(states, law, stops, strict=True):
            if done:
                stopped[final[r]] += mass
        if final_steps and horizon < limit:
            stopped = stopped @ np.linalg.matrix_power(kernel(toy, limit, alpha, temperature, **step), final_steps)
        result += stopped
        law = np.where(stops, 0.0, law)
    return result


def extend_unfinished(toy, law, horizon_from, horizon_to, temperature):
    if horizon_from == 0:
        return np.array([np.exp(sequence_logprob(toy, y, temperature)) for y in responses(toy, horizon_to)])
    return extend(toy, law, horizon_from, horizon_to, temperature)
