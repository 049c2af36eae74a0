"""The queue that workers pull from: every question is handed out once, and again only if its worker died."""

import random
from collections import Counter

import pytest

from dps.run.ledger import Ledger, Take


def of(names, store=0):
    """What a group of one store lacks."""
    return dict.fromkeys(names, (store,))


def taken(names, group=0, store=None):
    return Take(group, tuple((name, (group if store is None else store,)) for name in names))


def test_one_worker_takes_everything_in_order():
    ledger = Ledger([of("ab"), of("a", 1)], 1)
    assert ledger.take(0, None, 5) == taken("ab")
    assert (ledger.take(0, 0, 5), ledger.finished) == (taken("a", 1), False)
    assert (ledger.take(0, 1, 5), ledger.finished) == (Take(1, ()), False)
    for store, name in ((0, "a"), (0, "b"), (1, "a")):
        assert ledger.done(store, name)
    assert ledger.take(0, None, 5).finished


def test_the_first_worker_does_not_take_what_the_others_will_need():
    ledger = Ledger([of([f"q{i}" for i in range(40)])], 2)
    names = []
    while more := ledger.take(0, 0, 8).questions:
        names += [name for name, _ in more]
    assert len(names) == 20
    for name in names[:10]:
        ledger.done(0, name)
    assert len(ledger.take(0, 0, 8).questions) == 5  # 30 are unfinished, it has 10


def test_a_worker_whose_questions_wait_to_be_committed_is_not_taken_for_busy():
    ledger = Ledger([of([f"q{i}" for i in range(20)])], 2)
    assert len(ledger.take(0, 0, 8).questions) == 8
    assert len(ledger.take(1, 0, 4).questions) == 4
    # 8 wait, 12 are held: without the 8 complete ones its even share is 6, with them it would have 2 more to start.
    assert len(ledger.take(0, 0, 8, complete={0: 8}).questions) == 6
    for name in [f"q{i}" for i in range(8)]:
        ledger.done(0, name)
    # Those are committed now: it works at 6, the other at 4, and 2 wait.
    assert ledger.take(0, 0, 8).questions == ()
    assert len(ledger.take(1, 0, 8).questions) == 2


def test_a_worker_that_has_its_share_of_a_group_goes_on_with_the_next():
    ledger = Ledger([of("ab"), of("ab", 1)], 2)
    assert ledger.take(0, None, 5) == taken("a")
    assert ledger.take(0, 0, 5) == taken("a", 1)
    assert ledger.take(1, None, 5, {0: 0}) == taken("b")
    assert ledger.take(0, 0, 5) == Take(0, ())  # all that is left is the other's share
    assert ledger.take(1, 0, 5) == taken("b", 1)


def test_a_question_of_several_stores_is_held_until_all_have_it_and_comes_back_for_those_that_miss_it():
    ledger = Ledger([{"a": (0, 2), "b": (0, 1, 2)}], 2)
    assert ledger.take(0, None, 1) == Take(0, (("a", (0, 2)),))
    assert ledger.take(1, None, 1) == Take(0, (("b", (0, 1, 2)),))
    assert [ledger.done(store, "a") for store in (0, 1, 2, 2)] == [True, False, True, False]
    assert ledger.held_by(0) == []
    assert ledger.done(1, "b")
    assert ledger.held_by(1) == [(0, "b"), (2, "b")]
    assert ledger.lost(1) == ["b"]
    assert ledger.take(0, None, 1) == Take(0, (("b", (0, 2)),))
    assert (ledger.done(0, "b"), ledger.finished, ledger.done(2, "b"), ledger.finished) == (True, False, True, True)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_every_question_is_done_once_for_every_store(seed):
    rng = random.Random(seed)
    groups = []
    for stores in ((0, 1, 2), (3,), (4, 5)):
        names = [f"q{i}" for i in range(rng.randrange(0, 30))]
        groups.append({name: tuple(sorted(rng.sample(stores, rng.randrange(1, len(stores) + 1)))) for name in names})
    ledger = Ledger(groups, 4)
    alive, hands, reported = {0, 1, 2, 3}, {w: [] for w in range(4)}, []
    for _ in range(10_000):
        if ledger.finished:
            break
        worker = rng.choice(sorted(alive))
        if rng.random() < 0.01 and len(alive) > 1:
            alive.remove(worker)
            assert sorted(ledger.held_by(worker)) == sorted(hands[worker])
            assert sorted(set(ledger.lost(worker))) == sorted({name for _, name in hands[worker]})
            continue
        if hands[worker] and rng.random() < 0.6:
            store, name = hands[worker].pop(rng.randrange(len(hands[worker])))
            assert ledger.done(store, name)
            assert not ledger.done(store, name)
            reported.append((store, name))
        else:
            complete = Counter(rng.randrange(3) for _ in hands[worker] if rng.random() < 0.2)
            given = ledger.take(worker, rng.choice([None, 0, 1, 2]), rng.randrange(1, 6), complete)
            hands[worker] += [(store, name) for name, stores in given.questions for store in stores]
    assert ledger.finished
    assert sorted(reported) == sorted((s, name) for group in groups for name, stores in group.items() for s in stores)


def test_what_a_dead_worker_had_comes_first_and_a_deadly_question_is_named():
    ledger = Ledger([of("abcd")], 4)
    for worker in range(3):
        assert ledger.deadly() is None
        assert ledger.take(worker, 0, 1) == taken("a")
        assert ledger.lost(worker) == ["a"]
    assert ledger.deadly() == "a"
