"""Triton kernels of one decoding step: the work between two matrix products, each array touched once.

A step of the engine is a chain of weight products with small work between them: norms, rotary embedding, the write of
one position of keys and values, attention over the row's past, and the draw of the next token from the logits. Their
cost is the bytes they move, so each reads its input once and writes its output once; attention reads the positions a
row has, not the positions it could have.

Every function allocates its output with ``torch.empty``, looks at shapes and Python numbers only and never waits for
the device, so a CUDA graph can hold it. Triton compiles at the first launch: call once before the capture. Kernels are
launched on the current device.

This package imports triton, so only what has checked for a GPU imports it. With ``TRITON_INTERPRET=1`` in the
environment before the import it runs on a CPU, slowly, for tests.
"""

from dps.sampler.kernels.attention import attend_rows
from dps.sampler.kernels.draw import advance_rows, uniform
from dps.sampler.kernels.layers import add_rms_norm, rotate_and_store, silu_and_multiply
from dps.sampler.kernels.memory import move_spans

__all__ = [
    "add_rms_norm",
    "advance_rows",
    "attend_rows",
    "move_spans",
    "rotate_and_store",
    "silu_and_multiply",
    "uniform",
]
