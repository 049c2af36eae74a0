"""Every place that samples opens its engine in one function, with the run's own rows, path, stop strings and memory."""

import multiprocessing
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dps.api
import dps.bench.run
import dps.run.clock
import dps.run.plan
import dps.run.run
import dps.run.worker
from dps.bench.config import BenchConfig
from dps.benchmarks import BenchmarkConfig, load_benchmark
from dps.cli import run
from dps.config import ComputeConfig, FeaturesConfig, HarvestConfig
from dps.decide import KRange
from dps.errors import InputError, WorkersDied
from dps.model import load_model
from dps.model_config import ModelConfig
from dps.run.pool import _STOP, Pool, _ClockWanted, _worker_process, for_worker
from dps.run.run import harvest, settings_of
from dps.run.worker import EngineCache, StoreTask
from dps.sampler import open as opening
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.open import open_engine
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import stream_key
from feature_store import Store

SAMPLER = SamplerConfig(alpha=4.0, block_size=8, max_new_tokens=24, num_mh_steps=1)
OTHER_BLOCKS = replace(SAMPLER, block_size=12)
TASK = StoreTask(Path("store"), {"power": SAMPLER}, KRange(2, 1, 2).ladder(), features=True)
QUESTIONS = BenchmarkConfig(name="arithmetic", limit=3, seed=0, stop=("\n\n", "0="))
CONFIG = HarvestConfig(
    benchmark=QUESTIONS, sampler=SAMPLER, compute=ComputeConfig(rows=16, threads=1, forward="unchanged")
)


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture
def devices(monkeypatch, model):
    """Devices that models are asked for; the embedded model on the CPU comes, whatever they are."""
    found = []

    def load(config):
        found.append(config.device if isinstance(config, ModelConfig) else "auto")
        return model

    for module in (dps.run.run, dps.api, dps.bench.run, dps.run.worker):
        monkeypatch.setattr(module, "load_model", load)
    return found


@pytest.fixture
def opened(monkeypatch):
    """What engines are opened with."""
    found = []

    class Noted(Engine):
        def __init__(self, model, arms, **settings):
            super().__init__(model, arms, **settings)
            found.append({"arms": self.arms, **settings, "rows in all": self.rows})

    monkeypatch.setattr(opening, "Engine", Noted)
    return found


EXPECTED = {
    "arms": (SAMPLER,),
    "rows": 16,
    "path": "unchanged",
    "stop_room": 0,
    "stop_strings": ("\n\n", "0="),
    "memory_share": 1.0,
    "layer": FeaturesConfig().layer,
    "prefetch": True,
    "rows in all": 16,
}


def but_room(settings):
    return {name: value for name, value in settings.items() if name != "prompt_room"}


def test_clock_worker_plan_benchmark_and_interface_open_the_same_engine(tmp_path, monkeypatch, model, devices, opened):
    harvest(replace(CONFIG, output=str(tmp_path / "store")))
    (run,) = opened  # the clock is measured on the worker's own
    assert Store.open(tmp_path / "store").manifest.calibration["rows"] == 16
    opened.clear()

    dps.run.plan.plan_harvest(replace(CONFIG, output=str(tmp_path / "planned")))
    (pilot,) = opened
    opened.clear()

    settings = dict(model=CONFIG.model, benchmark=QUESTIONS, sampler=SAMPLER, rows=(16,), forward=("unchanged",))
    dps.bench.run.bench(BenchConfig(output=str(tmp_path / "bench"), cases=("steps",), steps_s=0.05, **settings))
    (steps,) = opened
    opened.clear()

    assert run["prompt_room"] > 0
    for settings in (run, pilot, steps):
        assert but_room(settings) == EXPECTED
        assert settings["prompt_room"] == run["prompt_room"]

    asked = dps.api.given("number")
    monkeypatch.setattr(dps.api, "given", lambda *_: replace(asked, config=QUESTIONS))
    dps.api.answer(["1+2?", "From left to right: 3+4"], k=1, sampler=SAMPLER, rows=16, style="number")
    (interface,) = opened
    assert but_room(interface) == {**EXPECTED, "path": "auto", "layer": None}


def test_a_cleared_engine_samples_what_a_new_one_does(model):
    benchmark = load_benchmark(QUESTIONS)
    prompts = [tokens for _, tokens in dps.run.worker.prompts_of(model, benchmark, SAMPLER).values()]
    new, used = (
        open_engine(model, SAMPLER, CONFIG.compute, benchmark=benchmark, prompts=prompts, memory_share=1.0, layer=None)
        for _ in range(2)
    )
    for key in range(40):
        used.submit(ChainRequest(key, prompts[key % 3], stream_key(1, "other", key)))
    used.poll()
    assert used.num_running
    assert used.num_pending
    used.clear()
    assert used.idle
    assert not used._prompts._kept  # read again, and paid for by the chains that come
    chains = []
    for engine in (new, used):
        for key, prompt in enumerate(prompts):
            engine.submit(ChainRequest(key, prompt, stream_key(0, "test", key)))
        ended = []
        while not engine.idle:
            ended += engine.poll()
        chains.append({chain.request.key: (chain.tokens.tolist(), chain.num_generated_tokens) for chain in ended})
    assert chains[0] == chains[1]
    assert len(chains[0]) == 3


def settings_for(workers, device="auto", backend="local", rows=None, threads=1):
    compute = ComputeConfig(rows=rows, workers=workers, backend=backend, forward="unchanged", threads=threads)
    return replace(CONFIG, compute=compute, model=ModelConfig(device=device))


PLACES = [  # workers, GPUs, model.device, backend; device and share of each worker
    (1, 0, "auto", "local", [("auto", 1)]),
    (1, 8, "auto", "local", [("cuda:0", 1)]),
    (8, 8, "auto", "local", [(f"cuda:{n}", 1) for n in range(8)]),
    (8, 8, "cuda", "local", [(f"cuda:{n}", 1) for n in range(8)]),
    (8, 2, "auto", "local", [(f"cuda:{n % 2}", 1 / 4) for n in range(8)]),
    (3, 2, "auto", "local", [("cuda:0", 1 / 2), ("cuda:1", 1), ("cuda:0", 1 / 2)]),
    (4, 8, "cuda:3", "local", [("cuda:3", 1 / 4)] * 4),
    (4, 8, "cpu", "local", [("cpu", 1 / 4)] * 4),
    (4, 0, "auto", "local", [("auto", 1 / 4)] * 4),
    (4, 4, "auto", "ray", [(f"cuda:{n}", 1) for n in range(4)]),
    (16, 4, "auto", "ray", [(f"cuda:{n}", 1) for n in range(4)]),  # the others have GPUs elsewhere
    (4, 0, "auto", "ray", [("auto", 1 / 4)] * 4),
]


@pytest.mark.parametrize(("workers", "gpus", "device", "backend", "expected"), PLACES)
def test_a_worker_and_the_pilot_that_stands_for_it_have_the_same_device_and_memory(
    monkeypatch, devices, opened, workers, gpus, device, backend, expected
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = settings_for(workers, device, backend, rows=8)
    given = [for_worker(settings_of(config), n) for n in range(len(expected))]
    assert [(s.model.device, s.memory_share) for s in given] == expected
    assert dps.run.plan._num_pilots(config, missing=100) == len(expected)
    assert dps.run.plan._num_pilots(config, missing=1) == 1

    class Seen(BaseException):
        pass

    def stop(*_, **__):
        raise Seen

    monkeypatch.setattr(dps.run.plan, "prepare", stop)  # the engine stands by then
    for number in sorted({0, len(expected) - 1}):
        where, share = expected[number]
        with pytest.raises(Seen):
            dps.run.plan.measure(config, ["none"], number)
        assert devices[-1] == where
        assert opened[-1]["memory_share"] == share
        assert opened[-1]["path"] == "unchanged"


def test_the_clocks_rows_are_those_of_the_run(monkeypatch, model, opened):
    """Eight GPUs and eight workers: each GPU's memory is one worker's, for the clock as well."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    benchmark = load_benchmark(QUESTIONS)
    prompts = [tokens for _, tokens in dps.run.worker.prompts_of(model, benchmark, SAMPLER).values()]
    room = -(-(max(map(len, prompts)) + SAMPLER.max_new_tokens) // 32) * 32
    each = dps.sampler.memory.row_bytes(model.model, room)
    monkeypatch.setattr("dps.sampler.memory._free_bytes", lambda device: 75 * each)  # 67 rows, an eighth is 8
    settings = for_worker(settings_of(settings_for(8)), 0)
    clock = dps.run.clock.measure_clock(EngineCache(model, [TASK], settings, None), SAMPLER)
    assert clock.constants["rows"] == opened[0]["rows in all"] == 64
    on_cpu = for_worker(settings_of(settings_for(8, "cpu")), 0)
    on_cpu = EngineCache(model, [TASK], on_cpu, None)
    assert dps.run.clock.measure_clock(on_cpu, SAMPLER).constants["rows"] == 8


def test_a_runs_first_worker_measures_the_clock_itself(monkeypatch, devices, opened):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    handler = signal.getsignal(signal.SIGINT)
    mine, theirs = multiprocessing.Pipe()
    others = [replace(TASK, arms={"power": sampler}) for sampler in (replace(SAMPLER, num_mh_steps=2), OTHER_BLOCKS)]
    tasks = [TASK, *others]
    for message in (*(_ClockWanted(tasks, task.sampler) for task in tasks), _STOP):
        mine.send(message)
    try:
        _worker_process(5, theirs, for_worker(settings_of(settings_for(8, rows=8)), 5), None)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert devices == ["cuda:5"]
    assert [mine.recv().constants["rows"] for _ in tasks] == [8.0, 8.0, 8.0]
    assert [s["arms"] for s in opened] == [tuple(task.sampler for task in tasks[:2]), (OTHER_BLOCKS,)]
    assert [s["memory_share"] for s in opened] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (InputError("too long"), InputError, "too long"),
        ("Traceback: it broke", RuntimeError, "it broke"),
        (None, WorkersDied, "The worker that measured the clock died; nothing was sampled."),
    ],
)
def test_a_clock_that_cannot_be_measured_ends_in_a_sentence(answer, error, words):
    pool = Pool.__new__(Pool)
    mine, theirs = multiprocessing.Pipe()
    pool._pipes = {mine: 0}
    if answer is not None:
        theirs.send(answer)
    else:
        theirs.close()
    with pytest.raises(error, match=words):
        pool.clock([TASK], SAMPLER)


@pytest.mark.parametrize("rows", [0, 7])
@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["harvest", "--compute.rows={}"], "compute.rows"),
        (["harvest", "--plan", "--compute.rows={}"], "compute.rows"),
        (["evaluate", "--compute.rows={}"], "compute.rows"),
        (["sample", "1+1?", "--rows={}"], "rows"),
        (["bench", "--rows=[16,{}]"], "rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[:2]),
)
def test_fewer_rows_than_the_smallest_batch_are_refused_before_a_model_loads(command, name, rows, tmp_path, capsys):
    output = [] if command[0] == "sample" else [f"--output={tmp_path / 'out'}"]
    assert run([word.format(rows) for word in command] + output) == 2
    said = capsys.readouterr().err.strip()
    assert f"{name} must be at least 8, the fewest rows that the sampler runs, got {rows}: set 8" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_fewer_rows_are_refused_by_the_interface_too():
    with pytest.raises(InputError, match="rows must be at least 8"):
        dps.api.answer(["1+1?"], rows=7)
