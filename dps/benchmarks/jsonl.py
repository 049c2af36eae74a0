"""One's own questions, from a file with one JSON object a line (or one JSON list).

``question`` is needed; ``answer`` (text or number) makes a question gradable, ``id`` names it, every other field goes
to its metadata. Where all answers are numbers, a response is searched for a number; otherwise for a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dps.benchmarks.answers import (
    canonical_answer,
    extract_number,
    extract_text,
    parse_number,
    strict_number,
    strict_text,
)
from dps.benchmarks.benchmark import Benchmark, Item, benchmark_of
from dps.benchmarks.config import BenchmarkConfig, check_config
from dps.benchmarks.grading import TextGrader
from dps.benchmarks.prompts import NUMBER_CHAT, NUMBER_PLAIN, NUMBER_STOP, TEXT_CHAT, TEXT_PLAIN, TEXT_STOP
from dps.benchmarks.records import RecordFile, read_records
from dps.errors import InputError
from feature_store.records import content_of

_FIELDS = ("question", "answer", "id")


def load_jsonl(config: BenchmarkConfig) -> Benchmark:
    """Load the questions of ``config.path``.

    Raises:
        InputError: If the file cannot be read, or a record cannot be a question.
    """
    check_config(config)
    if config.path is None:
        raise InputError(
            "Expected benchmark.path, the file with your questions, for benchmark.name: jsonl; it is not set."
        )
    file = read_records(config.path)
    items = _items(file, config)
    # Decided by the whole file, so that it does not change with limit and offset.
    golds = [item.gold for item in items]
    numeric = _numeric(golds)
    chat, plain, stop = (NUMBER_CHAT, NUMBER_PLAIN, NUMBER_STOP) if numeric else (TEXT_CHAT, TEXT_PLAIN, TEXT_STOP)
    return benchmark_of(file, items, config, chat=chat, plain=plain, stop=stop, grader=grader(golds))


def grader(golds: Sequence[str | None]) -> TextGrader:
    """Return what reads the responses: for numbers where all gold answers are numbers, else for texts."""
    if _numeric(golds):
        return TextGrader(extract_number, strict_number)
    return TextGrader(extract_text, strict_text)


def _numeric(golds: Sequence[str | None]) -> bool:
    known = [gold for gold in golds if gold is not None]
    return bool(known) and all(parse_number(gold) is not None for gold in known)


def _items(file: RecordFile, config: BenchmarkConfig) -> list[Item]:
    stem = file.name.rpartition(".")[0] or file.name
    items: list[Item] = []
    places: dict[str, str] = {}
    unnamed: dict[str, str] = {}
    for number, (place, record) in enumerate(file.records):
        question = file.question(place, record)
        question_id = _identifier(file, place, record)
        if question_id is None:
            if (first := unnamed.setdefault(content_of(question), place)) != place:
                raise file.error(place, f"has the same question as {first}: leave one out, or give each its own id.")
            question_id = f"{stem}-{config.split}-{number:05d}"
        if question_id in places:
            raise file.error(
                place, f"has the id {question_id!r}, which {places[question_id]} has already: give each its own id."
            )
        places[question_id] = place
        metadata = {name: value for name, value in record.items() if name not in _FIELDS}
        items.append(Item(question_id, question, _gold(file, place, record), metadata))
    return items


def _identifier(file: RecordFile, place: str, record: dict[str, Any]) -> str | None:
    value = record.get("id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise file.error(place, f"should have a text or an integer as id, but has {value!r}.")
    return str(value)


def _gold(file: RecordFile, place: str, record: dict[str, Any]) -> str | None:
    value = record.get("answer")
    if value is None:
        return None
    gold = canonical_answer(str(value)) if isinstance(value, str | int | float) else None
    if gold is None:
        raise file.error(
            place,
            f"should have a text or a number as answer, but has {value!r}; leave the field out where there is none.",
        )
    return gold
