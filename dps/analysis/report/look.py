"""How all figures look: colours, fonts, and how a figure becomes bytes that are the same in every run."""

from __future__ import annotations

from io import BytesIO, StringIO
from typing import TYPE_CHECKING

import matplotlib
from matplotlib import ft2font

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1f2328"
"""Text and axes."""
MUTED = "#5d6670"
"""Secondary text."""
GRID = "#e3e6ea"
"""Grid lines."""
SURFACE = "#ffffff"
"""The page behind the figure."""
# Okabe and Ito's palette, which people with colour-blindness can tell apart; line style and marker say the same again.
POWER, CONTROLLER, PLAIN, LOWTEMP, OTHER = "#0072b2", "#b3418a", "#d55e00", "#009e73", "#6f6f6f"
RULE = "#7a5c00"
"""Rules that need no training, over power sampling."""

SERIES = {
    "power": (POWER, "o", "-", "power sampling, fixed k"),
    "plain": (PLAIN, "s", "--", "plain sampling"),
    "lowtemp": (LOWTEMP, "v", ":", "low temperature"),
}
"""Colour, marker, line and name of a source's fixed k."""
CONTROLLER_MARKERS = {"gbdt": "^", "mlp-h": "D", "mlp-hq": "*"}
"""Of the published controllers."""
RULE_MARKERS = {
    "adaptive-consistency": "P",
    "esc": "X",
    "sprt": "<",
    "entropy": ">",
    "self-confidence": "p",
    "uab": "h",
    "random": "d",
}
"""Of the rules that need no training."""

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib, so labels are measured alike everywhere
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "path",
}
"""Of matplotlib."""


def png(figure: Figure) -> bytes:
    """Return a figure as PNG at 200 dots per inch, without date or version."""
    out = BytesIO()
    figure.savefig(out, format="png", dpi=200, facecolor=SURFACE, metadata={"Software": None})
    return out.getvalue()


def svg(figure: Figure, salt: str) -> str:
    """Return a figure as SVG text, without date.

    Args:
        figure: The figure.
        salt: Decides the generated ids, so that they are the same in every run.
    """
    out = StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", facecolor=SURFACE, metadata=nothing)
    return out.getvalue()


def drawn_with() -> dict[str, str]:
    """Return the versions of what draws the figures: the same ones give the same bytes, others may not."""
    return {"matplotlib": matplotlib.__version__, "freetype": ft2font.__freetype_version__}
