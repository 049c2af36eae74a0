"""Progress of a long command, on stderr: a live line on a terminal, elsewhere lines that come ever more rarely.

Only the process that a user started shows progress; workers report to it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dps.start import current

_FIRST_LINE_S, _RAREST_LINE_S = 10.0, 600.0
"""Where there is no terminal: when a line first says how far the work is, and how long none does at most."""


class Progress:
    """How far one piece of work is."""

    def __init__(self, description: str, total: int, show: Callable[[Progress], None] = lambda _: None) -> None:
        """Start the clock; ``show`` is called after every change."""
        self.description = description
        self.total = total
        self.done = 0
        self.fields: dict[str, Any] = {}
        self._show = show
        self._started = time.monotonic()

    def advance(self, n: int = 1) -> None:
        """Count n more things as done."""
        self.done += n
        self._show(self)

    def note(self, **fields: Any) -> None:
        """Show these values beside the count, in place of earlier ones of the same name; floats with three digits.

        None shows nothing.
        """
        self.fields.update(fields)
        self._show(self)

    def began_before(self, age_s: float) -> None:
        """Let the clock have started at least so many seconds ago."""
        self._started = min(self._started, time.monotonic() - age_s)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def per_second(self) -> float:
        """Things done per second since the start."""
        return self.done / max(self.elapsed_s, 1e-9)

    def notes(self) -> str:
        """Return the noted values as one text."""
        return ", ".join(f"{name} {_text(value)}" for name, value in self.fields.items() if value is not None)


@contextmanager
def track(description: str, total: int) -> Iterator[Progress]:
    """Show the progress of the work in this context.

    On a terminal: a bar with done of total, rate, elapsed time, time left and the notes. Elsewhere one line at the
    start, one after 10 s, 40 s and so on, at the latest every ten minutes, and one at the end, which says how far it
    came also when the work is broken off.
    """
    if sys.stderr.isatty():
        if (start := current()) is not None:
            start.hush()
        with _bar(description, total) as progress:
            yield progress
        return
    due_s = _FIRST_LINE_S

    def say(p: Progress) -> None:
        took = f"{p.done} of {total} in {format_seconds(p.elapsed_s)}, {format_rate(p.per_second)}"
        print(f"{description}: {', '.join(filter(None, [took, p.notes()]))}", file=sys.stderr, flush=True)

    def show(p: Progress) -> None:
        nonlocal due_s
        if due_s <= p.elapsed_s and p.done < total:
            say(p)
            due_s = p.elapsed_s + min(3 * p.elapsed_s, _RAREST_LINE_S)

    progress = Progress(description, total, show)
    print(f"{description}: {total} to do", file=sys.stderr, flush=True)
    try:
        yield progress
    finally:
        say(progress)


def format_rate(per_second: float) -> str:
    """Return a rate, slow ones per minute: ``12.3/s``, ``4.0/min``."""
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{60 * per_second:.1f}/min"


def format_seconds(seconds: float) -> str:
    """Return a time as a person reads it: ``0.4 s``, ``12 s``, ``3:05 min``, ``2:03:05 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d} h"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@contextmanager
def _bar(description: str, total: int) -> Iterator[Progress]:
    from rich import progress as rich_progress
    from rich.console import Console

    display = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(bar_width=24),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),  # rich's own jumps where things finish many at a time
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("left"),
        rich_progress.TimeRemainingColumn(elapsed_when_finished=False),
        rich_progress.TextColumn("{task.fields[notes]}", markup=False, style="dim"),
        console=Console(stderr=True),
        # Output that goes to a file must not be taken to the terminal.
        redirect_stdout=sys.stdout.isatty(),
        speed_estimate_period=120,
    )
    with display:
        task = display.add_task(description, total=total, rate="–/s", notes="")

        def show(p: Progress) -> None:
            display.update(task, completed=p.done, rate=format_rate(p.per_second), notes=p.notes())

        yield Progress(description, total, show)
