"""Pooled hidden states as one memory-mapped file, and batches that are read through it."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.format import open_memmap

from dps.decide.features import checkpoint_features
from dps.decide.samples import columns_for
from dps.decide.vectors import pooled_vectors
from dps.errors import InputError
from feature_store import Store, StoreWriter
from lightning_modules import batches
from lightning_modules.batches import EpochBatches
from lightning_modules.data import FeatureDataModule
from lightning_modules.estimators import Standardizer
from tests.factories import make_manifest, make_question, make_trajectory

ROOT = Path(__file__).parents[2]
SIZE, K = 512, 8


def write(folder, count=40):
    """A harvest whose ids are spread over its segments."""
    model = {"name": "made-up", "fingerprint": "0" * 16, "num_layers": 12, "feature_layer": 11, "hidden_size": SIZE}
    writer = StoreWriter.open(folder, make_manifest(model=model))
    questions = [make_question(number, hidden_size=SIZE) for number in range(count)]
    for first in range(4):
        writer.commit(questions[first::4])
    return str(folder)


@pytest.fixture
def store(tmp_path):
    return write(tmp_path / "store")


def pooled(store, cache_dir=None):
    return pooled_vectors(Store.open(store), keys=columns_for({"power": K}), hidden_size=SIZE, cache_dir=cache_dir)


def files(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_the_file_is_made_once_and_holds_the_vectors_in_order_of_id(store, monkeypatch, capsys):
    vectors = pooled(store)
    assert isinstance(vectors, np.memmap)
    assert not vectors.flags.writeable
    assert "pooling the hidden states of 40 questions" in capsys.readouterr().out
    for row, question in enumerate(sorted(Store.open(store), key=lambda q: q.question_id)):
        for each, trajectory in zip(vectors[row], question.trajectories, strict=True):
            features = checkpoint_features(
                [trajectory], num_prompt_tokens=1, embedding=np.zeros(0), calibration=make_manifest().calibration
            )
            np.testing.assert_array_equal(each, features.hidden)
    monkeypatch.setattr(Store, "scan", lambda *a, **k: pytest.fail("the store was read again"))
    np.testing.assert_array_equal(pooled(store), vectors)
    [name] = files(Path(store) / "cache")
    np.testing.assert_array_equal(np.load(Path(store) / "cache" / name), vectors)


def test_a_store_that_has_grown_is_pooled_anew(store):
    first = pooled(store)
    StoreWriter.attach(store).commit([make_question(999, hidden_size=SIZE)])
    grown = pooled(store)
    assert grown.shape == (41, K, SIZE)
    np.testing.assert_array_equal(grown[:40], first)  # the stale file has gone; whoever has it open reads on
    assert len(files(Path(store) / "cache")) == 1


def test_leftovers_and_files_in_part_are_replaced(store):
    expected = pooled(store).copy()
    [name] = files(Path(store) / "cache")
    path = Path(store) / "cache" / name
    path.with_name(f"{name}.999999999.tmp").write_bytes(b"half")
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:50], b"", whole.replace(b"(40,", b"(41,")):
        path.write_bytes(content)
        np.testing.assert_array_equal(pooled(store), expected)
        assert files(path.parent) == [name]


def test_a_store_that_cannot_be_written_gets_a_file_without_a_name(store, capsys, monkeypatch, tmp_path):
    (Path(store) / "cache").write_text("in the way")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    vectors = pooled(store)
    assert "set data.cache_dir to a folder" in capsys.readouterr().out
    np.testing.assert_array_equal(vectors, pooled(store, cache_dir=str(tmp_path / "chosen" / "cache")))
    assert files(tmp_path / "temporary") == []
    with pytest.raises(InputError, match=r"Cannot write 1 MB .* choose another folder with data\.cache_dir"):
        pooled(store, cache_dir=str(Path(store) / "cache"))


def test_a_disk_that_fills_up_is_said_and_leaves_nothing(store, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="No space left"):
        pooled(store)
    assert files(Path(store) / "cache") == []


@pytest.mark.parametrize(("rows", "window", "run"), [(60, 12, 6), (57, 12, 6), (60, 3, 3), (60, 15, 6), (60, 999, 6)])
def test_an_epoch_has_every_row_once_and_runs_stay_together(rows, window, run):
    sampler = EpochBatches(rows, 7, 0, window=window, run=run)
    order = np.concatenate(list(sampler))
    assert sorted(order.tolist()) == list(range(rows))
    assert [len(b) for b in sampler][:-1] == [7] * (len(sampler) - 1)
    size = max(1, window // run) * run
    if window < rows and rows % run == 0:
        for start in range(0, rows, size):
            numbers = set(order[start : start + size].tolist())
            runs = {number // run for number in numbers}
            assert numbers == {n for r in runs for n in range(r * run, (r + 1) * run)}
    elif window > rows:  # all rows among each other, as ever
        np.testing.assert_array_equal(order, np.random.default_rng([0, 0]).permutation(rows))


def test_shuffling_depends_on_seed_and_epoch_only():
    def order(seed, epoch):
        sampler = EpochBatches(60, 8, seed, window=12, run=6)
        sampler.set_epoch(epoch)
        return np.concatenate(list(sampler)).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert order(None, 3) == list(range(60))


@pytest.mark.parametrize("window", [None, 6 * K * SIZE * 4])
def test_batches_are_the_rows_of_the_table(store, monkeypatch, window):
    if window is not None:
        monkeypatch.setattr(batches, "_WINDOW", window)
        monkeypatch.setattr(batches, "_RUN", window // 3)
    data = FeatureDataModule(store, num_orders=2, batch_size=50, label="correct")
    data.setup()
    table, loader = data.table("train"), data.train_dataloader()
    before = torch.random.get_rng_state()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        made, numbers = list(loader), list(loader.sampler)
        assert len(made) == len(loader) == len(numbers)
        rows = np.concatenate(numbers)
        q, o, c = np.unravel_index(rows, table.scalars.shape[:3])
        got = [torch.cat(parts).numpy() for parts in zip(*made, strict=True)]
        np.testing.assert_array_equal(got[0], table.scalars[q, o, c])
        np.testing.assert_array_equal(got[1], table.hidden[q, o, c])
        np.testing.assert_array_equal(got[2], table.embedding[q])
        np.testing.assert_array_equal(got[3], table.correct[q, o, c])
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's stream moves


def test_statistics_by_chunks_are_those_of_all_rows_and_do_not_cancel_far_from_zero():
    values = 1e8 + np.random.default_rng(0).normal(size=(1000, 3))
    standardizer = Standardizer(3)
    standardizer.fit(np.array_split(values, 7))
    np.testing.assert_allclose(standardizer.mean.numpy(), values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(standardizer.scale.numpy(), values.std(axis=0), rtol=1e-7)
    standardizer.fit([np.full((5, 3), 0.1), np.full((4, 3), 0.1)])
    assert standardizer.scale.tolist() == [1.0] * 3


def long_question(number):
    """A question whose trajectories have 16 blocks of 3,584 numbers; a trajectory's blocks are equal, to be quick."""
    question = make_question(number, hidden_size=0)
    longer = [
        make_trajectory(t.index, correct=t.correct, answer_class=t.answer_class, hidden_size=3584, num_tokens=128)
        for t in question.trajectories
    ]
    repeated = [replace(t, hidden=np.repeat(t.hidden[:1], 16, axis=0)) for t in longer]
    return replace(question, trajectories=tuple(repeated))


PEAK = """
import atexit, sys
peak = lambda: open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]
atexit.register(lambda: print("peak:", peak(), file=sys.stderr))
from dps.__main__ import main
main()
"""
"""A command that says its own peak memory, KiB: what the system tells of a child begins with that of its parent."""


@pytest.mark.slow
def test_a_training_needs_no_memory_for_the_vectors_of_a_7b_model(tmp_path):
    """0.55 GB of hidden states of a 7B model's size, 34 MB pooled: with them a training would take more than 1.2 GB."""
    model = {"name": "m", "fingerprint": "0" * 16, "num_layers": 28, "feature_layer": 11, "hidden_size": 3584}
    writer = StoreWriter.open(tmp_path / "store", make_manifest(model=model))
    for start in range(0, 300, 20):
        writer.commit([long_question(number) for number in range(start, start + 20)])
    options = [f"--data.init_args.store={tmp_path / 'store'}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-c", PEAK, "fit", "--config", "configs/mlp_hq.yaml", "--trainer.max_epochs=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.rpartition("peak: ")[2].split()[0]) * 1024 < 1e9
    [file] = (tmp_path / "store" / "cache").iterdir()
    assert open_memmap(file, mode="r").shape == (300, K, 3584)
