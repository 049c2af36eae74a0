"""The file of a shipped controller: safetensors for the numbers, JSON for all else. Nothing in it can run.

A checkpoint is nested: weights, and states that hold texts, numbers and tensors. In the file, every tensor and every
other value is named by its path through the nesting, parts joined by ``/``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

_HEADER = "controller"
"""The one entry of the header: JSON with the description and the values of the state that are no tensors."""


def write_shipped(path: Path, description: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a controller; the same one makes the same bytes."""
    from safetensors.torch import save_file

    leaves = dict(_leaves(state))
    tensors = {place: value.contiguous().clone() for place, value in leaves.items() if isinstance(value, Tensor)}
    values = {place: value for place, value in leaves.items() if place not in tensors}
    save_file(tensors, path, {_HEADER: json.dumps({"description": description, "state": values})})


def read_shipped(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return description and state; a file that is none raises anything."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[_HEADER])
        # Copies: the others are windows onto the file, which may be replaced.
        tensors = {place: file.get_tensor(place).clone() for place in file.keys()}  # noqa: SIM118
    leaves = header["state"] | tensors
    state: dict[str, Any] = {}
    for place, value in leaves.items():
        *parents, last = place.split("/")
        within = state
        for parent in parents:
            within = within.setdefault(parent, {})
        within[last] = value
    return header["description"], state


def _leaves(state: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{within}{key}/")
        else:
            yield f"{within}{key}", value
