"""Settings of ``dps probe``; light, so that bad ones are refused before anything heavy loads."""

from __future__ import annotations

from dataclasses import dataclass, field

from dps.decide.ladder import Ladder
from dps.errors import InputError

_SETS = ("recorded", "ladder", "extended")


@dataclass(frozen=True)
class ProbeData:
    """Which rows."""

    ladder: list[str] | None = None
    """What is climbed, for instance [plain 2, plain 2, plain 4]; null takes the harvest's own ladder."""
    num_orders: int = 8
    """Orders of each question's responses; the first is the natural one."""
    seed: int = 0
    """Of orders, folds and the bootstrap."""
    feature_set: str = "recorded"
    """What the first rung shows: `recorded`, `ladder` (with entropies and a clock) or `extended`."""


@dataclass(frozen=True)
class ProbeConfig:
    """`dps probe`: measure how well the question and its first rung tell whether the ladder's end will be right."""

    data: ProbeData = field(default_factory=ProbeData)
    folds: int = 5
    """Folds of the questions."""
    output: str | None = None
    """Folder of probe.json."""

    def check(self) -> ProbeConfig:
        """Return self if usable, raise InputError otherwise."""
        if not self.output:
            raise InputError("Expected --output, the folder of probe.json.")
        if self.folds < 2 or self.data.num_orders < 1 or self.data.seed < 0:
            raise InputError(
                "Expected folds of at least 2, data.num_orders of at least 1 and data.seed of at least 0, got "
                f"{self.folds}, {self.data.num_orders} and {self.data.seed}."
            )
        if self.data.feature_set not in _SETS:
            raise InputError(f"Expected data.feature_set {' or '.join(_SETS)}, got {self.data.feature_set!r}.")
        if self.data.ladder is not None and len(Ladder.parse(self.data.ladder).rungs) < 2:
            raise InputError("Expected at least two rungs in data.ladder: after the only one nothing can be decided.")
        return self
