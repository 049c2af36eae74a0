"""What to install where an optional package is missing."""

from importlib.util import find_spec

from dps.errors import InputError


def install(extra: str, *packages: str) -> str:
    """Return what a user types: the missing packages, or the extra of ``pyproject.toml`` in a clone.

    The project is on no index, so ``pip install 'dynamic-power-sampling[...]'`` would find nothing.
    """
    return f"pip install {' '.join(packages)} (in a clone: pip install -e '.[{extra}]')"


def require(what: str, extra: str, *packages: str, instead: str = "") -> None:
    """Raise an InputError for ``what`` needs packages that are not installed; ``instead`` is how to do without."""
    if lacking := [package for package in packages if find_spec(package.replace("-", "_")) is None]:
        raise InputError(f"{what} needs {' and '.join(lacking)}: {install(extra, *lacking)}{instead}.")
