"""Controllers asked while trajectories run: what is seen, what follows, and that nobody else is touched."""

import dataclasses
import time

import numpy as np
import pytest

from dps.analysis.replay.in_run import replay_question
from dps.decide import DynamicK, FixedK, InRun, KRange, RuleK, in_run
from dps.decide.features import SCALAR_FEATURES, checkpoint_features
from dps.decide.rules.confidence import LowEntropy
from dps.errors import InputError
from dps.run.scheduler import Account, run_policy
from dps.sampler.engine import Engine
from dps.sampler.settings import SamplerConfig
from feature_store import Decision, Snapshot, Store, StoreWriter
from tests.factories import make_manifest

from .test_scheduler import CALIBRATION, FakeController, Grading, SlowGrading, model, questions  # noqa: F401

CONFIG = SamplerConfig(alpha=2.0, block_size=4, max_new_tokens=16, num_mh_steps=2)
RANGE = KRange(2, 2, 6)
ENTROPY, ACCEPTANCE = (SCALAR_FEATURES.index(name) for name in ("mcmc_entropy", "acceptance_ratio"))


class Asked(FakeController):
    """A controller for one block."""

    def __init__(self, rule, block=None, label="no_gain"):
        super().__init__(rule)
        self.block, self.label = block, label


def by_digits(name, scale=7.0):
    """A made-up opinion that nearby features do not share, but equal ones do up to rounding."""
    at = SCALAR_FEATURES.index(name)
    return lambda features: float(np.sin(scale * features.scalars[at]) ** 2)


def run(model, policy, inside=None, *, rows=16, count=14, blocks=None, layer=2, account=None, grader=None, **kwargs):  # noqa: F811
    taken = blocks if blocks is not None else inside.blocks if inside is not None else ()
    engine = Engine(model, CONFIG, rows=rows, prompt_room=8, snapshot_blocks=taken)
    found = run_policy(
        model,
        engine,
        questions(count),
        policy,
        grader=grader or Grading(),
        seed=1,
        feature_layer=layer,
        in_run=inside,
        account=account,
        **kwargs,
    )
    records = {record.question_id: record for record in found}
    assert engine.idle
    return records


def policy_of(scale=3.0):
    return DynamicK(RANGE, Asked(by_digits("mcmc_entropy", scale)))


def escalating(*blocks, threshold=0.5):
    return InRun(RANGE, {b: Asked(by_digits("mcmc_entropy", 5.0 + b), b) for b in blocks}, threshold)


def giving_up(*blocks, threshold=0.3):
    controllers = {b: Asked(by_digits("mcmc_perplexity", 5.0 + b), b, "solvable") for b in blocks}
    return InRun(RANGE, give_up=controllers, give_up_threshold=threshold)


def both(*blocks):
    one, other = escalating(*blocks), giving_up(*blocks)
    return dataclasses.replace(one, give_up=other.give_up, give_up_threshold=other.give_up_threshold)


@pytest.fixture(scope="module")
def harvest(model):  # noqa: F811
    return run(model, FixedK(RANGE.maximum), blocks=(1, 2, 3))


def without_rounding(decisions):
    return [(d.k, d.block, d.about, pytest.approx(d.p_enough, abs=1e-6)) for d in decisions]


def test_a_harvest_stores_the_snapshots_and_changes_nothing_else(model, harvest, tmp_path):  # noqa: F811
    plain = run(model, FixedK(RANGE.maximum))
    count = 0
    for name, record in harvest.items():
        for t, bare in zip(record.trajectories, plain[name].trajectories, strict=True):
            assert t.tokens.tolist() == bare.tokens.tolist()
            assert (t.answer_class, t.correct, t.ending) == (bare.answer_class, bare.correct, bare.ending)
            assert bare.snapshots == ()
            assert [s.block for s in t.snapshots] == list(range(1, len(t.snapshots) + 1))
            assert len(t.snapshots) >= len(t.block_num_tokens) - 1  # it may have been longer before it was cut
            spent = [*(s.num_generated_tokens for s in t.snapshots), t.num_generated_tokens]
            assert spent == sorted(spent)
            for snapshot in t.snapshots:
                assert snapshot.block_num_tokens.tolist() == [4] * snapshot.block
                assert snapshot.mh_proposed == 2 * snapshot.block
                assert snapshot.hidden.shape == (snapshot.block, 16)
                assert (snapshot.answer_class, t.at(snapshot.block)) == (-1, snapshot)
                count += 1
    assert count > 100
    StoreWriter.open(tmp_path, make_manifest()).commit(list(harvest.values()))
    stored = {q.question_id: q for q in Store.open(tmp_path)}
    inside = both(1, 2)
    for name, record in harvest.items():
        assert replay_question(stored[name], policy_of(), inside) == replay_question(record, policy_of(), inside)


@pytest.mark.parametrize("inside", [escalating(1), escalating(1, 3), giving_up(1, 2), giving_up(3), both(1, 2)])
@pytest.mark.parametrize("rows", [8, 40])
def test_live_equals_replayed(model, harvest, inside, rows):  # noqa: F811
    """The same k, the same decisions at the same checkpoints and the same answer, whatever the number of rows."""
    live = run(model, policy_of(), inside, rows=rows)
    outcomes = set()
    for name, record in live.items():
        replayed = replay_question(harvest[name], policy_of(), inside)
        assert [(d.k, d.block, d.about, d.p_enough) for d in record.decisions] == without_rounding(replayed.decisions)
        assert (record.k, record.answer, record.correct) == (replayed.k, replayed.answer, replayed.correct)
        for t, whole in zip(record.trajectories, harvest[name].trajectories, strict=False):
            if t.ending != "gave_up":
                assert t.tokens.tolist() == whole.tokens.tolist()
                assert (t.answer, t.num_generated_tokens) == (whole.answer, whole.num_generated_tokens)
        gave_up = any(t.ending == "gave_up" for t in record.trajectories)
        assert gave_up == replayed.gave_up
        assert sum(t.num_generated_tokens for t in record.trajectories) == replayed.num_tokens
        outcomes.add((gave_up, any(d.block is None for d in record.decisions), record.k))
    assert len(outcomes) > 2
    assert bool(inside.give_up) == any(gave_up for gave_up, _, _ in outcomes)


@pytest.mark.parametrize("inside", [None, escalating(1, 2), both(1, 2)])
def test_the_latency_in_steps_is_that_of_a_question_alone(model, harvest, inside):  # noqa: F811
    engine = Engine(model, CONFIG, rows=8, prompt_room=8, snapshot_blocks=(1, 2))
    fewer, alone = 0, inside if inside is not None else InRun(RANGE)
    for question in questions(14):
        before = engine.num_steps
        (record,) = run_policy(
            model, engine, [question], policy_of(), grader=Grading(), seed=1, feature_layer=2, in_run=alone
        )
        replayed = replay_question(harvest[record.question_id], policy_of(), inside)
        assert engine.num_steps - before == replayed.num_steps
        fewer += replayed.num_steps < replay_question(harvest[record.question_id], policy_of(), None).num_steps
    assert (fewer > 2) == (inside is not None)


def test_what_a_controller_sees_is_what_the_trajectories_were_at_the_end_of_the_block(model, harvest):  # noqa: F811
    inside = escalating(2)
    records = run(model, policy_of(), inside, count=6)
    expected = []
    for record in records.values():
        for decision in record.decisions:
            if decision.block is not None:
                whole = harvest[record.question_id]
                features = checkpoint_features(
                    [t.at(2) for t in whole.trajectories[: decision.k]],
                    num_prompt_tokens=whole.num_prompt_tokens,
                    embedding=whole.embedding,
                    calibration=CALIBRATION,
                )
                expected.append(features)
    seen = inside.escalation[2].seen
    assert len(seen) == len(expected) > 3

    def key(features):
        return features.scalars.tolist()

    for mine, theirs in zip(sorted(seen, key=key), sorted(expected, key=key), strict=True):
        np.testing.assert_allclose(mine.scalars, theirs.scalars, rtol=1e-6)
        np.testing.assert_allclose(mine.extended, theirs.extended, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(mine.hidden, theirs.hidden, atol=1e-4)


def test_escalating_early_starts_more_while_the_first_run(model):  # noqa: F811
    inside = InRun(RANGE, {1: Asked(lambda f: 0.0, 1)}, 0.5)
    started = 0
    for record in run(model, policy_of(), inside, rows=64, count=8).values():
        ended = [t.finished_s for t in record.trajectories]
        assert record.k == RANGE.maximum or all(d.block is None for d in record.decisions if d.k == record.k)
        started += any(t.started_s < max(ended[:2]) for t in record.trajectories[2:])
    assert started > 3


def test_nobody_is_asked_where_all_have_ended_and_the_end_is_skipped_where_k_has_grown(model, harvest):  # noqa: F811
    inside = InRun(RANGE, {1: Asked(lambda f: 0.0, 1)}, 0.5)
    skipped = 0
    for name, record in run(model, policy_of(), inside).items():
        for k in range(2, record.k, 2):
            running = any(t.at(1) is not t for t in harvest[name].trajectories[:k])
            asked = [d.block for d in record.decisions if d.k == k]
            assert asked == ([1] if running else [None])
            skipped += running
    assert skipped > 5


def test_giving_up_counts_until_the_block_and_has_no_answer_from_what_ran(model, harvest):  # noqa: F811
    inside = InRun(RANGE, give_up={1: Asked(lambda f: 0.0, 1, "solvable")}, give_up_threshold=0.5)
    account = Account()
    records = run(model, policy_of(), inside, account=account)
    given_up = 0
    for name, record in records.items():
        if record.decisions[-1].about != "solvable":
            assert all(t.ending != "gave_up" for t in record.trajectories)
            continue
        assert record.decisions == (Decision(2, 0.0, 1, "solvable"),)
        assert record.k == 2
        for t, whole in zip(record.trajectories, harvest[name].trajectories, strict=False):
            then = whole.at(1)
            assert (t.ending == "gave_up") == isinstance(then, Snapshot)
            if t.ending == "gave_up":
                assert (t.answer, t.answer_class, t.correct, t.strict_answer) == (None, -1, False, None)
                assert len(t.tokens) == 4
                assert (t.mh_proposed, len(t.steps.length)) == (2, 2)
                assert t.block_entropy == pytest.approx(then.block_entropy)
                assert t.hidden.shape == (1, 16)
                assert [s.block for s in t.snapshots] == [1]
                assert t.num_generated_tokens == then.num_generated_tokens < whole.num_generated_tokens
                given_up += 1
            else:
                assert t.answer == whole.answer
        ended = [t.answer for t in record.trajectories if t.ending != "gave_up"]
        assert record.answer in ended if ended else record.answer is None
        assert record.latency_s >= max(t.finished_s for t in record.trajectories)
    assert given_up > 0
    shares = sum(sum(t.compute_s for t in r.trajectories) + r.prefill_s + r.controller_s for r in records.values())
    assert shares == pytest.approx(account.decode + account.prefill + account.features + account.controller, rel=1e-9)


def test_every_moment_is_charged_once_with_snapshots(model):  # noqa: F811
    account = Account()
    started = time.perf_counter()
    records = run(model, policy_of(), both(1, 2), account=account)
    wall = time.perf_counter() - started
    shares = sum(sum(t.compute_s for t in r.trajectories) + r.prefill_s + r.controller_s for r in records.values())
    charged = account.decode + account.prefill + account.features + account.controller
    assert shares == pytest.approx(charged, rel=1e-9)
    assert account.total == pytest.approx(wall, abs=0.05)


def test_beside_a_rule_and_with_answers_read_in_the_background(model, harvest):  # noqa: F811
    policy = RuleK(RANGE, LowEntropy(threshold=0.6))
    inside = both(1, 2)
    records = run(model, policy, inside, grader=SlowGrading())
    for name, record in records.items():
        replayed = replay_question(harvest[name], policy, inside, seed=1)
        assert [(d.k, d.block, d.about, d.p_enough) for d in record.decisions] == without_rounding(replayed.decisions)
        assert (record.k, record.answer) == (replayed.k, replayed.answer)
    assert {d.block for r in records.values() for d in r.decisions} == {None, 1, 2}


def test_checkpoints_inside_a_run_are_told(model):  # noqa: F811
    told = []
    records = run(model, policy_of(), both(1), on_checkpoint=told.append)
    inside = [c for c in told if c.block == 1]
    assert {c.block for c in told} == {None, 1}
    assert {c.question_id for c in told if c.gave_up} == {
        name for name, r in records.items() if any(t.ending == "gave_up" for t in r.trajectories)
    }
    assert all(any(isinstance(t, Snapshot) for t in c.trajectories) for c in inside)


def test_controllers_are_refused_where_they_were_not_trained():
    at_end, at_two = Asked(None), Asked(None, 2)
    found = in_run(RANGE, escalation=[at_two], give_up=[Asked(None, 1, "solvable")], block_size=4)
    assert (found.blocks, found.escalation, found.give_up[1].block) == ((1, 2), {2: at_two}, 1)
    for controllers, message in (
        ({"escalation": [at_end]}, "asked at the end of k trajectories, so it cannot escalate early"),
        ({"give_up": [at_two]}, "To give up needs a controller trained with data.label solvable, but fake .* no_gain"),
        ({"escalation": [Asked(None, 1, "solvable")]}, "To escalate early needs .* no_gain or correct"),
        ({"escalation": [at_two, Asked(None, 2)]}, "both trained to be asked after block 2"),
        ({"escalation": [at_two], "block_size": 8}, "blocks of 4 tokens, but sampler.block_size is 8"),
    ):
        with pytest.raises(InputError, match=message):
            in_run(RANGE, **{"block_size": 4, **controllers})
    at_two.ks = (4, 8)
    with pytest.raises(InputError, match=r"trained to be asked at k = \[4\] of at most 8"):
        in_run(RANGE, escalation=[at_two], block_size=4)
    for controller in (Asked(None, 2), Asked(None, label="solvable")):
        with pytest.raises(InputError, match="so it cannot decide at the end of k trajectories: name it under in_run"):
            DynamicK(RANGE, controller)


def test_an_engine_without_the_snapshots_is_an_error(model):  # noqa: F811
    with pytest.raises(ValueError, match=r"expected snapshots of blocks \(1,\)"):
        run(model, policy_of(), escalating(1), blocks=())
