"""The calibrated clock: seconds per token of a model on a device, measured once and stored with the run.

Live runs and replays count time as ``tokens x seconds_per_token + prompt tokens x prefill_seconds_per_token`` (METHOD
section 5), so a controller's time feature does not depend on what else the machine was doing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from dps.device import synchronize
from dps.model import LanguageModel
from dps.sampler.cache import prefill
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import stream_key


def calibrate(
    model: LanguageModel,
    config: SamplerConfig,
    prompts: Sequence[tuple[int, ...]],
    *,
    rows: int | None,
    memory_share: float = 1.0,
    stop_strings: Sequence[str] = (),
    seconds: float = 1.0,
) -> dict[str, float]:
    """Measure the clock on full rows of real prompts.

    Args:
        model: The language model.
        config: The sampler's settings.
        prompts: Prompts to sample from, at least one.
        rows: Rows of the run; None as many as memory allows.
        memory_share: Share of the memory that the run's rows may plan with, where ``rows`` is None.
        stop_strings: Texts that end a response.
        seconds: How long to measure, after a warm-up: until chains have ended, so that a GPU's recordings are made and
            the rows stand at all lengths, but at least a quarter and at most ten times that.

    Returns:
        ``seconds_per_token``, ``prefill_seconds_per_token`` and ``rows``.
    """
    longest = max(prompts, key=len)
    engine = Engine(
        model, config, rows=rows, prompt_room=len(longest), memory_share=memory_share, stop_strings=stop_strings
    )
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
