"""Settings of the power sampler; no heavy imports, so that the command line checks them before any model loads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dps.errors import InputError

Schedule = Literal["paper", "final-horizon"]
CutLaw = Literal["uniform", "entropy"]
AcceptRule = Literal["metropolis", "max_swap"]
EarlyStop = Literal["none", "entropy", "perplexity", "self_confidence"]
EARLY_STOP_THRESHOLDS = {"entropy": 1.0, "perplexity": 3.0, "self_confidence": 0.8}
"""The published ones; at most for the first two, at least for the third."""
ForwardPath = Literal["auto", "eager", "unchanged", "compiled", "fused"]
"""How the model is run, see ``forward``; ``auto`` takes the fastest way that model and machine allow."""

SMALLEST_BATCH = 8
"""Fewest rows of a step: a CPU's logits of one row are the same in every batch from here up, not below."""

ENTROPY_FLOOR = 0.05
"""Nats added to every entropy by the cut law ``entropy``, so that no position is out of reach."""


def check_rows(rows: int | None, name: str) -> None:
    """Refuse fewer rows than an engine can have.

    Args:
        rows: Chains that run at a time; None leaves the number to the free memory.
        name: Of the setting, for the sentence.

    Raises:
        InputError: If there are fewer than :data:`SMALLEST_BATCH`.
    """
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
    num_tries: int = 1
    """Proposals per Metropolis-Hastings step; more than 1 is multiple-try Metropolis."""
    accept_rule: AcceptRule = "metropolis"
    """`metropolis` is exact; `max_swap` accepts only what is more likely: the limit of infinite alpha, a search."""
    anneal_blocks: int = 1
    """Stage s has the exponent 1 + (alpha - 1) min(1, s / anneal_blocks); 1 is alpha from the first block on."""
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
        return self.num_stages * self.num_mh_steps + self.final_steps

    @property
    def num_stages(self) -> int:
        """The stages of a chain that is not ended earlier."""
        return math.ceil(self.max_new_tokens / self.block_size)

    def check_snapshot_blocks(self, blocks: Sequence[int]) -> None:
        """Refuse blocks after which no chain goes on.

        Args:
            blocks: Numbers of the stages after which a chain that goes on is looked at, from 1.

        Raises:
            InputError: If one is no stage before the last, or they are not in increasing order.
        """
        last = self.num_stages - 1
        if list(blocks) != sorted(set(blocks)) or not all(1 <= block <= last for block in blocks):
            possible = f"1 to {last}" if last else "none (there is one block only)"
            raise InputError(
                f"Expected blocks after which a chain may go on, in increasing order, got {list(blocks)}: with "
                f"block_size {self.block_size} and max_new_tokens {self.max_new_tokens} these are {possible}."
            )

    def check(self) -> SamplerConfig:
        """Return self if the settings can be used.

        Raises:
            InputError: With one sentence that names the setting.
        """
        if not self.alpha >= 1:
            raise InputError(f"alpha must be at least 1 (the target is p^alpha), got {self.alpha:g}.")
        if not self.temperature > 0:
            raise InputError(f"proposal_temperature must be above 0, got {self.temperature:g}.")
        if self.block_size < 1 or self.max_new_tokens < 1:
            raise InputError(
                f"block_size and max_new_tokens must be at least 1, got {self.block_size} and {self.max_new_tokens}."
            )
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
        if self.num_tries < 1 or self.anneal_blocks < 1:
            raise InputError(
                f"num_tries and anneal_blocks must be at least 1, got {self.num_tries} and {self.anneal_blocks}."
            )
        if self.anneal_blocks * self.block_size > self.max_new_tokens:
            raise InputError(
                f"anneal_blocks must be at most {self.max_new_tokens // self.block_size}, the stages that "
                f"max_new_tokens and block_size make, got {self.anneal_blocks}: the exponent would never reach alpha."
            )
        if self.accept_rule == "max_swap" and (self.num_tries > 1 or self.anneal_blocks > 1):
            raise InputError(
                "accept_rule: max_swap compares two responses by their log p alone: "
                "leave num_tries and anneal_blocks at 1."
            )
        if self.early_stop not in ("none", *EARLY_STOP_THRESHOLDS):
            raise InputError(f"early_stop must be none, {', '.join(EARLY_STOP_THRESHOLDS)}, got {self.early_stop!r}.")
        if self.early_stop == "none" and self.early_stop_threshold is not None:
            raise InputError("early_stop_threshold is read only with early_stop; remove it or name the metric there.")
        if self.early_stop_min_tokens < 1:
            raise InputError(f"early_stop_min_tokens must be at least 1, got {self.early_stop_min_tokens}.")
        return self

    def plain(self, temperature: float) -> SamplerConfig:
        """Return the settings of plain sampling at that temperature, for responses of the same length.

        Plain sampling is the same code with no Metropolis-Hastings steps; its alpha does not enter.
        """
        return SamplerConfig(
            alpha=1.0,
            proposal_temperature=temperature,
            block_size=self.block_size,
            max_new_tokens=self.max_new_tokens,
            num_mh_steps=0,
        )


def check_room(prompt_length: int, config: SamplerConfig, max_positions: int) -> None:
    """Refuse a prompt that leaves no room for a response.

    Raises:
        InputError: If prompt and max_new_tokens together do not fit.
    """
    if prompt_length < 1:
        raise InputError("The prompt has no tokens; a model needs at least one to start from.")
    if prompt_length + config.max_new_tokens > max_positions:
        raise InputError(
            f"The prompt has {prompt_length} tokens and sampler.max_new_tokens is {config.max_new_tokens}, together "
            f"more than the model's {max_positions} positions: shorten the prompt or lower max_new_tokens."
        )
