"""The queue that workers pull from: every question is handed out once, and again only if its worker died."""

import random
from collections import Counter

import pytest

from dps.run.ledger import Ledger, Take
from dps.run.pool import device_of, sharers


def test_one_worker_takes_everything_in_order():
    ledger = Ledger([["a", "b"], ["a"]], 1)
    assert ledger.take(0, None, 5).question_ids == ("a", "b")
    assert (ledger.take(0, 0, 5), ledger.finished) == (Take(1, ("a",)), False)
    assert (ledger.take(0, 1, 5), ledger.finished) == (Take(1, ()), False)
    for task, name in ((0, "a"), (0, "b"), (1, "a")):
        assert ledger.done(task, name)
    assert ledger.take(0, None, 5).finished


def test_the_first_worker_does_not_take_what_the_others_will_need():
    ledger = Ledger([[f"q{i}" for i in range(40)]], 2)
    taken = []
    while more := ledger.take(0, 0, 8).question_ids:
        taken += more
    assert len(taken) == 20
    for name in taken[:10]:
        ledger.done(0, name)
    assert len(ledger.take(0, 0, 8).question_ids) == 5  # 30 are unfinished, it has 10


def test_a_worker_whose_questions_wait_to_be_committed_is_not_taken_for_busy():
    ledger = Ledger([[f"q{i}" for i in range(20)]], 2)
    assert len(ledger.take(0, 0, 8).question_ids) == 8
    assert len(ledger.take(1, 0, 4).question_ids) == 4
    # 8 wait, 12 are held: without the 8 complete ones its even share is 6, with them it would have 2 more to start.
    assert len(ledger.take(0, 0, 8, complete={0: 8}).question_ids) == 6
    for name in [f"q{i}" for i in range(8)]:
        ledger.done(0, name)
    # Those are committed now: it works at 6, the other at 4, and 2 wait.
    assert ledger.take(0, 0, 8).question_ids == ()
    assert len(ledger.take(1, 0, 8).question_ids) == 2


def test_a_worker_that_has_its_share_of_a_task_goes_on_with_the_next():
    ledger = Ledger([["a", "b"], ["a", "b"]], 2)
    assert ledger.take(0, None, 5) == Take(0, ("a",))
    assert ledger.take(0, 0, 5) == Take(1, ("a",))
    assert ledger.take(1, None, 5, {0: 0}) == Take(0, ("b",))
    assert ledger.take(0, 0, 5) == Take(0, ())  # all that is left is the other's share
    assert ledger.take(1, 0, 5) == Take(1, ("b",))


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_every_question_is_done_once(seed):
    rng = random.Random(seed)
    tasks = [[f"t{t}q{i}" for i in range(rng.randrange(0, 30))] for t in range(3)]
    ledger = Ledger(tasks, 4)
    alive, hands, reported = {0, 1, 2, 3}, {w: [] for w in range(4)}, []
    for _ in range(10_000):
        if ledger.finished:
            break
        worker = rng.choice(sorted(alive))
        if rng.random() < 0.01 and len(alive) > 1:
            alive.remove(worker)
            assert sorted(ledger.lost(worker)) == sorted(hands[worker])
            continue
        if hands[worker] and rng.random() < 0.6:
            task, name = hands[worker].pop(rng.randrange(len(hands[worker])))
            assert ledger.done(task, name)
            assert not ledger.done(task, name)
            reported.append((task, name))
        else:
            complete = Counter(task for task, _ in hands[worker] if rng.random() < 0.5)
            given = ledger.take(worker, rng.choice([None, 0, 1, 2]), rng.randrange(1, 6), complete)
            hands[worker] += [(given.task, name) for name in given.question_ids]
    assert ledger.finished
    assert sorted(reported) == sorted((t, name) for t, task in enumerate(tasks) for name in task)


def test_what_a_dead_worker_had_comes_first_and_a_deadly_question_is_named():
    ledger = Ledger([["a", "b", "c", "d"]], 4)
    assert ledger.take(0, 0, 1).question_ids == ("a",)
    assert ledger.lost(0) == [(0, "a")]
    assert ledger.take(1, 0, 1).question_ids == ("a",)
    ledger.lost(1)
    assert ledger.deadly() is None
    assert ledger.take(2, 0, 1).question_ids == ("a",)
    ledger.lost(2)
    assert ledger.deadly() == "a"


@pytest.mark.parametrize(
    ("workers", "devices", "expected"),
    [(3, 0, ["auto"] * 3), (2, 2, ["cuda:0", "cuda:1"]), (5, 2, ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"])],
)
def test_workers_take_the_gpus_in_turn(workers, devices, expected):
    assert [device_of(i, devices, "auto") for i in range(workers)] == expected
    assert [device_of(i, devices, "cpu") for i in range(workers)] == ["cpu"] * workers
    counts = [expected.count(device) for device in expected]
    assert [sharers(i, workers, devices) for i in range(workers)] == (counts if devices else [workers] * workers)
