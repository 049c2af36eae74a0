"""What to install where an optional package is missing."""


def install(extra: str, package: str) -> str:
    """Return what a user types: the package, or the extra where the project is installed from a clone.

    The project is on no index, so ``pip install 'dynamic-power-sampling[...]'`` would find nothing.

    Args:
        extra: Name of the extra in ``pyproject.toml``.
        package: The package of it that is missing.
    """
    return f"pip install {package} (in a clone: pip install -e '.[{extra}]')"
