"""scripts/slurm with a stand-in sbatch: the merged shards are the whole harvest, also where a task was stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dps.cli import run
from feature_store import Store
from feature_store.tools import verify
from scripts.kill_harvest import same

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "slurm"
OPTIONS = (
    "--benchmark.name=arithmetic", "--benchmark.limit=14", "--sampler.block_size=24", "--sampler.max_new_tokens=24",
    "--sampler.num_mh_steps=1", "--compute.rows=8", "--compute.commit_interval_s=0", "--k.maximum=4",
    "--compute.threads=1",
)  # fmt: skip


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A machine with Slurm's commands."""
    stand_in = Path(__file__).with_name("sbatch.py")
    commands = {
        "sbatch": f'exec "{sys.executable}" "{stand_in}" "$@"',
        "scontrol": 'echo "scontrol $*" >> "$CALLS"',
        "python3": f'exec "{sys.executable}" "$@"',
    }
    return prepared(tmp_path, monkeypatch, commands)


def prepared(folder, monkeypatch, commands):
    """Put these commands before all others."""
    (folder / "bin").mkdir()
    for name, body in commands.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(folder / "calls"))
    (folder / "empty.yaml").write_text("{}\n")
    return folder


def submit(*arguments):
    return subprocess.run(["bash", str(SCRIPTS / "submit.sh"), *arguments], capture_output=True, text=True)


@pytest.mark.slow
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


@pytest.fixture
def recording(tmp_path, monkeypatch):
    """A machine whose sbatch notes its arguments and runs the first array task with a python3 that notes its own."""
    note = (
        "import json, os, sys\n"
        "with open(os.environ['CALLS'], 'a') as file:\n"
        "    file.write(json.dumps(sys.argv[1:]) + '\\n')\n"
    )
    (tmp_path / "note.py").write_text(note)
    sbatch = (
        f'"{sys.executable}" "{tmp_path}/note.py" sbatch "$@"\n'
        'previous=; for word in "$@"; do\n'
        '  case "$word" in *harvest.sbatch) SLURM_ARRAY_TASK_ID=${TASK:-0} bash "$word" >&2 ;; esac\n'
        '  if [ "$previous" = --wrap ]; then sh -c "$word" >&2; fi; previous=$word\n'
        "done\necho 7\n"
    )
    python = f'exec "{sys.executable}" "{tmp_path}/note.py" "$@"'
    prepared(tmp_path, monkeypatch, {"sbatch": sbatch, "python3": python})

    def calls():
        return [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]

    return calls


ODD_OPTIONS = (
    "--benchmark.template=Q: {question} A:",
    "two  spaces",
    "it's",
    '"double"',
    "$HOME `id` $(id)",
    "*",
    "a\\b",
    "",
    "new\nline",
    "ünï",
)


def test_words_and_folders_with_spaces_stay_what_they_are(recording, tmp_path):
    folder = tmp_path / "my 'own' $runs"
    folder.mkdir()
    config = folder / "my config.yaml"
    config.write_text("{}\n")
    done = submit(str(config), str(folder / "out put"), "2", "3 5", *ODD_OPTIONS)
    assert done.returncode == 0, done.stderr
    array, task, *merges = recording()
    assert array[:4] == ["sbatch", "--parsable", "--export=ALL", "--array=0-3"]
    harvest = ["-m", "dps", "harvest", f"--config={config}", "--seed", "3", "--compute.shard", "1/2"]
    assert task == [*harvest, f"--output={folder}/out put/seed-3/shard-1", *ODD_OPTIONS]
    for seed, (submitted, merge) in zip("35", zip(merges[::2], merges[1::2], strict=True), strict=True):
        assert "--dependency=afterok:7" in submitted
        parts = [f"{folder}/out put/seed-{seed}/{part}" for part in ("shard-1", "shard-2", "merged")]
        assert merge == ["-m", "dps", "store", "merge", *parts[:2], "--output", parts[2]]


def test_no_options_are_none(recording, tmp_path):
    assert submit(str(tmp_path / "empty.yaml"), "out", "1", "0").returncode == 0
    assert recording()[1][-1] == "--output=out/seed-0/shard-1"


@pytest.mark.parametrize(
    ("shards", "seeds", "array", "task", "expected"),
    [
        ("08", "0", "0-7", 7, ("0", "8/8")),
        ("010", "0", "0-9", 8, ("0", "9/10")),
        ("2", "08 09", "0-3", 3, ("9", "2/2")),
        ("1", " 4\t5\n6 ", "0-2", 2, ("6", "1/1")),
        ("1", "4294967295", "0-0", 0, ("4294967295", "1/1")),
    ],
)
def test_numbers_are_decimal(recording, tmp_path, monkeypatch, shards, seeds, array, task, expected):
    monkeypatch.setenv("TASK", str(task))
    done = submit(str(tmp_path / "empty.yaml"), "out", shards, seeds)
    assert done.returncode == 0, done.stderr
    assert f"--array={array}" in recording()[0]
    assert (recording()[1][5], recording()[1][7]) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("out", "2", ""), "expected at least one seed"),
        (("out", "2", "  \t"), "expected at least one seed"),
        (("out", "2", "one"), "expected SEEDS to be numbers"),
        (("out", "2", "*"), "expected SEEDS to be numbers"),
        (("out", "2", "1,2"), "expected SEEDS to be numbers"),
        (("out", "2", "-1"), "expected SEEDS to be numbers"),
        (("out", "2", "4294967296"), "at most 4294967295"),
        (("out", "2", "1 01"), "each seed once"),
        (("out", "00", "1"), "expected SHARDS to be a number"),
        (("out", "-3", "1"), "expected SHARDS to be a number"),
        (("out", "2x", "1"), "expected SHARDS to be a number"),
        (("out", "99999999999999999999", "1"), "expected SHARDS to be a number"),
        (("out", "", "1"), "expected SHARDS to be a number"),
        (("", "2", "1"), "expected OUTPUT to be a folder"),
    ],
)
def test_what_cannot_be_meant_is_refused(recording, tmp_path, arguments, message):
    done = submit(str(tmp_path / "empty.yaml"), *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "calls").exists()


def test_a_word_or_a_file_that_is_missing_is_said(recording, tmp_path):
    assert submit(str(tmp_path / "empty.yaml"), "out").returncode == 2
    nowhere = submit("nowhere.yaml", "out", "2", "0")
    assert (nowhere.returncode, "there is no nowhere.yaml" in nowhere.stderr) == (2, True)
    assert not (tmp_path / "calls").exists()


def test_options_of_sbatch_may_be_quoted(recording, tmp_path, monkeypatch):
    monkeypatch.setenv("SBATCH_OPTIONS", "--partition=gpu --comment='two words' *")
    assert submit(str(tmp_path / "empty.yaml"), "out", "1", "0").returncode == 0
    assert recording()[0][4:7] == ["--partition=gpu", "--comment=two words", "*"]


@pytest.mark.parametrize("shard", ["3/2", "0/2", "a/b", "2", "1/0"])
def test_what_is_no_shard_is_refused(shard, tmp_path, capsys):
    assert run(["harvest", f"--output={tmp_path / 's'}", f"--compute.shard={shard}"]) == 2
    assert "Expected compute.shard as i/n" in capsys.readouterr().err
