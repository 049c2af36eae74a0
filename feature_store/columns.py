"""The tables of a segment, column by column: what ``docs/store_format.md`` specifies, for the code."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FORMAT = "dps-feature-store"
VERSION = 4
"""The newest that is written. Version 1 had no table ``steps``; version 2 had no table ``series``, no strict answers,
and only a column ``ended_with_eos`` for ``ending``; version 3 had no snapshots and no decisions while trajectories
run."""
VERSIONS = (1, 2, 3, 4)
"""What is read."""
VERSIONS_IN_WORDS = "1, 2, 3 and 4"
"""The same for messages."""


class Column(NamedTuple):
    """One column of a table."""

    name: str
    dtype: str
    """NumPy type; ``text`` for UTF-8 bytes with offsets, ``vectors`` for float32 rows of one size."""
    unit: str = ""
    optional: bool = False
    """Text only: may be absent, which a column ``<name>_present`` says."""


COLUMNS: dict[str, tuple[Column, ...]] = {
    "questions": (
        Column("question_id", "text"),
        Column("question", "text"),
        Column("prompt", "text"),
        Column("gold", "text", optional=True),
        Column("metadata", "text"),
        Column("num_prompt_tokens", "int32", "token"),
        Column("embedding", "vectors"),
        Column("prefill_s", "float64", "s"),
        Column("embedding_s", "float64", "s"),
        Column("controller_s", "float64", "s"),
        Column("latency_s", "float64", "s"),
        Column("answer", "text", optional=True),
        Column("correct", "int8"),
    ),
    "decisions": (
        Column("k", "int32"),
        Column("p_enough", "float64"),
        Column("block", "int32"),
        Column("about", "int8"),
    ),
    "trajectories": (
        Column("index", "int32"),
        Column("text", "text"),
        Column("answer", "text", optional=True),
        Column("answer_class", "int32"),
        Column("correct", "int8"),
        Column("strict_answer", "text", optional=True),
        Column("strict_correct", "int8"),
        Column("ending", "int8"),
        Column("base_logprob", "float64", "nat"),
        Column("proposal_logprob", "float64", "nat"),
        Column("num_generated_tokens", "int64", "token"),
        Column("mh_proposed", "int64"),
        Column("mh_accepted", "int64"),
        Column("compute_s", "float64", "s"),
        Column("started_s", "float64", "s"),
        Column("finished_s", "float64", "s"),
    ),
    "tokens": (Column("tokens", "int32"),),
    "series": (
        Column("token_logprob", "float32", "nat"),
        Column("token_entropy", "float32", "nat"),
        Column("token_top1", "float32"),
    ),
    "blocks": (
        Column("block_num_tokens", "int32", "token"),
        Column("block_logprob", "float64", "nat"),
        Column("block_entropy", "float64", "nat"),
        Column("block_top1", "float64"),
        Column("hidden", "vectors"),
    ),
    "steps": (
        Column("horizon", "int32", "token"),
        Column("length", "int32", "token"),
        Column("cut_position", "int32", "token"),
        Column("accepted", "int8"),
        Column("logprob", "float64", "nat"),
    ),
    "snapshots": (
        Column("block", "int32"),
        Column("num_generated_tokens", "int64", "token"),
        Column("mh_proposed", "int64"),
        Column("mh_accepted", "int64"),
    ),
}
COLUMNS["snapshot_blocks"] = COLUMNS["blocks"]
"""The tables, in order. ``questions`` has offsets into ``decisions`` and ``trajectories``; ``trajectories`` has offsets
into ``tokens``, ``series``, ``blocks``, ``steps`` and ``snapshots``, these into ``snapshot_blocks``."""

OFFSETS = {
    "questions": ("decisions", "trajectories"),
    "trajectories": ("tokens", "series", "blocks", "steps", "snapshots"),
    "snapshots": ("snapshot_blocks",),
}

LONG = (
    "trajectories/text",
    *(f"{where}{table}" for table in ("tokens", "series", "steps") for where in ("", "trajectories/")),
)
"""What the names of the datasets begin with that features do not need: they grow with the number of tokens."""


IN_RUN = {"block": np.int32, "about": np.int8}
"""Columns of ``decisions`` that are 0 where all trajectories had ended."""


def dtype_of(column: Column) -> np.dtype:
    """Return the type of a column's values."""
    return np.dtype({"text": "uint8", "vectors": "float32"}.get(column.dtype, column.dtype))


def _datasets() -> dict[str, tuple[np.dtype, int]]:
    found = {}
    for table, columns in COLUMNS.items():
        for column in columns:
            name = f"{table}/{column.name}"
            if column.dtype == "text":
                found[name] = (np.dtype(np.uint8), 1)
                found[f"{name}_offset"] = (np.dtype(np.int64), 1)
            elif column.dtype == "vectors":
                found[name] = (np.dtype(np.float32), 2)
            else:
                found[name] = (np.dtype(column.dtype), 1)
            if column.optional:
                found[f"{name}_present"] = (np.dtype(np.int8), 1)
        found |= {f"{table}/{inner}_offset": (np.dtype(np.int64), 1) for inner in OFFSETS.get(table, ())}
    return found


DATASETS = _datasets()
"""Every dataset of a segment: its full name, with its type and number of dimensions."""


def _layouts() -> dict[int, dict[str, tuple[np.dtype, int]]]:
    """Return the datasets of every version that is read."""
    added = {  # what the names of each version's new datasets begin with
        2: ("steps/", "trajectories/steps_offset"),
        3: ("series/", "trajectories/series_offset", "trajectories/strict_", "trajectories/ending"),
        4: ("snapshot", "trajectories/snapshots_offset", "decisions/block", "decisions/about"),
    }
    found = {VERSION: DATASETS}
    for version in (3, 2, 1):
        newer = added[version + 1]
        found[version] = {name: kind for name, kind in found[version + 1].items() if not name.startswith(newer)}
        if version == 2:
            found[version]["trajectories/ended_with_eos"] = (np.dtype(np.int8), 1)
    return found


LAYOUTS = _layouts()
"""The same of every version that is read."""

UNITS = {f"{table}/{column.name}": column.unit for table, columns in COLUMNS.items() for column in columns}
