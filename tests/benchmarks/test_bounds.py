# ruff: noqa: E501
"""Whatever a model writes is read within bounds: time, memory and depth."""

import time
import tracemalloc

import pytest

from dps.benchmarks import Item
from dps.benchmarks.answers import answer_key, canonical_answer, extract_text, strict_text
from dps.benchmarks.grading import read
from dps.benchmarks.mathematics import MathGrader, NumberGrader, equal, extract_math, extract_number, normalize
from dps.benchmarks.mathematics.convention import convention_of
from dps.benchmarks.mathematics.reading import boxed_contents, strict_math, strict_number
from dps.benchmarks.mathematics.spelling import LONGEST_ANSWER
from tests.benchmarks.data import classes as classes_of
from tests.benchmarks.hostile_answers import BIG, RESPONSES

UNITS = {
    "boxes": r"\boxed{5}", "boxes in a sentence": r"\boxed{5} and ", "frames": r"\fbox{x}", "headings": "#### 5 apples\n",
    "number lines": "#### x5\n", "sentences": "answer is 5. ", "answers": "answer: ", "open brackets": "(,", "fractions": r"\frac{1}{2}",
    "open fractions": r"\frac{", "raised": "²", "roots": "√", "open roots": "√(", "halves": "½", "commas": ",", "thousands": "1,111",
    "exponents": "1e", "dots": ".", "slashes": "1/", "products": r"1 \times 10^", "dollars": "$1", "dollars apart": "$ ", "dashes": "- ",
    "open text": r"\text{", "words": "word ", "letters": "a", "equals": "=1", "negatives": "negative ", "stars": "*", "percent": "5%",
    "digits apart": "5 ", "formulas": r"\(", "rows": r"\\[", "carets": "^{", "underscores": "_", "nul": "\x00", "surrogates": "\ud800",
    "long ligatures": "ﷺ", "combining": "\u0301", "lines": "\n", "questions": "\nQ ", "named questions": "\nProblem \t", "matrices": r"\begin{array}{",
    "backslashes": "\\", "and": " and ", "pm": r"\pm ", "hashes alone": "#### ",
    "answers that are": "answer is ", "quotients": "1 / ", "tags": "<answer>",
}  # fmt: skip
FAMILIES = {
    **RESPONSES,
    **{name: unit * (BIG // len(unit)) for name, unit in UNITS.items()},
    "nested boxes": r"\boxed{" * (BIG // 8) + "}" * (BIG // 8),
    "nested full boxes": r"\boxed{a" * (BIG // 9) + "}" * (BIG // 9),
    "a question and spaces": "x\nQ" + " " * BIG,
    "a question and lines": "x\nQ" + "\n" * BIG,
    "a question and digits": "x\nQ1" + "1" * BIG,
    "indented lines": "x" + ("\n" + " " * 9) * (BIG // 10),
    "a box and spaces": r"\boxed" + " " * BIG,
    "hashes and spaces": "####" + " " * BIG,
    "hashes and lines": "####" + "\n" * BIG + "5",
    "an answer and spaces": "answer is" + " " * BIG,
    "a deep line": "#### " + "(" * BIG,
}
READERS = [extract_math, strict_math, extract_number, strict_number, extract_text, strict_text, canonical_answer]
READERS += [answer_key, normalize, convention_of, lambda text: equal("5", text), lambda text: equal(text, "5")]


@pytest.mark.parametrize("name", FAMILIES)
def test_long_responses_are_read_in_time_and_memory(name):
    """Within a microsecond and 100 bytes for each character."""
    text = FAMILIES[name]
    for reader in READERS:
        started = time.process_time()
        reader(text)
        assert time.process_time() - started < 1e-6 * BIG, reader
    for reader in (extract_math, extract_number, extract_text):
        tracemalloc.start()
        reader(text[: BIG // 5])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100 * BIG / 5, reader
    if name in RESPONSES:
        reading = read(MathGrader(), text, Item("q", "?", "12"))
        assert reading.correct is not True
        assert len(reading.answer or "") <= LONGEST_ANSWER


def test_boxes_within_boxes_do_not_repeat_the_response():
    assert sum(map(len, boxed_contents(FAMILIES["nested boxes"]))) < 40_000
    assert extract_math("x" * BIG + r"\boxed{24}") == "24"
    assert extract_number(r"\boxed{24}" + "x" * BIG) == "24"


DEEP = [
    "(," * 330 + "a" + ")" * 330, "(," * 330 + "a", "(" * 330 + "a" + ",)" * 330, "[" * 480 + "1" + "]" * 480, r"\{" * 300 + "1" + r"\}" * 300,
    "{" * 480 + "}" * 480, "(1,(2," * 80 + "3" + "))" * 80, r"\frac{1}{" * 100 + "2" + "}" * 100, r"\sqrt{" * 120 + "2" + "}" * 120,
    "-" * 900 + "1", "2^" * 400 + "2", "2^{" * 200 + "2" + "}" * 200, "1!" + "!" * 900, "=" * 900, "a=" * 400 + "1", "<" * 900, r"\pm" * 300 + "1",
    r"\cup" * 200, r"\text{" * 150 + "}" * 150, "1," * 450 + "1", "1, " * 300 + "1", r"\begin{pmatrix}" * 60 + r"\end{pmatrix}" * 60, "x_" * 400, "|" * 900,
    "(1,2)" * 190, "((1,2),(3,4))" * 70, " and " * 190, ";" * 900, "1/" * 450 + "1", "√" * 900, "²" * 900, "½" * 900,
]  # fmt: skip


def test_short_deep_answers_end_in_a_verdict():
    item = Item("deep", "?", "a")
    for grader in (MathGrader(), NumberGrader()):
        started = time.monotonic()
        classes = classes_of(grader, [*DEEP, "a", None], item)
        assert len(classes) == len(DEEP) + 2
        assert classes[-1] == -1
        assert True not in [grader.grade(text, Item(text[:20], "?", "a")) for text in DEEP]
        assert all(grader.grade("a", Item(text[:20], "?", text)) is not True for text in DEEP)
        for text in DEEP:
            read(grader, rf"\boxed{{{text}}}", item)
            read(grader, f"#### {text}", item)
        assert time.monotonic() - started < 60


def test_answers_that_took_minutes_are_compared_at_once():
    answers = [f"(a+b+c+d+e)^{{{300 + k // 2}}}" for k in range(16)]
    started = time.monotonic()
    assert classes_of(MathGrader(), answers, Item("powers", "?", None)) == [k // 2 for k in range(16)]
    assert time.monotonic() - started < 20
