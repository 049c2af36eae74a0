# ruff: noqa: E501
"""How long grading takes, and how much it holds up the sampling: `pytest -s tests/benchmarks/test_grading_speed.py`."""

import itertools
import json
import random
import re
import statistics
import threading
import time

import pytest

from dps.benchmarks.grading import Answers, Item, read_all
from dps.benchmarks.mathematics import MathGrader
from dps.benchmarks.reader_process import ReaderProcess
from tests.benchmarks.data import slice_path

FORMS = ("%s", "%s", "2(%s)", r"\frac{%s}{2}", "-%s", r"%s-\sqrt{2}", "(%s)^2", "1+%s", r"%s\pi", "x=%s", r"%s\text{ cm}", r"%s\%%")  # fmt: skip
ENDS = (r"Thus $\boxed{%s}$.", "we get\n\\[\\boxed{%s}\\]", "The final answer is $%s$.", "#### %s", "so it is $%s$.")


@pytest.fixture(scope="module")
def responses():
    """40 questions whose answers are no integers, with 32 responses each: other numbers, other forms, other answers."""
    rng = random.Random(0)
    records = json.loads(slice_path("math500_first300.json").read_text())
    written = [each for each in records if not re.fullmatch(r"-?\d+", each["answer"]) and len(each["answer"]) < 60]

    def another(number):
        return str(int(number[0]) + rng.choice((0, 0, 1, 3)))

    def answer_of(gold):
        answer = rng.choice([gold, gold, gold, rng.choice(written)["answer"]])
        return rng.choice(FORMS) % re.sub(r"(?<![\^_\d])\d{1,5}(?!\d)", another, answer)

    def response_of(gold):
        steps = [
            f"Step {n}: now $x_{n} = {answer_of(gold)}$, so by the formula above the next one is" for n in range(12)
        ]
        return "\n".join([*steps, rng.choice(ENDS) % answer_of(gold)])

    return [
        (Item(each["id"], each["prompt"], each["answer"]), [response_of(each["answer"]) for _ in range(32)])
        for each in rng.sample(written, 40)
    ]


def read_here(grader, responses, item, answers):
    return answers.add(grader, responses, item)


def by_processes(responses, count):
    """Read by so many processes, started before; return wall seconds, and grades and classes of each question."""
    results, waiting = {}, list(enumerate(responses))

    def read(process):
        while waiting:
            number, (item, texts) = waiting.pop(0)
            results[number] = read_all(MathGrader(), [(text, "") for text in texts], item, process.read)

    processes = [ReaderProcess() for _ in range(count)]
    for process in processes:
        process.read(MathGrader(), [], responses[0][0], Answers())
    threads = [threading.Thread(target=read, args=(process,)) for process in processes]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    for process in processes:
        process.close()
    return seconds, [results[number] for number in range(len(responses))]


def test_forty_questions_of_32_responses_are_graded_in_three_seconds(responses):
    wall, cpu = time.perf_counter(), time.process_time()
    here = [read_all(MathGrader(), [(text, "") for text in texts], item, read_here) for item, texts in responses]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    different = sum(len({reading.answer for reading, _ in each}) for each in here)
    right = sum(reading.correct is True for each in here for reading, _ in each)
    print(f"\n{different} different answers of 1,280, {right} right; here: {wall:.2f} s, processor {cpu:.2f} s")
    assert different > 800
    assert 40 < right < 640
    for count in (1, 2):
        seconds, read = by_processes(responses, count)
        print(f"{count} processes: {seconds:.2f} s")
        assert read == here
    assert cpu < 3


def test_reading_in_a_process_does_not_hold_up_a_sampling_thread(responses):
    """A thread that works little and often, as one that launches kernels and looks, beside a thread that reads."""

    def steps(seconds=0.4):
        end, count = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            time.sleep(0.0005)  # gives the interpreter away, as every look does
            count += 1
        return count

    def steps_beside(read):
        ended = threading.Event()

        def reading():
            for item, texts in itertools.cycle(responses):
                if ended.is_set():
                    return
                read(MathGrader(), [(text, "") for text in texts[:8]], item, Answers())

        thread = threading.Thread(target=reading)
        thread.start()
        count = steps()
        ended.set()
        thread.join()
        return count

    process = ReaderProcess()
    process.read(MathGrader(), [], responses[0][0], Answers())
    rounds = [(steps(), steps_beside(process.read), steps_beside(read_here)) for _ in range(3)]
    process.close()
    alone, processes, threads = (statistics.median(counts) for counts in zip(*rounds, strict=True))
    print(f"\nsteps alone {alone}, beside a process {processes}, beside a thread {threads}")
    assert processes > 2 * threads
