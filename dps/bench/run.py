"""Runs a benchmark: one case after the other, on the same questions and settings."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import transformers

from dps.bench.config import BenchConfig
from dps.bench.floor import floor_s, measure_bandwidth
from dps.bench.records import Record, Records
from dps.bench.rivals import batched_generate, reference_chain
from dps.benchmarks import Benchmark, load_benchmark
from dps.config import ComputeConfig
from dps.device import name_of
from dps.errors import InputError
from dps.forced import ForcedLengths
from dps.model import LanguageModel, load_model
from dps.run.progress_log import PROGRESS
from dps.run.worker import prompts_of
from dps.sampler.engine import ChainRequest
from dps.sampler.open import open_engine
from dps.sampler.settings import ForwardPath
from dps.sampler.streams import stream_key
from feature_store import Store


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
        while True:
            for name, prompt in self.prompts.items():
                lengths = forced_lengths(config, name)
                for index in range(config.k):
                    key = stream_key(config.seed + number, name, index)
                    yield ChainRequest((number, name, index), prompt, key, lengths[index] if lengths else None)
            number += 1


def forced_lengths(config: BenchConfig, question_id: str) -> tuple[int, ...] | None:
    """Return the length of each trajectory of a question, None where the model says when a response ends."""
    if config.forced_mean_length is None:
        return None
    mean, spread, longest = config.forced_mean_length, config.forced_spread, config.sampler.max_new_tokens
    return ForcedLengths(mean, spread, longest, config.k, config.seed).of(question_id)


def bench(config: BenchConfig) -> Records:
    """Measure every case that the records lack, write each as soon as it is known, and return all records.

    Raises:
        InputError: If the output folder holds the records of another benchmark.
    """
    resolved = asdict(config)
    for name in ("output", "overwrite"):
        resolved.pop(name)
    records = Records(Path(config.output), resolved, overwrite=config.overwrite)
    plan = [(name, measure) for name, measure in _plan(config) if name not in records]
    print(f"bench: {len(plan)} to do", file=sys.stderr)
    setting = _Setting(config)
    for name, measure in plan:
        print(f"bench: {name}", file=sys.stderr, flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        records.add(Record(name=name, **measure(setting)))
    return records


def _plan(config: BenchConfig) -> Iterator[tuple[str, Callable[[_Setting], dict[str, Any]]]]:
    """Yield every measurement's name and how to make it: harvests first, while this process has no model."""
    all_rows = [(rows, rows or "memory") for rows in config.rows]
    if "harvest" in config.cases:
        for repeat in range(config.repeats):  # the numbers of workers take turns, so that a slow spell meets all
            for rows, label in all_rows:
                for workers in config.workers:
                    yield f"harvest-{workers}x{label}-{repeat}", partial(_harvest, rows=rows, workers=workers)
    if "reference" in config.cases:
        yield "reference", _reference
    if "generate" in config.cases:
        for size in config.generate_batch_sizes:
            yield f"generate-{size}", partial(_generate, batch_size=size)
    if "steps" in config.cases:
        for rows, label in all_rows:
            for forward in config.forward:
                yield f"steps-{label}-{forward}", partial(_steps, rows=rows, forward=forward)


def _harvest(setting: _Setting, *, rows: int | None, workers: int) -> dict[str, Any]:
    """All questions to the end by ``dps harvest`` in a process of its own: features, embeddings, grades and commits."""
    config = setting.config
    shared = ("model", "benchmark", "sampler", "features", "seed", "forced_mean_length", "forced_spread")
    settings = {name: value for name, value in asdict(config).items() if name in shared}
    settings["k"] = {"start": config.k, "maximum": config.k}
    compute = {"rows": rows, "workers": workers, "forward": config.forward[0], "threads": config.threads}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path, output = Path(folder) / "harvest.json", Path(folder) / "store"
        path.write_text(json.dumps({**settings, "compute": compute}))
        command = [sys.executable, "-m", "dps", "harvest", f"--config={path}", f"--output={output}"]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        command_s = time.perf_counter() - started
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}, no message."]
            raise InputError(f"The harvest to be measured failed: {said[-1]}")
        last = json.loads((output / PROGRESS).read_text().splitlines()[-1])
        manifest = Store.open(output).manifest
    return {
        "num_tokens": last["tokens"],
        "seconds": last["elapsed_s"],
        "rows": int(manifest.calibration["rows"]),
        "workers": workers,
        "acceptance_ratio": last["acceptance_ratio"],
        "num_questions": last["questions"],
        "command_s": command_s,
        "machine": _machine(manifest.device),
    }


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
        "machine": _machine(name_of(model.device)),
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


_COUNTS = ("decode_s", "num_steps", "num_row_steps", "num_generated_tokens", "num_read_positions")


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
    )
    chains = setting.chains()

    def run(seconds: float) -> dict[str, float]:
        before = {name: getattr(engine, name) for name in _COUNTS}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            while engine.num_pending < engine.rows:
                engine.submit(next(chains))
            engine.poll()
        return {name: getattr(engine, name) - before[name] for name in _COUNTS}

    run(config.steps_s)
    made = run(config.steps_s)
    work = {name: made[name] for name in ("num_steps", "num_read_positions")}
    floor = floor_s(setting.model, **work, bandwidth=bandwidth)
    return {
        "num_tokens": made["num_generated_tokens"],
        "seconds": made["decode_s"],
        "rows": engine.rows,
        "kernels": engine.kernels,
        "ms_per_step": 1e3 * made["decode_s"] / made["num_steps"],
        "floor_share": floor / made["decode_s"],
        "useful_rows": made["num_generated_tokens"] / made["num_row_steps"],
    } | _memory(setting)


def _memory(setting: _Setting) -> dict[str, Any]:
    """Return the peak memory of a GPU since the case began, and the machine."""
    device = setting.model.device
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return {"peak_memory_gib": peak, "machine": _machine(name_of(device))}


def _machine(device: str | None) -> dict[str, Any]:
    """Return device and software."""
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": sys.version.split()[0],
    }
