"""Defaults of the command line that depend on what is asked for; a class of settings can only have one set of them.

The published settings are for large models. The embedded model has room for 256 tokens, and the generated questions
have splits of which one is for training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dps.config import EvaluateConfig
from dps.decide.files import controller_file
from dps.model_config import EMBEDDED

EMBEDDED_SAMPLER = {"block_size": 24, "max_new_tokens": 72, "num_mh_steps": 5}
"""Power sampling that suits the embedded model's short responses."""
QUESTIONS = {"harvest": 320, "evaluate": 240}
"""Generated questions for the embedded model: some minutes on two cores."""
CONTROLLERS = Path("runs/controllers")
"""Where the shipped configurations of ``dps fit`` leave controllers."""


def defaults_for(command: str, model: str, benchmark: str | None = None, *, bare: bool = False) -> dict[str, Any]:
    """Return a command's defaults where its settings' own do not fit.

    Args:
        command: ``harvest``, ``evaluate``, ``bench`` or ``sample``.
        model: Name of the model that is asked for.
        benchmark: Name of the benchmark, None for a question by itself.
        bare: Whether an evaluation names neither policies nor controllers.

    Returns:
        The key of each setting, with dots, and its value.
    """
    found: dict[str, Any] = {}
    if benchmark == "arithmetic" and command == "harvest":
        found["benchmark.split"] = "train"  # an evaluation's are of the split test
    if model != EMBEDDED:
        return found
    found |= {f"sampler.{name}": value for name, value in EMBEDDED_SAMPLER.items()}
    if benchmark == "arithmetic" and command in QUESTIONS:
        found["benchmark.limit"] = QUESTIONS[command]
        if command == "evaluate" and bare:
            trained = {
                path.name: str(path) for path in sorted(CONTROLLERS.glob("*")) if controller_file(path).is_file()
            }
            found |= {"policies": (*EvaluateConfig.policies, *trained), "controllers": trained}
    return found
