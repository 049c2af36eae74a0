"""Stores whose hidden states do not fit in memory: the same rows, in bounded memory, each question read once."""

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dps.decide.features import checkpoint_features
from dps.decide.predictions import read_predictions
from dps.decide.table import orders_of
from dps.decide.vectors import VectorFile, mean_vectors, pooled_vectors
from dps.errors import InputError
from feature_store import Store, StoreWriter
from lightning_modules import load_controller, vectors
from lightning_modules.batches import BatchLoader, EpochBatches, prefetched
from lightning_modules.cli import _run, cross_validate
from lightning_modules.crossval import predict_table
from lightning_modules.data import FeatureDataModule
from lightning_modules.estimators import Standardizer
from tests.factories import make_manifest, make_question

CONFIGS = Path(__file__).parents[2] / "configs"
COUNT, SIZE, K = 160, 512, 8
SETTINGS = {"pooling": "mean", "num_trajectories": K, "hidden_size": SIZE, "cache_dir": None}


def write(folder, count=COUNT):
    """A harvest of 2.6 MB of pooled hidden states, its ids spread over its segments."""
    model = {"name": "made-up", "fingerprint": "0" * 16, "num_layers": 12, "feature_layer": 11, "hidden_size": SIZE}
    writer = StoreWriter.open(folder, make_manifest(model=model))
    questions = [make_question(number, hidden_size=SIZE) for number in range(count)]
    for first in range(4):
        writer.commit(questions[first::4])
    return str(folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return write(tmp_path_factory.mktemp("stores") / "large")


@pytest.fixture
def small(tmp_path):
    """A store of its own for tests that look at the file beside it."""
    return write(tmp_path / "store", 40)


def ready(store, **settings):
    data = FeatureDataModule(store, **{"batch_size": 50, "num_orders": 3, **settings})
    data.setup()
    return data


def pooled(store, memory_mb=1, **changes):
    return pooled_vectors(Store.open(store), memory_mb=memory_mb, **{**SETTINGS, **changes})


def files(folder):
    return sorted(path.name for path in Path(folder).iterdir())


# -- the same rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pooling", "spread"), [("mean", False), ("last", True), ("attention", True)])
def test_rows_from_a_file_equal_the_live_features_bit_for_bit(large, pooling, spread):
    data = ready(large, memory_mb=1, pooling=pooling, spread=spread)
    table = data.table("val")
    assert isinstance(table.vectors, VectorFile)
    inputs = table.inputs_of(np.arange(table.num_rows))
    store = Store.open(large)
    for q, question in enumerate(store.read(table.question_ids)):
        for o, order in enumerate(orders_of(question.question_id, K, 3, 0)):
            for c, k in enumerate((2, 4, 6)):
                live = checkpoint_features(
                    [question.trajectories[i] for i in order[:k]],
                    num_prompt_tokens=question.num_prompt_tokens,
                    embedding=question.embedding,
                    calibration=store.manifest.calibration,
                    pooling=pooling,
                )
                row = (q * 3 + o) * 3 + c
                if pooling == "attention":
                    blocks = inputs.values[inputs.members[row, :k]]
                    np.testing.assert_array_equal(blocks[:, : live.blocks.shape[1]], live.blocks)
                    assert blocks[:, live.blocks.shape[1] :].sum() == 0
                else:
                    expected = np.concatenate([live.hidden, live.spread]) if spread else live.hidden
                    np.testing.assert_array_equal(inputs[row], expected)


def blocks_by_row(hidden):
    """The blocks of each row's trajectories in their order: shape (N, K, B, D + 1), zeros beyond k."""
    values, members = (np.asarray(part) for part in hidden)
    return np.where((members >= 0)[..., None, None], values[members], 0)


@pytest.mark.parametrize("settings", [{}, {"spread": True}, {"pooling": "attention"}])
@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_from_a_file_are_the_rows_of_the_table_in_memory(large, split, settings):
    streamed, held = ready(large, memory_mb=1, **settings), ready(large, **settings)
    assert isinstance(held.table(split).vectors, np.ndarray)
    table = held.table(split)
    [loader] = [streamed.train_dataloader()] if split == "train" else streamed.val_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches, numbers = list(loader), list(loader.sampler)
        assert [len(b.label) for b in batches] == [len(n) for n in numbers]
        assert len(batches) == len(loader)
        rows = np.concatenate(numbers)
        assert sorted(rows) == list(range(table.num_rows))
        q, o, c = np.unravel_index(rows, table.scalars.shape[:3])
        if settings.get("pooling") == "attention":
            for batch, chosen in zip(batches, numbers, strict=True):
                expected = blocks_by_row(table.inputs_of(chosen))
                np.testing.assert_array_equal(blocks_by_row(batch.hidden), expected)
                assert len(batch.hidden.values) <= len(np.unique(chosen // 9)) * K  # each trajectory once
            batches = [batch._replace(hidden=torch.zeros(len(batch.label), 0)) for batch in batches]
        got = [torch.cat(parts).numpy() for parts in zip(*batches, strict=True)]
        np.testing.assert_array_equal(got[0], table.scalars[q, o, c])
        if settings.get("pooling") != "attention":
            np.testing.assert_array_equal(got[1], table.hidden[q, o, c])
        np.testing.assert_array_equal(got[2], table.embedding[q])
        np.testing.assert_array_equal(got[3], table.labels("no_gain")[q, o, c])


def test_means_are_numpys_for_any_rows():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 12, 3000)).astype(np.float32)
    questions, ks = rng.integers(0, 5, 300), rng.integers(1, 13, 300)
    orders = np.stack([rng.permutation(12) for _ in range(300)])
    found = mean_vectors(values, questions, orders, ks)
    spread = mean_vectors(values, questions, orders, ks, spread=True)
    for row, wide, q, order, k in zip(found, spread, questions, orders, ks, strict=True):
        chosen = values[q, order[:k]].astype(np.float64)
        np.testing.assert_array_equal(row, chosen.mean(axis=0).astype(np.float32))
        np.testing.assert_array_equal(wide, np.concatenate([row, chosen.std(axis=0).astype(np.float32)]))
    assert mean_vectors(values, questions[:0], orders[:0], ks[:0]).shape == (0, 3000)


# -- order -------------------------------------------------------------------------------------------------------------


def batches_of(seed=0, epoch=0, rows=60, window=4, block=2):
    sampler = EpochBatches(rows, 7, seed, rows_per_question=3, window=window, block=block)
    sampler.set_epoch(epoch)
    return sampler


@pytest.mark.parametrize(("rows", "window", "block"), [(60, 4, 2), (57, 4, 2), (60, 1, 1), (60, 5, 2), (60, 50, 3)])
def test_an_epoch_by_windows_has_every_row_once_and_whole_blocks(rows, window, block):
    sampler = batches_of(rows=rows, window=window, block=block)
    assert sorted(np.concatenate(list(sampler)).tolist()) == list(range(rows))
    assert [len(b) for b in sampler][:-1] == [7] * (len(sampler) - 1)
    windows = list(sampler.windows())
    np.testing.assert_array_equal(np.concatenate(windows), np.concatenate(list(sampler)))
    for each in windows:
        questions = set((each // 3).tolist())
        assert len(each) == 3 * len(questions) <= 3 * max(window, block)
        blocks = {q // block for q in questions}
        assert questions == {q for b in blocks for q in range(b * block, min((b + 1) * block, rows // 3))}


def test_windows_depend_on_seed_and_epoch_only():
    def order(**changes):
        return np.concatenate(list(batches_of(**changes))).tolist()

    assert order(epoch=3) == order(epoch=3)
    assert order(epoch=3) != order(epoch=4)
    assert order(seed=0) != order(seed=1)
    assert order(seed=None, epoch=2) == list(range(60))
    # Blocks far from each other meet in one window, and their rows are mixed.
    first = next(batches_of(rows=6000, window=20, block=2).windows()) // 6
    assert np.ptp(first) > 500
    assert (np.diff(first) != 0).mean() > 0.5


def test_a_store_that_fits_is_shuffled_over_all_rows_as_ever(large):
    data = ready(large)
    order = np.concatenate(list(data.train_dataloader().sampler))
    np.testing.assert_array_equal(order, np.random.default_rng([0, 0]).permutation(data.table("train").num_rows))


# -- memory and reading ------------------------------------------------------------------------------------------------


class Watched(VectorFile):
    """Notes which questions are read, and how many bytes of vectors are alive at any moment."""

    def __init__(self, path):
        super().__init__(path)
        self.read, self.alive, self.most = [], 0, 0
        self._lock = threading.Lock()

    def __getitem__(self, questions):
        found = super().__getitem__(questions)
        with self._lock:
            self.read.append(questions)
            self.alive += found.nbytes
            self.most = max(self.most, self.alive)
        weakref.finalize(found.base, self._gone, found.nbytes)
        return found

    def _gone(self, size):
        with self._lock:
            self.alive -= size


@pytest.mark.parametrize("pause_s", [0.0, 0.003])
@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_an_epoch_reads_each_question_once_and_holds_two_windows(large, pause_s, seed, pooling):
    table = ready(large, memory_mb=1, pooling=pooling).table("train")
    watched = Watched(table.vectors.path)
    # Windows of 9 questions of 16 KB, or 4 times as much with attention, of about a hundred in the split.
    memory = 600_000 if pooling == "mean" else 9_600_000
    loader = BatchLoader(replace(table, vectors=watched), "no_gain", 50, seed, memory)
    for _ in loader:
        time.sleep(pause_s)
    read = np.concatenate(watched.read)
    assert sorted(read) == sorted(table.vector_rows)
    assert all((np.diff(window) > 0).all() for window in watched.read)  # in the order of the file
    assert len(watched.read) >= 10
    assert 0 < watched.most <= memory // (2 if pooling == "mean" else 8)
    assert watched.alive == 0


def test_runs_of_questions_are_one_read(large, monkeypatch):
    file = pooled(large)
    calls = []
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *a: calls.append(a) or real(*a))
    found = file[np.array([3, 4, 5, 90, 91, 7])]
    assert len(calls) == 3
    np.testing.assert_array_equal(found, pooled(large, memory_mb=100)[[3, 4, 5, 90, 91, 7]])
    assert file[np.zeros(0, int)].shape == (0, K, SIZE)


def test_statistics_need_no_more_than_a_chunk(large, monkeypatch):
    monkeypatch.setattr("dps.decide.table._CHUNK", 200_000)
    table = ready(large, memory_mb=1).table("train")
    chunks = list(table.hidden_chunks())
    assert len(chunks) > 8
    assert max(chunk.nbytes for chunk in chunks) <= 200_000
    rows = table.hidden.reshape(-1, SIZE)
    np.testing.assert_array_equal(np.concatenate(chunks), rows)
    whole, parts = Standardizer(SIZE), Standardizer(SIZE)
    whole.fit([rows])
    parts.fit(table.hidden_chunks())
    assert whole.mean.numpy().tolist() == rows.mean(axis=0, dtype=np.float64).tolist()
    assert whole.scale.numpy().tolist() == rows.std(axis=0, dtype=np.float64).tolist()
    torch.testing.assert_close(parts.mean, whole.mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(parts.scale, whole.scale, rtol=1e-13, atol=0)


def test_statistics_do_not_cancel_far_from_zero():
    values = 1e8 + np.random.default_rng(0).normal(size=(1000, 3))
    standardizer = Standardizer(3)
    standardizer.fit(np.array_split(values, 7))
    np.testing.assert_allclose(
        standardizer.scale.numpy(), values.std(axis=0), rtol=1e-7
    )  # squares of 1e8 would leave no digit
    standardizer.fit([np.full((5, 3), 0.1), np.full((4, 3), 0.1)])
    assert standardizer.scale.tolist() == [1.0] * 3


def test_a_whole_split_as_one_batch_is_refused_where_it_does_not_fit(large):
    data = ready(large, memory_mb=1, batch_size=None)
    with pytest.raises(InputError, match=r"more than data\.memory_mb 1 holds: set data\.batch_size"):
        data.train_dataloader()
    assert len(ready(large, batch_size=None).train_dataloader()) == 1
    with pytest.raises(InputError, match=r"data\.memory_mb of at least 1"):
        FeatureDataModule(large, memory_mb=0)


# -- the thread --------------------------------------------------------------------------------------------------------


def test_a_generator_runs_ahead_but_no_further():
    made, closed = [], threading.Event()

    def items():
        try:
            for number in range(100):
                made.append(number)
                yield number
        finally:
            closed.set()

    running = prefetched(items(), 3)
    assert next(running) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert made == [0, 1, 2, 3]  # the one that was yielded and three ahead
    running.close()
    assert closed.is_set()
    assert list(prefetched(iter_of(50), 3)) == list(range(50))
    assert list(prefetched(iter_of(0), 3)) == []


def iter_of(count):
    yield from range(count)


def test_what_a_thread_raises_is_raised_where_it_is_waited_for():
    def items():
        yield 1
        raise InputError("damaged")

    running = prefetched(items(), 2)
    assert next(running) == 1
    with pytest.raises(InputError, match="damaged"):
        next(running)


def test_no_thread_outlives_an_epoch_that_was_left_early(large):
    def threads():
        return {t for t in threading.enumerate() if t.name.startswith("dps-prefetch")}

    before = threads()
    batches = iter(ready(large, memory_mb=1).train_dataloader())
    next(batches)
    assert len(threads() - before) == 2  # one reads windows, one makes batches
    del batches
    assert threads() <= before


# -- the file ----------------------------------------------------------------------------------------------------------


def test_vectors_stay_in_memory_while_they_fit(small):
    assert isinstance(pooled(small, memory_mb=1), np.ndarray)  # 0.66 MB
    assert not (Path(small) / "cache").exists()


@pytest.fixture
def tight(monkeypatch):
    """A megabyte is a kilobyte, so that stores of few questions do not fit."""
    monkeypatch.setattr(vectors, "MEGABYTE", 1000)


@pytest.mark.usefixtures("tight")
def test_the_file_is_made_once_and_holds_the_vectors_in_order_of_id(small, monkeypatch, capsys):
    file = pooled(small)
    assert "pooling the hidden states of 40 questions" in capsys.readouterr().out
    expected = pooled(small, memory_mb=10**6)
    monkeypatch.setattr(Store, "scan", lambda *a, **k: pytest.fail("the store was read again"))
    again = pooled(small)
    assert again.path == file.path
    assert files(Path(small) / "cache") == [file.path.name]
    np.testing.assert_array_equal(again[np.arange(40)], expected)
    np.testing.assert_array_equal(np.load(file.path)["vectors"], expected)  # NumPy alone reads it


@pytest.mark.usefixtures("tight")
def test_a_store_that_changed_is_pooled_anew_and_another_pooling_beside_it(small):
    first = pooled(small)
    last = pooled(small, pooling="last")
    assert first.path != last.path
    assert (first[np.arange(40)] != last[np.arange(40)]).any()
    StoreWriter.attach(small).commit([make_question(999, hidden_size=SIZE)])
    grown = pooled(small)
    assert grown.shape == (41, K, SIZE)
    np.testing.assert_array_equal(grown[np.arange(40)], first[np.arange(40)])
    # The stale file of the same pooling has gone; whoever has it open reads on.
    assert files(Path(small) / "cache") == sorted([grown.path.name, last.path.name])


@pytest.mark.usefixtures("tight")
def test_leftovers_and_damaged_files_are_replaced(small):
    file = pooled(small)
    expected = file[np.arange(40)].copy()
    leftover = file.path.with_name(f"{file.path.name}.999999999.tmp")
    leftover.write_bytes(b"half")
    whole = file.path.read_bytes()
    for content in (whole[:-1], whole[:50], b"", whole.replace(b"(40,)", b"(41,)")):
        file.path.write_bytes(content)
        np.testing.assert_array_equal(pooled(small)[np.arange(40)], expected)
        assert files(file.path.parent) == [file.path.name]
    file.path.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    found = pooled(small)
    np.testing.assert_array_equal(found[np.arange(39)], expected[:39])
    with pytest.raises(InputError, match="is damaged: delete it"):
        found[np.array([39])]
    file.path.write_bytes(whole)
    os.truncate(file.path, 1000)
    with pytest.raises(InputError, match="ends too early"):
        found[np.array([39])]


@pytest.mark.usefixtures("tight")
def test_a_store_that_cannot_be_written_gets_a_file_without_a_name(small, capsys, monkeypatch, tmp_path):
    (Path(small) / "cache").write_text("in the way")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    file = pooled(small)
    assert "set data.cache_dir to a folder" in capsys.readouterr().out
    np.testing.assert_array_equal(file[np.arange(40)], pooled(small, memory_mb=10**6))
    assert files(tmp_path / "temporary") == []
    with pytest.raises(InputError, match=r"Cannot write 1 MB .* choose another folder with data\.cache_dir, or hold"):
        pooled(small, cache_dir=str(Path(small) / "cache"))


@pytest.mark.usefixtures("tight")
def test_a_chosen_folder_is_shared_and_nothing_of_it_removed(small, tmp_path):
    other = write(tmp_path / "other", 30)
    cache = tmp_path / "deep" / "cache"
    one, two = (pooled(store, cache_dir=str(cache)) for store in (small, other))
    assert files(cache) == sorted([one.path.name, two.path.name])
    assert pooled(small, cache_dir=str(cache)).path == one.path
    assert not (Path(small) / "cache").exists()


@pytest.mark.usefixtures("tight")
def test_a_disk_that_fills_up_is_said_and_leaves_nothing(small, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(InputError, match=r"No space left.*data\.memory_mb=1\."):
        pooled(small)
    assert files(Path(small) / "cache") == []


MAKE = """
import hashlib, sys, time
import numpy as np
from feature_store import Store
from dps.decide import vectors
vectors.MEGABYTE = 1000
write = vectors._write
vectors._write = lambda *a: (time.sleep(0.5), write(*a))
print("ready", flush=True)
sys.stdin.readline()
file = vectors.pooled_vectors(
    Store.open(sys.argv[1]), pooling="mean", num_trajectories=8, hidden_size=512, memory_mb=1, cache_dir=None
)
print(hashlib.sha256(file[np.arange(40)].tobytes()).hexdigest())
"""


def test_of_two_processes_one_makes_the_file_and_both_read_it(small):
    command = [sys.executable, "-c", MAKE, small]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(2)]
    assert [child.stdout.readline() for child in children] == ["ready\n"] * 2
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    said = [child.communicate(timeout=60)[0].splitlines() for child in children]
    assert sum(line.startswith("pooling") for lines in said for line in lines) == 1
    digest = hashlib.sha256(pooled(small, memory_mb=100).tobytes()).hexdigest()
    assert [lines[-1] for lines in said] == [digest] * 2


# -- the commands ------------------------------------------------------------------------------------------------------


def options(store, folder, *more):
    return [
        "--config",
        str(CONFIGS / "mlp_hq.yaml"),
        f"--data.init_args.store={store}",
        f"--trainer.default_root_dir={folder}",
        "--data.init_args.num_orders=2",
        "--data.init_args.batch_size=64",
        *more,
    ]


STREAM = "--data.init_args.memory_mb=1"


def test_a_training_that_streams_resumes_as_if_it_had_run_through(large, tmp_path):
    def fit(folder, epochs, *more):
        cli = _run(["fit", *options(large, folder, STREAM, f"--trainer.max_epochs={epochs}", *more)])
        assert isinstance(cli.datamodule.table("train").vectors, VectorFile)
        return {
            name: value.clone() for name, value in cli.model.estimator.state_dict().items() if hasattr(value, "clone")
        }

    through, early = fit(tmp_path / "through", 4), fit(tmp_path / "parts", 2)
    resumed = fit(tmp_path / "parts", 4, f"--ckpt_path={tmp_path / 'parts' / 'checkpoints' / 'last.ckpt'}")
    for name, value in through.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)
    assert (early["layers.0.weight"] != resumed["layers.0.weight"]).any()


def test_test_and_predict_find_the_same_by_file_and_in_memory(large, tmp_path):
    folder = tmp_path / "run"
    _run(["fit", *options(large, folder, STREAM, "--trainer.max_epochs=2")])
    found = {}
    for name, more in (("file", [STREAM]), ("memory", [])):
        metrics = _run(["test", *options(large, folder, *more)]).model.test_result.metrics
        _run(["predict", *options(large, folder, *more)])
        found[name] = metrics, (folder / "predictions.csv").read_text()
    assert found["file"] == found["memory"]
    estimator = load_controller(folder).estimator
    tables = [ready(large, memory_mb=memory).whole(estimator.parts) for memory in (1, 100)]
    np.testing.assert_array_equal(*(predict_table(estimator, table) for table in tables))


def test_a_cross_validation_streams(large, tmp_path):
    args = options(large, tmp_path / "run", STREAM, "--trainer.max_epochs=1")
    folder = cross_validate(args, folds=2, output=tmp_path / "crossval")
    found = read_predictions(folder)
    assert len(found.question_ids) == COUNT
    assert found.p_enough.std() > 0.001
