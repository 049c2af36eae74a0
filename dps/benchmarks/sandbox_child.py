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
from decimal import Decimal
from fractions import Fraction
from typing import Any

MOST_BYTES = 4 << 20
"""Of one message."""
MOST_DEPTH = 60
"""Of values within values."""
MOST_BITS = 1 << 20
"""Of one integer."""
MOST_PARTS = 100_000
"""Of an iterator."""


class NotPlain(Exception):
    """A value that does not travel."""


class ProgramFailed(BaseException):
    """The candidate has ended, or what it sent is no plain value; no ``except Exception`` of a test catches that."""


# -- values ------------------------------------------------------------------------------------------------------------


def _hex(value: int) -> str:
    if value.bit_length() > MOST_BITS:
        raise NotPlain("an integer of too many digits")
    return hex(value)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _fraction(top: int, bottom: int) -> Fraction:
    return Fraction(top, bottom)


_TYPES: dict[str, tuple[type, Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = {
    "text": (str, lambda v, p: v, lambda c, p: _text(c)),
    "int": (int, lambda v, p: _hex(v), lambda c, p: int(c, 16)),
    "float": (float, lambda v, p: v.hex(), lambda c, p: float.fromhex(c)),
    "complex": (complex, lambda v, p: p((v.real, v.imag)), lambda c, p: complex(*p(c))),
    "bytes": (bytes, lambda v, p: v.hex(), lambda c, p: bytes.fromhex(c)),
    "bytearray": (bytearray, lambda v, p: v.hex(), lambda c, p: bytearray.fromhex(c)),
    "list": (list, lambda v, p: p(v), lambda c, p: p(c)),
    "tuple": (tuple, lambda v, p: p(v), lambda c, p: tuple(p(c))),
    "set": (set, lambda v, p: p(v), lambda c, p: set(p(c))),
    "frozenset": (frozenset, lambda v, p: p(v), lambda c, p: frozenset(p(c))),
    "Counter": (Counter, lambda v, p: p(v.items()), lambda c, p: Counter(dict(p(c)))),
    "OrderedDict": (OrderedDict, lambda v, p: p(v.items()), lambda c, p: OrderedDict(p(c))),
    "dict": (dict, lambda v, p: p(v.items()), lambda c, p: dict(p(c))),
    "deque": (deque, lambda v, p: p((list(v), v.maxlen)), lambda c, p: deque(*p(c))),
    "range": (range, lambda v, p: p((v.start, v.stop, v.step)), lambda c, p: range(*p(c))),
    "memory": (memoryview, lambda v, p: v.tobytes().hex(), lambda c, p: bytes.fromhex(c)),
    "keys": (KeysView, lambda v, p: p(v), lambda c, p: dict.fromkeys(p(c)).keys()),
    "values": (ValuesView, lambda v, p: p(v), lambda c, p: dict(enumerate(p(c))).values()),
    "items": (ItemsView, lambda v, p: p(v), lambda c, p: dict(p(c)).items()),
    "mapping": (Mapping, lambda v, p: p(v.items()), lambda c, p: dict(p(c))),
    "own": (UserList | UserString, lambda v, p: p([v.data]), lambda c, p: p(c)[0]),
    "iterator": (Iterator, lambda v, p: p(itertools.islice(v, MOST_PARTS + 1)), lambda c, p: iter(p(c))),
    "decimal": (Decimal, lambda v, p: Decimal.__str__(v), lambda c, p: Decimal(_text(c))),
    "fraction": (Fraction, lambda v, p: p((v.numerator, v.denominator)), lambda c, p: _fraction(*p(c))),
}
"""By tag: the type, how a value is written as JSON (``p`` writes its parts), and how that is read again."""
_BASES = {kind: tag for tag, (kind, *_) in list(_TYPES.items())[:14]}
"""Plain types, of which others may be derived: an object of such a class travels as the plain value in it."""


def encode(value: Any, depth: int = 0) -> Any:
    """Return a plain value as JSON: ``[tag, content]``, of None and a truth value just that.

    Of an object of a class derived from a plain type, what the class says of itself, such as a lying ``__eq__``, stays
    behind. Mappings travel as dictionaries, an iterator as what is left in it. NotPlain for anything else, and what is
    nested too deeply or too long.
    """
    kind = type(value)
    if depth > MOST_DEPTH:
        raise NotPlain("nested too deeply")
    if value is None or kind is bool:
        return value
    tag = _BASES.get(kind)
    if tag is None:
        base = next((base for base in _BASES if isinstance(value, base)), None)
        if base is not None:
            return encode(str.__str__(value) if base is str else base(value), depth + 1)
        tag = next((tag for tag, (kind, *_) in _TYPES.items() if isinstance(value, kind)), None)
    if tag is None:
        raise NotPlain(f"a value of type {kind.__name__}")
    content = _TYPES[tag][1](value, lambda values: [encode(part, depth + 1) for part in values])
    if tag == "iterator" and len(content) > MOST_PARTS:
        raise NotPlain("an iterator of too many parts")
    return [tag, content]


def decode(value: Any, depth: int = 0) -> Any:
    """Return the value that :func:`encode` was given; NotPlain if that is not what it is."""
    if depth > MOST_DEPTH:
        raise NotPlain("nested too deeply")
    if value is None or type(value) is bool:
        return value
    try:
        tag, content = value
        return _TYPES[tag][2](content, lambda values: [decode(part, depth + 1) for part in values])
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise NotPlain("a message that is no value") from error


def _write(place: int, data: bytes) -> None:
    while data:
        data = data[os.write(place, data) :]


class Channel:
    """Lines of JSON over two file descriptors."""

    def __init__(self, receive: int, send: int) -> None:
        self._receive, self._send = os.fdopen(receive, "rb"), send

    def send(self, message: Any) -> None:
        """Write one message."""
        data = json.dumps(message).encode() + b"\n"
        if len(data) > MOST_BYTES:
            raise NotPlain("too many bytes")
        _write(self._send, data)

    def receive(self) -> Any:
        """Read one message; EOFError if there is none any more, NotPlain if it is too long or no JSON."""
        line = self._receive.readline(MOST_BYTES)
        if not line.endswith(b"\n"):
            raise NotPlain("too many bytes") if len(line) == MOST_BYTES else EOFError
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


class Stub:
    """The candidate's function as the test has it; once the candidate has failed, it has failed for good."""

    def __init__(self, channel: Channel, say: Callable[[str], None]) -> None:
        self._channel, self._say = channel, say
        self.calls = 0
        self.failure = ""

    def function(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the candidate's function."""
        message = {"call": [encode(list(arguments)), encode(keywords)]}
        if self.calls == 0:
            self._say("called")
        self.calls += 1
        reply = self.ask(message)
        if "error" in reply:
            raise _exception(reply["error"]) or self._fail("the program gave up")
        try:
            return decode(reply["value"])
        except (NotPlain, KeyError) as error:
            raise self._fail(str(reply.get("not_plain", error))[:200]) from error

    def ask(self, message: Any) -> dict[str, Any]:
        """Return the candidate's next reply."""
        if self.failure:
            raise self._fail(self.failure)
        try:
            if message is not None:
                self._channel.send(message)
            reply = self._channel.receive()
        except (EOFError, OSError) as error:
            raise self._fail("the program ended") from error
        except NotPlain as error:
            raise self._fail(str(error)) from error
        if not isinstance(reply, dict):
            raise self._fail("a reply that is none")
        return reply

    def _fail(self, why: str) -> ProgramFailed:
        self.failure = why or "a reply that is none"
        return ProgramFailed(self.failure)


def checker(job: dict[str, Any], channel: Channel, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the test with the candidate's function, or its examples, and return the verdict.

    ``say`` tells the parent how far this has come, so that it knows whose fault it is when there is no verdict.
    """
    stub = Stub(channel, say)
    try:
        if stub.ask(None).get("ready") is not True:
            return {"verdict": "failed", "why": "the program does not define the function"}
    except ProgramFailed as error:
        return {"verdict": "failed", "why": str(error)}
    say("testing")
    names: dict[str, Any] = {"__name__": "checker"}
    try:
        exec(compile(job["prompt"], "prompt.py", "exec"), names)  # imports and helpers; the function itself is a stub
    except Exception:
        names = {"__name__": "checker"}  # a prompt that is no program by itself
    names[job["entry_point"]] = stub.function
    if "examples" in job:
        return {"verdict": "examples", "outputs": [_example(source, names) for source in job["examples"]]}
    raised = ""
    try:
        if "random" in job["test"]:  # it draws its inputs: the same ones for every program
            import random

            random.seed(0)
        exec(compile(job["test"], "test.py", "exec"), names)
        names["check"](stub.function)
    except BaseException as error:
        raised = type(error).__name__
    if stub.calls == 0:
        return {"verdict": "broken", "why": f"the test raised {raised} before any call" if raised else "no call"}
    if stub.failure or raised:
        return {"verdict": "failed", "why": stub.failure or raised}
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

_ALLOWED = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, -1), "fstat": (5, 80), "lstat": (6, -1),
    "poll": (7, -1), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "pread64": (17, 67), "readv": (19, 65), "writev": (20, 66), "access": (21, -1), "select": (23, -1),
    "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23), "dup2": (33, -1),
    "nanosleep": (35, 101), "getitimer": (36, 102), "alarm": (37, -1), "setitimer": (38, 103), "getpid": (39, 172),
    "exit": (60, 93), "uname": (63, 160), "getdents": (78, -1), "getcwd": (79, 17), "readlink": (89, -1),
    "gettimeofday": (96, 169), "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179),
    "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177),
    "getppid": (110, 173), "sigaltstack": (131, 132), "gettid": (186, 178), "time": (201, -1), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "getdents64": (217, 61), "restart_syscall": (219, 128),
    "fadvise64": (221, 223), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "newfstatat": (262, 79), "readlinkat": (267, 78),
    "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73), "dup3": (292, 24), "pipe2": (293, 59),
    "getrandom": (318, 278), "statx": (332, 291), "close_range": (436, 436), "faccessat2": (439, 439),
}  # fmt: skip
"""System calls that are allowed, by their numbers on x86_64 and aarch64; -1 where there is none."""
_ARCHITECTURES = {
    "x86_64": (0xC000003E, 0, {"openat": 257, "fcntl": 72, "ioctl": 16}),
    "aarch64": (0xC00000B7, 1, {"openat": 56, "fcntl": 25, "ioctl": 29}),
}
"""Number by which the kernel knows the architecture, its column in the table, and system calls that need a look."""
_WRITING = 0o3 | 0o100 | 0o1000
"""Flags of ``openat`` that are refused: to write, O_CREAT, O_TRUNC (which Landlock allows before Linux 6.2)."""
_FCNTL = (0, 1, 2, 3, 1030)
"""Commands of ``fcntl`` that are allowed: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC. F_SETOWN can signal."""

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3


def confine(limits: dict[str, int], readable: list[str]) -> None:
    """Give up everything that a program under test does not need; OSError if the kernel does not offer this.

    Afterwards this process can read the standard library and write nothing; it cannot start processes or threads, open
    sockets, signal others, or change its limits.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    most = {
        resource.RLIMIT_CPU: limits["cpu_s"], resource.RLIMIT_AS: limits["memory_bytes"], resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 32, resource.RLIMIT_NPROC: 0,
    }  # fmt: skip
    for kind, limit in most.items():
        resource.setrlimit(kind, (limit, limit))
    checked(libc.prctl(1, signal.SIGKILL, 0, 0, 0))  # PR_SET_PDEATHSIG: killed with the thread that waits for it
    if os.getppid() != limits["parent"]:
        raise OSError(errno.ESRCH, "the parent has ended")
    checked(libc.prctl(4, 0, 0, 0, 0))  # PR_SET_DUMPABLE: no core, no ptrace
    checked(libc.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS
    # A network of its own where that is allowed; sockets are refused anyway.
    libc.unshare(0x10000000 | 0x40000000 | 0x08000000)  # CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC
    # No capability, such as that of passing over the modes of files.
    checked(libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)))
    _restrict_files(lambda number, *arguments: checked(libc.syscall(number, *arguments)), readable)
    program = _filter()
    code = ctypes.create_string_buffer(program)
    program = struct.pack("HP", len(program) // 8, ctypes.addressof(code))
    checked(libc.prctl(22, 2, program, 0, 0))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


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


def _filter() -> bytes:
    """Return the program for seccomp: all system calls but those that computing needs are refused with EPERM.

    Another architecture's end the process. A list of what is allowed holds on kernels that have learnt new calls since.
    """
    architecture, column, looked_at = _ARCHITECTURES[platform.machine()]
    load, equal, any_of, give = 0x20, 0x15, 0x45, 0x06
    allow, refuse = (give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050000 | errno.EPERM)
    # Fields: what to do, how many lines to skip if it holds, how many if not, operand. At 0 is the call's number, at 4
    # the architecture, at 16 + 8 n its argument n.
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, 0x80000000), (load, 0, 0, 0)]
    for numbers in _ALLOWED.values():
        if numbers[column] >= 0:
            lines += [(equal, 0, 1, numbers[column]), allow]
    lines += [(equal, 0, 1, looked_at["ioctl"]), (give, 0, 0, 0x00050000 | errno.ENOTTY)]
    lines += [(equal, 0, 4, looked_at["openat"]), (load, 0, 0, 16 + 8 * 2), (any_of, 0, 1, _WRITING), refuse, allow]
    lines += [(equal, 1, 0, looked_at["fcntl"]), refuse, (load, 0, 0, 16 + 8)]
    for command in _FCNTL:
        lines += [(equal, 0, 1, command), allow]
    lines.append(refuse)
    return b"".join(struct.pack("HBBI", *line) for line in lines)


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
        _write(verdicts, json.dumps(message).encode() + b"\n")

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
