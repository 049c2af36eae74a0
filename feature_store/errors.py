"""What a store raises when it cannot be read or written."""


class StoreError(ValueError):
    """A store is absent, truncated, of another version, or of another run.

    The message says what was expected, what was found and what to do; the command line shows it as it is and ends with
    exit code 2.
    """
