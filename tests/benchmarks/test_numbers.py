# ruff: noqa: E501
"""Numbers and mathematics by one reader: values, lists, small numbers, equations, spellings, votes."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dps.benchmarks import Item
from dps.benchmarks.answers import answer_key, canonical_answer
from dps.benchmarks.grading import read
from dps.benchmarks.mathematics import MathGrader, NumberGrader, equal, extract_math, normalize
from tests.benchmarks.number_pairs import EQUATIONS, LISTS, NUMBERS, SMALL, SPELLINGS


def item(gold=None, question="?"):
    return Item("q", question, gold)


@pytest.mark.parametrize(("gold", "answer", "verdict"), NUMBERS + LISTS + SMALL + EQUATIONS + SPELLINGS)
def test_pairs(gold, answer, verdict):
    assert equal(gold, answer) is verdict
    extracted = extract_math(rf"Therefore $\boxed{{{answer}}}$.")
    assert equal(gold, extracted) is verdict
    assert normalize(extracted) == extracted


@pytest.mark.parametrize(("gold", "answer", "verdict"), NUMBERS)
@pytest.mark.parametrize("form", [r"so $\boxed{%s}$.", "#### %s", "The answer is %s."])
def test_numbers_are_read_in_every_form(form, gold, answer, verdict):
    for grader in (NumberGrader(), MathGrader()):
        assert read(grader, form % answer, item(gold)).correct is verdict


RESPONSES = [
    ("#### 10 - 3 = 7", "7"),
    ("#### 2 boxes of pencils\nEach has 12, so\n\\boxed{24}", "24"),
    ("#### 2 boxes of pencils\nEach has 12.\nThe answer is 24.", "24"),
    ("#### 3 steps\nThus $\\boxed{\\text{24 pencils}}$? No, \\boxed{24}.", "24"),
    ("#### 72 clips", "72"),
    ("#### 3\\frac{1}{4}", "3.25"),
    ("#### 1 000", "1000"),
    ("It takes 2 1/2 hours.", "2.5"),
    ("So she needs 1,250 in all", "1250"),
    ("The answer is negative 5.", "-5"),
    (r"Thus \fbox{5}", "5"),
    (r"\boxed{x = 1{,}250 \text{ dollars}}", "1250"),
    (r"The answer is \(5\).", "5"),
    ("#### x = 5", "5"),
    ("#### 33 1/3", "100/3"),
    ("#### 3*4=12 apples", "12"),
    ("#### 10 - 3 = 7 apples", "7"),
    ("#### 15 dollars and 0 cents", "15"),
    (r"\boxed{\text{Total: } 5}", "5"),
    (r"\boxed{\text{5 apples}}", "5"),
    (r"\boxed{\text{negative } 5}", "-5"),
    ("#### approximately 4", "4"),
    ("answer is $5$ because 2 + 3 = 6 - 1.", "5"),
    ("#### 5\nI hope that this helps 100%!", "5"),
    ("**Answer:** 5", "5"),
    ("She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", "18"),
    ("The total is 3 + 4 = 7 apples.", "7"),
]


@pytest.mark.parametrize(("text", "number"), RESPONSES)
def test_number_of_a_response(text, number):
    assert NumberGrader().extract(text, item()) == number
    assert NumberGrader().grade(number, item(number)) is True


def test_a_number_keeps_its_percent_sign_and_the_gold_decides():
    grader = NumberGrader()
    assert grader.extract(r"\boxed{50\%}", item()) == "50%"
    assert [grader.grade("50%", item(gold)) for gold in ("50", "0.5", "50%", "5")] == [True, True, True, False]
    assert grader.grade("0.5", item("50%")) is False


@pytest.mark.parametrize(
    "text", [r"\boxed{10\sqrt{2}}", r"\boxed{3, 5 \text{ or } x}", r"\boxed{2x = y}", r"\boxed{?}"]
)
def test_what_is_no_number_is_no_strict_number(text):
    assert NumberGrader().extract_strict(text, item()) is None


BOXES = [
    (r"It is $\boxed{3}$ and $\boxed{5}$.", "3,5", True),
    (r"$x=\boxed{3}$ or $x=\boxed{5}$", "3,5", True),
    (r"\boxed{3}, \boxed{4}, and \boxed{5}", "3,4,5", True),
    (r"\boxed{3} and \boxed{5}", "5", False),
    (r"First \boxed{3}. No: \boxed{5}.", "5", True),
    (r"\boxed{5}, that is \boxed{5}", "5", True),
    (r"\boxed{5} and \boxed{5}", "5", True),
    (r"\boxed{3}" + "\n\n" + r"\boxed{5}", "5", True),
]


@pytest.mark.parametrize(("text", "gold", "verdict"), BOXES)
def test_several_boxes(text, gold, verdict):
    reading = read(MathGrader(), text, item(gold))
    assert reading.correct is verdict
    assert reading.strict_correct is verdict


def test_an_answer_may_repeat_what_the_question_asks_for():
    grader = MathGrader()
    asked = item("7", "Let $m$ and $n$ be such that $2m = 5$. Find $m+n$.")
    assert grader.grade("m+n=7", asked) is True
    assert grader.grade("m+n=8", asked) is False
    assert grader.grade("2m=7", asked) is False
    assert grader.grade("x^2=7", item("7", "Solve $x^2 = 7$.")) is False


def test_a_raised_digit_is_no_digit_in_any_mode():
    assert canonical_answer("10²") == "100"
    assert canonical_answer("about 10² m²") == "about 10^2 m^2"
    assert answer_key("x²") != answer_key("x2")
    assert canonical_answer("3½ cups") == "3 1/2 cups"
    assert NumberGrader().extract("#### 10²", item()) == MathGrader().extract("#### 100", item()) == "100"


CLASSES = [
    ([r"50\%", "0.5", "50"], "?", [{0, 1}, {2}]),
    ([r"50\%", "0.5", "50"], "What percent of the cats are black?", [{0, 2}, {1}]),
    ([r"50\%", "0.5", "50"], "Of 20% of the cats, how many are black?", [{0}, {1}, {2}]),
    (["5", r"5\text{ cm}", r"5\text{ m}"], "?", [{0}, {1}, {2}]),
    (["5", r"5\text{ cm}", r"5\text{ m}", "5 centimeters"], "How many centimeters?", [{0, 1, 3}, {2}]),
    (
        ["20", r"20\text{ cm}", r"20\text{ cm}^2"],
        "What is the perimeter of a square with sides of 5 cm?",
        [{0, 1}, {2}],
    ),
    (["20", "20 units", "20 apples", "20 pears"], "How many apples are left?", [{0, 1, 2}, {3}]),
    (["25", r"25\text{ cm}^2", r"25\text{ cm}"], "What is the area of a square of 5 cm?", [{0, 1}, {2}]),
    (["5", "x=5", "y=5"], "Solve $x + y = 7$ and $x - y = 3$.", [{0}, {1}, {2}]),
    (["5", "x=5", "y=5"], "Find $x$ if $x + y = 7$.", [{0, 1}, {2}]),
    (["4210_5", "4210", "4210_6"], "Write it in base 5.", [{0, 1}, {2}]),
    (["4210_5", "4210", "4210_6"], "?", [{0}, {1}, {2}]),
    (["100,200", "100, 200", "100200", "200, 100"], "?", [{0, 2}, {1, 3}]),
    ([r"2\frac12", "2.5", "5/2", "10.5"], "?", [{0, 1, 2}, {3}]),
    ([r"\sqrt2", r"\frac{2}{\sqrt2}", "1.41421356", "1.41421357"], "?", [{0, 1}, {2}, {3}]),
    (["(1,2)", "[1,2]", "1, 2", "2, 1"], "?", [{0}, {1}, {2, 3}]),
    (["y=2x+1", "2x-y+1=0", "y=2x-1", "2x+1"], "Find the equation of the line $y$.", [{0, 1}, {2}, {3}]),
    (["y=2x+1", "2x+1", "1+2x"], "Express $y$ in terms of $x$.", [{0, 1, 2}]),
    (["f(x)=2x+1", "2x+1"], "Find $f(x)$.", [{0, 1}]),
    (["x>2", r"(2,\infty)", r"x \ge 2"], "?", [{0, 1}, {2}]),
]


@pytest.mark.parametrize(("answers", "question", "expected"), CLASSES)
def test_classes_do_not_depend_on_the_order(answers, question, expected):
    grader = MathGrader()
    for order in itertools.permutations(range(len(answers))):
        classes = grader.classes([answers[place] for place in order], item(question=question))
        found = {frozenset(order[i] for i in range(len(order)) if classes[i] == number) for number in classes}
        assert found == {frozenset(group) for group in expected}


POOL = [
    "5", "5.0", r"5\text{ cm}", r"5\text{ m}", "5 apples", r"5\%", "0.05", "x=5", "y=5", "5=x", "2x=10", "101_2", "5_{10}", "101",
    "1,2", "2, 1", "(1,2)", "12", r"\sqrt{25}", r"\frac{10}{2}", "x+1", "1+x", "y=x+1", "y-x=1", r"\text{five}", "Five", "1,000", "1000",
    r"\pm 1", "1,-1", "x>1", r"(1,\infty)", "?", "(,", r"\infty",
]  # fmt: skip
QUESTIONS = ["?", "What percent, in cm?", "Find $x$ if $y=2$.", "Write it in base two.", "How many apples, with $x$?"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(POOL), min_size=2, max_size=8), st.sampled_from(QUESTIONS), st.randoms())
def test_classes_are_an_equivalence_relation_of_the_answers_alone(answers, question, random):
    asked = item(question=question)
    grader = MathGrader()
    order = list(range(len(answers)))
    random.shuffle(order)
    first = grader.classes(answers, asked)
    shuffled = grader.classes([answers[place] for place in order], asked)
    for (i, a), (j, b) in itertools.combinations(enumerate(order), 2):
        assert (shuffled[i] == shuffled[j]) == (first[a] == first[b])
    # The classes of the first few are those that they have among all.
    assert grader.classes(answers[:2], asked) == first[:2]
    assert all(number <= max([-1, *first[:place]]) + 1 for place, number in enumerate(first))


@pytest.mark.parametrize("gold", ["5", r"5\text{ cm}", "0.5", r"50\%", "x=5", "1, 2", "100200", r"\sqrt2"])
@pytest.mark.parametrize("question", ["?", "How many cm?", "Which percentage?", "Find $x$."])
def test_answers_of_a_class_have_one_grade(gold, question):
    grader, asked = MathGrader(), item(gold, question)
    answers = ["5", r"5\text{ cm}", "0.5", r"50\%", "50", "x=5", "2,1", "100,200", "100200", r"\sqrt{2}", r"2/\sqrt2"]
    classes = grader.classes(answers, asked)
    for (a, left), (b, right) in itertools.combinations(zip(answers, classes, strict=True), 2):
        if left == right and not {a, b} & {r"50\%"}:  # a missing percent sign is read by the question in votes only
            assert grader.grade(a, asked) == grader.grade(b, asked)
