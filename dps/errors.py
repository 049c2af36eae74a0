"""The one exception that the command line turns into a sentence and exit code 2."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one sentence or two: what was expected, what came, what to do. It is shown as it is, without a
    traceback, and the process ends with exit code 2. Everything else that is raised is a bug and shows its traceback.
    """
