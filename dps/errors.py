"""The exceptions that the command line turns into a sentence."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one sentence or two: what was expected, what came, what to do. It is shown as it is, without a
    traceback, and the process ends with exit code 2. Everything else that is raised is a bug and shows its traceback.
    """


class WorkersDied(RuntimeError):
    """A run cannot go on, because its worker processes died (they were killed, or ran out of memory).

    The message says so and that nothing is lost; it is shown without a traceback, and the exit code is 3.
    """
