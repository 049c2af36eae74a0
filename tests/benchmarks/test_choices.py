"""Which choice a response gives: the letters' and texts' many forms, what is no choice, and hostile lengths."""

import time
import tracemalloc

import pytest

from dps.benchmarks import Item
from dps.benchmarks.choices import ChoiceGrader, find_boxed_letter, find_choice, normal_text, read_choice
from dps.benchmarks.grading import read
from tests.benchmarks.data import cases, load, slice_path
from tests.benchmarks.data import classes as classes_of

CASES = cases("choices")
PHYSICS = [r"B = \mu_0 I / 2", "A single electron", "$I = V/R$", "5 m/s"]


@pytest.mark.parametrize("table", CASES["flexible"], ids=lambda table: table["choices"][0])
def test_letters_and_texts_are_told_apart(table):
    texts = table["texts"]
    assert {text: find_choice(text, table["choices"]) for text, _ in texts} == dict(texts)


def test_the_strict_form_is_the_letter_alone_in_a_box():
    assert {text: find_boxed_letter(text, PHYSICS) for text, _ in CASES["strict"]} == dict(CASES["strict"])


@pytest.mark.parametrize(("text", "answer", "strict"), CASES["both"])
def test_the_grader_reads_both_forms(text, answer, strict):
    reading = read(ChoiceGrader(), text, Item("q", "?", "D", {"choices": ["a", "b", "c", "right"]}))
    assert (reading.answer, reading.strict_answer) == (answer, strict)
    assert reading.correct is (answer == "D")


def test_a_gold_answer_may_be_a_letter_or_a_text():
    for gold in ("B", "b", "(B)", "A single electron", "a single electron."):
        item = Item("q", "?", gold, {"choices": PHYSICS})
        verdicts = [read(ChoiceGrader(), text, item).correct for text in (r"\boxed{B}", r"\boxed{A}", "no idea")]
        assert verdicts == [True, False, False]
    for gold in (None, "E", "another text"):
        assert read(ChoiceGrader(), r"\boxed{B}", Item("q", "?", gold, {"choices": PHYSICS})).correct is None


def test_every_choice_is_its_own_text():
    claims = ["A and B", "B and C", "A, B and C"]
    for choices in (PHYSICS, claims, ["N", "O", "H"], ["~ 3.2", "~3.3", "(1+n*v)/(n-v)", "-(1/2) kq^2 R"]):
        for letter, choice in zip("ABCD", choices, strict=False):
            assert read_choice(choice, choices) == letter
            assert find_choice(rf"\boxed{{{choice}}}", choices) == letter
            assert find_choice(f"{letter}) {choice}", choices) == letter
    assert normal_text(r"\left( 1 \right)") == normal_text("(1)")


def test_every_choice_of_the_real_questions_is_found_by_letter_and_by_text():
    for item in load("gpqa", slice_path("gpqa_diamond_first120.jsonl")).items:
        choices = item.metadata["choices"]
        assert ChoiceGrader().grade(item.gold, item) is True
        for letter, choice in zip("ABCD", choices, strict=True):
            texts = [rf"\boxed{{{letter}}}", f"The answer is ({letter}).", f"**Answer: {letter}) {choice}**"]
            texts += [f"The correct answer is {letter}, because.", rf"\boxed{{\text{{{letter}. {choice}}}}}"]
            # A text that is or ends in what no box can hold, or that another choice has, is asked for by letter alone.
            unique = [normal_text(c).casefold() for c in choices].count(normal_text(choice).casefold()) == 1
            if unique and "\n" not in choice and choice.count("{") == choice.count("}"):
                texts += [rf"\boxed{{{choice}}}", f"Some thoughts.\n\nThe answer is: {choice}"]
            assert {text: find_choice(text, choices) for text in texts} == dict.fromkeys(texts, letter), choices


@pytest.mark.parametrize("piece", CASES["pieces"])
def test_long_responses_are_read_in_time_and_memory(piece):
    text = piece * (100_000 // len(piece))
    item = Item("q", "?", "B", {"choices": PHYSICS})
    started = time.process_time()
    for response in (text, "answer is " + text, r"\boxed{" + text + "}"):
        read(ChoiceGrader(), response, item)
    assert time.process_time() - started < 0.6
    tracemalloc.start()
    read(ChoiceGrader(), text[:50_000], item)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5e6


def test_nested_boxes_take_time_in_proportion():
    started = time.process_time()
    assert find_choice(r"\boxed{" * 100_000 + "B" + "}" * 100_000, PHYSICS) == "B"
    assert find_choice("\nQ" + " " * 1_000_000 + r"\boxed{B}", PHYSICS) == "B"
    assert time.process_time() - started < 2


def test_classes_are_the_letters():
    assert classes_of(ChoiceGrader(), ["B", None, "C", "B"], None) == [0, -1, 1, 0]
