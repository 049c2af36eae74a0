"""Benchmarks: where questions come from, how they are put to a model, how its answers are found, graded and compared.

``load_benchmark(config)`` gives a :class:`Benchmark`, with which harvests, live evaluations and single questions work.
"""

from dps.benchmarks.benchmark import Benchmark, Item
from dps.benchmarks.config import BenchmarkConfig
from dps.benchmarks.generated import load_arithmetic
from dps.benchmarks.gsm8k import load_gsm8k
from dps.benchmarks.jsonl import load_jsonl
from dps.errors import InputError

__all__ = ["Benchmark", "BenchmarkConfig", "Item", "load_benchmark"]


def load_benchmark(config: BenchmarkConfig) -> Benchmark:
    """Load the selected questions of a benchmark; nothing heavy is imported.

    Raises:
        InputError: If they cannot be read, or none are left.
    """
    if config.name == "arithmetic":
        return load_arithmetic(config)
    if config.name == "gsm8k":
        return load_gsm8k(config)
    if config.name == "jsonl":
        return load_jsonl(config)
    raise InputError(f"Expected benchmark.name to be one of arithmetic, gsm8k, jsonl, got {config.name!r}.")
