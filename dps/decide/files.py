"""Where the checkpoint of a controller lies; light, so that a missing one is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

SHIPPED = "controller.ckpt"
"""The checkpoint in a folder of ``dps ship``."""


def controller_file(path: str | Path) -> Path:
    """Return the checkpoint that a path means: itself, or the one in a controller folder or a run folder.

    Args:
        path: A file, a folder of ``dps ship``, or a run folder of ``dps fit``. It need not be there.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    shipped = path / SHIPPED
    return shipped if shipped.is_file() else path / "checkpoints" / "best.ckpt"
