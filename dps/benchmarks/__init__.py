"""Benchmarks: where questions come from, how they are put to a model, how its answers are found, graded and compared.

``load_benchmark(config)`` gives a :class:`Benchmark`, with which harvests, live evaluations and single questions work.

A new benchmark is one file and one entry. The file is a module of this package with the benchmark's name; ``gsm8k.py``
is an example of 40 lines. The module has

- ``FILES``: by split the file on the hub (:class:`~dps.benchmarks.records.HubFile`);
- ``GRADER``: what reads the responses, one of ``kinds`` or an own :class:`~dps.benchmarks.grading.Grader`;
- ``load(config)``: calls :func:`~dps.benchmarks.benchmark.load_files` with the prompts and with a function that makes
  the question of a record.

The entry is the name in ``BenchmarkConfig.name`` (``config.py``).
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import get_args, get_type_hints

from dps.benchmarks.benchmark import Benchmark
from dps.benchmarks.config import BenchmarkConfig
from dps.benchmarks.grading import Grader, Item
from dps.errors import InputError
from dps.model_config import EMBEDDED
from dps.start import BENCHMARK, stage

__all__ = ["NAMES", "Benchmark", "BenchmarkConfig", "Item", "grader_of", "load_benchmark", "module_of"]

NAMES: tuple[str, ...] = get_args(get_type_hints(BenchmarkConfig)["name"])


def load_benchmark(config: BenchmarkConfig, model: str | None = None) -> Benchmark:
    """Load the selected questions of a benchmark, once for each settings and content; nothing heavy is imported.

    The embedded model is asked one's own questions in a form of its own; of other models the name does not matter.
    InputError if they cannot be read, or none are left.
    """
    try:
        status = os.stat(os.path.expanduser(config.path or ""))
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
    except OSError:
        stamp = None
    return _loaded(config, model == EMBEDDED, stamp)


@lru_cache(maxsize=8)
@stage(BENCHMARK)
def _loaded(config: BenchmarkConfig, embedded: bool, stamp: tuple[int, ...] | None) -> Benchmark:
    module = module_of(config.name)
    return module.load(config, embedded) if config.name == "jsonl" else module.load(config)


def grader_of(name: str, golds: Sequence[str | None], template: str = "") -> Grader:
    """Return the grader of a benchmark's responses.

    The gold answers and the template of the plain prompt say how responses to one's own questions are read. InputError
    if there is no such benchmark.
    """
    module = module_of(name)
    return module.grader(golds, template) if name == "jsonl" else module.GRADER


def module_of(name: str) -> ModuleType:
    """Return a benchmark's module; InputError if there is no such benchmark."""
    if name not in NAMES:
        raise InputError(f"Expected benchmark.name to be one of {', '.join(NAMES)}, got {name!r}.")
    return import_module(f"dps.benchmarks.{name}")
