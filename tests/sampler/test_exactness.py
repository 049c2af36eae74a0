"""The sampler is exact: its kernel leaves p^alpha invariant, and its chains follow the enumerated finite-step law."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dps.sampler.cut import cut_logprob, cut_position, weighted_cut_logprob, weighted_cut_position
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.proposal import sample_token
from dps.sampler.schedule import stage_alpha
from dps.sampler.settings import ENTROPY_FLOOR, SamplerConfig
from dps.sampler.streams import stream_key, uniform
from dps.sampler.target import base_logprobs
from dps.sampler.tries import consider_try, tries_log_accept_ratio
from dps.testing import (
    SamplerKernel,
    assert_follows,
    assert_invariant,
    finite_step_law,
    log_softmax,
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

from .models import tiny_model


class WithoutCutTerm(SamplerKernel):
    def cut(self, base, found, m):
        log_cut, probability = super().cut(base, found, m)
        return torch.zeros_like(log_cut), probability


class LengthAsCutTerm(SamplerKernel):
    def cut(self, base, found, m):
        return cut_logprob(torch.tensor([len(r) for r in found])), super().cut(base, found, m)[1]


class WrongSign(SamplerKernel):
    def log_ratio(self, *, new_proposal, old_proposal, **terms):
        return super().log_ratio(new_proposal=-new_proposal, old_proposal=-old_proposal, **terms)


class OverlapOnly(SamplerKernel):
    def spans(self, sizes):
        both = torch.minimum(sizes[:, None], sizes[None, :])
        return both, both


class TriesWithoutX(SamplerKernel):
    def log_ratio_of_tries(self, others, candidate, old):
        return torch.logaddexp(others, candidate) - others


class CandidateAlone(SamplerKernel):
    def log_ratio_of_tries(self, others, candidate, old):
        return candidate - old


def long_run_law(matrix):
    values, vectors = np.linalg.eig(matrix.T)
    law = np.real(vectors[:, np.argmin(np.abs(values - 1))])
    return law / law.sum()


SETTINGS = ((4.0, 0.25), (4.0, 1.0), (1.5, 0.5))
STEPS = [
    dict(),
    dict(cuts="entropy"),
    dict(num_tries=2),
    dict(num_tries=3),
    dict(cuts="entropy", num_tries=2),
]


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("alpha", "temperature"), SETTINGS)
def test_kernel_has_the_power_law_as_its_long_run_law(seed, alpha, temperature, step):
    horizon = 3 if step.get("num_tries") == 3 else 4
    toy = random_model(seed, horizon=horizon)
    kernel = SamplerKernel(temperature, **step)
    assert_invariant(kernel, toy, alpha)
    matrix = kernel.matrix(toy, horizon, alpha)
    assert total_variation(long_run_law(matrix), target(toy, horizon, alpha)) < 1e-10
    np.testing.assert_allclose(matrix, reference_matrix(toy, horizon, alpha, temperature, **step), atol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        WithoutCutTerm(0.5),
        WrongSign(0.5),
        OverlapOnly(0.5),
        WithoutCutTerm(0.5, cuts="entropy"),
        LengthAsCutTerm(0.5, cuts="entropy"),
        WithoutCutTerm(0.5, num_tries=2),
        TriesWithoutX(0.5, num_tries=2),
        CandidateAlone(0.5, num_tries=2),
        LengthAsCutTerm(0.5, num_tries=2, cuts="entropy"),
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


def test_a_try_is_chosen_in_proportion_to_its_weight():
    omega = torch.tensor([-700.0, 2.0, 1.0, 900.0, 899.0], dtype=torch.float64)
    log_others = log_candidate = torch.tensor([-torch.inf], dtype=torch.float64)
    for t in range(5):
        share = (omega[t] - omega[: t + 1].logsumexp(0)).exp().item()
        for number in (share * (1 - 1e-9), share * (1 + 1e-9)):
            if 0 < number < 1:
                number = torch.tensor([number], dtype=torch.float64)
                replace, *_ = consider_try(number, omega[t : t + 1], log_others, log_candidate)
                assert replace.item() == (number.item() < share)
        middle = torch.tensor([0.5], dtype=torch.float64)
        replace, log_others, log_candidate = consider_try(middle, omega[t : t + 1], log_others, log_candidate)
        total = torch.logaddexp(log_others, log_candidate)
        torch.testing.assert_close(total, omega[: t + 1].logsumexp(0)[None], rtol=1e-14, atol=0)
    assert log_candidate.item() == 900.0


def test_tries_without_weight_make_no_nan():
    never = torch.tensor([-torch.inf], dtype=torch.float64)
    half, zero = torch.tensor([0.5], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    replace, others, candidate = consider_try(half, never, never, never)
    assert (replace.item(), others.item(), candidate.item()) == (True, -torch.inf, -torch.inf)
    assert tries_log_accept_ratio(others, candidate, zero).item() == -torch.inf
    assert tries_log_accept_ratio(others, candidate, never).item() == -torch.inf  # nothing to go to: stay
    replace, others, candidate = consider_try(half, zero, others, candidate)
    assert (replace.item(), others.item(), candidate.item()) == (True, -torch.inf, 0.0)
    replace, others, candidate = consider_try(half, never, others, candidate)
    assert (replace.item(), others.item(), candidate.item()) == (False, -torch.inf, 0.0)
    assert tries_log_accept_ratio(others, candidate, zero - 3).item() == 3.0  # one try: the plain ratio


def test_exponent_grows_to_alpha_and_stays():
    config = SamplerConfig(alpha=3.7, block_size=2, max_new_tokens=12, anneal_blocks=3)
    exponents = stage_alpha(config, torch.tensor([2, 4, 6, 8, 12]))
    torch.testing.assert_close(exponents[:2], torch.tensor([1.9, 2.8], dtype=torch.float64))
    assert exponents[2:].tolist() == [3.7] * 3
    assert stage_alpha(SamplerConfig(), torch.tensor([192, 3072])).tolist() == [4.0, 4.0]


@pytest.mark.parametrize(
    "settings",
    [
        dict(block_size=2, num_mh_steps=3),
        dict(block_size=1, num_mh_steps=2, schedule="final-horizon", num_final_steps=4),
        dict(block_size=1, num_mh_steps=2, anneal_blocks=3),
        dict(block_size=2, num_mh_steps=2, anneal_blocks=2),
        dict(block_size=1, num_mh_steps=0, anneal_blocks=3),
        dict(block_size=1, num_mh_steps=1, anneal_blocks=3, schedule="final-horizon", num_final_steps=2),
        dict(block_size=1, num_mh_steps=1, anneal_blocks=3, schedule="final-horizon", num_final_steps=0),
        dict(block_size=2, num_mh_steps=2, anneal_blocks=2, cut_law="entropy", num_tries=2),
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
    if config.anneal_blocks > 1 and config.num_mh_steps and not config.final_steps:
        # Stopping at the first EOS while the exponent grows is another law.
        assert total_variation(law, reference_law(toy, config, stop_early=True)) > 1e-2


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


def sampled_chains(language_model, config, prompt, numbers, rows, stop_strings=()):
    engine = Engine(language_model, config, rows=rows, prompt_room=len(prompt), stop_strings=stop_strings)
    for i in numbers:
        engine.submit(ChainRequest(i, prompt, stream_key(0, "q", i)))
    chains = {}
    while not engine.idle:
        chains.update({chain.request.key: chain for chain in engine.poll()})
    return chains


PAPER = dict(alpha=3.0, proposal_temperature=1.0, block_size=2, max_new_tokens=4, num_mh_steps=2)
DEFAULTS = dict(cut_law="uniform", num_tries=1, accept_rule="metropolis", anneal_blocks=1)
FINAL = dict(PAPER, num_mh_steps=1, schedule="final-horizon", num_final_steps=3)


@pytest.mark.parametrize(
    "settings",
    [
        PAPER,
        dict(PAPER, proposal_temperature=None, num_mh_steps=3),
        FINAL,
        dict(PAPER, proposal_temperature=0.7, block_size=4, num_mh_steps=0),
        dict(PAPER, cut_law="entropy"),
        dict(FINAL, cut_law="entropy"),
        dict(PAPER, num_tries=2),
        dict(FINAL, num_tries=2),
        dict(PAPER, num_tries=3, cut_law="entropy"),
        dict(PAPER, accept_rule="max_swap"),
        dict(PAPER, block_size=1, anneal_blocks=3, num_mh_steps=5, proposal_temperature=None),
        dict(FINAL, block_size=1, anneal_blocks=3, num_mh_steps=2, num_final_steps=1, alpha=5.0),
    ],
    ids=[
        "paper",
        "default-temperature",
        "final-horizon",
        "plain",
        "entropy",
        "entropy-final-horizon",
        "tries",
        "tries-final-horizon",
        "entropy-tries",
        "max-swap",
        "annealed",
        "annealed-final-horizon",
    ],
)
def test_sampler_follows_the_enumerated_finite_step_law(settings):
    config = SamplerConfig(**settings)
    language_model = tiny_model(vocabulary=3, eos=0, seed=23, sharpness=2.5)
    prompt, count = (1, 2, 1), 12_000
    toy = toy_of(language_model, prompt, config.max_new_tokens)
    expected = reference_law(toy, config)
    chains = sampled_chains(language_model, config, prompt, range(count), rows=2048)
    drawn = [tuple(chain.tokens.tolist()) for chain in chains.values()]
    assert len(drawn) == count
    states = responses(toy, config.max_new_tokens)
    assert_follows(drawn, expected, states)
    error = standard_errors(expected, count)
    # The test has power: the law of the proposal alone is far outside, and so is what leaves an option out.
    others = []
    if config.num_mh_steps:
        others.append(reference_law(toy, replace(config, num_mh_steps=0, schedule="paper", num_final_steps=None)))
    for option, default in DEFAULTS.items():
        if getattr(config, option) != default:
            others.append(reference_law(toy, replace(config, **{option: default})))
    if config.anneal_blocks > 1 and config.schedule == "paper":
        others.append(reference_law(toy, config, stop_early=True))
    for other in others:
        assert (np.abs(other - expected) / error).max() > 14


@pytest.mark.parametrize(
    "changes",
    [
        dict(cut_law="entropy"),
        dict(num_tries=3),
        dict(cut_law="entropy", num_tries=2, anneal_blocks=3),
        dict(accept_rule="max_swap"),
    ],
    ids=str,
)
def test_what_an_option_records_is_what_the_model_says(changes):
    config = SamplerConfig(alpha=2.0, block_size=6, max_new_tokens=18, num_mh_steps=4, **changes)
    language_model = tiny_model(sharpness=3.0)
    prompt = (3, 5, 7)
    crowd = sampled_chains(language_model, config, prompt, range(24), rows=8)
    for chain in crowd.values():
        ids = torch.tensor([[*prompt, *chain.tokens]])
        logits = language_model.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        expected = base_logprobs(logits).gather(1, ids[0, len(prompt) :, None])[:, 0].double().numpy()
        np.testing.assert_allclose(chain.base_logprobs, expected, atol=1e-4)
        trace = chain.steps
        np.testing.assert_allclose(trace.logprob[-1], chain.base_logprobs.sum(), atol=1e-9)
        if config.accept_rule == "max_swap":
            same_stage = np.diff(trace.horizon) == 0
            assert (np.diff(trace.logprob)[same_stage] >= 0).all()
    # Some steps move and some do not, or the test has seen nothing.
    accepted = np.concatenate([chain.steps.accepted for chain in crowd.values()])
    assert 0.05 < accepted.mean() < 0.95
    alone = sampled_chains(language_model, config, prompt, [17], rows=8)[17]
    assert alone.tokens.tolist() == crowd[17].tokens.tolist()
    assert alone.steps.cut_position.tolist() == crowd[17].steps.cut_position.tolist()


def test_log_softmax_of_the_enumeration_is_normalized():
    assert np.isclose(np.exp(log_softmax([1.0, 2.0, 30.0])).sum(), 1)
