"""Local worker processes: each has a pipe to the parent, over which it asks for questions and reports them.

A pipe of its own, because a process that is killed while it holds a shared queue's lock stops all others. The end of a
pipe is how either side learns that the other is gone. What workers on a cluster have in common with these stands here,
too (``ray_pool``).
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from dps.errors import InputError, WorkersDied
from dps.model import LanguageModel
from dps.run.clock import Clock, measure_clock
from dps.run.committer import Died, Done
from dps.run.ledger import NOTHING_MORE, Ledger, Missing, Take
from dps.run.worker import EngineCache, LoadController, Report, StoreTask, WorkSettings, work
from dps.sampler.settings import SamplerConfig
from dps.start import CLOCK, WAITING, WORKERS, Start, Started, process_age, stage, worker_started
from feature_store import Store
from feature_store.errors import StoreError

ALL_DIED = "All workers died; what they had committed is kept, and the same command goes on from there."
_STOP = "stop"


# -- what all workers have in common -----------------------------------------------------------------------------------


def num_devices(configured: str) -> int:
    """Return how many GPUs of this machine workers are placed on in turn; 0 where ``model.device`` names a device."""
    return torch.cuda.device_count() if configured in ("auto", "cuda") else 0


def for_worker(settings: WorkSettings, worker: int) -> WorkSettings:
    """Return the settings of one worker on this machine: its device, and its share of that device's memory."""
    count, workers = num_devices(settings.model.device), settings.compute.workers
    if count:
        settings = replace(settings, model=replace(settings.model, device=f"cuda:{worker % count}"))
    if settings.compute.backend == "ray":
        return on_ray(settings, gpus=count > 0)
    return replace(settings, memory_share=1 / (len(range(worker % count, workers, count)) if count else workers))


def on_ray(settings: WorkSettings, *, gpus: bool) -> WorkSettings:
    """Return the settings of every worker on a Ray cluster.

    Ray shows each worker its own GPU only, whose memory is all its own; workers without ``gpus`` may all share the
    memory of one node.
    """
    threads = settings.compute.threads or 1
    share = 1.0 if gpus else 1 / settings.compute.workers
    return replace(settings, compute=replace(settings.compute, threads=threads), memory_share=share)


class Worker:
    """A worker's work; what it answers is a value, a refusal, or the text of an unexpected error."""

    def __init__(self, number: int, settings: WorkSettings, load_controller: LoadController | None) -> None:
        """Keep what it needs; the model is loaded when it is first needed."""
        self._number = number
        self._settings = settings
        self._load_controller = load_controller
        self._model: LanguageModel | None = None
        self._cache: EngineCache | None = None
        self.start = Start(process_age())
        """Of this worker."""

    def load(self) -> LanguageModel:
        """Return the model."""
        self._model = self._model or self._settings.load_model()
        return self._model

    def waits(self, receive: Callable[[], Any]) -> Any:
        """Return what the parent says, however long that takes."""
        with self.start.active(), stage(WAITING):
            return receive()

    def _cache_of(self, tasks: Sequence[StoreTask]) -> EngineCache:
        """Return what is kept of the engine and the policies; all calls are for the same stores."""
        self._cache = self._cache or EngineCache(self.load(), tasks, self._settings, self._load_controller)
        return self._cache

    def clock(self, tasks: Sequence[StoreTask], sampler: SamplerConfig) -> Clock | Exception | str:
        """Measure the calibrated clock; see :func:`dps.run.clock.measure_clock`."""
        with self.start.active():
            return _answer_of(lambda: measure_clock(self._cache_of(tasks), sampler))

    def run(self, tasks: list[StoreTask], **line: Any) -> Exception | str | None:
        """Do the work; ``line`` is how it asks for questions, reports them and learns of an end."""
        with self.start.active():
            return _answer_of(lambda: work(self._number, tasks, self._cache_of(tasks), **line))


def _answer_of(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except (InputError, StoreError, WorkersDied) as error:
        return error
    except Exception:
        return traceback.format_exc()


def checked(answer: Any) -> Any:
    """Return what a worker answered; raise what it refused, or a RuntimeError where it failed, which is a bug."""
    if isinstance(answer, (InputError, StoreError, WorkersDied)):
        raise answer
    if isinstance(answer, str):
        raise RuntimeError(f"A worker failed:\n{answer}")
    return answer


def no_clock() -> WorkersDied:
    """Return the error that the worker died over the clock."""
    return WorkersDied(
        "The worker that measured the clock died; nothing was sampled. If it ran out of memory, set compute.rows lower."
    )


def check_deadly(question_id: str | None) -> None:
    """Raise :class:`WorkersDied` if there is a question that three workers died over."""
    if question_id is not None:
        raise WorkersDied(
            f"Three workers died over the question {question_id}; what was committed is kept. If they ran out of "
            "memory, set compute.rows lower."
        )


def say_lost(number: int, how: str, lost: Sequence[str]) -> None:
    """Say on stderr that a worker died, and what becomes of its questions."""
    sentence = f"Worker {number} died{how}; its {len(lost)} unfinished questions go back to the queue."
    print(sentence, file=sys.stderr, flush=True)


def reclaim(worker: int, held: Sequence[tuple[int, str]], tasks: Sequence[StoreTask]) -> list[Done]:
    """Return reports of those questions that a dead worker had committed, but not reported any more.

    ``held`` are the stores and questions that it had.
    """
    reports = []
    for number in sorted({store for store, _ in held}):
        store = Store.open(tasks[number].folder)
        stored = set(store.question_ids)
        committed = [question_id for of, question_id in held if of == number and question_id in stored]
        reports += [replace(Done.of(number, question), worker=worker) for question in store.read(committed)]
    return reports


# -- the parent of local workers ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ClockWanted:
    """Asks a worker to measure the calibrated clock before its work."""

    tasks: Sequence[StoreTask]
    sampler: SamplerConfig


class Pool:
    """Worker processes on this machine, started at once and told later what to do."""

    def __init__(self, settings: WorkSettings, load_controller: LoadController | None) -> None:
        """Start the processes; they load the model meanwhile."""
        context = multiprocessing.get_context("forkserver")
        # What every worker imports is imported once, by the fork server they start from.
        preload = ["dps.run.pool", "sentence_transformers"]
        context.set_forkserver_preload(preload + ([load_controller.__module__] if load_controller is not None else []))
        with _deaf_to_interrupts():
            forkserver.ensure_running()
        self._pipes: dict[Connection, int] = {}
        self._processes = []
        for number in range(settings.compute.workers):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_worker_process,
                args=(number, theirs, for_worker(settings, number), load_controller),
                name=f"dps-worker-{number}",
                daemon=True,
            )
            process.start()
            theirs.close()  # the worker's own end is the only one, so that its death closes the pipe
            self._pipes[mine] = number
            self._processes.append(process)

    @stage(CLOCK)
    def clock(self, tasks: Sequence[StoreTask], sampler: SamplerConfig) -> Clock:
        """Let the first worker measure the calibrated clock; see :func:`dps.run.clock.measure_clock`.

        ``tasks`` are those that the workers will be told to do.

        Raises:
            WorkersDied: If it died over it; else as :func:`checked`.
        """
        pipe = next(pipe for pipe, number in self._pipes.items() if number == 0)
        self._send(pipe, _ClockWanted(tasks, sampler))
        try:
            return checked(pipe.recv())
        except (EOFError, OSError):
            raise no_clock() from None

    @stage(WORKERS)
    def run(self, tasks: list[StoreTask], missing: Sequence[Missing], report: Report) -> None:
        """Let the workers fill the stores with what groups of them lack; ``report`` is called once for each question.

        Raises:
            WorkersDied: If all of them died, or three over one question; else as :func:`checked`.
        """
        ledger = Ledger(missing, len(self._pipes))
        for pipe in list(self._pipes):
            self._send(pipe, tasks)
        while not ledger.finished:
            if not self._pipes:
                raise WorkersDied(ALL_DIED)
            for pipe in wait(list(self._pipes)):
                assert isinstance(pipe, Connection)
                try:
                    message = pipe.recv()
                except (EOFError, OSError):
                    self._lost(pipe, ledger, tasks, report)
                    continue
                if isinstance(message, Done):
                    if ledger.done(message.store, message.question_id):
                        report(message)
                elif isinstance(message, Started):
                    worker_started()
                    report(message)
                elif isinstance(message, tuple):
                    self._send(pipe, ledger.take(self._pipes[pipe], *message))
                else:
                    checked(message)

    def _lost(self, pipe: Connection, ledger: Ledger, tasks: list[StoreTask], report: Report) -> None:
        """Hand a dead worker's questions to the others; what it had committed unreported is reported."""
        number = self._pipes.pop(pipe)
        pipe.close()
        process = self._processes[number]
        process.join(timeout=5)
        for done in reclaim(number, ledger.held_by(number), tasks):
            ledger.done(done.store, done.question_id)
            report(done)
        report(Died(number))
        say_lost(number, f" with exit code {process.exitcode}", ledger.lost(number))
        check_deadly(ledger.deadly())

    def _send(self, pipe: Connection, message: Any) -> None:
        with suppress(OSError):  # it is gone: the next wait finds the end of its pipe
            pipe.send(message)

    def close(self) -> None:
        """Stop the workers: each commits what is complete, then ends."""
        for pipe in self._pipes:
            self._send(pipe, _STOP)
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()
        for pipe in self._pipes:
            pipe.close()


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let processes start that pass over Ctrl-C; it reaches this one too and would end their imports in a traceback."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# -- in a worker process -----------------------------------------------------------------------------------------------


class _Line:
    """A worker's end of its pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._stopped = False

    def receive(self) -> Any:
        """Return what the parent says; :data:`_STOP` also where it is gone."""
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):
            message = _STOP
        self._stopped |= message == _STOP
        return message

    def send(self, message: Any) -> None:
        """Tell the parent something, if it is there."""
        try:
            self._pipe.send(message)
        except OSError:
            self._stopped = True

    def stopping(self) -> bool:
        """Whether the parent wants an end, or is gone. It says nothing else unless it is asked."""
        if not self._stopped and self._pipe.poll():
            self.receive()
        return self._stopped

    def take(self, group: int | None, wanted: int, complete: Mapping[int, int]) -> Take:
        """Ask for questions."""
        self.send((group, wanted, dict(complete)))
        message = self.receive() if not self._stopped else _STOP
        return message if isinstance(message, Take) else NOTHING_MORE


def _worker_process(
    number: int, pipe: Connection, settings: WorkSettings, load_controller: LoadController | None
) -> None:
    """Body of a worker process: wait for the tasks, do them, say how it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which asks the workers to stop
    line, worker = _Line(pipe), Worker(number, settings, load_controller)
    with worker.start.active():
        answer = _answer_of(worker.load)
    if isinstance(answer, LanguageModel):
        while isinstance(tasks := worker.waits(line.receive), _ClockWanted):
            line.send(worker.clock(tasks.tasks, tasks.sampler))
        answer = None
        if tasks != _STOP:
            answer = worker.run(tasks, take=line.take, report=line.send, stopping=line.stopping)
    if answer is not None:
        line.send(answer)
