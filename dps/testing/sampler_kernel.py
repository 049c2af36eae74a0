"""The sampler's own Metropolis-Hastings step as an enumerated transition matrix, made of the functions that it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dps.sampler.accept import log_accept_ratio, more_likely
from dps.sampler.cut import cut_logprob, weighted_cut_logprob
from dps.sampler.proposal import entropies, proposal_logprobs
from dps.sampler.settings import ENTROPY_FLOOR, AcceptRule, CutLaw, SamplerConfig
from dps.sampler.target import base_logprobs, power_logprob
from dps.sampler.tries import consider_try, replace_logprob, tries_log_accept_ratio
from dps.testing.toy import Response, ToyModel, branches, responses

_BEFORE, _AFTER = 3, 2
"""Positions of prompt and of nothing around a response, as rows have them."""


@dataclass(frozen=True)
class SamplerKernel:
    """One step by ``dps.sampler``'s target, proposal, cut law, acceptance ratio and choice of a try.

    To check a change, derive a class and override the method that you change: the rest stays the sampler's own.
    """

    temperature: float | None = None
    """Of the proposal; 1/alpha if not set."""
    cuts: CutLaw = "uniform"
    """Where a step cuts."""
    num_tries: int = 1
    """Proposals of a step."""
    accept_rule: AcceptRule = "metropolis"
    """``metropolis`` or ``max_swap``."""

    @classmethod
    def of(cls, config: SamplerConfig) -> SamplerKernel:
        """Return the step of these settings."""
        return cls(config.temperature, config.cut_law, config.num_tries, config.accept_rule)

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

    def log_ratio(
        self,
        *,
        new_target: Tensor,
        old_target: Tensor,
        new_proposal: Tensor,
        old_proposal: Tensor,
        new_cut: Tensor,
        old_cut: Tensor,
    ) -> Tensor:
        """Return the log of the Metropolis-Hastings ratio; see :func:`dps.sampler.accept.log_accept_ratio`."""
        return log_accept_ratio(
            new_target=new_target,
            old_target=old_target,
            new_proposal=new_proposal,
            old_proposal=old_proposal,
            new_cut=new_cut,
            old_cut=old_cut,
        )

    def log_ratio_of_tries(self, others: Tensor, candidate: Tensor, old: Tensor) -> Tensor:
        """Return the log of the ratio of several tries; see :func:`dps.sampler.tries.tries_log_accept_ratio`."""
        return tries_log_accept_ratio(others, candidate, old)

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
            found = [states[i] for i in numbers]
            log_cut, cut_probability = self.cut(base, found, m)
            of_new, of_old = self.spans(torch.tensor([len(r) - m for r in found]))
            sums, proposal_sums = _partial_sums(base, found, m), _partial_sums(proposal, found, m)
            flow = proposal_sums[:, -1].exp()
            if self.num_tries > 1:
                omega = power_logprob(sums[:, -1], alpha) - proposal_sums[:, -1] + log_cut
                move = self._move_by_tries(omega, flow)
            else:
                new_base, new_proposal = (table.gather(1, of_new.T).T for table in (sums, proposal_sums))
                old_base, old_proposal = (table.gather(1, of_old) for table in (sums, proposal_sums))
                if self.accept_rule == "max_swap":
                    move = flow * more_likely(new_base, old_base)
                else:
                    log_ratio = self.log_ratio(
                        new_target=power_logprob(new_base, alpha),
                        old_target=power_logprob(old_base, alpha),
                        new_proposal=new_proposal,
                        old_proposal=old_proposal,
                        new_cut=log_cut[None, :],
                        old_cut=log_cut[:, None],
                    )
                    move = flow * log_ratio.exp().clamp(max=1)
            move = move * cut_probability[:, None]
            members = torch.from_numpy(numbers)
            matrix[members[:, None], members] += move
            matrix[members, members] += cut_probability - move.sum(1)
        return matrix.numpy()

    def _move_by_tries(self, omega: Tensor, flow: Tensor) -> Tensor:
        """Return the probability of moving from x to y given the cut, over all tuples of tries and choices among them.

        Args:
            omega: Log-weights of the responses as tries, shape (B,).
            flow: Probabilities of proposing them, shape (B,).
        """
        tuples = torch.cartesian_prod(*[torch.arange(len(omega))] * self.num_tries)
        probability = flow[tuples].prod(1)
        chosen = torch.full((len(tuples),), -1)
        others = torch.full((len(tuples),), -torch.inf, dtype=torch.float64)
        candidate = others.clone()
        for t in range(self.num_tries):
            tried = omega[tuples[:, t]]
            share = replace_logprob(tried, others, candidate).exp()
            ends = []
            for number, weight in ((1e-300, share), (1 - 2.0**-53, 1 - share)):
                replace, *sums = consider_try(torch.full_like(share, number), tried, others, candidate)
                ends.append((probability * weight, torch.where(replace, tuples[:, t], chosen), *sums))
            tuples = torch.cat((tuples, tuples))
            probability, chosen, others, candidate = (torch.cat(pair) for pair in zip(*ends, strict=True))
            kept = probability > 0
            tuples, probability, chosen = tuples[kept], probability[kept], chosen[kept]
            others, candidate = others[kept], candidate[kept]
        log_ratio = self.log_ratio_of_tries(others, candidate, omega[:, None])
        accepted = probability * log_ratio.expand(len(omega), -1).exp().clamp(max=1)
        return torch.zeros((len(omega), len(omega)), dtype=torch.float64).index_add(1, chosen, accepted)


def _partial_sums(table: Mapping[Response, Tensor], found: Sequence[Response], m: int) -> Tensor:
    """Entry (i, n): log-probability of the first n tokens of response i's suffix from m, or of all if it has fewer."""
    sums = torch.zeros((len(found), 1 + max(map(len, found)) - m), dtype=torch.float64)
    for line, response in enumerate(found):
        for j in range(m, len(response)):
            sums[line, j - m + 1 :] += table[response[:j]][response[j]]
    return sums
