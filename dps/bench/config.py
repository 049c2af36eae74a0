"""Settings of a benchmark; light, so that bad ones are refused before any model loads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dps.arguments import check_seed
from dps.benchmarks import BenchmarkConfig
from dps.config import FeaturesConfig, check_forced_lengths
from dps.errors import InputError
from dps.model_config import ModelConfig, check_model_name
from dps.sampler.settings import ForwardPath, SamplerConfig, check_rows

Case = Literal["reference", "generate", "steps", "engine", "latency"]


@dataclass(frozen=True)
class BenchConfig:
    """`dps bench`: the engine against the published one-chain loop and plain batched sampling, in one process."""

    output: str = "runs/bench"
    """Folder of bench.json and bench.csv. A second run of the same command measures what is missing."""
    name: str = "bench"
    """Name of the records."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The language model; with random_weights, a folder that holds a config.json."""
    benchmark: BenchmarkConfig = field(default_factory=lambda: BenchmarkConfig(name="arithmetic"))
    """The questions."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Power sampling, the same for engine and reference; the plain samples have its proposal's temperature."""
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    """Features that the engine's runs compute, as a harvest does."""
    k: int = 8
    """Trajectories of each question."""
    cases: tuple[Case, ...] = ("reference", "generate", "steps", "engine", "latency")
    """What to measure, in this order: the one-chain loop, plain batched sampling, decoding steps with all rows busy,
    whole runs with features, and one question at a time."""
    rows: tuple[int | None, ...] = (None,)
    """Rows of the engine, at least 8, one measurement each; null takes as many as memory allows."""
    forward: tuple[ForwardPath, ...] = ("auto",)
    """How the model is run, one measurement of the case `steps` each; whole runs take the first."""
    generate_batch_sizes: tuple[int, ...] = (64,)
    """Batch sizes of plain sampling; the best one is what the engine is compared with."""
    reference_budget_s: float = 60.0
    """Seconds that the one-chain loop may take; a chain that it cuts off counts with its tokens and its time."""
    latency_questions: int = 3
    """Questions of the case `latency`."""
    steps_s: float = 5.0
    """Seconds over which the case `steps` is measured, after as long a warm-up."""
    repeats: int = 1
    """How often each whole run is measured; records say which repeat they are."""
    forced_mean_length: int | None = None
    """Let responses end at random lengths of this mean instead of where the model says; for random weights."""
    forced_spread: float = 0.5
    """Standard deviation of the logarithm of forced lengths. Long chains end a run alone, in rows that are few: with
    few chains in all, a large spread measures the end."""
    random_prompt_length: int | None = None
    """Take prompts of so many random tokens instead of the questions' own; for random weights."""
    project_chains: int | None = None
    """Also say how long so many chains would take at the measured speed."""
    seed: int = 0
    """Names the random streams; decides forced lengths and random prompts."""
    threads: int | None = None
    """PyTorch threads; PyTorch's own choice if not set."""
    overwrite: bool = False
    """Measure everything anew."""

    def check(self) -> BenchConfig:
        """Return self if usable; raise InputError for what can be known before a model loads."""
        check_model_name(self.model)
        check_seed(self.seed)
        self.sampler.check()
        for name in ("k", "latency_questions", "repeats"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("cases", "rows", "forward", "generate_batch_sizes"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty: name at least one.")
        for rows in self.rows:
            check_rows(rows, "rows")
        if any(value is not None and value < 1 for value in (*self.generate_batch_sizes, self.threads)):
            raise InputError("generate_batch_sizes and threads must be at least 1.")
        if not (self.reference_budget_s > 0 and self.steps_s > 0):
            raise InputError("reference_budget_s and steps_s must be above 0.")
        check_forced_lengths(self.forced_mean_length, self.forced_spread, self.sampler)
        for name in ("random_prompt_length", "project_chains"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}.")
        return self
