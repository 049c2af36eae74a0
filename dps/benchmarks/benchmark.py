"""The question side of the pipeline: questions go out as prompts, responses come back as answers that are graded.

A harvest or an evaluation renders each :class:`Item` for its model, and gives the responses to the benchmark's grader
(``grading``). What differs between benchmarks (where questions come from, the templates, the stop strings, the grader)
is in the fields of the one class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dps.benchmarks.config import QUESTION_FIELD, BenchmarkConfig
from dps.benchmarks.grading import Grader
from dps.chat import render_chat
from dps.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dps.benchmarks.records import RecordFile


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a benchmark."""

    question_id: str
    """Unique in the benchmark, and independent of limit, offset and shuffling."""
    question: str
    """The question as the benchmark states it."""
    gold: str | None
    """The gold answer in canonical form; None where there is none."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What else the benchmark says of it: JSON values."""


@dataclass(frozen=True, slots=True, eq=False)
class Benchmark:
    """The selected questions, with everything that is done to them and to their answers."""

    config: BenchmarkConfig
    """What was asked for."""
    items: list[Item]
    """The selected questions in order, at least one."""
    source: str
    """Name of the file, or where else the questions come from."""
    sha256: str
    """Digest of the file's content; of generated questions, of the first ones."""
    chat_template: str
    """The user's message for an instruct model."""
    plain_template: str
    """The whole prompt for a base model."""
    grader: Grader
    """Reads the responses."""
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

        Args:
            item: The question.
            tokenizer: The model's tokenizer; only its chat template is used.

        Raises:
            InputError: If a chat prompt was asked for and the tokenizer has no chat template, or one that fails or
                leaves the question out.
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


def benchmark_of(
    file: RecordFile,
    items: list[Item],
    config: BenchmarkConfig,
    *,
    chat: str,
    plain: str,
    grader: Grader,
    stop: tuple[str, ...] = (),
) -> Benchmark:
    """Return the benchmark of a file's questions, as the settings select and template them.

    Args:
        file: Where the questions come from.
        items: All of them.
        config: The settings; a template of theirs replaces both of the benchmark's, and with them the stop strings.
        chat: The user's message for an instruct model.
        plain: The whole prompt for a base model.
        grader: Reads the responses.
        stop: Stop strings of the prompt for a base model.

    Raises:
        InputError: If no question is left.
    """
    return Benchmark(
        config=config,
        items=select_items(items, config),
        source=file.name,
        sha256=file.sha256,
        chat_template=config.template or chat,
        plain_template=config.template or plain,
        plain_stop=() if config.template else stop,
        grader=grader,
    )


def select_items(items: list[Item], config: BenchmarkConfig) -> list[Item]:
    """Shuffle if a seed is set, then apply offset and limit.

    Raises:
        InputError: If nothing is left.
    """
    if config.seed is not None:
        items = [items[i] for i in np.random.default_rng(config.seed).permutation(len(items))]
    end = None if config.limit is None else config.offset + config.limit
    selected = items[config.offset : end]
    if not selected:
        raise InputError(
            f"Expected benchmark.offset to leave questions, but {config.offset} of {len(items)} are left out: "
            "set a smaller offset."
        )
    return selected
