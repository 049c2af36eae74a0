"""The calibrated clock: seconds per token of a model on a device, measured once and stored with the run.

A run may take over the clock of an earlier store (``compute.clock_store``), so that both count time alike.

Live runs and replays count time as ``tokens x seconds_per_token + prompt tokens x prefill_seconds_per_token`` (METHOD
section 5), so a controller's time feature does not depend on what else the machine was doing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dps.device import name_of, synchronize
from dps.errors import InputError
from dps.run.worker import EngineCache
from dps.sampler.cache import prefill
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import stream_key
from dps.start import CLOCK, stage
from feature_store import Manifest, Store

_CONSTANTS = ("seconds_per_token", "prefill_seconds_per_token", "rows")


@dataclass(frozen=True, slots=True)
class Clock:
    """The calibrated clock of an engine."""

    constants: dict[str, float]
    """``seconds_per_token``, ``prefill_seconds_per_token``, and ``rows`` that these are for."""
    device: str | None
    """Name of the GPU or processor; None where the store that it comes from does not say."""


def measure_clock(cache: EngineCache, sampler: SamplerConfig) -> Clock:
    """Measure the calibrated clock of a sampler in the process of a worker, on the engine that it will sample with.

    With ``compute.clock_store`` nothing is measured: the engine is only opened, to compare its rows and device.

    Raises:
        InputError: If the earlier store is of another model, device or number of rows.
    """
    engine = cache.engine_of(sampler)
    device, folder = name_of(engine.model.device), cache.settings.compute.clock_store
    if folder is not None:
        return taken_over(folder, fingerprint=engine.model.fingerprint, device=device, rows=engine.rows)
    constants = calibrate(engine, cache.prompts, arm=engine.arms.index(sampler))
    engine.clear()
    return Clock(constants, device)


def clock_store(folder: str) -> Manifest:
    """Return the manifest of a store whose clock is to be taken over.

    Raises:
        StoreError: If there is no store.
        InputError: If it does not say what it was measured on.
    """
    manifest = Store.open(folder).manifest
    if manifest.device is None or any(not manifest.calibration.get(name) for name in _CONSTANTS):
        raise InputError(
            f"Expected compute.clock_store with a measured clock and the name of its device, which {folder} does not "
            "have: leave it out, and give data.init_args.clock_store to dps fit."
        )
    return manifest


def taken_over(folder: str, *, fingerprint: str, device: str, rows: int) -> Clock:
    """Return the clock of an earlier store, if it is of the same model, device and rows as this run.

    Raises:
        InputError: With the first of them that differs.
    """
    earlier = clock_store(folder)
    for what, came, here, remedy in (
        ("model", earlier.model.get("fingerprint"), fingerprint, "name a store of this model"),
        ("device", earlier.device, device, "name a store that was made on such a device"),
        ("rows", int(earlier.calibration["rows"]), rows, f"set compute.rows {earlier.calibration['rows']:.0f}"),
    ):
        if came != here:
            raise InputError(
                f"Expected compute.clock_store of the same {what} as this run's ({here}), but that of {folder} is "
                f"{came}: {remedy}, or leave it out."
            )
    return Clock(dict(earlier.calibration), earlier.device)


@stage(CLOCK)
def calibrate(
    engine: Engine, prompts: Sequence[tuple[int, ...]], *, arm: int = 0, seconds: float = 1.0
) -> dict[str, float]:
    """Measure the clock on full rows of real prompts.

    Args:
        engine: An idle engine; chains are left on it (``Engine.clear``).
        prompts: Prompts to sample from, at least one.
        arm: Number of the engine's settings by which all chains are sampled.
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
                engine.submit(ChainRequest(number, prompts[number % len(prompts)], key, arm=arm))
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
