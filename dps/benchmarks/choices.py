r"""From a response's text to the lettered choice that it gives: pure functions of strings.

A choice is given by its letter (``B``, ``(b)``, ``Option B``, ``B) 5 eV``) or by its text. Texts are compared in a
normal form: LaTeX's spacing, fonts, dollar signs and names of symbols, Markdown, case and a final full stop do not
matter. A letter that begins a text is no letter: ``A single electron`` and ``B = \mu_0 I`` are texts.

Only the last hundred boxes and statements of a response are looked at, each for a bounded number of characters, so that
reading takes time in proportion to the response's length.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dps.benchmarks.grading import Grader, Item
from dps.benchmarks.mathematics.reading import before_next_question
from dps.benchmarks.mathematics.spelling import unwrapped
from dps.benchmarks.records import Record, shortened

LETTERS = string.ascii_uppercase
"""The choices' letters, in order."""
_MOST_PLACES = 100
"""Boxes, and statements, that are looked at, from the end."""
_MARGIN = 300
"""Characters by which LaTeX may be longer than twice the longest choice."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?P<bare>[A-Za-z0-9])(?![A-Za-z0-9]))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BETWEEN_TWO = re.compile(r"[\s$.)*]*(?:,|;|/|&|\band\b|\bor\b)[\s$(*]*", re.IGNORECASE)

_FONT_OR_BRACE = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|emph|underline|mbox|mathrm|mathbf|mathit|mathsf|mathcal"
    r"|boldsymbol|bm|operatorname|ce|boxed|fbox)\*?\s*\{|\\.|[{}]",
    re.DOTALL,
)
_RAISED = re.compile(r"([\^_])\s*\{([^{}]*)\}")
_LONE_BRACES = re.compile(r"(?<![\\\w}])\{\s*(\w?)\s*\}")
_SHORT_QUOTIENT = re.compile(r"(\\[dtc]?frac\s*(?:\{[^{}]*\})?)\s*(\w)")
_QUOTIENT = re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_FACE = re.compile(r"\\(?:displaystyle|[lL]arge|LARGE|[hH]uge|bf|rm|it)(?![A-Za-z])")
_SPACING = re.compile(
    r"\\[,;:!> ()\[\]]|\\(?:left|right|[bB]igg?[lr]?|quad|qquad|limits)(?![A-Za-z])|\$|(?<=\w)~(?=\w)"
)
_TAG = re.compile(r"</?(?:answer|b|strong|i|em|u|code)>", re.IGNORECASE)
_QUOTED = re.compile(r"(?<!\w)'([^']{1,300})'(?!\w)")
_COMMAND = re.compile(r"\\([A-Za-z]+|[%&#_{}$])")
_SYMBOLS = {
    "times": "*", "cdot": "*", "ast": "*", "pm": "±", "mp": "∓", "to": "→", "rightarrow": "→", "longrightarrow": "→",
    "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "approx": "≈", "sim": "~", "infty": "∞",
    "hbar": "ħ", "circ": "°", "degree": "°", "varepsilon": "ε", "varphi": "φ", "propto": "∝", "ell": "ℓ", "ll": "≪",
    "gg": "≫", "partial": "∂", "nabla": "∇", "langle": "⟨", "rangle": "⟩", "prime": "'", "lambda": "λ", "Lambda": "Λ",
}  # fmt: skip
_TYPED = str.maketrans({
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "*", "·": "*", "⋅": "*", "∙": "*", "∗": "*", "ℏ": "ħ",
    "‘": "'", "’": "'", "′": "'", "“": '"', "”": '"', "º": "°", "`": None, "\u200b": None,
})  # fmt: skip
_SUPERSCRIPTS = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")

_LEAD_WORD = (
    r"(?:so|thus|hence|therefore|it|it's|is|must|should|be|the|most|indeed|just|given|by|[a-z]{2,}ly|correct|right|best|final|my"
    r"|answer|option|choice|alternative|letter|i (?:think|believe|guess))"
)
_LEAD = rf"(?:{_LEAD_WORD}\b[\s,:#-]*){{0,6}}"
_ALONE = re.compile(rf"{_LEAD}[(\[{{]*\s*([A-Za-z])\s*[)\]}}]*\s*[.:,;!]*", re.IGNORECASE)
"""A letter and nothing else, but for words such as "option"."""
_BEFORE_TEXT = re.compile(
    rf"{_LEAD}(?:[(\[]\s*([A-Za-z])\s*[)\]]\s*[.:-]?|([A-Za-z])\s*(?:[)\]]\s*[.:-]?|[.:](?=\s)|:|\s-\s|\s(?=\()))\s*(?=\S)",
    re.IGNORECASE,
)
"""A letter that stands before its choice's text, as "B)" or "(B)"."""
_SPACED = re.compile(rf"{_LEAD}([A-Z])\s+(?=\S)")
_REASON = (
    r"because|since|as|for|which|where|with|is|was|due|given|based|according|so|not|and not|but|rather|instead|only"
    r"|here|i\.e|from|in|by|if"
)
_LEADING = re.compile(
    rf"{_LEAD}(?:[(\[]\s*([A-Za-z])\s*[)\]]"
    rf"|([A-Za-z])(?=$|[.,;:!?)\]\"](?![A-Za-z0-9])|\s*\(|\s+-\s|\s+(?:{_REASON})\b))",
    re.IGNORECASE,
)
"""A letter with which a statement begins and that the statement goes on from, as in "B because"."""
_ANOTHER = re.compile(
    r"[)\]\"']*\s*(?:(?:,|;|/|&|\band\b|\bor\b)\s*)+(?:option\s+|choice\s+)?[(\[]?([A-Za-z])[)\]]?"
    r"(?=\s*(?:$|[.,;:)!?/&]|and\b|or\b|are\b|is\b|both\b))",
    re.IGNORECASE,
)
"""A second letter after a first one: who names two choices has chosen none."""

_SUBJECT = re.compile(
    r"\b(?:answer|ans(?=[.:\s])|solution|(?:correct|right|best|final|my|selected|chosen)\s{1,3}(?:answer\s{1,3})?"
    r"(?:choice|option|alternative|one|selection|statement)"
    r"|(?:choice|option)(?=\s{1,3}is\b)|(?:choose|chose|pick|select|go with|going with)(?=\s))",
    re.IGNORECASE,
)
_LINK = re.compile(r"\b(?:is|be|are|was|choose|chose|pick|select|with)\b[\s*]*:?|[:=→]|->", re.IGNORECASE)
_REFUSED = re.compile(r"(?:\bnot|n't|\bcannot|\bnever)[\s*]*$|\b(?:choice|option)s?\s+\(?[A-Z]\b", re.IGNORECASE)
_IS_RIGHT = re.compile(
    r"(?<![\w\\({])(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s{1,3})?[*$]{0,3}"
    r"[(\[]?([A-Z]|(?<=ption )[a-z])[)\]]?[*$]{0,3}\s{1,3}"
    r"(?:is|must be|would be|seems)\s{1,3}(?:(?:the|most|only|likely|therefore|thus|clearly|indeed)\s{1,3}){0,3}"
    r"(?:correct|right|best|answer)\b"
)
_DOUBTED = re.compile(
    r"\b(?:if|whether|neither|nor|not|suppose|assume)\s*$|(?:\band|\bor|\b[A-Z]\)?,)\s*$", re.IGNORECASE
)
_MENTIONED = re.compile(
    r"(?:\b[Oo]ption\s{1,3}|\b[Cc]hoice\s{1,3}|(?<![\w\\])(?=\()|\b(?:corresponds to|matches|leaves|leaving)\s{1,3}"
    r"(?:only\s)?(?=\*{0,3}\(?[A-Z]\)?\*{0,3}[.,;\n]))\*{0,3}\(?([A-Z])\b\)?"
)
_DENIED = re.compile(
    r"[\s*)]*(?:(?:is|are|was|would be|can be)\s+(?:also\s+)?(?:not|wrong|incorrect|false|ruled|excluded|out\b)"
    r"|(?:does|do|can|is)(?:\s+not|n't)|cannot|fails)",
    re.IGNORECASE,
)


def find_choice(text: str, choices: Sequence[str]) -> str | None:
    r"""Return the letter of the choice that a response gives, wherever that stands; None where it gives none.

    Looked for, in this order: the last ``\boxed{}`` or ``\fbox{}`` that holds a choice; the last statement ("The answer
    is ...", "Answer: ...", "... is correct"); a last line, else a first line, that is a choice; a last sentence such as
    "So B."; the last ``(B)`` or "option B". Two choices together ("A and B") are none, and neither is a list of them.
    """
    response = before_next_question(text)
    most = _most_characters(choices)
    for start, end, content in reversed(list(_boxes(response, most))):
        if (letter := read_choice(content, choices)) is not None:
            return None if _joined(response, start, end) else letter
    for tail in _statements(response, most):
        if (letter := tail if len(tail) == 1 else _stated(tail, choices)) is not None and letter in _letters(choices):
            return letter
    return _line_choice(response, most, choices) or _concluded(response, choices) or _mentioned(response, choices)


def find_boxed_letter(text: str, choices: Sequence[str]) -> str | None:
    r"""Return the capital letter that stands alone, but for fonts and brackets, in the last ``\boxed{}``."""
    response = before_next_question(text)
    boxes = [box for box in _boxes(response, _MARGIN) if response.startswith(r"\boxed", box[0])][-1:]
    if not boxes or _joined(response, *boxes[0][:2]):
        return None
    letter = _plain(boxes[0][2]).strip(" .(){}[]")
    return letter if letter in _letters(choices) else None


def read_choice(text: str, choices: Sequence[str]) -> str | None:
    r"""Return the letter of the choice that a text is, None if it is none of them, or not one of them alone.

    >>> texts = ["5 eV", "A single electron", "x"]
    >>> [read_choice(text, texts) for text in ("(b)", "Option A: 5 eV", r"5\,\text{eV}", "A single electron", "B, C")]
    ['B', 'A', 'A', 'B', None]
    """
    if len(text) > _most_characters(choices):
        return None
    letters, plain = _letters(choices), _plain(text)
    alone = _ALONE.fullmatch(plain)
    # A capital letter is one, whatever the texts are, for a letter is asked for; a small one may be a text.
    if alone is not None and alone[1] in letters:
        return alone[1]
    if (same := _by_text(plain, choices)) is not None:
        return same
    if alone is not None:
        return alone[1].upper() if alone[1].upper() in letters else None
    if (before := _BEFORE_TEXT.match(plain)) is not None:
        letter, rest = (before[1] or before[2]).upper(), plain[before.end() :]
        other = _ALONE.fullmatch(rest)
        several = _ANOTHER.match(plain[before.end(1) if before[1] else before.end(2) :])
        entry = _BEFORE_TEXT.match(rest)  # of a list of the choices
        listed = entry is not None and (entry[1] or entry[2]).upper() in {*letters} - {letter}
        contradicts = several or listed or (other is not None and other[1].upper() != letter)
        if letter in letters and (not contradicts or _by_text(rest, choices) == letter):
            return letter
    if (spaced := _SPACED.match(plain)) is not None and _by_text(plain[spaced.end() :], choices) == spaced[1]:
        return spaced[1]
    return None


def normal_text(text: str) -> str:
    r"""Return the form in which choices' texts are compared: without LaTeX's spacing, fonts and symbols' names.

    >>> normal_text(r"$6.3 \times 10^{-7}\,\mathrm{M}$.") == normal_text("6.3×10⁻⁷ M")
    True
    """
    text = _SUPERSCRIPTS.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[0]), text)
    text = unicodedata.normalize("NFKC", text).translate(_TYPED)
    text = _unwrapped(text.replace("**", ""))
    text = _repeated(_with_slashes, text)
    text = re.sub(r"\^\s*\\circ(?![A-Za-z])", "°", _SPACING.sub(" ", text))
    text = _COMMAND.sub(lambda match: _symbol(match[1]), text).translate(_TYPED)
    text = re.sub(r"\{(\w*)\}|(?<=\^)\(([+-]?\w+)\)", r"\1\2", re.sub(r"\s+", "", text))
    return text.replace("{", "(").replace("}", ")").strip(".,;:!\"'")


def _plain(text: str) -> str:
    """Return a text without markup, LaTeX's fonts and mathematics signs; spaces single, dashes as hyphens."""
    text = _SPACING.sub(" ", _unwrapped(_TAG.sub(" ", text.translate(_TYPED)).replace("**", "").replace("__", "")))
    return " ".join(_QUOTED.sub(r"\1", text).split()).strip(' *_"#>')


def _unwrapped(text: str) -> str:
    """Return a text without the commands and braces of fonts, superscripts and single characters."""
    text = unwrapped(_FACE.sub(" ", text), _FONT_OR_BRACE)
    return _repeated(lambda text: _LONE_BRACES.sub(r"\1", _RAISED.sub(r"\1\2", text)), text)


def _with_slashes(text: str) -> str:
    """Return a text whose innermost fractions are written with a slash."""
    if "frac" not in text:
        return text
    text = _SHORT_QUOTIENT.sub(r"\1{\2}", _SHORT_QUOTIENT.sub(r"\1{\2}", text))
    parts = re.compile(r"\s*\\?\w+\s*")
    grouped = lambda part: part if parts.fullmatch(part) else f"({part})"  # noqa: E731
    return _QUOTIENT.sub(lambda match: f"{grouped(match[1])}/{grouped(match[2])}", text)


def _repeated(step: Callable[[str], str], text: str) -> str:
    """Do a step until nothing changes any more, or five levels are done."""
    for _ in range(5):
        before, text = text, step(text)
        if text == before:
            break
    return text


def _symbol(command: str) -> str:
    """Return the character that a LaTeX command stands for, or else its name."""
    if command in _SYMBOLS:
        return _SYMBOLS[command]
    size = "CAPITAL" if command[0].isupper() else "SMALL"
    try:
        return unicodedata.lookup(f"GREEK {size} LETTER {command.upper()}")
    except KeyError:
        return command


@lru_cache(maxsize=64)
def _forms(choices: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    choices = choices[: len(LETTERS)]
    normal = tuple(map(normal_text, choices))
    return tuple(" ".join(choice.split()) for choice in choices), normal, tuple(form.casefold() for form in normal)


def _by_text(text: str, choices: Sequence[str]) -> str | None:
    """Return the letter of the choice with this text: as it is, else in normal form, else with case left aside."""
    normal = normal_text(text)
    for form, known in zip((" ".join(text.split()), normal, normal.casefold()), _forms(tuple(choices)), strict=True):
        same = [number for number, choice in enumerate(known) if choice == form and form]
        if same:
            return LETTERS[same[0]] if len(same) == 1 else None
    return None


def _letters(choices: Sequence[str]) -> tuple[str, ...]:
    return tuple(LETTERS[: len(choices)])


def _most_characters(choices: Sequence[str]) -> int:
    """Return the length above which a text is not compared with the choices."""
    return 2 * max(map(len, choices), default=0) + _MARGIN


def _boxes(text: str, most: int) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and content of the last boxes, in order of their openings; those that are too long are left out.

    A box that the response's end leaves open holds what is left of its line.
    """
    for match in deque(_BOX.finditer(text), maxlen=_MOST_PLACES):
        if match["bare"]:
            yield match.start(), match.end(), match["bare"]
            continue
        start, depth = match.end(), 1
        for brace in _BRACE.finditer(text, start, start + most):
            depth += (brace[0] == "{") - (brace[0] == "}")
            if depth == 0:
                yield match.start(), brace.end(), text[start : brace.start()]
                break
        else:
            if len(text) <= start + most:
                content = text[start:].partition("\n")[0]
                yield match.start(), start + len(content), content.rstrip("$ ")


def _joined(text: str, start: int, end: int) -> bool:
    r"""Whether a box stands beside another, as in ``\boxed{A} or \boxed{B}``: then none is chosen."""
    before = re.search(r"\}([^{}]{1,20})$", text[max(0, start - 30) : start])
    after = re.match(r"([^{}\\]{1,20})\\(?:boxed|fbox)", text[end : end + 40])
    return any(match is not None and _BETWEEN_TWO.fullmatch(match[1]) for match in (before, after))


def _statements(text: str, most: int) -> Iterator[str]:
    """Yield, from the last, how each statement of the answer goes on, or the letter that it calls right."""
    subjects = deque(_SUBJECT.finditer(text), maxlen=_MOST_PLACES)
    rights = deque(_IS_RIGHT.finditer(text), maxlen=_MOST_PLACES)
    for match in sorted([*subjects, *rights], key=lambda match: match.start(), reverse=True):
        if match.re is _IS_RIGHT:
            if not _DOUBTED.search(text[max(0, match.start() - 20) : match.start()]):
                yield match[1].upper()
            continue
        start = match.start() if match[0][:1] in "cpsgCPSG" else match.end()
        line = text[start : start + 120].partition("\n")[0]
        for link in _LINK.finditer(line):
            if not _REFUSED.search(line[: link.start()]):
                tail = text[start + link.end() : start + link.end() + most].lstrip(" *_:\t\r\n")
                yield tail.partition("\n")[0] + " "


def _stated(tail: str, choices: Sequence[str]) -> str | None:
    """Return the choice with which a statement goes on."""
    plain = re.sub(r"^not\s+(?:option\s+)?\(?[A-Z]\)?,?\s+but\s+", "", _plain(tail))
    ends = [match.start() for match in re.finditer(r"[.,;!?](?=\s)|\s-\s", plain)][:8]
    if (same := _by_text(plain, choices)) is not None:
        return same
    for end in reversed(ends):  # the longest text first: a choice may hold a comma
        if (same := _by_text(plain[:end], choices)) is not None and end > 1:
            return same
    if (letter := read_choice(plain, choices)) is not None:
        return letter
    leading = _LEADING.match(plain)
    if leading is None or _ANOTHER.match(plain[leading.end() :]):
        return None
    letter = leading[1] or leading[2]
    goes_on = leading[2] and plain[leading.end() :][:1].isspace()
    return None if letter in "ai" and goes_on else letter.upper()


def _line_choice(text: str, most: int, choices: Sequence[str]) -> str | None:
    """Return the choice that the last line is, else the one that the first line is; none of a list of choices."""
    ends = text.strip()
    last = [line for line in ends[-2 * most :].split("\n") if line.strip()][-2:]
    first = [line for line in ends[: 2 * most].split("\n") if line.strip()][:2]
    for (line, *beside), is_first in ((last[::-1] or [""], False), (first or [""], True)):
        letter, *other = (read_choice(part.strip().lstrip("-#>+=→ "), choices) for part in (line, *beside))
        if letter is not None and not (is_first and _begins_a_list(line, choices)):
            return letter if other in ([], [None], [letter]) else None
    return None


def _concluded(text: str, choices: Sequence[str]) -> str | None:
    """Return the choice of a last sentence that is a letter behind a word such as "so" and nothing else."""
    sentence = re.split(r"[.!?]\s+", _plain(text.rstrip()[-_MARGIN:].rpartition("\n")[2]))[-1]
    alone = _ALONE.fullmatch(sentence)
    return alone[1] if alone and alone[1] in _letters(choices) and " " in sentence.strip() else None


def _begins_a_list(line: str, choices: Sequence[str]) -> bool:
    """Whether a line's letter stands before another text than its choice's, as that of a list's entry does."""
    plain = _plain(line.strip().lstrip("-+ "))
    before = None if _by_text(plain, choices) else _BEFORE_TEXT.match(plain)
    return before is not None and _by_text(plain[before.end() :], choices) is None


def _mentioned(text: str, choices: Sequence[str]) -> str | None:
    """Return the letter that a response mentions last in brackets or as an option, and neither denies nor joins."""
    for match in reversed(deque(_MENTIONED.finditer(text), maxlen=_MOST_PLACES)):
        line = text[max(0, match.start() - 40) : match.start()].rpartition("\n")[2]
        after = text[match.end() : match.end() + 60].partition("\n")[0]
        begins = not line.strip(" \t*-#>") and (match[0].endswith(")") or after.lstrip("* ")[:1] in (":", "-", ")"))
        joined = re.search(r"[A-Z][)*]*\s*(?:,|and|or|&|/)+\s*$", line) or _ANOTHER.match(after)
        if match[1] in _letters(choices) and not (begins and after.strip()) and not joined and not _DENIED.match(after):
            return match[1]
    return None


@dataclass(frozen=True, slots=True)
class ChoiceGrader(Grader):
    """Answers that are one of lettered choices; ``item.metadata["choices"]`` has their texts in order.

    The gold answer is a letter too, or the text of a choice; one that is neither leaves the responses ungraded.
    """

    def extract(self, text: str, item: Item) -> str | None:
        """Return the letter of the choice that the response gives, see :func:`find_choice`."""
        return find_choice(text, item.metadata["choices"])

    def extract_strict(self, text: str, item: Item) -> str | None:
        r"""Return the letter in the last ``\boxed{}``."""
        return find_boxed_letter(text, item.metadata["choices"])

    def grade(self, answer: str | None, item: Item) -> bool | None:
        """See :class:`Grader`: no answer is wrong."""
        gold = None if item.gold is None else read_choice(item.gold, item.metadata["choices"])
        return None if gold is None else answer == gold


def choices_of(record: Record, gold: str | float | None, field: str) -> tuple[str | None, dict[str, Any]]:
    """Return a record's gold answer as a letter, and its field ``choices`` as metadata; InputError if one is neither.

    ``field`` is what the gold answer is called, which may be the text of a choice.
    """
    choices = record.required("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise record.error(f"should have a list of texts as choices, but has {shortened(choices)}.")
    if not 2 <= len(choices) <= 26:
        raise record.error(f"should have 2 to 26 choices, but has {len(choices)}.")
    letter = None if gold is None else read_choice(str(gold), choices)
    if letter is None and gold is not None:
        letters = f"{LETTERS[0]} to {LETTERS[len(choices) - 1]}"
        raise record.error(f"should have a letter of {letters}, or one of its choices, as {field}, but has {gold!r}.")
    return letter, {"choices": choices}
