"""Records of a benchmark: one for each measurement, written to ``bench.json`` as soon as it is known."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import wrap
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
    """What they took; of a whole run, from the first admission of a question to the last commit."""
    rows: int | None = None
    workers: int | None = None
    kernels: str | None = None
    """How the model was run, see ``Engine.kernels``."""
    ms_per_step: float | None = None
    floor_share: float | None = None
    """The byte floor of the steps over their time."""
    floor: dict[str, float] = field(default_factory=dict)
    """What that floor is made of, see ``dps.bench.floor.floor_of``: what changed where it did."""
    useful_rows: float | None = None
    """Share of row-steps that generated a token."""
    useful_rows_waiting: float | None = None
    """The same while chains waited for a row."""
    useful_rows_tail: float | None = None
    """The same afterwards, when rows idle one after the other."""
    acceptance_ratio: float | None = None
    num_questions: int | None = None
    """Questions that were sampled to the end."""
    command_s: float | None = None
    """Of a whole run, start-up, the clock's calibration and the end included."""
    startup_s: dict[str, float] = field(default_factory=dict)
    """Seconds of the start by stage, of a process of its own; not in ``seconds``."""
    shares: dict[str, float] = field(default_factory=dict)
    """Of a whole run, what the workers' wall clock went into: ``decode``, ``prefill``, ``features``, ``embedding``,
    ``controller``, ``grading`` (that sampling waited for) and ``other``, idle time included; 1 in all."""
    tail_share: float | None = None
    """Share of that wall clock after the last moment when a chain waited for a row."""
    spent: dict[str, float] = field(default_factory=dict)
    """What the shares are made of, see ``dps.run.scheduler.Account.numbers``."""
    peak_memory_gib: float | None = None
    """Of the GPU; of several workers, of the one that had most."""
    machine: dict[str, Any] = field(default_factory=dict)
    """Device and software."""

    @property
    def tokens_per_s(self) -> float:
        """The speed."""
        return self.num_tokens / self.seconds

    @property
    def questions_per_min(self) -> float | None:
        """Questions a minute, where all were sampled to the end."""
        return 60 * self.num_questions / self.seconds if self.num_questions else None

    @property
    def outside_s(self) -> float | None:
        """Seconds of a whole run before the first admission and after the last commit."""
        return self.command_s - self.seconds if self.command_s is not None else None


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


_RIVALS = {"x loop": "reference", "x generate": "generate", "x vLLM": "vllm-plain", "x lockstep": "vllm-lockstep"}
"""Tokens a second over those of the fastest record whose name begins so."""
_SPEED = (
    ("questions per min", "questions_per_min", "{:,.1f}"),
    ("tokens/s", "tokens_per_s", "{:,.0f}"),
    ("sampling % of wall clock", "decode", "%"),
    *((head, head, "x") for head in _RIVALS),
    ("useful rows %", "useful_rows", "%"),
    ("step ms", "ms_per_step", "{:.2f}"),
    ("of the byte floor", "floor_share", "{:.2f}"),
    ("accepted %", "acceptance_ratio", "%"),
    ("peak GiB", "peak_memory_gib", "{:.1f}"),
    ("rows", "rows", "{}"),
)
_WHOLE = (
    ("wall clock s", "seconds", "{:,.1f}"),
    ("before, after s", "outside_s", "{:,.1f}"),
    *((f"{name} %", name, "%") for name in ("decode", "prefill", "features", "embedding", "controller")),
    ("grading waited for %", "grading", "%"),
    ("other, idle %", "other", "%"),
    ("tail %", "tail_share", "%"),
    ("useful % while chains wait", "useful_rows_waiting", "%"),
    ("useful % in the tail", "useful_rows_tail", "%"),
)
"""Head of a column, what it shows (an attribute, a share or a ratio), and how."""
_WIDTH = 100
"""Characters of a printed line."""


def print_table(records: Records) -> None:
    """Print what a person reads first, then where the wall clock of whole runs went, then the starts."""

    def ratio(record: Record, kind: str) -> float | None:
        speeds = [other.tokens_per_s for other in records if other.name.startswith(kind)]
        return record.tokens_per_s / max(speeds) if speeds else None

    def value(record: Record, what: str) -> Any:
        return ratio(record, _RIVALS[what]) if what in _RIVALS else getattr(record, what, record.shares.get(what))

    _print_columns(list(records), _SPEED, value)
    _print_columns([record for record in records if record.shares], _WHOLE, value)
    told: list[dict[str, float]] = []
    for record in records:
        if record.startup_s and record.startup_s not in told:  # once for the measurements of one process
            told.append(record.startup_s)
            stages = ", ".join(f"{stage} {s:.1f}" for stage, s in record.startup_s.items() if s >= 0.05)
            print(f"{record.name}: start {sum(record.startup_s.values()):.1f} s ({stages})")
    print(records.path)


def _print_columns(
    records: Sequence[Record], columns: Sequence[tuple[str, str, str]], value: Callable[[Record, str], Any]
) -> None:
    """Print tables of the columns and rows that have something to show, as many as 100 characters a line take."""
    from rich.box import MARKDOWN
    from rich.console import Console
    from rich.table import Column, Table

    cells = {head: [_text(value(record, what), form) for record in records] for head, what, form in columns}
    shown = {head: texts for head, texts in cells.items() if any(texts)}
    narrowest = {head: max(map(len, [*head.split(), *texts])) for head, texts in shown.items()}
    names = [record.name for record in records]
    parts: list[list[str]] = []
    room = 0
    for head, width in narrowest.items():
        room -= width + 3
        if room < 0:
            parts.append([])
            room = _WIDTH - max(map(len, names)) - 4 - width - 3
        parts[-1].append(head)
    for part in parts:
        heads = [Column("\n".join(wrap(head, narrowest[head])), justify="right") for head in part]
        table = Table(Column("", no_wrap=True), *heads, box=MARKDOWN)
        for name, *texts in zip(names, *(shown[head] for head in part), strict=True):
            if any(texts):
                table.add_row(name, *texts)
        Console(width=_WIDTH).print(table)


def _text(value: Any, form: str) -> str:
    """Return what a cell says: a share as per cent, a ratio with three digits or more."""
    if value is None:
        return ""
    if form == "x":
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{100 * value:.1f}" if form == "%" else form.format(value)


def machine_of(device: str | None) -> dict[str, Any]:
    """Return device and software."""
    import torch
    import transformers

    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": sys.version.split()[0],
    }
