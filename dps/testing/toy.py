"""Toy models: a table of logits over few tokens, whose responses and laws can be listed in full.

Plain NumPy, apart from the sampler's own code, so that a fault of the sampler cannot hide in what it is compared with.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Response = tuple[int, ...]
"""Token ids, the token that ends the response included."""


@dataclass(frozen=True, eq=False)
class ToyModel:
    """A language model over few tokens, as a table."""

    logits: dict[Response, np.ndarray]
    """Next-token logits, shape (V,), for every context below the horizon that has not ended."""
    vocabulary: int
    """V, the number of tokens."""
    eos: int
    """Token that ends a response."""
    horizon: int
    """Longest response, tokens."""
    stops: tuple[Response, ...] = ()
    """Tokens that end a response with the last of them, as stop strings do."""

    def ends(self, response: Response) -> bool:
        """Return whether a response ends in EOS or a stop."""
        return response[-1:] == (self.eos,) or any(response[-len(stop) :] == stop for stop in self.stops)


def random_model(
    seed: int | np.random.Generator, *, vocabulary: int = 3, horizon: int = 4, eos: int = 0, scale: float = 1.5
) -> ToyModel:
    """Return a model with normal logits of standard deviation ``scale``; about ``(V - 1) ** horizon * V`` responses."""
    rng = np.random.default_rng(seed)
    others = [token for token in range(vocabulary) if token != eos]
    contexts = [context for n in range(horizon) for context in itertools.product(others, repeat=n)]
    return ToyModel({c: rng.normal(scale=scale, size=vocabulary) for c in contexts}, vocabulary, eos, horizon)


def responses(model: ToyModel, horizon: int) -> list[Response]:
    """Return every legal response cut at the depth H: it has ended with at most H tokens, or has exactly as many."""
    found: list[Response] = []
    growing: list[Response] = [()]
    while growing:
        longer = [(*context, token) for context in growing for token in range(model.vocabulary)]
        found += [r for r in longer if model.ends(r) or len(r) == horizon]
        growing = [r for r in longer if not model.ends(r) and len(r) < horizon]
    return found


def log_softmax(logits: np.ndarray | Sequence[float]) -> np.ndarray:
    """Return log-probabilities in nats, float64, shape (V,)."""
    x = np.asarray(logits, dtype=np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def sequence_logprob(model: ToyModel, response: Response, temperature: float = 1.0, start: int = 0) -> float:
    """Return the log-probability of ``response[start:]`` given what stands before, nats."""
    return sum(
        log_softmax(np.asarray(model.logits[response[:i]]) / temperature)[response[i]]
        for i in range(start, len(response))
    )


def target(model: ToyModel, horizon: int, alpha: float) -> np.ndarray:
    """Return the target law ``p^alpha`` over :func:`responses` at that horizon, normalized, shape (N,)."""
    logp = np.array([alpha * sequence_logprob(model, r) for r in responses(model, horizon)])
    weights = np.exp(logp - logp.max())
    return weights / weights.sum()


def extend(model: ToyModel, law: np.ndarray, horizon_from: int, horizon_to: int, temperature: float) -> np.ndarray:
    """Extend every response that has not ended from one horizon to the next by the proposal.

    ``law`` is over the responses at ``horizon_from`` (of the empty response alone, shape (1,), where that is 0), what
    is returned over those at ``horizon_to``.
    """
    before: list[Response] = responses(model, horizon_from) if horizon_from else [()]
    after = responses(model, horizon_to)
    out = np.zeros(len(after))
    for x, mass in zip(before, law, strict=True):
        for j, y in enumerate(after):
            if x and model.ends(x):
                out[j] += mass * (y == x)
            elif y[: len(x)] == x:
                out[j] += mass * np.exp(sequence_logprob(model, y, temperature, len(x)))
    return out


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the total variation distance of two laws, half the sum of absolute differences."""
    return float(0.5 * np.abs(np.asarray(a) - np.asarray(b)).sum())


def branches(states: Sequence[Response], horizon: int) -> list[tuple[int, np.ndarray]]:
    """Return what a step can reach, for every cut m: (m, numbers of states that share their first m tokens)."""
    found = []
    for m in range(horizon):
        groups: dict[Response, list[int]] = {}
        for i, response in enumerate(states):
            if len(response) > m:
                groups.setdefault(response[:m], []).append(i)
        found += [(m, np.array(members)) for members in groups.values()]
    return found
