"""Measure how a store's arrays compress and how fast they are read back: the table in docs/store_format.md.

python scripts/measure_compression.py runs/quickstart/harvest
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from feature_store import Store
from feature_store.hdf5 import open_hdf5
from feature_store.segment import to_arrays

FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "lzf + shuffle": {"compression": "lzf", "shuffle": True},
    "gzip 1 + shuffle": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
    "gzip 4 + shuffle": {"compression": "gzip", "compression_opts": 4, "shuffle": True},
    "gzip 9 + shuffle": {"compression": "gzip", "compression_opts": 9, "shuffle": True},
}


def main(folder: str) -> None:
    """Print one line per filter: size, write and read time, medians of five."""
    arrays = to_arrays(list(Store.open(folder)))
    raw = sum(array.nbytes for array in arrays.values())
    print(f"{len(Store.open(folder))} questions, {raw / 1e6:.1f} MB of arrays")
    print("| filter | size | write | read |\n|---|---:|---:|---:|")
    for name, options in FILTERS.items():
        writes, reads = [], []
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "segment.h5"
            for _ in range(5):
                started = time.perf_counter()
                with open_hdf5(path, "w") as file:
                    for key, array in arrays.items():
                        file.create_dataset(key, data=array, **(options if array.nbytes > 4096 else {}))
                writes.append(time.perf_counter() - started)
                started = time.perf_counter()
                with open_hdf5(path) as file:
                    for key in arrays:
                        file[key][...]
                reads.append(time.perf_counter() - started)
            size = path.stat().st_size
        rate = [raw / 1e6 / sorted(times)[2] for times in (writes, reads)]
        print(f"| {name} | {size / raw:.2f} | {rate[0]:.0f} MB/s | {rate[1]:.0f} MB/s |")


if __name__ == "__main__":
    main(sys.argv[1])
