"""Answers that are words, the numbers among them, and thinking that is no answer."""

import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dps.benchmarks import Item
from dps.benchmarks.answers import OpenGrader, TextGrader, answer_key, canonical_answer, extract_text
from dps.benchmarks.arithmetic import GRADER as ARITHMETIC
from dps.benchmarks.grading import read
from dps.benchmarks.kinds import grader_of_kind
from dps.benchmarks.mathematics import canonical_number, extract_number, format_number, parse_number
from dps.benchmarks.thinking import answer_part
from tests.benchmarks.data import cases
from tests.benchmarks.data import classes as classes_of

CASES = cases("answers")
THINKING = cases("thinking")


def test_number_forms():
    assert {text: canonical_number(text) for text, _ in CASES["numbers"]} == dict(CASES["numbers"])
    assert {text for text in [*CASES["no numbers"], "9" * 401] if canonical_number(text) is not None} == set()


@given(st.fractions())
def test_canonical_form_is_exact_and_stable(number):
    form = format_number(number)
    assert parse_number(form) == number
    assert canonical_number(form) == form


@given(st.integers(-(10**12), 10**12), st.integers(0, 4))
def test_thousands_separators_currency_and_trailing_zeros_do_not_matter(number, zeros):
    written = f"{number:,}" + ("." + "0" * zeros if zeros else "")
    assert {canonical_number(text) for text in (written, f"${written}", f" {written}% ")} == {str(number)}


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**9), max_value=10**9))
def test_decimals_equal_their_fraction(number):
    top, bottom = number.as_integer_ratio()
    assert canonical_number(f"{number:f}") == canonical_number(f"{top}/{bottom}")
    assert Fraction(Decimal(canonical_number(f"{number:f}"))) == Fraction(number)


@given(st.text(max_size=60))
@example("²")
@example('"1,000.0"')
@settings(max_examples=400)
def test_canonical_answer_is_idempotent_and_keeps_the_key(text):
    answer = canonical_answer(text)
    if answer is not None:
        assert canonical_answer(answer) == answer
        assert answer_key(answer) == answer_key(text)


@pytest.mark.parametrize(("text", "expected"), CASES["strict"])
def test_strict_numbers(text, expected):
    assert extract_number(text, flexible=False) == extract_number(text) == expected


@pytest.mark.parametrize(("text", "expected"), CASES["flexible"])
def test_the_last_number_is_taken(text, expected):
    assert extract_number(text) == expected
    assert extract_number(text, flexible=False) is None


@pytest.mark.parametrize(("text", "expected"), CASES["texts"])
def test_texts(text, expected):
    assert extract_text(text) == expected


def test_keys_join_equal_answers_and_part_others():
    answers = [None, "0.5", "7", "1/2", "Paris ", "7.00", "paris.", "1/3", "0.3333333333", "seven"]
    assert classes_of(TextGrader(), answers, None) == [-1, 0, 1, 0, 2, 1, 2, 3, 4, 5]
    grades = [("1,000.0", "1000"), ("0.5", "1/2"), ("7", "8"), (None, "8"), ("7", None), (None, None)]
    verdicts = [TextGrader().grade(answer, Item("q", "?", gold)) for answer, gold in grades]
    assert verdicts == [True, True, False, False, None, None]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("14+23=37;#37", "37"), ("14+23=37\n#### 37.", "37"), (r"so \boxed{37}", "37"), ("14+23=37;", None), ("#", None)],
)
def test_arithmetic_answers(text, expected):
    assert ARITHMETIC.extract(text, None) == expected


FUNCTION = {"prompt": "def two():\n    ", "entry_point": "two", "test": "def check(f):\n    assert f() == 2\n"}
PROGRAM = "```python\ndef two():\n    return %d\n```"
READ = {
    "number": (Item("q", "?", "7"), r"\boxed{8} #### 8 The answer is 8.", "#### 7"),
    "math": (Item("q", "?", r"\frac{1}{2}"), r"\boxed{3} and $x=4$", r"\boxed{\frac12}"),
    "choice": (Item("q", "?", "B", {"choices": ["one", "two"]}), r"\boxed{A} the answer is A", r"\boxed{B}"),
    "text": (Item("q", "?", "paris"), "#### London", "#### Paris"),
    "code": (Item("q", "?", "", FUNCTION), PROGRAM % 1, PROGRAM % 2),
    "arithmetic": (Item("q", "?", "7"), "3+5=8;#8", "3+4=7;#7"),
}


@pytest.mark.parametrize(("opened", "closed"), THINKING["marks"])
@pytest.mark.parametrize("name", READ)
def test_only_what_follows_the_thinking_is_read(name, opened, closed):
    item, wrong, right = READ[name]
    grader = ARITHMETIC if name == "arithmetic" else grader_of_kind(name)
    said = read(grader, right, item)
    assert (said.correct, said.strict_correct) == (True, True)
    assert read(grader, f"{opened}{wrong}{closed}{right}", item) == said
    assert read(grader, f"{wrong}{closed}{right}", item) == said  # the template opened it
    assert read(grader, f"{wrong}{closed}{right}", item, f"<|user|>?<|assistant|>{opened}\n") == said
    for text, prompt in (
        (f"{opened}{wrong} {right}", ""),  # cut short
        (f"{opened}{wrong} {right}{closed}", ""),  # nothing said
        (f"{wrong} {right}", f"?{opened}"),
        (f"{right}\n{opened}{wrong}", ""),
        (f"{opened}{wrong}{closed}{right}{opened}or {wrong}", ""),
    ):
        cut = read(grader, text, item, prompt)
        assert (cut.answer, cut.correct, cut.strict_answer, cut.strict_correct) == (None, False, None, False)


@pytest.mark.parametrize(("text", "prompt", "said"), THINKING["parts"])
def test_answer_parts(text, prompt, said):
    assert answer_part(text, prompt) == said


def test_open_responses_are_answers_as_a_whole():
    reading = read(OpenGrader(), "<think>Hm.</think>\n\n La la la. ", Item("q", "?", None))
    assert (reading.answer, reading.strict_answer, reading.correct) == ("La la la.", "La la la.", None)
    assert classes_of(OpenGrader(), ["a", "b", "a", None], None) == [0, 1, 0, -1]


def test_a_model_that_is_stuck_in_thought_costs_no_time():
    started = time.process_time()
    for piece in ("<think>", "< ", "</think>", "<|channel|>analysis", "<|channel|> ", "[THINK", "◁think▷"):
        answer_part(piece * 20_000, piece * 20_000)
    assert time.process_time() - started < 5
