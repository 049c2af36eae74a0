"""Generated multi-step arithmetic: the benchmark that the embedded model was trained on and the quickstart runs on.

A problem is drawn from a seed, so there is no data file. Questions are divided into three splits by a hash of their
text: the model's training corpus, the questions that controllers learn from and the questions of an evaluation can
never meet, whatever seeds are used. A problem also carries the steps of its solution, from which the script that trains
the embedded model makes the corpus.
"""

from __future__ import annotations

import hashlib
import json
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np

from dps.benchmarks.answers import TextGrader
from dps.benchmarks.benchmark import Benchmark, Item, Prompts
from dps.benchmarks.config import QUESTION_FIELD, BenchmarkConfig, check_config
from dps.benchmarks.mathematics import extract_number
from dps.benchmarks.prompts import NUMBER_CHAT
from dps.errors import InputError

Split = Literal["corpus", "train", "test"]
SPLITS: tuple[str, ...] = get_args(Split)

KINDS: dict[str, float] = {
    "chain": 0.28, "brackets": 0.20, "story": 0.20, "shop": 0.13, "remainder": 0.07, "compare": 0.05,
    "reversed": 0.035, "factor": 0.035,
}  # fmt: skip
"""Kinds of problems and the share of each. Nobody in the corpus masters the last two, so no number of trajectories
helps there: ``reversed`` is misread by nearly everybody, in the same way; of ``factor`` everybody knows only the form
of an answer."""

TONES: dict[str, float] = {"": 0.7, "Quick: ": 0.15, "Exactly: ": 0.15}
"""How a question may begin, and the share of each."""

MAX_VALUE = 9999
"""Largest number in any step."""

_DEFAULT_COUNT = 1000
"""How many questions where no limit is set."""
_NUM_DIGESTED = 32
"""A few questions tell one generator from another; the digest must not change when more are asked for."""
_NUM_BUCKETS = 16
_BUCKETS: dict[str, range] = {"corpus": range(0, 12), "train": range(12, 14), "test": range(14, 16)}

_NUM_STEPS = {2: 0.34, 3: 0.34, 4: 0.19, 5: 0.09, 6: 0.04}
"""Shares of numbers of steps, more often small: a step is about nine tokens."""
_STYLES = {"gentle": 0.22, "steep": 0.25, "mixed": 0.53}
"""Shares of small additions and subtractions, of products by two digits, and of both."""
_NAMES = ("Mia", "Ben", "Tom", "Lea", "Sam", "Ida")
_ITEMS = ("apples", "cards", "stones", "coins", "books", "shells")
_GOODS = ("pens", "cups", "lamps", "maps", "hats", "bags")
_SMALL_PRIMES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43)
_LARGE_PRIMES = tuple(n for n in range(47, 1000) if all(n % d for d in range(2, int(n**0.5) + 1)))

_T = TypeVar("_T")


class Step(NamedTuple):
    """One line of a solution, ``left op right``."""

    left: int
    """A number, or (``left_is_step``) the number of an earlier step whose result is meant; ``right`` likewise."""
    op: str
    """``+``, ``-``, ``*`` or ``%`` (remainder)."""
    right: int
    left_is_step: bool = False
    right_is_step: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem with its answer and its solution."""

    question: str
    answer: str
    """The right answer, an integer in canonical form."""
    kind: str
    """One of :data:`KINDS`."""
    level: int
    """Difficulty from 1 to 5, by the effort of the steps rather than by their number; see :func:`effort_of`."""
    steps: tuple[Step, ...]
    """A solution; the last step's result is the answer (in a ``factor`` problem the larger factor is)."""
    tone: str = ""
    """How the question begins: one of :data:`TONES`."""
    misreading: tuple[Step, ...] = ()
    """The solution of the question as it is usually misread; empty where it is not."""


class Draws:
    """Scalar draws from a NumPy generator, buffered: one call of the generator for thousands of draws."""

    def __init__(self, rng: np.random.Generator, buffer_size: int = 8192) -> None:
        self._rng = rng
        self._size = buffer_size
        self._values: list[float] = []

    def uniform(self) -> float:
        """Return a number in [0, 1)."""
        if not self._values:
            self._values = self._rng.random(self._size).tolist()
        return self._values.pop()

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.uniform() < probability

    def integer(self, low: int, high: int) -> int:
        """Return an integer from low to high, both included."""
        return low + int(self.uniform() * (high - low + 1))

    def choice(self, options: Sequence[_T]) -> _T:
        """Return one of the options, all equally likely."""
        return options[int(self.uniform() * len(options))]

    def weighted(self, shares: dict[_T, float]) -> _T:
        """Return a key with the probability that is its value; the values sum to 1."""
        left = self.uniform()
        for key, share in shares.items():
            left -= share
            if left < 0:
                return key
        return key


def generate_problems(split: Split, count: int, seed: int) -> list[Problem]:
    """Draw problems with different questions from one split; a smaller count gives the beginning of a larger one's.

    ValueError for an unknown split.
    """
    if split not in _BUCKETS:
        raise ValueError(f"expected a split among {', '.join(SPLITS)}, got {split!r}")
    draws = Draws(np.random.default_rng([seed, SPLITS.index(split)]))
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = draw_problem(draws)
        if problem.question not in problems and split_of(problem.question) == split:
            problems[problem.question] = problem
    return list(problems.values())


def split_of(question: str) -> str:
    """Return the split that a question belongs to, by a hash of its text without the tone."""
    bare = next(question.removeprefix(tone) for tone in reversed(TONES) if question.startswith(tone))
    bucket = hashlib.blake2b(bare.encode(), digest_size=8).digest()[0] % _NUM_BUCKETS
    return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)


def prompt_for(question: str) -> str:
    """Return the prompt that the embedded model answers."""
    return f"Q: {question}\nA: "


PROMPTS = Prompts(NUMBER_CHAT, prompt_for(QUESTION_FIELD))


def extract_answer(text: str) -> str | None:
    """Return the integer after the last ``#`` in canonical form, None if there is none or something else follows.

    >>> extract_answer("14+23=37;37*3=111;#0111")
    '111'
    """
    _, mark, tail = text.rpartition("#")
    number = re.fullmatch(r"\s*(-?[0-9]{1,100})\s*", tail) if mark else None
    return str(int(number[1])) if number else None


def _extract_any(text: str) -> str | None:
    """Return a response's answer: the embedded model's form first, then the strict forms that other models use."""
    return extract_answer(text) or extract_number(text, flexible=False)


GRADER = TextGrader(_extract_any, extract_answer)


def load(config: BenchmarkConfig) -> Benchmark:
    """Generate the questions; a larger limit adds questions and changes none.

    InputError if a setting cannot be meant.
    """
    check_config(config, SPLITS)
    if config.path is not None:
        raise InputError(
            f"Expected no benchmark.path, since arithmetic questions are generated, got {config.path}: "
            "take it out, or set benchmark.name to gsm8k or jsonl."
        )
    seed = config.seed or 0  # unset and 0 are the same questions
    end = config.offset + (config.limit or _DEFAULT_COUNT)
    problems = generate_problems(config.split, max(end, _NUM_DIGESTED), seed)
    items = [
        Item(f"arithmetic-{config.split}-{seed}-{i:05d}", p.question, p.answer, {"kind": p.kind, "level": p.level})
        for i, p in enumerate(problems)
    ]
    content = json.dumps([(item.question, item.gold) for item in items[:_NUM_DIGESTED]]).encode()
    return Benchmark(
        config=replace(config, seed=seed),
        items=items[config.offset : end],
        source="generated",
        sha256=hashlib.sha256(content).hexdigest(),
        chat_template=config.template or PROMPTS.chat,
        plain_template=config.template or PROMPTS.plain,
        grader=GRADER,
    )


def apply(left: int, op: str, right: int) -> int:
    """Return ``left op right``; a remainder has the divisor's sign, and is 0 where the divisor is 0."""
    if op == "%":
        return left % right if right else 0
    return {"+": operator.add, "-": operator.sub, "*": operator.mul}[op](left, right)


def results_of(steps: Sequence[Step]) -> list[int]:
    """Return the result of every step."""
    results: list[int] = []
    for step in steps:
        left, right = _operands(step, results)
        results.append(apply(left, step.op, right))
    return results


def _operands(step: Step, results: Sequence[int]) -> tuple[int, int]:
    return (
        results[step.left] if step.left_is_step else step.left,
        results[step.right] if step.right_is_step else step.right,
    )


def effort_of(steps: Sequence[Step]) -> float:
    """Return how much work a solution is: a sum over steps.

    A product counts by its smaller factor (up to 5: 0.8, up to 10: 1.4, above: 2.6), a remainder 1.6, a sum or
    difference 0.4 if one side has a single digit and 0.8 otherwise. So six small additions are less than three products
    with two digits.
    """
    effort, results = 0.0, results_of(steps)
    for step in steps:
        smaller = min(_operands(step, results))
        if step.op == "*":
            effort += 0.8 if smaller <= 5 else 1.4 if smaller <= 10 else 2.6
        else:
            effort += 1.6 if step.op == "%" else 0.4 if smaller < 10 else 0.8
    return effort


def draw_problem(draws: Draws) -> Problem:
    """Draw one problem of any split."""
    kind = draws.weighted(KINDS)
    problem = _DRAW[kind](draws)
    tone = draws.weighted(TONES)
    return replace(problem, question=tone + problem.question, tone=tone)


def _problem(question: str, kind: str, steps: Sequence[Step], misreading: Sequence[Step] = ()) -> Problem:
    effort = effort_of(steps)
    level = 1 + sum(effort >= bound for bound in (1.5, 2.4, 3.3, 4.6))
    return Problem(question, str(results_of(steps)[-1]), kind, level, tuple(steps), misreading=tuple(misreading))


def _draw_run(draws: Draws, style: str, start: int, num_steps: int) -> Iterator[Step]:
    """Draw operations on a running value, such that the results stay within what the task uses."""
    value = start
    for index in range(num_steps):
        u = draws.uniform()
        if style == "steep" and 2 <= value <= 60 and u < 0.7:
            op, operand = "*", draws.integer(11, 19)
        elif style == "mixed" and 2 <= value <= 120 and u < 0.4:
            op, operand = "*", draws.integer(2, 9)
        else:
            low, high = (2, 9) if style == "gentle" else (3, 60)
            op = "-" if value > low + 1 and draws.chance(0.45) else "+"
            operand = draws.integer(low, high if op == "+" else min(high, value - 1))
        value = apply(value, op, operand)
        yield Step(index - 1, op, operand, left_is_step=True) if index else Step(start, op, operand)


def _draw_chain(draws: Draws) -> Problem:
    """Draw ``From left to right: 14+23*3-5``."""
    style = draws.weighted(_STYLES)
    num_steps = (
        draws.integer(3, 6) if style == "gentle" else min(4 if style == "steep" else 6, draws.weighted(_NUM_STEPS))
    )
    start = draws.integer(3, 30 if style == "steep" else 60)
    steps = list(_draw_run(draws, style, start, num_steps))
    text = "".join(f"{step.op}{step.right}" for step in steps)
    return _problem(f"From left to right: {start}{text}", "chain", steps)


class _Tree(NamedTuple):
    """A drawn expression: its text, its value, how loosely it binds, and where its value comes from."""

    text: str
    value: int
    looseness: int
    reference: int
    is_step: bool


def _draw_tree(draws: Draws, num_steps: int, steps: list[Step], digits: int) -> _Tree | None:
    """Draw an expression of that many operations and append its steps; None where a value leaves the allowed range."""
    if num_steps == 0:
        number = draws.integer(2, 9) if digits == 1 else draws.integer(3, 60)
        return _Tree(str(number), number, 0, number, False)
    op = "*" if digits > 1 and draws.chance(0.38) else "+" if draws.chance(0.55) else "-"
    num_right = 0 if num_steps == 1 or draws.chance(0.55) else draws.integer(1, min(2, num_steps - 1))
    left = _draw_tree(draws, num_steps - 1 - num_right, steps, digits)
    right = left and _draw_tree(draws, num_right, steps, 1 if op == "*" and not draws.chance(0.3) else digits)
    if left is None or right is None:
        return None
    value = apply(left.value, op, right.value)
    if op == "*" and (
        not 2 <= right.value <= 19 or right.value == 10 or left.value > (120 if right.value < 10 else 60)
    ):
        return None
    if not 1 <= value <= MAX_VALUE or (op != "*" and right.value > 150):
        return None
    looseness = 1 if op == "*" else 2
    left_text = f"({left.text})" if left.looseness > looseness else left.text
    bracket_right = right.looseness > looseness or (right.looseness == looseness and op != "+")
    right_text = f"({right.text})" if bracket_right else right.text
    steps.append(Step(left.reference, op, right.reference, left.is_step, right.is_step))
    return _Tree(f"{left_text}{op}{right_text}", value, looseness, len(steps) - 1, True)


def _draw_brackets(draws: Draws) -> Problem:
    """Draw ``Compute (14+23)*3-(8+5)``, with the usual precedence and at least one pair of brackets."""
    digits = 1 if draws.chance(0.2) else 2
    num_steps = draws.weighted(_NUM_STEPS)
    while True:
        steps: list[Step] = []
        tree = _draw_tree(draws, num_steps, steps, digits)
        if tree is not None and "(" in tree.text:
            return _problem(f"Compute {tree.text}", "brackets", steps)


def _draw_story(draws: Draws) -> Problem:
    """Draw a word problem about one person's things, sometimes with a sentence that does not matter."""
    style = draws.weighted(_STYLES)
    num_steps = draws.integer(2, 5) if style == "gentle" else min(4, draws.weighted(_NUM_STEPS))
    name, friend = _pair(draws, _NAMES)
    items, others = _pair(draws, _ITEMS)
    start = draws.integer(3, 30 if style == "steep" else 60)
    sentences, steps = [f"{name} has {start} {items}."], []
    for step in _draw_run(draws, style, start, num_steps):
        steps.append(step)
        n = step.right
        options = {
            "+": (f"{name} finds {n} more.", f"{friend} brings {n} more.", f"{name} buys {n}."),
            "-": (f"{name} loses {n}.", f"{name} gives {n} to {friend}.", f"{name} sells {n}."),
            "*": (f"Then there are {n} times as many.",),
        }
        sentences.append(draws.choice(options[step.op]))
    if draws.chance(0.3):
        sentences.insert(draws.integer(1, len(sentences)), f"{friend} has {draws.integer(3, 60)} {others}.")
    sentences.append(f"How many {items} has {name} now?")
    return _problem(" ".join(sentences), "story", steps)


def _draw_shop(draws: Draws) -> Problem:
    """Draw a purchase: amounts times prices, added up, sometimes with a discount or change."""
    name = draws.choice(_NAMES)
    num_goods = 1 if draws.chance(0.3) else 2
    goods = _pair(draws, _GOODS)[:num_goods]
    steps: list[Step] = []
    parts = []
    for good in goods:
        count = draws.integer(11, 19) if draws.chance(0.2) else draws.integer(2, 9)
        price = draws.integer(2, 9) if draws.chance(0.35) else draws.integer(11, 45)
        parts.append(f"{count} {good} at {price} coins")
        steps.append(Step(price, "*", count) if price > count else Step(count, "*", price))
    if num_goods == 2:
        steps.append(Step(0, "+", 1, True, True))
    total = results_of(steps)[-1]
    text = f"{name} buys {' and '.join(parts)}."
    if draws.chance(0.35):
        discount = draws.integer(2, 9)
        text += f" The shop takes {discount} coins off."
        steps.append(Step(len(steps) - 1, "-", discount, left_is_step=True))
        total -= discount
    if num_goods == 1 or draws.chance(0.4):
        paid = total + draws.integer(3, 60)
        text += f" {name} pays {paid} coins. How many coins come back?"
        steps.append(Step(paid, "-", len(steps) - 1, right_is_step=True))
    else:
        text += f" How many coins does {name} pay?"
    return _problem(text, "shop", steps)


def _draw_remainder(draws: Draws) -> Problem:
    """Draw ``What remains of 23*7+5 divided by 9?``."""
    left, factor, divisor = draws.integer(11, 60), draws.integer(2, 9), draws.integer(3, 9)
    text, steps = f"{left}*{factor}", [Step(left, "*", factor)]
    if draws.chance(0.6):
        added = draws.integer(2, 40)
        text += f"+{added}"
        steps.append(Step(0, "+", added, left_is_step=True))
    steps.append(Step(len(steps) - 1, "%", divisor, left_is_step=True))
    return _problem(f"What remains of {text} divided by {divisor}?", "remainder", steps)


def _draw_compare(draws: Draws) -> Problem:
    """Draw two persons' things and their sum, the second given by the first."""
    name, friend = _pair(draws, _NAMES)
    items = draws.choice(_ITEMS)
    first = draws.integer(11, 60)
    u = draws.uniform()
    if u < 0.3:
        factor = draws.integer(2, 9)
        relation, step = f"{factor} times as many as {name}", Step(first, "*", factor)
    elif u < 0.65:
        more = draws.integer(3, 40)
        relation, step = f"{more} more than {name}", Step(first, "+", more)
    else:
        fewer = draws.integer(3, first - 2)
        relation, step = f"{fewer} fewer than {name}", Step(first, "-", fewer)
    steps = [step, Step(first, "+", 0, right_is_step=True)]
    text = f"{name} has {first} {items}. {friend} has {relation}. How many {items} have they together?"
    return _problem(text, "compare", steps)


def _draw_reversed(draws: Draws) -> Problem:
    """Draw the same with the first given by the second, which is usually misread as the other way round."""
    name, friend = _pair(draws, _NAMES)
    items = draws.choice(_ITEMS)
    first = draws.integer(20, 60)
    difference = draws.integer(3, 18)
    word, op, misread_op = ("fewer", "+", "-") if draws.chance(0.5) else ("more", "-", "+")
    text = (
        f"{name} has {first} {items}, which is {difference} {word} than {friend} has. "
        f"How many {items} have they together?"
    )
    total = Step(first, "+", 0, right_is_step=True)
    return _problem(
        text, "reversed", [Step(first, op, difference), total], [Step(first, misread_op, difference), total]
    )


def _draw_factor(draws: Draws) -> Problem:
    """Draw the product of a small and a larger prime, of which the larger is asked for."""
    small = draws.choice(_SMALL_PRIMES)
    large = draws.choice([prime for prime in _LARGE_PRIMES if prime > small and prime * small <= MAX_VALUE])
    question = f"What is the largest prime factor of {large * small}?"
    return Problem(question, str(large), "factor", 5, (Step(large, "*", small),))


def _pair(draws: Draws, options: Sequence[str]) -> tuple[str, str]:
    """Draw two different options."""
    first = draws.integer(0, len(options) - 1)
    second = (first + draws.integer(1, len(options) - 1)) % len(options)
    return options[first], options[second]


_DRAW = {
    "chain": _draw_chain, "brackets": _draw_brackets, "story": _draw_story, "shop": _draw_shop,
    "remainder": _draw_remainder, "compare": _draw_compare, "reversed": _draw_reversed, "factor": _draw_factor,
}  # fmt: skip
