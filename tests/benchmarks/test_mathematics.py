import json
import os
import subprocess
import sys
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dps.benchmarks import BenchmarkConfig, Item, load_benchmark
from dps.benchmarks.grading import read
from dps.benchmarks.mathematics import MathGrader, equal, extract_math, library, normalize
from dps.benchmarks.mathematics.forms import read_answer
from dps.benchmarks.mathematics.spelling import LONGEST_ANSWER
from dps.benchmarks.workers import WorkerFailed, WorkerPool
from tests.benchmarks.data import slice_path
from tests.benchmarks.hostile_answers import HOSTILE, RESPONSES
from tests.benchmarks.math_pairs import PAIRS

VERDICTS = {True: "right", False: "wrong", None: "ungradable"}
KNOWN: set[tuple[str, str]] = set()
"""Pairs on which the grader is wrong; what is listed here is counted."""


@pytest.fixture
def quick_pool(monkeypatch):
    """Workers with a limit of a second, so that what cannot be finished does not hold up the tests."""
    pool = WorkerPool(Path(library.__file__).with_name("worker.py"), limit_s=1.0)
    monkeypatch.setattr(library, "_POOL", pool)
    monkeypatch.setattr(library, "_known", OrderedDict())
    monkeypatch.setattr(library, "_budgets", OrderedDict())
    yield pool
    pool.close()


def test_hand_checked_pairs(quick_pool):
    assert len(PAIRS) == len(set(PAIRS)) >= 120
    assert {verdict for *_, verdict in PAIRS} == set(VERDICTS.values())
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda pair: VERDICTS[equal(pair[0], normalize(pair[1]) or "?")], PAIRS))
    differ = {(gold, answer) for (gold, answer, verdict), got in zip(PAIRS, found, strict=True) if got != verdict}
    assert differ == KNOWN
    assert len(differ) < 0.02 * len(PAIRS)


def test_hostile_answers_end_in_a_verdict_and_do_nothing(quick_pool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sentinel = tmp_path / "SENTINEL"
    grader, item = MathGrader(), Item("q", "?", "12")
    assert len(HOSTILE) >= 25
    started = time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        # Each is an answer to a question of its own, since a question has a budget for all its answers.
        found = threads.map(
            lambda name: grader.grade(normalize(HOSTILE[name]) or "?", Item(name, "?", "12")), list(HOSTILE)
        )
        verdicts = dict(zip(HOSTILE, found, strict=True))
    assert True not in verdicts.values()
    assert verdicts["tower of powers"] is None
    assert verdicts["python"] is False
    assert not sentinel.exists()
    assert not Path("/SENTINEL").exists()
    assert time.monotonic() - started < 4 * len(HOSTILE)  # a second for each, and a new worker's start
    assert grader.grade("12", item) is True  # and the next answer finds a worker
    assert equal("p-q", "-q+p") is True


@pytest.mark.parametrize("name", RESPONSES)
def test_hostile_responses_are_read_in_time(name, quick_pool):
    grader, item = MathGrader(), Item("q", "?", "12")
    started = time.monotonic()
    reading = read(grader, RESPONSES[name], item)
    assert time.monotonic() - started < 10
    assert reading.correct is not True
    assert reading.answer is None or len(reading.answer) <= LONGEST_ANSWER


FORMS = (
    "so the answer is $\\boxed{%s}$.",
    "Adding up, we get 7 and then\n\\[\\boxed{%s}\\]",
    "%s",
    "We find that the final answer is $%s$.",
    "Therefore.\n#### %s",
)


@pytest.mark.parametrize("form", FORMS)
def test_real_gold_answers_are_right_against_themselves(form):
    path = slice_path("math500_first300.json")
    golds = [record["answer"] for record in json.loads(path.read_text())]
    lines = slice_path("gsm8k_test_first700.jsonl").read_text().splitlines()
    golds += [json.loads(line)["answer"].rpartition("####")[2].strip() for line in lines]
    wrong = [gold for gold in golds if equal(gold, extract_math(form % gold) or "") is not True]
    assert len(golds) == 1000
    assert wrong == []


def test_real_gold_answers_of_the_training_questions_are_readable():
    golds = sorted({json.loads(line)["answer"] for line in slice_path("math_train.jsonl").read_text().splitlines()})
    assert len(golds) == 2904
    wrong = [gold for gold in golds if equal(gold, extract_math(rf"Thus $\boxed{{{gold}}}$.") or "") is not True]
    assert wrong == []
    assert [gold for gold in golds if read_answer(gold).form.kind == "opaque"] == []


def test_real_math500_questions():
    benchmark = load_benchmark(BenchmarkConfig(name="math500", path=str(slice_path("math500_first300.json")), limit=3))
    first = benchmark.items[0]
    assert first.question_id == "math500-test-precalculus-807"
    assert first.metadata == {"subject": "precalculus"}
    assert read(benchmark.grader, r"Thus \boxed{(3, \pi/2)}", first).correct is True


@pytest.mark.parametrize(
    ("text", "answer", "strict"),
    [
        (r"First \boxed{3}. No: \boxed{4}.", "4", "4"),
        (r"It is \boxed{\frac{1}{2}} cm, I think.", r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"\boxed 7 is it", "7", None),
        ("The answer is $x = 3$.", "x=3", None),
        ("So the total is 12 apples.", "12", None),
        ("#### 1,234", "1,234", None),  # the gold answer decides whether these are thousands
        (r"Hence \(a + b\) it is", "a+b", None),
        ("I do not know.", None, None),
        ("", None, None),
        (r"It is \boxed{5}." + "\n\nProblem: another \\boxed{6}", "5", "5"),
        (r"\boxed{" + "1" * 1001 + "}", None, None),
    ],
)
def test_extraction(text, answer, strict):
    item = Item("q", "?", "12")
    assert MathGrader().extract(text, item) == answer
    assert MathGrader().extract_strict(text, item) == strict


def test_classes_follow_meaning_and_ignore_the_gold(quick_pool):
    answers = [r"\frac{1}{2}", None, "x+1", "0.5", "1+x", "7", r"\frac{2}{4}"]
    assert MathGrader().classes(answers, Item("q", "?", None)) == [0, -1, 1, 0, 1, 2, 0]


def test_a_worker_that_overruns_is_replaced(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys, time, os\n"
        "from dps.benchmarks.workers import serve\n"
        "def do(payload):\n"
        "    print('noise')\n"
        "    if payload['do'] == 'hang': time.sleep(60)\n"
        "    if payload['do'] == 'die': os._exit(3)\n"
        "    if payload['do'] == 'eat': return len(bytearray(1 << 33))\n"
        "    return [payload['do'], os.getpid(), sorted(os.environ)]\n"
        "if __name__ == '__main__': serve(do, sys.argv[1:])\n"
    )
    os.environ["DPS_SECRET"] = "1"
    pool = WorkerPool(script, workers=1, limit_s=0.5)
    try:
        _, first, environment = pool.call({"do": "a"})
        assert "DPS_SECRET" not in environment
        assert "HOME" not in environment
        assert pool.call({"do": "b"})[1] == first
        started = time.monotonic()
        with pytest.raises(WorkerFailed, match=r"no reply within 0.5 s"):
            pool.call({"do": "hang"})
        assert time.monotonic() - started < 3
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)
        with pytest.raises(WorkerFailed):
            pool.call({"do": "die"})
        with pytest.raises(WorkerFailed, match="out of memory"):
            pool.call({"do": "eat"})
        assert pool.call({"do": "c"})[0] == "c"
    finally:
        del os.environ["DPS_SECRET"]
        pool.close()


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys, time, os\n"
        "from dps.benchmarks.workers import serve\n"
        "def do(payload):\n"
        "    if payload['hang']: open(payload['file'], 'w').write(str(os.getpid())); time.sleep(60)\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__': serve(do, sys.argv[1:])\n"
    )
    parent = (
        "import sys; from pathlib import Path; from dps.benchmarks.workers import WorkerPool\n"
        f"pool = WorkerPool(Path({str(script)!r}), workers=1, limit_s=1.0)\n"
        f"pool.call(dict(hang=True, file={str(tmp_path / 'pid')!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.DEVNULL)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)
    process.kill()
    process.wait()
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 10
    while time.monotonic() < end and Path(f"/proc/{pid}/stat").exists():
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}/stat").exists()
