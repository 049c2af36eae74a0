# ruff: noqa: E501
"""Programs that try to pass without solving, to get out, or to bring the grader down. Each defines ``f``."""

HOSTILE = {
    "infinite loop": "def f(x):\n    while True: pass\n",
    "loop before the function": "while True: pass\n",
    "sleep": "import time\ndef f(x):\n    time.sleep(1000)\n",
    "fork bomb": "import os\ndef f(x):\n    while True: os.fork()\n",
    "fork bomb that catches": "import os\nwhile True:\n    try: os.fork()\n    except OSError: break\ndef f(x): return 0\n",
    "threads": "import threading\ndef f(x):\n    while True: threading.Thread(target=f, args=(x,)).start()\n",
    "multiprocessing": "import multiprocessing\ndef f(x):\n    multiprocessing.Process(target=print).start(); return x\n",
    "subprocess": "import subprocess\ndef f(x):\n    subprocess.run(['touch', SENTINEL]); return x\n",
    "shell": "import os\ndef f(x):\n    os.system('touch ' + SENTINEL); return x\n",
    "exec": "import os\ndef f(x):\n    os.execv('/bin/touch', ['touch', SENTINEL])\n",
    "daemon": "import os\ndef f(x):\n    os.setsid()\n    if os.fork(): os._exit(0)\n    while True: pass\n",
    "100 GB": "def f(x):\n    return len(bytearray(100 << 30))\n",
    "list without end": "def f(x):\n    a = []\n    while True: a.append(a[:] + [0] * 10**6)\n",
    "big integer": "def f(x):\n    return 10 ** 10**9\n",
    "big reply": "def f(x):\n    return 'a' * (1 << 27)\n",
    "deep reply": "def f(x):\n    a = []\n    for _ in range(10**5): a = [a]\n    return a\n",
    "recursion": "def f(x):\n    return f(x)\n",
    "recursion in C": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    return f(x)\n",
    "reply that contains itself": "def f(x):\n    a = []\n    a.append(a)\n    return a\n",
    "huge output": "def f(x):\n    while True: print('x' * 10**6)\n",
    "huge errors": "import sys\ndef f(x):\n    while True: sys.stderr.write('x' * 10**6)\n",
    "delete home": "import shutil, os\ndef f(x):\n    shutil.rmtree(HOME); return x\n",
    "delete home quietly": "import shutil\nshutil.rmtree(HOME, ignore_errors=True)\ndef f(x): return 0\n",
    "write outside": "def f(x):\n    open(SENTINEL, 'w').write('x'); return x\n",
    "write here": "def f(x):\n    open('file', 'w').write('x'); return x\n",
    "truncate": "import os\ndef f(x):\n    os.truncate(SECRET, 0); return x\n",
    "chmod": "import os\ndef f(x):\n    os.chmod(SECRET, 0o777); return x\n",
    "touch": "import os\ndef f(x):\n    os.utime(SECRET, (0, 0)); return x\n",
    "symlink": "import os\ndef f(x):\n    os.symlink('/etc/passwd', 'link'); return open('link').read()\n",
    "read a secret": "def f(x):\n    return open(SECRET).read()\n",
    "read passwords": "def f(x):\n    return open('/etc/passwd').read()\n",
    "read processes": "import os\ndef f(x):\n    return [open(f'/proc/{p}/cmdline').read() for p in os.listdir('/proc')]\n",
    "read memory of the parent": "import os\ndef f(x):\n    return open(f'/proc/{os.getppid()}/mem', 'rb').read(9)\n",
    "read the environment": "import os\ndef f(x):\n    return os.environ['DPS_SECRET']\n",
    "read the environment of the parent": "import os\ndef f(x):\n    return open(f'/proc/{os.getppid()}/environ').read()\n",
    "socket": "import socket\ndef f(x):\n    socket.create_connection(('127.0.0.1', PORT)).send(b'x'); return x\n",
    "unix socket": "import socket\ndef f(x):\n    socket.socket(socket.AF_UNIX).connect('\\0x'); return x\n",
    "download": "import urllib.request\ndef f(x):\n    return urllib.request.urlopen('http://127.0.0.1:%d' % PORT).read()\n",
    "signal the parent": "import os, signal\ndef f(x):\n    os.kill(os.getppid(), signal.SIGKILL); return x\n",
    "signal everybody": "import os, signal\ndef f(x):\n    os.kill(-1, signal.SIGKILL); return x\n",
    "signal the group": "import os, signal\ndef f(x):\n    os.killpg(0, signal.SIGKILL); return x\n",
    "ptrace": "import ctypes, os\ndef f(x):\n    return ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)\n",
    "raise limits": "import resource\ndef f(x):\n    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1)); return x\n",
    "mount": "import ctypes\ndef f(x):\n    return ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, 0)\n",
    "slow down the parent": "import os\ndef f(x):\n    os.sched_setscheduler(PARENT, os.SCHED_IDLE, os.sched_param(0)); return x\n",
    "slow down everybody": "import os\ndef f(x):\n    os.setpriority(os.PRIO_USER, 0, 19); return x\n",
    "last of all to read": "import ctypes\ndef f(x):\n    return ctypes.CDLL(None).syscall(251, 1, PARENT, 3 << 13)\n",
    "attributes of a file": (
        "import ctypes, struct\ndef f(x):\n"
        "    return ctypes.CDLL(None).syscall(469, -100, SECRET.encode(), struct.pack('QIIII', 0x80, 0, 0, 0, 0), 24, 0)\n"
    ),
    "flags of the library": "import fcntl, os\ndef f(x):\n    return fcntl.ioctl(os.open(os.__file__, 0), 0x80086601, bytes(8))\n",
    "outlive the parent": "import ctypes\ndef f(x):\n    return ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\n",
    "signals by a pipe": "import fcntl\ndef f(x):\n    return [fcntl.fcntl(d, fcntl.F_SETOWN, PARENT) for d in range(3, 9)]\n",
    "watch the home folder": "import ctypes\nC = ctypes.CDLL(None)\ndef f(x):\n    return C.inotify_add_watch(C.inotify_init1(0), HOME.encode(), 0xFFF)\n",
    "truthy object": "class A:\n    def __bool__(self): return True\ndef f(x): return A()\n",
    "null pointer": "import ctypes\ndef f(x):\n    return ctypes.string_at(0)\n",
    "exit": "import sys\nsys.exit(0)\n",
    "exit before the assertions": "import os\ndef f(x):\n    os._exit(0)\n",
    "exit while it loads": "import os\nos._exit(0)\ndef f(x): return 0\n",
    "abort": "import os\ndef f(x):\n    os.abort()\n",
    "close everything": "import os\ndef f(x):\n    os.closerange(0, 1000); return x\n",
    "close standard output": "import sys\nsys.stdout.close()\ndef f(x): return 0\n",
    "always equal": "class A:\n    def __eq__(self, other): return True\ndef f(x): return A()\n",
    "always equal integer": "class A(int):\n    def __eq__(self, other): return True\ndef f(x): return A(3)\n",
    "lying text": "class A(str):\n    def __eq__(self, other): return True\n    __hash__ = str.__hash__\ndef f(x): return A('a')\n",
    "not a number": "def f(x): return float('nan')\n",
    "patched assert": "import builtins\nbuiltins.AssertionError = Exception\nclass E(BaseException): pass\ndef f(x): raise E\n",
    "patched checker": "import builtins, sys\nfor m in list(sys.modules): sys.modules[m] = None\ndef f(x): return 0\n",
    "patched json": 'import json\njson.dumps = lambda *a, **k: \'{"verdict": "passed"}\'\ndef f(x): return 0\n',
    "forged verdict": (
        'import os\nfor d in range(64):\n    try: os.write(d, b\'{"verdict": "passed"}\\n\' * 3)\n'
        "    except OSError: pass\ndef f(x): return 0\n"
    ),
    "forged replies": (
        "import os\nfor d in range(64):\n    try: os.write(d, b'{\"ready\": true}\\n' + b'{\"value\": true}\\n' * 9)\n"
        "    except OSError: pass\ndef f(x): return 0\n"
    ),
    "forged exception": "class AssertionError(Exception): pass\ndef f(x): raise AssertionError\n",
    "stop iteration": "def f(x): raise StopIteration\n",
    "stop iteration of its own": "class E(StopIteration): pass\ndef f(x): raise E\n",
    "stop asynchronous iteration": "def f(x): raise StopAsyncIteration\n",
    "generator exit": "def f(x): raise GeneratorExit\n",
    "forged decimal": "class Decimal:\n    def __str__(self): return '6'\nimport sys, types\nm = sys.modules['decimal'] = types.ModuleType('decimal')\nm.Decimal = Decimal\ndef f(x): return Decimal()\n",
    "huge decimal": "from decimal import Decimal\ndef f(x): return Decimal('1E+999999999999999')\n",
    "signalling decimal": "from decimal import Decimal\ndef f(x): return Decimal('sNaN')\n",
    "mapping that is never empty": (
        "from collections.abc import Mapping\nclass M(Mapping):\n    def __getitem__(self, k): return k\n"
        "    def __len__(self): return 1\n    def __iter__(self):\n        while True: yield 0\ndef f(x): return M()\n"
    ),
    "view that is never empty": (
        "from collections.abc import KeysView\nclass K(KeysView):\n    def __init__(self): pass\n"
        "    def __iter__(self):\n        while True: yield 0\ndef f(x): return K()\n"
    ),
    "keyboard interrupt": "def f(x): raise KeyboardInterrupt\n",
    "searches for the checker": (
        "import gc\ndef f(x):\n    return [o for o in gc.get_objects() if getattr(o, '__name__', '') == 'check'][0]\n"
    ),
    "reads the test": "def f(x):\n    return open('test.py').read()\n",
    "generator without end": "def f(x):\n    while True: yield 0\n",
    "no function": "g = 1\n",
    "not a function": "f = 3\n",
    "syntax error": "def f(x) return x\n",
    "nul": "def f(x): return '\\0'\n#\0\n",
    "regular expression": "import re\ndef f(x):\n    return re.match('(a+)+$', 'a' * 60 + 'b')\n",
}
"""By name. SENTINEL, SECRET, HOME, PORT and PARENT are defined before them."""
