"""How often a worker commits, by a clock that the test moves."""

from concurrent.futures import Future
from itertools import pairwise
from types import SimpleNamespace

import pytest

from dps.run import committer
from dps.run.committer import Committer, num_commits
from tests.factories import make_question


class _Now:
    """A thread that has done its work when it is asked for it."""

    def __init__(self, threads):
        pass

    def submit(self, work, *arguments):
        done = Future()
        done.set_result(work(*arguments))
        return done

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def commits(monkeypatch, hours, least_s):
    """The seconds at which a worker commits that completes a question every second, and the longest that one waited."""
    clock, times, waits = SimpleNamespace(now=1000.0), [], []
    store = SimpleNamespace(commit=lambda questions, writer: times.append(clock.now - 1000.0))
    monkeypatch.setattr(committer, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(committer, "ThreadPoolExecutor", _Now)
    monkeypatch.setattr(committer.StoreWriter, "attach", lambda folder: store)
    question = make_question(0, k=1)
    with Committer(["store"], "w0", least_s, lambda done: waits.append(done.age_s - question.latency_s)) as worker:
        for _ in range(3600 * hours):
            worker.add(0, question, 0)
            clock.now += 1.0
            worker.look()
    assert len(waits) == 3600 * hours  # every question was reported
    return times, max(waits)


def test_a_long_run_commits_less_and_less_often(monkeypatch):
    times, waited = commits(monkeypatch, 12, 5.0)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(gap <= max(5.0, min(60.0, 0.01 * at)) + 1 for gap, at in zip(gaps, times[1:], strict=True))
    assert times[:20] == [5.0 * n for n in range(1, 21)]  # a short run commits as often as it is told to
    assert gaps[-2] == 60.0
    assert waited <= 61.0
    # 100 in the first 500 s; their gap grows by 1 % each until 6,000 s, about ln(12) / ln(1.01) of them; 620 after it.
    assert len(times) == pytest.approx(100 + 250 + 620, rel=0.02)
    assert num_commits(5.0, 12 * 3600, 10**6) == pytest.approx(len(times), rel=0.02)  # as a plan counts them


def test_who_asks_for_fewer_commits_gets_them(monkeypatch):
    times, waited = commits(monkeypatch, 1, 300.0)
    assert times[:-1] == [300.0 * n for n in range(1, 12)]
    assert waited == 300.0


def test_without_an_interval_every_question_is_written_at_once(monkeypatch):
    times, _ = commits(monkeypatch, 1, 0.0)
    assert times == [float(second) for second in range(3600)]
