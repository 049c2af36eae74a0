"""Flip bytes of a finished store, one at a time, and see that each is found or harmless.

    python scripts/damage_store.py runs/quickstart/harvest --flips 200 --output docs/results/crash/flips.json

Works on a copy. Offsets are drawn at random over all bytes of the segments, every tenth over those of the manifest;
every other flip is of a single bit. After each, the store is opened, read and verified. A flip is *found* where one of
these says so in a sentence that names the file, *harmless* where everything reads as before. Anything else is *served
silently*, and the script fails.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from feature_store import Store, StoreError
from feature_store.segment import checksum, to_arrays
from feature_store.tools import verify


def content(folder: Path) -> tuple[str, str]:
    """Return what the store says: a digest of all questions, and its manifest."""
    store = Store.open(folder)
    return checksum(to_arrays(list(store))), repr(store.manifest)


def attempt(folder: Path, path: Path, truth: tuple[str, str]) -> tuple[str, str]:
    """Return what came of one damaged file: found, harmless or served silently; and the message."""
    messages = []
    try:
        served = content(folder)
    except StoreError as error:
        served = None
        messages.append(str(error))
    try:
        messages += verify(folder)
    except StoreError as error:
        messages.append(str(error))
    if served is not None and served != truth:
        return "served silently", ""
    if not messages:
        return "harmless", ""
    if path.name not in messages[0]:
        return "found, but not named", messages[0]
    if served is not None:
        return "found by verify only, and harmless to readers", messages[0]
    return "found", messages[0]


def main() -> None:
    """Flip, look, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "store"
        shutil.copytree(options.store, folder)
        truth = content(folder)
        files = sorted([folder / "manifest.json", *folder.glob("segment-*.h5")])
        sizes = np.array([path.stat().st_size for path in files])
        counts: Counter[str] = Counter()
        by_file: Counter[str] = Counter()
        messages: Counter[str] = Counter()
        for flip in range(options.flips):
            # The manifest is small: every tenth flip is of it, or it would hardly be hit.
            offset = rng.randrange(int(sizes.sum()))
            number = int(np.searchsorted(np.cumsum(sizes), offset, side="right"))
            path = folder / "manifest.json" if flip % 10 == 0 else files[number]
            good = path.read_bytes()
            damaged = bytearray(good)
            damaged[rng.randrange(len(good))] ^= 1 << rng.randrange(8) if flip % 2 else rng.randrange(1, 256)
            path.write_bytes(damaged)
            result, message = attempt(folder, path, truth)
            path.write_bytes(good)
            counts[result] += 1
            by_file["manifest" if path.name == "manifest.json" else "segment"] += 1
            if message:
                short = message.replace(f"{folder}/", "").replace(str(folder), "the store")
                messages[re.sub(r"segment-\w+-\d+", "segment-w0-000000", short)] += 1
    found = {"flips": options.flips, "seed": options.seed, "files": dict(by_file), "results": dict(counts),
             "messages": dict(messages.most_common())}  # fmt: skip
    print(json.dumps(found, indent=1))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(1 if counts["served silently"] or counts["found, but not named"] else 0)


if __name__ == "__main__":
    main()
