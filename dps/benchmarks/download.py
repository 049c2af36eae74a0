"""``dps data``: what the benchmarks are, under which licences, and fetching them all at once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from dps.benchmarks.records import HubFile, fetch
from dps.benchmarks.sources import SOURCES
from dps.errors import InputError
from feature_store.errors import StoreError
from feature_store.files import new_file


def listing() -> str:
    """Return a table of the benchmarks: name, split, data set, revision, licence."""
    rows = [("benchmark", "split", "data set", "revision", "licence")]
    rows += [
        (name, split, file.repository, file.revision[:7], file.licence + (" (gated)" if file.gated else ""))
        for (name, split), file in SOURCES.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join([*(f"{v:<{w}}" for v, w in zip(row, widths, strict=False)), row[4]]) for row in rows)


def chosen(names: Sequence[str]) -> list[HubFile]:
    """Return the files of these benchmarks, of all if none is named; InputError if a name is not a benchmark's."""
    known = list(dict.fromkeys(name for name, _ in SOURCES))
    for name in names:
        if name not in known:
            raise InputError(f"Expected names among {', '.join(known)}, got {name!r}.")
    return [file for (name, _), file in SOURCES.items() if not names or name in names]


def download(names: Sequence[str], folder: Path | None) -> list[str]:
    """Fetch benchmarks into the hub's local cache, and copy them into a folder where one is given.

    Returned is one sentence for each file that could not be fetched; the others have been. InputError if a name is not
    a benchmark's.
    """
    files, problems = chosen(names), []
    for number, file in enumerate(files, 1):
        print(f"[{number} of {len(files)}] {file.title}: {file.repository}, licence {file.licence}", flush=True)
        try:
            path = fetch(file, "see docs/benchmarks.md for the fields of a local file")
            if folder is not None:
                name = file.title.lower().replace(" ", "_").replace(".", "")
                target = folder / f"{name}{Path(file.filename).suffix}"
                with new_file(target) as copy:  # what stands there may be the user's own
                    shutil.copyfile(path, copy)
                path = target
        except (InputError, StoreError) as error:
            problems.append(str(error))
        else:
            print(f"  {path}", flush=True)
    return problems
