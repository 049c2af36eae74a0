"""Where the checkpoint of a controller lies; light, so that a missing one is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

SHIPPED = "controller.ckpt"
"""The checkpoint in a folder of ``dps ship``."""


def controller_file(path: str | Path) -> Path:
    """Return the checkpoint that a path means: a file, the one of ``dps ship``'s folder or of ``dps fit``'s run folder.

    The path need not be there.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    shipped = path / SHIPPED
    return shipped if shipped.is_file() else path / "checkpoints" / "best.ckpt"
