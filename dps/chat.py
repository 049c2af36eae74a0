"""Chat templates: a question as the prompt of an instruct model, and the token that ends a turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dps.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatPrompt(str):
    """A prompt that a chat template rendered: it has all its special tokens, so that encoding it adds none."""

    __slots__ = ()


def render_chat(tokenizer: PreTrainedTokenizerBase, message: str) -> ChatPrompt:
    """Return the prompt that a tokenizer's chat template makes of a user's message.

    An InputError if there is no template, it fails, or its prompt does not contain the message; a template may change
    spaces and line ends.
    """
    template: Any = getattr(tokenizer, "chat_template", None)
    if not template:
        raise InputError(
            "Expected a model with a chat template for benchmark.prompt: chat, but this model's tokenizer has "
            "none: set benchmark.prompt to plain, or choose an instruct model."
        )
    if isinstance(template, dict) and "default" not in template:
        raise InputError(
            "Expected one of the tokenizer's chat templates to be named default, but it has only "
            f"{', '.join(sorted(template))}: name one of them default, or set benchmark.prompt to plain."
        )
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template is a program of the model's, which may raise anything
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(
            f"The tokenizer's chat template cannot render a user's message ({reason}): mend the template, or set "
            "benchmark.prompt to plain."
        ) from error
    if _without_spaces(message) not in _without_spaces(text):
        raise InputError(
            "Expected the tokenizer's chat template to write the question into the prompt, but the prompt does not "
            "contain it (does the template read a list of content parts?): mend the template, or set benchmark.prompt "
            "to plain."
        )
    return ChatPrompt(text)


def _without_spaces(text: str) -> str:
    return "".join(text.split())


_ANSWER = "ThisIsTheAnswer"
"""An assistant's message that no template writes by itself."""


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that the chat template writes after an assistant's message; None if it writes none there."""
    conversation = [{"role": "user", "content": "ThisIsTheQuestion"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
    except Exception:  # a template for questions only; what is wrong with others is said when they render one
        return None
    behind = text.rpartition(_ANSWER)[2] if _ANSWER in text else ""
    added = tokenizer.added_tokens_decoder
    tokens = tokenizer(behind, add_special_tokens=False)["input_ids"]
    return next((token for token in tokens if token in added and str(added[token]).strip()), None)
