"""Settings of the power sampler; no heavy imports, so that the command line checks them before any model loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dps.errors import InputError

Schedule = Literal["paper", "final-horizon"]


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
