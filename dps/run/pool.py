"""Local worker processes: each has a pipe to the parent, over which it asks for questions and reports them.

A pipe of its own, because a process that is killed while it holds a shared queue's lock stops all others. The end of a
pipe is how either side learns that the other is gone.
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

from dps.benchmarks import load_benchmark
from dps.errors import InputError, WorkersDied
from dps.model import load_model
from dps.run.clock import Clock, measure_clock
from dps.run.ledger import Ledger, Take
from dps.run.worker import Done, LoadController, Stop, StoreTask, WorkSettings, done, work
from dps.sampler.settings import SamplerConfig
from feature_store import Store
from feature_store.errors import StoreError

_STOP = "stop"


@dataclass(frozen=True, slots=True)
class _ClockWanted:
    """Asks a worker to measure the calibrated clock before its work."""

    sampler: SamplerConfig
    snapshot_blocks: tuple[int, ...] = ()


def device_of(worker: int, num_devices: int, configured: str) -> str:
    """Return the device of a worker: GPUs in turn, unless the settings name one.

    Args:
        worker: Its number.
        num_devices: GPUs that this machine shows.
        configured: ``model.device``.
    """
    if configured not in ("auto", "cuda") or num_devices == 0:
        return configured
    return f"cuda:{worker % num_devices}"


def sharers(worker: int, num_workers: int, num_devices: int) -> int:
    """Return how many workers share this worker's device, itself included."""
    if num_devices == 0:
        return num_workers
    return len(range(worker % num_devices, num_workers, num_devices))


def num_devices(configured: str) -> int:
    """Return how many GPUs of this machine workers are placed on in turn; 0 where the settings name a device.

    Args:
        configured: ``model.device``.
    """
    return torch.cuda.device_count() if configured in ("auto", "cuda") else 0


def for_worker(settings: WorkSettings, worker: int) -> WorkSettings:
    """Return the settings of one worker on this machine: its device, and its share of that device's memory."""
    count = num_devices(settings.model.device)
    settings = replace(settings, model=replace(settings.model, device=device_of(worker, count, settings.model.device)))
    if settings.compute.backend == "ray":
        return on_ray(settings, gpus=count > 0)
    return replace(settings, memory_share=1 / sharers(worker, settings.compute.workers, count))


def on_ray(settings: WorkSettings, *, gpus: bool) -> WorkSettings:
    """Return the settings of every worker on a Ray cluster.

    Args:
        settings: Those of the run.
        gpus: Whether the workers have GPUs: Ray shows each its own only, so that all of its memory is its own. Workers
            without may all share the memory of one node.
    """
    threads = settings.compute.threads or 1
    share = 1.0 if gpus else 1 / settings.compute.workers
    return replace(settings, compute=replace(settings.compute, threads=threads), memory_share=share)


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

    def clock(self, sampler: SamplerConfig, snapshot_blocks: tuple[int, ...] = ()) -> Clock:
        """Let the first worker measure the calibrated clock; see :func:`dps.run.worker.measure_clock`.

        Raises:
            InputError: If it refused its input.
            WorkersDied: If it died over it.
            RuntimeError: If it failed otherwise, which is a bug.
        """
        pipe = next(pipe for pipe, number in self._pipes.items() if number == 0)
        self._send(pipe, _ClockWanted(sampler, snapshot_blocks))
        try:
            return clock_answer(pipe.recv())
        except (EOFError, OSError):
            return clock_answer(None)

    def run(self, tasks: list[StoreTask], missing: list[list[str]], report: Callable[[Done], None]) -> None:
        """Let the workers fill the stores; calls ``report`` for every committed question, once.

        Args:
            tasks: The stores.
            missing: Questions that each lacks, in order.
            report: Called in this process.

        Raises:
            InputError: If a worker refused its input.
            StoreError: If a worker could not write to a store.
            WorkersDied: If all of them died, or three over one question.
            RuntimeError: If a worker failed otherwise, which is a bug.
        """
        ledger = Ledger(missing, len(self._pipes))
        for pipe in list(self._pipes):
            self._send(pipe, tasks)
        while not ledger.finished:
            if not self._pipes:
                raise WorkersDied(
                    "All workers died; what they had committed is kept, and the same command goes on from there."
                )
            for pipe in wait(list(self._pipes)):
                assert isinstance(pipe, Connection)
                try:
                    message = pipe.recv()
                except (EOFError, OSError):
                    self._lost(pipe, ledger, tasks, report)
                    continue
                self._answer(pipe, message, ledger, report)

    def _answer(self, pipe: Connection, message: Any, ledger: Ledger, report: Callable[[Done], None]) -> None:
        if isinstance(message, Done):
            if ledger.done(message.task, message.question_id):
                report(message)
        elif isinstance(message, tuple):
            self._send(pipe, ledger.take(self._pipes[pipe], *message))
        elif isinstance(message, (InputError, StoreError)):
            raise message
        else:
            raise RuntimeError(f"A worker failed:\n{message}")

    def _lost(self, pipe: Connection, ledger: Ledger, tasks: list[StoreTask], report: Callable[[Done], None]) -> None:
        """Hand a dead worker's questions to the others; what it had committed unreported is reported."""
        number = self._pipes.pop(pipe)
        pipe.close()
        process = self._processes[number]
        process.join(timeout=5)
        for found in reclaim(ledger.held_by(number), tasks):
            ledger.done(found.task, found.question_id)
            report(found)
        lost = ledger.lost(number)
        print(
            f"Worker {number} died with exit code {process.exitcode}; its {len(lost)} unfinished questions go to the "
            f"{len(self._pipes)} others.",
            file=sys.stderr,
            flush=True,
        )
        if (question_id := ledger.deadly()) is not None:
            raise WorkersDied(
                f"Three workers died over the question {question_id}; what was committed is kept. If they ran out of "
                "memory, set compute.rows lower."
            )

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


def clock_answer(answer: Any) -> Clock:
    """Return the clock that a worker measured.

    Args:
        answer: What it answered: the clock, a refusal, or the text of an unexpected error; None if it died.

    Raises:
        InputError: If it refused its input.
        StoreError: If the store whose clock is to be taken over cannot be read.
        WorkersDied: If it died.
        RuntimeError: If it failed otherwise, which is a bug.
    """
    if isinstance(answer, (InputError, StoreError)):
        raise answer
    if answer is None:
        raise WorkersDied(
            "The worker that measured the clock died; nothing was sampled. If it ran out of memory, set compute.rows "
            "lower."
        )
    if not isinstance(answer, Clock):
        raise RuntimeError(f"A worker failed:\n{answer}")
    return answer


def reclaim(held: Sequence[tuple[int, str]], tasks: Sequence[StoreTask]) -> list[Done]:
    """Return reports of those of a dead worker's questions that it had committed, but not reported any more.

    Args:
        held: Tasks and questions that it had.
        tasks: The stores.
    """
    found = []
    for number in sorted({task for task, _ in held}):
        store = Store.open(tasks[number].folder)
        there = set(store.question_ids)
        committed = [question_id for task, question_id in held if task == number and question_id in there]
        found += [done(number, question) for question in store.read(committed)]
    return found


class _Line:
    """A worker's end of its pipe."""

    def __init__(self, number: int, pipe: Connection) -> None:
        self.number = number
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

    def take(self, task: int | None, wanted: int, complete: Mapping[int, int]) -> Take | Stop:
        """Ask for questions."""
        self.send((task, wanted, dict(complete)))
        message = self.receive() if not self._stopped else _STOP
        return message if isinstance(message, Take) else Stop()


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


def _worker_process(
    number: int, pipe: Connection, settings: WorkSettings, load_controller: LoadController | None
) -> None:
    """Body of a worker process: wait for the tasks, do them, say how it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which asks the workers to stop
    line = _Line(number, pipe)
    try:
        torch.set_num_threads(settings.threads or 1)
        model = load_model(settings.model)
        while isinstance(tasks := line.receive(), _ClockWanted):
            benchmark = load_benchmark(settings.benchmark, settings.model.name)
            line.send(measure_clock(model, benchmark, settings, tasks.sampler, tasks.snapshot_blocks))
        if tasks != _STOP:
            work(
                number,
                tasks,
                settings,
                load_controller,
                take=line.take,
                report=line.send,
                stopping=line.stopping,
                model=model,
            )
    except (InputError, StoreError) as error:
        line.send(error)
    except Exception:
        line.send(traceback.format_exc())
