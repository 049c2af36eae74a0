"""Pooled hidden states of a whole store, one vector per trajectory: in memory where they fit, else in a file.

``data`` makes them from ``feature_store``, ``table`` averages them over the first k trajectories of an order,
``batches`` reads them ahead of the trainer. The store of a 7B model holds 16 times as many bytes as its vectors, so
they are made once and kept beside it. A controller that learns how to pool, by attention, needs the block averages
themselves: they go the same way, as arrays with one axis more.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dps.decide.features import blocks_of, pool_hidden, stack_blocks
from dps.errors import InputError
from feature_store import Store
from feature_store.files import TEMPORARY, make_folder, remove_leftovers, sync_folder
from feature_store.records import Snapshot, Trajectory

CACHE = "cache"
"""Folder in a store where the files lie unless another is chosen."""

MEGABYTE = 10**6
"""Bytes."""

_FORMAT_VERSION = 1
"""Of the files' content; a change of how blocks are pooled raises it."""

_ROUNDS = 2**18
"""Components that are averaged at a time: their float64 sums stay in the processor's cache."""


class Blocks(NamedTuple):
    """Block averages of the trajectories that N rows need, each trajectory once: arrays, or tensors for a network.

    Pooling is per trajectory, and the mean over trajectories comes after it, so a trajectory is pooled once for all
    rows that it is in.
    """

    values: Any
    """Of U trajectories: shape (U, B, D + 1), float32; see :func:`dps.decide.features.blocks_of`."""
    members: Any
    """The first k trajectories of each row, as indices into the U, then -1: shape (N, K), int64."""


class VectorFile:
    """Vectors of shape (Q, K, ...), float32, in a file of NumPy's format, read by question and never as a whole.

    Reads are explicit (``pread``): what is held is what was asked for, and a failing disk is an error, where a memory
    map would end the process. Each question's vectors have a CRC-32 before them, which is checked.
    """

    def __init__(self, path: Path) -> None:
        """Open the file.

        Args:
            path: A file that :func:`pooled_vectors` wrote.

        Raises:
            OSError, ValueError: If there is none, or it is not such a file.
        """
        self.path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 open as long as the object lives
        version = np.lib.format.read_magic(self._file)
        if version != (1, 0):
            raise ValueError(f"{path} has version {version} of NumPy's format")
        (count,), _, self._record = np.lib.format.read_array_header_1_0(self._file)
        self.shape: tuple[int, ...] = (count, *self._record["vectors"].shape)
        self._start = self._file.tell()
        whole = self._start + count * self._record.itemsize
        if self._record != _record(self.shape[1:]) or path.stat().st_size != whole:
            raise ValueError(f"{path} does not hold whole vectors")

    def __getitem__(self, questions: np.ndarray) -> np.ndarray:
        """Return the vectors of these questions, shape (N, K, ...); runs of successive numbers are one read each."""
        found = np.empty(len(questions), self._record)
        breaks = np.flatnonzero(np.diff(questions) != 1) + 1
        for run in np.split(np.arange(len(questions)), breaks):
            if len(run):
                offset = self._start + int(questions[run[0]]) * self._record.itemsize
                self._read(found[run[0] : run[-1] + 1], offset)
        for record in found:
            if zlib.crc32(record["vectors"]) != record["crc32"]:
                raise InputError(f"{self.path} is damaged: delete it and run again.")
        return found["vectors"]

    def _read(self, into: np.ndarray, offset: int) -> None:
        view = memoryview(into.view(np.uint8))
        while len(view):
            count = os.preadv(self._file.fileno(), [view], offset)
            if count == 0:
                raise InputError(f"{self.path} ends too early: delete it and run again.")
            view, offset = view[count:], offset + count


def _record(shape: tuple[int, ...]) -> np.dtype:
    """Return the type of one question in the file, whose vectors have this shape."""
    return np.dtype([("crc32", "<u4"), ("vectors", "<f4", shape)])


Vectors = np.ndarray | VectorFile
"""Pooled hidden states of Q questions' K trajectories: shape (Q, K, D), float32; indexed by arrays of questions. For
attention their blocks: shape (Q, K, B, D + 1)."""


def hidden_rows(
    vectors: np.ndarray, questions: np.ndarray, orders: np.ndarray, ks: np.ndarray, spread: bool
) -> np.ndarray | Blocks:
    """Return what a network sees of the hidden states of N rows: their means, or the blocks that it pools itself.

    Args:
        vectors: Shape (M, K, D) or, for attention, (M, K, B, D + 1), float32.
        questions: Which of the M each row is of: shape (N,), int.
        orders: Trajectories in each row's order: shape (N, K), int.
        ks: Each row's k: shape (N,), int.
        spread: Whether means are followed by standard deviations; a network takes those of blocks itself.
    """
    if vectors.ndim == 3:
        return mean_vectors(vectors, questions, orders, ks, spread)
    wanted = np.arange(orders.shape[1]) < ks[:, None]
    used, where = np.unique((questions[:, None] * vectors.shape[1] + orders)[wanted], return_inverse=True)
    members = np.full(orders.shape, -1, np.int64)
    members[wanted] = where
    return Blocks(vectors[used // vectors.shape[1], used % vectors.shape[1]], members)


def join_rows(parts: Sequence[np.ndarray | Blocks]) -> np.ndarray | Blocks:
    """Return successive rows as one: what :func:`hidden_rows` gives, all of the same kind."""
    if len(parts) == 1:
        return parts[0]
    if not isinstance(parts[0], Blocks):
        return np.concatenate(parts)
    starts = np.cumsum([0, *(len(part.values) for part in parts[:-1])])
    members = [np.where(part.members < 0, -1, part.members + at) for part, at in zip(parts, starts, strict=True)]
    return Blocks(np.concatenate([part.values for part in parts]), np.concatenate(members))


def mean_blocks(blocks: np.ndarray) -> np.ndarray:
    """Return the mean over tokens of each trajectory's blocks, as :func:`dps.decide.features.pool_hidden` gives it.

    Args:
        blocks: Shape (..., B, D + 1), float32.

    Returns:
        Shape (..., D), float32; the same up to rounding.
    """
    weights = blocks[..., -1:] / blocks[..., -1:].sum(axis=-2, keepdims=True, dtype=np.float64)
    return (weights * blocks[..., :-1]).sum(axis=-2).astype(np.float32)


def mean_vectors(
    vectors: np.ndarray, questions: np.ndarray, orders: np.ndarray, ks: np.ndarray, spread: bool = False
) -> np.ndarray:
    """Average the vectors of the first k trajectories of an order, each row on its own.

    Args:
        vectors: Shape (M, K, D), float32.
        questions: Which of the M each row is of: shape (N,), int.
        orders: Trajectories in each row's order: shape (N, K), int.
        ks: Each row's k: shape (N,), int.
        spread: Whether the means are followed by the standard deviations over the k trajectories.

    Returns:
        Shape (N, D), or (N, 2 D) with the spread, float32.

    Note:
        Sums are in float64 in the row's order, as ``np.mean`` takes them over whole arrays. So a row equals that of
        :func:`dps.decide.features.checkpoint_features`, bit for bit.
    """
    size = vectors.shape[2]
    found = np.empty((len(questions), size * (1 + spread)), np.float32)
    by_k = np.argsort(ks, kind="stable")
    step = max(1, _ROUNDS // max(1, size))
    for same in np.split(by_k, np.flatnonzero(np.diff(ks[by_k])) + 1):
        for start in range(0, len(same), step):
            rows = same[start : start + step]
            k = int(ks[rows[0]])
            total = vectors[questions[rows], orders[rows, 0]].astype(np.float64)
            for position in range(1, k):
                total += vectors[questions[rows], orders[rows, position]]
            total /= k
            found[rows, :size] = total
            if spread:
                squares = sum((vectors[questions[rows], orders[rows, position]] - total) ** 2 for position in range(k))
                found[rows, size:] = np.sqrt(squares / k)
    return found


def pooled_vectors(
    store: Store,
    *,
    pooling: str,
    num_trajectories: int,
    hidden_size: int,
    memory_mb: int,
    cache_dir: str | None,
    num_blocks: int = 1,
    block: int | None = None,
) -> Vectors:
    """Pool the hidden states of the first trajectories of every question of a store, in order of id.

    Args:
        store: A harvest.
        pooling: One of :data:`dps.decide.features.POOLINGS`; for attention nothing is pooled yet.
        num_trajectories: K.
        hidden_size: D.
        memory_mb: Megabytes (10^6 bytes) up to which they are held in memory.
        cache_dir: Folder of the file where they take more; None for the folder ``cache`` in the store, or a temporary
            file where that cannot be written.
        num_blocks: B, the most blocks of a trajectory; for attention.
        block: The block at whose end the trajectories are taken; None takes what they ended as.

    Raises:
        InputError: If the file cannot be written, or a question has fewer trajectories or another D.
    """
    own = (num_blocks, hidden_size + 1) if pooling == "attention" else (hidden_size,)
    shape = (len(store), num_trajectories, *own)
    if 4 * int(np.prod(shape)) <= memory_mb * MEGABYTE:
        vectors = np.empty(shape, np.float32)
        for row, pooled in _pooled(store, pooling, shape, block):
            vectors[row] = pooled
        return vectors
    kind = pooling if block is None else f"{pooling}-b{block}"
    name = f"pooled-{kind}-k{num_trajectories}-v{_FORMAT_VERSION}-{store.checksum()[:24]}.npy"
    folder = Path(cache_dir) if cache_dir is not None else store.folder / CACHE
    if (found := _opened(folder / name, shape)) is not None:
        return found
    try:
        make_folder(folder)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        if cache_dir is not None:
            raise _cannot_write(folder, shape, error.strerror) from error
        return _temporary(store, pooling, shape, block)
    with _one_at_a_time(folder):
        if (found := _opened(folder / name, shape)) is not None:  # another process was faster
            return found
        remove_leftovers(folder, "pooled-*.npy")
        _write(folder / name, store, pooling, shape, block)
        if cache_dir is None:  # all that lies there is this store's, and it has changed
            for stale in folder.glob(f"pooled-{kind}-k*.npy"):
                if stale.name != name:
                    stale.unlink(missing_ok=True)
    return VectorFile(folder / name)


def _temporary(store: Store, pooling: str, shape: tuple[int, ...], block: int | None) -> VectorFile:
    """Return a file that has no name any more: its bytes go when nobody reads it, however the process ends."""
    with tempfile.TemporaryDirectory(prefix="dps-") as folder:
        print(f"{store.folder} cannot be written: set data.cache_dir to a folder that keeps what is made now.")
        path = Path(folder) / "pooled.npy"
        _write(path, store, pooling, shape, block)
        return VectorFile(path)


def vectors_of(
    trajectories: Sequence[Trajectory | Snapshot], pooling: str, num_blocks: int | None = None
) -> np.ndarray:
    """Return the vectors of some trajectories: shape (K, D) or, for attention, (K, B, D + 1), float32.

    Args:
        trajectories: K of one question.
        pooling: One of :data:`dps.decide.features.POOLINGS`.
        num_blocks: B; the most that one of these has if None.
    """
    if pooling == "attention":
        return stack_blocks([blocks_of(t) for t in trajectories], num_blocks)
    return np.stack([pool_hidden(t, pooling) for t in trajectories])


def _pooled(store: Store, pooling: str, shape: tuple[int, ...], block: int | None) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the place of each question among the ids, and its vectors; in the order of the segments."""
    place = {question_id: row for row, question_id in enumerate(store.question_ids)}
    for question in store.scan():
        pooled = vectors_of([t.at(block) for t in question.trajectories[: shape[1]]], pooling, shape[2])
        if pooled.shape != shape[1:]:
            extra = pooling == "attention"  # the column with the numbers of tokens
            raise InputError(
                f"Expected hidden states of size {shape[-1] - extra} of {shape[1]} trajectories of every question, but "
                f"question {question.question_id} has {pooled.shape[0]} of size {pooled.shape[-1] - extra}: harvest it "
                "again."
            )
        yield place[question.question_id], pooled


def _write(path: Path, store: Store, pooling: str, shape: tuple[int, ...], block: int | None) -> None:
    """Write the vectors under a temporary name, bring them to the disk, then give them their own name."""
    record = np.empty(1, _record(shape[1:]))
    gigabytes = shape[0] * record.nbytes / 1e9
    print(f"pooling the hidden states of {shape[0]} questions into {path} ({gigabytes:.2f} GB)", flush=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    temporary.unlink(missing_ok=True)  # of a predecessor with our process id
    try:
        with open(temporary, "xb") as file:
            descr = np.lib.format.dtype_to_descr(record.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": shape[:1]}
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            start = file.tell()
            for row, pooled in _pooled(store, pooling, shape, block):
                record["vectors"] = pooled
                record["crc32"] = zlib.crc32(record["vectors"])
                _write_at(file.fileno(), record, start + row * record.nbytes)
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path.parent, shape, error.strerror) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_at(descriptor: int, values: np.ndarray, offset: int) -> None:
    view = memoryview(values.view(np.uint8))
    while len(view):
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _opened(path: Path, shape: tuple[int, ...]) -> VectorFile | None:
    """Return the file of an earlier run; None if there is none of that shape."""
    try:
        found = VectorFile(path)
    except (OSError, ValueError):
        return None
    return found if found.shape == shape else None


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait for other processes that write into the folder; the kernel drops the lock of a killed one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: both write the same, and the last name given counts
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _cannot_write(folder: Path, shape: tuple[int, ...], why: str | None) -> InputError:
    megabytes = 4 * int(np.prod(shape)) / 1e6
    return InputError(
        f"Cannot write {megabytes:,.0f} MB of pooled hidden states to {folder} ({why}): choose another folder with "
        f"data.cache_dir, or hold them in memory with data.memory_mb={int(megabytes) + 1}."
    )
