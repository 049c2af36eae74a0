"""Entry point of ``dps`` and ``python -m dps``."""

import errno
import os
import sys
import warnings
from pathlib import Path

from dps.cli import run
from dps.start import process_began


def main() -> None:
    """Run the command line and exit with its code.

    What is left of the output is written here: at its very end Python can only print a traceback when the reader of a
    pipe has gone (``dps report | head``, which is no fault) or a disk is full.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a model's text may have what the terminal cannot show
    warnings.formatwarning = _sentence
    process_began()
    code: int | str | None
    try:
        code = run(sys.argv[1:])
        _flush()
    except SystemExit as done:  # after --help
        code = done.code
    except BrokenPipeError:
        code = 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"dps: error: The output cannot be written ({error.strerror}).", file=sys.stderr)
        code = 2
    try:
        _flush()
    except OSError:  # said already, or a pipe; Python must not try again
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


_format = warnings.formatwarning
_PACKAGES = [Path(__file__).parents[1] / name for name in ("dps", "lightning_modules", "feature_store")]


def _sentence(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning as it is shown: ours as a sentence, a library's with the place that it is about."""
    ours = issubclass(category, UserWarning) and any(Path(filename).is_relative_to(one) for one in _PACKAGES)
    return f"Warning: {message}\n" if ours else _format(message, category, filename, lineno, line)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


if __name__ == "__main__":
    main()
