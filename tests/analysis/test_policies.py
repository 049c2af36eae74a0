"""Tables and policies: fixed k over orders, live policies, replays that say what a live run does."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from dps.analysis import policies
from dps.analysis.policies import ORDERS, bounds, cross_fitted, dynamic, fixed, live
from dps.analysis.table import read_table
from dps.decide import RULES, FixedK, KRange, RuleK
from dps.decide.aggregate import answer_of
from dps.decide.ladder import from_ks
from dps.decide.orders import orders_of, walk
from dps.decide.samples import samples_of
from dps.decide.splits import folds_of
from dps.decide.thresholds import NEVER_STOP
from dps.errors import InputError
from feature_store import Decision, Store
from tests.analysis.evaluations import dynamic_manifest, power_manifest, question, write_store
from tests.decide.test_orders import power_orders
from tests.factories import make_question
from tests.run.test_scheduler import model, run  # noqa: F401


def table_of(folder, manifest, questions):
    return read_table(Store.open(write_store(folder, manifest, questions)), str(folder), everything=True)


def every_k(table):
    """Fixed k of every k, by k."""
    most = table.ks[-1]
    ladder = from_ks(table.series, range(1, most + 1))
    policy = fixed(table, power_orders(table.question_ids, ORDERS, most), ladder, table.ks, table.series)
    return dict(zip(policy.thresholds.astype(int).tolist(), policy.curve, strict=True)), policy


def over_orders(record, k, aggregator="majority"):
    """Accuracy, tokens and latency of the first k over the orders, one order after another."""
    orders = orders_of(record.question_id, record.k, ORDERS, 0)
    used = [[record.trajectories[i] for i in order[:k]] for order in orders]
    right = [bool(answer_of(some, aggregator)[1]) for some in used]
    tokens = [sum(t.num_generated_tokens for t in some) for some in used]
    return np.mean(right), np.mean(tokens), np.mean([max(t.finished_s for t in some) for some in used])


def test_a_fixed_k_is_the_mean_over_orders_of_its_trajectories(tmp_path):
    record = question(0, [1, 0, 0, 0, 1, 1, 1, 1], tokens=7)
    found, policy = every_k(table_of(tmp_path / "s", power_manifest(), [record]))
    assert list(found) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert policy.thresholds[policy.listed].tolist() == [2, 4, 6, 8]
    for k, point in found.items():
        right, _, latency = over_orders(record, k)
        assert (point.correct[0], point.latency_s[0]) == pytest.approx((right, latency))
        assert (point.tokens[0], point.k[0]) == (7 * k, k)
        assert point.compute_s[0] == pytest.approx(k * 0.02 + 0.003)
    # In the order of sampling the first two were a tie that the higher log p decides, the first four three wrong ones.
    assert found[8].correct[0] == 1
    assert 0 < found[4].correct[0] < 1


@pytest.mark.parametrize("aggregator", ["majority", "best_logprob", "weighted"])
def test_answers_over_orders_are_those_of_the_aggregator_on_random_records(tmp_path, aggregator, monkeypatch):
    monkeypatch.setattr(policies, "_QUESTIONS", 10)  # averaged at a time
    questions = [make_question(i, hidden_size=0) for i in range(24)]
    found, _ = every_k(table_of(tmp_path / "s", power_manifest(aggregator=aggregator), questions))
    for k in (1, 3, 8):
        expected = [over_orders(record, k, aggregator) for record in questions]
        assert found[k].correct == pytest.approx([e[0] for e in expected])
        assert found[k].tokens == pytest.approx([e[1] for e in expected])


def test_a_live_policy_keeps_its_answer_and_pays_for_its_controller(tmp_path):
    early = dict(num_cancelled_tokens=70, cancelled_s=0.5)
    asked = [question(1, [1, 1], decisions=[Decision(2, 0.9)], **early), question(0, [0, 0, 1, 1, 1, 1])]
    table = table_of(tmp_path / "s", dynamic_manifest(), asked)
    policy = live(table)
    assert table.question_ids == ("q00000", "q00001")
    assert table.live.decisions == ((), ((2, 0.9),))
    assert policy.p_inc == {2: pytest.approx(0.1)}
    assert (policy.label, policy.family, policy.natural_k.tolist()) == ("gbdt", "controller", [6, 2])
    assert policy.chosen.compute_s == pytest.approx([6 * 0.02 + 0.006, 2 * 0.02 + 0.006 + 0.5])
    assert policy.chosen.tokens.tolist() == [600, 270]
    assert table.on(["q00001"]).live.cancelled.tolist() == [70]
    assert policy.chosen.latency_s.tolist() == [9.0, 9.0]


def without_grades(record):
    return replace(record, trajectories=tuple(replace(t, correct=None) for t in record.trajectories))


def test_an_ungradable_answer_is_not_right_and_a_question_without_any_grade_does_not_count(tmp_path):
    cases = [
        question(0, [1] * 8, gold=None),  # graded by tests
        without_grades(question(1, [1] * 8)),  # a gold answer, but nobody could grade
        without_grades(question(2, [1] * 8, gold=None)),
    ]
    table = table_of(tmp_path / "power", power_manifest(), cases)
    assert table.graded == ("q00000", "q00001")
    for point in every_k(table)[1].curve:
        assert point.correct.tolist() == pytest.approx([1, 0, np.nan], nan_ok=True)
    records = [
        without_grades(question(0, [1, 1], correct=None, gold=None)),
        question(1, [1, 1], correct=False),
        question(2, [1, 1], correct=None),
    ]
    table = table_of(tmp_path / "gbdt", dynamic_manifest(), records)
    assert table.live.outcome.correct.tolist() == pytest.approx([np.nan, 0, 0], nan_ok=True)
    assert table.live.ungradable.tolist() == [False, False, True]


def test_a_question_with_too_few_trajectories_is_refused(tmp_path):
    with pytest.raises(InputError, match="q00003"):
        table_of(tmp_path / "s", power_manifest(), [question(3, [1] * 6)])


# -- replays -----------------------------------------------------------------------------------------------------------


def walked_of(count, num_orders):
    questions = [make_question(number) for number in range(count)]
    samples = samples_of(questions, {"power": 8})
    return samples, walk(samples, power_orders(samples.question_ids, num_orders), (2, 4, 6, 8), "majority", 0)


def test_a_threshold_does_not_depend_on_the_questions_it_is_used_on():
    samples, walked = walked_of(60, 3)
    folds = folds_of(samples.question_ids, 5, 0)
    assert np.bincount(folds).tolist() == [12] * 5
    p_enough = np.random.default_rng(0).random((60, 3, 3))
    policy = dynamic("x", "rule", "power", walked, p_enough, folds, 0.12)
    flipped = walked.correct.copy()
    flipped[folds == 2] = ~flipped[folds == 2]
    again = [replace(p, correct=np.where(folds == 2, 1 - p.correct, p.correct)) for p in policy.curve]
    chosen = cross_fitted(policy.thresholds, again, replace(walked, correct=flipped), folds, 0.12)
    assert chosen[folds == 2].tolist() == policy.chosen_thresholds[folds == 2].tolist()
    assert chosen.tolist() != policy.chosen_thresholds.tolist()  # the others did look at fold 2


def test_the_bounds_of_a_walk():
    samples, walked = walked_of(60, 3)
    folds = folds_of(samples.question_ids, 5, 0)
    votes, fitted, _, oracle = bounds("power", walked, folds, 0.2)
    for bound in (fitted, oracle):
        [best] = np.flatnonzero(bound.listed)
        assert (bound.thresholds[best], best) == (0, len(bound.curve) - 1)
        assert all(a.tokens.mean() < b.tokens.mean() for a, b in pairwise(bound.curve))
    best = oracle.curve[-1]
    right = walked.correct.any(axis=2)
    first = np.asarray(walked.ks)[walked.correct.argmax(axis=2)]  # the first k where none is right
    assert best.k.tolist() == first.mean(axis=1).tolist()
    assert best.correct.tolist() == right.mean(axis=1).tolist()
    assert (votes.thresholds[-1], votes.curve[-1].k.tolist()) == (NEVER_STOP, [8.0] * 60)
    for q in (0, 30, 59):  # at the rate that the other folds' questions chose, the point of the curve
        at = votes.thresholds.tolist().index(votes.chosen_thresholds[q])
        assert votes.chosen.tokens[q] == votes.curve[at].tokens[q]
    assert len(set(votes.chosen_thresholds[folds == 1])) == 1


@pytest.mark.parametrize(
    ("name", "krange"),
    [
        ("adaptive-consistency", KRange(1, 1, 5)),
        ("certificate", KRange(2, 1, 6)),
        ("entropy", KRange(2, 2, 8)),
        pytest.param("random", KRange(1, 1, 5), marks=pytest.mark.slow),
        pytest.param("uab", KRange(2, 2, 8), marks=pytest.mark.slow),
    ],
)
def test_replay_says_what_a_live_run_does(model, name, krange):  # noqa: F811
    whole = run(model, FixedK(krange.maximum), count=14)
    samples = samples_of([whole[i] for i in sorted(whole)], {"power": krange.maximum})
    orders = np.arange(krange.maximum)[None, None].repeat(14, axis=0)
    walked = walk(samples, orders, krange.values, "majority", 1)
    p_inc = 1 - walked.p_enough(RULES[name])[:, 0]
    middle = np.unique(p_inc)
    rule = replace(RULES[name], threshold=float((middle[len(middle) // 2 - 1] + middle[len(middle) // 2]) / 2))
    lived = run(model, RuleK(krange, rule), count=14, rows=9, layer=None)
    assert len({record.k for record in lived.values()}) > 1
    for row, question_id in enumerate(samples.question_ids):
        record, climbing = lived[question_id], p_inc[row] > rule.threshold
        stop = int(np.argmin(climbing)) if not climbing.all() else len(climbing)
        assert record.k == krange.values[stop]
        assert record.correct == walked.correct[row, 0, stop]
        assert sum(t.num_generated_tokens for t in record.trajectories) == walked.tokens[row, 0, stop]
        said = [d.p_enough for d in record.decisions]
        # Batches differ, and with them the last bits.
        assert said == pytest.approx((1 - p_inc[row, : len(said)]).tolist(), abs=1e-6)
