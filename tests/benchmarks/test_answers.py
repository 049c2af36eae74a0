import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dps.benchmarks.answers import (
    answer_key,
    before_next_question,
    canonical_answer,
    canonical_number,
    extract_number,
    extract_text,
    format_number,
    parse_number,
)

FORMS = [
    ("72", "72"),
    ("+72", "72"),
    ("-72", "-72"),
    ("−72", "-72"),
    ("72.", "72"),
    ("007", "7"),
    ("-0", "0"),
    ("1,000.00", "1000"),
    ("$1,000.00", "1000"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("72 €", "72"),
    ("50%", "50"),
    (r"50\%", "50"),
    ("0.50", "0.5"),
    (".5", "0.5"),
    ("1/2", "0.5"),
    ("1 / 3", "1/3"),
    ("2/6", "1/3"),
    ("-4/2", "-2"),
    (r"\frac{1}{2}", "0.5"),
    (r"-\dfrac{7}{8}", "-0.875"),
    (r"1{,}234", "1234"),
    ("$72$", "72"),
    ("**72**", "72"),
    ("1e3", "1000"),
    ("2.5e-3", "0.0025"),
    ("109,200,000", "109200000"),
]


@pytest.mark.parametrize(("text", "expected"), FORMS)
def test_number_forms(text, expected):
    assert canonical_number(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "x",
        "12 apples",
        "1,2,3",
        "1,00",
        "1/0",
        "1/2/3",
        "--5",
        "1e1000",
        "inf",
        "nan",
        "٣",
        "1_000",
        "3:30",
        "9" * 401,
    ],
)
def test_what_is_no_number(text):
    assert canonical_number(text) is None


@given(st.fractions())
def test_canonical_form_is_exact_and_stable(number):
    form = format_number(number)
    assert parse_number(form) == number
    assert canonical_number(form) == form


@given(st.integers(-(10**12), 10**12), st.integers(0, 4))
def test_thousands_separators_currency_and_trailing_zeros_do_not_matter(number, zeros):
    written = f"{number:,}" + ("." + "0" * zeros if zeros else "")
    assert (
        canonical_number(written) == canonical_number(f"${written}") == canonical_number(f" {written}% ") == str(number)
    )


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


@given(st.text(alphabet="0123456789.,/$%-#=() \n\\{}abox", max_size=80))
def test_any_response_gives_a_canonical_number_or_none(text):
    answer = extract_number(text)
    assert answer is None or canonical_number(answer) == answer


STRICT = [
    ("She sold 48 + 24 clips.\n#### 72", "72"),
    ("#### 1,080\n", "1080"),
    ("####72", "72"),
    ("####\n72", "72"),
    ("**#### $72.00**", "72"),
    ("#### 72 clips", "72"),
    ("#### -5", "-5"),
    (r"#### \boxed{12}", "12"),
    ("#### 12\n\nProblem: Ann has 3 hens.\nSolution: 3\n#### 3", "12"),  # what a base model goes on with
    ("#### 1. Add\n3 + 4 = 7\n#### 2. Double\n14\n\nThe answer is 14.", "14"),  # headings
    ("#### Step 1\nwork\n#### Answer\n\\boxed{7}", "7"),
    (r"First \boxed{3}, no: \boxed{4}", "4"),
    (r"Therefore \boxed{\frac{1}{2}} of 10", "0.5"),
    (r"The total is $\boxed{x = 1{,}250 \text{ dollars}}$ in 2 years.", "1250"),
    ("The answer is 18. That is 2 more than 16.", "18"),
    ("The final answer is: **$72**", "72"),
    ("So the answer to the question is 2 + 3 = 5 apples, i.e. 1 more", "5"),
    ("Answer: 40\n", "40"),
    ("The answer is\n12", "12"),
    ("The answer is 3, wait. The answer is 4.", "4"),
    ("The answer is 18.\nQuestion: And 5?\nThe answer is 5.", "18"),
]


@pytest.mark.parametrize(("text", "expected"), STRICT)
def test_strict_extraction(text, expected):
    assert extract_number(text, flexible=False) == expected
    assert extract_number(text) == expected


FLEXIBLE = [
    ("So 5 - 3 = 2 apples are left", "2"),
    ("so 5-3", "3"),
    ("That leaves (5)-3", "3"),
    ("x = -3", "-3"),
    ("She pays $1,234.50 in total.", "1234.5"),
    ("He gets 3/4 of it", "0.75"),
    ("the numbers are 1,2,3", "3"),
    ("Answer: Natalia sold 48/2 = 24 in May, 72 in all", "72"),
    ("model H2O costs 7", "7"),
    ("7 of type H2", "7"),
    ("7 and 1/0", "7"),
    ("7 then " + "1" * 5000, "7"),
    ("It is 8.\nQuestion: What is 9 + 1?\nIt is 10.", "8"),
    ("####\n\nI think it is 6", "6"),
]


@pytest.mark.parametrize(("text", "expected"), FLEXIBLE)
def test_flexible_extraction_takes_the_last_number(text, expected):
    assert extract_number(text) == expected
    assert extract_number(text, flexible=False) is None


@pytest.mark.parametrize(
    "text", ["", "\n", "I do not know.", "####", r"\boxed{}", r"\boxed{", "The answer is", "1" * 5000]
)
def test_no_number(text):
    assert extract_number(text) is None


TEXTS = [
    ("Because of ...\n#### Paris", "paris"),
    (r"so \boxed{\text{Paris}}", "paris"),
    ("The answer is *Paris*. It lies on the Seine.", "paris"),
    ("Answer: New   York", "new york"),
    ("I think about it.\nParis!\n", "paris"),
    ("#### 1,000", "1000"),
    ("#### Thoughts\nhm\n#### Paris\nQuestion: Which river?\n#### Seine", "paris"),
    ("", None),
    ("...", None),
]


@pytest.mark.parametrize(("text", "expected"), TEXTS)
def test_text_extraction(text, expected):
    assert extract_text(text) == expected


def test_keys_join_equal_answers_and_part_others():
    assert answer_key("1/2") == answer_key("0.50")
    assert answer_key("Paris ") == answer_key("paris.")
    assert answer_key("1/3") != answer_key("0.3333333333")
    assert answer_key("7") != answer_key("seven")


def test_a_response_that_begins_with_a_question_is_kept():
    assert before_next_question("\nQuestion: What is 1 + 1?\n2") == "\nQuestion: What is 1 + 1?\n2"


@pytest.mark.parametrize(
    "piece", [r"\boxed{", r"\frac{", "\n", "answer ", "#### ", "1,111,", "1 / ", "{", "$-", "answer is "]
)
def test_stuck_responses_are_read_quickly(piece):
    text = piece * 6000
    started = time.process_time()
    extract_number(text)
    extract_text(text)
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is Mr. Smith. He did it.", "mr. smith"),
        ("The answer is St. Louis.", "st. louis"),
        ("The answer is Paris. It lies in France.", "paris"),
        ("#### don’t", "don't"),
        ("#### the “big” one", 'the "big" one'),
        ("#### “Paris”", "paris"),
        ("<answer>Paris</answer>", "paris"),
        ("I thought.\n<answer> Paris </answer>\nGood luck!", "paris"),
        ("<answer>Rome</answer> No: <ANSWER>Paris</ANSWER>", "paris"),
        ("<answer>Paris", "paris"),
        ("<answer>a < b</answer>", "a < b"),
        ("<answer>Paris<|endoftext|>", "paris"),
    ],
)
def test_abbreviations_quotation_marks_and_tags(response, answer):
    assert extract_text(response) == answer
