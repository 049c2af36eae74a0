"""Exact checks for people who change a kernel: enumerate a toy law, and compare.

    from dps.testing import SamplerKernel, assert_invariant, random_model

    assert_invariant(SamplerKernel(), random_model(0), alpha=4.0)

See docs/exactness.md. Needs no test framework: what fails is an AssertionError with one sentence.
"""

from dps.testing.checks import (
    Kernel,
    MatrixKernel,
    StepLaw,
    assert_follows,
    assert_invariant,
    finite_step_law,
    standard_errors,
    transition_matrix,
)
from dps.testing.reference import reference_law, reference_matrix
from dps.testing.running import draw_responses, sample_chains, toy_of
from dps.testing.sampler_kernel import SamplerKernel
from dps.testing.toy import (
    Response,
    ToyModel,
    branches,
    extend,
    log_softmax,
    random_model,
    responses,
    sequence_logprob,
    target,
    total_variation,
)

__all__ = [
    "Kernel", "MatrixKernel", "Response", "SamplerKernel", "StepLaw", "ToyModel", "assert_follows", "assert_invariant",
    "branches", "draw_responses", "extend", "finite_step_law", "log_softmax", "random_model", "reference_law",
    "reference_matrix", "responses", "sample_chains", "sequence_logprob", "standard_errors", "target",
    "total_variation", "toy_of", "transition_matrix",
]  # fmt: skip
