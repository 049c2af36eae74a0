r"""Units behind a value in one spelling: ``\text{ square centimeters}``, ``cm^2`` and ``sq. cm`` are ``cm^2``."""

from __future__ import annotations

import re

_SPELLINGS = {
    "cm": "cm centimeter centimetre", "m": "m meter metre", "km": "km kilometer kilometre",
    "mm": "mm millimeter millimetre", "in": "in inch inche", "ft": "ft foot feet", "yd": "yd yard", "mi": "mi mile",
    "s": "s sec second", "min": "min minute", "h": "h hr hour", "day": "day", "week": "week", "month": "month",
    "year": "yr year", "g": "g gram gramme", "kg": "kg kilogram", "lb": "lb pound", "oz": "oz ounce",
    "l": "l liter litre", "ml": "ml milliliter millilitre", "mph": "mph", "cent": "cent ¢", "unit": "unit",
    "": "dollar usd degree deg",
}  # fmt: skip
_UNITS = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split()}
"""Units by their spellings in the singular. A dollar or degree sign is left out of answers, and so are the words."""
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cubed": 3}
_PER = re.compile(r"\s*\b([a-z]+)\^\{?-(\d)\}?")
"""A unit that divides, as in ``km h^{-1}``."""


def unit_of(text: str) -> str:
    r"""Return the unit that a text is, in one spelling; other words in lower case and the singular.

    >>> unit_of(r"\text{ square inches}"), unit_of(r"\text{cm}^3"), unit_of("boxes of pencils")
    ('in^2', 'cm^3', 'boxe of pencil')
    """
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1", text.replace(r"\cdot", " ")).casefold()
    plain = _PER.sub(lambda found: f"/{found[1]}" + f"^{found[2]}".removesuffix("^1"), plain)
    raised = re.search(r"\^\{?(\d)\}?\s*$", plain)
    power = int(raised[1]) if raised else 1
    words: list[str] = []
    for word in re.findall(r"[a-z¢]+|/", plain[: raised.start()] if raised else plain.replace(".", "")):
        if word in _POWERS:
            power = _POWERS[word]
        else:
            words.append(word if word in _UNITS else _UNITS.get(_singular(word), _singular(word)))
    unit = " ".join(filter(None, (_UNITS.get(word, word) for word in words)))
    return f"{unit}^{power}" if unit and power != 1 else unit


def is_measure(unit: str) -> bool:
    """Whether a unit is one of the table, at any power, rather than other words."""
    return unit.partition("^")[0] in _SPELLINGS


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and len(word) > 1 and not word.endswith("ss") else word
