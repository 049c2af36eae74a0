r"""What a question says of the form of its answer, so that votes need no gold answer.

An answer without a unit, percent sign, base or variable's name is the same as one with it only if the question says
which is meant; otherwise each is a class of its own. The other answers have no part in this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from dps.benchmarks.mathematics.spelling import normalize, plain_characters
from dps.benchmarks.mathematics.units import is_measure, unit_of
from dps.benchmarks.mathematics.words import BASES, magnitude_asked

_LONGEST_QUESTION = 20_000
_MOST_FORMULAS = 200

_AREA = re.compile(r"\barea\b|\bsquare (?:cm|cent|m\b|met|mm|mil|km|kilo|in|f[eot]|y[ad]|mi)")
_VOLUME = re.compile(r"\bvolume\b|\bcubic\b")
_ASKS = (
    r"(?:find|compute|determine|calculate|evaluate|what is|what's|what are|solve for|value of|values of|in terms of)"
)


@dataclass(frozen=True, slots=True)
class Convention:
    """What the question says of its answer."""

    text: str
    """The question in plain characters and lower case."""
    formulas: frozenset[str]
    """Its formulas in normal form."""
    letters: frozenset[str]
    """Letters of its formulas."""
    percent: bool | None
    """Whether a percentage is asked for; None where percent are mentioned but not asked for."""
    base: str
    """The base that the answer is to have, empty where none is named."""
    magnitude: str = ""
    """Magnitude in which it asks for its answer (``million``), empty for none."""
    measures: frozenset[str] = field(default=frozenset())
    """Units of measure that it names, without their powers."""

    def asks_for_name(self, name: str) -> bool:
        """Whether a value with this name is the value that is asked for.

        It is if the question asks for it, has no other letter, or does not know the name, which is the answer's own.
        """
        if name not in self.letters or len(self.letters) == 1:
            return True
        asked = rf"{_ASKS}\s+(?:the\s+\w+\s+)?(?:of\s+)?\$\s*{re.escape(name.casefold())}\s*[\$=]"
        return re.search(asked, self.text) is not None

    def asks_for_function(self, name: str) -> bool:
        """Whether an expression in variables is the same with this name before it: the question has the name alone.

        Otherwise ``y = 2x + 1`` is a line, which has other equations.
        """
        return "(" in name or (name in self.formulas and "equation" not in self.text)

    def asks_for_unit(self, unit: str) -> bool:
        """Whether a value without a unit has this one: the question names it, and no other measure."""
        if not is_measure(unit):
            return all(re.search(rf"\b{re.escape(word)}", self.text) for word in unit.split())
        base, _, power = unit.partition("^")
        if base == "unit":  # square units are whatever the question has
            return True
        if self.measures == {base}:
            return power == ("2" if _AREA.search(self.text) else "3" if _VOLUME.search(self.text) else "")
        # "in centimeters", "how many square feet"
        named = re.findall(r"\b(?:in|how many|number of)\s+((?:(?:square|cubic)\s+)?[a-z]+)", self.text)
        return [unit_of(words) for words in named if is_measure(unit_of(words))][-1:] == [unit]


@lru_cache(maxsize=200)
def convention_of(question: str) -> Convention:
    """Return what a question says of its answer; only its first 20,000 characters are read."""
    text = plain_characters(question[:_LONGEST_QUESTION])
    contents = re.findall(r"(?<!\\)\$([^$]{1,200})\$", text)[:_MOST_FORMULAS]
    formulas = frozenset(filter(None, map(normalize, contents)))
    bare = [re.sub(r"\\[a-zA-Z]+|\\text\{[^{}]*\}", " ", formula) for formula in formulas]
    lower = text.casefold()
    bases = re.findall(r"\bbase[ -]\$?(\d+|[a-z]+)", lower)
    return Convention(
        text=lower,
        formulas=formulas,
        letters=frozenset(letter for formula in bare for letter in re.findall(r"[a-zA-Z]", formula)),
        percent=_percent(lower),
        base=BASES.get(bases[-1], bases[-1] if bases[-1].isdigit() else "") if bases else "",
        magnitude=magnitude_asked(lower),
        measures=frozenset(
            unit.partition("^")[0]
            for word in re.findall(r"[a-z]+", lower)
            if len(word) > 1 and is_measure(unit := unit_of(word)) and unit and word != "in"
        ),
    )


def _percent(text: str) -> bool | None:
    if re.search(r"\b(?:what|which|how many|as a|in|the)\s+(?:\w+\s+)?percent|\bpercentage\b", text):
        return True
    return None if re.search(r"%|\bpercent", text) else False
