"""The sampler is exact: its kernel leaves p^alpha invariant, and its chains follow the enumerated finite-step law."""

import numpy as np
import pytest
import torch

from dps.sampler.accept import log_accept_ratio
from dps.sampler.cut import cut_logprob, cut_position
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.proposal import proposal_logprobs, sample_token
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import stream_key, uniform
from dps.sampler.target import base_logprobs, power_logprob

from .enumeration import Toy, chain_law, kernel, log_softmax, random_toy, responses, target
from .models import tiny_model


def product_kernel(toy, horizon, alpha, temperature, *, cut_term=True, proposal_sign=1.0, overlap_only=False):
    """The transition matrix of the product's own target, proposal, cut law and acceptance ratio.

    The keyword arguments break it on purpose, in the ways that published implementations are broken.
    """
    states = responses(toy, horizon)
    index = {r: i for i, r in enumerate(states)}
    logits = {c: torch.tensor(v, dtype=torch.float64) for c, v in toy.logits.items()}
    base = {c: base_logprobs(v) for c, v in logits.items()}
    proposal = {c: proposal_logprobs(v, temperature) for c, v in logits.items()}

    def suffix(table, response, start, stop=None):
        stop = len(response) if stop is None else stop
        return sum((table[response[:i]][response[i]] for i in range(start, stop)), torch.zeros((), dtype=torch.float64))

    matrix = np.zeros((len(states), len(states)))
    for x in states:
        for m in range(len(x)):
            probability_of_cut = cut_logprob(torch.tensor(len(x))).exp().item()
            for y in states:
                if y[:m] != x[:m] or len(y) <= m:
                    continue
                shared = min(len(x), len(y)) if overlap_only else None
                log_ratio = log_accept_ratio(
                    new_target=power_logprob(suffix(base, y, m, shared), alpha),
                    old_target=power_logprob(suffix(base, x, m, shared), alpha),
                    new_proposal=proposal_sign * suffix(proposal, y, m, shared),
                    old_proposal=proposal_sign * suffix(proposal, x, m, shared),
                    new_cut=cut_logprob(torch.tensor(len(y))) if cut_term else torch.tensor(0.0),
                    old_cut=cut_logprob(torch.tensor(len(x))) if cut_term else torch.tensor(0.0),
                )
                flow = probability_of_cut * suffix(proposal, y, m).exp().item()
                accepted = min(1.0, log_ratio.exp().item())
                matrix[index[x], index[y]] += flow * accepted
                matrix[index[x], index[x]] += flow * (1 - accepted)
    return matrix


def long_run_law(matrix):
    values, vectors = np.linalg.eig(matrix.T)
    law = np.real(vectors[:, np.argmin(np.abs(values - 1))])
    return law / law.sum()


def total_variation(a, b):
    return 0.5 * np.abs(a - b).sum()


CASES = [
    (seed, alpha, temperature) for seed in range(4) for alpha, temperature in ((4.0, 0.25), (4.0, 1.0), (1.5, 0.5))
]


@pytest.mark.parametrize(("seed", "alpha", "temperature"), CASES)
def test_kernel_has_the_power_law_as_its_long_run_law(seed, alpha, temperature):
    toy = random_toy(np.random.default_rng(seed))
    matrix = product_kernel(toy, toy.horizon, alpha, temperature)
    pi = target(toy, toy.horizon, alpha)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    assert total_variation(long_run_law(matrix), pi) < 1e-10
    flow = pi[:, None] * matrix
    assert np.abs(flow - flow.T).max() < 1e-12  # detailed balance
    np.testing.assert_allclose(matrix, kernel(toy, toy.horizon, alpha, temperature), atol=1e-12)


@pytest.mark.parametrize("wrong", [{"cut_term": False}, {"proposal_sign": -1.0}, {"overlap_only": True}])
def test_wrong_kernels_fail_the_same_test(wrong):
    toy = random_toy(np.random.default_rng(0))
    matrix = product_kernel(toy, toy.horizon, 4.0, 0.5, **wrong)
    assert total_variation(long_run_law(matrix), target(toy, toy.horizon, 4.0)) > 1e-3


def test_cut_is_uniform_over_the_response():
    lengths = torch.tensor([1, 2, 3, 7])
    grid = (torch.arange(4200, dtype=torch.float64) + 0.5) / 4200
    for length in lengths:
        cuts = cut_position(grid, length.expand(4200))
        counts = torch.bincount(cuts, minlength=int(length))
        assert counts.tolist() == [4200 // int(length)] * int(length)
        assert torch.allclose(cut_logprob(length).exp() * length, torch.tensor(1.0, dtype=torch.float64))


def test_sample_token_inverts_the_distribution():
    logprobs = torch.tensor([[0.2, 0.0, 0.5, 0.3, 0.0]], dtype=torch.float64).log()
    for number, token in ((1e-16, 0), (0.1999, 0), (0.2001, 2), (0.6999, 2), (0.7001, 3), (1 - 2.0**-53, 3)):
        assert sample_token(logprobs, torch.tensor([number], dtype=torch.float64)).item() == token


def test_streams_are_uniform_distinct_and_never_0_or_1():
    keys = torch.tensor([stream_key(0, "q", i) for i in range(50)])
    numbers = uniform(keys[:, None].expand(50, 2000), torch.arange(2000).expand(50, 2000))
    assert numbers.min() > 0
    assert numbers.max() < 1
    assert len(set(numbers.flatten().tolist())) == 100_000
    edges = torch.histc(numbers.float(), 20, 0, 1)
    assert (edges - 5000).abs().max() < 7 * 5000**0.5
    lagged = torch.corrcoef(torch.stack((numbers[:, :-1].flatten(), numbers[:, 1:].flatten())))[0, 1]
    assert lagged.abs() < 7 / 100_000**0.5
    assert stream_key(0, "q", 1) != stream_key(1, "q", 0)


def transformer_toy(language_model, prompt, limit):
    """The toy whose logits are the transformer's, by uncached forward passes over every context."""
    vocabulary = language_model.model.config.vocab_size
    eos = language_model.eos_ids[0]
    toy = random_toy(np.random.default_rng(0), vocabulary, limit, eos)
    table = {}
    for context in toy.logits:
        ids = torch.tensor([[*prompt, *context]])
        table[context] = language_model.model(input_ids=ids, use_cache=False).logits[0, -1].double().numpy()
    return Toy(table, vocabulary, eos, limit)


def sampled_counts(language_model, config, prompt, count, rows, seed=0):
    engine = Engine(language_model, config, rows=rows, prompt_room=len(prompt))
    for i in range(count):
        engine.submit(ChainRequest(i, prompt, stream_key(seed, "q", i)))
    counts = {}
    while not engine.idle:
        for chain in engine.poll():
            key = tuple(chain.tokens.tolist())
            counts[key] = counts.get(key, 0) + 1
    return counts


@pytest.mark.parametrize(
    "settings",
    [
        dict(alpha=3.0, block_size=2, max_new_tokens=4, num_mh_steps=2),
        dict(alpha=3.0, proposal_temperature=0.8, block_size=2, max_new_tokens=4, num_mh_steps=3),
        dict(alpha=3.0, block_size=2, max_new_tokens=4, num_mh_steps=1, schedule="final-horizon", num_final_steps=3),
        dict(alpha=1.0, proposal_temperature=0.7, block_size=4, max_new_tokens=4, num_mh_steps=0),
    ],
    ids=["paper", "other-temperature", "final-horizon", "plain"],
)
def test_sampler_follows_the_enumerated_finite_step_law(settings):
    config = SamplerConfig(**settings)
    language_model = tiny_model(vocabulary=3, eos=0, seed=5, sharpness=1.5)
    prompt, count = (1, 2, 1), 12_000
    toy = transformer_toy(language_model, prompt, config.max_new_tokens)
    expected = chain_law(
        toy,
        alpha=config.alpha,
        temperature=config.temperature,
        block_size=config.block_size,
        limit=config.max_new_tokens,
        num_mh_steps=config.num_mh_steps,
        final_steps=config.final_steps,
    )
    counts = sampled_counts(language_model, config, prompt, count, rows=512)
    states = responses(toy, config.max_new_tokens)
    assert set(counts) <= set(states)  # no illegal response
    observed = np.array([counts.get(s, 0) for s in states]) / count
    error = np.sqrt(np.maximum(expected * (1 - expected), 1 / count) / count)
    assert np.abs(observed - expected).max() > 0
    assert (np.abs(observed - expected) / error).max() < 7
    # The test has power: the law of the proposal alone is far outside.
    if config.num_mh_steps:
        plain = chain_law(toy, alpha=1.0, temperature=config.temperature, block_size=4, limit=4, num_mh_steps=0)
        assert (np.abs(plain - expected) / error).max() > 14


def test_log_softmax_of_the_enumeration_is_normalized():
    assert np.isclose(np.exp(log_softmax([1.0, 2.0, 30.0])).sum(), 1)
