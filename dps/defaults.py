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
EMBEDDED_PROMPT_LAYERS = (4, 8, 12)
"""A third, two thirds and all of its layers."""
QUESTIONS = {"harvest": 320, "evaluate": 240}
"""Generated questions for the embedded model: some minutes on two cores."""
CONTROLLERS = Path("runs/controllers")
"""Where the shipped configurations of ``dps fit`` leave controllers."""


def defaults_for(command: str, model: str, benchmark: str | None = None, *, bare: bool = False) -> dict[str, Any]:
    """Return a command's defaults where its settings' own do not fit: the key of each, with dots, and its value.

    ``benchmark`` is None for a question by itself; ``bare`` says that an evaluation names no policies or controllers.
    """
    defaults: dict[str, Any] = {}
    if benchmark == "arithmetic" and command == "harvest":
        defaults["benchmark.split"] = "train"  # an evaluation's are of the split test
    if model != EMBEDDED:
        return defaults
    defaults |= {f"sampler.{name}": value for name, value in EMBEDDED_SAMPLER.items()}
    if command in QUESTIONS:
        defaults["features.prompt_layers"] = EMBEDDED_PROMPT_LAYERS
    if benchmark == "arithmetic" and command in QUESTIONS:
        defaults["benchmark.limit"] = QUESTIONS[command]
        if command == "evaluate" and bare:
            paths = [path for path in sorted(CONTROLLERS.glob("*")) if controller_file(path).is_file()]
            trained = {path.name: str(path) for path in paths}
            defaults |= {"policies": (*EvaluateConfig.policies, *trained), "controllers": trained}
    return defaults
