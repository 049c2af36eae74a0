"""Arms: the ways to draw one response (METHOD section 2), by name. Light.

An arm is power sampling with its settings, or plain sampling at a temperature: the same code without steps. What an arm
does not say is the run's ``sampler``. Two arms may have the same settings; they are independent draws all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace

from dps.decide.ladder import ARM_NAME, POWER, Ladder
from dps.errors import InputError
from dps.sampler.settings import SamplerConfig


@dataclass(frozen=True)
class Arm:
    """How one response is drawn: plain sampling has a temperature, power sampling what `sampler` and the rest say."""

    temperature: float | None = None
    """Plain sampling at this temperature; nothing else may be set then."""
    alpha: float | None = None
    """Power sampling with this exponent instead of the sampler's."""
    proposal_temperature: float | None = None
    """Power sampling with this proposal temperature instead of the sampler's."""
    num_mh_steps: int | None = None
    """Power sampling with so many steps per stage instead of the sampler's."""

    def settings(self) -> dict[str, float]:
        """Return what is set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def sampler(self, base: SamplerConfig, name: str) -> SamplerConfig:
        """Return the settings of the sampler that draws a response of this arm, called ``name``.

        Raises:
            InputError: If the settings contradict one another or cannot be meant.
        """
        changes = self.settings()
        if self.temperature is None:
            try:
                return replace(base, **changes).check()  # type: ignore[arg-type]
            except InputError as error:
                raise InputError(f"arms.{name}: {error}" if changes else str(error)) from None
        del changes["temperature"]
        if changes:
            other, value = next(iter(changes.items()))
            raise InputError(
                f"arms.{name} has temperature {self.temperature:g} and {other} {value:g}: plain sampling has no target "
                "and takes no steps; leave one of them out."
            )
        if not 0 < self.temperature < math.inf:
            raise InputError(f"arms.{name}.temperature must be above 0 and finite, got {self.temperature:g}.")
        return base.plain(self.temperature).check()


DEFAULT_ARMS: dict[str, Arm] = {
    POWER: Arm(),
    "plain": Arm(temperature=1.0),
    "warm": Arm(temperature=0.6),
    "lowtemp": Arm(temperature=0.25),
}
"""The arms that need no setting."""


def arms_of(given: Mapping[str, Arm], ladders: Iterable[Ladder], base: SamplerConfig) -> dict[str, SamplerConfig]:
    """Return the sampler of each arm that the ladders name, in order of first appearance.

    Args:
        given: Arms that are set; they stand for the default ones of their names.
        ladders: What is climbed.
        base: The run's sampler.

    Raises:
        InputError: If a ladder names no arm, an arm that is set is not used, or its settings cannot be meant.
    """
    known, ladders = DEFAULT_ARMS | dict(given), list(ladders)
    used = list(dict.fromkeys(arm for ladder in ladders for arm in ladder.arms))
    for name in given:
        if not ARM_NAME.fullmatch(name):
            raise InputError(
                f"Expected an arm's name of small letters, digits and . _ -, beginning with a letter, got {name!r}: "
                "choose another."
            )
        if name not in used:
            raise InputError(f"arms.{name} is set, but no rung takes it: add it to ladder, or leave it out.")
    for name in used:
        if name not in known:
            raise InputError(
                f"The ladder names the arm {name}, but the arms are {', '.join(known)}: set arms.{name}, or choose one "
                "of these."
            )
    samplers = {name: known[name].sampler(base, name) for name in used}
    for first, *others in (ladder.arms for ladder in ladders):
        if alone := [name for name in others if not samplers[name].shares_rows(samplers[first])]:
            raise InputError(
                f"The arms {first} and {alone[0]} of one ladder differ in sampler.early_stop, which plain sampling "
                "does not have: leave it out, or sample them apart."
            )
    return samplers
