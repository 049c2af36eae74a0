"""The calibrated clock: seconds per token of a model on a device, measured once and stored with the run.

Live runs and replays count time as ``tokens x seconds_per_token + prompt tokens x prefill_seconds_per_token`` (METHOD
section 5), so a controller's time feature does not depend on what else the machine was doing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from dps.benchmarks import Benchmark
from dps.device import synchronize
from dps.model import LanguageModel
from dps.sampler.cache import prefill
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.open import open_engine
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import stream_key
from dps.worker import WorkSettings, prompts_of


def measure_clock(
    model: LanguageModel,
    benchmark: Benchmark,
    settings: WorkSettings,
    sampler: SamplerConfig,
    snapshot_blocks: tuple[int, ...],
) -> dict[str, float]:
    """Measure the calibrated clock in the process of a worker, on the engine that this worker will sample with.

    Args:
        model: The worker's model.
        benchmark: The questions.
        settings: The worker's settings.
        sampler: How chains are sampled.
        snapshot_blocks: Blocks of whose ends snapshots are taken.
    """
    prompts = [tokens for _, tokens in prompts_of(model, benchmark, sampler).values()]
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads or threads)
    try:
        engine = open_engine(
            model,
            sampler,
            settings.compute,
            benchmark=benchmark,
            prompts=prompts,
            memory_share=settings.memory_share,
            snapshot_blocks=snapshot_blocks,
        )
        return calibrate(engine, prompts)
    finally:
        torch.set_num_threads(threads)


def calibrate(engine: Engine, prompts: Sequence[tuple[int, ...]], *, seconds: float = 1.0) -> dict[str, float]:
    """Measure the clock on full rows of real prompts.

    Args:
        engine: An idle engine like the run's (``dps.sampler.open``); it is of no other use afterwards.
        prompts: Prompts to sample from, at least one.
        seconds: How long to measure, after a warm-up: until chains have ended, so that a GPU's recordings are made and
            the rows stand at all lengths, but at least a quarter and at most ten times that.

    Returns:
        ``seconds_per_token``, ``prefill_seconds_per_token`` and ``rows``.
    """
    model, longest = engine.model, max(prompts, key=len)
    number = ended = 0

    def run(duration: float) -> tuple[float, int]:
        nonlocal number, ended
        tokens, decode_s, end = engine.num_generated_tokens, engine.decode_s, time.perf_counter() + duration
        while time.perf_counter() < end:
            while engine.num_running + engine.num_pending < 2 * engine.rows:
                key = stream_key(0, "calibration", number)
                engine.submit(ChainRequest(number, prompts[number % len(prompts)], key))
                number += 1
            ended += len(engine.poll())
            engine.take_snapshots()
        return engine.decode_s - decode_s, engine.num_generated_tokens - tokens

    until = time.perf_counter() + 10 * seconds
    run(seconds / 4)
    while not ended and time.perf_counter() < until:
        run(seconds / 4)
    decode_s, tokens = run(seconds)
    prefill(model.model, [longest])
    synchronize(model.device)
    started = time.perf_counter()
    for _ in range(3):
        prefill(model.model, [longest])
    synchronize(model.device)
    return {
        "seconds_per_token": decode_s / tokens,
        "prefill_seconds_per_token": (time.perf_counter() - started) / (3 * len(longest)),
        "rows": float(engine.rows),
    }
