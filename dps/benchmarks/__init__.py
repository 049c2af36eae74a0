"""Benchmarks: where questions come from, how they are put to a model, how its answers are found, graded and compared.

``load_benchmark(config)`` gives a :class:`Benchmark`, with which harvests, live evaluations and single questions work.
"""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from types import ModuleType

from dps.benchmarks.benchmark import Benchmark, Item
from dps.benchmarks.config import BenchmarkConfig
from dps.benchmarks.grading import Grader
from dps.errors import InputError
from dps.model_config import EMBEDDED

__all__ = ["Benchmark", "BenchmarkConfig", "Item", "grader_of", "load_benchmark"]

_MODULES = {
    "arithmetic": "generated",
    "gsm8k": "gsm8k",
    "math500": "math500",
    "humaneval": "humaneval",
    "gpqa": "gpqa",
    "alpaca_eval": "alpaca_eval",
    "jsonl": "jsonl",
}
"""In which module the functions ``load_<name>`` and ``grader`` of each benchmark are; imported when asked for."""


def load_benchmark(config: BenchmarkConfig, model: str | None = None) -> Benchmark:
    """Load the selected questions of a benchmark; nothing heavy is imported.

    Args:
        config: Which questions.
        model: Name of the model that will be asked; the embedded one is asked one's own questions in its own form.

    Raises:
        InputError: If they cannot be read, or none are left.
    """
    if model == EMBEDDED and config.name == "jsonl" and config.template is None:
        from dps.benchmarks.jsonl import EMBEDDED_TEMPLATE

        config = replace(config, template=EMBEDDED_TEMPLATE)
    return getattr(_module(config.name), f"load_{config.name}")(config)


def grader_of(name: str, golds: Sequence[str | None], template: str = "") -> Grader:
    """Return the grader of a benchmark's responses.

    Args:
        name: The benchmark's name.
        golds: The gold answers; with the template they say how responses to one's own questions are read.
        template: The template of the prompt for a base model.

    Raises:
        InputError: If there is no such benchmark.
    """
    return _module(name).grader(golds, template) if name == "jsonl" else _module(name).grader(golds)


def _module(name: str) -> ModuleType:
    if name not in _MODULES:
        raise InputError(f"Expected benchmark.name to be one of {', '.join(_MODULES)}, got {name!r}.")
    return import_module(f"dps.benchmarks.{_MODULES[name]}")
