"""Pooled hidden states of a whole store, one vector per trajectory, as one memory-mapped file of NumPy's format.

The store of a 7B model holds 16 times as many bytes as its vectors, so they are made once and kept beside it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from dps.decide.features import pool_hidden
from dps.decide.ladder import Key
from dps.decide.samples import trajectories_of
from dps.errors import InputError
from feature_store import Store
from feature_store.files import TEMPORARY, make_folder, remove_leftovers

CACHE = "cache"
"""Folder in a store where the file lies unless another is chosen."""


def pooled_vectors(store: Store, *, keys: Sequence[Key], hidden_size: int, cache_dir: str | None) -> np.ndarray:
    """Return the mean hidden states of some trajectories of every question, in order of id, as a memory map.

    Args:
        store: A harvest.
        keys: Arm and index of each of K trajectories.
        hidden_size: D.
        cache_dir: Folder of the file; None for the folder ``cache`` in the store, or a temporary file where that cannot
            be written.

    Returns:
        Shape (Q, K, D), float32, read-only.

    Raises:
        InputError: If the file cannot be written, or a question has fewer trajectories or another D.
    """
    shape = (len(store), len(keys), hidden_size)
    # What the store holds names the file: a store that has grown gets another one.
    which = hashlib.sha256(repr(tuple(keys)).encode()).hexdigest()[:8]
    name = f"pooled-{which}-{store.checksum()[:24]}.npy"
    folder = Path(cache_dir) if cache_dir is not None else store.folder / CACHE
    if (vectors := _opened(folder / name, shape)) is not None:
        return vectors
    try:
        make_folder(folder)
        if not os.access(folder, os.W_OK):
            raise PermissionError
    except OSError as error:
        if cache_dir is not None:
            raise _cannot_write(folder, shape, error) from error
        with tempfile.TemporaryDirectory(prefix="dps-") as temporary:  # the map outlives the file's name
            print(f"{store.folder} cannot be written: set data.cache_dir to a folder that keeps what is made now.")
            return _written(Path(temporary) / name, store, keys, shape)
    remove_leftovers(folder, "pooled-*.npy")
    vectors = _written(folder / name, store, keys, shape)
    if cache_dir is None:  # all that lies there is this store's, and it has changed
        for stale in set(folder.glob(f"pooled-{which}-*.npy")) - {folder / name}:
            stale.unlink(missing_ok=True)
    return vectors


def _opened(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the map of an earlier run's file; None where there is none that is whole."""
    try:
        vectors = open_memmap(path, mode="r")
    except (OSError, ValueError):
        return None
    return vectors if vectors.shape == shape and vectors.dtype == np.float32 else None


def _written(path: Path, store: Store, keys: Sequence[Key], shape: tuple[int, ...]) -> np.ndarray:
    """Write the file under a temporary name, then give it its own; two processes write the same and disturb nobody."""
    place = {question_id: row for row, question_id in enumerate(store.question_ids)}
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    gigabytes = 4 * int(np.prod(shape)) / 1e9
    print(f"pooling the hidden states of {shape[0]} questions into {path} ({gigabytes:.2f} GB)", flush=True)
    try:
        vectors = open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        with open(temporary, "r+b") as file:  # a full disk is an error here; met through the map it ends the process
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        for question in store.scan():
            pooled = np.stack([pool_hidden(t) for t in trajectories_of(question, keys, str(store.folder))])
            if pooled.shape != shape[1:]:
                raise InputError(
                    f"Expected hidden states of size {shape[2]} of {shape[1]} trajectories of every question, but "
                    f"question {question.question_id} has {pooled.shape[0]} of size {pooled.shape[1]}: harvest it "
                    "again."
                )
            vectors[place[question.question_id]] = pooled
        vectors.flush()
        os.replace(temporary, path)
        return open_memmap(path, mode="r")
    except OSError as error:
        raise _cannot_write(path.parent, shape, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_write(folder: Path, shape: tuple[int, ...], error: OSError) -> InputError:
    return InputError(
        f"Cannot write {4 * int(np.prod(shape)) / 1e6:,.0f} MB of pooled hidden states to {folder} "
        f"({error.strerror or 'no permission'}): choose another folder with data.cache_dir."
    )
