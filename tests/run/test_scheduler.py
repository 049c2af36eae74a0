"""Live scheduling: prefixes, decisions, accounts, records."""

import itertools
import threading
import time
from dataclasses import fields, replace
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from dps.benchmarks.grading import Grader, Item
from dps.decide import RULES, DynamicK, FixedK, KRange, RuleK
from dps.decide.aggregate import answer_of
from dps.decide.features import SCALAR_FEATURES, checkpoint_features
from dps.errors import InputError
from dps.run import readers, scheduler
from dps.run.scheduler import COUNTED, Account, PolicyRun, PreparedQuestion, run_policies
from dps.run.worker import prepare
from dps.sampler.engine import Engine
from dps.sampler.settings import SamplerConfig
from tests.factories import make_question
from tests.sampler.models import tiny_model

CONFIG = SamplerConfig(alpha=2.0, block_size=4, max_new_tokens=8, num_mh_steps=2)
CALIBRATION = {"seconds_per_token": 0.01, "prefill_seconds_per_token": 0.001}


class Grading(Grader):
    """The answer is the last token before the end; even ones are right."""

    def extract(self, text, item):
        return text.split()[-1] if text.split() else None

    def extract_strict(self, text, item):
        return None

    def grade(self, answer, item):
        return answer is not None and int(answer) % 2 == 0


class SlowGrading(Grading):
    """The same verdicts, each after a while, in another order than they were asked for."""

    background = "threads"

    def extract(self, text, item):
        time.sleep(0.001 * (hash(item.question_id) % 7))
        return super().extract(text, item)


class FakeController:
    """Says what a function of the features says, and remembers what it saw."""

    name, threshold, calibration, label = "fake", 0.5, CALIBRATION, "no_gain"
    arms, prompt_layers = MappingProxyType({}), ()

    def __init__(self, rule, ladder=None):
        self.rule, self.seen, self.ladder = rule, [], ladder or KRange(1, 1, 8).ladder()

    def check_model(self, identity, embedding_size=None):
        pass

    def predict_enough(self, features):
        self.seen += features
        return np.array([self.rule(f) for f in features])


@pytest.fixture(scope="module")
def model():
    found = tiny_model(layers=3, sharpness=2.0)
    return replace(found, tokenizer=numbers(12))


def numbers(size):
    """A tokenizer whose tokens are their own numbers, with spaces between them."""
    backend = Tokenizer(WordLevel({str(number): number for number in range(size)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="0")


def questions(count):
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(1, 12, 2 + i % 4).tolist()) for i in range(count)]
    items = [Item(f"q{i:03d}", f"question {i}", "even", {"n": i}) for i in range(count)]
    embedding = np.ones(3, np.float32)
    return [PreparedQuestion(item, "p", tokens, embedding, 0.0) for item, tokens in zip(items, prompts, strict=True)]


def run_policy(model, engine, source, policy, *, feature_layer=None, **options):
    """The questions of one policy as they are complete."""
    runs = [PolicyRun(policy, feature_layer)]
    for done in run_policies(model, engine, ((runs, question) for question in source), **options):
        yield done.question


def run(model, policy, count=12, rows=16, account=None, layer=2, kept=None, **kwargs):
    engine = Engine(model, CONFIG, rows=rows, prompt_room=8, layer=kept)
    settings = {"grader": Grading(), "seed": 1, "feature_layer": layer, "account": account, **kwargs}
    return {r.question_id: r for r in run_policy(model, engine, questions(count), policy, **settings)}


def features_of(trajectories, question):
    return checkpoint_features(
        trajectories,
        num_prompt_tokens=question.num_prompt_tokens,
        embedding=question.embedding,
        calibration=CALIBRATION,
    )


def test_a_dynamic_policy_uses_the_first_trajectories_of_the_fixed_run(model):
    fixed = run(model, FixedK(8))
    entropy = SCALAR_FEATURES.index("mcmc_entropy")
    at_two = sorted(features_of(r.trajectories[:2], r).scalars[entropy] for r in fixed.values())
    controller = FakeController(lambda f: float(f.scalars[entropy] < at_two[5]))
    dynamic = run(model, DynamicK(KRange(2, 2, 8), controller), rows=9)
    assert len({r.k for r in dynamic.values()}) > 1
    for name, record in dynamic.items():
        full = fixed[name]
        assert record.k in (2, 4, 6, 8)
        for mine, theirs in zip(record.trajectories, full.trajectories[: record.k], strict=True):
            assert mine.tokens.tolist() == theirs.tokens.tolist()
            assert mine.index == theirs.index
            assert mine.answer_class == theirs.answer_class
        assert (record.answer, record.correct) == answer_of(full.trajectories[: record.k])
        assert [d.k for d in record.decisions] == [k for k in (2, 4, 6) if k <= record.k]
        for decision in record.decisions:
            seen = features_of(full.trajectories[: decision.k], full)
            assert decision.p_enough == controller.rule(seen)
            stopped = decision.k == record.k
            assert stopped == (1 - decision.p_enough <= controller.threshold)


def test_start_and_step_of_one(model):
    controller = FakeController(lambda f: float(f.scalars[-1] >= 3))
    records = run(model, DynamicK(KRange(1, 1, 5), controller))
    assert {r.k for r in records.values()} == {3}
    never = run(model, DynamicK(KRange(1, 1, 5), FakeController(lambda f: 0.0)))
    assert {r.k for r in never.values()} == {5}
    assert all([d.k for d in r.decisions] == [1, 2, 3, 4] for r in never.values())  # not asked where it cannot matter


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_questions_at_a_time(model, at_a_time):
    controller = FakeController(lambda f: float(f.scalars[-1] >= 4))
    policy = DynamicK(KRange(2, 2, 8), controller)
    engine = Engine(model, CONFIG, rows=64, prompt_room=8)
    drawn, most, found = 0, 0, {}

    def source():
        nonlocal drawn
        for question in questions(7):
            drawn += 1
            yield question

    records = run_policy(
        model, engine, source(), policy, grader=Grading(), seed=1, feature_layer=2, at_a_time=at_a_time
    )
    for record in records:
        most = max(most, drawn - len(found))
        found[record.question_id] = record
    assert most == at_a_time  # 64 rows would have taken all seven
    for name, record in run(model, policy, count=7).items():
        assert [t.tokens.tolist() for t in record.trajectories] == [t.tokens.tolist() for t in found[name].trajectories]


def fakes():
    """Policies over one sampler, some with features; of several kinds."""
    entropy = SCALAR_FEATURES.index("mcmc_entropy")
    picky = FakeController(lambda f: float(f.scalars[entropy] < 0.9 and f.hidden.size > 0 and f.embedding.size > 0))
    return {
        "asked": PolicyRun(DynamicK(KRange(2, 2, 8), FakeController(lambda f: float(f.scalars[-1] >= 4))), 2, False),
        "picky": PolicyRun(DynamicK(KRange(2, 2, 6), picky), 2),
        "agree": PolicyRun(RuleK(KRange(2, 2, 8), RULES["adaptive-consistency"]), embeds=False),
        "esc": PolicyRun(RuleK(KRange(1, 1, 8), RULES["esc"]), embeds=False),
        "fixed": PolicyRun(FixedK(4), 1, False),
        "bare": PolicyRun(FixedK(8), embeds=False),
    }


def same_record(mine, alone, *, atol=1e-5):
    """Equal but for measured seconds; hidden states are rounded by the batch of their pass."""
    seconds = ("prefill_s", "embedding_s", "controller_s", "latency_s", "compute_s", "started_s", "finished_s")
    for field in fields(alone):
        one, other = getattr(mine, field.name), getattr(alone, field.name)
        if field.name == "trajectories":
            assert len(one) == len(other)
            for a, b in zip(one, other, strict=True):
                same_record(a, b, atol=atol)
        elif field.name == "steps":
            same_record(one, other)
        elif isinstance(other, np.ndarray):
            assert (one.shape, one.dtype) == (other.shape, other.dtype), field.name
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=atol, err_msg=field.name)
        elif isinstance(other, float):
            assert one == pytest.approx(other, rel=1e-5, abs=1e-6) or field.name in seconds, field.name
        elif field.name == "decisions":
            assert [d.k for d in one] == [d.k for d in other]
            assert [d.p_enough for d in one] == pytest.approx([d.p_enough for d in other])
        else:
            assert one == other, field.name


def test_a_shared_trajectory_is_sampled_once_and_charged_in_full_to_each_policy(model):
    runs = fakes()
    engine = Engine(model, CONFIG, rows=16, prompt_room=8)
    account, by_run = Account(), {run: {} for run in runs.values()}
    for done in run_policies(
        model, engine, [([*runs.values()], q) for q in questions(6)], grader=Grading(), seed=1, account=account
    ):
        by_run[done.run][done.question.question_id] = done.question
    bare, fixed = by_run[runs["bare"]], by_run[runs["fixed"]]
    assert engine.num_generated_tokens == sum(t.num_generated_tokens for q in bare.values() for t in q.trajectories)
    assert account.decode == pytest.approx(sum(t.compute_s for q in bare.values() for t in q.trajectories))
    assert account.prefill == pytest.approx(sum(q.prefill_s for q in bare.values()))
    everybody = [q for questions_of in by_run.values() for q in questions_of.values()]
    assert account.controller == pytest.approx(sum(q.controller_s for q in everybody))
    for run in (runs["asked"], runs["picky"]):
        for name, question in by_run[run].items():
            for mine, decoded in zip(question.trajectories, bare[name].trajectories, strict=False):
                assert mine.compute_s > decoded.compute_s  # with its part of a feature pass
                assert (mine.num_generated_tokens, mine.started_s) == (decoded.num_generated_tokens, decoded.started_s)
    asked, picky = by_run[runs["asked"]], by_run[runs["picky"]]
    for name, question in asked.items():  # one feature pass for both, charged to both
        for mine, other in zip(question.trajectories, picky[name].trajectories, strict=False):
            assert mine.compute_s == other.compute_s
    for name, question in fixed.items():
        assert {t.index for t in question.trajectories} == {0, 1, 2, 3}
        assert question.latency_s >= max(t.finished_s for t in question.trajectories)
        assert question.latency_s <= bare[name].latency_s + 1.0


def test_policies_that_share_a_question_leave_the_readers_to_other_questions(model):
    """However many they are, one thread reads it: the readings of two questions can wait for each other."""
    both = threading.Barrier(2)

    class Waiting(SlowGrading):
        def __init__(self):
            self.met = set()

        def extract(self, text, item):
            if item.question_id not in self.met:
                self.met.add(item.question_id)
                both.wait(10)
            return Grading.extract(self, text, item)

    runs = [PolicyRun(FixedK(2), embeds=False) for _ in range(readers.GRADING_THREADS + 1)]
    engine = Engine(model, CONFIG, rows=8, prompt_room=8)
    done = list(run_policies(model, engine, [(runs, q) for q in questions(2)], grader=Waiting(), seed=1))
    assert len(done) == 2 * len(runs)


def test_a_policy_that_stops_early_has_its_answer_before_the_others(model):
    """Its latency ends when its own answer stands: it does not wait for trajectories that others asked for."""
    early = PolicyRun(DynamicK(KRange(1, 1, 8), FakeController(lambda f: 1.0)), embeds=False)
    late = PolicyRun(FixedK(8), embeds=False)
    engine = Engine(model, CONFIG, rows=8, prompt_room=8)
    order = []
    for done in run_policies(model, engine, [([late, early], q) for q in questions(3)], grader=Grading(), seed=1):
        order.append((done.question.question_id, done.run))
        assert done.last == (done.run is late)
    for name in ("q000", "q001", "q002"):
        assert order.index((name, early)) < order.index((name, late))


def test_without_sharing_the_policies_take_the_rows_in_turn(model):
    """What comes after each other is sampled again; nobody waits for the last chain of the policy before."""
    runs = {name: run for name, run in fakes().items() if name in ("asked", "agree", "fixed")}
    name_of = {run: name for name, run in runs.items()}
    engine = Engine(model, CONFIG, rows=16, prompt_room=8)
    events, tokens = [], 0

    def source():
        for name, each in runs.items():
            for question in questions(7):
                events.append(("drawn", name))
                yield [each], question

    for done in run_policies(model, engine, source(), grader=Grading(), seed=1):
        events.append(("complete", name_of[done.run]))
        tokens += sum(t.num_generated_tokens for t in done.question.trajectories)
        assert done.last
    assert engine.num_generated_tokens == tokens
    for earlier, later in itertools.pairwise(runs):
        last = max(i for i, event in enumerate(events) if event == ("complete", earlier))
        assert events.index(("drawn", later)) < last


def test_every_moment_is_charged_once(model):
    account, embedder = Account(), SimpleNamespace(embed=lambda texts: time.sleep(0.1) or np.ones((len(texts), 3)))
    prompts = {q.question_id: (q.prompt, q.tokens) for q in questions(12)}
    engine = Engine(model, CONFIG, rows=16, prompt_room=8)
    started = time.perf_counter()
    source = prepare([q.item for q in questions(12)], prompts, embedder)
    policy = DynamicK(KRange(2, 2, 8), FakeController(lambda f: 0.4))
    records = list(
        run_policy(model, engine, source, policy, grader=Grading(), seed=1, feature_layer=2, account=account)
    )
    wall = time.perf_counter() - started
    shares = sum(
        sum(t.compute_s for t in r.trajectories) + r.prefill_s + r.controller_s + r.embedding_s for r in records
    )
    charged = account.decode + account.prefill + account.features + account.controller + account.embedding
    assert shares == pytest.approx(charged, rel=1e-9)
    assert shares + account.grading + account.other == pytest.approx(account.total, rel=1e-12)
    assert account.total <= wall
    assert account.total == pytest.approx(wall, abs=0.05)
    assert account.embedding >= 0.1
    assert min(account.decode, account.prefill, account.features, account.controller, account.other) > 0


def test_the_account_counts_the_engines_work_and_tells_the_tail_apart(model):
    class Watched(Engine):
        waiting = None

        def poll(self, *given):
            ended = super().poll(*given)
            self.waiting = {name: getattr(self, name) for name in COUNTED} if self.num_pending else self.waiting
            return ended

    for rows, waits in ((8, True), (64, False)):  # 48 chains
        account, engine = Account(), Watched(model, CONFIG, rows=rows, prompt_room=8)
        list(run_policy(model, engine, questions(12), FixedK(4), grader=Grading(), seed=1, account=account))
        counts = {name: getattr(engine, name) for name in COUNTED}
        assert account.counts == pytest.approx(counts)
        assert (account.counts["decode_s"], account.counts["prefill_s"]) == (account.decode, account.prefill)
        numbers = account.numbers()
        assert numbers["decode_s"] == account.decode
        assert numbers["num_row_steps"] == engine.num_row_steps
        if not waits:
            assert not account.while_waiting
            continue
        assert {name: numbers[f"waiting_{name}"] for name in COUNTED} == pytest.approx(engine.waiting)
        assert 0 < numbers["waiting_num_row_steps"] < numbers["num_row_steps"]
        assert account.decode > numbers["waiting_decode_s"] > 0
        assert numbers["waiting_decode_s"] < numbers["waiting_seconds"] < account.total


@pytest.mark.parametrize("place", ["none", "threads"])
def test_grading_that_sampling_waits_for_is_told_apart(model, place):
    class Slow(Grading):
        background = place

        def extract(self, text, item):
            time.sleep(0.02)
            return super().extract(text, item)

    account = Account()
    run(model, FixedK(2), count=5, account=account, grader=Slow())
    wait = 0.03 if place == "threads" else 0.2  # at the least the last question, when nothing is left to decode
    assert wait <= account.grading < account.total


def test_latency_covers_the_question_from_its_first_row_to_its_answer(model):
    for record in run(model, FixedK(4), rows=8).values():
        assert min(t.started_s for t in record.trajectories) == 0
        assert all(0 <= t.started_s < t.finished_s for t in record.trajectories)
        assert record.latency_s >= max(t.finished_s for t in record.trajectories)


def test_blocks_and_values_per_token_add_up_to_the_response(model):
    """The values per token are those of the blocks, rounded to float32 after the sums were taken."""
    endings = set()
    for record in run(model, FixedK(4)).values():
        for t in record.trajectories:
            assert t.block_num_tokens.sum() == len(t.tokens)
            assert t.block_logprob.sum() == pytest.approx(t.base_logprob)
            assert t.hidden.shape == (len(t.block_num_tokens), 16)
            starts = np.cumsum(t.block_num_tokens) - t.block_num_tokens
            for name in ("logprob", "entropy", "top1"):
                series, sums = getattr(t, f"token_{name}"), getattr(t, f"block_{name}")
                assert (series.dtype, series.shape) == (np.float32, t.tokens.shape)
                exact = series.astype(np.float64)
                rounding = np.add.reduceat(np.abs(exact), starts) * np.finfo(np.float32).eps
                assert (np.abs(np.add.reduceat(exact, starts) - sums) <= rounding).all()
            assert (t.token_logprob <= 0).all()
            assert (np.exp(t.token_logprob) <= t.token_top1 + 1e-6).all()
            assert (t.ending == "eos") == (int(t.tokens[-1]) == 0)
            endings.add(t.ending)
    assert endings == {"eos", "length"}
    assert all(t.hidden.shape[1] == 0 for r in run(model, FixedK(2), layer=None).values() for t in r.trajectories)


def test_stopping_leaves_what_is_not_complete(model):
    done = []
    watch = dict(stopping=lambda: len(done) >= 3, on_checkpoint=lambda checkpoint: done.append(checkpoint.question_id))
    records = run(model, FixedK(4), count=30, rows=8, **watch)
    assert 3 <= len(records) < 30
    assert set(records) == set(done)


def test_the_published_features_by_hand():
    question = make_question(3, k=2)
    a, b = question.trajectories
    features = features_of([a, b], question)
    tokens = len(a.tokens) + len(b.tokens)
    expected = [
        np.exp(-(a.block_logprob.sum() + b.block_logprob.sum()) / tokens),
        (a.block_entropy.sum() + b.block_entropy.sum()) / tokens,
        (a.block_top1.sum() + b.block_top1.sum()) / tokens,
        (a.mh_accepted + b.mh_accepted) / 20,
        0.01 * (a.num_generated_tokens + b.num_generated_tokens) + 0.001 * question.num_prompt_tokens,
        2.0,
    ]
    np.testing.assert_allclose(features.scalars, expected, rtol=1e-12)
    by_token = [np.repeat(t.hidden, t.block_num_tokens, axis=0).mean(0) for t in (a, b)]
    np.testing.assert_allclose(features.hidden, np.mean(by_token, axis=0), rtol=1e-5)


def test_a_controller_is_not_asked_where_it_was_not_trained():
    controller = FakeController(lambda f: 0.5, KRange().ladder())
    DynamicK(KRange(2, 2, 6), controller)
    DynamicK(KRange(4, 2, 8), controller)
    for k in (KRange(1, 1, 8), KRange(2, 2, 10), KRange(3, 1, 4)):
        with pytest.raises(InputError, match=r"trained to be asked at k = \[2, 4, 6\] of at most 8"):
            DynamicK(k, controller)


def same_records(one, other):
    assert one.keys() == other.keys()
    for name, record in one.items():
        same_record(record, other[name], atol=1e-4)  # another batch of a feature pass rounds otherwise


def test_a_grader_that_fails_in_the_background_stops_the_run(model):
    class Broken(SlowGrading):
        def grade(self, answer, item):
            raise InputError("the grader cannot work here")

    with pytest.raises(InputError, match="the grader cannot work here"):
        run(model, FixedK(2), grader=Broken())


@pytest.mark.parametrize("kept", [2, 1])
def test_states_that_were_kept_while_decoding_need_no_pass(model, monkeypatch, kept):
    """Of the layer that is looked at, not of another one."""
    policy = DynamicK(KRange(2, 2, 6), FakeController(lambda f: float(f.hidden.mean() * 1e3 % 1 < 0.4)))
    expected, account, passed, real = run(model, policy), Account(), [], scheduler.block_hidden
    monkeypatch.setattr(scheduler, "block_hidden", lambda *args, **kw: passed.append(1) or real(*args, **kw))
    found = run(model, policy, kept=kept, account=account)
    same_records(found, expected)
    assert len({record.k for record in found.values()}) > 1
    assert bool(passed) == (account.features > 0) == (kept != 2)
    assert sum(t.compute_s for q in found.values() for t in q.trajectories) == pytest.approx(
        account.decode + account.features
    )
