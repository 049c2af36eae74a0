"""One's own questions, from a file with one JSON object a line (or one JSON list).

``question`` is needed; ``answer`` (text or number) makes a question gradable, ``choices`` (texts) lets it be answered
by a letter, ``id`` names it, every other field goes to its metadata. Each answer decides what its own question's
responses are searched for: a letter, a number, or a text. What the prompts ask for is the same for all, since a run has
one template and one set of stop strings: a letter where most questions have choices, a number where most answers are
numbers, else a text.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dps.benchmarks import arithmetic
from dps.benchmarks.answers import canonical_answer
from dps.benchmarks.benchmark import Benchmark, Item, Prompts, benchmark_of, items_of
from dps.benchmarks.choices import LETTERS, choices_of
from dps.benchmarks.config import BenchmarkConfig, check_config
from dps.benchmarks.grading import Grader
from dps.benchmarks.kinds import grader_of_kind
from dps.benchmarks.mathematics import parse_number
from dps.benchmarks.prompts import CHOICE, NUMBER, TEXT
from dps.benchmarks.records import Record, RecordFile, read_records
from dps.errors import InputError
from feature_store.records import content_of

_Asked = Literal["choice", "number", "text"]
_PROMPTS: dict[_Asked, Prompts] = {"choice": CHOICE, "number": NUMBER, "text": TEXT}
_MOST_NAMED = 3
"""Lines that a sentence names."""


@dataclass(frozen=True, slots=True)
class OwnGrader(Grader):
    """Reads each response for a letter where its question has choices, else for what the gold answer is."""

    asked: _Asked
    """What a question without a gold answer is read for: what its prompt asks for."""

    def extract(self, text: str, item: Item) -> str | None:
        """See :class:`Grader`."""
        return self._of(item).extract(text, item)

    def extract_strict(self, text: str, item: Item) -> str | None:
        """See :class:`Grader`."""
        return self._of(item).extract_strict(text, item)

    def is_right(self, answer: str, item: Item) -> bool | None:
        """See :class:`Grader`."""
        return self._of(item).is_right(answer, item)

    def key(self, answer: str, item: Item) -> Hashable:
        """See :class:`Grader`."""
        return self._of(item).key(answer, item)

    def _of(self, item: Item) -> Grader:
        if "choices" in item.metadata:
            return grader_of_kind("choice")
        asked = "text" if self.asked == "choice" else self.asked
        return grader_of_kind(asked if item.gold is None else _kind(item.gold))


def load(config: BenchmarkConfig, embedded: bool = False) -> Benchmark:
    """Load the questions of ``config.path``; the embedded model is asked in a form of its own.

    InputError if the file cannot be read, or a record cannot be a question.
    """
    if embedded and config.template is None:
        config = replace(config, template=arithmetic.PROMPTS.plain)
    check_config(config)
    if config.path is None:
        raise InputError(
            "Expected benchmark.path, the file with your questions, for benchmark.name: jsonl; it is not set."
        )
    file = read_records(config.path)
    stem, unnamed = file.name.rpartition(".")[0] or file.name, {}
    items = items_of(file, lambda record: _item(record, f"{stem}-{config.split}", unnamed))
    # Decided by the whole file, so that it does not change with limit and offset.
    golds = [item.gold for item in items]
    lettered = sum("choices" in item.metadata for item in items)
    prompts = CHOICE if 2 * lettered > len(items) else _PROMPTS[_most_asked(golds)]
    reader = grader(golds, config.template or prompts.plain)
    return benchmark_of(file, items, config, prompts, reader, _remarks(file, golds, config))


def grader(golds: Sequence[str | None], template: str = "") -> Grader:
    """Return what reads the responses to questions with these gold answers.

    ``template`` is the plain prompt's, or of a store its manifest's ``plain_template``, so that its responses are read
    in the same way again.
    """
    if template == arithmetic.PROMPTS.plain:
        return arithmetic.GRADER
    asked = next((kind for kind, prompts in _PROMPTS.items() if prompts.plain == template), None)
    return OwnGrader(asked or _most_asked(golds))


def _kind(gold: str) -> _Asked:
    return "number" if parse_number(gold) is not None else "text"


def _most_asked(golds: Sequence[str | None]) -> _Asked:
    """Return what questions are asked for: a number where more than half of the answers are numbers."""
    kinds = [_kind(gold) for gold in golds if gold is not None]
    return "number" if 2 * kinds.count("number") > len(kinds) else "text"


def _remarks(file: RecordFile, golds: Sequence[str | None], config: BenchmarkConfig) -> tuple[str, ...]:
    """Return what a user should know of a file that lacks answers, or whose answers are of both kinds."""
    places: dict[str, list[str]] = {"number": [], "text": []}
    for record, gold in zip(file.records, golds, strict=True):
        if gold is not None and "choices" not in record.fields:
            places[_kind(gold)].append(record.place)
    numbers, texts = len(places["number"]), len(places["text"])
    lacking = ()
    if missing := golds.count(None):
        fields = dict.fromkeys(name for record in file.records for name in record.fields)
        which = f"no field answer, only: {', '.join(fields)}" if "answer" not in fields else "no answer"
        lacking = (f"{file.name}: {missing:,} of {len(golds):,} questions have {which}. They are not graded.",)
    if not (numbers and texts):
        return lacking
    asked = _most_asked(golds)
    others = places["text"] if asked == "number" else places["number"]
    which = f"{_named(others)} {'is' if len(others) == 1 else 'are'}{' not' if asked == 'number' else ''}"
    form = "" if config.template else f" All are asked for a {asked} (benchmark.template asks for something else)."
    return (
        *lacking,
        f"{file.name}: {numbers:,} of {numbers + texts:,} answers are numbers; {which}. Each question is graded by "
        f"what its own answer is.{form}",
    )


def _named(places: Sequence[str]) -> str:
    """Return places in words.

    >>> _named(["line 8"]), _named(["line 1", "line 2"]), _named([f"line {n}" for n in range(1, 7)])
    ('line 8', 'lines 1 and 2', 'lines 1, 2, 3 and 3 others')
    """
    what, numbers = places[0].split()[0], [place.split()[1] for place in places]
    if len(numbers) == 1:
        return places[0]
    if len(numbers) > _MOST_NAMED:
        numbers = [*numbers[:_MOST_NAMED], f"{len(numbers) - _MOST_NAMED:,} others"]
    return f"{'entries' if what == 'entry' else f'{what}s'} {', '.join(numbers[:-1])} and {numbers[-1]}"


def _item(record: Record, prefix: str, unnamed: dict[str, str]) -> Item:
    """Return a record's question; ``unnamed`` has the places of the questions without an id so far, by content."""
    question, value, name = record.text("question"), record.fields.get("answer"), record.name("id")
    if name is None:
        first = unnamed.setdefault(content_of(question), record.place)
        if first != record.place:
            raise record.error(f"has the same question as {first}: leave one out, or give each its own id.")
        name = f"{prefix}-{record.index:05d}"
    gold = canonical_answer(str(value)) if isinstance(value, str | int | float) else None
    if gold is None and value is not None:
        raise record.error(
            f"should have a text or a number as answer, but has {value!r}; leave the field out where there is none."
        )
    metadata = {key: field for key, field in record.fields.items() if key not in ("question", "answer", "id")}
    if "choices" in metadata:
        gold, choices = choices_of(record, value, "answer")
        lines = [f"{letter}) {choice}" for letter, choice in zip(LETTERS, choices["choices"], strict=False)]
        question = "\n".join([question, "", *lines])
    return Item(str(name), question, gold, metadata)
