"""How long a command takes until its first token, by stage; what lasts is said on stderr while it lasts.

Functions that belong to a stage are decorated with :func:`stage`. It counts for the :class:`Start` that this thread is
in, and costs nothing where there is none.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

IMPORTS, BENCHMARK, MODEL, IDENTITY = "imports", "benchmark", "model", "identity"
PROMPTS, EMBEDDER, ROWS, COMPARISON = "prompts", "embedder", "rows", "comparison"
RECORDINGS, CLOCK, FIRST_STEPS, WORKERS = "recordings", "clock", "first steps", "workers"
WAITING, OTHER, SAMPLING = "waiting", "other", "sampling"
STORES, TRAINING, ANALYSIS, PAGE = "stores", "training", "analysis", "page"
_WORDS = {
    IMPORTS: "loading the libraries",
    BENCHMARK: "reading the questions",
    MODEL: "loading the model",
    IDENTITY: "taking the digests of model and embedder",
    PROMPTS: "rendering and tokenizing the prompts",
    EMBEDDER: "loading the embedder and embedding questions",
    ROWS: "making the rows",
    COMPARISON: "comparing the forward passes",
    RECORDINGS: "compiling and recording the GPU's work",
    CLOCK: "measuring the clock",
    FIRST_STEPS: "sampling the first tokens",
    WORKERS: "starting the workers",
    STORES: "reading the stores",
    TRAINING: "training",
    ANALYSIS: "comparing policies",
    PAGE: "drawing figures and page",
}
_SILENT_S = 2.0
"""Longest time in which nothing is said."""
_PATIENCE = 4.0
"""What lasts is said again when it has lasted this many times as long as when it was said last."""

_current: ContextVar[Start | None] = ContextVar("start", default=None)
_for_command = False


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the seconds in this context for a stage of the start, those of stages within it for them."""
    start = _current.get()
    if start is None:
        yield
        return
    start.enter(name)
    try:
        yield
    finally:
        start.leave()


def current() -> Start | None:
    """Return the start that this thread is in."""
    return _current.get()


def worker_started() -> None:
    """Note that one more of the workers has its first tokens; the last of them counts."""
    if (start := _current.get()) is not None:
        start.finish()


def process_began() -> None:
    """Say that this process was made for one command: its start counts what the process has needed so far."""
    global _for_command
    _for_command = True


@contextmanager
def starting(command: str) -> Iterator[None]:
    """Measure a command's start in this context, and say on stderr what lasts; within another start that one goes on.

    On a terminal a line with a clock shows what lasts, as long as it lasts and no bar is shown.

    ``command`` is what the lines begin with. What the process needed before counts as imports, after
    :func:`process_began` and once: a second command, or one in a notebook, has not waited for it.
    """
    global _for_command
    if _current.get() is not None:
        yield
        return
    start, _for_command = Start(process_age() if _for_command else 0.0), False
    watch = threading.Thread(target=start.watch, args=(command,), name="start", daemon=True)
    watch.start()
    try:
        with start.active():
            yield
    finally:
        start.over.set()
        watch.join()


def process_age() -> float:
    """Return the seconds since this process was created."""
    import psutil

    return max(0.0, time.time() - psutil.Process().create_time())


@dataclass(frozen=True, slots=True)
class Started:
    """A worker's first tokens are there."""

    worker: int
    total_s: float
    """From the beginning of its process."""
    seconds: dict[str, float]
    """By stage."""


@dataclass(slots=True)
class _Stage:
    name: str
    began: float
    said_s: float = 0.0
    """Age at which it was said last."""


@dataclass(eq=False)
class Start:
    """The seconds of a start by stage: each second counts for the innermost stage that it falls into."""

    before_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    total_s: float | None = None
    """From the beginning to the first token, once that is there."""

    def __post_init__(self) -> None:
        """Start the clock."""
        self._began = self._mark = time.monotonic()
        self._stages: list[_Stage] = []
        self._shown: Progress | None = None
        self._lock = threading.Lock()
        self._hushed = False
        self.over = threading.Event()
        if self.before_s:
            self.seconds[IMPORTS] = self.before_s

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let stages in this context, and this thread, count for this start."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def enter(self, name: str) -> None:
        """Begin a stage."""
        if self.total_s is None:
            self._count()
        self._stages.append(_Stage(name, time.monotonic()))

    def leave(self) -> None:
        """End the innermost stage."""
        if self.total_s is None:
            self._count()
        self._stages.pop()
        if not self._stages:
            self._show("")

    def hush(self) -> None:
        """Show no clock any more: somebody else writes to the terminal's last line."""
        self._hushed = True
        self._show("")

    def finish(self) -> None:
        """Note that the first token is there; stages no longer count. Called again, another worker's first is there."""
        self._count()
        self.total_s = self.before_s + self._mark - self._began

    def started(self, worker: int) -> Started:
        """Finish, and return what a worker reports."""
        self.finish()
        return Started(worker, round(self.total_s or 0.0, 3), self.summary())

    def summary(self) -> dict[str, float]:
        """Return the seconds by stage, rounded."""
        return {name: round(seconds, 3) for name, seconds in self.seconds.items()}

    def _count(self) -> None:
        now, name = time.monotonic(), self._stages[-1].name if self._stages else OTHER
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._mark
        self._mark = now

    def watch(self, command: str) -> None:
        """Say on stderr what lasts, whenever nothing was said for two seconds."""
        said = self._began
        while not self.over.wait(_SILENT_S / 4):
            now, stages = time.monotonic(), list(self._stages)
            if not stages or now - said < _SILENT_S / 2:
                continue
            here, age = stages[-1], now - stages[-1].began
            name = SAMPLING if here.name == FIRST_STEPS and self.total_s is not None else here.name
            if sys.__stderr__ is not None and sys.__stderr__.isatty() and not self._hushed:
                self._show(f"{command}: {_WORDS.get(name, name)} ({age:.0f} s)")
            elif now - said < _SILENT_S:
                continue
            elif age >= _PATIENCE * here.said_s:
                so_far = f" ({age:.0f} s so far)" if here.said_s else ""
                here.said_s, said = max(age, _SILENT_S), now
                print(f"{command}: {_WORDS.get(name, name)}{so_far}", file=sys.stderr, flush=True)
        self._show("")

    def _show(self, text: str) -> None:
        """Show a text with a clock in the terminal's last line; an empty one takes it away."""
        with self._lock:
            if self._shown is None and text and self._stages:
                from rich.console import Console
                from rich.progress import Progress, SpinnerColumn, TextColumn

                look = SpinnerColumn(), TextColumn("{task.description}", markup=False, style="dim")
                streams = {"console": Console(stderr=True), "redirect_stdout": sys.stdout.isatty()}
                self._shown = Progress(*look, transient=True, **streams)
                self._shown.add_task(text, total=None)
                self._shown.start()
            elif self._shown is not None and text:
                self._shown.update(self._shown.task_ids[0], description=text)
            elif self._shown is not None:
                self._shown.stop()
                self._shown = None


def words(total_s: float, seconds: Mapping[str, float]) -> str:
    """Return one line: the time until the first token and, longest first, the stages that it went into."""
    shown = sorted(((s, name) for name, s in seconds.items() if s >= max(0.05, 0.01 * total_s)), reverse=True)
    return f"first token after {total_s:.1f} s: " + ", ".join(f"{name} {s:.1f} s" for s, name in shown)
