"""What to install where an optional package is missing."""


def install(extra: str, package: str) -> str:
    """Return what a user types: the missing package, or the extra of ``pyproject.toml`` in a clone.

    The project is on no index, so ``pip install 'dynamic-power-sampling[...]'`` would find nothing.
    """
    return f"pip install {package} (in a clone: pip install -e '.[{extra}]')"
