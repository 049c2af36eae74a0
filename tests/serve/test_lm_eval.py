"""lm-evaluation-harness itself against a server: its score is the one of ``dps evaluate``, question by question."""

import os
import subprocess
import sys

import pytest

from tests.commands import ROOT

pytest.importorskip("fastapi", reason="dps serve needs FastAPI")
pytest.importorskip("lm_eval", reason="the extra harness is not installed")


@pytest.mark.slow
def test_the_harness_and_the_evaluation_agree(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "lm_eval_agrees.py", "--endpoint", "completions", "chat"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    options = {"capture_output": True, "text": True, "timeout": 400, "env": os.environ | {"PYTHONPATH": paths}}
    done = subprocess.run([*command, "--questions=8", "--k=2", f"--output={tmp_path}"], cwd=ROOT, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("8 of 8 questions have the same score") == 2
    assert not done.stdout.startswith("dps evaluate: 0.0000")
