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


def floor_of(model: LanguageModel, *, num_steps: int, num_read_positions: int, bandwidth: float) -> dict[str, float]:
    """Return the least seconds of a step, ``floor_s``, and all that they are made of.

    The steps' rows read so many positions of keys and values in all; ``bandwidth`` is bytes per second, reading and
    writing counted alike.
    """
    of_weights, of_position, positions = weight_bytes(model), position_bytes(model), num_read_positions / num_steps
    step_bytes = of_weights + positions * of_position
    return {
        "bandwidth": bandwidth,
        "weight_bytes": of_weights,
        "position_bytes": of_position,
        "num_steps": num_steps,
        "positions_per_step": positions,
        "bytes_per_step": step_bytes,
        "floor_s": step_bytes / bandwidth,
    }


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
