"""Keeps an engine busy with questions that come at any time, from any thread.

Each question has its own policy, seed, length and stop strings (``live.Own``) and climbs its own ladder; all of them
share the rows. One thread samples. Whoever asks gets a :class:`Ticket`, which tells of checkpoints, holds the record
in the end, and can be cancelled.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from dps.benchmarks import Item
from dps.benchmarks.grading import Grader
from dps.errors import InputError
from dps.run.live import Own, PolicyRun, PreparedQuestion
from dps.run.scheduler import Account, run_policies
from dps.run.worker import Prompts
from dps.sampler.engine import Engine
from dps.threads import num_threads, torch_threads
from feature_store.records import Question

_AT_ONCE = 32
"""Questions that are prepared together at most."""
_PATIENCE_S = 1.0
"""Longest wait for a question without a look at what was cancelled."""

Prepare = Callable[[Sequence[Item], Prompts], Iterator[PreparedQuestion]]
"""Makes questions ready, see :func:`dps.run.worker.prepare`."""


class Full(RuntimeError):
    """As many questions wait already as may."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A question that was asked."""

    run: PolicyRun
    item: Item
    prompt: str
    tokens: tuple[int, ...]
    own: Own
    record: Future[Question] = field(default_factory=Future)
    """The complete record, or why there is none."""

    def cancel(self) -> None:
        """Give the question up, if it is not complete; from any thread."""
        self.record.cancel()

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return not self.record.cancelled()

    @property
    def answered(self) -> bool:
        """Whether there is a record."""
        return self.record.done() and not self.record.cancelled() and self.record.exception() is None


class Service:
    """Samples the questions that it is asked, in a thread of its own."""

    def __init__(self, engine: Engine, grader: Grader, prepare: Prepare, *, most_waiting: int, eager: bool) -> None:
        """Take an idle engine.

        Args:
            engine: Samples; nobody else may use it, nor its model, until :meth:`close` has returned.
            grader: Reads the responses of questions that have no grader of their own.
            prepare: Makes questions ready, in the thread that samples.
            most_waiting: Questions that may wait for rows.
            eager: Whether rows that would idle begin what a policy may ask for, see :func:`run_policies`.
        """
        self.engine, self.most_waiting, self.account = engine, most_waiting, Account()
        self._grader, self._prepare, self._eager = grader, prepare, eager
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._open: dict[Own, Ticket] = {}
        """What is being sampled."""
        self._closing = self._stopping = False
        self._thread = threading.Thread(target=self._work, name="sampling", daemon=True)
        self._thread.start()

    def ask(self, tickets: Sequence[Ticket]) -> None:
        """Have questions sampled, all of them or none; raises :class:`Full`, InputError where the service has ended."""
        with self._changed:
            if self._closing:
                raise InputError("Expected a service that runs, but this one is ending: ask another one.")
            if len(self._waiting) + len(tickets) > self.most_waiting:
                raise Full(f"{len(self._waiting)} questions wait already, and at most {self.most_waiting} may.")
            self._waiting += tickets
            self._changed.notify()

    def close(self, *, finish: bool = True) -> None:
        """Take no more questions; return when those that were asked are complete, or given up without ``finish``."""
        with self._changed:
            self._closing, self._stopping = True, self._stopping or not finish
            self._changed.notify()
        self._thread.join()

    @property
    def num_waiting(self) -> int:
        """Questions that wait for rows."""
        return len(self._waiting)

    @property
    def num_open(self) -> int:
        """Questions that are being sampled."""
        return len(self._open)

    @property
    def alive(self) -> bool:
        """Whether the thread that samples runs."""
        return self._thread.is_alive()

    def _work(self) -> None:
        """Sample until the end; what goes wrong fails the questions that are being sampled, and no other."""
        over = False
        try:
            while not over:
                error: Exception | None = None
                try:
                    with torch_threads(num_threads(self.engine.model.num_parameters)):
                        self._sample()
                except Exception as caught:
                    traceback.print_exc()
                    error = caught
                for ticket in list(self._open.values()):
                    self._leave(ticket)
                    _fail(ticket, error)
                self.engine.clear()
                over = self._stopping or (error is None and self._ended)
        finally:
            with self._changed:
                self._closing, left = True, [*self._open.values(), *self._waiting]
                self._waiting.clear()
            for ticket in left:
                _fail(ticket, None)

    @property
    def _ended(self) -> bool:
        return self._closing and not self._waiting

    def _sample(self) -> None:
        for completed in run_policies(
            self.engine.model,
            self.engine,
            self._questions(),
            grader=self._grader,
            seed=0,
            account=self.account,
            eager=self._eager,
            stopping=lambda: self._stopping,
        ):
            if (ticket := self._open.get(completed.source.own)) is not None:
                self._leave(ticket)
                if ticket.record.set_running_or_notify_cancel():
                    ticket.record.set_result(completed.question)

    def _questions(self) -> Iterator[tuple[list[PolicyRun], PreparedQuestion] | None]:
        """Yield what has been asked as the scheduler takes it; wait only while nothing is being sampled."""
        while True:
            for ticket in [ticket for ticket in self._open.values() if not ticket.wanted]:
                self._leave(ticket)
            with self._changed:
                if not self._open and not self._waiting and not self._closing:
                    self._changed.wait(_PATIENCE_S)
                tickets = self._next()
                if not tickets and self._ended:
                    return
            if not tickets:
                yield None
                continue
            prompts = {ticket.item.question_id: (ticket.prompt, ticket.tokens) for ticket in tickets}
            ready = list(self._prepare([ticket.item for ticket in tickets], prompts))
            for ticket, question in zip(tickets, ready, strict=True):
                yield [ticket.run], replace(question, own=ticket.own)

    def _next(self) -> list[Ticket]:
        """Take the first questions that wait, are of one policy, and whose stop strings have room."""
        taken: list[Ticket] = []
        later: list[Ticket] = []
        while self._waiting and len(taken) < _AT_ONCE:
            ticket = self._waiting.popleft()
            if not ticket.wanted:
                continue
            strings = ticket.own.stop_strings
            state = 0
            if taken and ticket.run is not taken[0].run:
                state = None
            elif strings is not None:
                state = self.engine.stops.take(strings)
            if state is None:
                later.append(ticket)
                continue
            ticket.own = replace(ticket.own, stop_state=state, wanted=lambda ticket=ticket: ticket.wanted)
            self._open[ticket.own] = ticket
            taken.append(ticket)
        self._waiting.extendleft(reversed(later))
        return taken

    def _leave(self, ticket: Ticket) -> None:
        """Note that a question is no longer sampled."""
        del self._open[ticket.own]
        if ticket.own.stop_strings is not None:
            self.engine.stops.release(ticket.own.stop_strings)


def _fail(ticket: Ticket, error: Exception | None) -> None:
    """Tell who asked that there will be no record: for that reason, or because the service has ended."""
    if error is None:
        ticket.cancel()
    elif ticket.record.set_running_or_notify_cancel():
        ticket.record.set_exception(error)
