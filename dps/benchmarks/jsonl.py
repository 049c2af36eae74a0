"""One's own questions, from a file with one JSON object a line (or one JSON list).

``question`` is needed; ``answer`` (text or number) makes a question gradable, ``id`` names it, every other field goes
to its metadata. Each answer decides what its own question's responses are searched for: a number, or a text. What
the prompts ask for is the same for all, since a run has one template and one set of stop strings: a number where most
answers are numbers, else a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dps.benchmarks.answers import canonical_answer, parse_number
from dps.benchmarks.arithmetic import prompt_for
from dps.benchmarks.benchmark import Benchmark, Item, benchmark_of
from dps.benchmarks.config import QUESTION_FIELD, BenchmarkConfig, check_config
from dps.benchmarks.generated import grader as arithmetic_grader
from dps.benchmarks.grading import Grader
from dps.benchmarks.kinds import grader_of_kind
from dps.benchmarks.prompts import NUMBER_CHAT, NUMBER_PLAIN, NUMBER_STOP, TEXT_CHAT, TEXT_PLAIN, TEXT_STOP
from dps.benchmarks.records import RecordFile, read_records
from dps.errors import InputError
from feature_store.records import content_of

EMBEDDED_TEMPLATE = prompt_for(QUESTION_FIELD)
"""The form in which the embedded model is asked, and which it answers in its own form, too."""

_FIELDS = ("question", "answer", "id")
_Asked = Literal["number", "text"]
_MOST_NAMED = 3
"""Lines that a sentence names."""


@dataclass(frozen=True, slots=True)
class OwnGrader:
    """Reads each response for what its question's gold answer is: a number, or a text."""

    asked: _Asked
    """What a question without a gold answer is read for: what its prompt asks for."""
    in_background: bool = False

    def extract(self, text: str, item: Item) -> str | None:
        """See :class:`Grader`."""
        return self._of(item).extract(text, item)

    def extract_strict(self, text: str, item: Item) -> str | None:
        """See :class:`Grader`."""
        return self._of(item).extract_strict(text, item)

    def grade(self, answer: str | None, item: Item) -> bool | None:
        """See :class:`Grader`."""
        return self._of(item).grade(answer, item)

    def classes(self, answers: Sequence[str | None], item: Item) -> list[int]:
        """See :class:`Grader`."""
        return self._of(item).classes(answers, item)

    def _of(self, item: Item) -> Grader:
        return grader_of_kind(self.asked if item.gold is None else _kind(item.gold))


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
    numeric = _most_asked(golds) == "number"
    chat, plain, stop = (NUMBER_CHAT, NUMBER_PLAIN, NUMBER_STOP) if numeric else (TEXT_CHAT, TEXT_PLAIN, TEXT_STOP)
    benchmark = benchmark_of(
        file, items, config, chat=chat, plain=plain, stop=stop, grader=grader(golds, config.template or plain)
    )
    return replace(benchmark, remarks=_remarks(file, golds, config))


def grader(golds: Sequence[str | None], template: str = "") -> Grader:
    """Return what reads the responses.

    Args:
        golds: The gold answers.
        template: The plain prompt's, or what stands for it: of a store its manifest's ``plain_template``, so that its
            responses are read in the same way again.
    """
    if template == EMBEDDED_TEMPLATE:
        return arithmetic_grader()
    asked: dict[str, _Asked] = {NUMBER_PLAIN: "number", TEXT_PLAIN: "text"}
    return OwnGrader(asked.get(template) or _most_asked(golds))


def _kind(gold: str) -> _Asked:
    return "number" if parse_number(gold) is not None else "text"


def _most_asked(golds: Sequence[str | None]) -> _Asked:
    """Return what questions are asked for: a number where more than half of the answers are numbers."""
    kinds = [_kind(gold) for gold in golds if gold is not None]
    return "number" if 2 * kinds.count("number") > len(kinds) else "text"


def _remarks(file: RecordFile, golds: Sequence[str | None], config: BenchmarkConfig) -> tuple[str, ...]:
    """Return what a user should know of a file whose answers are of both kinds."""
    places: dict[str, list[str]] = {"number": [], "text": []}
    for (place, _), gold in zip(file.records, golds, strict=True):
        if gold is not None:
            places[_kind(gold)].append(place)
    numbers, texts = len(places["number"]), len(places["text"])
    if not (numbers and texts):
        return ()
    asked = _most_asked(golds)
    others = places["text"] if asked == "number" else places["number"]
    which = f"{_named(others)} {'is' if len(others) == 1 else 'are'}{' not' if asked == 'number' else ''}"
    form = "" if config.template else f" All are asked for a {asked} (benchmark.template asks for something else)."
    return (
        f"{file.name}: {numbers:,} of {numbers + texts:,} answers are numbers; {which}. Each question is graded by "
        f"what its own answer is.{form}",
    )


def _named(places: Sequence[str]) -> str:
    """Return places in words.

    >>> _named(["line 8"]), _named(["line 1", "line 2"]), _named([f"line {n}" for n in range(1, 7)])
    ('line 8', 'lines 1 and 2', 'lines 1, 2, 3 and 3 others')
    """
    what = places[0].split()[0]
    numbers = [place.split()[1] for place in places]
    if len(numbers) == 1:
        return f"{what} {numbers[0]}"
    plural = "entries" if what == "entry" else f"{what}s"
    if len(numbers) <= _MOST_NAMED:
        return f"{plural} {', '.join(numbers[:-1])} and {numbers[-1]}"
    return f"{plural} {', '.join(numbers[:_MOST_NAMED])} and {len(numbers) - _MOST_NAMED:,} others"


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
