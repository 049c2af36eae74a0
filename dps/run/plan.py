"""``dps harvest --plan``: what a harvest will take, from a few seconds of measurement.

Every worker samples a few of the missing questions to the end, with the run's own engine. That gives the tokens of a
chain, and, since the rows empty one after another, the time of a step at every number of busy rows. The rest is
arithmetic: the same chains, drawn again and again, are seated on the rows as the run would seat them. No store is
written.
"""

from __future__ import annotations

import heapq
import math
import multiprocessing
import time
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dps.benchmarks import load_benchmark
from dps.config import HarvestConfig
from dps.decide import Policy
from dps.device import peak_gib, synchronize
from dps.run.clock import measure_clock
from dps.run.committer import num_commits
from dps.run.live import PolicyRun
from dps.run.pool import for_worker, num_devices
from dps.run.progress import format_seconds
from dps.run.run import check_harvest_folder, plan_of_harvest, settings_of
from dps.run.scheduler import Account, run_policies
from dps.run.worker import EngineCache, open_embedder, prepare, prompts_of
from dps.sampler.engine import Engine
from dps.sampler.seats import batch_size
from feature_store import Question, Store, StoreError
from feature_store.index import MANY
from feature_store.joining import MOST_BYTES, MOST_QUESTIONS, is_small
from feature_store.segment import PACKED, encode_segment, to_arrays

MIN_QUESTIONS = 24
"""Fewest questions of a sample, where that many are missing."""
_SLOW = 5.0
"""A look this many times slower than the median one is a start-up: a GPU records its graphs then."""


@dataclass(frozen=True, slots=True, eq=False)
class Pilot:
    """What one worker measured."""

    tokens: np.ndarray
    """Tokens of every chain, rejected ones included: shape (n, k), int64."""
    step_s: float
    """Seconds of a decoding step that do not depend on how many rows are busy."""
    row_s: float
    """Seconds of a step for each row that is computed."""
    useful: float
    """Share of the steps of a row with a chain that gave a token."""
    question_s: float
    """Seconds of a question besides decoding: prompt, embedding, features, bookkeeping."""
    start_s: float
    """Seconds until the first token: model, clock, recordings."""
    rows: int
    columns: np.ndarray
    """Bytes that a question takes in each column of a segment, as it is and compressed: shape (C, 2)."""
    segment_bytes: float
    """Bytes that every segment costs besides."""
    memory_gib: float | None
    """Most GPU memory in use, GiB; None on a CPU."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a harvest will take."""

    questions: int
    """Questions that are missing."""
    stored: int
    """Questions that the store holds already."""
    sampled: int
    """Questions that the estimate rests on."""
    workers: int
    rows: int
    """Rows of each worker."""
    tokens: float = 0.0
    """Tokens that will be sampled, rejected ones included."""
    tokens_stderr: float = 0.0
    """Standard error of the tokens, from the spread between the sampled questions."""
    seconds: float = 0.0
    """Wall-clock time, start-up included."""
    start_seconds: float = 0.0
    device_hours: float = 0.0
    """Hours of all workers together."""
    gigabytes: float = 0.0
    """Size of what will be written, 10^9 bytes."""
    gpu_gib: float | None = None
    """Most GPU memory in use by a worker in the measurement; None on a CPU."""

    def words(self) -> str:
        """Return the plan as lines for a terminal."""
        error = 196 * self.tokens_stderr / self.tokens if self.tokens else 0.0
        each = self.tokens / max(1, self.questions)
        stored = f", {self.stored:,} more are stored already" if self.stored else ""
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''} with {self.rows:,} rows each"
        lines = [
            f"questions       {self.questions:,}{stored}",
            f"tokens          {self.tokens:,.0f} (give or take {error:.0f} %), {each:,.0f} a question",
            f"time            {format_seconds(self.seconds)}, of which start-up {format_seconds(self.start_seconds)}",
            f"device-hours    {self.device_hours:.3g} on {workers}",
            f"store           {self.gigabytes:.3g} GB",
        ]
        if self.gpu_gib is not None:
            lines.append(f"GPU memory      {self.gpu_gib:.1f} GiB")
        return "\n".join([*lines, f"Measured on {self.sampled:,} questions drawn at random; nothing was written."])


def plan_harvest(config: HarvestConfig, loading_s: float = 0.0) -> Plan:
    """Measure what a harvest will take, without writing anything; the command has needed ``loading_s`` so far.

    Raises:
        InputError: If the settings, the questions or the model cannot be used.
    """
    config.check()
    elsewhere = False
    try:
        check_harvest_folder(config)
    except StoreError as error:  # nothing is written, so that the plan is of use all the same
        elsewhere = True
        warnings.warn(
            f"The plan is for an empty folder, because a harvest here would be refused: {error}", stacklevel=2
        )
    benchmark = load_benchmark(config.benchmark, config.model.name)
    folder = Path(config.output)
    stored = set(Store.open(folder).question_ids) if (folder / "manifest.json").exists() and not elsewhere else set()
    wanted = [item.question_id for item in benchmark.items[config.compute.part]]
    missing = [name for name in wanted if name not in stored]
    done = len(wanted) - len(missing)
    workers = config.compute.workers
    if not missing:
        return Plan(0, done, 0, workers, config.compute.rows or 0)
    drawn = np.random.default_rng(config.seed).permutation(missing).tolist()
    shares = [drawn[shard::workers] for shard in range(_num_pilots(config, len(missing)))]
    if len(shares) == 1:
        pilots = [measure(config, shares[0])]
    else:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["dps.run.plan", "sentence_transformers"])
        began = time.perf_counter()
        count = len(shares)
        with ProcessPoolExecutor(count, mp_context=context) as pool:
            pilots = list(pool.map(measure, [config] * count, shares, range(count), [began] * count))
    pilots = [replace(pilot, start_s=pilot.start_s + loading_s) for pilot in pilots]
    return extrapolate(pilots, len(missing), done, config)


def _num_pilots(config: HarvestConfig, missing: int) -> int:
    """Return how many workers are measured: all that have work, but on Ray no more than this machine has GPUs for.

    A worker on a Ray cluster has a GPU to itself, perhaps on another machine; those that have none here are taken to
    be like those that have.
    """
    busy = min(config.compute.workers, missing)
    devices = num_devices(config.model.device)
    return min(busy, devices) if config.compute.backend == "ray" and devices else busy


def measure(config: HarvestConfig, question_ids: Sequence[str], worker: int = 0, began: float | None = None) -> Pilot:
    """Sample some of these questions to the end, in this process, as a worker of the run would.

    Args:
        config: The harvest.
        question_ids: In random order; as many are taken as fill the rows once.
        worker: Number of the worker that this one stands for, whose device and share of the memory it gets.
        began: When it was asked for, if not now, on ``time.perf_counter``, which all processes share: a run's workers
            have to start, too.
    """
    started = time.perf_counter() if began is None else began
    settings = for_worker(settings_of(config), worker)
    model = settings.load_model()
    benchmark = load_benchmark(config.benchmark, config.model.name)
    task = plan_of_harvest(config).task
    prompts = prompts_of(model, benchmark, task.sampler)
    cache = EngineCache(model, [task], settings, None)
    if config.compute.workers == 1 or multiprocessing.parent_process() is not None:
        # The run measures its clock too; here that also warms up.
        measure_clock(cache, task.sampler)
    engine = cache.engine_of(task.sampler)
    count = max(MIN_QUESTIONS, math.ceil(engine.rows / task.ladder.maximum))
    chosen = set(question_ids[:count])
    items = [item for item in benchmark.items if item.question_id in chosen]
    embedder = open_embedder(config.features.embedder, model.device)
    embedder.embed(["a first question loads the model"])
    start_s = time.perf_counter() - started
    watched = _Watched(engine)
    account = Account()
    numbers = {name: engine.arms.index(sampler) for name, sampler in task.arms.items()}
    features = config.features
    runs = [PolicyRun(Policy(task.ladder), features.layer, arms=numbers, feature_arms=features.arms)]
    ready = prepare(items, prompts, embedder, settings.forced_lengths, settings.read_prompts(model))
    sampled = run_policies(
        model,
        watched,  # type: ignore[arg-type]  # the scheduler only needs what the engine offers
        ((runs, question) for question in ready),
        grader=benchmark.grader,
        seed=config.seed,
        aggregator=config.aggregator,
        account=account,
    )
    questions = [done.question for done in sampled]
    synchronize(model.device)
    step_s, row_s, startup_s = watched.fit()
    columns, segment_bytes = size_model(questions)
    return Pilot(
        tokens=np.array([[t.num_generated_tokens for t in q.trajectories] for q in questions]),
        step_s=step_s,
        row_s=row_s,
        useful=engine.num_generated_tokens / watched.num_chain_steps,
        question_s=(account.total - account.decode) / len(questions),
        start_s=start_s + startup_s,
        rows=engine.rows,
        columns=columns,
        segment_bytes=segment_bytes,
        memory_gib=peak_gib(),
    )


def size_model(questions: Sequence[Question]) -> tuple[np.ndarray, float]:
    """Return what :func:`segment_size` takes, from a sample.

    Of a few questions most columns are too small to be compressed, which they are in a large segment.
    """
    arrays = to_arrays(questions).values()
    shuffled = [array.reshape(-1, 1).view(np.uint8).T.tobytes() if array.size else b"" for array in arrays]
    columns = np.array([(len(text), len(zlib.compress(text, 4))) for text in shuffled]) / len(questions)
    return columns, len(encode_segment(questions)) - segment_size(columns, 0.0, len(questions))


def segment_size(columns: np.ndarray, segment_bytes: float, num_questions: float) -> float:
    """Return the bytes of a segment of so many questions that take ``columns`` (C, 2) each, see :class:`Pilot`."""
    plain, packed = num_questions * columns.T
    return segment_bytes + float(np.where(plain > PACKED, packed, plain).sum())


class _Watched:
    """An engine whose polls are timed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._looks: list[tuple[float, ...]] = []
        self._settled: int | None = None
        self.num_chain_steps = 0
        """Steps of rows that had a chain."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def poll(self) -> list[Any]:
        """Poll, one look at a time, so that the number of busy rows is known."""
        engine = self._engine
        before = engine.decode_s, engine.num_steps, engine.num_row_steps
        ended = engine.poll(max_looks=1)
        after = engine.decode_s, engine.num_steps, engine.num_row_steps
        self._looks.append(tuple(now - then for now, then in zip(after, before, strict=True)))
        if ended and self._settled is None:
            self._settled = len(self._looks)
        self.num_chain_steps += (after[1] - before[1]) * (engine.num_running + len(ended))
        return ended

    def fit(self) -> tuple[float, float, float]:
        """Return seconds of a step, seconds of a step for each row, and seconds of start-up; see :func:`fit`."""
        decoding = [look[0] > 0 for look in self._looks]
        settled = sum(decoding[: self._settled])
        return fit(np.array(self._looks)[decoding], settled)


def fit(looks: np.ndarray, settled: int = 0) -> tuple[float, float, float]:
    """Fit the time of a step as a constant and a part for each row that is computed.

    Args:
        looks: Seconds, steps and row steps (the sum of rows over steps) of each look: shape (n, 3).
        settled: Looks before the first chain ended. All responses are short then, which attention reads faster than the
            mixture of lengths that a long run has; they count only where there are no others.

    Returns:
        Seconds of a step, seconds of a step for each row (neither negative), seconds of looks that were a start-up.
    """
    seconds, steps, _ = looks.T
    each = seconds / steps
    slow = each > _SLOW * np.median(each)
    startup = float((seconds - steps * np.median(each))[slow].sum())
    later = np.arange(len(looks)) >= settled
    seconds, steps, row_steps = looks[~slow & later if (~slow & later).sum() > 1 else ~slow].T
    (constant, slope), *_ = np.linalg.lstsq(np.stack([steps, row_steps], axis=1), seconds, rcond=None)
    if slope < 0 or constant < 0:  # one of the two cannot be told from 0
        constant, slope = (seconds.sum() / steps.sum(), 0.0) if slope < 0 else (0.0, seconds.sum() / row_steps.sum())
    return float(constant), float(slope), startup


def makespan(lengths: np.ndarray, rows: int, *, recorded: bool) -> tuple[int, int]:
    """Return the steps until the last of these chains ends, and the sum over the steps of the rows that are computed.

    Chains of ``lengths`` steps, shape (n,), are seated in order, each on the row that comes free first. At the end,
    when rows come free for good, the engine runs as few as it has sizes for, fewer sizes where it records its work.
    """
    heap = [int(n) for n in lengths[:rows]]
    heapq.heapify(heap)
    for length in lengths[rows:].tolist():
        heapq.heapreplace(heap, heap[0] + int(length))
    ends = sorted(heap)
    phases = np.diff([0, *ends]).tolist()
    computed = sum(steps * batch_size(len(ends) - done, rows, recorded=recorded) for done, steps in enumerate(phases))
    return max(ends, default=0), computed


def extrapolate(pilots: Sequence[Pilot], missing: int, stored: int, config: HarvestConfig) -> Plan:
    """Return what sampling the ``missing`` questions takes, from what some of the workers measured on a sample."""
    tokens = np.concatenate([pilot.tokens for pilot in pilots])
    by_question = tokens.sum(axis=1)
    rng = np.random.default_rng(config.seed)
    busy = min(config.compute.workers, missing)
    share = math.ceil(missing / busy)
    chains = tokens[rng.integers(0, len(tokens), share)].reshape(-1)
    pilot = max(pilots, key=lambda p: p.row_s * p.rows + p.step_s)  # the slowest worker is waited for
    steps, row_steps = makespan(chains, pilot.rows, recorded=pilot.memory_gib is not None)
    decode_s = (pilot.step_s * steps + pilot.row_s * row_steps) / pilot.useful
    start_s = max(p.start_s for p in pilots)
    seconds = start_s + decode_s + share * float(np.mean([p.question_s for p in pilots]))
    columns = np.mean([p.columns for p in pilots], axis=0)
    header = float(np.mean([p.segment_bytes for p in pilots]))
    segments = busy * num_commits(config.compute.commit_interval_s, seconds - start_s, share)
    size = segment_size(columns, header, missing / segments)
    if segments >= MANY and is_small(missing / segments, size):  # the end of the run joins them
        plain = float(columns[:, 0].sum())
        segments = max(math.ceil(missing / MOST_QUESTIONS), math.ceil(missing * plain / MOST_BYTES))
        size = segment_size(columns, header, missing / segments)
    stderr = by_question.std(ddof=1) / math.sqrt(len(by_question)) if len(by_question) > 1 else 0.0
    # The sampled questions are among those to come, which leaves less unknown.
    stderr *= math.sqrt(max(0.0, 1 - len(by_question) / missing))
    return Plan(
        questions=missing,
        stored=stored,
        sampled=len(by_question),
        workers=config.compute.workers,
        rows=pilot.rows,
        tokens=float(missing * by_question.mean()),
        tokens_stderr=float(missing * stderr),
        seconds=seconds,
        start_seconds=start_s,
        device_hours=busy * seconds / 3600,
        gigabytes=segments * size / 1e9,
        gpu_gib=max((p.memory_gib for p in pilots if p.memory_gib is not None), default=None),
    )
