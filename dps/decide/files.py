"""Where a trained controller lies: a file, a folder, or a repository on the hub.

Light, so that a missing controller is refused before anything is loaded.
"""

from __future__ import annotations

from pathlib import Path

from dps.hub import Kind

SHIPPED = "controller.safetensors"
"""The controller in a folder of ``dps ship``."""
CONTROLLER = Kind("controller", SHIPPED, ("controller.json", "README.md"))
"""What a repository of a shipped controller holds."""


def controller_file(path: str | Path) -> Path:
    """Return the file that a path means: itself, or that of ``dps ship``'s folder or of ``dps fit``'s run folder.

    ``owner/name``, where no such folder is here, is a repository on the Hugging Face hub; ``owner/name@revision`` is
    that repository at a commit, tag or branch. The path need not be there.

    Raises:
        InputError: If the hub does not have such a repository, or does not answer.
    """
    path = CONTROLLER.fetched(path) or Path(path)
    if not path.is_dir():
        return path
    return path / SHIPPED if (path / SHIPPED).is_file() else path / "checkpoints" / "best.ckpt"
