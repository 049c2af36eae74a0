"""Entry point of ``dps`` and ``python -m dps``."""

import sys

from dps.cli import run


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
