"""`dps.testing`: what it lets pass, what it refuses and in which words, and the examples of docs/exactness.md."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import dps
from dps.sampler.settings import SamplerConfig
from dps.testing import (
    SamplerKernel,
    assert_follows,
    assert_invariant,
    finite_step_law,
    random_model,
    responses,
    target,
    transition_matrix,
)

MODEL = random_model(0, horizon=3)


def of(matrix_of):
    """A kernel from a function of (model, horizon, alpha)."""

    class Given:
        def matrix(self, model, horizon, alpha):
            return matrix_of(model, horizon, alpha)

    return Given()


def rows(kernel):
    """The same kernel as a function of the response."""

    def law(model, response, horizon, alpha):
        states = responses(model, horizon)
        return dict(zip(states, kernel.matrix(model, horizon, alpha)[states.index(response)], strict=True))

    return law


def test_the_page_does_what_it_says(capsys):
    page = Path("docs/exactness.md").read_text()
    assert len(page.splitlines()) <= 80
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(compile(block, "docs/exactness.md", "exec"), names)
    said = re.search(r"^    (At horizon .*), \.\.\.$", page, re.M).group(1)
    assert capsys.readouterr().out.startswith(said)


def test_nothing_but_the_package_is_needed(monkeypatch):
    for package in ("testing", "sampler"):
        monkeypatch.setattr(dps, package, getattr(dps, package))  # the import sets it, this puts it back
        for name in [name for name in sys.modules if f"{name}.".startswith(f"dps.{package}.")]:
            monkeypatch.delitem(sys.modules, name)
    for name in ("pytest", "hypothesis", "tests"):
        monkeypatch.setitem(sys.modules, name, None)
    testing = importlib.import_module("dps.testing")
    assert testing.SamplerKernel is not SamplerKernel  # imported anew
    testing.assert_invariant(testing.SamplerKernel(), testing.random_model(0, horizon=2))
    assert set(testing.__all__) <= set(dir(testing))


@pytest.mark.parametrize("alpha", [1.0, 2.0, 4.0])
def test_a_kernel_may_be_a_function_or_a_matrix(alpha):
    kernel = SamplerKernel(0.5, cuts="entropy")
    for given in (kernel, rows(kernel)):
        assert_invariant(given, MODEL, alpha)
        np.testing.assert_array_equal(transition_matrix(given, MODEL, 3, alpha), kernel.matrix(MODEL, 3, alpha))


def test_two_exact_kernels_after_each_other_are_invariant_without_detailed_balance():
    first, second = SamplerKernel(0.5), SamplerKernel(1.0, cuts="entropy")
    both = of(lambda *where: first.matrix(*where) @ second.matrix(*where))
    assert_invariant(both, MODEL, reversible=False)
    with pytest.raises(AssertionError, match="no detailed balance"):
        assert_invariant(both, MODEL)


def between(model, horizon, alpha, factor=0.5):
    """Goes with the sampler's step, but loses `factor` of the flow from the second response to the first."""
    matrix = SamplerKernel().matrix(model, horizon, alpha)
    lost = factor * matrix[1, 0]
    matrix[1, 0] -= lost
    matrix[1, 1] += lost
    return matrix


def test_the_pair_between_which_balance_fails_is_named_with_both_flows():
    law, exact = target(MODEL, 1, 4.0), SamplerKernel().matrix(MODEL, 1, 4.0)
    states = responses(MODEL, 1)
    there, back = law[0] * exact[0, 1], law[1] * exact[1, 0] / 2
    with pytest.raises(AssertionError) as found:
        assert_invariant(of(between), MODEL)
    assert str(found.value) == (
        f"At horizon 1 there is no detailed balance between {states[0]} and {states[1]}: the flow from the first to "
        f"the second is {there:.6g}, back it is {back:.6g}, which differ by {there - back:.3g}."
    )
    with pytest.raises(AssertionError, match=r"At horizon 1 a step does not leave p\^4 as it is: .* had .* and has "):
        assert_invariant(of(between), MODEL, reversible=False)


def test_a_fault_of_a_ten_millionth_of_one_flow_is_seen():
    with pytest.raises(AssertionError, match="no detailed balance"):
        assert_invariant(of(lambda *where: between(*where, factor=1e-7)), MODEL)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda law, r: {**law, r: law[r] + 0.25}, r"At horizon 1 .* of a step from \(0,\) sum to 1\.25, not to 1"),
        (lambda law, r: {k: v for k, v in law.items() if k != r}, r"from \(.*\) sum to 0\.\d+, not to 1"),
        (lambda law, r: {}, r"from \(0,\) sum to 0, not to 1"),
        (lambda law, r: {**law, (): 0.0}, r"from \(0,\) leads to \(\) with probability 0, but that is no response"),
        (lambda law, r: {**law, (1, 1, 1, 1, 1): 0.1}, r"leads to \(1, 1, 1, 1, 1\) with probability 0\.1, but"),
        (lambda law, r: {**law, r: law[r] + 2, (2,): law.get((2,), 0) - 2}, r"from \(0,\) to \(2,\) is -\d"),
        (lambda law, r: {**law, r: float("nan")}, r"from \(0,\) to \(0,\) is nan"),
    ],
)
def test_what_is_no_law_over_responses_is_named(change, words):
    exact = rows(SamplerKernel())
    with pytest.raises(AssertionError, match=words):
        assert_invariant(lambda m, r, h, a: change(exact(m, r, h, a), r), MODEL)


def never_moves(model, response, horizon, alpha):
    """Leaves every law as it is."""
    return {response: 1.0}


def keeps_the_first_token(model, response, horizon, alpha):
    """Draws anew from the target among the responses that begin as this one does."""
    states, law = responses(model, horizon), target(model, horizon, alpha)
    mine = [i for i, state in enumerate(states) if state[0] == response[0]]
    return {states[i]: law[i] / law[mine].sum() for i in mine}


@pytest.mark.parametrize("stuck", [never_moves, keeps_the_first_token])
def test_a_kernel_that_does_not_reach_everything_fails(stuck):
    with pytest.raises(AssertionError, match=r"a chain that starts from \(.*\) does not come to the target: its total"):
        assert_invariant(stuck, MODEL)


def test_a_chain_that_alternates_for_ever_does_not_come_to_its_target():
    even = random_model(0, vocabulary=2, horizon=1, scale=0.0)  # two responses, alike
    swap = of(lambda *_: np.array([[0.0, 1.0], [1.0, 0.0]]))
    with pytest.raises(AssertionError, match="does not come to the target"):
        assert_invariant(swap, even)


def test_what_is_no_kernel_is_refused():
    with pytest.raises(TypeError, match=r"Expected a kernel as a function of .* got ndarray"):
        assert_invariant(np.eye(3), MODEL)
    with pytest.raises(AssertionError, match=r"Expected a transition matrix of shape \(3, 3\), .* got \(2, 2\)"):
        assert_invariant(of(lambda *_: np.eye(2)), MODEL)
    with pytest.raises(ValueError, match="give both, or neither"):
        assert_invariant(SamplerKernel(), MODEL, drawn=[(0,)])


@pytest.mark.parametrize("schedule", ["paper", "final-horizon"])
def test_draws_of_the_finite_step_law_follow_it_and_others_do_not(schedule):
    config = SamplerConfig(alpha=4.0, block_size=1, max_new_tokens=3, num_mh_steps=2, schedule=schedule)
    kernel, states = SamplerKernel.of(config), responses(MODEL, 3)
    law = finite_step_law(kernel, MODEL, config)
    rng = np.random.default_rng(0)
    counts = dict(zip(states, rng.multinomial(50_000, law).tolist(), strict=True))
    assert_invariant(kernel, MODEL, config=config, drawn=counts)
    exact = dict(zip(states, rng.multinomial(50_000, target(MODEL, 3, 4.0)).tolist(), strict=True))
    with pytest.raises(AssertionError, match=r"has probability .* came in .* of 50,000 draws: .* standard errors away"):
        assert_invariant(kernel, MODEL, config=config, drawn=exact)  # few steps have not come to the target
    with pytest.raises(AssertionError, match=r"\(1,\) was drawn 3 times, but it is no response"):
        assert_follows({**counts, (1,): 3}, law, states)


def test_no_draws_and_a_law_of_no_numbers_follow_nothing():
    states, law = responses(MODEL, 3), target(MODEL, 3, 4.0)
    with pytest.raises(AssertionError, match="Expected at least one drawn response"):
        assert_follows([], law, states)
    with pytest.raises(AssertionError, match="has probability nan"):
        assert_follows(states, law * np.nan, states)
