"""Settings of a benchmark; light, so that bad ones are refused before any model loads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dps.config import ForcedConfig
from dps.errors import InputError
from dps.sampler.settings import ForwardPath, check_rows

Case = Literal["harvest", "plain", "vllm", "reference", "generate", "steps"]


@dataclass(frozen=True)
class BenchConfig(ForcedConfig):
    """`dps bench`: whole runs and decoding steps against vLLM, the published one-chain loop and plain `generate`."""

    output: str = "runs/bench"
    """Folder of bench.json. A second run of the same command measures what is missing; other cases are added."""
    k: int = 8
    """Trajectories of each question."""
    plain_k: int = 16
    """Plain samples of each question that the case `plain` takes, at most 64."""
    cases: tuple[Case, ...] = ("harvest", "plain", "vllm", "reference", "generate", "steps")
    """What to measure, always in this order: whole harvests, whole runs of plain samples at temperature 1 (no features)
    and vLLM, where it is installed, in processes of their own; the one-chain loop, plain batched sampling at the
    proposal's temperature, and decoding steps with all rows busy."""
    workers: tuple[int, ...] = (1,)
    """Workers of a whole run, one GPU each, one measurement each: how a run scales over the GPUs of a host."""
    rows: tuple[int | None, ...] = (None,)
    """Rows of an engine, at least 8, one measurement each; null takes as many as memory allows."""
    forward: tuple[ForwardPath, ...] = ("auto",)
    """How the model is run, one measurement of the case `steps` each; whole runs take the first."""
    prefetch: tuple[bool, ...] = (True,)
    """Whether idle rows take steps ahead of time (`compute.prefetch`), one measurement of the case `harvest` each."""
    generate_batch_sizes: tuple[int, ...] = (64,)
    """Batch sizes of plain sampling; the best one is what the engine is compared with."""
    reference_budget_s: float = 60.0
    """Seconds that the one-chain loop may take; a chain that it cuts off counts with its tokens and its time."""
    vllm_path: str | None = None
    """Folder that vLLM is installed in (`pip install --target`), where it is not beside this package; it goes first on
    the path of vLLM's process, which has this command's environment otherwise."""
    vllm_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of vLLM's `LLM` beside model, data type, length and prefix caching: `{max_num_seqs: 1024}`."""
    vllm_budget_s: float = 120.0
    """Seconds that vLLM's lockstep proposals may take; no step of all chains begins after them."""
    steps_s: float = 5.0
    """Seconds over which the case `steps` is measured, after as long a warm-up."""
    repeats: int = 1
    """How often each whole run is measured."""
    threads: int | None = None
    """PyTorch threads; PyTorch's own choice if not set."""
    overwrite: bool = False
    """Measure everything anew."""

    def check(self) -> BenchConfig:
        """Return self if usable; raise InputError for what can be known before a model loads."""
        self.check_run()
        self.check_forced()
        for name in ("cases", "workers", "rows", "forward", "prefetch", "generate_batch_sizes"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty: name at least one.")
        for rows in self.rows:
            check_rows(rows, "rows")
        for name in ("k", "plain_k", "repeats", "threads", "workers", "generate_batch_sizes"):
            value = getattr(self, name)
            if any(number is not None and number < 1 for number in (value if isinstance(value, tuple) else (value,))):
                raise InputError(f"{name} must be at least 1, got {value}.")
        if self.plain_k > 64:
            raise InputError(f"plain_k must be at most 64, got {self.plain_k}.")
        if not (self.reference_budget_s > 0 and self.vllm_budget_s > 0 and self.steps_s > 0):
            raise InputError("reference_budget_s, vllm_budget_s and steps_s must be above 0.")
        if self.vllm_path is not None and not Path(self.vllm_path).is_dir():
            raise InputError(
                f"Expected vllm_path to be the folder that vLLM is installed in, but {self.vllm_path} is no folder: "
                "leave it out where vLLM is installed beside this package."
            )
        return self
