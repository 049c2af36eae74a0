# ruff: noqa: E501
import os
import resource
import socket
import subprocess
import tempfile
import time
from collections import Counter, OrderedDict, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

from dps.benchmarks import sandbox
from dps.benchmarks.sandbox import Limits, run_examples, run_test
from dps.benchmarks.sandbox_child import NotPlain, decode, encode
from dps.errors import InputError
from tests.benchmarks.hostile_programs import HOSTILE

PROMPT = 'import math\n\ndef helper(x):\n    return x + 1\n\ndef f(x):\n    """Twice its successor."""\n'
TEST = "def check(candidate):\n    assert candidate(2) == 2 * helper(2)\n    assert candidate(x=5) == 12\n"
QUICK = Limits(wall_s=1.5, cpu_s=1, memory_bytes=256 << 20)


def verdict(program, test=TEST, limits=QUICK, prompt=PROMPT):
    return run_test(program, prompt=prompt, test=test, entry_point="f", limits=limits)


def test_right_and_wrong():
    assert verdict("def f(x): return 2 * x + 2\n").kind == "passed"
    wrong = verdict("def f(x): return 2 * x + 3\n")
    assert (wrong.kind, wrong.why) == ("failed", "AssertionError")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Every hostile program's verdict, and what stood around them before and after."""
    folder = tmp_path_factory.mktemp("outside")
    home, secret, sentinel = folder / "home", folder / "home" / "secret", folder / "sentinel"
    home.mkdir()
    working = tmp_path_factory.mktemp("working")
    before_working, tempfile.tempdir = tempfile.tempdir, str(working)
    secret.write_text("secret")
    secret.chmod(0o644)
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    names = f"SENTINEL, SECRET, HOME, PORT = {str(sentinel)!r}, {str(secret)!r}, {str(home)!r}, "
    names += f"{server.getsockname()[1]}\n"
    before = secret.stat()
    names += f"PARENT = {os.getpid()}\n"
    os.environ["DPS_SECRET"] = "secret"
    started = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        found = dict(zip(HOSTILE, threads.map(lambda source: verdict(names + source), HOSTILE.values()), strict=True))
    seconds = time.monotonic() - started
    del os.environ["DPS_SECRET"]
    tempfile.tempdir = before_working
    assert not list(working.iterdir())
    yield found, seconds, (before, secret.stat(), secret.read_text()), sorted(p.name for p in folder.iterdir()), server
    server.close()


def test_no_hostile_program_passes(hostile):
    found, *_ = hostile
    assert len(found) >= 25
    assert {name for name, v in found.items() if v.kind != "failed"} == set()


def test_hostile_programs_end_within_their_limits(hostile):
    found, seconds, *_ = hostile
    assert seconds < 2.5 * QUICK.wall_s * len(found) / 4 + 10


def test_hostile_programs_change_nothing_outside(hostile):
    *_, (before, after, content), names, server = hostile
    assert content == "secret"
    assert (before.st_mode, before.st_mtime, before.st_ino) == (after.st_mode, after.st_mtime, after.st_ino)
    assert names == ["home"]
    with pytest.raises(BlockingIOError):
        server.accept()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert os.getpriority(os.PRIO_PROCESS, 0) == 0


def test_hostile_programs_leave_no_processes(hostile):
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "sandbox_child.py" not in listing


def test_a_secret_in_the_environment_or_a_file_is_not_seen(hostile):
    """The reasons show that these programs failed for want of access and not for a wrong answer."""
    found, *_ = hostile
    for name in (
        "read a secret",
        "read passwords",
        "write outside",
        "write here",
        "truncate",
        "chmod",
        "socket",
        "fork bomb",
    ):
        assert found[name].why == "PermissionError", name
    assert found["read the environment"].why == "KeyError"
    assert found["flags of the library"].why == "OSError"


def test_what_a_program_prints_or_needs_of_the_library_does_no_harm():
    source = "import math, re, json, heapq, hashlib, datetime, random, decimal, bisect\nprint('x')\n"
    source += "def f(x):\n    print(x)\n    return 2 * x + 2\n"
    assert verdict(source).kind == "passed"


def test_exceptions_reach_the_test_by_name():
    test = "def check(candidate):\n    try: candidate(1)\n    except ValueError: return\n    assert False\n"
    assert verdict("def f(x): raise ValueError('no')\n", test).kind == "passed"
    assert verdict("def f(x): raise TypeError('no')\n", test).kind == "failed"


def test_a_test_that_is_at_fault_is_no_verdict_on_the_program():
    assert verdict("def f(x): return 1\n", "def check(candidate):\n    assert undefined\n").kind == "broken"
    assert verdict("def f(x): return 1\n", "def check(candidate):\n    pass\n").kind == "broken"
    assert verdict("def f(x): return 1\n", "syntax error").kind == "broken"


def test_examples_give_values_and_exceptions():
    found = run_examples(
        "def f(x): return [x, x / 0] if x else {1: 'a'}\n",
        prompt=PROMPT, examples=["f(0)", "f(1)", "f(0) == {1: 'a'}", "helper(1)"], entry_point="f", limits=QUICK,
    )  # fmt: skip
    assert found.kind == "examples"
    assert [decode(o) if not isinstance(o, dict) else o for o in found.outputs] == [
        {1: "a"}, {"raised": "ZeroDivisionError"}, True, 2,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(10**500), 1.5, float("inf"), -0.0, 1j, "", "é\n\0\ud800", b"\0\xff", bytearray(b"a"),
     [1, [2, ()]], (1,), {1, (2, 3)}, frozenset({1}), {(1, 2): [{}]}, {"a": None}, Decimal("1.50"), Decimal("-Infinity"),
     Decimal("1E+999999"), Fraction(-1, 3), Counter("aab"), Counter(a=0), OrderedDict(b=1, a=2), deque([1, 2], 3),
     {1: 2}.keys(), {1: [2]}.items()],
    ids=repr,
)  # fmt: skip
def test_plain_values_travel_unchanged(value):
    back = decode(encode(value))
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_of_a_class_of_its_own_only_the_plain_value_travels():
    class Lying(int):
        def __eq__(self, other):
            return True

    class Text(str):
        def __str__(self):
            return "other"

    class Pair(NamedTuple):
        a: int
        b: list

    class Count(Counter):
        def __eq__(self, other):
            return True

    back = decode(encode([Lying(3), Text("a"), Count("aab"), defaultdict(int, a=1), Pair(1, [2]), range(3)]))
    assert repr(back) == "[3, 'a', Counter({'a': 2, 'b': 1}), {'a': 1}, (1, [2]), range(0, 3)]"
    assert list(decode(encode(x * x for x in range(3)))) == [0, 1, 4]
    assert list(decode(encode(zip("ab", (1, 2), strict=True)))) == [("a", 1), ("b", 2)]


class Color(Enum):
    RED = 1


def test_other_values_do_not_travel():
    nested = []
    for _ in range(100):
        nested = [nested]
    for value in (
        object(),
        len,
        Ellipsis,
        int,
        Exception("x"),
        Color.RED,
        bytearray,
        Fraction(1, 1 << (1 << 21)),
        count(),
        1 << (1 << 21),
        nested,
        [object()],
    ):
        with pytest.raises(NotPlain):
            encode(value)
    messages = ("x", ["q", 1], ["i", "zz"], ["list", 3], {"a": 1}, 7, ["i"], ["set", [["list", []]]], ["range", []])
    messages += (
        ["decimal", "one"],
        ["decimal", 1],
        ["decimal", ["x"]],
        ["fraction", "0x1", "0x0"],
        ["fraction", "0x1"],
    )
    messages += (["fraction", 1, 2], ["Counter", 1], ["OrderedDict", [1]], ["deque", [], ["t", "a"]], ["deque", []])
    messages += (["keys", [["list", []]]], ["items", [[1]]], ["values", 1], ["Counter", [[["list", []], None]]])
    for message in messages:
        with pytest.raises(NotPlain):
            decode(message)


@pytest.mark.parametrize(
    "body",
    [
        "return object()",
        "return lambda: 0",
        "import os; os._exit(0)",
        "raise SystemExit",
        "raise KeyboardInterrupt",
        "raise StopIteration",
        "raise StopAsyncIteration",
        "raise GeneratorExit",
        "raise BaseException",
        "raise type('Own', (StopIteration,), {})",
        "raise type('Own', (BaseException,), {})",
        "return next(iter(()))",
        "return Odd()",
        "raise BaseExceptionGroup('x', [KeyboardInterrupt()])",
    ],
)
@pytest.mark.parametrize(
    "check",
    ["assert candidate(1)", "assert candidate(1) != 5", "assert candidate(1) is not None",
     "try: candidate(1)\n    except Exception: pass", "try: candidate(1)\n    except: pass",
     "assert all(map(candidate, [1, 2, 3]))", "assert list(map(candidate, [1])) in ([], [1])",
     "assert sum(iter(lambda: candidate(1), 0)) == 0", "assert next(filter(candidate, [1]), 1)"],
)  # fmt: skip
def test_what_fails_has_failed_whatever_the_test_makes_of_it(body, check):
    odd = "class Odd:\n    def __eq__(self, other): return True\n    __lt__ = __ge__ = __ne__ = __eq__\n"
    odd += "    def __hash__(self): return 1\n    def __bool__(self): return True\n    def __getattr__(self, n): return self\n"
    assert verdict(f"{odd}def f(x):\n    {body}\n", f"def check(candidate):\n    {check}\n").kind == "failed"


def test_an_exception_of_its_own_arrives_as_the_nearest_builtin_one():
    test = "def check(candidate):\n    try: candidate(1)\n    except ValueError: return\n    assert False\n"
    assert verdict("class E(ValueError): pass\ndef f(x): raise E\n", test).kind == "passed"
    assert verdict("def f(x): return b'\\xff'.decode()\n", test).kind == "passed"
    assert verdict("class ValueError(Exception): pass\ndef f(x): raise KeyError\n", test).kind == "failed"


@pytest.mark.parametrize(
    ("program", "checks"),
    [
        ("from decimal import Decimal\ndef f(x): return Decimal('0.5')\n", "candidate(1) == 0.5; candidate(1) + 1 > 1.4"),
        ("from fractions import Fraction as F\ndef f(x): return F(1, 2)\n", "candidate(1) == 0.5; abs(candidate(1) - 0.5) < 1e-6"),
        ("from fractions import Fraction as F\ndef f(x): return F(4, 2)\n", "candidate(1) == 2; candidate(1).denominator == 1"),
        ("def f(x): return {1: 2, 3: 4}.keys()\n", "candidate(1) == {3, 1}; list(candidate(1)) == [1, 3]; candidate(1) != [1, 3]"),
        ("def f(x): return {1: 2, 3: 4}.values()\n", "list(candidate(1)) == [2, 4]; candidate(1) != [2, 4]; len(candidate(1)) == 2"),
        ("def f(x): return {1: [2]}.items()\n", "list(candidate(1)) == [(1, [2])]; (1, [2]) in candidate(1)"),
        ("from collections import Counter\ndef f(x): return Counter('aab')\n", "candidate(1) == {'a': 2, 'b': 1}; candidate(1)['z'] == 0"),
        ("from collections import Counter\ndef f(x): return Counter(a=1, b=0)\n", "candidate(1) == type(candidate(1))(a=1); candidate(1) != {'a': 1}"),
        ("from collections import OrderedDict as O\ndef f(x): return O(a=1, b=2)\n", "candidate(1) == {'b': 2, 'a': 1}; candidate(1) != type(candidate(1))(b=2, a=1)"),
        ("from collections import defaultdict\ndef f(x):\n    d = defaultdict(list)\n    d[1].append(2)\n    return d\n", "candidate(1) == {1: [2]}"),
        ("from collections import deque\ndef f(x): return deque([1, 2])\n", "candidate(1) == type(candidate(1))([1, 2]); list(candidate(1)) == [1, 2]; candidate(1) != [1, 2]"),
        ("from collections import namedtuple\nP = namedtuple('P', 'a b')\ndef f(x): return P(1, 2)\n", "candidate(1) == (1, 2); candidate(1)[0] == 1"),
        ("from collections import UserList, UserDict\ndef f(x): return [UserList([1]), UserDict(a=1)]\n", "candidate(1) == [[1], {'a': 1}]"),
        ("from collections import ChainMap\ndef f(x): return ChainMap({1: 2}, {3: 4})\n", "candidate(1) == {1: 2, 3: 4}"),
        ("from types import MappingProxyType as M\ndef f(x): return M({1: 2})\n", "candidate(1) == {1: 2}"),
        ("from enum import IntEnum\nE = IntEnum('E', 'A B')\ndef f(x): return E.B\n", "candidate(1) == 2"),
        ("def f(x): return memoryview(b'ab')\n", "candidate(1) == b'ab'"),
        ("def f(x): return x\n", "candidate(Decimal('1.5')) == 1.5; candidate({1: 2}.keys()) == {1}; candidate(Counter('a')) == Counter('a')"),
        ("from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    a: int\ndef f(x): return P(x).a\n", "candidate(1) == 1"),
    ],
)  # fmt: skip
def test_what_compares_equal_in_python_is_graded_as_there(program, checks):
    """Each line holds when the function is called in one process; the sandbox says the same."""
    lines = "".join(f"    assert {check.strip()}\n" for check in checks.split(";"))
    test = f"from collections import Counter\nfrom decimal import Decimal\ndef check(candidate):\n{lines}"
    names = {"__name__": "builtins"}
    exec(compile(program + ("\n" if "__future__" in program else "") + test, "plain", "exec"), names)
    names["check"](names["f"])
    assert verdict(program, test).kind == "passed"


def test_an_exception_that_cannot_be_made_is_one_all_the_same():
    test = "def check(candidate):\n    try: candidate(1)\n    except Exception: return\n    assert False\n"
    assert verdict("def f(x): raise ExceptionGroup('no', [ValueError()])\n", test).kind == "passed"


def test_sets_have_the_same_order_every_time():
    source = "def f(x): return [list({'a', 'b', 'c', 'd', 'e'}), hash('a')]\n"
    run = {"prompt": PROMPT, "examples": ["f(0)"], "entry_point": "f", "limits": QUICK}
    assert run_examples(source, **run) == run_examples(source, **run)


def test_a_failure_of_the_machine_is_no_verdict_on_the_program(monkeypatch):
    monkeypatch.setattr(sandbox.os, "pipe", lambda: (_ for _ in ()).throw(OSError(24, "Too many open files")))
    found = verdict("def f(x): return 2 * x + 2\n")
    assert (found.kind, found.why) == ("broken", "the sandbox did not start: Too many open files")


def test_a_test_that_hangs_by_itself_is_no_verdict_on_the_program():
    limits = Limits(wall_s=0.5, cpu_s=1, memory_bytes=256 << 20)
    right = "def f(x): return 1\n"
    assert verdict(right, "def check(candidate):\n    while True: pass\n", limits).kind == "broken"
    assert verdict(right, "def check(candidate):\n    candidate(1)\n    while True: pass\n", limits).kind == "failed"


def test_many_open_files_in_the_parent(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert verdict("def f(x): return 2 * x + 2\n").kind == "passed"
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("version", [1, 3])
def test_an_older_landlock_confines_as_well(version, monkeypatch, tmp_path):
    """Before Linux 6.2 it lets truncate what may be read, before 6.12 it knows no signals: seccomp stops both."""
    child, victim = tmp_path / "sandbox_child.py", tmp_path / "victim"
    victim.write_text("content")
    source = Path(sandbox.__file__).with_name("sandbox_child.py").read_text()
    older = source.replace("    files = (1 <<", f"    version = {version}\n    files = (1 <<")
    assert older != source
    child.write_text(older)
    monkeypatch.setattr(sandbox, "_CHILD", child)
    monkeypatch.setattr(sandbox, "_readable", lambda known=sandbox._readable: [*known(), str(tmp_path)])
    programs = {
        "truncate": f"import os\ndef f(x): return os.open({str(victim)!r}, os.O_RDONLY | os.O_TRUNC)\n",
        "owner": f"import fcntl\ndef f(x): return [fcntl.fcntl(d, 8, {os.getpid()}) for d in range(3, 9)]\n",
        "read": f"def f(x): return open({str(victim)!r}).read()\n",
    }
    run = {"prompt": PROMPT, "examples": ["f(0)"], "entry_point": "f", "limits": QUICK}
    found = {name: run_examples(source, **run).outputs[0] for name, source in programs.items()}
    assert found == {
        "truncate": {"raised": "PermissionError"}, "owner": {"raised": "PermissionError"}, "read": ["t", "content"]
    }  # fmt: skip
    assert victim.read_text() == "content"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_unprivileged_user_needs_nothing_more(monkeypatch):
    interpreter = Path("/usr/bin/python3")
    if (
        not interpreter.exists()
        or subprocess.run([interpreter, "-c", "import sys; assert sys.version_info >= (3, 11)"]).returncode
    ):
        pytest.skip("there is no interpreter that every user can run")
    source = (
        "import sys, types, importlib.util\n"
        "dps = sys.modules['dps'] = types.ModuleType('dps')\n"
        "errors = sys.modules['dps.errors'] = types.ModuleType('dps.errors')\n"
        "errors.InputError = ValueError\n"
        "spec = importlib.util.spec_from_file_location('sandbox', sys.argv[1])\n"
        "sandbox = sys.modules['sandbox'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(sandbox)\n"
        "for program in sys.argv[2:]:\n"
        "    v = sandbox.run_examples(program, prompt='', examples=['f(1)'], entry_point='f')\n"
        "    print(v.kind, v.outputs)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in ("sandbox.py", "sandbox_child.py"):
            (Path(folder) / name).write_text(Path(sandbox.__file__).with_name(name).read_text())
        os.chmod(folder, 0o755)
        programs = [
            "def f(x): return x + 1\n",
            "def f(x): return open('/etc/passwd').read()\n",
            "import os\ndef f(x): return os.fork()\n",
        ]
        done = subprocess.run(
            [interpreter, "-c", source, f"{folder}/sandbox.py", *programs],
            capture_output=True, text=True, user=65534, group=65534, extra_groups=[], cwd="/", env={},
        )  # fmt: skip
    refused = "examples ({'raised': 'PermissionError'},)"
    assert done.stdout.splitlines() == ["examples (['i', '0x2'],)", refused, refused], done.stderr


def test_where_the_kernel_cannot_confine_nothing_is_run(monkeypatch, tmp_path):
    child = tmp_path / "sandbox_child.py"
    source = Path(sandbox.__file__).with_name("sandbox_child.py").read_text()
    child.write_text(source.replace("444, 445, 446", "9444, 9445, 9446"))  # system calls that do not exist
    monkeypatch.setattr(sandbox, "_CHILD", child)
    with pytest.raises(InputError, match=r"only where the kernel can confine them, with Landlock and seccomp"):
        verdict("def f(x): return 2 * x + 2\n")
