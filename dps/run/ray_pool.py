"""Workers on a Ray cluster: actors that run the same work as local processes and pull from one queue.

Ray places the actors and says when one has died; the queue (``ledger``) stands in a small actor of its own, so that a
question's way is the same as with local processes. Stores lie on a file system that all nodes share.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from dps.benchmarks import load_benchmark
from dps.errors import InputError, WorkersDied
from dps.extras import install
from dps.model import LanguageModel, load_model
from dps.run.clock import Clock, measure_clock
from dps.run.ledger import Ledger, Take
from dps.run.pool import clock_answer, on_ray, reclaim
from dps.run.worker import Done, LoadController, Stop, StoreTask, WorkSettings, work
from dps.sampler.settings import SamplerConfig
from feature_store.errors import StoreError

_POLL_S = 0.3
"""Seconds between two looks at what the workers have reported."""
_CPUS_PER_WORKER = 1


class Desk:
    """Hands out questions and collects reports; an actor, so its calls come one at a time."""

    def __init__(self, missing: list[list[str]], num_workers: int) -> None:
        """Fill the queue; see :class:`dps.run.ledger.Ledger`."""
        self._ledger = Ledger(missing, num_workers)
        self._reports: list[Done] = []
        self._stopped = False

    def take(self, worker: int, task: int | None, wanted: int, complete: Mapping[int, int]) -> Take | Stop:
        """Hand out questions."""
        return Stop() if self._stopped else self._ledger.take(worker, task, wanted, complete)

    def report(self, found: Done) -> None:
        """Note a committed question."""
        if self._ledger.done(found.task, found.question_id):
            self._reports.append(found)

    def stop(self) -> None:
        """Ask the workers to end."""
        self._stopped = True

    def stopped(self) -> bool:
        """Whether they were asked to."""
        return self._stopped

    def news(self) -> tuple[list[Done], bool, str | None]:
        """Return the reports since the last call, whether all is done, and a question that is deadly."""
        reports, self._reports = self._reports, []
        return reports, self._ledger.finished, self._ledger.deadly()

    def held_by(self, worker: int) -> list[tuple[int, str]]:
        """Return what a worker has."""
        return self._ledger.held_by(worker)

    def lost(self, worker: int) -> list[tuple[int, str]]:
        """Put back what a dead worker had."""
        return self._ledger.lost(worker)


class Worker:
    """A worker on some node."""

    def __init__(self, number: int, settings: WorkSettings, load_controller: LoadController | None) -> None:
        """Keep what it needs."""
        self._number = number
        self._settings = settings
        self._load_controller = load_controller
        self._model: LanguageModel | None = None

    def clock(self, sampler: SamplerConfig, snapshot_blocks: tuple[int, ...]) -> Clock | InputError | StoreError | str:
        """Measure the calibrated clock; returns it, a refusal, or the text of an unexpected error."""
        try:
            self._model = self._model or load_model(self._settings.model)
            benchmark = load_benchmark(self._settings.benchmark, self._settings.model.name)
            return measure_clock(self._model, benchmark, self._settings, sampler, snapshot_blocks)
        except (InputError, StoreError) as error:
            return error
        except Exception:
            return traceback.format_exc()

    def run(self, tasks: list[StoreTask], desk: Any) -> str | InputError | StoreError | None:
        """Do the work; returns None, a refusal, or the text of an unexpected error."""
        import ray

        looked = 0.0
        stopped = False

        def stopping() -> bool:
            nonlocal looked, stopped
            if not stopped and time.monotonic() - looked > _POLL_S:
                stopped = ray.get(desk.stopped.remote())
                looked = time.monotonic()
            return stopped

        try:
            work(
                self._number,
                tasks,
                self._settings,
                self._load_controller,
                take=lambda *asked: ray.get(desk.take.remote(self._number, *asked)),
                report=lambda found: ray.get(desk.report.remote(found)),
                stopping=stopping,
                model=self._model,
            )
        except (InputError, StoreError) as error:
            return error
        except Exception:
            return traceback.format_exc()
        return None


class RayPool:
    """The workers of a run on a Ray cluster; the same interface as :class:`dps.run.pool.Pool`."""

    def __init__(self, settings: WorkSettings, load_controller: LoadController | None) -> None:
        """Join the cluster, or start one on this machine, and start the actors.

        Raises:
            InputError: If Ray is not installed, or there is no cluster at the address.
        """
        try:
            import ray
        except ImportError:
            raise InputError(
                f"compute.backend: ray needs the package ray: {install('ray', 'ray')}, or use compute.backend: local."
            ) from None
        self._ray = ray
        self._joined = not ray.is_initialized()
        address, workers = settings.compute.ray_address, settings.compute.workers
        if self._joined:
            # A cluster of this machine alone has room for the workers that were asked for, whatever its cores.
            own = {} if address else {"include_dashboard": False, "num_cpus": workers * (settings.compute.threads or 1)}
            try:
                ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise InputError(
                    f"Expected a Ray cluster at compute.ray_address {address}, but it cannot be joined "
                    f"({str(error).splitlines()[0]}): start one with `ray start --head`, or leave the address out."
                ) from error
        gpus = ray.cluster_resources().get("GPU", 0) if settings.model.device in ("auto", "cuda") else 0
        options = {"num_gpus": 1} if gpus else {"num_cpus": settings.compute.threads or _CPUS_PER_WORKER}
        settings = on_ray(settings, gpus=gpus > 0)
        actor = ray.remote(**options)(Worker)
        self._workers = [actor.remote(n, settings, load_controller) for n in range(workers)]
        self._desk: Any = None
        self._running: dict[Any, int] = {}

    def clock(self, sampler: SamplerConfig, snapshot_blocks: tuple[int, ...]) -> Clock:
        """Let the first actor measure the calibrated clock; see :meth:`dps.run.pool.Pool.clock`."""
        ray = self._ray
        try:
            return clock_answer(ray.get(self._workers[0].clock.remote(sampler, snapshot_blocks)))
        except ray.exceptions.RayActorError:
            return clock_answer(None)

    def run(self, tasks: list[StoreTask], missing: list[list[str]], report: Callable[[Done], None]) -> None:
        """Let the actors fill the stores; see :meth:`dps.run.pool.Pool.run`."""
        ray = self._ray
        tasks = [replace(task, folder=task.folder.resolve()) for task in tasks]
        self._desk = ray.remote(num_cpus=0)(Desk).remote(missing, len(self._workers))
        self._running = {worker.run.remote(tasks, self._desk): n for n, worker in enumerate(self._workers)}
        finished = False
        while not finished:
            ended, _ = ray.wait(list(self._running), timeout=_POLL_S)
            reports, finished, deadly = ray.get(self._desk.news.remote())
            for found in reports:
                report(found)
            if deadly is not None:
                raise WorkersDied(f"Three workers died over the question {deadly}; what was committed is kept.")
            for future in [] if finished else ended:
                self._ended(future, tasks)
            if not self._running and not finished:
                raise WorkersDied(
                    "All workers died; what they had committed is kept, and the same command goes on from there."
                )

    def _ended(self, future: Any, tasks: list[StoreTask]) -> None:
        """See why a worker ended; if it died, its questions go to the others."""
        ray = self._ray
        number = self._running.pop(future)
        try:
            said = ray.get(future)
        except ray.exceptions.RayActorError:
            for found in reclaim(ray.get(self._desk.held_by.remote(number)), tasks):
                ray.get(self._desk.report.remote(found))
            lost = ray.get(self._desk.lost.remote(number))
            print(
                f"Worker {number} died; its {len(lost)} unfinished questions go to the {len(self._running)} others.",
                file=sys.stderr,
                flush=True,
            )
            return
        if isinstance(said, (InputError, StoreError)):
            raise said
        if said is not None:
            raise RuntimeError(f"A worker failed:\n{said}")

    def close(self) -> None:
        """Stop the workers: each commits what is complete, then ends."""
        ray = self._ray
        if self._desk is not None and self._running:
            ray.get(self._desk.stop.remote())
            ray.wait(list(self._running), num_returns=len(self._running), timeout=10)
        for worker in self._workers:
            ray.kill(worker)
        if self._joined:
            ray.shutdown()
