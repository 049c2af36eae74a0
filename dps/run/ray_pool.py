"""Workers on a Ray cluster: actors that run the same work as local processes and pull from one queue.

Ray places the actors and says when one has died; the queue (``ledger``) stands in a small actor of its own, so that a
question's way is the same as with local processes. Stores lie on a file system that all nodes share.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dps.errors import InputError, WorkersDied
from dps.extras import require
from dps.run import pool
from dps.run.clock import Clock
from dps.run.committer import Died, Done
from dps.run.ledger import NOTHING_MORE, Ledger, Missing, Take
from dps.run.worker import LoadController, Report, StoreTask, WorkSettings
from dps.sampler.settings import SamplerConfig
from dps.start import CLOCK, WAITING, WORKERS, Start, Started, stage, worker_started

_POLL_S = 0.3
"""Seconds between two looks at what the workers have reported."""
_CPUS_PER_WORKER = 1


class Desk(Ledger):
    """The ledger with the reports that the run has not shown yet; an actor, so its calls come one at a time."""

    def __init__(self, missing: Sequence[Missing], num_workers: int) -> None:
        """Fill the queue; see :class:`dps.run.ledger.Ledger`."""
        super().__init__(missing, num_workers)
        self._reports: list[Done | Started] = []
        self._stopped = False

    def take(self, worker: int, group: int | None, wanted: int, complete: Mapping[int, int] | None = None) -> Take:
        """Hand out questions, unless the run is to end."""
        return NOTHING_MORE if self._stopped else super().take(worker, group, wanted, complete)

    def report(self, done: Done | Started) -> None:
        """Note a committed question, or the first tokens of a worker."""
        if isinstance(done, Started) or self.done(done.store, done.question_id):
            self._reports.append(done)

    def stop(self) -> None:
        """Ask the workers to end."""
        self._stopped = True

    def stopped(self) -> bool:
        """Whether they were asked to."""
        return self._stopped

    def news(self) -> tuple[list[Done | Started], bool, str | None]:
        """Return the reports since the last call, whether all is done, and a question that is deadly."""
        reports, self._reports = self._reports, []
        return reports, self.finished, self.deadly()


class Worker(pool.Worker):
    """A worker on some node."""

    def __init__(self, number: int, settings: WorkSettings, load_controller: LoadController | None) -> None:
        """Begin the start here, as Ray's processes may have idled before; between its calls an actor waits."""
        super().__init__(number, settings, load_controller)
        self.start = Start()
        self.start.enter(WAITING)

    def run(self, tasks: list[StoreTask], desk: Any) -> Exception | str | None:
        """Do the work; see :meth:`dps.run.pool.Worker.run`. An actor that raised would be taken for dead."""
        import ray

        looked, stopped = 0.0, False

        def stopping() -> bool:
            nonlocal looked, stopped
            if not stopped and time.monotonic() - looked > _POLL_S:
                stopped = ray.get(desk.stopped.remote())
                looked = time.monotonic()
            return stopped

        return super().run(
            tasks,
            take=lambda *asked: ray.get(desk.take.remote(self._number, *asked)),
            report=lambda done: ray.get(desk.report.remote(done)),
            stopping=stopping,
        )


class RayPool:
    """The workers of a run on a Ray cluster; the same interface as :class:`dps.run.pool.Pool`."""

    def __init__(self, settings: WorkSettings, load_controller: LoadController | None) -> None:
        """Join the cluster, or start one on this machine, and start the actors.

        Raises:
            InputError: If Ray is not installed, or there is no cluster at the address.
        """
        require("compute.backend: ray", "ray", "ray", instead=", or use compute.backend: local")
        import ray

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
        settings = pool.on_ray(settings, gpus=gpus > 0)
        actor = ray.remote(**options)(Worker)
        self._workers = [actor.remote(n, settings, load_controller) for n in range(workers)]
        self._desk: Any = None
        self._running: dict[Any, int] = {}

    @stage(CLOCK)
    def clock(self, tasks: Sequence[StoreTask], sampler: SamplerConfig) -> Clock:
        """Let the first actor measure the calibrated clock; see :meth:`dps.run.pool.Pool.clock`."""
        try:
            return pool.checked(self._ray.get(self._workers[0].clock.remote(tasks, sampler)))
        except self._ray.exceptions.RayActorError:
            raise pool.no_clock() from None

    @stage(WORKERS)
    def run(self, tasks: list[StoreTask], missing: Sequence[Missing], report: Report) -> None:
        """Let the actors fill the stores; see :meth:`dps.run.pool.Pool.run`."""
        ray = self._ray
        tasks = [replace(task, folder=task.folder.resolve()) for task in tasks]
        self._desk = ray.remote(num_cpus=0)(Desk).remote(missing, len(self._workers))
        self._running = {worker.run.remote(tasks, self._desk): n for n, worker in enumerate(self._workers)}
        finished = False
        while not finished:
            ended, _ = ray.wait(list(self._running), timeout=_POLL_S)
            reports, finished, deadly = ray.get(self._desk.news.remote())
            for done in reports:
                if isinstance(done, Started):
                    worker_started()
                report(done)
            pool.check_deadly(deadly)
            for future in [] if finished else ended:
                self._ended(future, tasks, report)
            if not self._running and not finished:
                raise WorkersDied(pool.ALL_DIED)

    def _ended(self, future: Any, tasks: list[StoreTask], report: Report) -> None:
        """See why a worker ended; if it died, its questions go to the others."""
        ray, desk = self._ray, self._desk
        number = self._running.pop(future)
        try:
            pool.checked(ray.get(future))
        except ray.exceptions.RayActorError:
            for done in pool.reclaim(number, ray.get(desk.held_by.remote(number)), tasks):
                ray.get(desk.report.remote(done))
            report(Died(number))
            pool.say_lost(number, "", ray.get(desk.lost.remote(number)))

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
