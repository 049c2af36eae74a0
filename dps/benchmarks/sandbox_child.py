"""Runs inside the sandbox: confines itself, then runs a program or the test of one. Needs the standard library alone.

Started by ``sandbox`` as a command, never imported by the rest of the package. Two processes work on a program. The
*candidate* runs the model's code and answers calls; the *checker* runs the benchmark's test, in which the function to
be tested is a stub that asks the candidate. Only plain values travel between them, in an encoding of their own, so that
nothing that the candidate does to its own interpreter reaches the test, and the verdict goes from the checker to the
parent through a pipe that the candidate does not have.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import itertools
import json
import os
import platform
import resource
import signal
import struct
import sys
import types
from collections import Counter, OrderedDict, UserList, UserString, deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

MOST_BYTES = 4 << 20
"""Of one message."""
MOST_DEPTH = 60
"""Of values within values."""
MOST_BITS = 1 << 20
"""Of one integer."""
MOST_PARTS = 100_000
"""Of an iterator."""
_BASES = (int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, Counter, OrderedDict, dict, deque)
_DICTIONARIES = {"dict": dict, "Counter": Counter, "OrderedDict": OrderedDict}


class NotPlain(Exception):
    """A value that does not travel."""


class ProgramFailed(BaseException):
    """The candidate has ended, or what it sent is no plain value; no ``except Exception`` of a test catches that."""


# -- values ------------------------------------------------------------------------------------------------------------


def encode(value: Any, depth: int = 0) -> Any:
    """Return a plain value as JSON with its type beside it.

    An object of a class derived from a plain type (a named tuple) travels as the plain value in it; what its class says
    of itself, such as a lying ``__eq__``, stays behind. So do mappings, which travel as dictionaries. A view of a
    dictionary travels as one, an iterator as what is left in it.

    Raises:
        NotPlain: For anything else, and what is nested too deeply or too long.
    """
    if depth > MOST_DEPTH:
        raise NotPlain("nested too deeply")
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return ["s", value.encode("utf-8", "surrogatepass").hex()] if not value.isprintable() else ["t", value]
    if kind is int:
        if value.bit_length() > MOST_BITS:
            raise NotPlain("an integer of too many digits")
        return ["i", hex(value)]
    if kind is float:
        return ["f", value.hex()]
    if kind is complex:
        return ["c", value.real.hex(), value.imag.hex()]
    if kind in (bytes, bytearray):
        return ["b" if kind is bytes else "y", value.hex()]
    if kind in (list, tuple, set, frozenset):
        return [kind.__name__, [encode(part, depth + 1) for part in value]]
    if kind in (dict, Counter, OrderedDict):
        return [kind.__name__, _pairs(value.items(), depth)]
    if kind is range:
        return ["range", [encode(part, depth + 1) for part in (value.start, value.stop, value.step)]]
    if kind is deque:
        return ["deque", [encode(part, depth + 1) for part in value], encode(value.maxlen)]
    if (number := _number(value)) is not None:
        return number
    if (base := next((base for base in _BASES if isinstance(value, base)), None)) is not None:
        return encode(str.__str__(value) if base is str else base(value), depth + 1)
    if isinstance(value, UserList | UserString):
        return encode(value.data, depth + 1)
    if isinstance(value, KeysView | ValuesView):
        return ["keys" if isinstance(value, KeysView) else "values", [encode(part, depth + 1) for part in value]]
    if isinstance(value, ItemsView):
        return ["items", _pairs(value, depth)]
    if isinstance(value, Mapping):
        return ["dict", _pairs(value.items(), depth)]
    if kind is memoryview:
        return ["b", value.tobytes().hex()]
    if isinstance(value, Iterator):
        parts = [encode(part, depth + 1) for part in itertools.islice(value, MOST_PARTS + 1)]
        if len(parts) <= MOST_PARTS:
            return ["iterator", parts]
    raise NotPlain(f"a value of type {kind.__name__}")


def _pairs(items: Any, depth: int) -> list[list[Any]]:
    return [[encode(key, depth + 1), encode(part, depth + 1)] for key, part in items]


def _number(value: Any) -> Any:
    """Return a ``Decimal`` or ``Fraction`` as it travels, None for anything else; their modules are not loaded here."""
    for module, name in (("decimal", "Decimal"), ("fractions", "Fraction")):
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and isinstance(value, kind):
            if name == "Decimal":
                return ["decimal", kind.__str__(value)]
            return ["fraction", *(encode(part)[1] for part in (int(value.numerator), int(value.denominator)))]
    return None


def decode(value: Any, depth: int = 0) -> Any:
    """Return the value that :func:`encode` was given.

    Raises:
        NotPlain: If that is not what it is.
    """
    if depth > MOST_DEPTH:
        raise NotPlain("nested too deeply")
    if value is None or type(value) is bool:
        return value
    try:
        kind, *parts = value
        if kind == "t" and type(parts[0]) is str:
            return parts[0]
        if kind == "s":
            return bytes.fromhex(parts[0]).decode("utf-8", "surrogatepass")
        if kind == "i":
            return int(parts[0], 16)
        if kind == "f":
            return float.fromhex(parts[0])
        if kind == "c":
            return complex(float.fromhex(parts[0]), float.fromhex(parts[1]))
        if kind in ("b", "y"):
            return (bytes if kind == "b" else bytearray).fromhex(parts[0])
        if kind in ("list", "tuple", "set", "frozenset"):
            return getattr(builtins, kind)([decode(part, depth + 1) for part in parts[0]])
        if kind in ("dict", "Counter", "OrderedDict", "items"):
            pairs = ((decode(key, depth + 1), decode(part, depth + 1)) for key, part in parts[0])
            return _DICTIONARIES[kind](dict(pairs)) if kind != "items" else dict(pairs).items()
        if kind == "keys":
            return dict.fromkeys([decode(part, depth + 1) for part in parts[0]]).keys()
        if kind == "values":
            return dict(enumerate([decode(part, depth + 1) for part in parts[0]])).values()
        if kind == "deque":
            return deque([decode(part, depth + 1) for part in parts[0]], decode(parts[1]))
        if kind == "decimal" and type(parts[0]) is str:
            from decimal import Decimal

            return Decimal(parts[0])
        if kind == "fraction":
            from fractions import Fraction

            return Fraction(int(parts[0], 16), int(parts[1], 16))
        if kind == "range":
            return range(*(decode(part, depth + 1) for part in parts[0]))
        if kind == "iterator":
            return iter([decode(part, depth + 1) for part in parts[0]])
    except (ValueError, TypeError, IndexError, ArithmeticError, RecursionError) as error:
        raise NotPlain("a message that is no value") from error
    raise NotPlain("a message that is no value")


class Channel:
    """Lines of JSON over two file descriptors."""

    def __init__(self, receive: int, send: int) -> None:
        self._receive, self._send, self._held = receive, send, b""

    def send(self, message: Any) -> None:
        """Write one message."""
        data = json.dumps(message).encode() + b"\n"
        if len(data) > MOST_BYTES:
            raise NotPlain("too many bytes")
        while data:
            data = data[os.write(self._send, data) :]

    def receive(self) -> Any:
        """Read one message; EOFError if there is none any more, NotPlain if it is too long or no JSON."""
        while b"\n" not in self._held:
            part = os.read(self._receive, 1 << 16)
            if not part:
                raise EOFError
            self._held += part
            if len(self._held) > MOST_BYTES:
                raise NotPlain("too many bytes")
        line, _, self._held = self._held.partition(b"\n")
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise NotPlain("a message that is no JSON") from error


# -- the two sides -----------------------------------------------------------------------------------------------------


def candidate(job: dict[str, Any], channel: Channel) -> None:
    """Run the program, then call its function as often as the checker asks."""
    sys.setrecursionlimit(3000)
    try:
        module = sys.modules["candidate"] = types.ModuleType("candidate")  # where a dataclass looks for its names
        exec(compile(job["program"], "program.py", "exec"), module.__dict__)
        function = module.__dict__[job["entry_point"]]
    except BaseException as error:  # whatever it raises, the program did not define the function
        channel.send({"error": type(error).__name__})
        return
    channel.send({"ready": True})
    while True:
        arguments, keywords = (decode(part) for part in channel.receive()["call"])
        try:
            reply = {"value": encode(function(*arguments, **keywords))}
        except NotPlain as error:
            reply = {"not_plain": str(error)}  # the checker decides that this is wrong
        except BaseException as error:
            reply = {"error": [kind.__name__ for kind in type(error).__mro__]}
        channel.send(reply)


def checker(job: dict[str, Any], channel: Channel, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the test with the candidate's function, or its examples, and return the verdict.

    Args:
        job: What to run.
        channel: To the candidate.
        say: Tells the parent how far this has come, so that it knows whose fault it is when there is no verdict.
    """
    calls = 0
    failure = None

    def fail(why: str) -> ProgramFailed:
        nonlocal failure
        failure = why
        return ProgramFailed(why)

    def ask(message: Any) -> dict[str, Any]:
        """Return the candidate's next reply; once it has failed, it has failed for good."""
        if failure is not None:
            raise fail(failure)
        try:
            if message is not None:
                channel.send(message)
            reply = channel.receive()
        except (EOFError, OSError) as error:
            raise fail("the program ended") from error
        except NotPlain as error:
            raise fail(str(error)) from error
        if not isinstance(reply, dict):
            raise fail("a reply that is none")
        return reply

    def function(*arguments: Any, **keywords: Any) -> Any:
        """Stand for the candidate's function in the test."""
        nonlocal calls
        message = {"call": [encode(list(arguments)), encode(keywords)]}
        if calls == 0:
            say("called")
        calls += 1
        reply = ask(message)
        if "error" in reply:
            raise _exception(reply["error"]) or fail("the program gave up")
        try:
            return decode(reply["value"])
        except (NotPlain, KeyError) as error:
            raise fail(str(reply.get("not_plain", error))[:200]) from error

    try:
        if ask(None).get("ready") is not True:
            return {"verdict": "failed", "why": "the program does not define the function"}
    except ProgramFailed as error:
        return {"verdict": "failed", "why": str(error)}
    say("testing")
    names: dict[str, Any] = {"__name__": "checker"}
    try:
        exec(compile(job["prompt"], "prompt.py", "exec"), names)  # imports and helpers; the function itself is a stub
    except Exception:
        names = {"__name__": "checker"}  # a prompt that is no program by itself
    names[job["entry_point"]] = function
    if "examples" in job:
        return {"verdict": "examples", "outputs": [_example(source, names) for source in job["examples"]]}
    raised = ""
    try:
        if "random" in job["test"]:  # it draws its inputs: the same ones for every program
            import random

            random.seed(0)
        exec(compile(job["test"], "test.py", "exec"), names)
        names["check"](function)
    except BaseException as error:
        raised = type(error).__name__
    if calls == 0:
        return {"verdict": "broken", "why": f"the test raised {raised} before any call" if raised else "no call"}
    if failure is not None or raised:
        return {"verdict": "failed", "why": failure or raised}
    return {"verdict": "passed"}


def _exception(names: Any) -> Exception | None:
    """Return the exception that a candidate raised, or the nearest builtin one; None for what ends a program.

    None also for what ends an iteration: ``all(map(candidate, inputs))`` would take it for the end of the inputs.
    """
    kinds = (getattr(builtins, str(name), None) for name in (names if isinstance(names, list) else ()))
    kind = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseException)), BaseException)
    if not issubclass(kind, Exception) or issubclass(kind, StopIteration | StopAsyncIteration):
        return None
    for make in (lambda: kind("raised by the program"), lambda: kind.__new__(kind)):
        with contextlib.suppress(TypeError):  # its constructor needs more, as that of UnicodeDecodeError
            return make()
    return Exception("raised by the program")


def _example(source: str, names: dict[str, Any]) -> Any:
    """Return what an expression of the prompt's examples gives, encoded; the name of the exception in a dictionary."""
    try:
        return encode(eval(compile(source, "example.py", "eval"), names))
    except (Exception, ProgramFailed) as error:
        return {"raised": type(error).__name__}


# -- confinement -------------------------------------------------------------------------------------------------------

_X86 = {
    "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
    "pread64": 17, "readv": 19, "writev": 20, "access": 21, "select": 23, "sched_yield": 24, "mremap": 25,
    "madvise": 28, "dup": 32, "dup2": 33, "nanosleep": 35, "getitimer": 36, "alarm": 37, "setitimer": 38,
    "getpid": 39, "exit": 60, "uname": 63, "getdents": 78, "getcwd": 79, "readlink": 89, "gettimeofday": 96,
    "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107,
    "getegid": 108, "getppid": 110, "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202,
    "sched_getaffinity": 204, "getdents64": 217, "restart_syscall": 219, "fadvise64": 221, "clock_gettime": 228,
    "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "newfstatat": 262, "readlinkat": 267,
    "faccessat": 269, "pselect6": 270, "ppoll": 271, "dup3": 292, "pipe2": 293, "getrandom": 318, "statx": 332,
    "close_range": 436, "faccessat2": 439,
}  # fmt: skip
_ARM = {
    "getcwd": 17, "dup": 23, "dup3": 24, "faccessat": 48, "close": 57, "pipe2": 59, "getdents64": 61, "lseek": 62,
    "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67, "pselect6": 72, "ppoll": 73,
    "readlinkat": 78, "newfstatat": 79, "fstat": 80, "exit": 93, "exit_group": 94, "futex": 98, "nanosleep": 101,
    "getitimer": 102, "setitimer": 103, "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115,
    "sched_getaffinity": 123, "sched_yield": 124, "restart_syscall": 128, "sigaltstack": 132, "rt_sigaction": 134,
    "rt_sigprocmask": 135, "rt_sigreturn": 139, "times": 153, "uname": 160, "getrlimit": 163, "getrusage": 165,
    "gettimeofday": 169, "getpid": 172, "getppid": 173, "getuid": 174, "geteuid": 175, "getgid": 176,
    "getegid": 177, "gettid": 178, "sysinfo": 179, "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222,
    "fadvise64": 223, "mprotect": 226, "madvise": 233, "getrandom": 278, "statx": 291, "close_range": 436,
    "faccessat2": 439,
}  # fmt: skip
_ARCHITECTURES = {
    "x86_64": (0xC000003E, _X86, {"openat": 257, "fcntl": 72, "ioctl": 16}),
    "aarch64": (0xC00000B7, _ARM, {"openat": 56, "fcntl": 25, "ioctl": 29}),
}
"""Number by which the kernel knows the architecture, its system calls that are allowed, and some that need a look."""
_WRITING = 0o3 | 0o100 | 0o1000
"""Flags of ``openat`` that are refused: to write, O_CREAT, O_TRUNC (which Landlock allows before Linux 6.2)."""
_FCNTL = (0, 1, 2, 3, 1030)
"""Commands of ``fcntl`` that are allowed: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC. F_SETOWN can signal."""

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3


def confine(limits: dict[str, int], readable: list[str]) -> None:
    """Give up everything that a program under test does not need.

    Afterwards this process can read the standard library and write nothing; it cannot start processes or threads, open
    sockets, signal others, or change its limits.

    Args:
        limits: ``cpu_s``, ``memory_bytes``.
        readable: Files and folders that may be read.

    Raises:
        OSError: If the kernel does not offer this.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: Any) -> int:
        result = libc.syscall(number, *arguments)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    def prctl(option: int, value: Any, third: Any = 0) -> None:
        if libc.prctl(option, value, third, 0, 0):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    for kind, most in (
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(kind, (most, most))
    prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: killed with the thread that waits for it
    if os.getppid() != limits["parent"]:
        raise OSError(errno.ESRCH, "the parent has ended")
    prctl(4, 0)  # PR_SET_DUMPABLE: no core, no ptrace
    prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
    # A network of its own where that is allowed; sockets are refused anyway.
    libc.unshare(0x10000000 | 0x40000000 | 0x08000000)  # CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC
    # No capability, such as that of passing over the modes of files.
    if libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)):
        raise OSError(ctypes.get_errno(), "capset")
    _restrict_files(call, readable)
    _refuse_calls(prctl)


def _restrict_files(call: Any, readable: list[str]) -> None:
    """Landlock: read these files and folders, and nothing else."""
    version = call(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    files = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
    ports = 3 if version >= 4 else 0  # bind and connect
    scope = 3 if version >= 6 else 0  # abstract sockets and signals
    attributes = struct.pack("QQQ", files, ports, scope)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = call(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    for path in readable:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        access = _READ_FILE | _READ_DIR if os.path.isdir(path) else _READ_FILE
        call(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", access, place), 0)
        os.close(place)
    call(_LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def _refuse_calls(prctl: Any) -> None:
    """Seccomp: refuse with EPERM all system calls but those that computing needs; another architecture's by death.

    A list of what is allowed holds on kernels that have learnt new calls since.
    """
    architecture, allowed, looked_at = _ARCHITECTURES[platform.machine()]
    load, equal, any_of, give = 0x20, 0x15, 0x45, 0x06
    allow, refuse = (give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050000 | errno.EPERM)
    # Fields: what to do, how many lines to skip if it holds, how many if not, operand. At 0 is the call's number, at 4
    # the architecture, at 16 + 8 n its argument n.
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, 0x80000000), (load, 0, 0, 0)]
    for number in allowed.values():
        lines += [(equal, 0, 1, number), allow]
    lines += [(equal, 0, 1, looked_at["ioctl"]), (give, 0, 0, 0x00050000 | errno.ENOTTY)]
    lines += [(equal, 0, 4, looked_at["openat"]), (load, 0, 0, 16 + 8 * 2), (any_of, 0, 1, _WRITING), refuse, allow]
    lines += [(equal, 1, 0, looked_at["fcntl"]), refuse, (load, 0, 0, 16 + 8)]
    for command in _FCNTL:
        lines += [(equal, 0, 1, command), allow]
    lines.append(refuse)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = struct.pack("HP", len(lines), ctypes.addressof(code))
    prctl(22, 2, program)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def main() -> None:
    """Read the job, confine, run one side. Arguments: role, descriptors to receive from and to send to."""
    role, receive, send = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    job = json.loads(sys.stdin.buffer.readline())
    verdicts = os.dup(1) if role == "checker" else -1
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)

    def say(message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(verdicts, data) :]

    try:
        confine(job["limits"], job["readable"])
    except (OSError, KeyError) as error:
        if role == "checker":
            say({"verdict": "unconfined", "why": str(error)})
        return
    channel = Channel(receive, send)
    os.environ.clear()
    if role == "candidate":
        candidate(job, channel)
    else:
        say("waiting")
        say(checker(job, channel, say))


if __name__ == "__main__":
    main()
