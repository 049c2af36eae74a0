"""Threads of the CPU: how they wait in a fresh process, and how many a model gets."""

import os
import subprocess
import sys

import pytest
import torch

from dps import threads
from dps.model_config import ModelConfig
from dps.threads import num_threads, torch_threads, wait_passively

WAITING = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT")


@pytest.mark.parametrize(
    ("first", "given"),
    [
        *((f, {}) for f in ("dps.__main__", "dps.api", "dps.run.ray_pool", "lightning_modules.trainer_cli")),
        *(("dps.api", given) for given in ({"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"})),
    ],
)
def test_a_fresh_process_waits_passively_before_torch_is_loaded_unless_the_user_says_how(first, given):
    """What the environment holds when PyTorch is imported is what its threads do."""
    code = (
        "import builtins, os; load = builtins.__import__\n"
        "def note(name, *rest, **more):\n"
        "    if name.split('.')[0] == 'torch':\n"
        f"        print({{n: os.environ[n] for n in {WAITING} if n in os.environ}}, flush=True)\n"
        "        os._exit(0)\n"
        "    return load(name, *rest, **more)\n"
        f"builtins.__import__ = note; import {first}, torch"
    )
    environment = {name: value for name, value in os.environ.items() if name not in WAITING} | given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert eval(done.stdout) == (given or {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"})


def test_nothing_is_changed_where_the_user_says_how_threads_wait(monkeypatch):
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    wait_passively()
    assert {name: os.environ.get(name) for name in WAITING} == dict.fromkeys(WAITING) | {"OMP_WAIT_POLICY": ""}


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


@pytest.mark.parametrize(
    ("million", "sharing", "most", "expected"),
    [(0, 1, None, 1), (1.2, 1, None, 1), (299, 1, None, 1), (300, 1, None, 2), (494, 1, None, 3), (1800, 1, None, 12),
     (7000, 1, None, 16), (7000, 4, None, 4), (494, 8, None, 2), (1.2, 4, None, 1), (7000, 64, None, 1),
     (7000, 1, 4, 4), (1.2, 1, 4, 1)],
)  # fmt: skip
def test_a_model_gets_a_thread_for_each_150_million_parameters(cores, million, sharing, most, expected):
    assert num_threads(int(million * 1e6), sharing, most) == expected


def test_the_users_number_of_threads_wins(cores, monkeypatch):
    for value, alone, shared in (("6", 6, 4), ("32", 32, 4), ("3,2", 3, 3), ("1", 1, 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert (num_threads(10**6), num_threads(10**6, 4)) == (alone, shared)
        assert num_threads(10**10, most=4) == alone
    for value in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert num_threads(10**6) == 1


def test_threads_of_a_context_are_at_most_those_before_and_end_with_it():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for most, inside in ((1, 1), (8, 3)):
            with torch_threads(most):
                assert torch.get_num_threads() == inside
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_answers_of_the_embedded_model_are_sampled_on_one_thread(cores, monkeypatch):
    import dps.api
    from dps.sampler.engine import Engine

    seen, poll = set(), Engine.poll
    monkeypatch.setattr(Engine, "poll", lambda *a, **o: seen.add(torch.get_num_threads()) or poll(*a, **o))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        dps.api.answer("From left to right: 1+2", k=1, rows=8)
        assert (seen, torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("wanted", "expected"), [(None, 1), (2, 2)])
def test_a_worker_takes_the_threads_of_its_settings_else_those_of_its_model(cores, wanted, expected):
    from dps.config import HarvestConfig
    from dps.run.compute import ComputeConfig
    from dps.run.run import settings_of

    before = torch.get_num_threads()
    try:
        settings_of(HarvestConfig(model=ModelConfig(), compute=ComputeConfig(threads=wanted))).load_model()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
