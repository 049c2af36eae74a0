"""Responses from anybody's tables: one row a response, with what votes, grades and costs need of it.

What a table does not say of a response is empty or 0; entropies, top-1 probabilities and the proposal's log p are NaN
then. A response has one block, no tokens and no hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_store.columns import COLUMNS, Column
from feature_store.errors import StoreError
from feature_store.records import ENDINGS, Trajectory

if TYPE_CHECKING:
    import pandas as pd

REQUIRED = ("question_id", "index", "num_tokens", "answer", "correct", "num_generated_tokens", "base_logprob")
"""The columns that a table of responses must have."""
_MISSING = ("entropy", "top1", "proposal_logprob")
"""Numbers that may be missing: a row may say so by NaN."""
_OWN = (
    Column("question_id", "text", ""),
    *(Column(name, "int32", "token") for name in ("num_tokens", "num_prompt_tokens")),
    *(Column(name, "float64", "") for name in ("entropy", "top1", "prefill_s")),
)
"""What a table says beside the columns of ``/trajectories``: the blocks' sums, and of the question."""
_KINDS = {column.name: column for column in (*COLUMNS["trajectories"], *_OWN) if column.name != "arm"}
_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "": None}
_NOT_COUNTED = {"answer_class": -1}


@dataclass(frozen=True, slots=True)
class Responses:
    """The responses of several arms to the same questions."""

    question_ids: tuple[str, ...]
    """Sorted."""
    totals: dict[str, int]
    """Responses of each arm to every question, in the order of the arms."""
    columns: dict[str, dict[str, list[Any]]]
    """By arm and name, ordered by question and index."""

    def about(self, name: str) -> list[Any]:
        """Return what the first arm's first response says of each question."""
        arm, count = next(iter(self.totals.items()))
        return self.columns[arm][name][::count]

    def of(self, number: int) -> tuple[Trajectory, ...]:
        """Return the responses to a question, by arm and index; classes are joined by :func:`joined_classes`."""
        made, known = [], []
        for arm, count in self.totals.items():
            of_arm = self.columns[arm]
            for row in range(number * count, (number + 1) * count):
                values = {name: of_arm[name][row] for name in _KINDS}
                known.append((of_arm["source"][row], values["answer_class"]) if values["answer_class"] >= 0 else None)
                made.append((arm, values))
        classes = joined_classes([values["answer"] for _, values in made], known)
        return tuple(_trajectory(arm, values, each) for (arm, values), each in zip(made, classes, strict=True))


def _trajectory(arm: str, values: Mapping[str, Any], answer_class: int) -> Trajectory:
    fields = {name: value for name, value in values.items() if name not in {column.name for column in _OWN}}
    return Trajectory(
        **fields | {"answer_class": answer_class},
        arm=arm,
        tokens=np.zeros(0, np.int32),
        block_num_tokens=np.array([values["num_tokens"]], np.int32),
        block_logprob=np.array([values["base_logprob"]]),
        block_entropy=np.array([values["entropy"]]),
        block_top1=np.array([values["top1"]]),
        hidden=np.zeros((1, 0), np.float32),
    )


def joined_classes(answers: Sequence[str | None], known: Iterable[Hashable | None]) -> list[int]:
    """Return the class of each answer to a question, numbered by first appearance from 0; -1 for no answer.

    Answers are the same where their texts are, or where what is ``known`` of both is: the class that somebody has
    numbered, with who that was; None where nothing is.
    """
    parent: dict[Hashable, Hashable] = {}

    def root(name: Hashable) -> Hashable:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for answer, name in zip(answers, known, strict=True):
        if answer is not None and name is not None:
            parent[root(("known", name))] = root(("text", answer))
    numbers: dict[Hashable, int] = {}
    return [-1 if a is None else numbers.setdefault(root(("text", a)), len(numbers)) for a in answers]


def read_responses(records: Mapping[str, Path]) -> Responses:
    """Read the table of each arm: ``.csv``, ``.csv.gz`` or ``.parquet``.

    Of a file with a column ``arm``, as :func:`feature_store.tools.export` writes, an arm has its own rows only.

    Raises:
        StoreError: If a table cannot be read, lacks a column or says something that it cannot mean, if a question has
            an (arm, index) twice or not all of them, or arms have different questions.
    """
    columns = {arm: _columns(path, arm) for arm, path in records.items()}
    arms = list(columns)
    names = {arm: tuple(dict.fromkeys(of_arm["question_id"])) for arm, of_arm in columns.items()}
    for arm in arms[1:]:
        if odd := sorted(set(names[arms[0]]) ^ set(names[arm])):
            has, lacks = (arms[0], arm) if odd[0] in names[arms[0]] else (arm, arms[0])
            raise StoreError(
                f"Expected the same questions of every arm, but {len(odd):,} are not of both {arms[0]} and {arm}: "
                f"{odd[0]} is in {records[has]} and not in {records[lacks]}; leave it out, or add it."
            )
    totals = {arm: _count(columns[arm], records[arm]) for arm in arms}
    return Responses(names[arms[0]], totals, columns)


def _count(columns: Mapping[str, list[Any]], path: Path) -> int:
    """Return how many responses every question of an arm has, numbered from 0."""
    numbers: dict[str, list[int]] = {}
    for question_id, index in zip(columns["question_id"], columns["index"], strict=True):
        numbers.setdefault(question_id, []).append(index)
    count = len(next(iter(numbers.values())))
    for question_id, came in numbers.items():
        if len(set(came)) < len(came):
            twice = next(index for index, following in pairwise(came) if index == following)
            raise StoreError(
                f"{path} has two rows of question {question_id} and index {twice}: leave one of them out, or number "
                "the responses to a question from 0."
            )
        if came != list(range(count)):
            shown = ", ".join(map(str, came[:8])) + ", ..." * (len(came) > 8)
            raise StoreError(
                f"Expected the responses to every question of {path} to have the numbers 0 to {count - 1}, but "
                f"{question_id} has {shown}: number them anew, or leave out what is too many."
            )
    return count


def _columns(path: Path, arm: str) -> dict[str, list[Any]]:
    """Return the columns of a table that its arm has, as Python values in order of question and index."""
    frame = _read(path)
    if missing := [name for name in REQUIRED if name not in frame]:
        raise StoreError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}: a table of responses has "
            f"{', '.join(REQUIRED)}."
        )
    if "arm" in frame:
        frame = frame[frame["arm"] == arm]
    if not len(frame):
        raise StoreError(f"{path} has no response of the arm {arm}: name the file that has.")
    places = [f"question {q}, index {i}" for q, i in zip(frame["question_id"], frame["index"], strict=True)]
    columns = {name: _values(frame, column, path, places) for name, column in _KINDS.items()}
    # A file in which all arms stand has numbered the classes of all of them.
    columns["source"] = [str(path) if "arm" in frame else arm] * len(frame)
    order = sorted(range(len(frame)), key=lambda row: (columns["question_id"][row], columns["index"][row]))
    return {name: [values[row] for row in order] for name, values in columns.items()}


def _read(path: Path) -> pd.DataFrame:
    """Return a table as texts; of Parquet as objects, with None for what is missing."""
    import pandas as pd

    if not path.name.endswith((".csv", ".csv.gz", ".parquet")):
        raise StoreError(f"Expected a table that ends in .csv, .csv.gz or .parquet, got {path}.")
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path).astype(object)
            return frame.where(frame.notna(), None)
        return pd.read_csv(path, dtype=str, na_filter=False, encoding="utf-8")
    except FileNotFoundError:
        raise StoreError(f"Expected a table of responses, but there is no {path}.") from None
    except ImportError as error:
        raise StoreError("Reading Parquet needs pyarrow: pip install pyarrow, or give a .csv.") from error
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path} cannot be read as a table ({str(error).splitlines()[0]}): check the file.") from error


def _values(frame: pd.DataFrame, column: Column, path: Path, places: Sequence[str]) -> list[Any]:
    """Return a column's values as a record has them; refuses those that cannot be meant."""
    name, kind = column.name, column.kind
    if name not in frame:
        absent: Any = {"text": "", "ending": ENDINGS[0], "text or none": None, "flag": None}
        return [absent.get(kind, math.nan if name in _MISSING else _NOT_COUNTED.get(name, 0))] * len(frame)
    given = frame[name].tolist()
    if kind == "text or none":
        return [None if value is None or value == "" else str(value) for value in given]
    if kind == "text":
        return ["" if value is None else str(value) for value in given]
    if kind == "flag":
        values: list[Any] = [_FLAGS.get("" if value is None else str(value).lower(), value) for value in given]
        fine, wanted = [value is None or isinstance(value, bool) for value in values], "True, False or nothing"
    elif kind == "ending":
        values = [value or ENDINGS[0] for value in given]
        fine, wanted = [value in ENDINGS for value in values], f"one of {', '.join(ENDINGS)}"
    else:
        whole, least = kind.startswith("int"), {"answer_class": -1, "num_tokens": 1}.get(name, 0)
        values = [_number(value) for value in given]

        def is_fine(value: float) -> bool:
            if math.isnan(value):
                return name in _MISSING
            return value < math.inf and not (whole and (value != int(value) or value < least))

        fine = list(map(is_fine, values))
        wanted = f"a whole number of at least {least}" if whole else "a finite number"
        values = [int(value) if whole and good else value for value, good in zip(values, fine, strict=True)]
    if not all(fine):
        wrong = fine.index(False)
        raise StoreError(
            f"Expected {wanted} as {name} of every response in {path}, got {given[wrong]!r} ({places[wrong]}): correct "
            "it, or leave the row out."
        )
    return values


def _number(value: Any) -> float:
    """Return a number; NaN for a missing one, infinity, which nobody takes, for what is none."""
    try:
        number = math.nan if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        return math.inf
    return abs(number) if math.isinf(number) else number
