"""Running programs that a model wrote: in processes that can do nothing but compute, and end in time.

The work is done by ``sandbox_child``, started twice for every program; this module starts it, waits, and kills. What
confines a program is described in ``docs/sandbox.md``.
"""

from __future__ import annotations

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
_LONGEST_VERDICT = 8 << 20


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
    """``passed``, ``failed``, ``examples``, or ``broken`` where the test itself is at fault."""
    why: str = ""
    """The reason, in a few words."""
    outputs: tuple[Any, ...] = ()
    """Of examples, what each gave: encoded values, or the exception."""


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
        "limits": {"cpu_s": limits.cpu_s, "memory_bytes": limits.memory_bytes},
        "readable": _readable(),
        "entry_point": check["entry_point"],
    }
    to_candidate, to_checker = os.pipe(), os.pipe()
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="dps-sandbox-") as folder:
        try:
            processes.append(_start("candidate", to_candidate[0], to_checker[1], folder))
            processes.append(_start("checker", to_checker[0], to_candidate[1], folder))
            for descriptor in (*to_candidate, *to_checker):
                os.close(descriptor)
            for process, job in zip(processes, (common | {"program": program}, common | check), strict=True):
                _give(process, job)
            found = _wait(processes[1], time.monotonic() + limits.wall_s)
        finally:
            for process in processes:
                _kill(process)
    if found is None:
        return Verdict("failed", "no verdict in time")
    if found["verdict"] == "unconfined":
        raise InputError(
            f"Model-written programs run only where the kernel can confine them, with Landlock and seccomp (Linux 5.13 "
            f"or newer on x86_64 or aarch64), but here it cannot ({found['why']}): grade on such a system with "
            "dps grade."
        )
    return Verdict(found["verdict"], found.get("why", ""), tuple(found.get("outputs", ())))


def _start(role: str, receive: int, send: int, folder: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # -I and -S: no environment, no site packages, nothing from the current folder.
        [sys.executable, "-I", "-S", "-B", str(_CHILD), role, str(receive), str(send)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if role == "checker" else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(receive, send),
        cwd=folder,
        env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"},
        start_new_session=True,
    )


def _give(process: subprocess.Popen[bytes], job: dict[str, Any]) -> None:
    try:
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.close()
    except OSError:  # it has died, so there will be no verdict
        pass


def _wait(checker: subprocess.Popen[bytes], end: float) -> dict[str, Any] | None:
    """Return the checker's verdict, None if it gives none in time."""
    received = b""
    file = checker.stdout.fileno()
    while len(received) <= _LONGEST_VERDICT:
        left = end - time.monotonic()
        if left <= 0 or not select.select([file], [], [], left)[0]:
            return None
        part = os.read(file, 1 << 16)
        if not part:
            break
        received += part
    try:
        return json.loads(received)
    except ValueError:
        return None


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
