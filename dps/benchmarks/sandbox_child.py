"""Runs inside the sandbox: confines itself, then runs a program or the test of one. Needs the standard library alone.

Started by ``sandbox`` as a command, never imported by the rest of the package. Two processes work on a program. The
*candidate* runs the model's code and answers calls; the *checker* runs the benchmark's test, in which the function to
be tested is a stub that asks the candidate. Only plain values travel between them, in an encoding of their own, so that
nothing that the candidate does to its own interpreter reaches the test, and the verdict goes from the checker to the
parent through a pipe that the candidate does not have.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import json
import os
import platform
import resource
import struct
import sys
from typing import Any

MOST_BYTES = 4 << 20
"""Of one message."""
MOST_DEPTH = 60
"""Of values within values."""
MOST_DIGITS = 10_000
"""Of one integer."""


class NotPlain(Exception):
    """A value that does not travel."""


# -- values ------------------------------------------------------------------------------------------------------------


def encode(value: Any, depth: int = 0) -> Any:
    """Return a plain value as JSON with its type beside it; by exact type, so that a subclass is not plain.

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
        if value.bit_length() > 3 * MOST_DIGITS:
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
    if kind is dict:
        return ["dict", [[encode(key, depth + 1), encode(part, depth + 1)] for key, part in value.items()]]
    raise NotPlain(f"a value of type {kind.__name__}")


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
        if kind == "dict":
            return {decode(key, depth + 1): decode(part, depth + 1) for key, part in parts[0]}
    except (ValueError, TypeError, IndexError, OverflowError, RecursionError) as error:
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
        names: dict[str, Any] = {"__name__": "candidate"}
        exec(compile(job["program"], "program.py", "exec"), names)
        function = names[job["entry_point"]]
    except BaseException as error:  # whatever it raises, the program did not define the function
        channel.send({"error": type(error).__name__})
        return
    channel.send({"ready": True})
    while True:
        arguments, keywords = (decode(part) for part in channel.receive()["call"])
        try:
            reply = {"value": encode(function(*arguments, **keywords))}
        except NotPlain as error:
            reply = {"not_plain": str(error)}
        except BaseException as error:
            reply = {"error": type(error).__name__}
        channel.send(reply)


def checker(job: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Run the test with the candidate's function, or its examples, and return the verdict."""
    calls = 0
    state = channel.receive()
    if not (isinstance(state, dict) and state.get("ready") is True):
        return {"verdict": "failed", "why": "the program does not define the function"}

    class NoPlainValue:
        """What a function returned that is no plain value: equal to nothing."""

        __hash__ = None

        def __eq__(self, other: object) -> bool:
            return False

    def function(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        channel.send({"call": [encode(list(arguments)), encode(keywords)]})
        reply = channel.receive()
        if isinstance(reply, dict) and "value" in reply:
            return decode(reply["value"])
        if isinstance(reply, dict) and "error" in reply:
            kind = getattr(builtins, str(reply["error"]), None)
            is_exception = isinstance(kind, type) and issubclass(kind, Exception)
            raise (kind if is_exception else RuntimeError)("raised by the program")
        return NoPlainValue()

    names: dict[str, Any] = {"__name__": "checker"}
    try:
        exec(compile(job["prompt"], "prompt.py", "exec"), names)  # imports and helpers; the function itself is a stub
    except Exception:
        names = {"__name__": "checker"}  # a prompt that is no program by itself
    names[job["entry_point"]] = function
    if "examples" in job:
        return {"verdict": "examples", "outputs": [_example(source, names) for source in job["examples"]]}
    try:
        exec(compile(job["test"], "test.py", "exec"), names)
        names["check"](function)
    except BaseException as error:
        if calls == 0:
            return {"verdict": "broken", "why": f"the test raised {type(error).__name__} before any call"}
        return {"verdict": "failed", "why": type(error).__name__}
    return {"verdict": "passed"} if calls else {"verdict": "broken", "why": "the test called nothing"}


def _example(source: str, names: dict[str, Any]) -> Any:
    """Return what an expression of the prompt's examples gives, encoded; the name of the exception in a dictionary."""
    try:
        return encode(eval(compile(source, "example.py", "eval"), names))
    except Exception as error:
        return {"raised": type(error).__name__}


# -- confinement -------------------------------------------------------------------------------------------------------

_X86 = {"socket": 41, "connect": 42, "accept": 43, "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47,
        "bind": 49, "listen": 50, "socketpair": 53, "accept4": 288, "clone": 56, "fork": 57, "vfork": 58,
        "execve": 59, "kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "mount": 165, "umount2": 166,
        "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308, "execveat": 322, "keyctl": 250,
        "add_key": 248, "request_key": 249, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
        "memfd_create": 319, "shmget": 29, "shmat": 30, "shmctl": 31, "semget": 64, "msgget": 68, "init_module": 175,
        "finit_module": 313, "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320, "reboot": 169,
        "swapon": 167, "swapoff": 168, "acct": 163, "settimeofday": 164, "clock_settime": 227, "adjtimex": 159,
        "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173, "name_to_handle_at": 303,
        "open_by_handle_at": 304, "quotactl": 179, "personality": 135, "fanotify_init": 300, "mq_open": 240,
        "setpriority": 141, "sched_setaffinity": 203, "setrlimit": 160, "prlimit64": 302, "truncate": 76, "chmod": 90,
        "fchmod": 91, "fchmodat": 268, "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260, "utime": 132,
        "utimes": 235, "utimensat": 280, "futimesat": 261, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190,
        "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199}  # fmt: skip
_ARM = {"socket": 198, "socketpair": 199, "bind": 200, "listen": 201, "accept": 202, "connect": 203, "sendto": 206,
        "recvfrom": 207, "sendmsg": 211, "recvmsg": 212, "accept4": 242, "clone": 220, "execve": 221, "execveat": 281,
        "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "ptrace": 117,
        "process_vm_readv": 270, "process_vm_writev": 271, "mount": 40, "umount2": 39, "pivot_root": 41,
        "chroot": 51, "unshare": 97, "setns": 268, "keyctl": 219, "add_key": 217, "request_key": 218, "bpf": 280,
        "perf_event_open": 241, "userfaultfd": 282, "memfd_create": 279, "shmget": 194, "shmctl": 195, "shmat": 196,
        "semget": 190, "msgget": 186, "init_module": 105, "finit_module": 273, "delete_module": 106,
        "kexec_load": 104, "kexec_file_load": 294, "reboot": 142, "swapon": 224, "swapoff": 225, "acct": 89,
        "settimeofday": 170, "clock_settime": 112, "adjtimex": 171, "sethostname": 161, "setdomainname": 162,
        "name_to_handle_at": 264, "open_by_handle_at": 265, "quotactl": 60, "personality": 92, "fanotify_init": 262,
        "mq_open": 180, "setpriority": 140, "sched_setaffinity": 122, "setrlimit": 164, "prlimit64": 261,
        "truncate": 45, "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "utimensat": 88, "setxattr": 5,
        "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16}  # fmt: skip
_NEWER = {"pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
          "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
          "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438, "mount_setattr": 442, "fchmodat2": 452}  # fmt: skip
_ARCHITECTURES = {"x86_64": (0xC000003E, _X86), "aarch64": (0xC00000B7, _ARM)}
"""Number by which the kernel knows the architecture, and its system calls that are refused."""

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
        (resource.RLIMIT_NPROC, 1),
    ):
        resource.setrlimit(kind, (most, most))
    prctl(1, 9)  # PR_SET_PDEATHSIG: killed with the thread that waits for it
    prctl(4, 0)  # PR_SET_DUMPABLE: no core, no ptrace
    prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
    # A network of its own where that is allowed; sockets are refused anyway.
    libc.unshare(0x10000000 | 0x40000000 | 0x08000000)  # CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC
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
    """Seccomp: refuse the listed system calls with EPERM, and all of another architecture by death."""
    architecture, numbers = _ARCHITECTURES[platform.machine()]
    refused = sorted({*numbers.values(), *_NEWER.values()})
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, 0x80000000), (load, 0, 0, 0)]
    lines.append((at_least, len(refused) + 1, 0, 0x40000000))  # the x32 interface
    lines += [(equal, len(refused) - place, 0, number) for place, number in enumerate(refused)]
    lines += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050000 | errno.EPERM)]
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
    channel = Channel(receive, send)
    try:
        confine(job["limits"], job["readable"])
    except (OSError, KeyError) as error:
        if role == "checker":
            os.write(verdicts, json.dumps({"verdict": "unconfined", "why": str(error)}).encode())
        return
    if role == "candidate":
        candidate(job, channel)
        return
    try:
        found = checker(job, channel)
    except (EOFError, OSError):
        found = {"verdict": "failed", "why": "the program ended"}
    except NotPlain as error:
        found = {"verdict": "failed", "why": str(error)}
    data = json.dumps(found).encode()
    while data:
        data = data[os.write(verdicts, data) :]


if __name__ == "__main__":
    main()
