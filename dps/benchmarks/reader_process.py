"""A process that reads responses: Python's work on them does not hold up the threads of the run.

The process is started as a program of its own, never forked (the run may hold a GPU and many threads) and never through
``multiprocessing``, which forbids daemons to have children and imports a user's script again. It imports graders, not
PyTorch, and ends by itself when the run is gone, whatever it is doing.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe

from dps.benchmarks.grading import Answers, Grader, Item, Reading
from dps.errors import WorkersDied

_MOST_DEATHS = 3
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class ReaderProcess:
    """Reads responses in a process, which starts when it is first needed and again after it died."""

    def __init__(self, grader: Grader) -> None:
        self._grader = grader
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Connection | None = None
        self._changing = threading.Lock()
        self._stopped = False

    def read(self, texts: Sequence[str], item: Item, prompt: str, answers: Answers) -> list[Reading]:
        """Read responses to a prompt; ``answers`` knows theirs afterwards, with their keys. For one thread at a time.

        Raises:
            WorkersDied: If three processes died over them, or this reader was stopped.
            Exception: What the grader raised.
        """
        death: Exception | None = None
        for _ in range(_MOST_DEATHS):
            try:
                line = self._started()
                line.send((self._grader, texts, item, prompt, answers))
                result = line.recv()
            except (EOFError, OSError) as error:
                self._end()
                death = error
                continue
            if isinstance(result, Exception):
                raise result
            readings, known = result
            answers.grades.update(known.grades)
            answers.keys.update(known.keys)
            return readings
        raise WorkersDied(
            f"Three processes died that read the responses to the question {item.question_id}; what was committed is "
            "kept. If they ran out of memory, leave more of it."
        ) from death

    def _started(self) -> Connection:
        """Return the line to the process, which is started if there is none."""
        with self._changing:
            if self._stopped:
                raise WorkersDied("The reading of responses was stopped.")
            if self._line is not None:
                return self._line
            self._line, theirs = Pipe()
            with theirs:
                start = (
                    f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve({theirs.fileno()})"
                )
                self._process = subprocess.Popen(
                    [sys.executable, "-c", start],
                    stdin=subprocess.PIPE,  # whose end tells the process that this one is gone
                    stdout=subprocess.DEVNULL,
                    env=os.environ | _ONE_THREAD,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C is for the run, which stops its readers
                )
            return self._line

    def stop(self) -> None:
        """Kill the process; from any thread, and a reading under way ends in an exception."""
        with self._changing:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def _end(self) -> None:
        """Take away what is left of the process."""
        with self._changing:
            process, line, self._process, self._line = self._process, self._line, None, None
        if line is not None:
            line.close()
        if process is not None:
            process.kill()
            with suppress(OSError):
                process.stdin.close()
            process.wait()

    def close(self) -> None:
        """Stop and take away the process, when no thread reads any more."""
        self.stop()
        self._end()


def serve(descriptor: int) -> None:
    """Body of the process: answer what comes over the line."""
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    with Connection(descriptor) as line, suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            line.send_bytes(_answer(line.recv_bytes()))


def _answer(request: bytes) -> bytes:
    """Return readings and answers, or the exception instead of them, pickled; an exception that cannot be as text."""
    try:
        grader, *asked, answers = pickle.loads(request)
        return pickle.dumps((answers.add(grader, *asked), answers))
    except Exception as error:
        text = f"In a process that read responses:\n{traceback.format_exc()}"
        error.add_note(text)
        try:
            return pickle.dumps(pickle.loads(pickle.dumps(error)))
        except Exception:
            return pickle.dumps(RuntimeError(text))


def _end_with_the_run() -> None:
    sys.stdin.buffer.read()
    os._exit(0)
