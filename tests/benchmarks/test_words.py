# ruff: noqa: E501
r"""Numbers that are written out, and spellings of numbers beyond digits: words, magnitudes, repeating decimals."""

import time

import pytest

from dps.benchmarks.benchmark import Item
from dps.benchmarks.kinds import grader_of_kind
from dps.benchmarks.mathematics.words import digits_for_words

R, W = True, False


def graded(kind, response, gold, question="How much is it?"):
    grader, item = grader_of_kind(kind), Item("q", question, gold, {})
    return grader.grade(grader.extract(response, item), item)


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("1 million", "1000000", R), ("1 million", "1", W), ("2.5 billion", "2500000000", R), ("3 thousand", "3000", R),
        ("$1.5 million", "1500000", R), ("1.2 million people", "1200000", R), ("4 hundred", "400", R),
        ("1 1/2 million", "1500000", R), ("1,200 thousand dollars", "1200000", R), ("3 trillion", "3000000000000", R),
        ("five", "5", R), ("Five apples", "5", R), ("twenty-one", "21", R), ("ninety nine", "99", R), ("zero", "0", R),
        ("two hundred", "200", R), ("one hundred and five", "105", R), ("three thousand two hundred", "3200", R),
        ("one million", "1000000", R), ("a hundred", "100", R), ("half", "0.5", R), ("one half", "0.5", R), ("two-thirds", "2/3", R),
        ("two and a half hours", "2.5", R), ("three and three quarters", "3.75", R), ("2 and a half", "2.5", R),
        ("four (4)", "4", R), ("2,000,000 (2 million)", "2000000", R), ("half a million", "500000", R), ("10^-3", "0.001", R), ("10^(-3)", "0.001", R),
        ("2 and 1/2", "2.5", R), ("2 and 1/2 cups", "2.5", R), ("minus five", "-5", R), ("five", "6", W), ("12 (twelve)", "12", R),
        ("12 three-digit numbers", "12", R), ("6.02 x 10^23", "6.02e23", R), ("6.02*10**23", "6.02e23", R),
        (r"0.\overline{3}", "1/3", R), ("__12__", "12", R), ("1'000", "1000", R), ("3 x 4 = 12", "12", R), ("2020-05-01", "2014", W),
    ],
)  # fmt: skip
def test_a_number_however_it_is_written(answer, gold, verdict):
    for response in (f"#### {answer}", f"The answer is {answer}.", rf"\boxed{{{answer}}}"):
        assert graded("number", response, gold) is verdict, response


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        (r"\text{five}", "5", R), ("5", r"\text{five}", R), (r"\text{twenty-one}", "21", R), (r"\text{six}", "5", W),
        (r"1\text{ million}", "1000000", R), (r"2.5 \text{ million}", "2500000", R), (r"2.5\text{ billion}", r"2.5\text{ million}", W),
        (r"2.5\text{ million dollars}", "2500000", R), ("2 and 3", "3, 2", R), (r"\text{two or three}", "2, 3", R),
        (r"2 and \frac12", r"2, \frac{1}{2}", R), ("twelve monkeys", "12", W), ("one-to-one", "1", W),
        (r"\textbf{(B)}\ 12", "12", R), (r"\textbf{(B)}\ 12", r"\text{(B)}", R), (r"\textbf{(B) } 12", "13", W),
        (r"\textbf{(B)}\ 12", r"\text{(C)}", W), (r"\text{(A)} \frac12", "0.5", R), (r"\textbf{(E)}\ (1,2)", "(1,2)", R),
        (r"\text{(D)}\;3.5", r"\text{(E)}\;3.5", W), (r"(D)\ 3.5", "7/2", R), (r"\text{(A)}\ \text{True}", r"\text{True}", R),
        (r"\underline{12}", "12", R), (r"\color{red}12", "12", R), (r"12\frac{\text{km}}{\text{h}}", r"12\text{ km/h}", R), (r"12^{\text{th}}", "12", R),
        ("50¢", "50", R), ("1{.}5", "1.5", R), (r".\overline{3}", "1/3", R), (r"\mathbb{N}", r"\mathbb{Z}", W), (r"\mathbb{Z}", r"\mathbb{Z}", R),
        (r"5\choose 2", "10", R), (r"\frac{7}{2}\text{ million}", "3500000", R), (r"\underline{13}", "12", W),
        (r"0.\overline{3}", r"\frac13", R), (r"\frac{3}{11}", r"0.\overline{27}", R), (r"1.2\overline{3}", r"\frac{37}{30}", R),
        (r"0.\bar{3}", "0.3", W), (r"0.\overline{12}", r"0.1\overline{2}", W), (r"0.\overline{9}", "1", R),
        (r"{5\choose2}", "10", R), (r"\dbinom{5}{2}", "10", R), (r"\log_{2}8", "3", R), ("2^{3}4", "32", R), ("x^10", "x^{10}", R),
        ("2^10", "1024", R), (r"(x,y)=(5,6)", "(5,6)", R), ("(5,6)", "(x,y)=(5,6)", R), ("(a,b,c) = (1,2,3)", "(1,2,3)", R),
        ("(x,y)=(6,5)", "(5,6)", W), (r"\mathbb{R}\setminus\{0\}", r"(-\infty,0)\cup(0,\infty)", R),
        (r"\mathbb{R} \setminus \{2,-1\}", r"(-\infty,-1)\cup(-1,2)\cup(2,\infty)", R), (r"\mathbb{R}\setminus\{1\}", r"x \ne 0", W),
        (r"\text{\$}5", "5", R), (r"5 \textdollar", "5", R), (r"5\,\mathrm{km}\,\mathrm{h}^{-1}", r"5\text{ km/h}", R),
        (r"5\text{ m}\cdot\text{s}^{-2}", r"5\text{ m/s}^2", R), (r"5\text{ m}\text{s}^{-2}", r"5\text{ m/s}", W),
    ],
)  # fmt: skip
def test_mathematics_however_it_is_written(answer, gold, verdict):
    assert graded("math", rf"\boxed{{{answer}}}", gold) is verdict


def test_the_question_may_ask_in_a_magnitude():
    for question in ("How many millions did it earn?", "How much, in millions of dollars, is it?"):
        for kind in ("number", "math"):
            assert graded(kind, "#### 10 million", "10", question) is True
            assert graded(kind, "#### 10", "10 million", question) is True
            assert graded(kind, "#### 11 million", "10", question) is False
    assert graded("number", "#### 10 million", "10", "It cost 2 million. How much is left of one million?") is False


def test_a_response_that_is_a_number_in_words_and_nothing_else():
    assert graded("number", "Seven", "7") is True
    assert graded("number", "2 and 1/2", "2.5") is True
    assert graded("number", "I cannot say which one.", "1") is False


def test_a_vote_leaves_the_letter_of_a_choice_aside():
    grader, item = grader_of_kind("math"), Item("q", "What is it?", None, {})
    assert grader.classes([r"\text{(B)}12", "12", r"\text{(B)}", r"\text{(A)}12", "five", "5"], item) == [
        0,
        0,
        1,
        0,
        2,
        2,
    ]


def test_words_stay_words_where_a_text_is_asked_for():
    assert graded("text", "The answer is seven.", "7") is False
    assert graded("text", "The answer is seven.", "Seven") is True


@pytest.mark.parametrize(
    "piece", ["one hundred ", "one and ", "twenty-", "1 ", "1,", "half ", "a ", "zero thousand ", "1/"]
)
def test_a_thousand_characters_are_read_at_once(piece):
    started = time.perf_counter()
    digits_for_words((piece * 1_000)[:1_000])
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize(
    ("kind", "response", "gold"),
    [
        ("number", "It was 3.\n<answer>12</answer>\nSee page 40.", "12"),
        ("number", "<answer> $1,200 </answer> for 2", "1200"),
        ("math", r"<answer>\frac{1}{2}</answer> of $x$", "0.5"),
        ("math", "<answer>x = 3</answer>", "3"),
        ("math", r"<answer>x \le 3</answer>", r"(-\infty,3]"),
        ("number", r"\boxed{5} <answer>6</answer>", "5"),
    ],
)
def test_an_answer_in_tags(kind, response, gold):
    assert graded(kind, response, gold) is True
