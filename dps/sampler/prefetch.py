"""Metropolis-Hastings steps ahead of time, on rows that would idle: the same chains, sooner.

The steps of a chain follow one another, but a step that leaves the response as it is (rejected, or the same response
proposed again) changes nothing of what follows: the next cut and all later random numbers are known before the step is
decided. So an idle row runs *ahead*: it copies a chain whose step is under way, counts that step as one that leaves the
response as it is, and goes on from there. When the step is decided, the copy either becomes the chain, further on than
the row that it came from, or is given up. Copies may be copied, so several steps of a chain can be under way at a time.

Source:
    Brockwell (2006), "Parallel Markov chain Monte Carlo simulation by pre-fetching", for the one branch that needs no
    token of the step before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dps.sampler.rows import ChainRequest

FLAT_ROWS = 400
"""A step over so many rows takes twice as long as a step over one: 450 with 1.5B parameters, 350 with 7B."""
_MEMORY = 0.98
"""What the share of steps that left the response as it was weighs at the next step."""


@dataclass(slots=True, eq=False)
class Seat:
    """What the host knows of a row that has a chain, or runs ahead of one."""

    request: ChainRequest
    admitted: float
    prefill_s: float
    row: int
    behind: Seat | None = None
    """The seat that this one is a copy of, until the step taken for done is decided; None for the chain's own."""
    step: int = 0
    """Number of that step."""
    ahead: Seat | None = None
    """The copy of this one."""

    def line(self) -> Iterator[Seat]:
        """Yield this seat and those ahead of it, one after the other."""
        seat: Seat | None = self
        while seat is not None:
            yield seat
            seat = seat.ahead

    def copy(self, row: int, step: int) -> Seat:
        """Return a seat on another row that runs ahead of this one, from that step on."""
        self.ahead = Seat(self.request, self.admitted, self.prefill_s, row, behind=self, step=step)
        return self.ahead

    def cut(self) -> list[Seat]:
        """Return the seats ahead of this one, which leave."""
        gone = list(self.line())[1:]
        self.ahead = None
        return gone

    def give_way(self) -> None:
        """Let the seat ahead stand where this one stood in its line."""
        following, self.ahead = self.ahead, None
        following.behind, following.step = self.behind, self.step
        if self.behind is not None:
            self.behind.ahead = following


class Prefetcher:
    """Says how many rows are worth running for some chains, from how often a step leaves the response as it is."""

    def __init__(self) -> None:
        """Begin with one step in two."""
        self.unchanged = 0.5

    def note(self, changed: np.ndarray) -> None:
        """Take in whether each of some steps changed its response, bool."""
        for one in changed:
            self.unchanged = _MEMORY * self.unchanged + (1 - _MEMORY) * (not one)

    def best_rows(self, chains: int, sizes: Sequence[int]) -> int:
        """Return which of the batch ``sizes`` brings that many chains on fastest; the first one holds them all.

        With ``d`` rows a chain and a share ``q`` of steps without change, a chain comes on by ``1 + q + .. + q^(d-1)``
        steps in the time of one, and that time grows with the rows.

        >>> prefetcher = Prefetcher()
        >>> [prefetcher.best_rows(n, [s for s in (8, 32, 128, 256, 512) if s >= n]) for n in (2, 8, 40, 300)]
        [8, 32, 128, 512]
        """

        def speed(size: int) -> float:
            whole, part = divmod(size / chains, 1)
            power = self.unchanged**whole
            return ((1 - power) / (1 - self.unchanged) + part * power) / (1 + size / FLAT_ROWS)

        return max(sizes, key=speed)
