"""scripts/slurm with a stand-in sbatch: the merged shards are the whole harvest, also where a task was stopped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dps.cli import run
from feature_store import Store
from feature_store.tools import verify

from ..harvests import same

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "slurm"
OPTIONS = (
    "--benchmark.name=arithmetic", "--benchmark.limit=14", "--sampler.block_size=24", "--sampler.max_new_tokens=24",
    "--sampler.num_mh_steps=1", "--compute.rows=8", "--compute.commit_interval_s=0", "--k.maximum=4",
    "--compute.threads=1",
)  # fmt: skip


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A machine with Slurm's commands."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    stand_in = Path(__file__).with_name("sbatch.py")
    commands = {
        "sbatch": f'exec "{sys.executable}" "{stand_in}" "$@"',
        "scontrol": 'echo "scontrol $*" >> "$CALLS"',
        "python3": f'exec "{sys.executable}" "$@"',
    }
    for name, body in commands.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    (tmp_path / "empty.yaml").write_text("{}\n")
    return tmp_path


def submit(*arguments):
    return subprocess.run(["bash", str(SCRIPTS / "submit.sh"), *arguments], capture_output=True, text=True)


def test_an_array_of_shards_one_of_them_stopped_makes_the_whole_harvest(cluster):
    done = submit(str(cluster / "empty.yaml"), str(cluster / "out"), "2", "0", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["array 7: 2 shards x 1 seeds", f"merge 9: {cluster}/out/seed-0/merged"]
    calls = (cluster / "calls").read_text().splitlines()
    assert "--array=0-1" in calls[0]
    assert calls[1:5] == [
        "scontrol requeue 7_0", "task 0: exit code 143", "task 0: exit code 0", "task 1: exit code 0",
    ]  # fmt: skip
    assert "--dependency=afterok:7" in calls[5]
    shards = [Store.open(cluster / "out" / "seed-0" / f"shard-{i}").question_ids for i in (1, 2)]
    assert [len(names) for names in shards] == [7, 7]
    whole = cluster / "whole"
    assert run(["harvest", f"--output={whole}", *OPTIONS]) == 0
    assert verify(cluster / "out" / "seed-0" / "merged") == []
    assert same(Store.open(cluster / "out" / "seed-0" / "merged"), Store.open(whole))


def test_a_bad_submission_is_refused(cluster):
    config = str(cluster / "empty.yaml")
    assert submit(config, "out").returncode == 2
    for arguments, message in (
        ((config, "out", "none", "0"), "expected SHARDS to be a number"),
        (("nowhere.yaml", "out", "2", "0"), "there is no nowhere.yaml"),
    ):
        done = submit(*arguments)
        assert done.returncode == 2
        assert message in done.stderr
    assert not (cluster / "calls").exists()


@pytest.mark.parametrize("shard", ["3/2", "0/2", "a/b", "2", "1/0"])
def test_what_is_no_shard_is_refused(shard, tmp_path, capsys):
    assert run(["harvest", f"--output={tmp_path / 's'}", f"--compute.shard={shard}"]) == 2
    assert "Expected compute.shard as i/n" in capsys.readouterr().err
