"""Programs that a model wrote run in the sandbox: honest ones as in Python, hostile ones in vain."""

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

from dps.benchmarks import grading, sandbox
from dps.benchmarks.sandbox import Limits, run_program
from dps.benchmarks.sandbox_child import NotPlain, decode, encode
from dps.errors import InputError
from tests.benchmarks.data import cases

CASES = cases("sandbox")
PROMPT = 'import math\n\ndef helper(x):\n    return x + 1\n\ndef f(x):\n    """Twice its successor."""\n'
TEST = "def check(candidate):\n    assert candidate(2) == 2 * helper(2)\n    assert candidate(x=5) == 12\n"
RIGHT = "def f(x): return 2 * x + 2\n"
QUICK = Limits(wall_s=1.5, cpu_s=1, memory_bytes=256 << 20)


def verdict(program, test=TEST, limits=QUICK):
    return run_program(program, {"prompt": PROMPT, "test": test, "entry_point": "f"}, limits)


def outputs(program, *examples, prompt=PROMPT):
    found = run_program(program, {"prompt": prompt, "examples": examples, "entry_point": "f"}, QUICK)
    assert found.kind == "examples"
    return found.outputs


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Every hostile program's verdict, and what stood around them before and after."""
    folder, working = tmp_path_factory.mktemp("outside"), tmp_path_factory.mktemp("working")
    home, secret, sentinel = folder / "home", folder / "home" / "secret", folder / "sentinel"
    home.mkdir()
    secret.write_text("secret")
    secret.chmod(0o644)
    before = secret.stat()
    before_working, tempfile.tempdir = tempfile.tempdir, str(working)
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    names = f"SENTINEL, SECRET, HOME = {str(sentinel)!r}, {str(secret)!r}, {str(home)!r}\n"
    names += f"PORT, PARENT = {server.getsockname()[1]}, {os.getpid()}\n"
    os.environ["DPS_SECRET"] = "secret"
    started = time.monotonic()
    sources = [names + source for source in CASES["hostile"].values()]
    with ThreadPoolExecutor(4) as threads:
        verdicts = dict(zip(CASES["hostile"], threads.map(verdict, sources), strict=True))
    seconds = time.monotonic() - started
    del os.environ["DPS_SECRET"]
    tempfile.tempdir = before_working
    assert not list(working.iterdir())
    yield verdicts, seconds, (before, secret.stat(), secret.read_text()), [p.name for p in folder.iterdir()], server
    server.close()


@pytest.mark.slow
def test_no_hostile_program_passes_and_all_end_within_their_limits(hostile):
    verdicts, seconds, *_ = hostile
    assert len(verdicts) >= 80
    assert {name for name, v in verdicts.items() if v.kind != "failed"} == set()
    assert seconds < 2.5 * QUICK.wall_s * len(verdicts) / 4 + 10


@pytest.mark.slow
def test_hostile_programs_change_nothing_outside_and_leave_no_processes(hostile):
    *_, (before, after, content), names, server = hostile
    assert content == "secret"
    assert (before.st_mode, before.st_mtime, before.st_ino) == (after.st_mode, after.st_mtime, after.st_ino)
    assert names == ["home"]
    with pytest.raises(BlockingIOError):
        server.accept()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert os.getpriority(os.PRIO_PROCESS, 0) == 0
    children = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "args"], capture_output=True, text=True).stdout
    assert "sandbox_child.py" not in children


@pytest.mark.slow
def test_a_secret_in_the_environment_or_a_file_is_not_seen(hostile):
    """The reasons show that these programs failed for want of access and not for a wrong answer."""
    names = "read a secret, read passwords, write outside, write here, truncate, chmod, socket, fork bomb"
    reasons = dict.fromkeys(names.split(", "), "PermissionError")
    reasons |= {"read the environment": "KeyError", "flags of the library": "OSError"}
    assert {name: hostile[0][name].why for name in reasons} == reasons


@pytest.mark.parametrize(("program", "test", "kind"), CASES["verdicts"])
def test_verdicts(program, test, kind):
    assert verdict(program, test).kind == kind


def test_examples_give_values_and_exceptions():
    program = "def f(x): return [x, x / 0] if x else {1: 'a'}\n"
    found = outputs(program, "f(0)", "f(1)", "f(0) == {1: 'a'}", "helper(1)")
    assert [decode(o) if not isinstance(o, dict) else o for o in found] == [
        {1: "a"}, {"raised": "ZeroDivisionError"}, True, 2,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(10**500), 1.5, float("inf"), -0.0, 1j, "", "é\n\0\ud800", b"\0\xff", bytearray(b"a"),
     [1, [2, ()]], (1,), {1, (2, 3)}, frozenset({1}), {(1, 2): [{}]}, {"a": None}, Decimal("1.50"),
     Decimal("-Infinity"), Decimal("1E+999999"), Fraction(-1, 3), Counter("aab"), Counter(a=0),
     OrderedDict(b=1, a=2), deque([1, 2], 3), {1: 2}.keys(), {1: [2]}.items()],
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


def test_other_values_do_not_travel():
    nested = []
    for _ in range(100):
        nested = [nested]
    color = Enum("Color", "RED")
    values = [object(), len, Ellipsis, int, Exception("x"), color.RED, bytearray, Fraction(1, 1 << (1 << 21))]
    for value in [*values, count(), 1 << (1 << 21), nested, [object()]]:
        with pytest.raises(NotPlain):
            encode(value)


@pytest.mark.parametrize("message", CASES["messages"], ids=repr)
def test_messages_that_are_no_values(message):
    with pytest.raises(NotPlain):
        decode(message)


@pytest.mark.parametrize("check", CASES["checks"])
def test_what_fails_has_failed_whatever_the_test_makes_of_it(check):
    odd = "class Odd:\n    def __eq__(self, other): return True\n    __lt__ = __ge__ = __ne__ = __eq__\n"
    odd += "    def __hash__(self): return 1\n    def __bool__(self): return True\n"
    odd += "    def __getattr__(self, n): return self\n"
    test = f"def check(candidate):\n    {check}\n"
    kinds = {body: verdict(f"{odd}def f(x):\n    {body}\n", test).kind for body in CASES["fails"]}
    assert kinds == dict.fromkeys(CASES["fails"], "failed")


@pytest.mark.parametrize(("program", "checks"), CASES["equal"])
def test_what_compares_equal_in_python_is_graded_as_there(program, checks):
    """Each line holds when the function is called in one process; the sandbox says the same."""
    lines = "".join(f"    assert {check.strip()}\n" for check in checks.split(";"))
    test = f"from collections import Counter\nfrom decimal import Decimal\ndef check(candidate):\n{lines}"
    names = {"__name__": "builtins"}
    exec(compile(program + ("\n" if "__future__" in program else "") + test, "plain", "exec"), names)
    names["check"](names["f"])
    assert verdict(program, test).kind == "passed"


def test_sets_have_the_same_order_every_time():
    source = "def f(x): return [list({'a', 'b', 'c', 'd', 'e'}), hash('a')]\n"
    assert outputs(source, "f(0)") == outputs(source, "f(0)")


def test_a_failure_of_the_machine_is_no_verdict_on_the_program(monkeypatch):
    monkeypatch.setattr(sandbox.os, "pipe", lambda: (_ for _ in ()).throw(OSError(24, "Too many open files")))
    found = verdict(RIGHT)
    assert (found.kind, found.why) == ("broken", "the sandbox did not start: Too many open files")


def test_many_open_files_in_the_parent():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert verdict(RIGHT).kind == "passed"
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
    refused = {"raised": "PermissionError"}
    for body, expected in (
        (f"return os.open({str(victim)!r}, os.O_RDONLY | os.O_TRUNC)", refused),
        (f"return [fcntl.fcntl(d, 8, {os.getpid()}) for d in range(3, 9)]", refused),
        (f"return open({str(victim)!r}).read()", ["text", "content"]),
    ):
        assert outputs(f"import os, fcntl\ndef f(x): {body}\n", "f(0)") == (expected,)
    assert victim.read_text() == "content"


ALONE = """import sys, types, importlib.util
for name in ("dps", "dps.benchmarks", "dps.errors"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["dps.errors"].InputError = ValueError
spec = importlib.util.spec_from_file_location("dps.benchmarks.sandbox", f"{sys.argv[1]}/sandbox.py")
module = sys.modules["dps.benchmarks.sandbox"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
for program in sys.argv[2:]:
    v = module.run_program(program, {"prompt": "", "examples": ["f(1)"], "entry_point": "f"})
    print(v.kind, v.outputs)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_unprivileged_user_needs_nothing_more():
    interpreter = Path("/usr/bin/python3")
    version = [interpreter, "-c", "import sys; assert sys.version_info >= (3, 11)"]
    if not interpreter.exists() or subprocess.run(version).returncode:
        pytest.skip("there is no interpreter that every user can run")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("sandbox.py", "sandbox_child.py"):
            (Path(folder) / name).write_text(Path(sandbox.__file__).with_name(name).read_text())
        os.chmod(folder, 0o755)
        programs = ["def f(x): return x + 1\n", "def f(x): return open('/etc/passwd').read()\n"]
        programs.append("import os\ndef f(x): return os.fork()\n")
        done = subprocess.run(
            [interpreter, "-c", ALONE, folder, *programs],
            capture_output=True, text=True, user=65534, group=65534, extra_groups=[], cwd="/", env={},
        )  # fmt: skip
    refused = "examples ({'raised': 'PermissionError'},)"
    assert done.stdout.splitlines() == ["examples (['int', '0x2'],)", refused, refused], done.stderr


def test_where_the_kernel_cannot_confine_nothing_is_run(monkeypatch, tmp_path):
    child = tmp_path / "sandbox_child.py"
    source = Path(sandbox.__file__).with_name("sandbox_child.py").read_text()
    child.write_text(source.replace("444, 445, 446", "9444, 9445, 9446"))  # system calls that do not exist
    monkeypatch.setattr(sandbox, "_CHILD", child)
    with pytest.raises(InputError, match=r"only where the kernel can confine them, with Landlock and seccomp"):
        verdict(RIGHT)


@pytest.mark.parametrize(("cores", "at_a_time"), [(8, 7), (2, 1), (1, 1)])
def test_grading_leaves_a_core_to_the_run(monkeypatch, cores, at_a_time):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    assert grading.idle_cores() == at_a_time
