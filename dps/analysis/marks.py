"""How each policy is drawn, in figures and on pages: colour says its family, marker and dashes say which member it is.

So nobody has to tell thirteen colours apart, and a reader who sees no colours loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.markers import MarkerStyle
from matplotlib.path import Path

from dps.decide.rules import LEADS

INK, MUTED, GRID, SURFACE = "#1f2328", "#5d6670", "#e3e6ea", "#ffffff"
"""Text and axes, secondary text, grid lines, the page behind a figure."""
# Okabe and Ito's palette, which people with colour-blindness can tell apart; line style and marker say the same again.
POWER, CONTROLLER, PLAIN, LOWTEMP, OTHER = "#0072b2", "#b3418a", "#d55e00", "#009e73", "#6f6f6f"
RULE = "#7a5c00"
"""Rules that need no training, on the main ladder."""
_VARIABLES = {
    POWER: "--power",
    CONTROLLER: "--controller",
    PLAIN: "--plain",
    LOWTEMP: "--lowtemp",
    OTHER: "--other",
    RULE: "--rule",
}
"""The page's style has a light and a dark value for each colour."""

Dashes = tuple[float, ...]
_SERIES: dict[str, tuple[str, str, Dashes]] = {
    "power": (POWER, "o", ()),
    "plain": (PLAIN, "s", (5, 2)),
    "lowtemp": (LOWTEMP, "v", (1.5, 1.5)),
}
_MARKERS = {
    "gbdt": "^",
    "mlp-h": "D",
    "mlp-hq": "*",
    "adaptive-consistency": "P",
    "esc": "X",
    "sprt": "<",
    "certificate": "H",
    "entropy": ">",
    "self-confidence": "p",
    "uab": "h",
    "lead": "8",
    "lead-1": "^",
    "lead-2": "D",
    "lead-3": "p",
    "random": "d",
    "best_logprob": "<",
    "best_logprob_per_token": ">",
    "weighted": "D",
    "weighted_per_token": "d",
    "majority": "p",
}
_BOUNDS = {"oracle": "o", "votes-bound": "s", "votes-dp": "h", "giving-up": "v"}
_SPARE_MARKERS = ("s", "v", "o")
_BROKEN: Dashes = (5, 1.5, 1.5, 1.5)
_DASHES: tuple[Dashes, ...] = ((), (5, 2), (1.5, 1.5), _BROKEN, (8, 2), (3, 1.5), (8, 2, 1.5, 2))


@dataclass(frozen=True, slots=True)
class Mark:
    """How a policy is drawn."""

    color: str
    """One of the colours above."""
    marker: str
    """Of matplotlib."""
    dashes: Dashes
    """On, off, ... in points; empty for a solid line."""
    hollow: bool = False
    """Whether the marker is filled with the page's colour."""

    @property
    def line(self) -> str | tuple[float, Dashes]:
        """Line style of matplotlib."""
        return (0, self.dashes) if self.dashes else "-"

    def on_page(self) -> dict[str, Any]:
        """Return the mark for a page: its colour as a variable of the page's style, its shape as an SVG path."""
        return {
            "color": f"var({_VARIABLES[self.color]})",
            "shape": _shape(self.marker),
            "dashes": list(self.dashes),
            "hollow": self.hollow,
        }


def mark_of_series(series: str) -> Mark:
    """Return how fixed budgets of an arm are drawn."""
    return Mark(*_SERIES.get(series, (OTHER, "s", _BROKEN)))


def marks_of(policies: Sequence[Mapping[str, Any]]) -> dict[str, Mark]:
    """Return how each policy of one or several results is drawn, by label; one that comes again is drawn as before.

    The colour is that of the only arm; the dashes say which ladder it is.
    """
    marks: dict[str, Mark] = {}
    spare = iter(_SPARE_MARKERS * len(policies))
    seen = dict.fromkeys(("controller", "rule"), 0)
    places: dict[str, int] = {}
    main = {policy["series"] for policy in policies if policy["policy"] == policy["name"]}
    for policy in policies:
        label, name, family = policy["policy"], policy["name"], policy["family"]
        if label in marks:
            continue
        of_arm = mark_of_series(policy["arms"][0]) if len(policy["arms"]) == 1 else Mark(RULE, "s", _BROKEN)
        is_main = label == name or (family == "fixed" and policy["series"] in main)  # labels of others name the ladder
        place = 0 if is_main else places.setdefault(policy["series"], len(places) + 1)
        dashes = _DASHES[place] if place < len(_DASHES) else (2.0 + place, 2.0)
        if family == "oracle":
            marks[label] = Mark(OTHER, _BOUNDS[name], dashes, hollow=True)
        elif family == "chance":
            marks[label] = Mark(OTHER, _MARKERS.get(name, "d"), (1.5, 1.5))
        elif family == "fixed":
            own = len(policy["arms"]) == 1 and label != policy["arms"][0]  # a policy of an evaluation over that arm
            marks[label] = of_arm if label in _SERIES else Mark(of_arm.color, of_arm.marker, dashes, hollow=own)
            if name != "fixed":  # another way to choose the answer
                marks[label] = Mark(of_arm.color, _MARKERS.get(name, "8"), (1.0, 2.0 + place), hollow=True)
        elif family == "rule" and not is_main:
            marks[label] = Mark(of_arm.color, _MARKERS.get(name, "8"), dashes, hollow=True)
        else:
            marker = _MARKERS.get(name) or next(spare)
            color = CONTROLLER if family == "controller" else RULE
            hollow = name in LEADS  # one point of the curve of ``lead``, without a line
            marks[label] = Mark(color, marker, () if hollow else _DASHES[seen[family] % len(_DASHES)], hollow)
            seen[family] += not hollow
    return marks


def _shape(marker: str) -> str:
    """Return a marker as the data of an SVG path about (0, 0), one unit wide."""
    style = MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform())
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
    parts = []
    for points, code in path.iter_segments():
        signs = (1, -1) * (len(points) // 2)  # SVG counts y downwards
        numbers = [f"{value * sign + 0.0:.3g}" for value, sign in zip(points, signs, strict=True)]
        parts.append("Z" if code == Path.CLOSEPOLY else letters[code] + " ".join(numbers))
    return "".join(parts)
