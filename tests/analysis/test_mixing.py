"""The diagnostics of mixing against values worked out by hand, and the verdict on chains known to mix or not."""

import json
import math
import re

import numpy as np
import pytest

from dps.analysis.mixing import (
    ChainTrace,
    acceptance_by_cut,
    chains_of,
    clustered,
    diagnose,
    frozen,
    judge,
    mixing_finding,
    r_hat,
    same_answer,
    spread,
    stage_row,
    trace,
    traces_of,
)
from dps.analysis.words import nats
from dps.estimates import Estimate
from feature_store import StepTrace
from tests.factories import make_question


def chain(*stages, answer_class=0, length=10, cut=5, accepted=True):
    """A chain from one list of log p per stage; the horizon of stage s is 10 (s + 1), the rest is the same in all."""
    logprob = np.concatenate([np.asarray(stage, dtype=float) for stage in stages])
    horizon = np.repeat([10 * (s + 1) for s in range(len(stages))], [len(stage) for stage in stages])

    def column(value, dtype):
        return np.broadcast_to(np.asarray(value, dtype), len(logprob)).copy()

    steps = StepTrace(
        horizon.astype(np.int32),
        column(length, np.int32),
        column(cut, np.int32),
        column(accepted, bool),
        logprob,
    )
    return ChainTrace(answer_class, steps)


def run(*questions):
    """Chains of questions, each a list of chains."""
    return chains_of({f"q{i:05d}": list(chains) for i, chains in enumerate(questions)})


def every(chains):
    return np.ones(len(chains.first), bool)


# -- the flat form -----------------------------------------------------------------------------------------------------


def test_chains_without_recorded_steps_are_left_out():
    kept = {f"q{i}": traces_of(make_question(i, k=3, steps=2 if i == 0 else None)) for i in (0, 1)}
    assert [len(traces) for traces in kept.values()] == [3, 0]
    assert len(chains_of(kept).question) == 3
    assert chains_of({"q1": kept["q1"]}) is None


# -- standard errors ---------------------------------------------------------------------------------------------------


def test_the_clustered_standard_error_is_that_worked_out_by_hand():
    # Mean 3; question 0 has the sum of residuals -2 + -1 = -3, question 1 has 3 and question 2 has 0.
    found = clustered(np.array([1.0, 2.0, 6.0, 3.0]), np.array([0, 0, 1, 2]))
    assert found.value == 3
    assert found.stderr == pytest.approx(math.sqrt(3 / 2 * (9 + 9 + 0)) / 4)
    assert found.num_questions == 3


# -- acceptance --------------------------------------------------------------------------------------------------------


def test_acceptance_by_cut_is_exact_at_the_edges_of_deciles():
    # Cuts 0..29 of 30 tokens: three to each decile, 3/30 being the first of the second; the first of three is accepted.
    cut = np.arange(30)
    bins = acceptance_by_cut(run([chain(np.zeros(30), length=30, cut=cut, accepted=cut % 3 == 0)]))
    assert [b["num_steps"] for b in bins] == [3] * 10
    assert [b["acceptance"] for b in bins] == pytest.approx([1 / 3] * 10)
    assert [(b["low"], b["high"]) for b in bins] == [(i / 10, (i + 1) / 10) for i in range(10)]
    odd = acceptance_by_cut(run([chain(np.zeros(11), length=11, cut=np.arange(11))]))  # 1/11 is below a tenth
    assert [b["num_steps"] for b in odd] == [2, *[1] * 9]


def test_frozen_chains():
    still = chain([1.0, 1.0], [2.0, 2.0], accepted=[True, False, False, False])
    chains = run([still], [chain([1.0, 1.0, 3.0])])
    assert frozen(chains, chains.last).value == 0.5
    assert frozen(chains, chains.stage_horizon == 10).value == 0


# -- log p over the steps ----------------------------------------------------------------------------------------------


def test_the_trace_is_paired_within_chains():
    # Levels that differ by thousands, changes that do not: the standard error is that of the changes.
    chains = run([chain([-1000, -999, -998])], [chain([0, 1, 4])], [chain([5])])
    rows = trace(chains, every(chains))
    assert [(row["logprob_change"], row["num_stages"]) for row in rows] == [(0, 3), (1, 2), (3, 2)]
    assert [row["logprob_change_stderr"] for row in rows] == pytest.approx([0, 0, 1])


def test_the_second_half_is_worked_out_exactly():
    # n = 4: from step 2 to step 4 the chains gain 3, 1 and 2; since step 1, 4, 3 and 2. Spread within question 0 only.
    chains = run(
        [chain([0, 1, 2, 4], length=20), chain([0, 2, 2, 3], length=30)], [chain([5, 5, 6, 7], length=[9, 9, 9, 40])]
    )
    row = stage_row(chains, every(chains))
    assert (row["num_chains"], row["least_steps"], row["most_steps"]) == (3, 4, 4)
    assert (row["second_half_gain"], row["second_half_gain_stderr"]) == (
        pytest.approx((3 + 1 + 2) / 3),
        pytest.approx(0),
    )
    assert row["gain"] == pytest.approx((4 + 3 + 2) / 3)
    assert row["gain_stderr"] == pytest.approx(math.sqrt(2 * (1**2 + 1**2)) / 3)
    assert row["second_half_gain_per_token"] == pytest.approx(6 / 90)
    assert row["spread"] == pytest.approx(math.sqrt(0.5))
    assert row["frozen"] == 0


@pytest.mark.parametrize(
    ("gain", "stderr", "spread_", "frozen_", "expected"),
    [
        (0.0, 0.01, 1.0, 0.0, "enough"),
        (0.06, 0.01, 1.0, 0.5, "enough"),  # surely there, surely small
        (-0.06, 0.01, 1.0, 0.0, "enough"),
        (0.0, 0.01, 1.0, 0.51, "unclear"),  # where nothing moves nothing changes
        (0.0, 0.06, 1.0, 0.0, "unclear"),  # could be 12 % of the spread
        (0.09, 0.01, 1.0, 0.0, "not enough"),
        (0.5, 0.1, 1.0, 0.0, "not enough"),
        (0.5, 0.1, 1.0, 0.9, "not enough"),
        (-0.5, 0.1, 1.0, 0.0, "not enough"),
        (0.5, 0.3, 1.0, 0.0, "unclear"),
        (0.0, 0.0, 0.0, 0.0, "enough"),  # all trajectories are the same response
        (0.5, 0.1, math.nan, 0.0, "unclear"),  # one trajectory a question
        (0.5, math.nan, 1.0, 0.0, "unclear"),  # one question
        (0.0, math.nan, 1.0, 0.0, "unclear"),
    ],
)
def test_the_verdict(gain, stderr, spread_, frozen_, expected):
    assert judge(Estimate(gain, stderr, 40), spread_, frozen_) == expected


def autoregression(rho, start, *, num_questions=300, k=4, num_steps=10, seed=0):
    """Chains whose log p is AR(1) of standard deviation 1 about their question's level, begun `start` away from it."""
    rng = np.random.default_rng(seed)
    questions = []
    for level in rng.normal(-50, 10, num_questions):
        chains = []
        for _ in range(k):
            now, states = start + rng.normal(), []
            for _ in range(num_steps):
                now = rho * now + math.sqrt(1 - rho**2) * rng.normal()
                states.append(level + now)
            chains.append(chain(states))
        questions.append(chains)
    return run(*questions)


@pytest.mark.parametrize(
    ("rho", "start", "expected"),
    [
        (0.3, -3.0, "enough"),  # far away at first, there after a few steps
        (0.9, -3.0, "not enough"),
        (0.9, 3.0, "not enough"),
        (0.9, 0.0, "enough"),  # slow, but begun where it belongs
    ],
)
def test_the_verdict_on_chains_that_mix_and_that_do_not(rho, start, expected):
    chains = autoregression(rho, start)
    row = stage_row(chains, chains.last)
    assert row["verdict"] == expected
    truth = start * (rho**10 - rho**5)
    assert abs(row["second_half_gain"] - truth) < 4 * row["second_half_gain_stderr"]


# -- agreement ---------------------------------------------------------------------------------------------------------


def test_same_answer_counts_pairs_within_questions():
    # 1 of 3 pairs, 1 of 1, none of 1 (no answers agree with nothing), and a question without pairs.
    chains = run(
        [chain([0], answer_class=c) for c in (0, 0, 1)],
        [chain([0], answer_class=c) for c in (4, 4)],
        [chain([0], answer_class=c) for c in (-1, -1)],
        [chain([0])],
    )
    found = same_answer(chains)
    assert found.value == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert found.stderr == pytest.approx(np.std([1 / 3, 1, 0], ddof=1) / math.sqrt(3))
    assert math.isnan(same_answer(run([chain([0], answer_class=-1)] * 2)).value)
    assert math.isnan(same_answer(run([chain([0])], [chain([0])])).value)


def test_spread_is_pooled_within_questions():
    assert spread(np.array([0.0, 2.0, 10.0, 11.0, 12.0, 99.0]), np.array([0, 0, 1, 1, 1, 2])) == pytest.approx(
        math.sqrt((2 + 2) / 3)
    )
    assert math.isnan(spread(np.array([1.0, 2.0]), np.array([0, 1])))


def test_r_hat_is_worked_out_exactly():
    # n = 4: windows (1, 3) and (5, 7): W = 2, B = var(2, 6) = 8, w = 2.
    chains = run([chain([9, 9, 1, 3]), chain([9, 9, 5, 7])], [chain([0, 0, 0, 50])])
    assert r_hat(chains).value == pytest.approx(math.sqrt((0.5 * 2 + 8) / 2))
    # A second question of three chains counts twice: W = (2 + 0.5 + 0.5) / 3 = 1, B = var(2, 3.5, 3.5) = 0.75.
    more = run(
        [chain([9, 9, 1, 3]), chain([9, 9, 5, 7])],
        [chain([0, 0, 1, 3]), chain([0, 0, 3, 4]), chain([0, 0, 3, 4])],
    )
    assert r_hat(more).value == pytest.approx(math.sqrt((1 * (1 + 8) + 2 * (0.5 + 0.75)) / (2 + 2 * 1)))
    assert r_hat(more).num_questions == 2


def test_r_hat_compares_only_chains_that_ended_alike():
    assert math.isnan(r_hat(run([chain([1, 2, 3]), chain([1, 2, 3], [1, 2, 3])])).value)  # other horizons
    assert math.isnan(r_hat(run([chain([1, 2, 3]), chain([1, 2, 3, 4])])).value)  # other numbers of steps
    assert math.isnan(r_hat(run([chain([1, 2]), chain([3, 4])])).value)  # one step in the last half
    assert math.isnan(r_hat(run([chain([1, 1, 1]), chain([2, 2, 2])])).value)  # nothing moves


# -- the entry and its sentence ----------------------------------------------------------------------------------------


def test_the_entry_is_json_and_complete_for_the_smallest_run():
    for chains in (run([chain([1])]), run([chain([1, 2], answer_class=-1)]), autoregression(0.3, 0.0, num_questions=2)):
        entry = diagnose(chains)
        assert json.loads(json.dumps(entry, allow_nan=False)) == entry
        assert entry["num_chains"] == len(chains.question)
        assert mixing_finding({"store": "power", **entry})


def sentence(chains, **kwargs):
    return mixing_finding({"store": "power", **diagnose(chains)}, **kwargs)


def test_the_sentence_says_what_the_verdict_says():
    assert re.fullmatch(
        "10 Metropolis-Hastings steps a stage are enough here: the second half of the steps changed log p by "
        r"[+−]?0\.0\d\d ± 0\.0\d\d nats, \d % of the spread between trajectories\.",
        sentence(autoregression(0.3, -3.0)),
    )
    slow = sentence(autoregression(0.9, -3.0), several=True)
    assert slow.startswith(
        "10 Metropolis-Hastings steps a stage of power are not enough here: the second half of the steps still raised"
    )
    assert slow.endswith("% of the spread between trajectories; raise num_mh_steps.")
    assert "lowered log p by" in sentence(autoregression(0.9, 3.0))
    assert "is not clear: the second half" in sentence(autoregression(0.3, -3.0, num_questions=5))
    assert sentence(run([chain([1])])) == (
        "Whether 1 Metropolis-Hastings step a stage is enough cannot be seen from so few: take two or more."
    )
    still = [[chain([0, 0, 0], accepted=False), chain([1, 1, 1], accepted=i == 0)] for i in range(3)]
    assert sentence(run(*still)).endswith("but 83.3 % of the chains accepted none of their last stage's steps.")


def test_the_sentence_names_the_last_stage_where_stages_differ():
    final = [[chain([0, 1], [0, 1, 2, i]), chain([0, 1], [0, 1, 2, i + 1])] for i in range(5)]
    assert "4 Metropolis-Hastings steps in a chain's last stage " in sentence(run(*final))
    ragged = [[chain([0, 1]), chain([0, 1, 2, i])] for i in range(5)]
    assert "2 to 4 Metropolis-Hastings steps in a chain's last stage" in sentence(run(*ragged))


@pytest.mark.parametrize(
    ("value", "stderr", "expected"),
    [
        (0.0213, 0.0131, "0.021 ± 0.013"),
        (-1.34, None, "−1.3"),
        (0.000312, None, "0.00031"),
        (-0.001, 0.4, "0.00 ± 0.40"),
        (12.0, 0.0, "12 ± 0"),
        (0.0, None, "0.0"),
        (None, None, "–"),
    ],
)
def test_nats(value, stderr, expected):
    assert nats(value, stderr) == expected
