"""Runs a benchmark: one case after the other, on the same questions and settings."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from dps.bench.config import BenchConfig
from dps.bench.floor import floor_of, measure_bandwidth
from dps.bench.records import Record, Records, machine_of
from dps.bench.rivals import batched_generate, reference_chain
from dps.bench.vllm import Job, LeftOut, measurements, run_job, vllm_version
from dps.bench.whole import whole_run
from dps.benchmarks import Benchmark, load_benchmark
from dps.config import ComputeConfig
from dps.device import name_of
from dps.model import LanguageModel, load_model
from dps.model_config import EMBEDDED, embedded_path
from dps.run.scheduler import COUNTED
from dps.run.worker import prompts_of
from dps.sampler.engine import ChainRequest
from dps.sampler.open import open_engine
from dps.sampler.settings import ForwardPath
from dps.sampler.streams import stream_key

Measure = Callable[["_Setting", tuple[str, ...]], Iterable[tuple[str, dict[str, Any]]]]
"""Makes the named measurements, each the values of a record."""


class _Setting:
    """What the cases of one process have in common; the model loads when the first of them needs it."""

    def __init__(self, config: BenchConfig) -> None:
        self.config = config

    @cached_property
    def model(self) -> LanguageModel:
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        return load_model(self.config.model)

    @cached_property
    def benchmark(self) -> Benchmark:
        return load_benchmark(self.config.benchmark, self.config.model.name)

    @cached_property
    def prompts(self) -> dict[str, tuple[int, ...]]:
        """Prompts by question."""
        prompts = prompts_of(self.model, self.benchmark, self.config.sampler)
        return {name: tuple(tokens) for name, (_, tokens) in prompts.items()}

    @cached_property
    def bandwidth(self) -> float:
        return measure_bandwidth(self.model.device)

    def chains(self) -> Iterator[ChainRequest]:
        """Yield chains of the questions over and over, with new random numbers each time."""
        config, number = self.config, 0
        forced = config.forced_lengths(config.k)
        while True:
            for name, prompt in self.prompts.items():
                lengths = forced.of(name) if forced is not None else None
                for index in range(config.k):
                    key = stream_key(config.seed + number, name, index)
                    yield ChainRequest((number, name, index), prompt, key, lengths[index] if lengths else None)
            number += 1


def bench(config: BenchConfig) -> Records:
    """Measure every case that the records lack, write each as soon as it is known, and return all records.

    Raises:
        InputError: If the output folder holds the records of another benchmark.
    """
    resolved = asdict(config)
    for name in ("output", "overwrite", "cases", "repeats", "vllm_path"):  # parts of one benchmark, and where
        resolved.pop(name)
    records = Records(Path(config.output), resolved, overwrite=config.overwrite)
    plan = [(tuple(name for name in names if name not in records), measure) for names, measure in _plan(config)]
    print(f"bench: {sum(len(names) for names, _ in plan)} to do", file=sys.stderr)
    setting = _Setting(config)
    for names, measure in plan:
        if not names:
            continue
        print(f"bench: {', '.join(names)}", file=sys.stderr, flush=True)
        if torch.cuda.is_initialized():  # else nothing is to be given back, and this process takes no memory yet
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            for name, values in measure(setting, names):
                records.add(Record(name=name, **values))
        except LeftOut as reason:
            lacking = ", ".join(name for name in names if name not in records)
            print(f"bench: left out {lacking}: {reason}.", file=sys.stderr, flush=True)
    return records


def _plan(config: BenchConfig) -> Iterator[tuple[tuple[str, ...], Measure]]:
    """Yield the names of measurements and how to make them; other processes come first, while this one has no model."""

    def one(name: str, measure: Callable[[_Setting], dict[str, Any]]) -> tuple[tuple[str, ...], Measure]:
        return (name,), lambda setting, names: [(names[0], measure(setting))]

    all_rows = [(rows, rows or "memory") for rows in config.rows]
    for repeat in range(config.repeats):  # kinds and numbers of workers take turns, so that a slow spell meets all
        for rows, label in all_rows:
            for workers in config.workers:
                name, size = f"{workers}x{label}-{repeat}", {"rows": rows, "workers": workers}
                for prefetch in config.prefetch if "harvest" in config.cases else ():
                    run = partial(_whole, plain=False, prefetch=prefetch, **size)
                    yield one(f"harvest-{name}" + ("" if prefetch else "-one-by-one"), run)
                if "plain" in config.cases:
                    yield one(f"plain-{name}", partial(_whole, plain=True, prefetch=True, **size))
    if "vllm" in config.cases:
        yield tuple(_vllm_measurements(config)), _vllm
    if "reference" in config.cases:
        yield one("reference", _reference)
    if "generate" in config.cases:
        for size in config.generate_batch_sizes:
            yield one(f"generate-{size}", partial(_generate, batch_size=size))
    if "steps" in config.cases:
        for rows, label in all_rows:
            for forward in config.forward:
                yield one(f"steps-{label}-{forward}", partial(_steps, rows=rows, forward=forward))


def _whole(setting: _Setting, *, plain: bool, prefetch: bool, rows: int | None, workers: int) -> dict[str, Any]:
    """All questions to the end by ``dps harvest`` or, for plain samples, ``dps evaluate``."""
    if plain and setting.config.forced_mean_length is not None:
        raise LeftOut("only harvests have forced lengths")
    return whole_run(setting.config, plain=plain, prefetch=prefetch, rows=rows, workers=workers)


def _vllm_measurements(config: BenchConfig) -> dict[str, dict[str, Any]]:
    return measurements(config.sampler.temperature, lockstep=config.sampler.num_mh_steps > 0)


def _vllm(setting: _Setting, names: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same prompts with vLLM; what it prints goes to ``vllm.log`` beside the records."""
    config = setting.config
    if config.model.random_weights:
        raise LeftOut("vLLM would have other random weights")
    version = vllm_version(config.vllm_path)
    # On the CPU, for tokenizer and EOS only: the GPU's memory is left to vLLM.
    model = load_model(replace(config.model, device="cpu", dtype="bfloat16"))
    prompts = [list(tokens) for _, tokens in prompts_of(model, setting.benchmark, config.sampler).values()]
    sampler = config.sampler
    options = {
        "model": str(embedded_path("model")) if config.model.name == EMBEDDED else config.model.name,
        "revision": config.model.revision,
        "trust_remote_code": config.model.trust_remote_code,
        "dtype": "bfloat16" if config.model.dtype == "auto" else config.model.dtype,
        "max_model_len": max(map(len, prompts)) + sampler.max_new_tokens,
        "enable_prefix_caching": True,
        "seed": config.seed,
    }
    job = Job(
        options=options | config.vllm_options,
        prompts=prompts,
        k=config.k,
        eos_ids=list(model.eos_ids),
        stop=list(setting.benchmark.stop_strings(model.tokenizer)),
        block_size=sampler.block_size,
        max_new_tokens=sampler.max_new_tokens,
        num_mh_steps=sampler.num_mh_steps,
        final_steps=sampler.final_steps,
        alpha=sampler.alpha,
        seed=config.seed,
        budget_s=config.vllm_budget_s,
        measurements={name: what for name, what in _vllm_measurements(config).items() if name in names},
    )
    del model
    for values in run_job(job, config.vllm_path, Path(config.output) / "vllm.log"):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        yield values.pop("name"), values | {"machine": machine_of(name_of(device)) | {"vllm": version}}


def _reference(setting: _Setting) -> dict[str, Any]:
    """The published loop on the first questions, until the budget is spent."""
    config, model = setting.config, setting.model
    prompts = list(setting.prompts.values())
    brief = replace(config.sampler, max_new_tokens=config.sampler.block_size, num_mh_steps=1)
    reference_chain(model, prompts[-1], brief, seed=0, budget_s=5.0)  # warm-up
    chains, spent = [], 0.0
    for number, prompt in enumerate(prompts):
        left = config.reference_budget_s - spent
        if left <= 0:
            break
        chains.append(reference_chain(model, prompt, config.sampler, seed=number, budget_s=left))
        spent += chains[-1].seconds
    proposed = sum(chain.mh_proposed for chain in chains)
    return {
        "num_tokens": sum(chain.num_generated_tokens for chain in chains),
        "seconds": spent,
        "acceptance_ratio": sum(chain.mh_accepted for chain in chains) / proposed if proposed else None,
        "machine": machine_of(name_of(model.device)),
    }


def _generate(setting: _Setting, *, batch_size: int) -> dict[str, Any]:
    """One batch of plain samples of the proposal's temperature, after a short one that is not counted."""
    config, prompts = setting.config, list(setting.prompts.values())
    batch = [prompts[i % len(prompts)] for i in range(batch_size)]
    settings = {"temperature": config.sampler.temperature, "stop_at_eos": config.forced_mean_length is None}
    longest = config.forced_mean_length or config.sampler.max_new_tokens
    batched_generate(setting.model, batch, max_new_tokens=min(8, longest), seed=0, **settings)
    tokens, seconds = batched_generate(setting.model, batch, max_new_tokens=longest, seed=config.seed, **settings)
    return {"num_tokens": tokens, "seconds": seconds, "rows": batch_size} | _memory(setting)


def _steps(setting: _Setting, *, rows: int | None, forward: ForwardPath) -> dict[str, Any]:
    """Decoding steps with all rows busy, after a warm-up that brings rows to all stages."""
    config, bandwidth = setting.config, setting.bandwidth
    engine = open_engine(
        setting.model,
        config.sampler,
        ComputeConfig(rows=rows, forward=forward),
        benchmark=setting.benchmark,
        prompts=list(setting.prompts.values()),
        memory_share=1.0,
        layer=config.features.layer,
    )
    chains = setting.chains()

    def run(seconds: float) -> dict[str, float]:
        before = {name: getattr(engine, name) for name in COUNTED}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            while engine.num_pending < engine.rows:
                engine.submit(next(chains))
            engine.poll()
        return {name: getattr(engine, name) - before[name] for name in COUNTED}

    run(config.steps_s)
    made = run(config.steps_s)
    work = {name: made[name] for name in ("num_steps", "num_read_positions")}
    floor = floor_of(setting.model, **work, bandwidth=bandwidth)
    return {
        "num_tokens": made["num_generated_tokens"],
        "seconds": made["decode_s"],
        "rows": engine.rows,
        "kernels": engine.kernels,
        "ms_per_step": 1e3 * made["decode_s"] / made["num_steps"],
        "floor_share": floor["floor_s"] * made["num_steps"] / made["decode_s"],
        "floor": floor,
        "useful_rows": made["num_generated_tokens"] / made["num_row_steps"],
    } | _memory(setting)


def _memory(setting: _Setting) -> dict[str, Any]:
    """Return the peak memory of a GPU since the case began, and the machine."""
    device = setting.model.device
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return {"peak_memory_gib": peak, "machine": machine_of(name_of(device))}
