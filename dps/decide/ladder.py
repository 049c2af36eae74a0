"""Ladders: how many responses of which arm a question may get, rung by rung (METHOD section 2). Light.

An *arm* is a way to draw one response (:mod:`dps.sampler.arms`). A ladder is climbed from its first rung; after each
rung somebody may say "enough". A rung is written ``plain 2``, an arm and how many responses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from dps.errors import InputError

POWER = "power"
"""The arm of power sampling as the settings have it: the default, and the only one whose name is in no stream."""
MOST_RESPONSES = 4096
"""The most responses that a ladder may ask for."""
_ARM = r"[a-z][a-z0-9_.-]{0,31}"
ARM_NAME = re.compile(_ARM)
"""What the name of an arm looks like."""
_RUNG = re.compile(rf"\s*({_ARM})\s+(\d+)\s*")

Key = tuple[str, int]
"""Names a response of a question: its arm, and its index among those of the arm, from 0."""


@dataclass(frozen=True, slots=True, order=True)
class Rung:
    """So many responses of one arm."""

    arm: str
    """Name of the arm."""
    count: int
    """How many responses the rung adds, at least 1."""

    @classmethod
    def parse(cls, text: Any) -> Rung:
        """Return the rung that ``plain 2`` means; raises InputError for anything else."""
        found = _RUNG.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise InputError(
                f"Expected a rung such as 'plain 2', an arm and how many responses, got {text!r}: write the number "
                "behind the arm's name."
            )
        if not 1 <= int(found[2]) <= MOST_RESPONSES:
            raise InputError(f"Expected a rung of 1 to {MOST_RESPONSES:,} responses, got {text!r}.")
        return cls(found[1], int(found[2]))

    def __str__(self) -> str:
        """Return the rung as settings have it."""
        return f"{self.arm} {self.count}"


@dataclass(frozen=True, slots=True, repr=False)
class Ladder:
    """Rungs in the order in which they are climbed, at least one.

    Example:
        >>> ladder = Ladder.parse(["lowtemp 2", "lowtemp 2", "power 4"])
        >>> ladder.ks, ladder.maximum, ladder.totals
        ((2, 4, 8), 8, {'lowtemp': 4, 'power': 4})
    """

    rungs: tuple[Rung, ...]
    """In order."""

    @classmethod
    def parse(cls, texts: Sequence[Any]) -> Ladder:
        """Return the ladder that a list of rungs means.

        Raises:
            InputError: If it is empty, a rung is wrong, or there are more responses than anybody can mean.
        """
        if isinstance(texts, str) or not texts:
            raise InputError(
                f"Expected a ladder as a list of rungs, for instance [plain 2, plain 2], got {texts!r}: name at least "
                "one rung, or leave the ladder out."
            )
        ladder = cls(tuple(map(Rung.parse, texts)))
        if ladder.maximum > MOST_RESPONSES:
            raise InputError(f"Expected a ladder of at most {MOST_RESPONSES:,} responses, got {ladder.maximum:,}.")
        return ladder

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of its arms, by first appearance."""
        return tuple(dict.fromkeys(rung.arm for rung in self.rungs))

    @property
    def ks(self) -> tuple[int, ...]:
        """Responses after each rung. They increase, so k says which rung was climbed last."""
        return tuple(accumulate(rung.count for rung in self.rungs))

    @property
    def maximum(self) -> int:
        """Responses at the end."""
        return sum(rung.count for rung in self.rungs)

    @property
    def totals(self) -> dict[str, int]:
        """Responses of each arm at the end, by first appearance."""
        totals: Counter[str] = Counter()
        for rung in self.rungs:
            totals[rung.arm] += rung.count
        return dict(totals)

    def sequence(self, k: int | None = None) -> tuple[Key, ...]:
        """Return the arm and index of the first k responses, in the order in which they are asked for; None for all."""
        seen: Counter[str] = Counter()
        keys: list[Key] = []
        for arm in (rung.arm for rung in self.rungs for _ in range(rung.count)):
            keys.append((arm, seen[arm]))
            seen[arm] += 1
        return tuple(keys[:k])

    def rung_after(self, k: int) -> Rung | None:
        """Return the rung that comes after k responses; None at the end. ValueError if no rung ends at k."""
        index = (0, *self.ks).index(k)
        return self.rungs[index] if index < len(self.rungs) else None

    def texts(self) -> list[str]:
        """Return the rungs as settings, manifests and policy files have them."""
        return [str(rung) for rung in self.rungs]

    def __str__(self) -> str:
        """Return the ladder as a setting."""
        return f"[{', '.join(self.texts())}]"

    def __repr__(self) -> str:
        return f"Ladder.parse({self.texts()})"


def doubling(arm: str, total: int) -> Ladder:
    """Return the ladder that doubles the responses of an arm, 1, 2, 4, ..., up to ``total``: at least 1."""
    return from_ks(arm, sorted({*(1 << i for i in range(total.bit_length())), total}))


def from_ks(arm: str, ks: Iterable[int]) -> Ladder:
    """Return the ladder of one arm that has ``ks`` responses after its rungs; they increase."""
    ends = list(ks)
    return Ladder(tuple(Rung(arm, end - before) for before, end in zip([0, *ends], ends, strict=False)))


@dataclass(frozen=True)
class KRange:
    """The short form of a ladder of power sampling: at which numbers of trajectories a policy may stop."""

    start: int = 2
    """Trajectories that every question gets."""
    step: int = 2
    """Trajectories that are added at a time."""
    maximum: int = 8
    """The most that a question gets."""

    def check(self) -> KRange:
        """Return self if the maximum can be reached, raise InputError otherwise."""
        if self.start < 1 or self.step < 1 or self.maximum < self.start:
            raise InputError(
                f"Expected 1 <= k.start <= k.maximum and k.step >= 1, got start {self.start}, step {self.step}, "
                f"maximum {self.maximum}."
            )
        if (self.maximum - self.start) % self.step:
            below = self.start + (self.maximum - self.start) // self.step * self.step
            raise InputError(
                f"k.maximum {self.maximum} cannot be reached from k.start {self.start} in steps of {self.step}: "
                f"set it to {below} or {below + self.step}."
            )
        if self.maximum > MOST_RESPONSES:
            raise InputError(f"Expected k.maximum of at most {MOST_RESPONSES:,}, got {self.maximum:,}.")
        return self

    @property
    def values(self) -> tuple[int, ...]:
        """Every k of the range, in order."""
        return tuple(range(self.start, self.maximum + 1, self.step))

    def ladder(self) -> Ladder:
        """Return the ladder that it stands for: ``[power 2, power 2, power 2, power 2]`` by default."""
        return from_ks(POWER, self.values)


def ladder_of(k: KRange, rungs: Sequence[str]) -> Ladder:
    """Return the ladder that settings mean: ``rungs`` where there are some, else the range ``k``.

    Raises:
        InputError: If both say how far to go, or one cannot be used.
    """
    if not rungs:
        return k.check().ladder()
    if k != KRange():
        raise InputError("k and ladder both say how far to go: leave one of them out.")
    return Ladder.parse(rungs)
