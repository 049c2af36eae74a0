"""Records of a benchmark: one for each measurement, written to ``bench.json`` as soon as it is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dps.errors import InputError
from feature_store.files import replace_file


@dataclass(frozen=True)
class Record:
    """One measurement; None is what it does not have."""

    name: str
    """The case and its settings."""
    num_tokens: int
    """Sampled tokens, rejected ones included."""
    seconds: float
    """What they took; of a harvest, from the first admission of a question to the last commit."""
    rows: int | None = None
    workers: int | None = None
    kernels: str | None = None
    """How the model was run, see ``Engine.kernels``."""
    ms_per_step: float | None = None
    floor_share: float | None = None
    """The byte floor of the steps (``floor``) over their time."""
    useful_rows: float | None = None
    """Share of row-steps that generated a token."""
    acceptance_ratio: float | None = None
    num_questions: int | None = None
    command_s: float | None = None
    """Of a harvest, start-up and the clock's calibration included."""
    peak_memory_gib: float | None = None
    """Of the GPU."""
    machine: dict[str, Any] = field(default_factory=dict)
    """Device and software."""

    @property
    def tokens_per_s(self) -> float:
        """The speed."""
        return self.num_tokens / self.seconds


class Records:
    """The measurements in a folder: ``bench.json``, with the configuration."""

    def __init__(self, folder: Path, config: dict[str, Any], *, overwrite: bool = False) -> None:
        """Open the folder, which is made if it is missing; ``overwrite`` forgets what is there.

        Raises:
            InputError: If the folder holds records of another resolved configuration.
        """
        self.path = folder / "bench.json"
        self._config = json.loads(json.dumps(config))
        self._records: dict[str, Record] = {}
        if self.path.is_file() and not overwrite:
            held = json.loads(self.path.read_text())
            if held["config"] != self._config:
                raise InputError(
                    f"Expected {self.path} to be of the same configuration, but it is of another one: choose another "
                    "--output, or --overwrite true to measure anew."
                )
            self._records = {record["name"]: Record(**record) for record in held["records"]}

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def add(self, record: Record) -> None:
        """Add a measurement and write all."""
        self._records[record.name] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"config": self._config, "records": [asdict(record) for record in self]}, indent=1)
        replace_file(self.path, text + "\n")


def print_table(records: Records) -> None:
    """Print the records as a table, with their speed over that of the reference and of the best plain batch."""
    from rich.console import Console
    from rich.table import Table

    columns = (
        ("rows", "{}"), ("workers", "{}"), ("tokens_per_s", "{:,.0f}"), ("ms_per_step", "{:.2f}"),
        ("floor_share", "{:.2f}"), ("useful_rows", "{:.1%}"), ("acceptance_ratio", "{:.1%}"),
        ("peak_memory_gib", "{:.1f}"),
    )  # fmt: skip
    rivals = {kind: [r.tokens_per_s for r in records if r.name.startswith(kind)] for kind in ("reference", "generate")}
    table = Table("", *(name for name, _ in columns), *(f"x {kind}" for kind in rivals))
    for record in records:
        cells = [(getattr(record, name), form) for name, form in columns]
        cells += [(record.tokens_per_s / max(speeds) if speeds else None, "{:,.1f}") for speeds in rivals.values()]
        table.add_row(record.name, *("" if value is None else form.format(value) for value, form in cells))
    Console(width=160).print(table)
    print(records.path)
