"""Dynamic Power Sampling: exact power sampling of language models, with learned control of how many trajectories.

The names below load what they need when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from dps.threads import wait_passively

wait_passively()  # here, because whatever of the package loads PyTorch comes later

_EXPORTS = {
    "answer": "dps.api",
    "load_model": "dps.model",
    "ModelConfig": "dps.model_config",
    "SamplerConfig": "dps.sampler.settings",
    "KRange": "dps.decide",
    "BenchmarkConfig": "dps.benchmarks",
    "HarvestConfig": "dps.config",
    "EvaluateConfig": "dps.config",
    "harvest": "dps.run.run",
    "evaluate": "dps.run.run",
    "InputError": "dps.errors",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    """Load an exported name at its first use."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'dps' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
