"""Checks of a kernel: does one step leave p^alpha as it is, and do finished chains follow the law that they should?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from dps.sampler.law import next_move
from dps.sampler.settings import SamplerConfig
from dps.testing.toy import Response, ToyModel, extend, responses, target, total_variation

TOLERANCE = 1e-10
"""Largest total variation distance that counts as rounding."""
_ROUNDING = 1e-12
"""The same of one probability: of a row's sum, of a flow."""
_SQUARINGS = 50
"""A chain that is not near its target after 2^50 steps will not come near it."""


@runtime_checkable
class MatrixKernel(Protocol):
    """A kernel that gives its whole transition matrix at once, as :class:`dps.testing.SamplerKernel` does."""

    def matrix(self, model: ToyModel, horizon: int, alpha: float) -> np.ndarray:
        """Return the matrix, shape (N, N), rows and columns in the order of ``responses(model, horizon)``."""


StepLaw = Callable[[ToyModel, Response, int, float], Mapping[Response, float]]
"""A kernel as a function of (model, response, horizon, alpha) that returns the law of the next response: a dictionary
from responses, token ids as a tuple, to probabilities. What is left out has probability 0."""
Kernel = StepLaw | MatrixKernel
"""What can be checked."""


def transition_matrix(kernel: Kernel, model: ToyModel, horizon: int, alpha: float) -> np.ndarray:
    """Return the exact transition matrix of one step, (N, N) in the order of ``responses``, and see that it is one.

    Raises:
        AssertionError: If a step leads to what is no response, has a probability that is none, or its probabilities do
            not sum to one; the sentence names the response.
    """
    if not (callable(kernel) or isinstance(kernel, MatrixKernel)):
        raise TypeError(
            "Expected a kernel as a function of (model, response, horizon, alpha) that returns the law of the next "
            f"response, or an object with a method matrix(model, horizon, alpha), got {type(kernel).__name__}."
        )
    states = responses(model, horizon)
    if isinstance(kernel, MatrixKernel):
        matrix = np.asarray(kernel.matrix(model, horizon, alpha), dtype=np.float64)
        if matrix.shape != (len(states), len(states)):
            raise AssertionError(
                f"Expected a transition matrix of shape {(len(states), len(states))}, one row for each response at "
                f"horizon {horizon}, got {matrix.shape}."
            )
    else:
        number = {response: i for i, response in enumerate(states)}
        matrix = np.zeros((len(states), len(states)))
        for i, response in enumerate(states):
            for following, probability in kernel(model, response, horizon, alpha).items():
                if following not in number:
                    raise AssertionError(
                        f"At horizon {horizon} a step from {response} leads to {following} with probability "
                        f"{float(probability):g}, but that is no response: it neither ends in EOS "
                        f"nor has {horizon} tokens."
                    )
                matrix[i, number[following]] = float(probability)
    for i, j in np.argwhere(~np.isfinite(matrix) | (matrix < -_ROUNDING))[:1]:
        raise AssertionError(
            f"At horizon {horizon} the probability of a step from {states[i]} to {states[j]} is {matrix[i, j]:g}."
        )
    sums = matrix.sum(1)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > _ROUNDING:
        raise AssertionError(
            f"At horizon {horizon} the probabilities of a step from {states[worst]} sum to {sums[worst]:.12g}, not to "
            "1: a step that is rejected stays where it is."
        )
    return matrix


def assert_invariant(
    kernel: Kernel,
    model: ToyModel,
    alpha: float = 4.0,
    *,
    reversible: bool = True,
    config: SamplerConfig | None = None,
    drawn: Iterable[Response] | Mapping[Response, int] | None = None,
) -> None:
    """Check a kernel against the enumerated target p^alpha at every horizon up to the model's.

    In this order: a step from each response is a law over responses; detailed balance; the target is left as it is
    (total variation below 1e-10); a chain comes to the target from every response that it may start from, so that a
    kernel which never moves, or cannot reach a part, fails too.

    Args:
        kernel: One step: a function, or an object with a method ``matrix``.
        model: The toy model, for instance :func:`dps.testing.random_model`.
        alpha: Exponent of the target.
        reversible: Whether detailed balance must hold; two reversible kernels after each other are invariant without.
        config: Settings of finished chains, whose law is enumerated, see :func:`finite_step_law`.
        drawn: Finished responses of the running code, or how often each came, which must follow that law, see
            :func:`assert_follows`.

    Raises:
        AssertionError: With one sentence that names the pair of responses, or the response, and by how much it fails.
    """
    if (config is None) != (drawn is None):
        raise ValueError("config says which law the drawn responses should follow: give both, or neither.")
    for horizon in range(1, model.horizon + 1):
        states, law = responses(model, horizon), target(model, horizon, alpha)
        matrix = transition_matrix(kernel, model, horizon, alpha)
        if reversible:
            _assert_balance(matrix, law, states, horizon)
        after = law @ matrix
        if total_variation(after, law) > TOLERANCE:
            worst = int(np.abs(after - law).argmax())
            raise AssertionError(
                f"At horizon {horizon} a step does not leave p^{alpha:g} as it is: the total variation distance after "
                f"one step is {total_variation(after, law):.3g}; most of it is at {states[worst]}, which had "
                f"{law[worst]:.6g} and has {after[worst]:.6g}."
            )
        _assert_comes_near(matrix, law, states, horizon)
    if config is not None and drawn is not None:
        assert_follows(drawn, finite_step_law(kernel, model, config), responses(model, config.max_new_tokens))


def _assert_balance(matrix: np.ndarray, law: np.ndarray, states: Sequence[Response], horizon: int) -> None:
    """Check ``pi(x) K(x, y) = pi(y) K(y, x)``."""
    flow = law[:, None] * matrix
    fault = np.abs(flow - flow.T)
    x, y = (int(i) for i in np.unravel_index(fault.argmax(), fault.shape))
    if fault[x, y] > _ROUNDING:
        raise AssertionError(
            f"At horizon {horizon} there is no detailed balance between {states[x]} and {states[y]}: the flow from "
            f"the first to the second is {flow[x, y]:.6g}, back it is {flow[y, x]:.6g}, which differ by "
            f"{fault[x, y]:.3g}."
        )


def _assert_comes_near(matrix: np.ndarray, law: np.ndarray, states: Sequence[Response], horizon: int) -> None:
    """Check that the chain has the target as its long-run law, wherever it starts."""
    power = matrix
    for _ in range(_SQUARINGS):
        power = power @ power
        power /= power.sum(1, keepdims=True)
    away = 0.5 * np.abs(power - law).sum(1)
    worst = int(away.argmax())
    if away[worst] > TOLERANCE:
        least = int((power[worst] - law).argmin())
        raise AssertionError(
            f"At horizon {horizon} a chain that starts from {states[worst]} does not come to the target: its total "
            f"variation distance stays {away[worst]:.3g}; {states[least]} should have {law[least]:.6g} and has "
            f"{power[worst, least]:.6g}."
        )


def finite_step_law(kernel: Kernel, model: ToyModel, config: SamplerConfig) -> np.ndarray:
    """Return the exact law of a finished chain: start by the proposal, then this kernel's steps, stage by stage.

    What follows what is decided by the sampler's own schedule; ``early_stop`` is not among what is enumerated. The law
    is over ``responses(model, config.max_new_tokens)``, shape (N,).
    """
    final = {r: i for i, r in enumerate(responses(model, config.max_new_tokens))}
    result = np.zeros(len(final))
    matrices: dict[int, np.ndarray] = {}
    horizon = min(config.block_size, config.max_new_tokens)
    # (horizon, steps left, just extended) -> mass on each response there
    waiting = {(horizon, 0, True): extend(model, np.ones(1), 0, horizon, config.temperature)}
    while waiting:
        (horizon, left, extended), law = waiting.popitem()
        states = responses(model, horizon)
        count = len(states)
        move = next_move(
            config,
            length=torch.tensor([len(r) for r in states]),
            has_ended=torch.tensor([model.ends(r) for r in states]),
            horizon=torch.full((count,), horizon),
            steps_left=torch.full((count,), left),
            extended=torch.full((count,), extended),
            limit=config.max_new_tokens,
            num_mh_steps=torch.tensor(config.num_mh_steps),
            final_steps=torch.tensor(config.final_steps),
        )
        if not torch.equal(move.propose.long() + move.extend.long() + move.finished.long(), torch.ones(count).long()):
            raise AssertionError(f"At horizon {horizon} the schedule does not say one thing for every response.")
        for i, response in enumerate(states):
            after = (int(move.horizon[i]), int(move.steps_left[i]), bool(move.extend[i]))
            if move.finished[i]:
                result[final[response]] += law[i]
                continue
            found = responses(model, after[0])
            if move.extend[i]:
                alone = extend(model, np.eye(count)[i] * law[i], horizon, after[0], config.temperature)
            else:
                if after[0] not in matrices:
                    matrices[after[0]] = transition_matrix(kernel, model, after[0], config.alpha)
                alone = law[i] * matrices[after[0]][found.index(response)]
            waiting[after] = waiting.get(after, np.zeros(len(found))) + alone
    return result


def standard_errors(law: np.ndarray, count: int) -> np.ndarray:
    """Return the standard error of each observed share in so many draws, at least that of one draw in ``count``."""
    return np.sqrt(np.maximum(law * (1 - law), 1 / count) / count)


def assert_follows(
    drawn: Iterable[Response] | Mapping[Response, int],
    law: np.ndarray,
    states: Sequence[Response],
    *,
    most: float = 7.0,
) -> None:
    """Check that each response's share of the drawn ones lies within some standard errors of its probability.

    Args:
        drawn: The responses, or how often each came.
        law: Probabilities of ``states``, shape (N,).
        states: All responses that there are.
        most: Standard errors; 7 do not happen by chance in any number of responses that can be enumerated.

    Raises:
        AssertionError: If something came that is no response, or a share is too far off; the sentence names it.
    """
    counts = Counter(drawn)
    number = sum(counts.values())
    if number < 1:
        raise AssertionError("Expected at least one drawn response, got none.")
    for response in counts.keys() - set(states):
        raise AssertionError(f"{response} was drawn {counts[response]} times, but it is no response.")
    observed = np.array([counts[state] for state in states]) / number
    off = np.abs(observed - law) / standard_errors(law, number)
    worst = int(off.argmax())
    if not off[worst] < most:
        raise AssertionError(
            f"{states[worst]} has probability {law[worst]:.6g} and came in {observed[worst]:.6g} of {number:,} draws: "
            f"{off[worst]:.1f} standard errors away, {most:g} are allowed."
        )
