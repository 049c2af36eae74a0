"""Build the pages of the Python interface from its docstrings: ``make docs``. A warning is an error."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pdoc

import dps


def build(output: Path) -> Path:
    """Write the pages of what ``dps`` exports into a folder, and return the first one."""
    for name in dps.__all__:
        getattr(dps, name)  # pdoc shows what is loaded
    pdoc.render.configure(docformat="google", footer_text=f"Dynamic Power Sampling {dps.__version__}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc("dps", output_directory=output)
    return output / "dps.html"


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs")))
