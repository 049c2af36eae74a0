"""An evaluation whose policies share their trajectories writes the stores that each policy would write alone."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

import dps.run.clock
from dps.benchmarks import BenchmarkConfig
from dps.config import ComputeConfig, EvaluateConfig
from dps.decide import KRange
from dps.decide.features import PARTS, SCALAR_FEATURES
from dps.run import worker
from dps.run.run import evaluate
from dps.sampler.engine import Engine
from dps.sampler.open import open_engine
from dps.sampler.settings import SamplerConfig
from feature_store import Store
from feature_store.errors import StoreError
from feature_store.segment import read_content
from feature_store.tools import verify
from tests.run.test_scheduler import same_record

CONSTANTS = {"seconds_per_token": 0.01, "prefill_seconds_per_token": 0.001}
ENTROPY = SCALAR_FEATURES.index("mcmc_entropy")


class FakeController:
    """Sure of questions over which the model is sure; it looks at everything."""

    name, threshold, calibration, label = "fake", 0.5, CONSTANTS, "no_gain"
    parts, ladder = PARTS, KRange(2, 2, 6).ladder()
    arms: ClassVar = {"power": {"alpha": 4.0, "num_mh_steps": 1}}

    def predict_enough(self, features):
        assert all(f.hidden.size and f.embedding.size for f in features)
        return np.array([float(f.scalars[ENTROPY] < 0.35) for f in features])

    def check_model(self, identity, embedding_size=None):
        assert identity["fingerprint"]


def load_controller(path):
    return FakeController()


def config_of(folder, **changes):
    (folder / "fake.ckpt").write_text("a controller")
    compute = {"rows": 64, "threads": 1, "commit_interval_s": 0.2, **changes.pop("compute", {})}
    limit = changes.pop("limit", 4)
    config = EvaluateConfig(
        output=str(folder / "evaluation"),
        policies=("adaptive-consistency", "power", "plain", "self-confidence", "fake"),
        controllers={"fake": str(folder / "fake.ckpt")},
        benchmark=BenchmarkConfig(name="arithmetic", split="test", limit=limit, seed=0),
        sampler=SamplerConfig(alpha=4.0, block_size=16, max_new_tokens=32, num_mh_steps=1),
        k=KRange(2, 2, 6),
        budgets={"plain": 4},
        compute=ComputeConfig(**compute),
    )
    return replace(config, **changes)


def sampled(monkeypatch):
    """The engines of the runs that follow."""
    engines = []

    def noted(*args, **settings):
        engines.append(open_engine(*args, **settings))
        return engines[-1]

    monkeypatch.setattr(worker, "open_engine", noted)
    return engines


def charged(config, *names):
    stores = [Store.open(f"{config.output}/{name}") for name in names or config.policies]
    every = [question for store in stores for question in store]
    return sum(sum(t.num_generated_tokens for t in q.trajectories) + q.num_cancelled_tokens for q in every)


@pytest.fixture(scope="module", autouse=True)
def clock():
    """A clock that takes no time to measure; of worker processes it is the real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dps.run.clock, "calibrate", lambda engine, _, arm: {**CONSTANTS, "rows": float(engine.rows)})
        yield


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """Every policy on its own."""
    config = config_of(tmp_path_factory.mktemp("apart"), compute={"share": False})
    with pytest.MonkeyPatch.context() as patch:
        engines = sampled(patch)
        evaluate(config, load_controller)
        assert sum(engine.num_generated_tokens for engine in engines) == charged(config)
    assert len({q.k for name in ("adaptive-consistency", "fake") for q in Store.open(f"{config.output}/{name}")}) > 1
    return config


def check_same(shared, apart, cancelled=0):
    """Compare all policies; at least so many questions had trajectories that were begun early and cancelled."""
    found = 0
    for name in shared.policies:
        mine, store = (Store.open(f"{config.output}/{name}") for config in (shared, apart))
        assert verify(mine.folder) == []
        assert set(mine.question_ids) <= set(store.question_ids)
        assert mine.manifest.fingerprint == store.manifest.fingerprint or name == "fake"  # its path is another
        for a, b in zip(mine, store.read(mine.question_ids), strict=True):
            found += a.num_cancelled_tokens > 0
            same_record(replace(a, num_cancelled_tokens=0, cancelled_s=0.0), b, atol=1e-4)
    assert found >= cancelled
    assert cancelled or not found


def test_shared_stores_are_those_of_policies_apart(apart, tmp_path, monkeypatch):
    config, engines = config_of(tmp_path, compute={"rows": 8}), sampled(monkeypatch)
    evaluate(config, load_controller)
    check_same(config, apart)
    (engine,) = engines
    assert engine.num_generated_tokens == charged(config, "power", "plain")


def test_samplers_that_differ_by_row_share_an_engine_and_no_wait_stands_between_them(tmp_path, monkeypatch):
    policies = ("plain", "max-swap", "power", "lowtemp", "early-entropy")
    given = dict(policies=policies, controllers={}, limit=3, budgets={"plain": 4, "lowtemp": 4})
    apart, shared = tmp_path / "apart", tmp_path / "shared"
    for folder in (apart, shared):
        folder.mkdir()
    engines = sampled(monkeypatch)
    evaluate(config_of(apart, **given, compute={"share": False}), None)
    assert [len(engine.arms) for engine in engines if engine.num_steps] == [1] * 5
    engines.clear()
    beside, submit = [], Engine.submit

    def noted(engine, request, **settings):
        beside.append((request.arm, {s.request.arm for s in engine._seats if s is not None}))
        submit(engine, request, **settings)

    monkeypatch.setattr(Engine, "submit", noted)
    config = config_of(shared, **given, compute={"rows": 8})
    evaluate(config, None)
    engines = [engine for engine in engines if engine.num_steps]  # the others were opened for a clock
    assert [len(engine.arms) for engine in engines] == [3, 1, 1]
    assert engines[0].num_generated_tokens == charged(config, "power", "plain", "lowtemp")
    # The long chains of power come first, and the others take their rows while some still run.
    assert beside[0][0] == 1
    assert any(arm != 1 and 1 in others for arm, others in beside)
    check_same(config, config_of(apart, **given))


def test_a_run_that_goes_on_samples_only_what_some_policy_misses(apart, tmp_path, monkeypatch):
    evaluate(config_of(tmp_path, policies=("power", "adaptive-consistency"), controllers={}, budgets={}, limit=2), None)
    evaluate(config_of(tmp_path, policies=("fake", "self-confidence"), budgets={}, limit=3), load_controller)
    config, engines = config_of(tmp_path), sampled(monkeypatch)
    before = {path: path.read_bytes() for path in tmp_path.rglob("segment-*.h5")}
    evaluate(config, load_controller)
    check_same(config, apart)
    assert {path: path.read_bytes() for path in before} == before  # nothing that was committed is done again
    assert sum(engine.num_generated_tokens for engine in engines) < charged(config, "power", "plain")
    for store in (Store.open(f"{config.output}/{name}") for name in config.policies):
        stored = [name for path in store.folder.glob("segment-*.h5") for name in read_content(path).question_ids]
        assert sorted(stored) == store.question_ids


@pytest.mark.slow
def test_two_workers_share_too(apart, tmp_path, capsys):
    config = config_of(tmp_path, compute={"workers": 2})
    evaluate(config, load_controller)
    check_same(config, apart)
    tokens = charged(config, "power", "plain")
    assert f"tokens {tokens:,}" in capsys.readouterr().err  # each once


def test_latency_of_one_question_at_a_time_is_measured_apart(apart, tmp_path, monkeypatch):
    compute = {"questions_at_a_time": 1}
    config, engines = config_of(tmp_path, policies=("power", "fake"), budgets={}, compute=compute), sampled(monkeypatch)
    evaluate(config, load_controller)
    assert sum(engine.num_generated_tokens for engine in engines) == charged(config)
    check_same(config, apart, cancelled=1)


def test_eager_rungs_change_no_store_but_for_what_was_cancelled(apart, tmp_path, monkeypatch):
    policies = ("self-confidence", "plain", "fake")
    config, engines = config_of(tmp_path, policies=policies, compute={"eager": True}), sampled(monkeypatch)
    evaluate(config, load_controller)
    check_same(config, apart, cancelled=1)
    sampled_once, cancelled = {}, {}
    for policy, question in ((name, q) for name in policies for q in Store.open(f"{config.output}/{name}")):
        name, plain = question.question_id, policy == "plain"
        sampled_once |= {(plain, name, t.index): t.num_generated_tokens for t in question.trajectories}
        cancelled[name] = max(cancelled.get(name, 0), question.num_cancelled_tokens)
    tokens = sum(sampled_once.values()) + sum(cancelled.values())
    assert sum(engine.num_generated_tokens for engine in engines) == tokens


def test_a_policy_that_joins_an_evaluation_has_the_clock_of_its_sampler(tmp_path, monkeypatch):
    joined = dict(controllers={}, budgets={}, limit=1)
    evaluate(config_of(tmp_path, policies=("self-confidence",), **joined), None)

    def measured(*_, **__):
        raise AssertionError("the clock was measured again")

    monkeypatch.setattr(dps.run.clock, "calibrate", measured)
    evaluate(config_of(tmp_path, policies=("power", "self-confidence"), **joined), None)
    with pytest.raises(StoreError, match="of another run: seed was 0 and is now 1"):
        evaluate(config_of(tmp_path, policies=("esc", "power"), seed=1, **joined), None)
    assert not (tmp_path / "evaluation" / "esc" / "manifest.json").exists()
