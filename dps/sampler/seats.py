"""The host's side of the rows: which chain has each, and which rows run ahead of one (see ``prefetch``)."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from dps.sampler.cache import RowCache
from dps.sampler.prefetch import Prefetcher, Seat
from dps.sampler.rows import Rows, RowStatus
from dps.sampler.settings import SMALLEST_BATCH


class Seats:
    """The seats of R rows, None where a row has no chain, and numbers of each row: float64, shape (R,)."""

    def __init__(self, rows: Rows, cache: RowCache, count: int, prefetcher: Prefetcher | None) -> None:
        """Begin with R = ``count`` rows that are free; nothing runs ahead where ``prefetcher`` is None."""
        self._rows, self._cache, self._prefetcher = rows, cache, prefetcher
        self._by_row: list[Seat | None] = [None] * count
        self._sizes = sorted({batch_size(used, count, recorded=True) for used in range(1, count + 1)})
        self._of_row = np.zeros((7, count))
        # Positions beyond which a row cannot stand before it generates more; Metropolis-Hastings steps at the last
        # look, and whether one was under way then; the chain's decoding seconds; number of its prompt, and the
        # prompt's positions that have been read; tokens since the row ran ahead of another.
        self.reach, self.proposed, self.proposing, self.decode_s, *others = self._of_row
        self.prompt, self.num_read, self.ahead_tokens = others

    def __iter__(self) -> Iterator[Seat | None]:
        return iter(self._by_row)

    def __getitem__(self, row: int) -> Seat | None:
        return self._by_row[row]

    def free_rows(self, wanted: int) -> list[int]:
        """Return up to so many free rows, the lowest first; rows that run ahead are given up if it takes them."""
        if self._by_row.count(None) < wanted:
            self.give_up([gone for chain in self.chains() for gone in chain.cut()])
        return self._free(len(self._by_row))[:wanted]

    def _free(self, size: int) -> list[int]:
        """Return the free ones of the first ``size`` rows."""
        return [row for row, seat in enumerate(self._by_row[:size]) if seat is None]

    def sit(self, seat: Seat, *, prompt: int) -> None:
        """Give a free row to a chain, whose prompt has that number."""
        read = len(seat.request.prompt) - 1
        self._by_row[seat.row] = seat
        self._of_row[:, seat.row] = read, 0, False, 0.0, prompt, read, 0

    def note(self, status: RowStatus, seconds: float, *, recorded: bool) -> int:
        """Take in a look at the rows, and share the time since the one before by the steps that each was active.

        Returns:
            Tokens of rows that run ahead.
        """
        useful = status.useful_steps
        self.ahead_tokens += useful
        self.decode_s += seconds / max(useful.sum(), 1) * useful
        self.proposed[:], self.proposing[:] = status.proposed, status.proposing
        # An eager window is one step, so where a row stands is enough; a recorded one settles on its way.
        self.reach[:] = status.reach if recorded else status.position
        return int(useful[[seat.row for seat in self._by_row if seat and seat.behind]].sum())

    def compact(self, *, recorded: bool) -> int:
        """Return how many rows the next steps run, moving chains into lower rows where that makes them fewer."""
        used = [row for row, seat in enumerate(self._by_row) if seat is not None]
        wanted = batch_size(len(used), len(self._by_row), recorded=recorded)
        sources = [row for row in used if row >= wanted]
        if not sources:
            return wanted
        targets = self._free(wanted)[: len(sources)]
        self._copy(sources, targets)
        self._rows.free(sources)
        for source, target in zip(sources, targets, strict=True):
            self._by_row[target] = self.leave(source)
            self._by_row[target].row = target
        return wanted

    def _copy(self, sources: list[int], targets: list[int]) -> None:
        """Copy whole rows."""
        self._cache.move_rows(sources, targets)
        self._rows.copy(sources, targets)
        self._of_row[:, targets] = self._of_row[:, sources]

    def chains(self) -> list[Seat]:
        """Return the seats of chains, without those that run ahead of one."""
        return [seat for seat in self._by_row if seat is not None and seat.behind is None]

    def run_ahead(self, *, recorded: bool) -> None:
        """Let rows that would idle run ahead of chains; fewer of them where fewer rows are worth running."""
        chains = self.chains()
        lines = [list(chain.line()) for chain in chains]
        size = batch_size(len(chains), len(self._by_row), recorded=recorded)
        if recorded:
            size = self._prefetcher.best_rows(len(chains), [each for each in self._sizes if each >= size])
        while sum(map(len, lines)) > size:
            longest = max(lines, key=len)
            self.give_up(longest[-2].cut())
            longest.pop()
        # The shortest lines first: what is furthest ahead is least likely to be needed.
        ready = [line[-1] for line in sorted(lines, key=len) if self.proposing[line[-1].row]]
        # Rows beyond the size move into it before the next steps, and need its free rows.
        free = self._free(size)[: size - sum(map(len, lines))]
        pairs = list(zip(ready, free, strict=False))
        if not pairs:
            return
        self._copy([seat.row for seat, _ in pairs], [row for _, row in pairs])
        self._rows.run_ahead([row for _, row in pairs])
        for seat, row in pairs:
            self._by_row[row] = seat.copy(row, int(self.proposed[seat.row]))
            self.decode_s[row] = self.proposing[row] = self.ahead_tokens[row] = 0

    def decide_ahead(self) -> int:
        """Look which rows ran ahead rightly: these become the chains, the others are given up.

        Returns:
            Tokens of rows that ran ahead which chains turn out to have needed, less those that their rows made again.
        """
        decided = [seat for seat in self._by_row if seat and seat.behind and self.proposed[seat.behind.row] > seat.step]
        if not decided:
            return 0
        changed = self._rows.changed([seat.behind.row for seat in decided], [seat.step for seat in decided])
        self._prefetcher.note(changed)
        wrong, right = ({seat for seat, one in zip(decided, changed, strict=True) if one == kind} for kind in (1, 0))
        for chain in self.chains():
            before = next((seat for seat in chain.line() if seat.ahead in wrong), None)
            if before is not None:
                self.give_up(before.cut())
        tokens = 0
        while pairs := [pair for chain in self.chains() if (pair := _first(chain, right)) is not None]:
            tokens += self._adopt(pairs)
            right -= {ahead for _, ahead in pairs}
        return tokens

    def _adopt(self, pairs: list[tuple[Seat, Seat]]) -> int:
        """Let seats that ran ahead rightly, the second of each pair, take the places of those that they came from.

        Returns tokens as :meth:`decide_ahead`.
        """
        sources, targets = [seat.row for seat, _ in pairs], [ahead.row for _, ahead in pairs]
        again = self._rows.adopt(sources, targets, [ahead.step for _, ahead in pairs])
        self._rows.free(sources)
        self.decode_s[targets] += self.decode_s[sources]
        needed = self.ahead_tokens[targets] - again
        self.ahead_tokens[targets] = needed + self.ahead_tokens[sources]
        chains = [seat.behind is None for seat, _ in pairs]
        for seat, _ in pairs:
            seat.give_way()
            self.leave(seat.row)
        return int(needed[chains].sum())

    def give_up(self, seats: list[Seat]) -> None:
        """Free the rows of seats that ran ahead; what they took is a part of their chains' time."""
        for seat in seats:
            chain = seat
            while chain.behind is not None:
                chain = chain.behind
            self.decode_s[chain.row] += self.decode_s[seat.row]
            self.leave(seat.row)
        if seats:
            self._rows.free([seat.row for seat in seats])

    def leave(self, row: int) -> Seat:
        """Let this row have no chain, as far as the host is concerned; returns the seat of the one that it had."""
        seat, self._by_row[row] = self._by_row[row], None
        self.reach[row] = self.prompt[row] = 0  # what the device counts of the row stays as it is
        return seat


def _first(chain: Seat, right: Collection[Seat]) -> tuple[Seat, Seat] | None:
    """Return the first seat of a line whose copy ran ahead rightly, and the copy."""
    return next(((seat, seat.ahead) for seat in chain.line() if seat.ahead in right), None)


def batch_size(used: int, rows: int, *, recorded: bool) -> int:
    """Return how many of the rows are run for that many chains: a multiple of 8.

    Each size needs a recording, which takes as long as some tens of steps, so that there two to a doubling are best:
    rows that idle at the end of a run cost less than more recordings would.

    >>> [batch_size(used, 1000, recorded=True) for used in (1, 17, 25, 33, 200, 769)]
    [8, 24, 32, 48, 256, 1000]
    >>> batch_size(201, 256, recorded=False)
    208
    """
    size = -(-used // SMALLEST_BATCH) * SMALLEST_BATCH
    if recorded:
        doubling = 1 << (size - 1).bit_length()
        size = doubling * 3 // 4 if size <= doubling * 3 // 4 and doubling > 16 else doubling
    return min(size, rows)
