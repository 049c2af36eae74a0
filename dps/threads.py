"""Threads of the CPU: how those that wait for work behave, and how many a model gets.

The OpenMP library decides when it is loaded, with PyTorch, how its waiting threads behave. PyTorch's wheels for Linux
come with GNU's, which reads ``OMP_WAIT_POLICY`` and ``GOMP_SPINCOUNT``; others come with LLVM's or Intel's, which read
``OMP_WAIT_POLICY`` and ``KMP_BLOCKTIME``. As long as nothing is said, waiting threads spin: beside another program the
thread that has work waits for a core on which a waiting one spins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
_SAYS = (*_PASSIVE, "GOMP_SPINCOUNT")
PARAMETERS_A_THREAD = 150_000_000
"""A model gets one thread for each so many parameters: with less to do, threads wait for each other longer than they
work (docs/performance.md)."""


def wait_passively() -> None:
    """Let threads sleep while they wait, unless the user's environment says how they wait.

    Must be called before PyTorch is loaded; later it has no effect but on processes that are started.
    """
    if not any(name in os.environ for name in _SAYS):
        os.environ.update(_PASSIVE)


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_threads(num_parameters: int, sharing: int = 1, most: int | None = None) -> int:
    """Return the threads of a model on a CPU: one for each 150 million parameters, at least one, at most the cores.

    Args:
        num_parameters: Of the model.
        sharing: Processes that share this machine's cores.
        most: No more than that, if given.

    Returns:
        At least 1. ``OMP_NUM_THREADS``, where the user has set it, counts instead of the size of the model, but
        processes that share the cores have no more than their share.
    """
    share = max(1, num_cores() // sharing)
    if (wanted := os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]).isdecimal() and int(wanted):
        return int(wanted) if sharing == 1 else min(share, int(wanted))
    threads = min(share, max(1, num_parameters // PARAMETERS_A_THREAD))
    return threads if most is None else min(threads, most)


@contextmanager
def torch_threads(most: int) -> Iterator[None]:
    """Let PyTorch use no more than so many threads in this context, and as many as before after it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(before, most))
    try:
        yield
    finally:
        torch.set_num_threads(before)
