"""Which questions: settings and their check; apart from ``benchmark`` so that the command line's parser stays light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dps.arguments import check_seed
from dps.errors import InputError

QUESTION_FIELD = "{question}"
"""What a template has where the question goes."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """Which questions, and how they are put to the model."""

    name: Literal["arithmetic", "gsm8k", "math500", "humaneval", "gpqa", "alpaca_eval", "jsonl"] = "arithmetic"
    """`arithmetic` (generated), `gsm8k`, `math500`, `humaneval`, `gpqa` (Diamond), `alpaca_eval` (2.0), or `jsonl` for
    questions of your own."""
    path: str | None = None
    """File with one JSON object a line, or one JSON list: the benchmark's own fields, or your own `question` and, where
    you have them, `answer`, `id` and any other fields. Without it a benchmark comes from the Hugging Face hub."""
    split: str = "test"
    """Part of the benchmark: `test`, of GSM8K also `train`; of `jsonl` any word, which goes into the question ids."""
    limit: int | None = None
    """At most this many questions. Without it all of them; of `arithmetic`, which never ends, 1000."""
    offset: int = 0
    """Leave out this many questions at the beginning."""
    seed: int | None = None
    """Of `arithmetic`, which questions are generated (0 where not set). Of the others, shuffle the questions with this
    seed before offset and limit; where not set they keep the file's order. Of `gpqa` also the order of the choices."""
    prompt: Literal["auto", "chat", "plain"] = "auto"
    """`chat` wraps the question by the tokenizer's chat template, `plain` does not; `auto` is `chat` where there is
    such a template. Some base models come with one: set `plain` for them."""
    template: str | None = None
    """Text with {question} in it, instead of the benchmark's own: the user's message of a chat, or the whole plain
    prompt."""
    stop: tuple[str, ...] | None = None
    """Texts that end a response with the token that completes them, as an EOS would. Where not set, the template's own:
    what a base model writes when it goes on to a next question."""

    def __post_init__(self) -> None:
        """Make the stop strings a tuple, whatever a file or another process had them in."""
        if self.stop is not None:
            object.__setattr__(self, "stop", tuple(self.stop))


def check_config(config: BenchmarkConfig, splits: Sequence[str] | None = None) -> None:
    """Check what can be checked before any question is read.

    InputError for a limit, offset, split, seed, template or stop string that cannot be meant.
    """
    if config.limit is not None and config.limit < 1:
        raise InputError(f"Expected benchmark.limit to be at least 1 or not set, got {config.limit}.")
    if config.offset < 0:
        raise InputError(f"Expected benchmark.offset to be at least 0, got {config.offset}.")
    if config.seed is not None and config.seed < 0:
        raise InputError(f"Expected benchmark.seed to be at least 0 or not set, got {config.seed}.")
    check_seed(config.seed, "benchmark.seed")
    if config.stop is not None and not all(config.stop):
        raise InputError("Expected no empty text in benchmark.stop: it would end every response at once.")
    if splits is not None and config.split not in splits:
        raise InputError(
            f"Expected benchmark.split of {config.name} to be one of {', '.join(splits)}, got {config.split!r}."
        )
    if config.template is not None and QUESTION_FIELD not in config.template:
        raise InputError(
            f"Expected {QUESTION_FIELD} in benchmark.template, where the question goes, got {config.template!r}."
        )
