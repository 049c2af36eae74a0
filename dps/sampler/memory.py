"""How many rows fit: a formula over free device memory, so that the number is known before anything is allocated."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from dps.sampler.cache import CacheShape

_SHARE = 0.9
"""Share of the free memory that is planned with; the rest is for the allocator's fragments and small tensors."""
_READING_BYTES = 8 << 30
"""Kept free on a GPU for prompts, recordings and the teacher-forced pass that computes features."""
_LOGIT_BYTES = 10
"""Bytes per row and vocabulary entry while a token is drawn: the logits in half and in single precision, and a sum."""
MOST_ROWS = {"cuda": 1024, "cpu": 256}
"""More rows than these gain little, and leave more of them idle when the last chains end."""


def row_bytes(model: PreTrainedModel, positions: int, kept: int = 0) -> int:
    """Return the device memory of one row of that many positions, prompt and response together.

    Keys and values twice (what is generated, and the accepted response to which a rejected step returns), tokens, what
    the model said of them and the state of stop strings likewise, the hidden states of one layer for the ``kept``
    tokens that have them, and the logits.
    """
    text = model.config.get_text_config()
    states = CacheShape.of(text).elements_per_position * positions * model.dtype.itemsize
    states += text.hidden_size * kept * model.dtype.itemsize
    recorded = (5 * 8 + 2) * positions + 4 * kept
    return 2 * (states + recorded) + _LOGIT_BYTES * text.vocab_size


def rows_from_memory(
    model: PreTrainedModel, positions: int, *, kept: int = 0, share: float = 1.0, free_bytes: int | None = None
) -> int:
    """Return the number of rows that fit: ``(0.9 share free - 8 GiB) / row_bytes`` on a GPU, at most 1,024.

    On a CPU nothing is kept back beside the tenth, and there are at most 256.

    Args:
        model: The model, its weights in place.
        positions: S, prompt and response together.
        kept: Tokens of a response whose hidden states are kept, see ``kept``.
        share: Share of the free memory that may be planned with, where several processes have rows.
        free_bytes: Free memory; what the device reports if not given.

    Returns:
        At least 1; a multiple of 64 from 64 up, of 8 from 8 up.
    """
    device = model.device
    rows = rows_that_fit(model, positions, kept=kept, share=share, free_bytes=free_bytes)
    rows = max(1, min(rows, MOST_ROWS.get(device.type, MOST_ROWS["cpu"])))
    step = 64 if rows >= 64 else 8 if rows >= 8 else 1
    return rows // step * step


def rows_that_fit(
    model: PreTrainedModel, positions: int, *, kept: int = 0, share: float = 1.0, free_bytes: int | None = None
) -> int:
    """Return how many rows a device has memory for, however many would be of use; see :func:`rows_from_memory`."""
    free_bytes = _free_bytes(model.device) if free_bytes is None else free_bytes
    reading = _READING_BYTES if model.device.type == "cuda" else 0
    return int(_SHARE * share * free_bytes - reading) // row_bytes(model, positions, kept)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether PyTorch means that a device's memory is used up: of a CPU it has no class of error."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _free_bytes(device: torch.device) -> int:
    """Return the memory that can still be allocated on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What PyTorch holds and does not use can be used again.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    return psutil.virtual_memory().available
