"""The question side of the pipeline: questions go out as prompts, responses come back as answers that are graded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dps.benchmarks.config import QUESTION_FIELD, BenchmarkConfig, check_config
from dps.benchmarks.grading import Grader, Item
from dps.benchmarks.records import HubFile, Record, RecordFile, read_source
from dps.chat import render_chat
from dps.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Benchmark", "Item", "Prompts", "benchmark_of", "items_of", "load_files"]


@dataclass(frozen=True, slots=True)
class Prompts:
    """What a model is asked around a question; ``{question}`` stands for that."""

    chat: str
    """The user's message for an instruct model, which the tokenizer's chat template wraps."""
    plain: str
    stop: tuple[str, ...] = ()
    """What a base model goes on with after its answer: the plain prompt's stop strings."""


@dataclass(frozen=True, slots=True, eq=False)
class Benchmark:
    """The selected questions, with everything that is done to them and to their answers."""

    config: BenchmarkConfig
    items: list[Item]
    """The selected questions in order; none where they come from elsewhere, see ``given``."""
    source: str
    """Name of the file, or where else the questions come from."""
    sha256: str
    """Digest of the file's content; of generated questions, of the first ones."""
    chat_template: str
    plain_template: str
    """The whole prompt for a base model."""
    grader: Grader
    plain_stop: tuple[str, ...] = ()
    """Stop strings of the prompt for a base model, where ``config.stop`` names none."""
    remarks: tuple[str, ...] = ()
    """What a user should know of the questions before a run: sentences."""

    def identity(self) -> dict[str, Any]:
        """Return what a store's manifest says of the questions.

        Offset and limit do not enter: a run may be extended by more questions of the same benchmark.
        """
        return {
            "name": self.config.name,
            "source": self.source,
            "sha256": self.sha256,
            "split": self.config.split,
            "seed": self.config.seed,
            "prompt": self.config.prompt,
            "chat_template": self.chat_template,
            "plain_template": self.plain_template,
        }

    def render(self, item: Item, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the text that the model is given for a question; a :class:`ChatPrompt` if a chat template made it.

        InputError if a chat prompt was asked for and the tokenizer has no chat template, or one that fails or leaves
        the question out.
        """
        if not self.chats(tokenizer):
            return self.plain_template.replace(QUESTION_FIELD, item.question)
        return render_chat(tokenizer, self.chat_template.replace(QUESTION_FIELD, item.question))

    def chats(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Return whether prompts go through the tokenizer's chat template."""
        if self.config.prompt == "auto":
            return bool(getattr(tokenizer, "chat_template", None))
        return self.config.prompt == "chat"

    def stop_strings(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """Return the texts that end a response to the prompts for this tokenizer, see ``sampler.stop``.

        Those of ``config.stop``, else the template's own: an instruct model ends by itself, a base model goes on.
        """
        if self.config.stop is not None:
            return tuple(self.config.stop)
        return () if self.chats(tokenizer) else self.plain_stop


def load_files(
    config: BenchmarkConfig,
    files: Mapping[str, HubFile],
    item: Callable[[Record, BenchmarkConfig], Item],
    fields: str,
    prompts: Prompts,
    grader: Grader,
    *,
    repeats: bool = False,
) -> Benchmark:
    """Load a benchmark from ``config.path``, or from the hub's file of the split where no path is set.

    ``item`` makes the question of a record; ``fields`` says in words what a record of a local file must have. With
    ``repeats`` a question may stand several times in the file; it is asked once. InputError if a setting cannot be
    meant, the file cannot be read, or a record is none of the benchmark's.
    """
    check_config(config, tuple(files))
    file = read_source(config, files[config.split], fields)
    items = items_of(file, lambda record: item(record, config), repeats=repeats)
    return benchmark_of(file, items, config, prompts, grader)


def items_of(file: RecordFile, item: Callable[[Record], Item], *, repeats: bool = False) -> list[Item]:
    """Return the questions of a file's records, see :func:`load_files`.

    InputError if two have the same id and may not.
    """
    items: dict[str, Item] = {}
    places: dict[str, str] = {}
    for record in file.records:
        made = item(record)
        name = made.question_id
        if name in items and not repeats:
            raise record.error(f"has the id {name!r}, which {places[name]} has already: give each its own id.")
        items.setdefault(name, made)
        places.setdefault(name, record.place)
    return list(items.values())


def benchmark_of(
    file: RecordFile,
    items: list[Item],
    config: BenchmarkConfig,
    prompts: Prompts,
    grader: Grader,
    remarks: tuple[str, ...] = (),
) -> Benchmark:
    """Return the benchmark of a file's questions: shuffled if a seed is set, then offset and limit applied.

    A template of the settings replaces both of the benchmark's, and with them the stop strings. InputError if no
    question is left.
    """
    order = range(len(items))
    if config.seed is not None:
        order = np.random.default_rng(config.seed).permutation(len(items))
    end = None if config.limit is None else config.offset + config.limit
    selected = [items[i] for i in order[config.offset : end]]
    if not selected:
        raise InputError(
            f"Expected benchmark.offset to leave questions, but {config.offset} of {len(items)} are left out: "
            "set a smaller offset."
        )
    return Benchmark(
        config=config,
        items=selected,
        source=file.name,
        sha256=file.sha256,
        chat_template=config.template or prompts.chat,
        plain_template=config.template or prompts.plain,
        plain_stop=() if config.template else prompts.stop,
        grader=grader,
        remarks=remarks,
    )
