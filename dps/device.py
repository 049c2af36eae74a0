"""The device that a model is on, where something outside PyTorch's own functions has to know of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it, so that a clock measures it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def name_of(device: torch.device) -> str:
    """Return the name of a GPU; of a CPU the processor's, as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "CPU"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


def peak_gib() -> float | None:
    """Return the most memory of its GPU that this process has had in use, GiB; None where there is no GPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_initialized() else None


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Let PyTorch's global random numbers start from a seed for a while, and leave them as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
