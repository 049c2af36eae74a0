"""The benchmarks' files on the Hugging Face hub."""

from __future__ import annotations

from dps.benchmarks import NAMES, module_of
from dps.benchmarks.records import HubFile

SOURCES: dict[tuple[str, str], HubFile] = {
    (name, split): file for name in NAMES for split, file in getattr(module_of(name), "FILES", {}).items()
}
"""By benchmark and split."""


def may_be_shown(name: str) -> bool:
    """Return whether the authors of a benchmark let its questions be shown online."""
    return all(file.shown for (benchmark, _), file in SOURCES.items() if benchmark == name)
