"""The device that a model is on, where something outside PyTorch's own functions has to know of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it, so that a clock measures it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gib() -> float | None:
    """Return the most memory of its GPU that this process has had in use, GiB; None where there is no GPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_initialized() else None


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Let PyTorch's global random numbers start from a seed for a while, and leave them as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
