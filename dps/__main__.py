"""Entry point of ``dps`` and ``python -m dps``."""

import os
import sys

# Threads that wait for work must not keep a core busy that another process could use; their libraries read this when
# they are loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")

from dps.cli import run


def main() -> None:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a model's text may have what the terminal cannot show
    try:
        code = run(sys.argv[1:])
    except SystemExit as done:  # after --help
        code = done.code
    sys.exit(_flushed(code))


def _flushed(code: int | str | None) -> int | str | None:
    """Write what is left of the output and return the exit code.

    Python would do so at its very end, where it can only print a traceback when the reader of a pipe has gone
    (``dps report | head``, which is no fault) or a disk is full.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if not isinstance(error, BrokenPipeError):
                print(f"dps: error: The output cannot be written ({error.strerror}).", file=sys.stderr)
                code = code or 2
    return code


if __name__ == "__main__":
    main()
