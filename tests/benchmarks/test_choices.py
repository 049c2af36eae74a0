r"""Which choice a response gives: the letters' and texts' many forms, what is no choice, and hostile lengths."""

import itertools
import time
import tracemalloc

import pytest

from dps.benchmarks import BenchmarkConfig, Item, load_benchmark
from dps.benchmarks.choices import find_boxed_letter, find_choice, normal_text, read_choice
from dps.benchmarks.grading import ChoiceGrader, read
from tests.benchmarks.data import slice_path

PHYSICS = [r"B = \mu_0 I / 2", "A single electron", "$I = V/R$", "5 m/s"]
LETTERED = ["c", "a", "d", "b"]
ELEMENTS = ["N", "C", "O", "H"]
CLAIMS = ["A and B", "B and C", "A, B and C", "C"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{A single electron}", "B"),
        (r"\boxed{\text{a single electron.}}", "B"),
        (r"\boxed{B = \mu_0 I} and so on. The answer is D", "D"),
        (r"\boxed{B = \mu_0 I}", None),
        (r"\boxed{B=\mu_0 I/2}", "A"),
        (r"\boxed{$I=\frac{V}{R}$}", "C"),
        (r"\boxed{I = V/R}", "C"),
        (r"\boxed{5\,\mathrm{m/s}}", "D"),
        (r"\boxed{5~\text{m/s}}", "D"),
        ("B is wrong. C is wrong. So A.", "A"),
        ("That leaves the field. Therefore, it must be D.", "D"),
        ("I think it's B.", "B"),
        ("It is a vitamin. Vitamin A.", None),
        ("The answer is B and not A", "B"),
        ("The answer is B and A", None),
        ("Ans: B", "B"),
        ("It should be B.", "B"),
        ("The correct statement is B.", "B"),
        ("Option b is right", "B"),
        ("=> B", "B"),
        ("Some thoughts.\n→ B", "B"),
        ("Ans. (B)", "B"),
        ("The solution is B.", "B"),
        ("The solution is a mixture of B.", None),
        ("option B", "B"),
        ("Option B", "B"),
        ("C) 5", "C"),
        ("(C) 5", "C"),
        ("D: 5 m/s", "D"),
        (r"\boxed{b}", "B"),
        (r"\boxed{\text{Option B}}", "B"),
        (r"\fbox{C}", "C"),
        (r"\boxed C", "C"),
        (r"\boxed{{C}}", "C"),
        (r"\boxed{\boxed{C}}", "C"),
        (r"$$\boxed{\,C\,}$$", "C"),
        ("(C)", "C"),
        ("**Answer: C**", "C"),
        ("**Answer**: C", "C"),
        ("**Final answer:** (C) 5 apples", "C"),
        ("Answer: (b)", "B"),
        ("answer: b", "B"),
        ("Answer:\n\nC", "C"),
        ("The correct choice is option D.", "D"),
        ("The correct option is (D), because of that.", "D"),
        ("The best choice is therefore D", "D"),
        (r"\boxed{\textbf{(A)}}", "A"),
        (r"\boxed{\mathrm{C}}", "C"),
        (r"\boxed{\mathbf{\text{C}}}", "C"),
        (r"\boxed{\text{C) } 5}", "C"),
        (r"\boxed{\text{C: it is so}}", "C"),
        ("Some thoughts.\nA.", "A"),
        ("Some thoughts.\n### A", "A"),
        ("Some thoughts.\n- **D**", "D"),
        ("Some thoughts.\nSo it must be D.", "D"),
        ("The answer is A single electron", "B"),
        ("The answer is a single electron.", "B"),
        ("The answer is a single electron, because it is light.", "B"),
        ("The answer is A because it is.", "A"),
        ("The answer is B cells.", None),
        ("The answer is B-field.", None),
        ("The answer is B, since it is so.", "B"),
        ("The answer is $\\mathbf{B}$.", "B"),
        ('The answer is "B".', "B"),
        ("The answer to what is asked is B.", "B"),
        ("The answer is not B. The answer is D.", "D"),
        ("The answer is D. It is not that the answer is not B.", "D"),
        ("The answer cannot be A.", None),
        ("Option B is correct.", "B"),
        ("B is the correct answer.", "B"),
        ("Therefore (D) is the best answer.", "D"),
        ("If A is correct, then so is the rest.", None),
        ("So the best fit is clearly option C.", "C"),
        ("I choose option C.", "C"),
        ("We choose a coordinate system.", None),
        ("It must be (A) or (C), so (C)", "C"),
        ("B\n\nBecause it is so, and f(A) is small.", "B"),
        ("B) A single electron\n\nBecause it is.", "B"),
        ("A. First we look at the field.\nThen at the rest.", None),
        ("The answer is (B).\nProblem: another\nThe answer is (C).", "B"),
        ("B\n\nAnswer the following multiple choice question. Which?\n\n\\boxed{C}", "B"),
        (r"the answer is \boxed{C", "C"),
        ("A and B", None),
        (r"\boxed{A and B}", None),
        (r"\boxed{A, B}", None),
        (r"\boxed{(A) and (B)}", None),
        (r"\boxed{A/B}", None),
        (r"\boxed{AB}", None),
        (r"\boxed{A} and \boxed{B}", None),
        (r"$\boxed{A}$ or $\boxed{B}$.", None),
        (r"\boxed{A}, no: \boxed{\text{C}}.", "C"),
        ("The answer is A and B.", None),
        ("The answer is (A) or (B).", None),
        ("The answers are A, B.", None),
        ("Both (A) and (B).", None),
        ("It is A or B.", None),
        ("A single electron goes round.", None),
        ("A good question.", None),
        ("A) one\nB) two\nC) three\nD) four", None),
        ("(A) one\n(B) two\n(C) three\n(D) four", None),
        ("A\nB\nC\nD", None),
        ("Option A: small. \nOption B: large.", None),
        ("Option B does not fit, option C is wrong.", None),
        ("E", None),
        (r"\boxed{E}", None),
        (r"\boxed{}", None),
        ("", None),
        ("I do not know.", None),
    ],
)
def test_letters_and_texts_are_told_apart(text, letter):
    assert find_choice(text, PHYSICS) == letter


GIVES_C = [
    "The answer is **C**", "The answer is C)", "the correct answer is (c) 5", r"Answer is: $\boxed{\text{(C)}}$",
    "ANSWER: C", "Answer = C", "Answer: Option C", "Final Answer: The final answer is C. I hope it is correct.",
    "Therefore, the answer is C: 5", "C is correct because", "Choice C is the right answer", "correct answer: C. 5",
    r"\boxed{C.}", r"\boxed{\text{C}.}", r"\boxed{(\text{C})}", r"\boxed{\textbf{C) }5}", r"\boxed{\mathbf{(C)}\ 5}",
    r"\boxed{\text{The answer is C}}", r"\boxed{\text{choice } C}", r"\boxed{$C}", r"\boxed{$C$}", r"\boxed {C}",
    r"\\boxed{C}", "**C**", "c", "`C`", "[C]", "{C}", "(C", "C - 5", "Answer C", "answer - C", "I'd go with C.",
    "I would select (C)", "My answer: C", "Selected option: C", "So, C is the answer.", "It's C.", "It is (C).",
    "Hence C.", "Thus the answer should be C", "that leaves option C", "leaving only (C)", "**C.**", "C.", "C:",
    "Option C.", "Option (C)", "option c", "choice c", "The answer is $C$.", r"The answer is \(C\)",
    r"The answer is \textbf{C}", r"\textbf{C}", r"$\text{C}$", "The answer is C, not D.",
    "The answer is either A or B, but since x, it is C.", "The answer is not A but C.", "Only C is correct.",
    "A is incorrect, B is incorrect, C is correct, D is incorrect.", "### Answer\nC", "### Final Answer:\n**C) 5**",
    "The correct answer is:\n\n**C) $I = V/R$**\n\nThis is since it is.",
    "Answer: C\n\nExplanation: A single electron is not.", "Answer: C) 5\nOption A is wrong.", "<answer>C</answer>",
    "The answer is option C: I = V/R.", "The answer is I = V/R.", "The correct answer is $I=V/R$, Ohm's law.",
    "so the current is I = V/R, which is option C.", "Which corresponds to C.", "This matches choice (C).",
    "Answer choice C", "So the answer is\n$$\n\\boxed{\\text{C}}\n$$", "So the answer is\n\nC\n\nas said.",
    "The letter is C", "The answer is C\\", r"$\boxed{C}$ $\boxed{C}$", r"\boxed{\text{I=V/R}}",
    "\\boxed{C}\n\nQuestion: next one\n\\boxed{A}", r"Final answer: \boxed{\mathrm{(C)\;I=V/R}}",
    r"\boxed{C \text{ (Ohm)}}", r"\boxed{\text{C (Ohm's law)}}", r"\boxed{C\text{ }}", r"\boxed{\large C}",
    r"\boxed{\Large\textbf{C}}", r"\boxed{C\!}", r"\boxed{\;C\;}", "$C$ is the correct option.",
    "The correct answer is therefore **option (C)**.", "**Correct answer: (C) I = V/R**", "The answer is C!",
    "The answer is “C”.", "The answer is 'C'.", "the answer is c",
]  # fmt: skip
GIVES_NONE = [
    "The answer is 42.", "Neither A nor C is correct.", "Both B and C are correct.", "B or C",
    "The answer is B or C.", r"\boxed{B, C}", r"\boxed{B,C}", r"\boxed{\text{B and C}}", r"\boxed{\text{A, B, C}}",
    r"\boxed{B\text{ and }C}", "The answer is A, B and C.", "Answer: B/C", "Answer: (B), (C)", "answer: B & C",
    "A single one.", r"\boxed{A single}", r"\boxed{A \cdot B}", r"\boxed{A+B}", r"\boxed{C_2}", r"\boxed{B^2}",
    r"\boxed{A(x)}", r"\boxed{D = 5}", r"\boxed{C-D}", r"\boxed{C'}", "The answer is A x B", "The answer is D/2.",
    "The answer is D_2.", "I think so", r"\boxed{\text{none}}", "None of A, B, C or D.",
    "The answer is a mixture of B and C.", "A. B. C. D.", "A B C D", "The answer is A+", "The answer is a good one.",
    "Is the answer A?", "Answer: A or not A", "f(A)", "P(B)=1", "the answer is A-type", "The answer is A′",
    r"\boxed{A \text{ or } B}", r"\boxed{\text{(A) or (B)}}", r"\boxed{\text{Options A and B}}",
    "Options B and C are right.", "The answer is C = I",
]  # fmt: skip


@pytest.mark.parametrize(("texts", "letter"), [(GIVES_C, "C"), (GIVES_NONE, None)])
def test_many_ways_to_give_a_letter_and_to_give_none(texts, letter):
    assert {text: find_choice(text, PHYSICS) for text in texts} == dict.fromkeys(texts, letter)


@pytest.mark.parametrize(
    ("choices", "text", "letter"),
    [
        (LETTERED, r"\boxed{c}", "A"),  # a small letter is the text, where there is such a text
        (LETTERED, r"\boxed{C}", "C"),
        (LETTERED, "The answer is c.", "A"),
        (LETTERED, "**C) d**", "C"),
        (ELEMENTS, r"\boxed{C}", "C"),  # a capital letter was asked for
        (ELEMENTS, r"\boxed{N}", "A"),
        (ELEMENTS, r"\boxed{\mathrm{O}}", "C"),
        (CLAIMS, r"\boxed{A and B}", "A"),
        (CLAIMS, r"\boxed{\text{A, B and C}}", "C"),
        (CLAIMS, "The answer is A and B.", "A"),
        (CLAIMS, r"\boxed{A and C}", None),
        (["Mutant 1", "C2", "C2v", "D4h"], r"\boxed{C2}", "B"),
        (["Mutant 1", "C2", "C2v", "D4h"], r"\boxed{C_{2v}}", None),
        (["Mutant 1", "C2", "C2v", "D4h"], r"\boxed{B C2}", "B"),
        (["10^-4 eV", "10^-11 eV", "1.8*1e5 GeV", "~12.6"], r"\boxed{10^{-4}\ \text{eV}}", "A"),
        (["10^-4 eV", "10^-11 eV", "1.8*1e5 GeV", "~12.6"], r"\boxed{10⁻¹¹ eV}", "B"),
        (["10^-4 eV", "10^-11 eV", "1.8*1e5 GeV", "~12.6"], r"\boxed{1.8 \times 1e5\, GeV}", "C"),
        (["10^-4 eV", "10^-11 eV", "1.8*1e5 GeV", "~12.6"], r"\boxed{\sim 12.6}", "D"),
        ([r"$\frac{11}{2}$", r"$\frac{1}{12}$", r"\alpha\hbar", "(1+n*v)/(n+v)"], r"\boxed{\dfrac{1}{12}}", "B"),
        ([r"$\frac{11}{2}$", r"$\frac{1}{12}$", r"\alpha\hbar", "(1+n*v)/(n+v)"], r"\boxed{11/2}", "A"),
        ([r"$\frac{11}{2}$", r"$\frac{1}{12}$", r"\alpha\hbar", "(1+n*v)/(n+v)"], r"\boxed{α ℏ}", "C"),
        ([r"$\frac{11}{2}$", r"$\frac{1}{12}$", r"\alpha\hbar", "(1+n*v)/(n+v)"], r"\boxed{\frac{1+n v}{n+v}}", None),
        ([r"$\frac{11}{2}$", r"$\frac{1}{12}$", r"\alpha\hbar", "(1+n*v)/(n+v)"],
         r"\boxed{\frac{1+n \cdot v}{n+v}}", "D"),
        (["mM", "MM", "x", "y"], r"\boxed{\text{MM}}", "B"),
        (["mM", "MM", "x", "y"], r"\boxed{mm}", None),  # two choices differ in case alone
        (["red", "red", "x", "y"], r"\boxed{red}", None),
        (["44%", "40%", "48%", "46%"], r"\boxed{40\%}", "B"),
        (["1 and 2", "1, 2 and 4", "3 and 4", "1"], "The answer is 1, 2 and 4.", "B"),
        (["weaker - slower", "stronger – slower", "x", "y"], "The answer is weaker – slower.", "A"),
        (["A = NaHSO3, B = HCl", "A = H3O+, B = HCl", "x", "y"], r"\boxed{A = H3O+, B = HCl}", "B"),
        (["A = NaHSO3, B = HCl", "A = H3O+, B = HCl", "x", "y"], "Answer: A = NaHSO_3, B = HCl", None),
        (["yes", "no"], r"\boxed{C}", None),
        (["w", "x", "y", "z", "v", "u", "t", "s", "r", "q"], "The answer is (J).", "J"),
        (["w", "x", "y", "z", "v", "u", "t", "s", "r", "q"], "The answer is I think hard to say.", None),
    ],
)  # fmt: skip
def test_choices_that_look_like_letters_or_are_formulas(choices, text, letter):
    assert find_choice(text, choices) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{B}", "B"), (r"\boxed{(D)}", "D"), (r"\boxed{\textbf{(A)}}", "A"), (r"\boxed{{C}}", "C"),
        (r"\boxed{b}", None), (r"\boxed{Option B}", None), (r"\fbox{B}", None), (r"\boxed{D) 5 m/s}", None),
        (r"\boxed{5 m/s}", None), (r"\boxed{A} or \boxed{B}", None), ("(B)", None), (r"\boxed{B", "B"),
    ],
)  # fmt: skip
def test_the_strict_form_is_the_letter_alone_in_a_box(text, letter):
    assert find_boxed_letter(text, PHYSICS) == letter


def test_a_gold_answer_may_be_a_letter_or_a_text():
    for gold in ("B", "b", "(B)", "A single electron", "a single electron."):
        item = Item("q", "?", gold, {"choices": PHYSICS})
        assert read(ChoiceGrader(), r"\boxed{B}", item).correct is True
        assert read(ChoiceGrader(), r"\boxed{A}", item).correct is False
        assert read(ChoiceGrader(), "no idea", item).correct is False
    for gold in (None, "E", "another text"):
        assert read(ChoiceGrader(), r"\boxed{B}", Item("q", "?", gold, {"choices": PHYSICS})).correct is None


def test_every_choice_is_its_own_text():
    for choices in (PHYSICS, CLAIMS, ELEMENTS[:1] + ELEMENTS[2:], ["~ 3.2", "~3.3", "(1+n*v)/(n-v)", "-(1/2) kq^2 R"]):
        for letter, choice in zip("ABCD", choices, strict=False):
            if choice not in ("C",):
                assert read_choice(choice, choices) == letter
                assert find_choice(rf"\boxed{{{choice}}}", choices) == letter
                assert find_choice(f"{letter}) {choice}", choices) == letter
    assert normal_text(r"\left( 1 \right)") == normal_text("(1)")


def test_every_choice_of_the_real_questions_is_found_by_letter_and_by_text():
    path = str(slice_path("gpqa_diamond_first120.jsonl"))
    for item in load_benchmark(BenchmarkConfig(name="gpqa", path=path)).items:
        choices = item.metadata["choices"]
        assert ChoiceGrader().grade(item.gold, item) is True
        for letter, choice in zip("ABCD", choices, strict=True):
            texts = [rf"\boxed{{{letter}}}", f"The answer is ({letter}).", f"**Answer: {letter}) {choice}**"]
            texts += [f"The correct answer is {letter}, because.", rf"\boxed{{\text{{{letter}. {choice}}}}}"]
            by_text = [rf"\boxed{{{choice}}}", f"Some thoughts.\n\nThe answer is: {choice}"]
            # A text that is or ends in what no box can hold, or that another choice has, is asked for by letter alone.
            unique = [normal_text(c).casefold() for c in choices].count(normal_text(choice).casefold()) == 1
            if unique and "\n" not in choice and choice.count("{") == choice.count("}"):
                texts += by_text
            assert {text: find_choice(text, choices) for text in texts} == dict.fromkeys(texts, letter), choices


PIECES = [
    r"\boxed{", r"\boxed{A", r"\boxed{A}", r"\boxed{A single }", r"\fbox{A} and ", "{", "}", "answer ", "answer is ",
    "The answer is A and ", "The answer is not A, ", "(A) ", "(A) or ", "option A ", "option ", "A is correct if ",
    "A\n",
    "(", "$", "\\", r"\text{", r"\frac{", "**", "\n", " ", "so ", "is the ", "choose ", r"\boxed ", "A, B, ", "⁻", "^{",
    "\nQ ", "\nProblem 1",
]  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
def test_a_million_characters_are_read_in_time_and_memory(piece):
    text = piece * (1_000_000 // len(piece))
    item = Item("q", "?", "B", {"choices": PHYSICS})
    started = time.process_time()
    read(ChoiceGrader(), text, item)
    read(ChoiceGrader(), "answer is " + text, item)
    read(ChoiceGrader(), r"\boxed{" + text + "}", item)
    assert time.process_time() - started < 3
    tracemalloc.start()
    read(ChoiceGrader(), text, item)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


def test_nested_boxes_take_time_and_memory_in_proportion():
    text = r"\boxed{" * 100_000 + "B" + "}" * 100_000
    started = time.process_time()
    assert find_choice(text, PHYSICS) == "B"
    assert find_choice("\nQ" + " " * 1_000_000 + r"\boxed{B}", PHYSICS) == "B"
    assert time.process_time() - started < 2


def test_classes_do_not_depend_on_order():
    item = Item("q", "?", "B", {"choices": PHYSICS})
    for answers in itertools.permutations(["B", "B", "C", None]):
        classes = ChoiceGrader().classes(answers, item)
        assert [classes[answers.index("B")] == c for c in classes] == [a == "B" for a in answers]
