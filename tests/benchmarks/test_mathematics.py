# ruff: noqa: E501
"""Mathematics and numbers by one reader: extraction, spellings, values, comparison, votes, hostile answers.

``math_cases.json`` has gold answers and answers with the verdicts that a careful person gives (null: ungradable),
written down before the grader saw them, and responses with the answers that they give.
"""

import itertools
import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dps.benchmarks import BenchmarkConfig, Item, load_benchmark
from dps.benchmarks.answers import answer_key, canonical_answer
from dps.benchmarks.grading import read
from dps.benchmarks.kinds import grader_of_kind
from dps.benchmarks.mathematics import MathGrader, NumberGrader, equal, extract_math, normalize, values
from dps.benchmarks.mathematics.forms import read_answer
from dps.benchmarks.mathematics.words import digits_for_words
from tests.benchmarks.data import classes as classes_of
from tests.benchmarks.data import slice_path
from tests.benchmarks.hostile_answers import HOSTILE

CASES = json.loads(Path(__file__).with_name("math_cases.json").read_text())
PAIRS = [case for table in ("numbers", "lists", "small", "equations", "spellings") for case in CASES[table]]


def item(gold=None, question="?", name="q"):
    return Item(name, question, gold)


@pytest.mark.parametrize(("gold", "answer", "verdict"), PAIRS)
def test_pairs(gold, answer, verdict):
    assert equal(gold, answer) is verdict
    extracted = extract_math(rf"Therefore $\boxed{{{answer}}}$.")
    assert equal(gold, extracted) is verdict
    assert normalize(extracted) == extracted


def test_hand_checked_pairs():
    pairs = CASES["hand_checked"]
    assert len({tuple(pair) for pair in pairs}) == len(pairs) >= 120
    assert {verdict for *_, verdict in pairs} == {True, False, None}
    wrong = [pair for pair in pairs if equal(pair[0], normalize(pair[1]) or "?") is not pair[2]]
    assert wrong == []


@pytest.mark.parametrize(("gold", "answer", "verdict"), CASES["numbers"])
@pytest.mark.parametrize("form", [r"so $\boxed{%s}$.", "#### %s", "The answer is %s."])
def test_numbers_are_read_in_every_form(form, gold, answer, verdict):
    for grader in (NumberGrader(), MathGrader()):
        assert read(grader, form % answer, item(gold)).correct is verdict


@pytest.mark.parametrize(("gold", "answer", "verdict"), CASES["number_words"])
def test_a_number_however_it_is_written(gold, answer, verdict):
    for response in (f"#### {answer}", f"The answer is {answer}.", rf"\boxed{{{answer}}}"):
        assert read(NumberGrader(), response, item(gold)).correct is verdict, response


@pytest.mark.parametrize(("gold", "answer", "verdict"), CASES["math_words"])
def test_mathematics_however_it_is_written(gold, answer, verdict):
    assert read(MathGrader(), rf"\boxed{{{answer}}}", item(gold)).correct is verdict


@pytest.mark.parametrize(("kind", "gold", "response"), CASES["tags"])
def test_an_answer_in_tags(kind, gold, response):
    assert read(grader_of_kind(kind), response, item(gold)).correct is True


@pytest.mark.parametrize(("text", "number"), CASES["responses"])
def test_number_of_a_response(text, number):
    assert NumberGrader().extract(text, item()) == number
    assert NumberGrader().grade(number, item(number)) is True


@pytest.mark.parametrize(("text", "answer", "strict"), CASES["extraction"])
def test_extraction(text, answer, strict):
    assert MathGrader().extract(text, item()) == answer
    assert MathGrader().extract_strict(text, item()) == strict


@pytest.mark.parametrize(("text", "gold", "verdict"), CASES["boxes"])
def test_several_boxes(text, gold, verdict):
    reading = read(MathGrader(), text, item(gold))
    assert (reading.correct, reading.strict_correct) == (verdict, verdict)


@pytest.mark.parametrize("text", [r"10\sqrt{2}", r"3, 5 \text{ or } x", "2x = y", "?"])
def test_what_is_no_number_is_no_strict_number(text):
    assert NumberGrader().extract_strict(rf"\boxed{{{text}}}", item()) is None


def test_a_response_that_is_a_number_in_words_and_nothing_else():
    verdicts = [
        read(NumberGrader(), text, item(gold)).correct
        for text, gold in (("Seven", "7"), ("2 and 1/2", "2.5"), ("I cannot say which one.", "1"))
    ]
    assert verdicts == [True, True, False]


def test_a_number_keeps_its_percent_sign_and_the_gold_decides():
    grader = NumberGrader()
    assert grader.extract(r"\boxed{50\%}", item()) == "50%"
    assert [grader.grade("50%", item(gold)) for gold in ("50", "0.5", "50%", "5")] == [True, True, True, False]
    assert grader.grade("0.5", item("50%")) is False


def test_the_question_may_ask_in_a_magnitude():
    for question in ("How many millions did it earn?", "How much, in millions of dollars, is it?"):
        for grader in (NumberGrader(), MathGrader()):
            for response, gold in (("#### 10 million", "10"), ("#### 10", "10 million"), ("#### 11 million", "10")):
                assert read(grader, response, item(gold, question)).correct is ("11" not in response)
    other = item("10", "It cost 2 million. How much is left of one million?")
    assert read(NumberGrader(), "#### 10 million", other).correct is False


def test_an_answer_may_repeat_what_the_question_asks_for():
    asked = item("7", "Let $m$ and $n$ be such that $2m = 5$. Find $m+n$.")
    assert [MathGrader().grade(answer, asked) for answer in ("m+n=7", "m+n=8", "2m=7")] == [True, False, False]
    assert MathGrader().grade("x^2=7", item("7", "Solve $x^2 = 7$.")) is False


def test_where_words_and_raised_digits_are_no_numbers():
    assert canonical_answer("10²") == "100"
    assert canonical_answer("about 10² m²") == "about 10^2 m^2"
    assert answer_key("x²") != answer_key("x2")
    assert canonical_answer("3½ cups") == "3 1/2 cups"
    text = grader_of_kind("text")
    assert [read(text, "The answer is seven.", item(gold)).correct for gold in ("7", "Seven")] == [False, True]


# Votes


@pytest.mark.parametrize(("question", "answers", "expected"), CASES["classes"])
def test_classes_do_not_depend_on_the_order(question, answers, expected):
    for order in itertools.permutations(range(len(answers))):
        classes = classes_of(MathGrader(), [answers[place] for place in order], item(question=question))
        groups = {frozenset(order[i] for i in range(len(order)) if classes[i] == number) for number in classes}
        assert groups == {frozenset(group) for group in expected}


@pytest.mark.parametrize(
    ("answers", "classes"),
    [
        ([r"\frac{1}{2}", None, "x+1", "0.5", "1+x", "7", r"\frac{2}{4}"], [0, -1, 1, 0, 1, 2, 0]),
        ([r"\text{(B)}12", "12", r"\text{(B)}", r"\text{(A)}12", "five", "5"], [0, 0, 1, 0, 2, 2]),
    ],
)
def test_classes_follow_meaning_and_ignore_the_gold(answers, classes):
    assert classes_of(MathGrader(), answers, item()) == classes


POOL = [
    "5", "5.0", r"5\text{ cm}", r"5\text{ m}", "5 apples", r"5\%", "0.05", "x=5", "y=5", "5=x", "2x=10", "101_2", "5_{10}", "101",
    "1,2", "2, 1", "(1,2)", "12", r"\sqrt{25}", r"\frac{10}{2}", "x+1", "1+x", "y=x+1", "y-x=1", r"\text{five}", "Five", "1,000", "1000",
    r"\pm 1", "1,-1", "x>1", r"(1,\infty)", "?", "(,", r"\infty",
]  # fmt: skip
QUESTIONS = ["?", "What percent, in cm?", "Find $x$ if $y=2$.", "Write it in base two.", "How many apples, with $x$?"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(POOL), min_size=2, max_size=8), st.sampled_from(QUESTIONS), st.randoms())
def test_classes_are_an_equivalence_relation_of_the_answers_alone(answers, question, shuffler):
    asked, grader, order = item(question=question), MathGrader(), list(range(len(answers)))
    shuffler.shuffle(order)
    first = classes_of(grader, answers, asked)
    shuffled = classes_of(grader, [answers[place] for place in order], asked)
    for (i, a), (j, b) in itertools.combinations(enumerate(order), 2):
        assert (shuffled[i] == shuffled[j]) == (first[a] == first[b])
    # The classes of the first few are those that they have among all.
    assert classes_of(grader, answers[:2], asked) == first[:2]
    assert all(number <= max([-1, *first[:place]]) + 1 for place, number in enumerate(first))


@pytest.mark.parametrize("gold", ["5", r"5\text{ cm}", "0.5", r"50\%", "x=5", "1, 2", "100200", r"\sqrt2"])
@pytest.mark.parametrize("question", ["?", "How many cm?", "Which percentage?", "Find $x$."])
def test_answers_of_a_class_have_one_grade(gold, question):
    grader, asked = MathGrader(), item(gold, question)
    # A missing percent sign is read by the question in votes only, so 50% is not among the answers.
    answers = ["5", r"5\text{ cm}", "0.5", "50", "x=5", "2,1", "100,200", "100200", r"\sqrt{2}", r"2/\sqrt2"]
    classes = classes_of(grader, answers, asked)
    for (a, left), (b, right) in itertools.combinations(zip(answers, classes, strict=True), 2):
        assert left != right or grader.grade(a, asked) == grader.grade(b, asked)


# Readers of expressions


SAME_EXPRESSIONS = [
    (r"\sin2x\cos y", r"\cos(y)\sin(2x)"), (r"\sin(x)y", r"y\sin x"), (r"\sin^2x+1", r"1+(\sin x)^2"), (r"\log_2 8x", r"3+\log_2x"),
    (r"\ln(x)^2", r"\ln x\ln x"), (r"\ln|x|", r"\ln(\frac{|2x|}{2})"), (r"x(y+1)", "yx+x"), (r"2x(-2)^2", "8x"), (r"e^xe^{-y}", "e^{x-y}"),
    (r"3!x", "6x"), (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"), (r"x_1y_{12}", r"y_{12}x_1"), ("1/2x", r"\frac{1}{2x}"), ("1/2(x)", r"\frac{x}{2}"),
    (r"a/b+c", r"\frac{a+bc}{b}"), (r"\frac{x}{y}z", r"\frac{xz}{y}"), (r"\sqrt[3]{x}", "x^{1/3}"), (r"\sqrt{-2}", r"i\sqrt{2}"), (r"(-8)^{1/3}", "-2"),
    ("1+-2", "-1"), ("5--3", "8"), (r"(3+2i)(1-i)", "5-i"), (r"x\div y", r"\frac{x}{y}"), ("0.25x", r"\frac{x}{4}"), ("1:2", "0.5"),
    (r"\lfloor2.5\rfloor+\lceil2.5\rceil", "5"), (r"\sinh x", r"\frac{e^x-e^{-x}}{2}"), (r"\exp(x)", "e^x"), (r"\sqrt{2}3", r"\sqrt{18}"),
]  # fmt: skip


@pytest.mark.parametrize(("left", "right"), SAME_EXPRESSIONS)
def test_expressions_are_what_school_says(left, right):
    assert values.worth(normalize(left)) is not None
    assert equal(left, right) is equal(right, left) is True
    assert equal(left, rf"{right}+\frac{{1}}{{1000}}") is equal(left, rf"{right}+x") is False


@pytest.mark.parametrize("text", [r"\sum_{n=1}^{3}n", r"\int_0^1xdx", r"\iint xdxdy", r"\lim_{x\to0}x", r"\gcd(4,6)"])
def test_what_is_not_evaluated_is_undecided_but_the_same_as_its_own_text(text):
    assert (equal(text, text), equal(text, "6"), equal("6", text)) == (True, None, None)
    assert classes_of(MathGrader(), [text, "6", text], item()) == [0, 1, 0]


def test_a_question_with_many_answers_takes_one_reading_for_each(monkeypatch):
    evaluated, evaluate = [], values.evaluate
    monkeypatch.setattr(values, "evaluate", lambda *given: evaluated.append(given) or evaluate(*given))
    answers = [rf"\sqrt{{{number}}}x+\frac{{y}}{{{number}}}" for number in range(2, 130)]
    others = [rf"\frac{{y}}{{{number}}}+x\sqrt{{{number}}}" for number in range(2, 130)]
    asked = item(answers[5])
    started = time.process_time()
    assert classes_of(MathGrader(), answers + others, asked) == [*range(128), *range(128)]
    assert [MathGrader().grade(answer, asked) for answer in answers + others].count(True) == 2
    assert len(evaluated) == 256
    assert time.process_time() - started < 3


def test_what_cannot_be_decided_is_not_tried_again(monkeypatch):
    evaluated, evaluate = [], values.evaluate
    monkeypatch.setattr(values, "evaluate", lambda *given: evaluated.append(given) or evaluate(*given))
    text, asked = r"(10^9)!+\sqrt{7}", item(r"\sqrt{7}")
    for _ in range(3):
        assert MathGrader().grade(text, asked) is MathGrader().grade("7", item(text)) is None
        assert MathGrader().key(text, asked) == ("undecided", text)
    assert len(evaluated) == 2  # the text and the gold answer


def test_rounding_errors_that_have_grown_leave_a_doubt():
    assert equal("0", r"\sqrt{10^{80}+1}-10^{40}") is None
    assert equal("0", r"\sqrt{2}-\frac{2}{\sqrt{2}}") is True
    assert equal("1", r"10^{90}(\sqrt{1+10^{-80}}-1)") is not True


# Hostile answers


def test_hostile_answers_end_in_a_verdict_and_do_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grader = MathGrader()
    assert len(HOSTILE) >= 25
    started = time.monotonic()
    verdicts = {name: grader.grade(normalize(text) or "?", item("12", name=name)) for name, text in HOSTILE.items()}
    assert True not in verdicts.values()
    assert verdicts["tower of powers"] is None
    assert verdicts["python"] is False
    assert not (tmp_path / "SENTINEL").exists()
    assert not Path("/SENTINEL").exists()
    assert time.monotonic() - started < 0.2 * len(HOSTILE)
    assert grader.grade("12", item("12")) is True


PIECES = ["one hundred ", "one and ", "twenty-", "1 ", "1,", "half ", "a ", "zero thousand ", "1/"]


@pytest.mark.parametrize("piece", PIECES)
def test_a_thousand_characters_of_number_words_are_read_at_once(piece):
    started = time.process_time()
    digits_for_words((piece * 1_000)[:1_000])
    assert time.process_time() - started < 0.5


# Real gold answers


FORMS = (
    "so the answer is $\\boxed{%s}$.",
    "Adding up, we get 7 and then\n\\[\\boxed{%s}\\]",
    "%s",
    "We find that the final answer is $%s$.",
    "Therefore.\n#### %s",
)


@pytest.fixture(scope="module")
def golds():
    math = [record["answer"] for record in json.loads(slice_path("math500_first300.json").read_text())]
    lines = slice_path("gsm8k_test_first700.jsonl").read_text().splitlines()
    return [*math, *(json.loads(line)["answer"].rpartition("####")[2].strip() for line in lines)]


@pytest.mark.parametrize("form", FORMS)
def test_real_gold_answers_are_right_against_themselves(form, golds):
    assert len(golds) == 1000
    assert [gold for gold in golds if equal(gold, extract_math(form % gold) or "") is not True] == []


@pytest.mark.parametrize("seed", range(3))
def test_real_gold_answers_are_wrong_against_others_of_other_texts(seed, golds):
    others = random.Random(seed).sample(golds, len(golds))
    verdicts = [(equal(gold, other), gold, other) for gold, other in zip(golds, others, strict=True)]
    assert [case for case in verdicts if case[0] is None] == []
    assert [case for case in verdicts if case[0] and normalize(case[1]) != normalize(case[2])] == []


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
