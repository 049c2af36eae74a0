"""The tables of a segment, column by column: what ``docs/store_format.md`` specifies, for the code."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FORMAT = "dps-feature-store"
VERSION = 5
"""The one version that is written and read. Stores of versions 1 to 4 came before the first release."""


_DTYPES = {"text": "uint8", "json": "uint8", "vectors": "float32", "yes": "int8", "flag": "int8", "ending": "int8"}


class Column(NamedTuple):
    """One column of a table."""

    name: str
    kind: str
    """A NumPy type, or what needs translation: ``text`` (UTF-8 bytes with offsets), ``json`` (text of a JSON object),
    ``vectors`` (float32 rows of one size), ``yes`` (int8: 1 or 0), ``flag`` (the same, or -1 for None), ``ending``
    (int8)."""
    unit: str = ""
    optional: bool = False
    """Text only: may be absent, which a column ``<name>_present`` says."""

    @property
    def is_text(self) -> bool:
        """Whether the values are UTF-8 bytes with offsets."""
        return self.kind in ("text", "json")

    @property
    def dtype(self) -> np.dtype:
        """Type of the values in the file."""
        return np.dtype(_DTYPES.get(self.kind, self.kind))


COLUMNS: dict[str, tuple[Column, ...]] = {
    "questions": (
        Column("question_id", "text"),
        Column("question", "text"),
        Column("prompt", "text"),
        Column("gold", "text", optional=True),
        Column("metadata", "json"),
        Column("num_prompt_tokens", "int32", "token"),
        Column("embedding", "vectors"),
        Column("prefill_s", "float64", "s"),
        Column("embedding_s", "float64", "s"),
        Column("controller_s", "float64", "s"),
        Column("latency_s", "float64", "s"),
        Column("answer", "text", optional=True),
        Column("correct", "flag"),
    ),
    "decisions": (Column("k", "int32"), Column("p_enough", "float64")),
    "trajectories": (
        Column("index", "int32"),
        Column("text", "text"),
        Column("answer", "text", optional=True),
        Column("answer_class", "int32"),
        Column("correct", "flag"),
        Column("strict_answer", "text", optional=True),
        Column("strict_correct", "flag"),
        Column("ending", "ending"),
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
        Column("accepted", "yes"),
        Column("logprob", "float64", "nat"),
    ),
}
"""The tables, in order."""

RAGGED = ("tokens", "series", "blocks", "steps")
"""Tables whose rows are the entries of arrays of a trajectory, in this order in ``trajectories``."""
OFFSETS = {"questions": ("decisions", "trajectories"), "trajectories": RAGGED}
"""Tables with offsets into others: row i has the rows ``offset[i] : offset[i + 1]`` of the other."""

LONG = (
    "trajectories/text",
    *(f"{where}{table}" for table in ("tokens", "series", "steps") for where in ("", "trajectories/")),
)
"""What the names of the datasets begin with that features do not need: they grow with the number of tokens."""


def _datasets() -> dict[str, tuple[np.dtype, int]]:
    layout = {}
    for table, columns in COLUMNS.items():
        for column in columns:
            name = f"{table}/{column.name}"
            layout[name] = (column.dtype, 2 if column.kind == "vectors" else 1)
            if column.is_text:
                layout[f"{name}_offset"] = (np.dtype(np.int64), 1)
            if column.optional:
                layout[f"{name}_present"] = (np.dtype(np.int8), 1)
        layout |= {f"{table}/{inner}_offset": (np.dtype(np.int64), 1) for inner in OFFSETS.get(table, ())}
    return layout


DATASETS = _datasets()
"""Every dataset of a segment: its full name, with its type and number of dimensions."""
UNITS = {f"{table}/{column.name}": column.unit for table, columns in COLUMNS.items() for column in columns}
