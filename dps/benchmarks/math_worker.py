"""Runs in a worker process: whether two mathematical answers are equal, by the library math-verify.

Its own time limits work only in a main thread and by signals, so they are off; the process has limits of its own.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

logging.disable(logging.CRITICAL)
_EXTRACTION = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


def compare(payload: dict[str, Any]) -> str:
    r"""Return ``equal``, ``different``, or ``unreadable`` where the gold answer cannot be read.

    Args:
        payload: ``{"gold": LaTeX, "answer": LaTeX}``, both without their dollar signs. Bare LaTeX must be wrapped as
            mathematics, or the library reads only what happens to look like a number in it.
    """
    gold, answer = (_parsed(payload[name]) for name in ("gold", "answer"))
    if not gold:
        return "unreadable"
    if not answer:
        return "different"
    equal = verify(gold, answer, strict=True, allow_set_relation_comp=True, timeout_seconds=None)
    return "equal" if equal else "different"


def _parsed(latex: str) -> list[Any]:
    found = parse(rf"$\boxed{{{latex}}}$", extraction_config=_EXTRACTION, parsing_timeout=None)
    return found or parse(f"${latex}$", extraction_config=_EXTRACTION, parsing_timeout=None)


if __name__ == "__main__":
    from dps.benchmarks.workers import serve

    serve(compare, sys.argv[1:])
