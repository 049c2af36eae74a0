"""Runs a benchmark: one case after the other in this process, on the same questions and settings."""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from dps.bench.config import BenchConfig
from dps.bench.floor import floor_s, measure_bandwidth
from dps.bench.generate import batched_generate
from dps.bench.records import Records
from dps.bench.reference import ReferenceChain, reference_chain
from dps.benchmarks import Benchmark, load_benchmark
from dps.config import ComputeConfig
from dps.decide import FixedK
from dps.device import name_of
from dps.forced import ForcedLengths
from dps.model import LanguageModel, load_model
from dps.run.progress import track
from dps.run.scheduler import Account, PreparedQuestion, run_policy
from dps.run.worker import open_embedder, prepare, prompts_of
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.open import open_engine
from dps.sampler.settings import SMALLEST_BATCH, ForwardPath
from dps.sampler.streams import stream_key
from feature_store import Question


@dataclass(frozen=True, slots=True)
class _Setting:
    """What all cases have in common."""

    config: BenchConfig
    model: LanguageModel
    benchmark: Benchmark
    questions: list[PreparedQuestion]
    bandwidth: float


def bench(config: BenchConfig) -> Records:
    """Measure every case that the records lack, and write each as soon as it is known.

    Args:
        config: The benchmark; checked.

    Returns:
        All records.

    Raises:
        InputError: If the output folder holds the records of another benchmark.
    """
    resolved = asdict(config)
    for name in ("output", "overwrite"):
        resolved.pop(name)
    records = Records(Path(config.output), resolved, overwrite=config.overwrite)
    plan = [(identity, measure) for identity, measure in _plan(config) if identity not in records]
    if not plan:
        return records
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    model = load_model(config.model)
    setting = _setting(config, model)
    with track("bench", len(plan)) as progress:
        for identity, measure in plan:
            progress.note(case=identity)
            with _memory(model.device) as peak:
                found = measure(setting, records)
            records.add(identity, {**found, "peak_memory_gib": peak()} | _facts(setting))
            progress.advance()
    return records


def _plan(config: BenchConfig) -> Iterator[tuple[str, Callable[[_Setting, Records], dict[str, Any]]]]:
    """Yield every measurement's identity and how to make it, in order."""
    for case in ("reference", "generate", "steps", "engine", "latency"):
        if case not in config.cases:
            continue
        if case == "reference":
            yield case, _reference
        elif case == "generate":
            for size in config.generate_batch_sizes:
                yield f"generate-{size}", _bind(_generate, batch_size=size)
        elif case == "steps":
            for rows in config.rows:
                for forward in config.forward:
                    yield f"steps-{rows or 'memory'}-{forward}", _bind(_steps, rows=rows, forward=forward)
        elif case == "engine":
            for rows in config.rows:
                for repeat in range(config.repeats):
                    yield f"engine-{rows or 'memory'}-{repeat}", _bind(_engine, rows=rows, repeat=repeat)
        else:
            yield case, _latency


def _bind(measure: Callable[..., dict[str, Any]], **settings: Any) -> Callable[[_Setting, Records], dict[str, Any]]:
    return lambda setting, records: measure(setting, records, **settings)


def _setting(config: BenchConfig, model: LanguageModel) -> _Setting:
    """Load and prepare the questions."""
    benchmark = load_benchmark(config.benchmark, config.model.name)
    prompts = prompts_of(model, benchmark, config.sampler)
    if config.random_prompt_length is not None:
        rng = np.random.default_rng(config.seed)
        vocabulary = model.model.get_input_embeddings().weight.shape[0]
        usable = np.setdiff1d(np.arange(vocabulary), model.eos_ids)
        prompts = {
            name: (text, tuple(rng.choice(usable, config.random_prompt_length).tolist()))
            for name, (text, _) in prompts.items()
        }
    questions = prepare(benchmark.items, prompts, None)
    if config.forced_mean_length is not None:
        questions = [
            replace(question, forced_lengths=forced_lengths(config, question.question_id)) for question in questions
        ]
    return _Setting(config, model, benchmark, questions, measure_bandwidth(model.device))


def forced_lengths(config: BenchConfig, question_id: str) -> tuple[int, ...]:
    """Return the length of each trajectory of a question."""
    assert config.forced_mean_length is not None
    return ForcedLengths(
        config.forced_mean_length, config.forced_spread, config.sampler.max_new_tokens, config.k, config.seed
    ).of(question_id)


# -- the cases ---------------------------------------------------------------------------------------------------------


def _reference(setting: _Setting, records: Records) -> dict[str, Any]:
    """The published loop on the first questions, until the budget is spent."""
    config, model = setting.config, setting.model
    brief = replace(config.sampler, max_new_tokens=config.sampler.block_size, num_mh_steps=1)
    reference_chain(model, setting.questions[-1].tokens, brief, seed=0, budget_s=5.0)  # warm-up
    chains: list[ReferenceChain] = []
    spent = 0.0
    for number, question in enumerate(setting.questions):
        left = config.reference_budget_s - spent
        if left <= 0:
            break
        chains.append(reference_chain(model, question.tokens, config.sampler, seed=number, budget_s=left))
        spent += chains[-1].seconds
    tokens = sum(chain.num_generated_tokens for chain in chains)
    complete = [chain for chain in chains if chain.complete]
    proposed = sum(chain.mh_proposed for chain in chains)
    return {
        "case": "reference",
        "tokens_per_s": tokens / spent,
        "num_tokens": tokens,
        "wall_s": spent,
        "num_chains": len(complete),
        "seconds_per_chain": statistics.mean(c.seconds for c in complete) if complete else None,
        "tokens_per_chain": statistics.mean(c.num_generated_tokens for c in complete) if complete else None,
        "acceptance": sum(chain.mh_accepted for chain in chains) / proposed if proposed else None,
    }


def _generate(setting: _Setting, records: Records, *, batch_size: int) -> dict[str, Any]:
    """Plain batched sampling: one batch of prompts, as many copies of the questions as it takes."""
    config = setting.config
    prompts = [setting.questions[i % len(setting.questions)].tokens for i in range(batch_size)]
    forced = config.forced_mean_length
    settings = {"temperature": config.sampler.temperature, "stop_at_eos": forced is None}
    batched_generate(setting.model, prompts, max_new_tokens=8, seed=1, **settings)  # warm-up
    limit = forced or config.sampler.max_new_tokens
    tokens, seconds = batched_generate(setting.model, prompts, max_new_tokens=limit, seed=0, **settings)
    return {
        "case": "generate",
        "batch_size": batch_size,
        "tokens_per_s": tokens / seconds,
        "num_tokens": tokens,
        "wall_s": seconds,
    }


def _steps(setting: _Setting, records: Records, *, rows: int | None, forward: ForwardPath) -> dict[str, Any]:
    """Decoding steps with all rows busy, by the engine itself, after a warm-up that brings rows to all stages."""
    config = setting.config
    engine = _open(setting, rows, forward)
    requests = _endless(setting)

    def run(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            while engine.num_pending < engine.rows:
                engine.submit(next(requests))
            engine.poll()

    _warm_up(setting, engine)
    run(config.steps_s)
    counted = _Counted(engine)
    run(config.steps_s)
    return {"case": "steps", "forward": forward} | counted.since(setting, engine) | _against(records, None)


def _engine(setting: _Setting, records: Records, *, rows: int | None, repeat: int) -> dict[str, Any]:
    """All questions to the end with features and embeddings, as a harvest runs them, without the store."""
    config = setting.config
    embedder = open_embedder(config.features.embedder, setting.model.device)
    embedder.embed(["warm-up"])
    engine = _open(setting, rows, config.forward[0])
    _warm_up(setting, engine)
    account, counted = Account(), _Counted(engine)
    started = time.perf_counter()
    embeddings = embedder.embed([question.item.question for question in setting.questions])
    questions = [replace(q, embedding=e) for q, e in zip(setting.questions, embeddings, strict=True)]
    embedding_s = time.perf_counter() - started
    done = list(_sample(setting, engine, questions, account, config.seed + repeat))
    wall = time.perf_counter() - started
    tokens = sum(t.num_generated_tokens for q in done for t in q.trajectories)
    proposed = sum(t.mh_proposed for q in done for t in q.trajectories)
    chains = len(done) * config.k
    correct = [q.correct for q in done if q.correct is not None]
    found = {"case": "engine", "repeat": repeat, "forward": config.forward[0]} | counted.since(setting, engine)
    found |= {
        "tokens_per_s": tokens / wall,
        "num_tokens": tokens,
        "wall_s": wall,
        "num_questions": len(done),
        "k": config.k,
        "num_chains": chains,
        "tokens_per_chain": tokens / chains,
        "seconds_per_question": wall / len(done),
        "acceptance": sum(t.mh_accepted for q in done for t in q.trajectories) / proposed if proposed else None,
        "accuracy": statistics.mean(correct) if correct else None,
        "prefill_s": account.prefill,
        "features_s": account.features,
        "embedding_s": embedding_s,
        "other_s": account.other,
    } | _against(records, tokens / wall)
    # While chains wait the rows are full, as they are in a longer run for all but its end.
    busy_s = engine.busy_until - started if engine.busy_until is not None and engine.busy_until > started else None
    found["busy_wall_s"] = busy_s
    found["busy_tokens_per_wall_s"] = counted.busy_tokens(engine) / busy_s if busy_s else None
    if config.project_chains is not None:
        needed = config.project_chains * found["tokens_per_chain"]
        found["projected_chains"] = config.project_chains
        found["projected_s"] = needed / found["tokens_per_s"]
        found["projected_full_rows_s"] = needed / found["busy_tokens_per_wall_s"] if busy_s else None
    return found


def _latency(setting: _Setting, records: Records) -> dict[str, Any]:
    """One question at a time with nothing else running, against k chains of the published loop after each other."""
    config = setting.config
    engine = _open(setting, max(config.k, SMALLEST_BATCH), config.forward[0])
    _warm_up(setting, engine)
    list(_sample(setting, engine, setting.questions[-1:], Account(), config.seed + 1))
    seconds, tokens = [], []
    for question in setting.questions[: config.latency_questions]:
        started = time.perf_counter()
        done = next(iter(_sample(setting, engine, [question], Account(), config.seed)))
        seconds.append(time.perf_counter() - started)
        tokens.append(sum(t.num_generated_tokens for t in done.trajectories))
    reference = records.get("reference")
    speed = reference["tokens_per_s"] if reference else None
    ratios = [n / speed / s for n, s in zip(tokens, seconds, strict=True)] if speed else []
    return {
        "case": "latency",
        "rows": engine.rows,
        "kernels": engine.kernels,
        "k": config.k,
        "num_questions": len(seconds),
        "num_tokens": sum(tokens),
        "tokens_per_s": sum(tokens) / sum(seconds),
        "latency_s": statistics.median(seconds),
        # The published loop needs the tokens of k chains one after the other.
        "reference_latency_s": statistics.median(n / speed for n in tokens) if speed else None,
        "reference_tokens_per_s": speed,
        "ratio": statistics.median(ratios) if ratios else None,
    }


# -- what they share ---------------------------------------------------------------------------------------------------


def _open(setting: _Setting, rows: int | None, forward: ForwardPath) -> Engine:
    """Open the engine that a worker alone on the device would have with these rows and this forward pass."""
    return open_engine(
        setting.model,
        setting.config.sampler,
        ComputeConfig(rows=rows, forward=forward),
        benchmark=setting.benchmark,
        prompts=[question.tokens for question in setting.questions],
        memory_share=1.0,
    )


def _warm_up(setting: _Setting, engine: Engine) -> None:
    """Let full rows run short chains to their end, so that kernels are compiled and the first recordings made."""
    length = min(16, setting.config.sampler.max_new_tokens)
    for row in range(engine.rows):
        prompt = setting.questions[-1 - row % len(setting.questions)].tokens
        key = stream_key(setting.config.seed, "warm-up", row)
        engine.submit(ChainRequest(("warm-up", row), prompt, key, forced_length=length))
    while not engine.idle:
        engine.poll()


def _endless(setting: _Setting) -> Iterator[ChainRequest]:
    """Yield chains of the questions over and over, with new random numbers each time."""
    number = 0
    while True:
        for question in setting.questions:
            for index in range(setting.config.k):
                forced = question.forced_lengths[index] if question.forced_lengths else None
                key = stream_key(setting.config.seed + number, question.question_id, index)
                yield ChainRequest((number, question.question_id, index), question.tokens, key, forced_length=forced)
        number += 1


def _sample(
    setting: _Setting, engine: Engine, questions: list[PreparedQuestion], account: Account, seed: int
) -> Iterator[Question]:
    """Run k chains of each question through the scheduler, features on."""
    config = setting.config
    return run_policy(
        setting.model,
        engine,
        questions,
        FixedK(config.k),
        grader=setting.benchmark.grader,
        seed=seed,
        feature_layer=config.features.layer,
        account=account,
    )


class _Counted:
    """What an engine has counted since a moment."""

    def __init__(self, engine: Engine) -> None:
        self._before = self._read(engine)

    @staticmethod
    def _read(engine: Engine) -> dict[str, float]:
        names = (
            "decode_s", "busy_decode_s", "prefill_s", "num_steps", "num_row_steps", "num_generated_tokens",
            "busy_row_steps", "busy_useful_row_steps", "num_read_positions",
        )  # fmt: skip
        return {name: getattr(engine, name) for name in names}

    def busy_tokens(self, engine: Engine) -> int:
        """Return the tokens that were generated while chains waited for a row."""
        return engine.busy_useful_row_steps - self._before["busy_useful_row_steps"]

    def since(self, setting: _Setting, engine: Engine) -> dict[str, Any]:
        """Return the fields of a record that they make."""
        now = self._read(engine)
        d = {name: value - self._before[name] for name, value in now.items()}
        floor = floor_s(
            setting.model,
            num_steps=d["num_steps"],
            num_read_positions=d["num_read_positions"],
            bandwidth=setting.bandwidth,
        )
        return {
            "rows": engine.rows,
            "kernels": engine.kernels,
            "tokens_per_s": d["num_generated_tokens"] / d["decode_s"],
            "decode_tokens_per_s": d["num_generated_tokens"] / d["decode_s"],
            "busy_tokens_per_s": d["busy_useful_row_steps"] / d["busy_decode_s"] if d["busy_decode_s"] else None,
            "num_steps": d["num_steps"],
            "ms_per_step": 1e3 * d["decode_s"] / d["num_steps"],
            "floor_share": floor / d["decode_s"],
            "row_utilization": d["busy_useful_row_steps"] / d["busy_row_steps"] if d["busy_row_steps"] else None,
            "row_utilization_total": d["num_generated_tokens"] / d["num_row_steps"],
            "mean_read_positions": d["num_read_positions"] / d["num_generated_tokens"],
            "decode_s": d["decode_s"],
            "prefill_s": d["prefill_s"],
        }


def _against(records: Records, tokens_per_s: float | None) -> dict[str, Any]:
    """Return what the reference and the best plain batch reached, and the ratios to them."""
    reference = records.get("reference")
    plain = max(records.of_case("generate"), key=lambda record: record["tokens_per_s"], default=None)
    found = {
        "reference_tokens_per_s": reference["tokens_per_s"] if reference else None,
        "generate_tokens_per_s": plain["tokens_per_s"] if plain else None,
        "generate_batch_size": plain["batch_size"] if plain else None,
    }
    if tokens_per_s is not None:
        found["ratio"] = tokens_per_s / reference["tokens_per_s"] if reference else None
        found["generate_ratio"] = tokens_per_s / plain["tokens_per_s"] if plain else None
    return found


@contextmanager
def _memory(device: torch.device) -> Iterator[Callable[[], float]]:
    """Give the peak memory of the work in this context, GiB: the device's, or the process's on a CPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device) / 2**30
    else:
        yield lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _facts(setting: _Setting) -> dict[str, Any]:
    """Return what every record says of model and machine."""
    model = setting.model
    return {
        "name": setting.config.name,
        "model": Path(model.name).name if model.source is not None else model.name,
        "device": name_of(model.device),
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "copy_bytes_per_s": setting.bandwidth,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": sys.version.split()[0],
    }
