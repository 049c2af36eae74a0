"""What a reasoning model thinks is no answer, for any grader; what it says afterwards is."""

import time
from dataclasses import replace

import pytest

from dps.benchmarks.benchmark import Item
from dps.benchmarks.generated import extract_arithmetic
from dps.benchmarks.grading import ChoiceGrader, OpenGrader, TextGrader, read
from dps.benchmarks.gsm8k import grader as number_grader
from dps.benchmarks.jsonl import grader as own_grader
from dps.benchmarks.mathematics import MathGrader
from dps.benchmarks.outputs import model_outputs
from dps.benchmarks.programs import CodeGrader
from dps.benchmarks.regrade import regrade
from dps.benchmarks.thinking import answer_part
from feature_store import Store
from tests.analysis.report.evaluations import write_store
from tests.factories import make_manifest, make_question

MARKS = [
    ("<think>", "</think>"),
    ("<think>\n", "\n</think>\n\n"),
    ("<Thinking>", "</THINKING>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
]
FUNCTION = {
    "prompt": "def two():\n    ",
    "test": "def check(candidate):\n    assert candidate() == 2\n",
    "entry_point": "two",
}
GRADERS = {
    "number": (number_grader(), Item("q", "?", "7"), r"\boxed{8} #### 8 The answer is 8.", "#### 7"),
    "math": (MathGrader(), Item("q", "?", r"\frac{1}{2}"), r"\boxed{3} and $x=4$", r"\boxed{\frac12}"),
    "choice": (
        ChoiceGrader(),
        Item("q", "?", "B", {"choices": ["one", "two"]}),
        r"\boxed{A} the answer is A",
        r"\boxed{B}",
    ),
    "text": (own_grader(["paris"]), Item("q", "?", "paris"), "#### London", "#### Paris"),
    "code": (
        CodeGrader(),
        Item("q", "?", "", FUNCTION),
        "```python\ndef two():\n    return 1\n```",
        "```python\ndef two():\n    return 2\n```",
    ),
    "arithmetic": (TextGrader(extract_arithmetic, extract_arithmetic), Item("q", "?", "7"), "3+5=8;#8", "3+4=7;#7"),
}


@pytest.mark.parametrize(("opened", "closed"), MARKS)
@pytest.mark.parametrize("name", GRADERS)
def test_only_what_follows_the_thinking_is_read(name, opened, closed):
    grader, item, wrong, right = GRADERS[name]
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
        found = read(grader, text, item, prompt)
        assert (found.answer, found.correct, found.strict_answer, found.strict_correct) == (None, False, None, False)


@pytest.mark.parametrize(
    ("text", "prompt", "said"),
    [
        ("It is 3.", "", "It is 3."),
        ("", "", ""),
        ("It is 3.", "?<think>\n\n</think>\n\n", "It is 3."),  # Qwen3 told not to think
        ("It is 3.", "What does <think> mean?\nAnswer:", "It is 3."),
        ("It is 3.", "Think within <think> and </think>.", "It is 3."),
        ("a</think>b</think>c", "", "c"),
        ("<think>a<think>b</think>c</think>d", "", "d"),
        ("<think>a</think><think>b</think>c", "", "c"),
        ("<think>a</think>b", "?<think>", "b"),  # opened twice
        ("Well. <think>a</think> 3", "", " 3"),
        ("<think>I close </reasoning> or [/THINK], then", "", None),
        ("<think>I could open <reasoning></think>3", "", "3"),
        ("<think>a</think>\n    return x", "", "\n    return x"),
        ("<THINK>a</Think>3", "", "3"),
        ("<think>", "", None),
        ("x < think > y and 2 <3", "", "x < think > y and 2 <3"),
        ("if a < thinker and b > c", "", "if a < thinker and b > c"),
        ("rethink[THINKER]<thinks>", "", "rethink[THINKER]<thinks>"),
        ("<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>3<|return|>", "", "3<|return|>"),
        ("<|channel>thought\na<channel|>3", "", "3"),
        ("3", "<|channel>thought\n", None),
    ],
)  # fmt: skip
def test_answer_parts(text, prompt, said):
    assert answer_part(text, prompt) == said


def test_a_model_that_is_stuck_costs_no_time():
    started = time.perf_counter()
    for piece in ("<think>", "< ", "</think>", "<|channel|>analysis", "<|channel|> ", "[THINK", "◁think▷"):
        answer_part(piece * 20_000, piece * 20_000)
    assert time.perf_counter() - started < 5


def stored(folder, texts, prompt):
    question = make_question(0, hidden_size=0)
    trajectories = tuple(replace(t, text=text) for t, text in zip(question.trajectories, texts, strict=False))
    return write_store(
        folder,
        make_manifest(kind="evaluation", benchmark={"name": "gsm8k"}),
        [replace(question, gold="7", prompt=prompt, trajectories=trajectories)],
    )


def test_stored_responses_stay_whole_and_their_prompt_counts(tmp_path):
    texts = ["#### 8</think>#### 7", "#### 7", "<think>#### 8</think>\n#### 7", "<think>#### 7"]
    folder = stored(tmp_path / "open", texts, "Q?<|assistant|><think>\n")
    regrade(folder, tmp_path / "graded")
    (question,) = Store.open(tmp_path / "graded")
    assert [t.text for t in question.trajectories] == texts
    assert [t.answer for t in question.trajectories] == ["7", None, "7", None]
    assert [t.correct for t in question.trajectories] == [True, False, True, False]
    assert [t.answer_class for t in question.trajectories] == [0, -1, 0, -1]
    closed = stored(tmp_path / "closed", texts, "Q?<|assistant|><think>\n\n</think>\n\n")
    regrade(closed, tmp_path / "graded-2")
    (question,) = Store.open(tmp_path / "graded-2")
    assert [t.answer for t in question.trajectories] == ["7", "7", "7", None]


def test_nobody_judges_what_was_only_thought(tmp_path):
    (output,) = model_outputs(Store.open(stored(tmp_path / "s", ["<think>Hm.</think>\n\nYes.", "<think>Hm"], "Q?")))
    assert output["output"] == "Yes."
    (nothing,) = model_outputs(Store.open(stored(tmp_path / "t", ["<think>Hm.", "<think>Hm"], "Q?")))
    assert nothing["output"] == ""
    assert read(OpenGrader(), "<think>Hm.</think>\n\nYes.", Item("q", "?", None)).answer == "Yes."
