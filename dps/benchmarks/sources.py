"""Where the benchmarks come from: files of the Hugging Face hub at pinned revisions, or local files with their content.

Pinned, so that the same command reads the same questions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dps.benchmarks.config import BenchmarkConfig
from dps.benchmarks.records import RecordFile, read_records
from dps.errors import InputError
from dps.hub import offline_if_silent, quiet_hub


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a data set on the hub."""

    title: str
    """The benchmark's name."""
    repository: str
    """Id of the data set."""
    revision: str
    """Commit."""
    filename: str
    """Path in the repository: Parquet, CSV, JSON or JSON lines."""
    licence: str
    """As the authors state it."""
    gated: bool = False
    """Whether one must ask for access."""
    shown: bool = True
    """Whether its authors let its questions be shown online."""

    @property
    def source(self) -> str:
        """Name that stores keep."""
        return f"{self.repository}/{self.filename}@{self.revision}"


SOURCES: dict[tuple[str, str], HubFile] = {
    ("gsm8k", "train"): HubFile(
        "GSM8K train", "openai/gsm8k", "e53f048856ff4f594e959d75785d2c2d37b678ee",
        "main/train-00000-of-00001.parquet", "MIT",
    ),
    ("gsm8k", "test"): HubFile(
        "GSM8K test", "openai/gsm8k", "e53f048856ff4f594e959d75785d2c2d37b678ee",
        "main/test-00000-of-00001.parquet", "MIT",
    ),
    ("math500", "test"): HubFile(
        "MATH500", "HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "test.jsonl", "MIT",
    ),
    ("humaneval", "test"): HubFile(
        "HumanEval", "openai/openai_humaneval", "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
        "openai_humaneval/test-00000-of-00001.parquet", "MIT",
    ),
    ("gpqa", "test"): HubFile(
        "GPQA Diamond", "Idavidrein/gpqa", "633f5ee89ab8ad4522a9f850766b73f62147ffdd", "gpqa_diamond.csv",
        "CC BY 4.0; its authors ask that the questions are not shown online", gated=True, shown=False,
    ),
    ("alpaca_eval", "test"): HubFile(
        "AlpacaEval 2.0", "tatsu-lab/alpaca_eval", "2edc6fad8be6b14ea7230aabfd08188da6b8b814", "alpaca_eval.json",
        "CC BY-NC 4.0",
    ),
}  # fmt: skip
"""By benchmark and split."""


def may_be_shown(name: str) -> bool:
    """Return whether the authors of a benchmark let its questions be shown online."""
    return all(file.shown for (benchmark, _), file in SOURCES.items() if benchmark == name)


def read_source(config: BenchmarkConfig, fields: str) -> RecordFile:
    """Read a benchmark's records from ``config.path``, or from the hub where no path is set.

    Args:
        config: Which benchmark and split; both must be in :data:`SOURCES`.
        fields: What a local file's records must have, for the error's advice.

    Raises:
        InputError: If they cannot be read.
    """
    if config.path is not None:
        return read_records(config.path)
    file = SOURCES[config.name, config.split]
    path = fetch(file, f"set benchmark.path to a file with one JSON object {{{fields}}} a line")
    return RecordFile(file.source, hashlib.sha256(path.read_bytes()).hexdigest(), list(_placed(file, path)))


def fetch(file: HubFile, advice: str) -> Path:
    """Return the local copy of a hub file, fetched if it is not in the cache.

    Args:
        file: Which.
        advice: What else a user can do.

    Raises:
        InputError: If it cannot be fetched; of a gated data set the sentence says how to get access.
    """
    if file.filename.endswith(".parquet"):
        try:
            import pyarrow  # noqa: F401  (what pandas reads Parquet with)
        except ImportError as error:
            raise InputError(
                f"Reading {file.title} from the hub needs pyarrow: pip install pyarrow, or {advice}."
            ) from error
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError

    try:
        with quiet_hub(), offline_if_silent():
            return Path(hf_hub_download(file.repository, file.filename, repo_type="dataset", revision=file.revision))
    except GatedRepoError as error:
        raise InputError(
            f"{file.title} is a gated data set: accept its terms on the page of {file.repository} on the Hugging Face "
            f"hub, then log in with `hf auth login` (or set HF_TOKEN), or {advice}."
        ) from error
    except OSError as error:
        raise InputError(
            f"{file.title} could not be fetched from the Hugging Face hub ({type(error).__name__}): connect, "
            f"or {advice}."
        ) from error


def _placed(file: HubFile, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a hub file's records with their places."""
    import pandas

    readers: dict[str, Callable[[Path], Any]] = {
        ".parquet": pandas.read_parquet,
        ".csv": lambda name: pandas.read_csv(name, keep_default_na=False),
    }
    read = readers.get(path.suffix)
    if read is None:
        yield from read_records(path).records
    else:
        yield from ((f"row {number}", row) for number, row in enumerate(read(path).to_dict("records"), 1))
