"""The truncation example: two tokens, horizon 2, alpha 2, and what each way to end a chain leaves of the distance.

The model: tokens E (EOS) and a, each with probability 1/2 after every context. The responses at horizon 2 are (E),
(a, E) and (a, a), with p = 1/2, 1/4, 1/4, so p^2 is proportional to 4, 1, 1: pi_2 = (2/3, 1/6, 1/6). At horizon 1 they
are (E) and (a), and pi_1 = (1/2, 1/2). The proposal's temperature does not matter, since the tokens are alike.

A step at horizon 2 leaves (E) with probability 1/8: cut 0, propose a, accept with 1/4, of which half is for the
target's ratio times the proposal's and half for the cut's. It comes to (E) with 1/4: cut 0 has 1/2, E is proposed with
1/2 and always accepted. Every other move makes (a, E) and (a, a) alike. So a step multiplies the distance by
1 - 1/8 - 1/4 = 5/8, and from the worst start it is (2/3) (5/8)^N. The cut law Uniform{0..H-1}, which does nothing at
m >= |x|, has the same two rates: there the cut 0 has probability 1/2 from (E), and a is accepted with 1/2.

A chain whose proposals end where its current response ends (the early stop of the published loop) never leaves length 1
once it is there, and it always comes there: in the limit it has pi_1, half of it on (a), which is no response. The
distance of pi_1 from pi_2 is 1/2, however many steps are taken.

The schedule `paper` ends a chain only where a stage ends in EOS, and extends all others, so (a) never comes out. But
the half that ended at horizon 1 is never looked at again, while the other half may still come to (E): the distance
tends to 1/2 (1 - 2/3) = 1/6. The schedule `final-horizon` has (1/6) (5/8)^N.

Source: arXiv 2609.38104. The example is made again from its numbers: two tokens, horizon 2, alpha 2, a distance of 1/2
with the early stop and of (2/3) (5/8)^N with a fixed horizon.
"""

import numpy as np
import pytest
import torch

from dps.sampler.law import Suffix, base_logprobs, log_accept_ratio, proposal_logprobs
from dps.sampler.settings import SamplerConfig
from dps.testing import (
    SamplerKernel,
    ToyModel,
    assert_invariant,
    finite_step_law,
    reference_law,
    responses,
    target,
    total_variation,
    transition_matrix,
)

E, A = 0, 1
MODEL = ToyModel({(): np.zeros(2), (A,): np.zeros(2)}, vocabulary=2, eos=E, horizon=2)
STATES = [(E,), (A, E), (A, A)]
PI_1, PI_2 = np.array([1 / 2, 1 / 2]), np.array([2 / 3, 1 / 6, 1 / 6])
ALPHA = 2.0
STEPS = [*range(1, 12), 24, 200]


class FixedLengthCut(SamplerKernel):
    """The cut law Uniform{0..H-1}: nothing happens at a cut behind the response, and no term enters the ratio."""

    def cut(self, base, found, m):
        return torch.zeros(len(found), dtype=torch.float64), torch.full((len(found),), 1 / 2, dtype=torch.float64)

    def matrix(self, model, horizon, alpha):
        assert horizon == 2
        found = super().matrix(model, horizon, alpha)
        return found + np.diag(1 - found.sum(1))


KERNELS = [
    SamplerKernel(),
    SamplerKernel(temperature=1.0),
    SamplerKernel(cuts="entropy"),  # the same law here: all entropies are alike
    FixedLengthCut(),
    FixedLengthCut(temperature=1.0),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_a_fixed_horizon_is_two_thirds_times_five_eighths_to_the_steps_away(kernel):
    assert responses(MODEL, 2) == STATES
    np.testing.assert_allclose(target(MODEL, 2, ALPHA), PI_2, atol=1e-15)
    if not isinstance(kernel, FixedLengthCut):
        assert_invariant(kernel, MODEL, ALPHA)
    matrix = transition_matrix(kernel, MODEL, 2, ALPHA)
    np.testing.assert_allclose(matrix[0], [7 / 8, 1 / 16, 1 / 16], atol=1e-15)
    np.testing.assert_allclose(matrix[1:, 0], 1 / 4, atol=1e-15)
    for n in STEPS:
        power = np.linalg.matrix_power(matrix, n)
        away = [total_variation(row, PI_2) for row in power]
        np.testing.assert_allclose(away, np.array([1 / 3, 2 / 3, 2 / 3]) * (5 / 8) ** n, atol=1e-14)
    assert total_variation(np.array([0, 1 / 2, 1 / 2]), PI_2) == pytest.approx(2 / 3)  # (a) extended, before any step


def truncating(temperature):
    """The published loop's step by the product's functions: a proposal ends where the current response ends."""

    def kernel(model, response, horizon, alpha):
        length, after = len(response), {}
        base = {c: base_logprobs(torch.tensor(v)) for c, v in model.logits.items()}
        proposal = {c: proposal_logprobs(torch.tensor(v), temperature) for c, v in model.logits.items()}

        def log_of(table, r, start, stop):
            return sum((table[r[:i]][r[i]] for i in range(start, stop)), torch.zeros((), dtype=torch.float64))

        for cut in range(length):
            same_start = [r for r in {*responses(model, length)} if len(r) > cut and r[:cut] == response[:cut]]
            for new in same_start:
                both = min(len(new), length)  # the suffixes are cut to their overlap
                suffixes = (
                    Suffix(log_of(base, r, cut, both), log_of(proposal, r, cut, both), torch.zeros(()))
                    for r in (new, response)
                )
                ratio = log_accept_ratio(*suffixes, alpha)
                flow = log_of(proposal, new, cut, len(new)).exp() / length
                accepted = float(flow * ratio.exp().clamp(max=1))
                after[new] = after.get(new, 0.0) + accepted
                after[response] = after.get(response, 0.0) + float(flow) - accepted
        return after

    return kernel


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_an_early_stop_keeps_a_distance_of_one_half(temperature):
    kernel = truncating(temperature)
    with pytest.raises(AssertionError, match=r"At horizon 2 a step from \(0,\) leads to \(1,\) .* but that is no resp"):
        assert_invariant(kernel, MODEL, ALPHA)
    states = [*STATES, (A,)]
    matrix = np.array([[kernel(MODEL, x, 2, ALPHA).get(y, 0.0) for y in states] for x in states])
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    for law in np.linalg.matrix_power(matrix, 1000):  # from every start
        np.testing.assert_allclose(law, [PI_1[0], 0, 0, PI_1[1]], atol=1e-12)
        assert total_variation(law, [*PI_2, 0]) == pytest.approx(1 / 2, abs=1e-12)
    # The sampler's own step, stopped at the horizon of the first stage: pi_1, and 1/2, from the first step on.
    for n in STEPS:
        law = np.linalg.matrix_power(SamplerKernel(temperature).matrix(MODEL, 1, ALPHA), n)[0]
        assert total_variation([law[0], 0, 0, law[1]], [*PI_2, 0]) == pytest.approx(1 / 2, abs=1e-12)


def config_of(**changes):
    return SamplerConfig(alpha=ALPHA, max_new_tokens=2, **{"block_size": 1, **changes}).check()


@pytest.mark.parametrize("steps", STEPS)
def test_the_schedule_paper_keeps_a_sixth_and_the_final_horizon_comes_to_the_target(steps):
    left = (5 / 8) ** steps
    whole = dict(schedule="paper", block_size=2)  # one stage of the whole length: no early stop
    for changes, distance in (
        (dict(schedule="paper"), abs(1 / 6 - 1 / 3 * left)),
        (dict(schedule="final-horizon"), 1 / 6 * left),
        (whole, 1 / 6 * left),
    ):
        config = config_of(num_mh_steps=steps, **changes)
        law = finite_step_law(SamplerKernel.of(config), MODEL, config)
        np.testing.assert_allclose(law, reference_law(MODEL, config), atol=1e-14)
        assert law[1] == pytest.approx(law[2], abs=1e-14)
        assert total_variation(law, PI_2) == pytest.approx(distance, abs=1e-12)
