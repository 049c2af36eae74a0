"""Settings of the power sampler; no heavy imports, so that the command line checks them before any model loads."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from dps.errors import InputError

Schedule = Literal["paper", "final-horizon"]
CutLaw = Literal["uniform", "entropy"]
AcceptRule = Literal["metropolis", "max_swap"]
EarlyStop = Literal["none", "entropy", "perplexity", "self_confidence"]
_WORDS = {
    name: get_args(words)
    for name, words in dict(schedule=Schedule, cut_law=CutLaw, accept_rule=AcceptRule, early_stop=EarlyStop).items()
}
EARLY_STOP_THRESHOLDS = {"entropy": 1.0, "perplexity": 3.0, "self_confidence": 0.8}
"""The published ones; at most for the first two, at least for the third."""
ForwardPath = Literal["auto", "eager", "unchanged", "fused"]
"""How the model is run, see ``forward``; ``auto`` takes the fastest way that model and machine allow."""

SMALLEST_BATCH = 8
"""Fewest rows of a step: a CPU's logits of one row are the same in every batch from here up, not below."""

LENGTH_BITS = 20
"""Bits of a response's length where steps are recorded, see ``rows``."""

LEAST_TEMPERATURE = 1e-30
"""Logits over this are still numbers in single precision; far above it already the likeliest token is always drawn."""

ENTROPY_FLOOR = 0.05
"""Nats added to every entropy by the cut law ``entropy``, so that no position is out of reach."""


def check_rows(rows: int | None, name: str) -> None:
    """Raise InputError, with the setting's name, for fewer rows than an engine can have; None leaves them to memory."""
    if rows is not None and rows < SMALLEST_BATCH:
        raise InputError(
            f"{name} must be at least {SMALLEST_BATCH}, the fewest rows that the sampler runs, got {rows}: "
            f"set {SMALLEST_BATCH}; rows without a chain cost little."
        )


@dataclass(frozen=True)
class SamplerConfig:
    """Power sampling by block-wise Metropolis-Hastings (METHOD section 1)."""

    alpha: float = 4.0
    """Sharpening exponent of the target p(x|q)^alpha; at least 1."""
    proposal_temperature: float | None = None
    """Temperature of the proposal; 1/alpha if not set."""
    block_size: int = 192
    """Tokens by which the horizon grows per stage; divides max_new_tokens."""
    max_new_tokens: int = 3072
    """T_max: the longest response, EOS included."""
    num_mh_steps: int = 10
    """Metropolis-Hastings steps per stage; 0 is plain sampling at the proposal temperature."""
    schedule: Schedule = "paper"
    """`paper` stops at the first stage that ends in EOS; `final-horizon` then takes num_final_steps at T_max."""
    num_final_steps: int | None = None
    """Steps at T_max of the schedule `final-horizon`; num_mh_steps if not set."""
    cut_law: CutLaw = "uniform"
    """Where a step cuts: `uniform` over the response, or in proportion to the base model's `entropy` there."""
    accept_rule: AcceptRule = "metropolis"
    """`metropolis` is exact; `max_swap` accepts only what is more likely: the limit of infinite alpha, a search."""
    reject_early: bool = True
    """Stop a proposal once its rejection is certain: the same chains for fewer tokens. It does nothing for `metropolis`
    with a proposal temperature outside 1/alpha to 1."""
    early_stop: EarlyStop = "none"
    """End a chain after a stage once the mean of this metric over its response passes the threshold. A baseline: what
    comes out is no draw from p^alpha."""
    early_stop_threshold: float | None = None
    """At most this `entropy` (nats) or `perplexity`, at least this `self_confidence`; the published 1.0, 3.0 and 0.8
    where not set."""
    early_stop_min_tokens: int = 64
    """Fewest tokens of a response that `early_stop` may end."""

    @property
    def early_stop_threshold_in_force(self) -> float:
        """The threshold of ``early_stop``."""
        given = self.early_stop_threshold
        return EARLY_STOP_THRESHOLDS[self.early_stop] if given is None else given

    @property
    def temperature(self) -> float:
        """The proposal temperature in force."""
        return 1.0 / self.alpha if self.proposal_temperature is None else self.proposal_temperature

    @property
    def final_steps(self) -> int:
        """Steps taken at the final horizon: 0 under the schedule ``paper``."""
        if self.schedule == "paper":
            return 0
        return self.num_mh_steps if self.num_final_steps is None else self.num_final_steps

    @property
    def max_mh_steps(self) -> int:
        """The most Metropolis-Hastings steps that a chain can take."""
        return self.max_new_tokens // self.block_size * self.num_mh_steps + self.final_steps

    def check(self) -> SamplerConfig:
        """Return self; raise InputError with one sentence for settings that cannot be meant."""
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                known = f"{', '.join(words[:-1])} or {words[-1]}"
                raise InputError(f"{name} must be {known}, got {getattr(self, name)!r}.")
        if not 1 <= self.alpha < math.inf:
            raise InputError(f"alpha must be at least 1 and finite (the target is p^alpha), got {self.alpha:g}.")
        if not LEAST_TEMPERATURE <= self.temperature < math.inf:
            raise InputError(
                f"proposal_temperature must be at least {LEAST_TEMPERATURE:g} and finite, 1/alpha where it is not set, "
                f"got {self.temperature:g}: raise it, or lower alpha."
            )
        if self.block_size < 1 or self.max_new_tokens < 1:
            raise InputError(
                f"block_size and max_new_tokens must be at least 1, got {self.block_size} and {self.max_new_tokens}."
            )
        if self.max_new_tokens >> LENGTH_BITS:
            raise InputError(f"max_new_tokens must be below {1 << LENGTH_BITS}, got {self.max_new_tokens}.")
        if self.max_new_tokens % self.block_size:
            raise InputError(
                f"block_size must divide max_new_tokens, got {self.block_size} and {self.max_new_tokens}: "
                f"set max_new_tokens to a multiple of {self.block_size}."
            )
        if self.num_mh_steps < 0 or self.final_steps < 0:
            raise InputError(
                "num_mh_steps and num_final_steps must not be negative, "
                f"got {self.num_mh_steps} and {self.final_steps}."
            )
        if self.num_final_steps is not None and self.schedule == "paper":
            raise InputError(
                "num_final_steps is read only by schedule: final-horizon; remove it or change the schedule."
            )
        if self.early_stop == "none" and self.early_stop_threshold is not None:
            raise InputError("early_stop_threshold is read only with early_stop; remove it or name the metric there.")
        if self.early_stop_min_tokens < 1:
            raise InputError(f"early_stop_min_tokens must be at least 1, got {self.early_stop_min_tokens}.")
        return self

    def shares_rows(self, other: SamplerConfig) -> bool:
        """Return whether chains of both settings can run in one batch: whether they differ in what each row has."""
        of_row = dict(alpha=1.0, proposal_temperature=None, num_mh_steps=0, num_final_steps=None, reject_early=True)
        return replace(self, schedule="paper", **of_row) == replace(other, schedule="paper", **of_row)

    def plain(self, temperature: float) -> SamplerConfig:
        """Return the settings of plain sampling at that temperature: the same code, lengths and laws, no steps."""
        return SamplerConfig(
            alpha=1.0,
            proposal_temperature=temperature,
            block_size=self.block_size,
            max_new_tokens=self.max_new_tokens,
            num_mh_steps=0,
            cut_law=self.cut_law,
            accept_rule=self.accept_rule,
        )


def check_room(prompt_length: int, config: SamplerConfig, max_positions: int, limit: int | None = None) -> None:
    """Raise InputError for a prompt that leaves no room for a response within the model's positions.

    ``limit`` is the most tokens of this response where they are fewer than ``max_new_tokens``.
    """
    limit = config.max_new_tokens if limit is None else limit
    if not 1 <= limit <= config.max_new_tokens:
        raise InputError(f"Expected a response of 1 to {config.max_new_tokens} tokens, max_new_tokens, got {limit}.")
    if prompt_length < 1:
        raise InputError("The prompt has no tokens; a model needs at least one to start from.")
    if prompt_length + limit > max_positions:
        raise InputError(
            f"The prompt has {prompt_length} tokens and sampler.max_new_tokens is {limit}, together "
            f"more than the model's {max_positions} positions: shorten the prompt or lower max_new_tokens."
        )
