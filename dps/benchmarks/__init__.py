"""Benchmarks: where questions come from, how they are put to a model, how its answers are found, graded and compared.

``load_benchmark(config)`` gives a :class:`Benchmark`, with which harvests, live evaluations and single questions work.
"""

from importlib import import_module

from dps.benchmarks.benchmark import Benchmark, Item
from dps.benchmarks.config import BenchmarkConfig
from dps.errors import InputError

__all__ = ["Benchmark", "BenchmarkConfig", "Item", "load_benchmark"]

_MODULES = {
    "arithmetic": "generated",
    "gsm8k": "gsm8k",
    "math500": "math500",
    "humaneval": "humaneval",
    "gpqa": "gpqa",
    "alpaca_eval": "alpaca_eval",
    "jsonl": "jsonl",
}
"""In which module the function ``load_<name>`` of each benchmark is; imported when it is asked for."""


def load_benchmark(config: BenchmarkConfig) -> Benchmark:
    """Load the selected questions of a benchmark; nothing heavy is imported.

    Raises:
        InputError: If they cannot be read, or none are left.
    """
    if config.name not in _MODULES:
        raise InputError(f"Expected benchmark.name to be one of {', '.join(_MODULES)}, got {config.name!r}.")
    module = import_module(f"dps.benchmarks.{_MODULES[config.name]}")
    return getattr(module, f"load_{config.name}")(config)
