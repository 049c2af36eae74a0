"""Opening an engine: the one place where settings become rows.

A run's workers, the calibrated clock, the plan of a harvest, the benchmark and the Python interface all open their
engines here, so that what is measured is what runs: the same rows, forward pass, stop strings and share of the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dps.sampler.engine import Engine
from dps.sampler.settings import SamplerConfig, check_rows
from dps.start import ROWS, stage

if TYPE_CHECKING:
    from dps.benchmarks import Benchmark
    from dps.config import ComputeConfig
    from dps.model import LanguageModel


@stage(ROWS)
def open_engine(
    model: LanguageModel,
    sampler: SamplerConfig | Sequence[SamplerConfig],
    compute: ComputeConfig,
    *,
    benchmark: Benchmark,
    prompts: Iterable[Sequence[int]],
    memory_share: float,
    layer: int | None,
    stop_room: int = 0,
) -> Engine:
    """Open the engine that these settings mean. Nothing has a default, so that no caller can leave anything out.

    Args:
        model: On the device that will do the work.
        sampler: How chains are sampled; several where chains of each are to share the rows.
        compute: Says how many rows there are, and how the model is run.
        benchmark: Says at which texts a response ends.
        prompts: Token ids of every prompt that may be submitted, at least one; the longest decides the room.
        memory_share: Share of the device's free memory that the rows may plan with, where ``compute.rows`` is None:
            one over the workers that share the device.
        stop_room: States that chains' own stop strings may need; what is sampled does not depend on it.
        layer: Of the hidden states that chains carry, see :class:`Engine`; None where nobody looks at them.

    Raises:
        InputError: If there are too few rows, or the longest prompt leaves no room for a response.
    """
    check_rows(compute.rows, "rows")
    return Engine(
        model,
        sampler,
        rows=compute.rows,
        prompt_room=max(map(len, prompts)),
        memory_share=memory_share,
        path=compute.forward,
        stop_strings=benchmark.stop_strings(model.tokenizer),
        stop_room=stop_room,
        layer=layer,
        prefetch=compute.prefetch,
    )
