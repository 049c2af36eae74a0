"""Harvests that cannot write: one sentence, exit code 2, nothing lost, and the same command goes on."""

import errno
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest

from dps.cli import run
from dps.run import pool, ray_pool
from dps.run import progress_log as progress_module
from dps.run import run as run_module
from dps.run.committer import Done
from dps.run.progress_log import PROGRESS, ProgressLog
from feature_store import Store, StoreWriter
from feature_store import lock as lock_module
from feature_store import store as store_module
from feature_store.errors import StoreError
from feature_store.lock import held
from feature_store.segment import read_content
from feature_store.tools import verify
from scripts.kill_harvest import same
from tests.factories import make_manifest, make_question

SETTINGS = (
    "--benchmark.limit=8", "--sampler.block_size=24", "--sampler.max_new_tokens=24", "--sampler.num_mh_steps=1",
    "--compute.rows=8", "--compute.commit_interval_s=0", "--compute.threads=1", "--k.maximum=2", "--k.start=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A harvest with room enough."""
    folder = tmp_path_factory.mktemp("alone") / "store"
    assert run(["harvest", f"--output={folder}", *SETTINGS]) == 0
    return Store.open(folder)


def command(folder, *options):
    return [sys.executable, "-m", "dps", "harvest", f"--output={folder}", *SETTINGS, *options]


class FullFile(io.FileIO):
    """A file on a disk without room."""

    def write(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")


def report(log):
    log.add(Done(0, "q", tokens=(1,), correct=None, accepted=0, proposed=0, age_s=0.0))
    log.write()


def is_refused(done, *words):
    """There is one sentence, and nothing looks like a bug."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    [sentence] = [line for line in done.stderr.splitlines() if line.startswith("dps harvest: error: ")]
    assert all(word in sentence for word in words), sentence


def in_own_mounts(script, *arguments):
    """Run a shell script that may mount what it likes; what it mounts is gone with it."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here to mount with")
    wrapped = ["unshare", "--user", "--map-root-user", "--mount"]
    allowed = subprocess.run([*wrapped, "sh", "-c", "mount -t tmpfs tmpfs /mnt"], capture_output=True, text=True)
    if allowed.returncode:
        pytest.skip(f"this machine does not let a user mount: {allowed.stderr.strip()}")
    done = subprocess.run([*wrapped, "sh", "-e", "-c", script, "sh", *arguments], capture_output=True, text=True)
    return done


@pytest.mark.slow
def test_a_worker_that_cannot_write_says_so_and_the_run_goes_on_later(alone, tmp_path):
    folder = tmp_path / "store"
    limit = 10_000  # bytes of a file: enough for a manifest, not for a segment
    full = subprocess.run(
        command(folder, "--compute.workers=2"),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    is_refused(full, "Cannot write to the store", "File too large", "run the command again")
    assert len(Store.open(folder)) == 0
    assert run(["harvest", f"--output={folder}", *SETTINGS]) == 0
    assert verify(folder) == []
    assert same(Store.open(folder), alone)


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_what_was_reported_and_the_run_goes_on_later(alone, tmp_path):
    for name in ("disk", "kept"):
        (tmp_path / name).mkdir()
    script = """
        disk=$1; kept=$2; shift 2
        mount -t tmpfs -o size=100k tmpfs "$disk"
        "$@" 2> "$kept/full" && exit 1 || echo $? > "$kept/code"
        cp -r "$disk/store" "$kept/store"
        mount -o remount,size=10m "$disk"
        "$@"
        cp -r "$disk/store" "$kept/whole"
    """
    kept = tmp_path / "kept"
    done = in_own_mounts(script, str(tmp_path / "disk"), str(kept), *command(tmp_path / "disk" / "store"))
    assert done.returncode == 0, done.stderr
    first = SimpleNamespace(returncode=int((kept / "code").read_text()), stderr=(kept / "full").read_text())
    is_refused(first, "No space left on device", "run the command again")
    reported = json.loads((kept / "store" / PROGRESS).read_text().splitlines()[-1])["questions"]
    assert 0 < reported <= len(Store.open(kept / "store")) < 8
    [missing] = verify(kept / "store")
    assert f"holds {len(Store.open(kept / 'store'))} of 8 questions" in missing
    assert verify(kept / "whole") == []
    assert same(Store.open(kept / "whole"), alone)


@pytest.mark.slow
def test_a_read_only_folder_is_refused(tmp_path):
    script = 'mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"; shift; "$@"'
    done = in_own_mounts(script, str(tmp_path), *command(tmp_path / "store"))
    is_refused(done, f"Cannot write to {tmp_path / 'store'}", "Read-only file system", "choose another output")


def test_a_parent_that_is_a_file_is_refused_and_one_that_is_missing_is_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run(["harvest", f"--output={tmp_path / 'file' / 'store'}", *SETTINGS]) == 2
    assert "(Not a directory): choose another output" in capsys.readouterr().err
    with held(tmp_path / "not" / "there" / "yet"):
        assert (tmp_path / "not" / "there" / "yet" / "run.lock").is_file()


def test_a_ray_worker_hands_on_that_it_cannot_write(monkeypatch):
    """As the local one does: as an answer, since an actor that raises is taken for dead."""

    def cannot(*args, **kwargs):
        raise StoreError("Cannot write to the store (No space left on device).")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    monkeypatch.setattr(pool, "work", cannot)
    monkeypatch.setattr(pool.Worker, "_cache_of", lambda self, tasks: None)
    said = ray_pool.Worker(0, None, None).run([], None)
    assert isinstance(said, StoreError)
    assert "No space left" in str(said)


def test_a_log_beside_tensorboard_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    monkeypatch.setattr(progress_module, "FileIO", FullFile)
    with (
        pytest.raises(StoreError, match=r"Cannot write the progress of the store .* \(No space left on device\)"),
        ProgressLog(tmp_path, 0, 5, tensorboard=True) as log,
    ):
        report(log)


def test_questions_are_committed_once_also_where_their_report_fails(tmp_path, capsys, monkeypatch):
    """A run that is broken off leaves its segments as they are."""
    folder = tmp_path / "store"
    monkeypatch.setattr(run_module, "MANY", 1)
    monkeypatch.setattr(progress_module, "FileIO", FullFile)
    assert run(["harvest", f"--output={folder}", *SETTINGS]) == 2
    assert "Cannot write the progress of the store" in capsys.readouterr().err
    stored = [name for path in folder.glob("segment-w0-*.h5") for name in read_content(path).question_ids]
    assert len(stored) == len(set(stored)) > 0
    assert not list(folder.glob("segment-all-*.h5"))


def test_a_run_that_is_done_joins_its_segments_where_there_are_many(alone, tmp_path, capsys, monkeypatch):
    """What was left by a run that could not, by the next, though it has nothing to sample."""
    monkeypatch.setattr(run_module, "MANY", 3)

    def no_room(path, content):
        if "all" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_once(path, content)

    write_once = store_module.write_once
    command = ["harvest", f"--output={tmp_path}", *SETTINGS]
    monkeypatch.setattr(store_module, "write_once", no_room)
    with pytest.warns(UserWarning, match="is complete, but its segments were not joined: Cannot write to the store"):
        assert run(command) == 0
    monkeypatch.setattr(store_module, "write_once", write_once)
    assert same(Store.open(tmp_path), alone)
    assert len(list(tmp_path.glob("segment-w0-*.h5"))) >= 3
    assert "join the segments of" in capsys.readouterr().err
    assert run(command) == 0
    assert [path.name for path in tmp_path.glob("segment-*.h5")] == ["segment-all-000000.h5"]
    assert verify(tmp_path) == []
    assert same(Store.open(tmp_path), alone)
    assert "join the segments of" in capsys.readouterr().err
    assert run(command) == 0
    assert "join the segments of" not in capsys.readouterr().err


def test_half_a_line_of_the_log_is_dropped(tmp_path):
    (tmp_path / PROGRESS).write_text('{"questions": 1}\n{"questi')
    with ProgressLog(tmp_path, 1, 5) as log:
        report(log)
    assert [json.loads(line)["questions"] for line in (tmp_path / PROGRESS).read_text().splitlines()] == [1, 2]


def test_a_lock_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "open_in_place", lambda path, flags: os.open("/dev/full", flags))
    with pytest.raises(StoreError, match=r"Cannot write to .*: make room or access for it"), held(tmp_path):
        pass


def test_the_messages_are_those_that_the_document_shows(tmp_path, monkeypatch):
    """docs/clusters.md, up to names and reasons."""

    def plain(text):
        text = re.sub(r"segment-w0-\d+", "segment", text.replace(str(tmp_path), "OUTPUT"))
        return re.sub(r" \([^()]*\)", "", text)

    def said(work):
        with pytest.raises(StoreError) as error:
            work()
        return plain(str(error.value))

    def hold():
        with held(tmp_path):
            pass

    def log():
        with ProgressLog(tmp_path, 0, 5) as progress:
            report(progress)

    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    table = plain((Path(__file__).parents[2] / "docs" / "clusters.md").read_text())
    writer = StoreWriter.open(tmp_path, make_manifest())
    segment = writer.commit([make_question(0)])
    good, manifest = segment.read_bytes(), tmp_path / "manifest.json"
    messages = [said(lambda: StoreWriter.open(tmp_path, make_manifest(fingerprint="other", seed=1)))]
    with held(tmp_path):
        messages.append(said(hold))
    with monkeypatch.context() as patched:
        patched.setattr(store_module, "write_once", no_room)
        messages.append(said(lambda: writer.commit([make_question(1)])))
        patched.setattr(lock_module, "make_folder", no_room)
        messages.append(said(hold))
        patched.setattr(progress_module, "FileIO", FullFile)
        messages.append(said(log))
    segment.write_bytes(good[: len(good) // 2])
    messages.append(said(lambda: list(Store.open(tmp_path))))
    with h5py.File(tmp_path / "new.h5", "w") as new, h5py.File(io.BytesIO(good)) as old:
        for name in old:
            old.copy(name, new)
        new.attrs.update(old.attrs)
        new["trajectories/compute_s"][0] += 1
    segment.write_bytes((tmp_path / "new.h5").read_bytes())
    messages.append(said(lambda: list(Store.open(tmp_path))))
    messages.append(plain(str(store_module.other_questions(segment))))
    manifest.write_text(manifest.read_text().replace('"aggregator": "majority"', '"aggregator": "weighted"'))
    messages.append(said(lambda: Store.open(tmp_path)))
    assert len(set(messages)) == 9
    for message in messages:
        assert f"| {message} |" in table
