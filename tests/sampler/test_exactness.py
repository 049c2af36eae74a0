"""The sampler is exact: its kernel leaves p^alpha invariant, and its chains follow the enumerated finite-step law."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dps.sampler.law import (
    Suffix,
    base_logprobs,
    cut_logprob,
    cut_position,
    draw_tokens,
    early_bound,
    early_terms,
    entropies,
    log_accept_ratio,
    proposal_logprobs,
    sample_token,
    weighted_cut_logprob,
    weighted_cut_position,
)
from dps.sampler.settings import ENTROPY_FLOOR, LEAST_TEMPERATURE, SamplerConfig
from dps.sampler.streams import stream_key, uniform
from dps.testing import (
    SamplerKernel,
    assert_follows,
    assert_invariant,
    finite_step_law,
    random_model,
    reference_law,
    reference_matrix,
    responses,
    sequence_logprob,
    standard_errors,
    target,
    total_variation,
    toy_of,
)

from .chains import sampled_chains
from .models import tiny_model, with_tokenizer


class WithoutCutTerm(SamplerKernel):
    def cut(self, base, found, m):
        log_cut, probability = super().cut(base, found, m)
        return torch.zeros_like(log_cut), probability


class LengthAsCutTerm(SamplerKernel):
    def cut(self, base, found, m):
        return cut_logprob(torch.tensor([len(r) for r in found])), super().cut(base, found, m)[1]


class WrongSign(SamplerKernel):
    def log_ratio(self, new, old, alpha):
        new, old = (suffix._replace(proposal=-suffix.proposal) for suffix in (new, old))
        return super().log_ratio(new, old, alpha)


class OverlapOnly(SamplerKernel):
    def spans(self, sizes):
        both = torch.minimum(sizes[:, None], sizes[None, :])
        return both, both


def long_run_law(matrix):
    values, vectors = np.linalg.eig(matrix.T)
    law = np.real(vectors[:, np.argmin(np.abs(values - 1))])
    return law / law.sum()


SETTINGS = ((4.0, 0.25), (4.0, 1.0), (1.5, 0.5))


@pytest.mark.parametrize("cuts", ["uniform", "entropy"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("alpha", "temperature"), SETTINGS)
def test_kernel_has_the_power_law_as_its_long_run_law(seed, alpha, temperature, cuts):
    toy = random_model(seed, horizon=4)
    kernel = SamplerKernel(temperature, cuts)
    assert_invariant(kernel, toy, alpha)
    matrix = kernel.matrix(toy, 4, alpha)
    assert total_variation(long_run_law(matrix), target(toy, 4, alpha)) < 1e-10
    np.testing.assert_allclose(matrix, reference_matrix(toy, 4, alpha, temperature, cuts=cuts), atol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        WithoutCutTerm(0.5),
        WrongSign(0.5),
        OverlapOnly(0.5),
        WithoutCutTerm(0.5, cuts="entropy"),
        LengthAsCutTerm(0.5, cuts="entropy"),
    ],
    ids=str,
)
def test_wrong_kernels_fail_the_same_test(wrong):
    toy = random_model(0)
    matrix = wrong.matrix(toy, toy.horizon, 4.0)
    assert total_variation(long_run_law(matrix), target(toy, toy.horizon, 4.0)) > 1e-3
    with pytest.raises(AssertionError, match=r"no detailed balance between \(.*\) and \(.*\): the flow"):
        assert_invariant(wrong, toy, 4.0)
    with pytest.raises(AssertionError, match=r"does not leave p\^4 as it is: the total variation distance"):
        assert_invariant(wrong, toy, 4.0, reversible=False)


@pytest.mark.parametrize("cuts", ["uniform", "entropy"])
def test_max_swap_takes_what_is_more_likely_and_never_goes_back(cuts):
    toy = random_model(0)
    matrix = SamplerKernel(0.5, cuts=cuts, accept_rule="max_swap").matrix(toy, 4, 4.0)
    reference = reference_matrix(toy, 4, 4.0, 0.5, cuts=cuts, accept_rule="max_swap")
    np.testing.assert_allclose(matrix, reference, atol=1e-12)
    law = np.array([sequence_logprob(toy, r) for r in responses(toy, 4)])
    assert (matrix[law[None, :] < law[:, None]] == 0).all()
    # Every start ends in the most likely response: alpha without limit.
    assert np.linalg.matrix_power(matrix, 10_000)[:, law.argmax()].min() > 1 - 1e-10


def test_cut_is_uniform_over_the_response():
    lengths = torch.tensor([1, 2, 3, 7])
    grid = (torch.arange(4200, dtype=torch.float64) + 0.5) / 4200
    for length in lengths:
        cuts = cut_position(grid, length.expand(4200))
        counts = torch.bincount(cuts, minlength=int(length))
        assert counts.tolist() == [4200 // int(length)] * int(length)
        assert torch.allclose(cut_logprob(length).exp() * length, torch.tensor(1.0, dtype=torch.float64))


def test_weighted_cut_follows_its_weights_and_stays_inside():
    weights = torch.tensor([[0, 0, 0.5, 0.05, 1.45, 2.0, 0], [0.05, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0.05, 0.15]])
    weights, start, lengths = weights.double(), torch.tensor([2, 0, 5]), torch.tensor([4, 1, 2])
    grid = (torch.arange(8000, dtype=torch.float64) + 0.5) / 8000
    for line in range(3):
        cuts = weighted_cut_position(grid, weights[line].expand(8000, -1), start[line].expand(8000))
        expected = weights[line, start[line] : start[line] + lengths[line]]
        counts = torch.bincount(cuts, minlength=len(expected))
        assert len(counts) == len(expected)
        assert (counts - 8000 * expected / expected.sum()).abs().max() <= 1
        assert torch.allclose(weighted_cut_logprob(weights[line][None]).exp() * expected.sum(), torch.ones(1).double())
    numbers = torch.tensor([2.0**-53, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for length in (1, 2, 37, 300):
        weights = torch.zeros(3, 320, dtype=torch.float64)
        weights[:, 7 : 7 + length] = ENTROPY_FLOOR + 5 * torch.rand(3, length, generator=generator).double()
        cuts = weighted_cut_position(numbers, weights, torch.full((3,), 7))
        assert cuts[0] == 0
        assert cuts[2] == length - 1
    assert weighted_cut_position(numbers, torch.zeros(3, 5).double(), torch.tensor([0, 2, 5])).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "settings",
    [
        dict(block_size=2, num_mh_steps=3),
        dict(block_size=1, num_mh_steps=2, schedule="final-horizon", num_final_steps=4),
        dict(block_size=2, num_mh_steps=2, accept_rule="max_swap"),
    ],
    ids=str,
)
def test_schedule_makes_the_enumerated_finite_step_law(settings):
    config = SamplerConfig(alpha=3.0, proposal_temperature=0.8, max_new_tokens=4, **settings).check()
    toy = random_model(0, scale=1.0)
    law = finite_step_law(SamplerKernel.of(config), toy, config)
    assert abs(law.sum() - 1) < 1e-12
    np.testing.assert_allclose(law, reference_law(toy, config), atol=1e-12)


def test_sample_token_inverts_the_distribution():
    logprobs = torch.tensor([[0.2, 0.0, 0.5, 0.3, 0.0]], dtype=torch.float64).log()
    for number, token in ((1e-16, 0), (0.1999, 0), (0.2001, 2), (0.6999, 2), (0.7001, 3), (1 - 2.0**-53, 3)):
        assert sample_token(logprobs, torch.tensor([number], dtype=torch.float64)).item() == token


@pytest.mark.parametrize("temperature", [LEAST_TEMPERATURE, torch.full((5, 1), LEAST_TEMPERATURE).double()], ids=type)
def test_the_least_temperature_takes_the_likeliest_token(temperature):
    logits = 1e4 * torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    token, values = draw_tokens(logits, temperature, torch.full((5,), 0.7, dtype=torch.float64))
    assert torch.equal(token, logits.argmax(-1))
    assert values.isfinite().all()


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


PAPER = dict(alpha=3.0, proposal_temperature=1.0, block_size=2, max_new_tokens=4, num_mh_steps=2)
FINAL = dict(PAPER, num_mh_steps=1, schedule="final-horizon", num_final_steps=3)
LAWS = {
    "paper": PAPER,
    "default-temperature": dict(PAPER, proposal_temperature=None, num_mh_steps=3),
    "final-horizon": FINAL,
    "plain": dict(PAPER, proposal_temperature=0.7, block_size=4, num_mh_steps=0),
    "entropy": dict(PAPER, cut_law="entropy"),
    "entropy-final-horizon": dict(FINAL, cut_law="entropy"),
    "max-swap": dict(PAPER, accept_rule="max_swap"),
}


@pytest.mark.parametrize("settings", LAWS.values(), ids=LAWS)
def test_sampler_follows_the_enumerated_finite_step_law(settings):
    config = SamplerConfig(**settings)
    language_model = tiny_model(vocabulary=3, eos=0, seed=23, sharpness=2.5)
    prompt, count = (1, 2, 1), 12_000
    toy = toy_of(language_model, prompt, config.max_new_tokens)
    expected = reference_law(toy, config)
    chains = sampled_chains(language_model, config, prompt, range(count), rows=2048)
    drawn = [tuple(chain.tokens.tolist()) for chain in chains.values()]
    assert len(drawn) == count
    assert_follows(drawn, expected, responses(toy, config.max_new_tokens))
    # The test has power: the law of the proposal alone is far outside, and so is what leaves an option out.
    others = []
    if config.num_mh_steps:
        others.append(dict(num_mh_steps=0, schedule="paper", num_final_steps=None))
    if config.cut_law != "uniform":
        others.append(dict(cut_law="uniform"))
    if config.accept_rule != "metropolis":
        others.append(dict(accept_rule="metropolis"))
    for changes in others:
        other = reference_law(toy, replace(config, **changes))
        assert (np.abs(other - expected) / standard_errors(expected, count)).max() > 14


EARLY = SamplerConfig(alpha=2.0, block_size=6, max_new_tokens=18, num_mh_steps=6)


def with_and_without_rejecting_early(config, stop_strings=()):
    """Return the same chains of both kinds, in pairs."""
    model = with_tokenizer(tiny_model(sharpness=2.0), names=list("_abcdefghijk"))
    both = (
        sampled_chains(model, replace(config, reject_early=early), (3, 5, 7), range(48), 16, stop_strings)
        for early in (True, False)
    )
    return list(zip(*(chains.values() for chains in map(by_number, both)), strict=True))


def by_number(chains):
    return {number: chains[number] for number in sorted(chains)}


def same_steps(one, other):
    fields = ("horizon", "length", "cut_position", "accepted", "logprob")
    return len(one.steps.accepted) == len(other.steps.accepted) and all(
        np.array_equal(getattr(one.steps, name), getattr(other.steps, name)) for name in fields
    )


@pytest.mark.parametrize(
    ("changes", "stop_strings"),
    [
        (dict(), ()),
        (dict(schedule="final-horizon"), ("bc", "ab")),
        (dict(cut_law="entropy"), ()),
        (dict(accept_rule="max_swap"), ()),
        (dict(accept_rule="max_swap", proposal_temperature=1.5), ()),
        (dict(alpha=3.0, proposal_temperature=1.0), ()),
    ],
    ids=str,
)
def test_rejecting_early_makes_the_same_decisions_with_fewer_tokens(changes, stop_strings):
    pairs = with_and_without_rejecting_early(replace(EARLY, **changes).check(), stop_strings)
    for early, late in pairs:
        assert early.tokens.tolist() == late.tokens.tolist()
        assert early.ending == late.ending
        np.testing.assert_array_equal(early.base_logprobs, late.base_logprobs)
        assert same_steps(early, late)
        assert late.mh_rejected_early == 0
        assert early.mh_rejected_early <= early.mh_proposed - early.mh_accepted
        assert (early.num_generated_tokens < late.num_generated_tokens) == (early.mh_rejected_early > 0)
    assert sum(early.mh_rejected_early for early, _ in pairs) > 20


@pytest.mark.parametrize("temperature", [0.4, 1.2])
def test_nothing_is_rejected_early_where_a_later_token_may_raise_the_ratio(temperature):
    pairs = with_and_without_rejecting_early(replace(EARLY, proposal_temperature=temperature))
    assert all(early.mh_rejected_early == 0 and same_steps(early, late) for early, late in pairs)


@pytest.mark.parametrize("changes", [dict(), dict(cut_law="entropy"), dict(accept_rule="max_swap")], ids=str)
def test_what_is_summed_token_by_token_is_the_log_ratio_at_the_last(changes):
    """So a bound that is a little off would be seen, and one that holds for the sums so far holds for the decision."""
    config = SamplerConfig(alpha=3.0, proposal_temperature=0.5, **changes)
    logits = 2 * torch.randn(2, 9, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits[1, :4] = logits[0, :4]  # what precedes the cut is kept
    base, proposal = base_logprobs(logits), proposal_logprobs(logits, 0.5)
    cut, lengths, number = 4, (9, 7), torch.tensor(0.4, dtype=torch.float64)
    terms = early_terms(config)

    def weight(response, length):
        return (terms.entropy * entropies(base[response, :length]) + terms.token).sum()

    def suffix(response):
        span = slice(cut, lengths[response])
        log_cut = -weight(response, lengths[response]).log()
        return Suffix(base[response, span, 2].sum(), proposal[response, span, 2].sum(), log_cut)

    old, new = suffix(0), suffix(1)
    bound = early_bound(number, old, torch.tensor(5), config.alpha, config.accept_rule)
    evidence = terms.base * new.base + terms.proposal * new.proposal
    slack = 5e-5 * config.alpha
    if config.accept_rule == "max_swap":
        torch.testing.assert_close(evidence - bound - slack, new.base - old.base)
    else:
        ratio = log_accept_ratio(new, old, config.alpha)
        torch.testing.assert_close(evidence + new.cut - bound - slack, ratio - number.log())


@pytest.mark.parametrize("alpha", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("cuts", ["uniform", "entropy"])
def test_early_terms_never_raise_the_ratio(alpha, cuts):
    logits = torch.randn(500, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    for temperature in (1 / alpha, (1 / alpha + 1) / 2, 1.0):
        terms = early_terms(SamplerConfig(alpha=alpha, proposal_temperature=temperature, cut_law=cuts))
        base, proposal = base_logprobs(logits), proposal_logprobs(logits, temperature)
        assert (terms.base * base + terms.proposal * proposal).max() < 1e-12
        assert (terms.entropy * entropies(base) + terms.token).min() > 0
