r"""Answers that are mathematics: found in a response, brought into one form, compared as what they mean.

Most answers are equal or different as normalized texts or as exact numbers, which is decided here; the rest goes to
the library math-verify in a worker process with hard limits (``math_worker``). Around it stand a few rules where it is
too generous or knows nothing of conventions: ordered tuples, units, percent signs, the base of a number.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from dps.benchmarks.answers import before_next_question, boxed_contents, canonical_number, parse_number
from dps.benchmarks.workers import WorkerFailed, WorkerPool

if TYPE_CHECKING:
    from dps.benchmarks.benchmark import Item

LONGEST_ANSWER = 1000
"""Characters; what is longer is no answer."""
LIMIT_S = 5.0
"""Seconds for one comparison."""

_POOL = WorkerPool(Path(__file__).with_name("math_worker.py"), limit_s=LIMIT_S)


@dataclass(frozen=True, slots=True)
class MathGrader:
    """Reads responses whose answers are mathematics."""

    in_background: bool = True

    def extract(self, text: str, item: Item) -> str | None:
        """Return the last boxed answer, else what follows ``####`` or "answer is", the last formula or number."""
        return extract_math(text)

    def extract_strict(self, text: str, item: Item) -> str | None:
        r"""Return what stands in the last ``\boxed{}``."""
        boxes = boxed_contents(before_next_question(text))
        return (normalize(boxes[-1]) or None) if boxes else None

    def grade(self, answer: str | None, item: Item) -> bool | None:
        """Return whether an answer equals the gold one; None if that cannot be decided within the limits."""
        if item.gold is None:
            return None
        return False if answer is None else equal(item.gold, answer)

    def classes(self, answers: Sequence[str | None], item: Item) -> list[int]:
        """Return each answer's class: the first of the earlier ones that it equals, in either direction."""
        firsts: list[str] = []
        found = []
        for answer in answers:
            if answer is None:
                found.append(-1)
                continue
            same = (i for i, first in enumerate(firsts) if equal(first, answer) or equal(answer, first))
            number = next(same, len(firsts))
            if number == len(firsts):
                firsts.append(answer)
            found.append(number)
        return found


def extract_math(text: str) -> str | None:
    """Return a response's answer as normalized LaTeX; None if it has none, or a far too long one."""
    response = before_next_question(text)
    candidates = [
        *reversed(boxed_contents(response)[-3:]),
        *(found[1] for found in _BARE_BOX.findall(response)[-1:]),
        *_last(_HASHES, response),
        *_last(_STATED, response),
        *_alone(response),
        *_last(_FORMULA, response),
        *_last(_NUMBER, response),
    ]
    normalized = (normalize(candidate) for candidate in candidates)
    return next((answer for answer in normalized if answer), None)


def equal(gold: str, answer: str) -> bool | None:
    """Return whether an answer is the gold one; None if it cannot be decided.

    The gold answer decides what is asked for: units, percent signs, the base and the name of a variable may be missing
    in the answer, but must not be others.
    """
    key = (gold, answer)
    with _lock:
        if key in _known:
            return _known[key]
    verdict = _equal(_Answer.of(gold), _Answer.of(answer))
    with _lock:
        if len(_known) >= 100_000:
            _known.clear()
        _known[key] = verdict
    return verdict


_known: dict[tuple[str, str], bool | None] = {}
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer taken apart."""

    text: str
    """Normalized LaTeX without what follows."""
    unit: str
    """Words behind a number, empty for none."""
    percent: bool
    """Whether a percent sign stood there."""
    base: str
    """Subscript of a numeral, empty for none."""

    @classmethod
    def of(cls, text: str) -> _Answer:
        plain = normalize(text)
        percent = _PERCENT.search(plain) is not None
        plain = _PERCENT.sub("", plain)
        unit = ""
        if (found := _UNIT.fullmatch(plain)) is not None:
            plain, unit = found[1], re.sub(r"[^a-z0-9/^]", "", _plain_text(found[2]).casefold())
            unit = {"dollars": "", "dollar": "", "degrees": "", "degree": ""}.get(unit, unit.removesuffix("s"))
        base = ""
        if (found := _BASED.fullmatch(plain)) is not None:
            plain, base = found[1], found[2] or found[3]
            base = _BASES.get(base, base)
        return cls(plain.strip(), unit, percent, base)


def _equal(gold: _Answer, answer: _Answer) -> bool | None:
    if (answer.unit and gold.unit and answer.unit != gold.unit) or (answer.base and gold.base != answer.base):
        return False
    if gold.text == answer.text:
        return True
    left, right = _number(gold.text), _number(answer.text)
    if left is not None and right is not None:
        return left == right or (answer.percent and not gold.percent and left == right / 100)
    if _is_text(gold.text) or _is_text(answer.text):
        return _word(gold.text) == _word(answer.text)
    if ("=" in gold.text) != ("=" in answer.text):  # x = 5 and 5
        sides = [_NAME.sub("", side.text) if "=" in side.text else side.text for side in (gold, answer)]
        if not any("=" in side for side in sides):
            return _equal(_Answer.of(sides[0]), _Answer.of(sides[1]))
    tuples = _tuple(gold.text), _tuple(answer.text)
    if tuples[0] is not None and tuples[1] is not None:
        return _equal_tuples(*tuples)
    if tuples[0] is not None and len(_split(answer.text)) > 1:
        return False  # a list of values is no point and no interval
    try:
        found = _POOL.call({"gold": gold.text, "answer": answer.text})
    except WorkerFailed:
        return None
    return None if found == "unreadable" else found == "equal"


def _equal_tuples(gold: tuple[str, list[str]], answer: tuple[str, list[str]]) -> bool | None:
    """Compare what stands in brackets: the same brackets, and equal parts in the same order."""
    if gold[0] != answer[0] or len(gold[1]) != len(answer[1]):
        return False
    verdicts = [equal(a, b) for a, b in zip(gold[1], answer[1], strict=True)]
    return False if False in verdicts else None if None in verdicts else True


def normalize(text: str) -> str:
    r"""Return LaTeX in one spelling: no dollar signs, spaces, sizes of brackets or fractions, no final full stop.

    >>> normalize(r"$\left( 3, \dfrac{\pi}2 \right).$")
    '(3,\\frac{\\pi}{2})'
    """
    if len(text) > LONGEST_ANSWER:
        return ""
    plain = text.translate(_CHARACTERS).strip()
    for pattern, replacement in _SPELLINGS:
        plain = pattern.sub(replacement, plain)
    plain = plain.strip().rstrip(".,;:").strip()
    while (found := _WRAPPED.fullmatch(plain)) is not None:
        plain = next(group for group in found.groups() if group is not None).strip()
    number = canonical_number(plain) if re.fullmatch(r"[-+0-9.,/\s]*", plain) else None
    # Of a fraction the spelling is kept: 2/4 may be wrong where lowest terms are asked for, 1,000 is 1000.
    return number if number is not None and "/" not in plain else plain


_CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "∞": r"\infty", "π": r"\pi", "≤": r"\le ", "≥": r"\ge ", "×": r"\times ", "·": r"\cdot ",
     "√": r"\sqrt", "°": r"^\circ", "∪": r"\cup ", "±": r"\pm ", "\u00a0": " ", "\u202f": " ", "\u200b": None,
     "\x00": " "}
)  # fmt: skip
_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\*\*|^\$+|\$+$|^\\\(|\\\)$|^\\\[|\\\]$", ""),
        (r"\\boxed\s*\{([^{}]*)\}", r"\1"),
        (r"\\(?:left|right|bigg?|Bigg?|displaystyle|limits)(?![a-zA-Z])\.?", ""),
        (r"(?<!\\)\\[!,;:> ]|\\q?quad(?![a-zA-Z])|~", " "),  # not the end of a matrix's row
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"\\frac\s*\{([^{}]*)\}\s*([\da-zA-Z])", r"\\frac{\1}{\2}"),
        (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
        (r"(?<![\d}])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}", lambda m: _improper(m[1], m[2], m[3])),
        (r"(?<=\d)\{,\}(?=\d{3})", ""),
        (r"(?<=\d),(?=\d{3}(?:\D|$))(?![^(\[{]*[)\]}])", ""),
        (r"\\(?:leq|leqslant)(?![a-zA-Z])", r"\\le "),
        (r"\\(?:geq|geqslant)(?![a-zA-Z])", r"\\ge "),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])", ""),
        (r"\\\$|\\pounds(?![a-zA-Z])|^[$€£]", ""),
        (r"\\begin\{[bBvp]matrix\}", r"\\begin{pmatrix}"),
        (r"\\end\{[bBvp]matrix\}", r"\\end{pmatrix}"),
        (r"\\(?:textbf|textit|textrm|textsf|mathrm|mathbf|operatorname|mbox|mathit)\s*\{", r"\\text{"),
        (r"\s*([,=+\-*/^_(){}\[\]|<>])\s*", r"\1"),
        (r"\s+", " "),
    )
]
_WRAPPED = re.compile(r"(?:\$|\\\(|\\\[)(.*?)(?:\$|\\\)|\\\])|\{([^{}]*)\}")
_PERCENT = re.compile(r"\s*\\?%\s*$|\s*(?:\\text\{\s*)?percent\}?\s*$")
_UNIT = re.compile(
    r"([-+\d./]+|[^a-zA-Z]*\\[a-zA-Z].*?|.*[\d})])\s*(\\text\{[^{}]*\}(?:\^\{?\d\}?)?|(?<=[\d}])\s+[a-zA-Z]{2,}(?:\^\{?\d\}?)?)"
)
_BASED = re.compile(r"([0-9A-F]+)_(?:\{(?:\\text\{)?(\d+|[a-z]+)\}?\}|(\d+))")
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
          "ten": "10", "twelve": "12", "sixteen": "16"}  # fmt: skip
_NAME = re.compile(r"^[a-zA-Z](?:_\w|_\{\w+\})?(?:\([a-z]\))?=|^\\[a-z]+=")
_TEXT = re.compile(r"\\text\{\(?[a-zA-Z][a-zA-Z0-9 .,'()-]*\)?\}|\([A-Z]\)|[A-Z]|[A-Za-z]{3,}(?: [A-Za-z]+)*")
_BARE_BOX = re.compile(r"\\(boxed|fbox)\s+([^\s${}]+)")
_HASHES = re.compile(r"#{4,}\s*([^\n]*)")
_STATED = re.compile(r"\banswer\b[^.\n:=]{0,40}?(?:\bis\b:?|[:=])\s*([^\n]{1,200}?)(?:\.(?:\s|$)|\n|$)", re.IGNORECASE)
_FORMULA = re.compile(r"\$([^$\n]{1,200})\$|\\\((.{1,200}?)\\\)|\\\[(.{1,400}?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def _improper(whole: str, top: str, bottom: str) -> str:
    r"""Return a mixed number as one fraction: 1\frac{1}{2} is 3/2, as school books write it."""
    return rf"\frac{{{int(whole) * int(bottom) + int(top)}}}{{{bottom}}}"


def _alone(response: str) -> list[str]:
    """Return a response that is an answer and nothing else: one short line of mathematics, or one or two words."""
    line = response.strip()
    if "\n" in line or re.search(r"(?<!\\)\$", line) or "\\(" in line or len(line) > 100:
        return []
    words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[a-zA-Z]+(?:\{[a-zA-Z ]*\})?", " ", line))
    return [line] if len(words) <= 2 and not (words and re.search(r"\d", line)) else []


def _last(pattern: re.Pattern[str], text: str) -> list[str]:
    """Return what the pattern's group is at its last match, in a list; an empty one for no match."""
    found = deque(pattern.finditer(text), maxlen=1)
    return [next((group for group in last.groups() if group), last.group()) for last in found]


def _number(text: str) -> Fraction | None:
    """Return the exact value of a plain number or a fraction of integers."""
    found = re.fullmatch(r"(-?)\\frac\{(-?\d{1,300})\}\{(-?\d{1,300})\}", text)
    if found and int(found[3]):
        return (-1 if found[1] else 1) * Fraction(int(found[2]), int(found[3]))
    return parse_number(text) if re.fullmatch(r"[-+]?[\d.,]*\d(?:/\d+)?", text) else None


def _is_text(text: str) -> bool:
    """Whether an answer is words, or a letter in brackets, rather than mathematics."""
    return _TEXT.fullmatch(text) is not None


def _word(text: str) -> str:
    return " ".join(_plain_text(text).casefold().strip("() .").split())


def _plain_text(text: str) -> str:
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", text)


def _split(text: str) -> list[str]:
    """Return the parts between commas that are in no bracket."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def _tuple(text: str) -> tuple[str, list[str]] | None:
    """Return the brackets and the parts of a tuple or interval; None for anything else."""
    if not (text[:1] in tuple("([") and text[-1:] in tuple(")]")):
        return None
    depth = 0
    for letter in text[1:-1]:
        depth += (letter in "([") - (letter in ")]")
        if depth < 0:  # a union of intervals
            return None
    parts = _split(text[1:-1])
    return (text[0] + text[-1], parts) if len(parts) > 1 else None
