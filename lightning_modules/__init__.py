"""Controllers that learn from a harvest when k is enough: data module, training, loading.

``data`` makes rows of a harvest, ``trainer_cli`` trains the ``controllers`` on them, ``crossval`` judges every question
by a controller that has not seen it, ``load`` hands the result to live runs. The names below load what they need when
they are first used; loading a controller does not import Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from dps.threads import wait_passively

wait_passively()  # before any module here loads PyTorch

_EXPORTS = {
    "Controller": "lightning_modules.load",
    "load_controller": "lightning_modules.load",
    "push_to_hub": "lightning_modules.ship",
    "cross_validate": "lightning_modules.cli",
    "fit_controller": "lightning_modules.cli",
    "read_predictions": "dps.decide.predictions",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    """Load an exported name at its first use."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'lightning_modules' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
