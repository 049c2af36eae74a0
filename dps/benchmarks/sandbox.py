"""Running programs that a model wrote: in processes that can do nothing but compute, and end in time.

The work is done by ``sandbox_child``, started twice for every program; this module starts it, waits, and kills. What
confines a program is described in ``docs/sandbox.md``.
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
_LONGEST_VERDICT = 1 << 20
"""Bytes that a checker may say: as Python's objects they are some fifteen times as many."""
_START_S = 60.0
"""Longest wait for the two processes to start; on a busy machine that takes seconds."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may take."""

    wall_s: float = 10.0
    """Seconds until it is killed."""
    cpu_s: int = 8
    """Processor seconds."""
    memory_bytes: int = 1 << 30
    """Address space."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a program."""

    kind: str
    """``passed``, ``failed``, ``examples``, or ``broken`` where the test or the machine is at fault."""
    why: str = ""
    """The reason, in a few words."""
    outputs: tuple[Any, ...] = ()
    """Of examples, what each gave: encoded values, or the exception."""


_NO_VERDICT = {
    "": Verdict("broken", "the sandbox did not start"),
    "waiting": Verdict("failed", "no function in time"),
    "testing": Verdict("broken", "the test called nothing in time"),
    "called": Verdict("failed", "no verdict in time"),
}
"""What it means when nothing more is heard of a checker that last said this."""


def run_test(program: str, *, prompt: str, test: str, entry_point: str, limits: Limits | None = None) -> Verdict:
    """Run a program's function through a test.

    Args:
        program: The candidate's source, which defines ``entry_point``.
        prompt: Source that the test may use, such as helpers; trusted.
        test: Source that defines ``check(candidate)``; trusted.
        entry_point: Name of the function.
        limits: Time and memory.

    Raises:
        InputError: If this system cannot confine a program.
    """
    return _run(program, {"prompt": prompt, "test": test, "entry_point": entry_point}, limits or Limits())


def run_examples(
    program: str, *, prompt: str, examples: list[str], entry_point: str, limits: Limits | None = None
) -> Verdict:
    """Evaluate expressions with a program's function; the outputs are those of the verdict ``examples``.

    Raises:
        InputError: If this system cannot confine a program.
    """
    return _run(program, {"prompt": prompt, "examples": examples, "entry_point": entry_point}, limits or Limits())


def _run(program: str, check: dict[str, Any], limits: Limits) -> Verdict:
    """Start both sides, wait for the checker's verdict, kill what is left."""
    common = {
        "limits": {"cpu_s": limits.cpu_s, "memory_bytes": limits.memory_bytes, "parent": os.getpid()},
        "readable": _readable(),
        "entry_point": check["entry_point"],
    }
    processes: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as held:
        try:
            folder = held.enter_context(tempfile.TemporaryDirectory(prefix="dps-sandbox-"))
            with contextlib.ExitStack() as pipes:
                to_candidate, to_checker = _pipe(pipes), _pipe(pipes)
                for role, receive, send in (
                    ("candidate", to_candidate[0], to_checker[1]),
                    ("checker", to_checker[0], to_candidate[1]),
                ):
                    processes.append(_start(role, receive, send, folder))
                    held.callback(_kill, processes[-1])
        except OSError as error:  # no descriptor, process or memory left
            return Verdict("broken", f"the sandbox did not start: {error.strerror}")
        for process, job in zip(processes, (common | {"program": program}, common | check), strict=True):
            _give(process, job)
        found = _wait(processes[1], limits.wall_s)
    if isinstance(found, Verdict):
        return found
    if found["verdict"] == "unconfined":
        raise InputError(
            f"Model-written programs run only where the kernel can confine them, with Landlock and seccomp (Linux 5.13 "
            f"or newer on x86_64 or aarch64), but here it cannot ({found['why']}): grade on such a system with "
            "dps grade."
        )
    return Verdict(found["verdict"], found.get("why", ""), tuple(found.get("outputs", ())))


def _pipe(held: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        held.callback(os.close, end)
    return ends


def _start(role: str, receive: int, send: int, folder: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # No site packages, nothing from the current folder, and sets in the same order every time (-I would ignore
        # the seed with the rest of the environment).
        [sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", str(_CHILD), role, str(receive), str(send)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if role == "checker" else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(receive, send),
        cwd=folder,
        env={"PYTHONHASHSEED": "0"},
        start_new_session=True,
    )


def _give(process: subprocess.Popen[bytes], job: dict[str, Any]) -> None:
    try:
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.close()
    except OSError:  # it has died, so there will be no verdict
        pass


def _wait(checker: subprocess.Popen[bytes], wall_s: float) -> dict[str, Any] | Verdict:
    """Return what the checker says in the end, or what it means that it says nothing in time.

    Its lines say how far it is, the last one the verdict. The time runs from when it is ready, so that a busy machine's
    slow start is not the program's.
    """
    received, stage, end = b"", "", time.monotonic() + _START_S
    file = checker.stdout.fileno()
    ready = select.poll()  # select() cannot wait for descriptors over 1,023
    ready.register(file, select.POLLIN)
    while len(received) <= _LONGEST_VERDICT:
        while b"\n" in received:
            line, _, received = received.partition(b"\n")
            said = json.loads(line)
            if isinstance(said, dict):
                return said
            if not stage:
                end = time.monotonic() + wall_s
            stage = said
        left = end - time.monotonic()
        if left <= 0 or not ready.poll(1000 * left):
            return _NO_VERDICT[stage]
        part = os.read(file, 1 << 16)
        if not part:  # it was killed: by its own limits after a call, by somebody else before
            return _NO_VERDICT["called" if stage == "called" else ""]
        received += part
    return _NO_VERDICT[stage]


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.wait()
    for file in (process.stdin, process.stdout):
        if file is not None:
            file.close()


def _readable() -> list[str]:
    """Return what an interpreter must be able to read: its standard library and the system's shared libraries."""
    places = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.dirname(os.__file__)]
    base = Path(sys.base_prefix) / "lib"
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/zoneinfo"]
    return list(dict.fromkeys([*places, str(base), *system, "/dev/null", "/dev/urandom"]))
