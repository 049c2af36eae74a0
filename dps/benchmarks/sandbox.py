"""Running programs that a model wrote: in processes that can do nothing but compute, and end in time.

The work is done by ``sandbox_child``, started twice for every program; this module starts it, waits, and kills. What
confines a program is described in ``docs/security.md``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dps.errors import InputError

_CHILD = Path(__file__).with_name("sandbox_child.py")
_LONGEST_LINE = 1 << 20
"""Bytes of what a process says: as Python's objects they are some fifteen times as many."""
_START_S = 60.0
"""Longest wait for the two processes to start; on a busy machine that takes seconds."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may take."""

    wall_s: float = 10.0
    """Seconds until it is killed."""
    cpu_s: int = 8
    memory_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a program."""

    kind: str
    """``passed``, ``failed``, ``examples``, or ``broken`` where the test or the machine is at fault."""
    why: str = ""
    """The reason, in a few words."""
    outputs: tuple[Any, ...] = ()
    """Of examples, what each gave: encoded values, or the exception."""


_LIMITS = Limits()
_NO_VERDICT = {
    "": Verdict("broken", "the sandbox did not start"),
    "waiting": Verdict("failed", "no function in time"),
    "testing": Verdict("broken", "the test called nothing in time"),
    "called": Verdict("failed", "no verdict in time"),
}
"""What it means when nothing more is heard of a checker that last said this."""


def run_program(program: str, check: dict[str, Any], limits: Limits = _LIMITS) -> Verdict:
    """Run a program's function through a test, or evaluate examples with it; what is left of it is killed.

    ``check`` has ``entry_point``, the function's name; ``prompt``, source that the test may use, such as helpers; and
    ``test``, source that defines ``check(candidate)``, or ``examples``, expressions. All of them are trusted.
    InputError if this system cannot confine a program.
    """
    common = {
        "limits": {"cpu_s": limits.cpu_s, "memory_bytes": limits.memory_bytes, "parent": os.getpid()},
        "readable": _readable(),
        "entry_point": check["entry_point"],
    }
    with contextlib.ExitStack() as held:
        try:
            folder = held.enter_context(tempfile.TemporaryDirectory(prefix="dps-sandbox-"))
            with contextlib.ExitStack() as pipes:
                ends = [*os.pipe(), *os.pipe()]  # to the candidate, to the checker
                for end in ends:
                    pipes.callback(os.close, end)
                candidate = _Process("candidate", ends[0], ends[3], folder)
                held.callback(candidate.stop)
                checker = _Process("checker", ends[2], ends[1], folder)
                held.callback(checker.stop)
        except OSError as error:  # no descriptor, process or memory left
            return Verdict("broken", f"the sandbox did not start: {error.strerror}")
        for process, job in ((candidate, common | {"program": program}), (checker, common | check)):
            with contextlib.suppress(OSError):  # it has died, so there will be no verdict
                process.send(job)
        verdict = _wait(checker, limits.wall_s)
    if verdict.kind == "unconfined":
        raise InputError(
            f"Model-written programs run only where the kernel can confine them, with Landlock and seccomp (Linux 5.13 "
            f"or newer on x86_64 or aarch64), but here it cannot ({verdict.why}): grade on such a system with "
            "dps grade."
        )
    return verdict


class _Process:
    """One side of the sandbox, in a session of its own: is sent one line of JSON, and says lines of JSON."""

    def __init__(self, role: str, receive: int, send: int, folder: str) -> None:
        # No site packages, nothing from the current folder, and sets in the same order every time (-I would ignore the
        # seed with the rest of the environment). Nothing is forked: the parent may hold a GPU and many threads.
        options = ["-P", "-s", "-S", "-B", "-X", "utf8"]
        self._received = b""
        self._process = subprocess.Popen(
            [sys.executable, *options, str(_CHILD), role, str(receive), str(send)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if role == "checker" else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PYTHONHASHSEED": "0"},
            pass_fds=(receive, send),
            start_new_session=True,
        )

    def send(self, message: Any) -> None:
        """Write a line; OSError if the process has died."""
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def receive(self, limit_s: float) -> Any:
        """Return the next line's value; TimeoutError if it takes longer, EOFError if none comes or it is too long."""
        end, file = time.monotonic() + limit_s, self._process.stdout.fileno()
        ready = select.poll()  # select() cannot wait for descriptors over 1,023
        ready.register(file, select.POLLIN)
        while b"\n" not in self._received:
            left = end - time.monotonic()
            if left <= 0 or not ready.poll(1000 * left):
                raise TimeoutError
            part = os.read(file, 1 << 16)
            self._received += part
            if not part or len(self._received) > _LONGEST_LINE:
                raise EOFError
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def stop(self) -> None:
        """Kill the process and its children."""
        if self._process.poll() is None:  # a number that was given back may be another's
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout):
            if file is not None:
                with contextlib.suppress(OSError):  # what was not written any more
                    file.close()


def _wait(checker: _Process, wall_s: float) -> Verdict:
    """Return what the checker says in the end, or what it means that it says nothing in time.

    Its lines say how far it is, the last one the verdict. The time runs from when it is ready, so that a busy machine's
    slow start is not the program's.
    """
    stage, end = "", time.monotonic() + _START_S
    while True:
        try:
            said = checker.receive(end - time.monotonic())
        except TimeoutError:
            return _NO_VERDICT[stage]
        except EOFError:  # it was killed: by its own limits after a call, by somebody else before
            return _NO_VERDICT["called" if stage == "called" else ""]
        if isinstance(said, dict):
            return Verdict(said["verdict"], said.get("why", ""), tuple(said.get("outputs", ())))
        if not stage:
            end = time.monotonic() + wall_s
        stage = said


def _readable() -> list[str]:
    """Return what an interpreter must be able to read: its standard library and the system's shared libraries."""
    places = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.dirname(os.__file__)]
    base = Path(sys.base_prefix) / "lib"
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/zoneinfo"]
    return list(dict.fromkeys([*places, str(base), *system, "/dev/null", "/dev/urandom"]))
