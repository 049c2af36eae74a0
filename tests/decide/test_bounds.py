"""The bounds, against all rules that there are on toys with every order of the trajectories."""

from collections import Counter
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dps.decide import RULES
from dps.decide.bounds import TOLERANCE, VoteTable, best_on_votes, corners, held_out_on_votes, perfect, vote_states
from dps.decide.orders import at_stop, walk
from dps.decide.samples import samples_from
from dps.decide.thresholds import stops, sweep

VOTE_RULES = ("adaptive-consistency", "esc", "sprt", "certificate", "lead", "lead-1", "lead-2", "lead-3")


def toy(seed, ks=(1, 2, 3, 4), questions=5, most=4, arms=None):
    """Questions with `most` responses in every order there is: the walk, its vote states, and rows of it.

    With `arms` of the responses, the orders are those in which each arm keeps its places.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for q in range(questions):
        classes = rng.integers(-1, 3, most)
        gold = rng.integers(0, 3)
        columns = np.zeros((14, most))
        columns[0], columns[1], columns[2] = classes, rng.normal(-20, 5, most), rng.integers(5, 20, most)
        columns[8], columns[10] = rng.integers(10, 60, most), classes == gold
        rows.append(((f"q{q}", f"text {q}", None, True, 5, 0.0), columns))
    arms = arms or ["power"] * most
    samples = samples_from(rows, arms)
    every = [order for order in permutations(range(most)) if [arms[i] for i in order] == arms]
    orders = np.broadcast_to(every, (questions, len(every), most))
    walked = walk(samples, orders, ks, "majority", 0)
    flat = (walked.correct.reshape(-1, len(ks)), walked.tokens.reshape(-1, len(ks)))
    return walked, vote_states(walked.seen), *flat


def worth(stop, correct, tokens, rate):
    return (100_000 * at_stop(correct, stop) - rate * at_stop(tokens, stop)).mean()


def test_the_state_is_how_many_votes_the_classes_have():
    walked, states, _, _ = toy(1)
    for seen, (fine, coarser) in zip(walked.seen, states, strict=True):
        coarse = coarser[fine]
        history = np.stack(seen.history, axis=1).tolist()
        votes = [tuple(sorted((row.count(label) for label in range(3)), reverse=True)) for row in history]
        assert len(set(zip(votes, fine.tolist(), strict=True))) == len(set(votes)) == len(set(fine.tolist()))
        two = [one[:2] for one in votes]
        assert len(set(zip(two, coarse.tolist(), strict=True))) == len(set(two)) == len(set(coarse.tolist()))


@pytest.mark.parametrize("ks", [(1, 2, 3), (2, 4), (1, 2, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_rule_on_votes_is_the_best_of_all_rules_on_states(ks, seed):
    _, states, correct, tokens = toy(seed, ks)
    numbers = [int(fine.max()) + 1 for fine, _ in states]
    every = []
    for decided in product([False, True], repeat=sum(numbers)):  # every set of states to stop in
        tables = np.split(np.array(decided), np.cumsum(numbers)[:-1])
        enough = np.stack([table[fine] for table, (fine, _) in zip(tables, states, strict=True)], axis=1)
        every.append(np.where(enough.any(axis=1), enough.argmax(axis=1), len(states)))
    for rate in (0.0, 40.0, 200.0, 1000.0, 5000.0):
        best = max(worth(stop, correct, tokens, rate) for stop in every)
        assert worth(best_on_votes(states, correct, tokens, rate), correct, tokens, rate) == pytest.approx(best)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 2, 3, 4), (2, 4), (1, 3, 4)]))
def test_no_rule_on_votes_is_worth_more_and_perfect_knowledge_bounds_all(seed, ks):
    walked, states, correct, tokens = toy(seed, ks)
    rules = [replace(RULES[name], **({"margin": 4} if name == "lead" else {})) for name in VOTE_RULES]
    reached = []
    for rule in rules:
        p_inc = 1 - walked.p_enough(rule)
        for threshold in sweep(p_inc, walked.correct, walked.tokens)[0]:
            reached.append(stops(p_inc, threshold).reshape(-1))
    fronts = [
        corners(lambda rate: best_on_votes(states, correct, tokens, rate), correct, tokens),
        corners(lambda rate: perfect(correct, tokens, rate), correct, tokens),
    ]
    for front in fronts:  # nothing lies above the lines between the corners, either
        assert list(front)[-1] == 0
        spent, right = (np.array([at_stop(of, stop).mean() for stop in front.values()]) for of in (tokens, correct))
        for stop in reached:
            line = np.interp(at_stop(tokens, stop).mean(), spent, right)
            assert at_stop(correct, stop).mean() <= line + TOLERANCE / 100 + 1e-9
    for rate in {rate for front in fronts for rate in front}:
        bound = worth(best_on_votes(states, correct, tokens, rate), correct, tokens, rate)
        assert bound >= max(worth(stop, correct, tokens, rate) for stop in reached) - 1e-6
        known = perfect(correct, tokens, rate)
        assert worth(known, correct, tokens, rate) >= bound - 1e-6
        each = 100_000 * correct - rate * tokens
        assert (at_stop(each, known) == each.max(axis=1)).all()


def test_perfect_knowledge_stops_at_the_first_right_answer_and_gives_up_at_once():
    correct = np.array([[False, True, True], [True, False, True], [False, False, False], [False, False, True]])
    tokens = np.array([[10, 20, 30]] * 4)
    assert perfect(correct, tokens, 0.0).tolist() == [1, 0, 0, 2]
    assert perfect(correct, tokens, 100_000 / 15).tolist() == [1, 0, 0, 0]  # 20 tokens more are not worth an answer


def test_held_out_a_question_decides_nothing_for_itself_and_an_unknown_state_falls_back():
    _, states, correct, tokens = toy(3, questions=10)
    folds = np.repeat(np.arange(10) % 5, 24)
    mine = folds == 2
    told = held_out_on_votes(states, correct, tokens, 100.0, folds)
    other = np.where(mine[:, None], ~correct, correct)
    assert held_out_on_votes(states, other, tokens, 100.0, folds)[mine].tolist() == told[mine].tolist()
    assert held_out_on_votes(states, other, tokens, 100.0, folds).tolist() != told.tolist()
    # Rows 0 to 3 are learnt. Row 4 goes on as its coarser state does; row 5 has none and stops.
    states = [(np.array([0, 0, 1, 1, 2, 3]), np.array([0, 1, 0, 2]))]
    right = np.array([[0, 1], [0, 1], [0, 0], [1, 0], [0, 0], [0, 1]], bool)
    spent, folds = np.tile([10, 20], (6, 1)), np.array([0, 0, 0, 0, 1, 1])
    assert held_out_on_votes(states, right, spent, 1.0, folds)[4:].tolist() == [1, 0]
    assert best_on_votes(states, right, spent, 1.0).tolist() == [1, 1, 0, 0, 0, 1]


def histories(walked):
    """At each checkpoint the number of each row's whole history but for how classes are numbered, as states."""
    states = []
    for seen in walked.seen:
        rows = np.stack(seen.history, axis=1).tolist()
        first = [{label: i for i, label in enumerate(dict.fromkeys(v for v in row if v >= 0))} for row in rows]
        named = [str([names.get(v, -1) for v in row]) for names, row in zip(first, rows, strict=True)]
        states.append((np.unique(named, return_inverse=True)[1].reshape(-1),) * 2)
    return [(fine, np.arange(fine.max() + 1)) for fine, _ in states]


@pytest.mark.parametrize("arms", ["aabb", "abab", "aaba", "abca"])
@pytest.mark.parametrize("seed", range(4))
def test_votes_by_arm_are_all_that_counts_on_a_ladder_of_several_arms(arms, seed):
    """The state is the multiset of the classes' votes by arm, and no rule on whole histories is worth more."""
    walked, states, correct, tokens = toy(seed, (1, 2, 3, 4), questions=8, arms=list(arms))
    for seen, (fine, _) in zip(walked.seen, states, strict=True):
        rows = [list(zip(row, arms, strict=False)) for row in np.stack(seen.history, axis=1).tolist()]
        votes = [
            str(sorted(sorted(Counter(arm for label, arm in row if label == of).items()) for of in range(3)))
            for row in rows
        ]
        assert len(set(zip(votes, fine.tolist(), strict=True))) == len(set(votes)) == len(set(fine.tolist()))
    for rate in (0.0, 40.0, 200.0, 1000.0, 5000.0):
        best = worth(best_on_votes(histories(walked), correct, tokens, rate), correct, tokens, rate)
        assert worth(best_on_votes(states, correct, tokens, rate), correct, tokens, rate) == pytest.approx(best)


def test_a_table_of_votes_says_what_going_on_gains_and_how_the_best_rule_stops():
    """By a recursion over the states of all orders, in points; also where an arm's votes are unlike another's."""
    walked, states, correct, tokens = toy(5, (1, 2, 3, 4), questions=30, arms=list("abab"))
    votes = np.stack([seen.votes for seen in walked.seen], axis=1)
    for rate in (0.0, 30.0, 400.0):
        table, stop = VoteTable.fit(votes, correct, tokens, rate), best_on_votes(states, correct, tokens, rate)
        gains = table.gain(votes)
        assert np.where((gains <= 0).any(axis=1), (gains <= 0).argmax(axis=1), 3).tolist() == stop.tolist()
        value, later = 100.0 * correct - rate * tokens / 1000, None
        for c in (2, 1, 0):
            later = value[:, c + 1] if later is None else np.where(gains[:, c + 1] > 0, later, value[:, c + 1])
            for state in np.unique(states[c][0]):
                rows = states[c][0] == state
                assert gains[rows, c] == pytest.approx((later - value[:, c])[rows].mean())
    half = VoteTable.fit(votes[::2], correct[::2], tokens[::2], 30.0)
    assert half.gain(votes[::2]).shape == (len(votes[::2]), 3)
    other, nothing = votes[:5].copy(), np.full((2, 3, 2), -1)
    other[..., 0] += 1  # states that nobody met: as the coarser ones, and 0 without these
    place = np.searchsorted(table.coarse_states, other[..., 1])
    assert table.gain(other).tolist() == table.coarse_gains[place].tolist()
    assert not table.gain(nothing).any()
    assert len(table.states) == sum(len(coarse) for _, coarse in states)
