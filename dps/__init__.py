"""Dynamic Power Sampling: exact power sampling of language models, with learned control of how many trajectories.

The public names load what they need when they are first used, so that ``import dps`` costs nothing.

Example:
    >>> import dps
    >>> [record] = dps.answer("From left to right: 14+23*3", k=4)  # doctest: +SKIP
    >>> record.answer, record.k  # doctest: +SKIP
    ('111', 4)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from dps.threads import wait_passively

wait_passively()  # here, because whatever of the package loads PyTorch comes later

__version__ = "0.1.0"
_EXPORTS = {
    "dps.api": "answer stream Records",
    "dps.model": "load_model LanguageModel",
    "lightning_modules": "load_controller fit_controller cross_validate",
    "dps.decide.policy_file": "read_policy PolicyFile",
    "dps.run.run": "harvest evaluate",
    "dps.plotting": "plot",
    "feature_store": "Store Question Trajectory Decision StepTrace Manifest StoreError",
    "dps.run.live": "Checkpoint",
    "dps.decide": "Ladder Rung KRange Policy RULES Rule Controller",
    "dps.sampler.settings": "SamplerConfig",
    "dps.sampler.arms": "Arm",
    "dps.model_config": "ModelConfig",
    "dps.benchmarks": "BenchmarkConfig",
    "dps.run.compute": "ComputeConfig",
    "dps.config": "FeaturesConfig HarvestConfig EvaluateConfig",
    "dps.errors": "InputError",
}
"""Modules and what they offer, in the order of the documentation."""
_HOME = {name: module for module, names in _EXPORTS.items() for name in names.split()}
__all__ = list(_HOME)
RULES: dict[str, Any]
"""Every stopping rule by name, at its published threshold where there is one, for ``answer(..., rule=...)``."""


def __getattr__(name: str) -> Any:
    """Load an exported name at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'dps' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    """Return the public names, those included that are not loaded yet."""
    return sorted({*globals(), *__all__})
