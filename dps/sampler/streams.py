"""Random streams of trajectories: a counter-based generator that gives the same numbers in every batch.

A trajectory's stream is named by (seed, question, arm, index) and by nothing else (METHOD section 2). Draw number
``c`` of a stream is a pure function of its 64-bit key and ``c``, computed for all rows at once on their device, so the
chains of a batch neither share nor exchange random numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from dps.decide.ladder import POWER

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """Return the 64-bit pattern as the signed integer that torch.int64 holds."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def stream_key(seed: int, question_id: str, trajectory: int, arm: str = POWER) -> int:
    """Return the key of a trajectory's stream, a signed 64-bit integer; trajectories of an arm count from 0.

    The arm of power sampling stands in no name, so its streams are those that there were before there were arms.
    """
    name = (seed, question_id, trajectory) if arm == POWER else (seed, question_id, arm, trajectory)
    digest = hashlib.blake2b("\x1f".join(map(str, name)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def prompt_name(tokens: Sequence[int], repeat: int = 0) -> str:
    """Return what names the streams of a question that has no other id: its prompt, and how often that came before."""
    digest = hashlib.blake2b(",".join(map(str, tokens)).encode(), digest_size=8).hexdigest()
    return f"given-{digest}-{repeat}" if repeat else f"given-{digest}"


def _shift(value: Tensor, bits: int) -> Tensor:
    """Shift right without the sign bit (torch shifts int64 arithmetically)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def uniform(keys: Tensor, counters: Tensor) -> Tensor:
    """Return draw ``counters`` of the streams ``keys``: uniform numbers strictly inside (0, 1).

    SplitMix64 seeded by the key (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014); 52 of
    its bits make the number, float64, so neither 0 nor 1 can occur. Both tensors are int64 of the same shape; draws
    count from 0.
    """
    z = keys + (counters + 1) * _signed(_GAMMA)
    z = (z ^ _shift(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shift(z, 27)) * _signed(_MIX_2)
    z = z ^ _shift(z, 31)
    return (_shift(z, 12).to(torch.float64) + 0.5) * 2.0**-52
