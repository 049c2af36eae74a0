"""How the work of a run is spread; light, so that bad settings are refused before any model loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dps.errors import InputError
from dps.extras import require
from dps.sampler.settings import ForwardPath, check_rows


@dataclass(frozen=True)
class ComputeConfig:
    """How the work is spread."""

    rows: int | None = None
    """Chains that run at a time in one worker, at least 8; as many as memory allows (up to 1,024 on a GPU, 256 on a
    CPU) if not set."""
    questions_at_a_time: int | None = None
    """Questions that a worker works on at a time; as many as keep its rows busy if not set. 1 measures latency as one
    user alone has it: all trajectories of the question that are wanted run side by side, and nothing else runs."""
    workers: int = 1
    """Worker processes on this machine, which pull questions from one queue; each loads the model. On a host with
    several GPUs worker i runs on GPU i (then from the first again), so set it to the number of GPUs."""
    backend: Literal["local", "ray"] = "local"
    """Where the workers are: processes on this machine, or actors on a Ray cluster, one per GPU (or per `threads`
    cores), with stores on a file system that all nodes share. `ray` needs the extra of that name."""
    ray_address: str | None = None
    """Address of the Ray cluster, `auto` for the one that this machine is a node of; without one Ray starts here."""
    shard: str | None = None
    """`2/8` takes the second of eight equal parts of the questions: every eighth, from the second on. Parts of one run
    are put together by `dps store merge`."""
    threads: int | None = None
    """PyTorch threads of a worker; if not set, one for each 150 million parameters of the model, at least one, at most
    the worker's share of the cores, and 4 beside a GPU (`OMP_NUM_THREADS` counts instead of the size); on Ray one."""
    forward: ForwardPath = "auto"
    """How a GPU runs the model: `auto` takes `fused` for the common architectures and `unchanged` for others. A CPU
    runs `eager`."""
    share: bool = True
    """Let the policies of an evaluation that have one sampler share their trajectories: each is sampled once, decided
    on live by every policy, and charged in full to each that uses it; `power`, `plain` and `lowtemp` share rows. Off,
    every policy samples its own, one after another: for `latency_s` as a policy has it alone. So it is, too, where
    questions_at_a_time is set."""
    eager: bool | None = None
    """Let rows that would idle begin the trajectories of a question's next rungs before its policy has said whether k
    is enough, and cancel what is not needed then: same responses, k and answers, sooner, for more tokens (those of
    cancelled trajectories are counted). If not set, on where questions_at_a_time is set and off elsewhere, where token
    counts would depend on timing. True: in any evaluation, whenever rows would idle. A fixed number of trajectories has
    no rungs, so nothing changes for harvests and `power`."""
    prefetch: bool = True
    """Let rows that would idle take the next Metropolis-Hastings steps of running chains ahead of time, on the chance
    that the steps before them leave the response as it is: same chains and counts, sooner. Tokens that no chain needed
    are counted apart (`num_spare_tokens` of a benchmark)."""
    clock_store: str | None = None
    """Folder of an earlier store of the same model, device and rows: its calibrated clock (seconds per token) is taken
    over instead of being measured again, so that `question_time_sec` means the same in both."""
    commit_interval_s: float = 5.0
    """Complete questions are written this often at most, seconds. The time between two writes grows to 1 % of the time
    that the worker has sampled, but not beyond 60 s; a killed run loses at most that and a write under way. 0 writes
    every question at once."""
    tensorboard: bool = False
    """Write the numbers of progress.jsonl as TensorBoard scalars, too, over the questions done; into the folder
    `tensorboard` of each store. Needs the extra of that name."""

    @property
    def shares(self) -> bool:
        """Whether policies over one sampler share their trajectories."""
        return self.share and self.questions_at_a_time is None

    @property
    def begins_early(self) -> bool:
        """Whether rows that would idle begin trajectories that a policy may ask for."""
        return self.questions_at_a_time is not None if self.eager is None else self.eager

    @property
    def part(self) -> slice:
        """The questions of the shard, all of them without one; an InputError if it is not ``i/n`` with 1 <= i <= n."""
        if self.shard is None:
            return slice(None)
        number, _, count = self.shard.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise InputError(f"Expected compute.shard as i/n with 1 <= i <= n, for instance 2/8, got {self.shard!r}.")
        return slice(int(number) - 1, None, int(count))

    def check(self) -> ComputeConfig:
        """Return self if usable, raise InputError otherwise."""
        check_rows(self.rows, "compute.rows")
        for name in ("questions_at_a_time", "workers", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"compute.{name} must be at least 1, got {value}.")
        self.part  # noqa: B018  (refuses what is no shard)
        if self.clock_store == "":
            raise InputError("compute.clock_store is empty: give the folder of an earlier store, or leave it out.")
        if self.commit_interval_s < 0:
            raise InputError(f"compute.commit_interval_s must not be negative, got {self.commit_interval_s:g}.")
        if self.tensorboard:
            instead = ", or leave it out; progress.jsonl has the same numbers"
            require("compute.tensorboard", "tensorboard", "tensorboard", instead=instead)
        return self
