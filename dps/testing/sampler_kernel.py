"""The sampler's own Metropolis-Hastings step as an enumerated transition matrix, made of the functions that it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dps.sampler.law import (
    Suffix,
    base_logprobs,
    cut_logprob,
    entropies,
    log_accept_ratio,
    proposal_logprobs,
    weighted_cut_logprob,
)
from dps.sampler.settings import ENTROPY_FLOOR, AcceptRule, CutLaw, SamplerConfig
from dps.testing.toy import Response, ToyModel, branches, responses

_BEFORE, _AFTER = 3, 2
"""Positions of prompt and of nothing around a response, as rows have them."""


@dataclass(frozen=True)
class SamplerKernel:
    """One step by the functions of ``dps.sampler.law``.

    To check a change, derive a class and override the method that you change: the rest stays the sampler's own.
    """

    temperature: float | None = None
    """Of the proposal; 1/alpha if not set."""
    cuts: CutLaw = "uniform"
    """Where a step cuts."""
    accept_rule: AcceptRule = "metropolis"
    """``metropolis`` or ``max_swap``."""

    @classmethod
    def of(cls, config: SamplerConfig) -> SamplerKernel:
        """Return the step of these settings."""
        return cls(config.temperature, config.cut_law, config.accept_rule)

    # -- the parts ---------------------------------------------------------------------------------------------------

    def proposal(self, logits: Tensor, temperature: float) -> Tensor:
        """Return log g of the next token, shape (V,), from the model's logits."""
        return proposal_logprobs(logits, temperature)

    def cut(self, base: Mapping[Response, Tensor], found: Sequence[Response], m: int) -> tuple[Tensor, Tensor]:
        """Return what the cut m contributes for each of some responses that share their first m tokens.

        Args:
            base: Log p of the next token for every context.
            found: The responses, all longer than m.
            m: The cut.

        Returns:
            The part of ``log w(m | x)`` that enters the acceptance ratio, and ``w(m | x)``, both of shape (B,).
        """
        if self.cuts == "entropy":
            weights = torch.zeros((len(found), _BEFORE + max(map(len, found)) + _AFTER), dtype=torch.float64)
            for line, response in enumerate(found):
                for j in range(len(response)):
                    weights[line, _BEFORE + j] = entropies(base[response[:j]]) + ENTROPY_FLOOR
            log_cut = weighted_cut_logprob(weights)
            return log_cut, weights[:, _BEFORE + m] * log_cut.exp()
        log_cut = cut_logprob(torch.tensor([len(r) for r in found]))
        return log_cut, log_cut.exp()

    def spans(self, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many tokens of y's and of x's suffix enter the ratio, each of shape (B, B), entry (x, y).

        Args:
            sizes: Lengths of the suffixes, shape (B,).
        """
        count = len(sizes)
        return sizes[None, :].expand(count, -1), sizes[:, None].expand(-1, count)

    def log_ratio(self, new: Suffix, old: Suffix, alpha: float) -> Tensor:
        """Return the log of the ratio of moving from x to y, entry (x, y): :func:`dps.sampler.law.log_accept_ratio`."""
        return log_accept_ratio(new, old, alpha, self.accept_rule)

    # -- their assembly ----------------------------------------------------------------------------------------------

    def matrix(self, model: ToyModel, horizon: int, alpha: float) -> np.ndarray:
        """Return the transition matrix, shape (N, N), in the order of ``responses(model, horizon)``."""
        temperature = 1 / alpha if self.temperature is None else self.temperature
        states = responses(model, horizon)
        logits = {c: torch.as_tensor(np.asarray(v), dtype=torch.float64) for c, v in model.logits.items()}
        base = {c: base_logprobs(v) for c, v in logits.items()}
        proposal = {c: self.proposal(v, temperature) for c, v in logits.items()}
        matrix = torch.zeros((len(states), len(states)), dtype=torch.float64)
        for m, numbers in branches(states, horizon):
            group = [states[i] for i in numbers]
            log_cut, cut_probability = self.cut(base, group, m)
            of_new, of_old = self.spans(torch.tensor([len(r) - m for r in group]))
            sums, proposal_sums = _partial_sums(base, group, m), _partial_sums(proposal, group, m)
            new = Suffix(*(table.gather(1, of_new.T).T for table in (sums, proposal_sums)), log_cut[None, :])
            old = Suffix(*(table.gather(1, of_old) for table in (sums, proposal_sums)), log_cut[:, None])
            flow = proposal_sums[:, -1].exp()
            move = flow * self.log_ratio(new, old, alpha).exp().clamp(max=1) * cut_probability[:, None]
            members = torch.from_numpy(numbers)
            matrix[members[:, None], members] += move
            matrix[members, members] += cut_probability - move.sum(1)
        return matrix.numpy()


def _partial_sums(table: Mapping[Response, Tensor], found: Sequence[Response], m: int) -> Tensor:
    """Entry (i, n): log-probability of the first n tokens of response i's suffix from m, or of all if it has fewer."""
    sums = torch.zeros((len(found), 1 + max(map(len, found)) - m), dtype=torch.float64)
    for line, response in enumerate(found):
        for j in range(m, len(response)):
            sums[line, j - m + 1 :] += table[response[:j]][response[j]]
    return sums
