"""The command line as tests run it: in this process where the process itself is not what is tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

from dps.cli import run

ROOT = Path(__file__).parents[1]
CASES = json.loads(Path(__file__).with_name("commands.json").read_text())
"""Tables of the tests. Refused ones: words, what the sentence says, and files that lie in the current folder."""
SMALL = [
    "--benchmark.name=arithmetic", "--sampler.block_size=24", "--sampler.max_new_tokens=48",
    "--sampler.num_mh_steps=1", "--compute.rows=64",
]  # fmt: skip


def dps(*arguments, cwd=ROOT, timeout=240, **options):
    """Run the real command line in a process of its own."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    command = [sys.executable, "-m", "dps", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=os.environ | {"PYTHONPATH": path}, timeout=timeout, **options)


def refused(capsys, *arguments):
    """Run a command that must be refused; return its one sentence."""
    code = run(list(map(str, arguments)))
    error = capsys.readouterr().err.strip()
    assert code == 2, error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1, error
    assert ": error: " in error
    return error
