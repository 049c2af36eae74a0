"""The byte floor of decoding: no step can be faster than reading its weights and keys and values once."""

from __future__ import annotations

import statistics
import time

import torch

from dps.device import synchronize
from dps.model import LanguageModel
from dps.sampler.cache import CacheShape


def weight_bytes(model: LanguageModel) -> int:
    """Return the bytes of weights that one step reads: all but an input embedding that is not the head, too."""
    embedding = model.model.get_input_embeddings().weight
    tied = embedding.data_ptr() == model.model.get_output_embeddings().weight.data_ptr()
    total = sum(weight.nbytes for weight in model.model.parameters())  # a shared weight is counted once
    return total if tied else total - embedding.nbytes


def position_bytes(model: LanguageModel) -> int:
    """Return the bytes of keys and values of one position of one row."""
    return CacheShape.of(model.text_config).elements_per_position * model.model.dtype.itemsize


def floor_s(model: LanguageModel, *, num_steps: int, num_read_positions: int, bandwidth: float) -> float:
    """Return the least seconds of so many steps, whose rows read so many positions of keys and values in all.

    ``bandwidth`` is bytes per second, reading and writing counted alike.
    """
    return (num_steps * weight_bytes(model) + num_read_positions * position_bytes(model)) / bandwidth


def measure_bandwidth(device: torch.device) -> float:
    """Return the bytes per second, read plus written, of a large copy: the median of several."""
    size = 1 << 30 if device.type == "cuda" else 1 << 27
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(12):
        synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size / statistics.median(seconds[2:])
