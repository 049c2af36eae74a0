"""Trajectories that are begun early, in rows that would idle: nothing but times and costs changes."""

import functools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dps.api import answer
from dps.cli import run
from dps.config import ComputeConfig
from dps.decide import RULES, DynamicK, FixedK, KRange, RuleK
from dps.decide.features import SCALAR_FEATURES
from dps.run import scheduler
from dps.run.scheduler import Account, PolicyRun, run_policies
from dps.sampler.engine import Engine
from dps.sampler.settings import SamplerConfig
from tests.factories import make_question
from tests.run.test_scheduler import (
    CONFIG,
    FakeController,
    Grading,
    SlowGrading,
    fakes,
    numbers,
    questions,
    same_record,
)
from tests.sampler.models import tiny_model

ENTROPY = SCALAR_FEATURES.index("mcmc_entropy")
TORN = 1.532
"""Below it are some of the first nine questions at k = 2, 4 and 6 each, and some never are."""


@pytest.fixture(scope="module")
def model():
    return replace(tiny_model(layers=3, sharpness=2.0), tokenizer=numbers(12))


def policies():
    """Of several kinds; one looks at hidden states and stops at any k."""
    torn = FakeController(lambda f: float(f.scalars[ENTROPY] < TORN and f.hidden.size > 0 and f.embedding.size > 0))
    return fakes() | {"torn": PolicyRun(DynamicK(KRange(2, 2, 8), torn), 2)}


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    """No requested chain waits while a row decodes what nobody has requested; returns counts of what was begun."""
    counts, given_up = Counter(), set()
    real = {name: getattr(scheduler._Scheduler, name) for name in ("decode", "_cancel", "_request")}

    def decode(self):
        engine = self._engine
        assert not self._early or engine.num_running + engine.num_pending <= engine.rows
        assert all(key not in self._live[number].requested for number, key in self._early)
        counts["early"] += len(self._early)
        real["decode"](self)

    def cancel(self, keys):
        given_up.update((id(self), *chain) for chain in keys)
        counts["cancelled"] += len(keys)
        real["_cancel"](self, keys)

    def request(self, policy, count, *, first):
        real["_request"](self, policy, count, first=first)
        number = policy.question.number
        counts["again"] += sum((id(self), number, key) in given_up for key in policy.keys)

    for name, wrapper in (("decode", decode), ("_cancel", cancel), ("_request", request)):
        monkeypatch.setattr(scheduler._Scheduler, name, wrapper)
    return counts


def run_all(model, work, *, rows=16, engine=None, **options):
    """Records by policy and question, and the engine; nothing is left in the engine."""
    engine = engine or Engine(model, CONFIG, rows=rows, prompt_room=8)
    options = {"grader": Grading(), "seed": 1} | options
    records = {(c.run, c.question.question_id): c.question for c in run_policies(model, engine, work, **options)}
    if "stopping" not in options:
        assert engine.idle
    return records, engine


def same_but_cancelled(mine, other):
    assert mine.keys() == other.keys()
    for key, record in other.items():
        assert (record.num_cancelled_tokens, record.cancelled_s) == (0, 0.0)
        same_record(replace(mine[key], num_cancelled_tokens=0, cancelled_s=0.0), record)


def spent(records):
    """Tokens of all questions, each trajectory once, and what was cancelled of each."""
    tokens, cancelled = {}, Counter()
    for (_, name), record in records.items():
        tokens |= {(name, t.arm, t.index): t.num_generated_tokens for t in record.trajectories}
        cancelled[name] = max(cancelled[name], record.num_cancelled_tokens)
    return sum(tokens.values()), cancelled.total()


@pytest.fixture(scope="module")
def reference(model):
    """What the policies record of eight questions without, by name and question."""
    runs = policies()
    name_of = {run: name for name, run in runs.items()}
    records, _ = run_all(model, [([*runs.values()], question) for question in questions(8)])
    return {(name_of[run], question): record for (run, question), record in records.items()}


@pytest.mark.parametrize("name", [*policies()])
@pytest.mark.parametrize(("rows", "at_a_time"), [(8, 3), (64, 2)])
def test_one_policy_records_the_same_with_eager_rungs(model, reference, watched, name, rows, at_a_time):
    run = policies()[name]
    work = [([run], question) for question in questions(7)]
    eager, engine = run_all(model, work, rows=rows, at_a_time=at_a_time, eager=True)
    same_but_cancelled({(name, question): q for (_, question), q in eager.items()}, of_name(reference, name, 7))
    tokens, cancelled = spent(eager)
    assert tokens + cancelled == engine.num_generated_tokens
    stopped = [q for q in eager.values() if q.k < run.policy.ladder.maximum]
    assert (watched["early"] > 0) == run.policy.asks(run.policy.start)
    assert (cancelled > 0) == bool(stopped) or rows == 8  # which gives up to make room, too
    assert bool(stopped) == (name in ("asked", "torn", "agree", "esc"))
    assert all((q.cancelled_s > 0) == (q.num_cancelled_tokens > 0) for q in eager.values())


def of_name(records, name, count):
    """The records of the first questions under one policy."""
    ids = [question.question_id for question in questions(count)]
    return {key: record for key, record in records.items() if key[0] == name and key[1] in ids}


def test_a_fixed_number_is_not_charged_for_what_was_begun_early_for_others(model):
    runs = {name: run for name, run in policies().items() if name in ("asked", "torn", "fixed")}  # no k = 8 for all
    work = [([*runs.values()], question) for question in questions(7)]
    eager, engine = run_all(model, work, rows=8, at_a_time=3, eager=True)
    tokens, cancelled = spent(eager)
    assert tokens + cancelled == engine.num_generated_tokens
    assert cancelled > 0
    assert all(eager[runs["fixed"], q.question_id].num_cancelled_tokens == 0 for q in questions(7))


def test_a_chain_that_made_room_is_sampled_again_and_becomes_the_same(model, reference, watched):
    """New questions and requested rungs take the rows of what was begun early, the farthest rungs first."""
    runs = {name: run for name, run in policies().items() if name in ("asked", "torn", "esc")}
    work = [([run], question) for question in questions(5) for run in runs.values()]
    eager, engine = run_all(model, work, rows=8, at_a_time=3, eager=True)
    name_of = {run: name for name, run in runs.items()}
    found = {(name_of[run], question): record for (run, question), record in eager.items()}
    same_but_cancelled(found, {key: reference[key] for key in found})
    assert min(watched["cancelled"], watched["again"]) > 0
    charged = sum(t.num_generated_tokens for q in eager.values() for t in q.trajectories)
    assert charged + sum(q.num_cancelled_tokens for q in eager.values()) == engine.num_generated_tokens


def test_the_nearest_rungs_come_first_and_the_farthest_go_first(model):
    run = PolicyRun(RuleK(KRange(2, 2, 8), RULES["esc"]), embeds=False)
    engine = Engine(model, CONFIG, rows=16, prompt_room=8)
    work = iter([([run], question) for question in questions(12)])
    stages = scheduler._Scheduler(model, engine, work, 1, "majority", Account(), None)
    stages.admit(3)
    stages.begin_early(True)
    near, far = (
        [(n, ("power", i)) for n in range(3) for i in (2, 3)],
        [(n, ("power", i)) for n in (0, 1) for i in (4, 5)],
    )
    assert stages._early == {*near, *far}
    stages.begin_early(True)
    assert engine.num_pending == 16
    stages.admit(4)
    stages.begin_early(True)
    assert stages._early == {*near, *far[:2]}
    stages._request(stages._live[0].policies[0], 2, first=True)  # were begun: they take no other rows
    stages._request(stages._live[3].policies[0], 2, first=True)
    stages.begin_early(True)
    assert stages._early == {*far[:2], *near[2:4]}  # the next rung of each, the oldest questions first
    assert engine.num_pending == 16
    stages.admit(None)  # as many as without
    stages.begin_early(True)
    assert (engine.num_pending, stages._early) == (20, set())


def test_alone_a_question_takes_at_most_the_steps_of_all_rungs_at_once(model):
    """Exactly the steps of the longest chain that the policy needs."""

    def steps(run, **options):
        engine, found, before = Engine(model, CONFIG, rows=8, prompt_room=8, prefetch=False), {}, 0
        work = [([run], question) for question in questions(3)]
        for done in run_policies(model, engine, work, grader=Grading(), seed=1, at_a_time=1, **options):
            found[done.question.question_id] = engine.num_steps - before, done.question.k
            before = engine.num_steps
        return found

    at_once = functools.cache(lambda k: steps(PolicyRun(FixedK(k), embeds=False)))
    for name in ("agree", "torn"):
        run = policies()[name]
        eager, one_by_one = steps(run, eager=True), steps(run)
        for question, (taken, k) in eager.items():
            assert taken == at_once(k)[question][0] <= one_by_one[question][0]
        assert sum(taken for taken, _ in eager.values()) < sum(taken for taken, _ in one_by_one.values())


def test_every_moment_is_charged_once_with_eager_rungs(model):
    account, run = Account(), policies()["torn"]
    work = [([run], question) for question in questions(9)]
    records, _ = run_all(model, work, rows=16, eager=True, account=account, at_a_time=2)
    records = records.values()
    assert sum(q.num_cancelled_tokens for q in records) > 0
    shares = sum(
        sum(t.compute_s for t in q.trajectories) + q.cancelled_s + q.prefill_s + q.controller_s for q in records
    )
    charged = account.decode + account.prefill + account.features + account.controller
    assert shares == pytest.approx(charged, rel=1e-9)


def test_features_are_read_of_requested_trajectories_alone(model, monkeypatch):
    passes, real = [], scheduler.block_hidden
    monkeypatch.setattr(
        scheduler, "block_hidden", lambda m, pairs, **kw: passes.append(len(pairs)) or real(m, pairs, **kw)
    )
    run = PolicyRun(DynamicK(KRange(2, 2, 8), FakeController(lambda f: float(f.scalars[-1] >= 4))), 2, False)
    records, _ = run_all(model, [([run], q) for q in questions(5)], rows=64, eager=True)
    assert sum(passes) == sum(q.k for q in records.values()) == 20


def test_stopping_leaves_what_is_not_complete_with_eager_rungs(model, reference):
    done = []
    work = [([policies()["torn"]], question) for question in questions(8)]
    watch = dict(stopping=lambda: len(done) >= 9, on_checkpoint=lambda checkpoint: done.append(checkpoint))
    eager, engine = run_all(model, work, rows=8, at_a_time=2, eager=True, **watch)
    assert 0 < len(eager) < 8
    assert not engine.idle
    found = {("torn", question): record for (_, question), record in eager.items()}
    same_but_cancelled(found, {key: reference[key] for key in found})


def test_a_device_that_runs_out_of_memory_takes_nothing_from_the_records(model, reference, monkeypatch):
    run = policies()["torn"]
    engine = Engine(model, CONFIG, rows=32, prompt_room=8)
    windows, real = Counter(), engine._window

    def window():
        windows["all"] += 1
        if windows["all"] in (7, 12):
            raise torch.OutOfMemoryError("out of memory")
        return real()

    monkeypatch.setattr(engine, "_window", window)
    with pytest.warns(UserWarning, match="unfinished chains start again"):
        eager, _ = run_all(model, [([run], q) for q in questions(6)], engine=engine, at_a_time=4, eager=True)
    assert engine.rows == 8
    same_but_cancelled({("torn", question): q for (_, question), q in eager.items()}, of_name(reference, "torn", 6))


def test_a_policy_whose_next_trajectories_have_ended_is_asked_again_at_once(model, monkeypatch):
    """Its decisions take no steps, so an answer that stood at k = 8 waits for nothing."""
    forced = (8, 8, 1, 1, 1, 1, 1, 1)
    work = [([policies()["asked"]], replace(questions(1)[0], forced_lengths=forced))]
    engine, at = Engine(model, CONFIG, rows=8, prompt_room=8), []
    options = dict(eager=True, on_checkpoint=lambda checkpoint: at.append(engine.num_steps))
    run_all(model, work, engine=engine, **options)
    assert at == [at[0]] * 2


NAMES = ("asked", "picky", "torn", "agree", "esc", "fixed")


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.sampled_from([8, 11, 24, 64]),
    at_a_time=st.sampled_from([1, 2, 5, None]),
    names=st.lists(st.lists(st.sampled_from(NAMES), min_size=1, unique=True), min_size=1, max_size=8),
    background=st.booleans(),
)
def test_any_work_records_the_same(model, reference, rows, at_a_time, names, background):
    runs = policies()
    work = [([runs[name] for name in each], q) for each, q in zip(names, questions(8), strict=False)]
    grader = SlowGrading() if background else Grading()
    eager, engine = run_all(model, work, rows=rows, at_a_time=at_a_time, eager=True, grader=grader)
    name_of = {run: name for name, run in runs.items()}
    eager = {(name_of[run], question): record for (run, question), record in eager.items()}
    same_but_cancelled(eager, {key: reference[key] for key in eager})
    assert sum(spent(eager)) == engine.num_generated_tokens


def test_eager_rungs_are_on_where_few_questions_are_worked_on():
    assert not ComputeConfig().begins_early
    assert ComputeConfig(questions_at_a_time=1).begins_early
    assert not ComputeConfig(questions_at_a_time=1, eager=False).begins_early
    assert ComputeConfig(eager=True).begins_early


def test_answer_begins_early_unless_told_otherwise():
    controller = FakeController(lambda features: 1.0)
    controller.parts = frozenset()
    sampler = SamplerConfig(alpha=4.0, block_size=8, max_new_tokens=16, num_mh_steps=1)
    options = dict(controller=controller, sampler=sampler, rows=8)
    [eager], [plain] = answer("14+23", **options), answer("14+23", eager=False, **options)
    assert eager.num_cancelled_tokens > 0
    same_but_cancelled({0: eager}, {0: plain})


def test_sample_says_how_many_tokens_were_not_needed(monkeypatch, capsys):
    record, given = replace(make_question(0, k=2), num_cancelled_tokens=1070), {}
    monkeypatch.setattr("dps.model.load_model", lambda config: None)
    monkeypatch.setattr("dps.api.answer", lambda *_, **settings: given.update(settings) or [record])
    assert run(["sample", "1+2", "--eager=false"]) == 0
    assert given["eager"] is False
    tokens = sum(t.num_generated_tokens for t in record.trajectories) + 1070
    assert f"{tokens:,} tokens, 1,070 of them begun early and not needed, " in capsys.readouterr().out
