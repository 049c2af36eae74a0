"""Reading responses beside the sampling: at once, in threads, in processes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dps.benchmarks import reader_process, regrade, responses
from dps.benchmarks.grading import Answers, Grader, Item, read_all
from dps.benchmarks.mathematics import MathGrader
from dps.benchmarks.reader_process import ReaderProcess
from dps.decide import FixedK
from dps.errors import InputError, WorkersDied
from dps.run import pool
from dps.run import readers as readers_module
from dps.run.live import LiveQuestion, PreparedQuestion, QuestionPolicy
from dps.run.readers import GRADING_THREADS, Readers
from dps.run.scheduler import PolicyRun, run_policies
from dps.sampler.engine import Engine
from feature_store import Store
from tests.analysis.evaluations import write_store
from tests.factories import make_manifest, make_question
from tests.run.graders import Telling
from tests.run.test_scheduler import CONFIG, SlowGrading, model, questions  # noqa: F401

ITEM = Item("q", "How many cm?", "5")
TEXTS = ["5", r"\frac{10}{2}", "6", "5", r"\int xdx", "x+1", "1+x", "6", r"5\text{ cm}", r"\int xdx"]


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(reader_process, "PROCESSES_PAY_S", 0.0)


def asked(texts, *ks, question_id="q"):
    """Policies over one question whose trajectories have these texts."""
    item = Item(question_id, ITEM.question, ITEM.gold)
    question = LiveQuestion(0, PreparedQuestion(item, "p", (1,), None, 0.0))
    question.trajectories = {("power", index): SimpleNamespace(text=text) for index, text in enumerate(texts)}
    return [QuestionPolicy(question, PolicyRun(FixedK(k)), requested=k) for k in ks]


def drained(reading):
    done = []
    while reading.behind:
        done += reading.done(wait=True)
    return done


def noted(folder, what):
    path = folder / what
    return [line.rsplit(" ", 1) for line in path.read_text().splitlines()] if path.exists() else []


def answers_in(folder, what):
    return Counter(line.split(" ", 1)[1] for line, _ in noted(folder, what))


def processes_in(folder):
    return {int(line.split()[0]) for line, _ in noted(folder, "read")}


def gone(pid):
    for _ in range(100):
        try:
            if open(f"/proc/{pid}/stat").read().rsplit(") ", 1)[1][0] == "Z":  # noqa: SIM115
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_processes_read_what_this_one_reads_each_answer_once(tmp_path, at_once):
    few, some = asked(TEXTS, 4, 8)
    with Readers(Telling(str(tmp_path))) as reading:
        reading.submit([few, some])
        assert reading.behind == 1
        assert drained(reading) == [few, some]
        (more,) = asked(TEXTS, 10)
        more.question = few.question
        reading.submit([more])
        assert drained(reading) == [more]
    here = lambda *given: given[-1].add(*given[:-1])  # noqa: E731
    expected = read_all(MathGrader(), [(rf"\boxed{{{text}}}", "p") for text in TEXTS], ITEM, here)
    question = few.question
    assert [question.readings["power", index].correct for index in range(10)] == [each.correct for each, _ in expected]
    assert None in [each.correct for each, _ in expected]
    classes = {len(keys): numbers for keys, numbers in question.classes.items()}
    assert classes == {k: [number for _, number in expected[:k]] for k in (4, 8, 10)}
    assert len(noted(tmp_path, "read")) == 2 * 10  # the flexible and the strict way
    assert answers_in(tmp_path, "graded") == answers_in(tmp_path, "keyed") == Counter(set(TEXTS))  # also the undecided
    assert {torch for _, torch in noted(tmp_path, "read")} == {"False"}
    assert os.getpid() not in processes_in(tmp_path)
    assert all(map(gone, processes_in(tmp_path)))


def test_a_small_evaluation_starts_no_process_a_long_one_does(tmp_path, monkeypatch):
    with Readers(Telling(str(tmp_path))) as reading:
        reading.submit(asked(TEXTS, 10))
        drained(reading)
        assert processes_in(tmp_path) == {os.getpid()}
        monkeypatch.setattr(reader_process, "PROCESSES_PAY_S", 1e-6)
        reading.submit(asked(TEXTS, 10))
        drained(reading)
        assert len(processes_in(tmp_path)) == 2


@pytest.mark.parametrize(("cores", "workers", "most"), [(16, 1, 8), (16, 4, 3), (2, 1, 1), (4, 8, 1)])
def test_workers_share_the_cores_and_processes_start_as_they_are_needed(
    tmp_path, monkeypatch, at_once, cores, workers, most
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    with Readers(Telling(str(tmp_path)), workers=workers) as reading:
        for _ in range(3):  # one after the other: one process is enough
            reading.submit(asked(TEXTS, 10))
            drained(reading)
        assert len(processes_in(tmp_path)) == 1
        assert len(reading._desk._processes) == most


def test_a_reader_that_dies_is_started_again(tmp_path, at_once):
    (policy,) = asked(["5", "die once", "6"], 3)
    with Readers(Telling(str(tmp_path))) as reading:
        reading.submit([policy])
        drained(reading)
        os.kill(min(processes_in(tmp_path) - {int(noted(tmp_path, "died")[0][0].split()[0])}), signal.SIGKILL)
        reading.submit(asked(["7"], 1))
        drained(reading)
    assert [policy.question.readings[key].answer for key in policy.keys] == ["5", "die once", "6"]
    assert len(processes_in(tmp_path)) == 3


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("die", WorkersDied, r"Three processes died that read the responses to the question q;"),
        ("refuse", InputError, r"the grader cannot work here"),
        ("fail", RuntimeError, r"Unpicklable"),
    ],
)
def test_what_goes_wrong_in_a_process_stops_the_run_in_a_sentence(tmp_path, at_once, text, error, message):
    with Readers(Telling(str(tmp_path))) as reading:
        reading.submit(asked(["5", text], 2))
        with pytest.raises(error, match=message):
            drained(reading)
        reading.submit(asked(["5"], 1))  # the others can be read
        assert len(drained(reading)) == 1
    assert len(answers_in(tmp_path, "died")) == (text == "die")
    assert sum(answers_in(tmp_path, "died").values()) == 3 * (text == "die")


def test_a_worker_whose_readers_died_says_so_in_their_sentence():
    def work():
        raise WorkersDied("Three processes died.")

    with pytest.raises(WorkersDied, match=r"Three processes died."):
        pool.checked(pool._answer_of(work))


def test_nobody_waits_for_a_reader_at_the_end(tmp_path, at_once):
    started = time.monotonic()
    with Readers(Telling(str(tmp_path))) as reading:
        for _ in range(20):
            reading.submit(asked(["sleep"], 1))
        while not noted(tmp_path, "read"):
            time.sleep(0.01)
    assert time.monotonic() - started < 20
    assert all(map(gone, processes_in(tmp_path)))


def test_stored_responses_and_those_of_a_file_are_read_in_processes(tmp_path, at_once, monkeypatch):
    (tmp_path / "notes").mkdir()
    monkeypatch.setattr(regrade, "grader_of", lambda *_: Telling(str(tmp_path / "notes")))
    monkeypatch.setattr(responses, "grader_of_kind", lambda _: Telling(str(tmp_path / "notes")))
    question = make_question(0, k=2)
    texts = [replace(t, text=text) for t, text in zip(question.trajectories, TEXTS[:2], strict=True)]
    stored = write_store(tmp_path / "store", make_manifest(), [replace(question, gold="5", trajectories=tuple(texts))])
    regrade.regrade(stored, tmp_path / "new")
    [new] = Store.open(tmp_path / "new")
    assert [(t.answer, t.correct, t.answer_class) for t in new.trajectories] == [(t, True, 0) for t in TEXTS[:2]]
    lines = [{"id": n, "kind": "math", "response": text, "gold": "5"} for n, text in enumerate(TEXTS)]
    lines += [line | {"group": "g"} for line in lines[:3]]
    (tmp_path / "in").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    output = tmp_path / "out"
    responses.grade_file(tmp_path / "in", output, responses.check_responses(tmp_path / "in"))
    verdicts = [json.loads(line) for line in output.read_text().splitlines()]
    assert [verdict["answer"] for verdict in verdicts] == TEXTS + TEXTS[:3]
    assert [verdict["class"] for verdict in verdicts] == 10 * [None] + [0, 0, 1]
    assert os.getpid() not in processes_in(tmp_path / "notes")
    assert all(map(gone, processes_in(tmp_path / "notes")))


RUN = """
import sys
from types import SimpleNamespace
from dps.benchmarks import reader_process, regrade, responses
from dps.benchmarks.grading import Answers
from dps.run.readers import GRADING_THREADS, Readers
from tests.run.graders import Telling
class Question:
    source = SimpleNamespace(own=SimpleNamespace(grader=None))
    def read(self, groups, read): read([("sleep", "p")], None, Answers())
class Policy: question, keys = Question(), (("power", 0),)
reader_process.PROCESSES_PAY_S = 0.0
with Readers(Telling(sys.argv[1])) as reading:
    reading.submit([Policy()])
    while True: reading.done(wait=True)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_readers_end_with_the_run_whatever_they_do(tmp_path, sent):
    """No guard of ``__main__`` is needed in the script, and nothing is left of a killed run."""
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    run = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not noted(tmp_path, "read"):
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.01)
    os.killpg(run.pid, sent)  # as Ctrl-C does, to the whole group
    error = run.communicate(timeout=20)[1]
    assert run.returncode in (-sent, 130)
    assert error.count("Traceback") == (sent == signal.SIGINT), error
    assert all(map(gone, processes_in(tmp_path)))


def _read_as_a_daemon(pipe, folder):
    process, answers = ReaderProcess(), Answers()
    readings = process.read(Telling(folder), [("5", "p"), ("6", "p")], ITEM, answers)
    pipe.send([each.correct for each in readings])
    process.close()


def test_a_daemon_can_have_readers(tmp_path):
    """Worker processes of a run are daemons."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    worker = context.Process(target=_read_as_a_daemon, args=(theirs, str(tmp_path)), daemon=True)
    worker.start()
    assert mine.poll(60)
    assert mine.recv() == [True, False]
    worker.join()
    assert len(processes_in(tmp_path)) == 1
    assert all(map(gone, processes_in(tmp_path)))


@pytest.mark.parametrize(("rows", "k", "bound"), [(8, 2, 16), (32, 2, 32), (8, 8, 16)])
def test_where_grading_is_behind_no_question_is_admitted(model, rows, k, bound):  # noqa: F811
    """Two responses for each row may wait, or 16 questions; every complete question says how many do."""

    class Held(SlowGrading):
        def grade(self, answer, item):
            while not stalled:
                time.sleep(0.01)
            return super().grade(answer, item)

    drawn, stalled, looks = [], [], []
    engine = Engine(model, CONFIG, rows=rows, prompt_room=8)

    def source():
        for question in questions(60):
            drawn.append(question.question_id)
            yield [PolicyRun(FixedK(k), embeds=False)], question

    def stopping():
        looks.append((engine.idle, len(drawn)))
        if looks[-3:] == 3 * [(True, len(drawn))]:
            stalled.append(len(drawn))
        return False

    done = list(run_policies(model, engine, source(), grader=Held(), seed=1, stopping=stopping))
    assert bound <= stalled[0] <= bound + 2 * rows // k  # those whose chains had rows or waited for one
    assert len(done) == len(drawn) == 60
    assert max(each.behind for each in done) >= bound - GRADING_THREADS  # as many may end at a time
    assert done[-1].behind == 0


class Meeting(Grader):
    """Decides an answer only while another is being decided, as two programs that run side by side are."""

    background = "threads"
    together = threading.Barrier(2)

    def extract(self, text, item):
        return text

    def is_right(self, answer, item):
        self.together.wait(20)
        return answer == item.gold

    def key(self, answer, item):
        self.together.wait(20)
        return answer


def test_answers_that_wait_for_other_processes_are_decided_side_by_side(monkeypatch):
    monkeypatch.setattr(readers_module, "idle_cores", lambda workers: 2)
    with Readers(Meeting()) as reading:
        [policy] = asked(["5", "6", "5"], 3)
        reading.submit([policy])
        drained(reading)
    assert [policy.question.readings["power", index].correct for index in range(3)] == [True, False, True]
    assert policy.question.classes[policy.keys] == [0, 1, 0]


def test_a_run_that_is_broken_off_decides_no_answer_that_was_not_begun(monkeypatch):
    begun = []

    class Waiting(Meeting):
        def is_right(self, answer, item):
            begun.append(answer)
            time.sleep(0.2)
            return False

    monkeypatch.setattr(readers_module, "idle_cores", lambda workers: 2)
    reading = Readers(Waiting())
    reading.submit(asked([str(number) for number in range(60)], 60))
    while not begun:
        time.sleep(0.01)
    reading.__exit__(KeyboardInterrupt, None, None)
    assert len(begun) <= 4
