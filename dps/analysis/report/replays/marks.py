"""How each policy of a replay is drawn: colour says its family, marker and dashes say which member it is.

So nobody has to tell thirteen colours apart, and a reader who sees no colours loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.markers import MarkerStyle
from matplotlib.path import Path

from dps.analysis.report.look import CONTROLLER, CONTROLLER_MARKERS, LOWTEMP, OTHER, PLAIN, POWER, RULE, RULE_MARKERS

_SOURCES = {"power": (POWER, "o"), "plain": (PLAIN, "s"), "lowtemp": (LOWTEMP, "v")}
_SPARE_MARKERS = ("8", "H", "s", "v", "o")
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (5, 1.5, 1.5, 1.5), (8, 2), (3, 1.5))


@dataclass(frozen=True, slots=True)
class Mark:
    """How a policy is drawn."""

    color: str
    """Of :mod:`dps.analysis.report.look`."""
    marker: str
    """Of matplotlib."""
    dashes: tuple[float, ...]
    """On, off, ... in points; empty for a solid line."""
    hollow: bool = False
    """Whether the marker is filled with the page's colour."""

    @property
    def line(self) -> str | tuple[float, tuple[float, ...]]:
        """Line style of matplotlib."""
        return (0, self.dashes) if self.dashes else "-"

    @property
    def shape(self) -> str:
        """The marker as the data of an SVG path about (0, 0), one unit wide."""
        return _shape(self.marker)


def marks_of(policies: Sequence[Mapping[str, Any]]) -> dict[str, Mark]:
    """Return how each policy of a replay is drawn, by its label.

    Args:
        policies: ``policies`` of one or several ``replay.json``; a label that comes again is drawn as before.
    """
    found: dict[str, Mark] = {}
    spare = iter(_SPARE_MARKERS * len(policies))
    seen = dict.fromkeys(("controller", "rule"), 0)
    for policy in policies:
        label, kind = policy["policy"], policy["kind"]
        if label in found:
            continue
        color, marker = _SOURCES.get(policy["series"], (OTHER, "s"))
        if kind == "oracle":
            found[label] = Mark(OTHER, "o", (), hollow=True)
        elif kind == "chance":
            found[label] = Mark(OTHER, RULE_MARKERS.get(policy["name"], "d"), (1.5, 1.5))
        elif kind == "fixed":
            dashes = {"power": (), "plain": (5, 2), "lowtemp": (1.5, 1.5)}.get(policy["series"], (5, 1.5, 1.5, 1.5))
            found[label] = Mark(color, marker, dashes)
        elif policy["series"] != "power":
            found[label] = Mark(color, marker, (5, 1.5, 1.5, 1.5), hollow=True)
        else:
            known = CONTROLLER_MARKERS if kind == "controller" else RULE_MARKERS
            found[label] = Mark(
                CONTROLLER if kind == "controller" else RULE,
                known.get(policy["name"]) or next(spare),
                _DASHES[seen[kind] % len(_DASHES)],
            )
            seen[kind] += 1
    return found


def _shape(marker: str) -> str:
    style = MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform())
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
    parts = []
    for points, code in path.iter_segments():
        signs = (1, -1) * (len(points) // 2)  # SVG counts y downwards
        numbers = [f"{value * sign + 0.0:.3g}" for value, sign in zip(points, signs, strict=True)]
        parts.append("Z" if code == Path.CLOSEPOLY else letters[code] + " ".join(numbers))
    return "".join(parts)
