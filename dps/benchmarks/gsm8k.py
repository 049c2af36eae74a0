"""GSM8K: grade-school word problems with a number as answer, from a local file or the Hugging Face hub.

Source:
    Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from dps.benchmarks.answers import canonical_number, extract_number
from dps.benchmarks.benchmark import Benchmark, Item, select_items
from dps.benchmarks.config import BenchmarkConfig, check_config
from dps.benchmarks.prompts import NUMBER_CHAT, NUMBER_PLAIN
from dps.benchmarks.records import RecordFile, read_records
from dps.errors import InputError
from dps.hub import quiet_hub

HUB_REPOSITORY = "openai/gsm8k"
HUB_REVISION = "e53f048856ff4f594e959d75785d2c2d37b678ee"
"""Pinned, so that the same command reads the same questions."""

SPLITS = ("train", "test")


def load_gsm8k(config: BenchmarkConfig) -> Benchmark:
    """Load GSM8K from ``config.path``, or from the hub where no path is set.

    Raises:
        InputError: If it cannot be read, or a record is not GSM8K's.
    """
    check_config(config, SPLITS)
    file = read_records(config.path) if config.path is not None else _read_hub(config.split)
    items = [
        _item(file, place, record, f"gsm8k-{config.split}-{i:05d}") for i, (place, record) in enumerate(file.records)
    ]
    return Benchmark(
        config=config,
        items=select_items(items, config),
        source=file.name,
        sha256=file.sha256,
        chat_template=config.template or NUMBER_CHAT,
        plain_template=config.template or NUMBER_PLAIN,
        extractor=extract_number,
    )


def _item(file: RecordFile, place: str, record: dict[str, object], question_id: str) -> Item:
    question, answer = file.question(place, record), file.required(place, record, "answer")
    solution, mark, gold_text = str(answer).rpartition("####")
    gold = canonical_number(gold_text) if mark else None
    if gold is None:
        raise file.error(
            place, "has no number after #### in its answer: for questions of your own set benchmark.name to jsonl."
        )
    num_steps = sum(bool(line.strip()) for line in solution.splitlines())
    return Item(question_id, question, gold, {"num_steps": num_steps})


def _read_hub(split: str) -> RecordFile:
    """Read one split from the hub, or from its local cache where it has been read before."""
    name = f"main/{split}-00000-of-00001.parquet"
    advice = "set benchmark.path to a file with one JSON object {question, answer} a line"
    try:
        import pyarrow  # noqa: F401  (what pandas reads Parquet with)
    except ImportError as error:
        raise InputError(f"Reading GSM8K from the hub needs pyarrow: pip install pyarrow, or {advice}.") from error
    import pandas
    from huggingface_hub import hf_hub_download

    try:
        with quiet_hub():
            path = hf_hub_download(HUB_REPOSITORY, name, repo_type="dataset", revision=HUB_REVISION)
    except OSError as error:
        raise InputError(
            f"GSM8K could not be fetched from the Hugging Face hub ({type(error).__name__}): connect, or {advice}."
        ) from error
    rows = pandas.read_parquet(path).to_dict("records")
    records = [(f"row {number}", row) for number, row in enumerate(rows, 1)]
    return RecordFile(
        f"{HUB_REPOSITORY}/{name}@{HUB_REVISION}", hashlib.sha256(Path(path).read_bytes()).hexdigest(), records
    )
