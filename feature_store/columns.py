"""The tables of a segment, column by column: what ``docs/store_format.md`` specifies, for the code."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FORMAT = "dps-feature-store"
VERSION = 7
"""The one version that is written and read. Stores of versions 1 to 6 came before the first release."""

_TEXTS = ("text", "text or none", "json")
_BYTES = {**dict.fromkeys(_TEXTS, "uint8"), "vectors": "float32", **dict.fromkeys(("yes", "flag", "ending"), "int8")}


class Column(NamedTuple):
    """One column of a table."""

    name: str
    kind: str
    """A NumPy type, or what needs translation: ``text`` (UTF-8 bytes with offsets), ``text or none`` (text that may be
    absent, which a column ``<name>_present`` says), ``json`` (text of a JSON object), ``vectors`` (float32 rows of one
    size), ``yes`` (int8: 1 or 0), ``flag`` (the same, or -1 for None), ``ending`` (int8)."""
    unit: str

    @property
    def is_text(self) -> bool:
        """Whether the values are UTF-8 bytes with offsets."""
        return self.kind in _TEXTS

    @property
    def optional(self) -> bool:
        """Whether a text may be absent."""
        return self.kind == "text or none"

    @property
    def dtype(self) -> np.dtype:
        """Type of the values in the file."""
        return np.dtype(_BYTES.get(self.kind, self.kind))


def _columns(names: str, kind: str, unit: str = "") -> tuple[Column, ...]:
    return tuple(Column(name, kind, unit) for name in names.split())


COLUMNS: dict[str, tuple[Column, ...]] = {
    "questions": (
        *_columns("question_id question prompt", "text"),
        *_columns("gold answer", "text or none"),
        *_columns("metadata", "json"),
        *_columns("num_prompt_tokens", "int32", "token"),
        *_columns("num_cancelled_tokens", "int64", "token"),
        *_columns("embedding prompt_hidden", "vectors"),
        *_columns("prefill_s embedding_s controller_s cancelled_s latency_s", "float64", "s"),
        *_columns("correct", "flag"),
    ),
    "decisions": (*_columns("k", "int32"), *_columns("p_enough", "float64")),
    "trajectories": (
        *_columns("text arm", "text"),
        *_columns("answer strict_answer", "text or none"),
        *_columns("index answer_class", "int32"),
        *_columns("correct strict_correct", "flag"),
        *_columns("ending", "ending"),
        *_columns("base_logprob proposal_logprob", "float64", "nat"),
        *_columns("num_generated_tokens num_saved_tokens", "int64", "token"),
        *_columns("mh_proposed mh_accepted mh_rejected_early", "int64"),
        *_columns("compute_s started_s finished_s", "float64", "s"),
    ),
    "tokens": _columns("tokens", "int32"),
    "series": (*_columns("token_logprob token_entropy", "float32", "nat"), *_columns("token_top1", "float32")),
    "blocks": (
        *_columns("block_num_tokens", "int32", "token"),
        *_columns("block_logprob block_entropy", "float64", "nat"),
        *_columns("block_top1", "float64"),
        *_columns("hidden", "vectors"),
    ),
    "steps": (
        *_columns("horizon length cut_position", "int32", "token"),
        *_columns("accepted", "yes"),
        *_columns("logprob", "float64", "nat"),
    ),
}
"""The tables, in order; the last column of each has one value a row."""

RAGGED = ("tokens", "series", "blocks", "steps")
"""Tables whose rows are the entries of arrays of a trajectory."""
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
        offsets = [*OFFSETS.get(table, ()), *(column.name for column in columns if column.is_text)]
        layout |= {f"{table}/{name}_offset": (np.dtype(np.int64), 1) for name in offsets}
        layout |= {f"{table}/{column.name}_present": (np.dtype(np.int8), 1) for column in columns if column.optional}
        layout |= {f"{table}/{c.name}": (c.dtype, 2 if c.kind == "vectors" else 1) for c in columns}
    return layout


DATASETS = _datasets()
"""Every dataset of a segment: its full name, with its type and number of dimensions."""
UNITS = {f"{table}/{column.name}": column.unit for table, columns in COLUMNS.items() for column in columns}
