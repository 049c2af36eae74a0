import os
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
    secret.write_text("secret")
    secret.chmod(0o644)
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    names = f"SENTINEL, SECRET, HOME, PORT = {str(sentinel)!r}, {str(secret)!r}, {str(home)!r}, "
    names += f"{server.getsockname()[1]}\n"
    before = secret.stat()
    os.environ["DPS_SECRET"] = "secret"
    started = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        found = dict(zip(HOSTILE, threads.map(lambda source: verdict(names + source), HOSTILE.values()), strict=True))
    seconds = time.monotonic() - started
    del os.environ["DPS_SECRET"]
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
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("dps-sandbox-*"))


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
     [1, [2, ()]], (1,), {1, (2, 3)}, frozenset({1}), {(1, 2): [{}]}, {"a": None}],
    ids=repr,
)  # fmt: skip
def test_plain_values_travel_unchanged(value):
    back = decode(encode(value))
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_other_values_do_not_travel():
    class Lying(int):
        def __eq__(self, other):
            return True

    nested = []
    for _ in range(100):
        nested = [nested]
    for value in (Lying(3), object(), len, (i for i in ()), 10**20_000, nested, range(3)):
        with pytest.raises(NotPlain):
            encode(value)
    for message in ("x", ["q", 1], ["i", "zz"], ["list", 3], {"a": 1}, 7, ["i"], ["set", [["list", []]]]):
        with pytest.raises(NotPlain):
            decode(message)


def test_where_the_kernel_cannot_confine_nothing_is_run(monkeypatch, tmp_path):
    child = tmp_path / "sandbox_child.py"
    source = Path(sandbox.__file__).with_name("sandbox_child.py").read_text()
    child.write_text(source.replace("444, 445, 446", "9444, 9445, 9446"))  # system calls that do not exist
    monkeypatch.setattr(sandbox, "_CHILD", child)
    with pytest.raises(InputError, match=r"only where the kernel can confine them, with Landlock and seccomp"):
        verdict("def f(x): return 2 * x + 2\n")
